"""`morphogen reconstruct`: what a codec makes of data, by how much it errs, and where it errs most."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import UserError
from . import recipe as recipes
from .codec import Page, codec_run, conditions, held_out, pictures_in, pictures_space, read_pictures, ready, save, some
from .context import Context, data_root
from .data import picture_path

_root = data_root


def reconstruct(
    context: Context,
    run: Path,
    *,
    n: int = 1000,
    show: int = 10,
    pictures: tuple[Path, ...] = (),
    label: tuple[str, ...] = (),
    space: Literal["z", "w", "w+"] | None = None,
    extractor: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Encode and decode held-out items or your own pictures: sheets beside the originals, the error, the worst ones.

    run: the folder of the run, of a codec. n: how many held-out items to measure, -1 for all. show: how many originals
    with their reconstructions, and as many of the worst, to draw. pictures: files of yours, or folders of them, instead
    of held-out items. label: their classes, in turn, for a codec that is told classes. space: of a GAN, which is
    inverted, a second or so for each picture: z, or of styles w or w+ (default: z). extractor: the run of a classifier
    whose features are compared beside the pixels in inverting. seed: which items, after a shuffle.
    out: the picture to write (default: reconstructed.png in the run). checkpoint: newest, best or a step. ema: which
    averaged weights, by decay or length, or live (default: the run's first average). device: cpu, cuda, ….
    data_root: the folder that holds the data sets. with_: files that define classes of yours which the run uses.
    """
    path = out or run / "reconstructed.png"
    picture_path(path)
    if show < 1:
        raise UserError(f"--show {show} draws nothing: take 1 or more.")
    files = pictures_in(pictures)
    if label and not files:
        raise UserError("--label names the classes of --pictures, and held-out items have their own: leave it out.")
    import torch

    from ..core import each
    from ..data.space import grid
    from ..latent.reconstruct import reconstruct as rebuilt
    from ..metrics.likelihood import mean_of
    from ..metrics.psnr import psnr

    with _root(data_root):
        modules = recipes.load_files(with_)
        loaded = codec_run(context, run, checkpoint, ema, device, modules, space=space, extractor=extractor)
        drawn = pictures_space(loaded, "a sheet shows pictures: measure its likelihood with `morphogen evaluate`")
        page = Page(context, loaded, seed)
        if files:
            x = read_pictures(drawn, files, context.tell.note)
            cond, place = conditions(loaded, len(x), label), torch.arange(len(x))
        else:
            x, cond, place = some(held_out(loaded), n, seed)
    ready(path)
    where, made, errors = loaded.device, [], []
    with context.tell.progress("item", len(x)) as told:
        for rows in torch.arange(len(x)).split(250):
            part = None if cond is None else each(cond, lambda c: c[rows].to(where))  # noqa: B023
            found = rebuilt(loaded.model, x[rows].to(where), part)
            made.append(found.made.cpu())
            errors.append(found.error.cpu())
            told(int(rows[-1]) + 1)
    y, error = torch.cat(made), torch.cat(errors)
    what = "pictures" if files else "held-out items"
    page.measures["error"] = mean_of(error, f"mean squared error of {what}, pixels in [-1, 1], normal interval")
    page.measures["PSNR"] = mean_of(psnr(y, x, cell=2 / (drawn.levels - 1)), f"dB, mean over {what}, normal interval")
    first, worst = torch.arange(min(show, len(x))), error.argsort(descending=True)[:show]
    blocks, captions = [], []
    for rows, caption in ((first, "originals above reconstructions"), (worst, "the worst")):
        blocks.append(drawn.show(torch.cat((x[rows], y[rows])), len(rows)))
        captions.append(caption)
    written = [save(grid(blocks[: 2 if len(x) > 1 else 1], 1, captions[: 2 if len(x) > 1 else 1]), path)]
    fields = page.write("reconstruct", written, {"worst": place[worst].tolist()})
    context.tell.answer("reconstructed", fields, f"{page.told()}\n\n  sheet  {path}")
