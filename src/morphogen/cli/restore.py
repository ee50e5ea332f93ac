"""`morphogen restore`: damaged pictures, mended by what a run knows of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from . import recipe as recipes
from .codec import (
    Page,
    codec_run,
    conditions,
    held_out,
    picture,
    pictures_in,
    pictures_space,
    read_pictures,
    ready,
    save,
    some,
    stems,
)
from .context import Context, data_root
from .data import picture_path

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.space import Pictures
    from ..latent.damage import Damaged

_root = data_root
_CHUNK = 100  # pictures that are fitted at a time


def restore(
    context: Context,
    run: Path,
    *,
    damage: Literal["scratches", "missing", "blur", "noise"] | None = None,
    strength: float | None = None,
    pictures: tuple[Path, ...] = (),
    mask: Path | None = None,
    how: Literal["project", "fit"] | None = None,
    steps: int = 200,
    weight: float = 0.0,
    n: int = 100,
    show: int = 10,
    label: tuple[str, ...] = (),
    seed: int = 0,
    out: Path | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Mend pictures: the nearest that the run's decoder can make takes the damaged one's place.

    Held-out items are damaged first and measured against what they were; your own pictures are mended as they come.
    Intact pixels stay where it is known which are: with scratches and missing pixels, and with a mask.

    run: the folder of the run, of a codec of pictures. damage: scratches (how many), missing pixels (their share), blur
    or noise (deviation, in pixels or of a pixel's value in [-1, 1]); of your own pictures, blur may be named so that it
    is undone (default: scratches, of held-out items). strength: of the damage (default: 3 scratches, 0.5 missing, blur
    1.5, noise 0.5). pictures: damaged files of yours, or folders. mask: a picture, white where those are damaged.
    how: project, one pass of encoder and decoder, or fit, the latent whose picture, damaged in the same way, is
    nearest (default: fit where something of the damage is known, else project). steps: of a fit. weight: of the
    latent's squared length in a fit; for a VAE, its observation noise's variance. n: how many held-out items, -1 for
    all. show: how many to draw. label: the classes of the pictures, in turn, for a codec that is told classes.
    seed: of the damage, and which items. out: the sheet to write, damaged, restored and whole one below the other
    (default: restored.png in the run), or a folder for a restored file each, of the same name. checkpoint: newest, best
    or a step. ema: which averaged weights, by decay or length, or live (default: the run's first average). device: cpu,
    cuda, …. data_root: the folder that holds the data sets. with_: files that define classes of yours, which the run
    uses.
    """
    path = out or run / "restored.png"
    if path.suffix:
        picture_path(path, ", or name a folder")
    _consistent(damage, strength, pictures, mask, label, show)
    files = pictures_in(pictures)
    names = [] if path.suffix else stems(files)
    import torch

    from ..core import each
    from ..latent.restore import fitted, projected
    from ..metrics.likelihood import mean_of
    from ..metrics.psnr import psnr

    with _root(data_root):
        loaded = codec_run(context, run, checkpoint, ema, device, recipes.load_files(with_))
        space = pictures_space(loaded, "only pictures can be mended")
        where = loaded.device
        if files:
            x = read_pictures(space, files, context.tell.note)
            cond = conditions(loaded, len(x), label)
        else:
            x, cond, _ = some(held_out(loaded), n, seed)
    ready(path)
    spoilt, made = [], []
    fit = how == "fit" or (how is None and damage != "noise" and (not pictures or mask is not None or damage == "blur"))
    total = len(x) * (steps if fit else 1)
    with context.tell.progress("step" if fit else "picture", total) as told:
        for rows in torch.arange(len(x)).split(_CHUNK):
            begin = int(rows[0])
            part = x[rows].to(where)
            known = None if cond is None else each(cond, lambda c: c[rows].to(where))  # noqa: B023
            broken = _broken(space, part, begin, damage, strength, bool(pictures), mask, seed)
            if fit:
                done = fitted(
                    loaded.model, broken, known, steps=steps, weight=weight,
                    progress=lambda s: told(begin * steps + s * len(rows)),  # noqa: B023
                )  # fmt: skip
            else:
                done = projected(loaded.model, broken, known)
                told(begin + len(rows))
            spoilt.append(broken.y.cpu())
            made.append(done.cpu())
    y, restored = torch.cat(spoilt), torch.cat(made)
    page, cell = Page(context, loaded, seed), 2 / (space.levels - 1)
    if not pictures:
        page.measures["PSNR, damaged"] = mean_of(psnr(y, x, cell=cell), "dB, mean over held-out items, normal interval")
        page.measures["PSNR, restored"] = mean_of(psnr(restored, x, cell=cell), "the same of what was restored")
        gain = psnr(restored, x, cell=cell) - psnr(y, x, cell=cell)
        page.measures["PSNR, gained"] = mean_of(gain, "dB, mean of each item's difference, normal interval")
    written = _written(space, y, restored, None if files else x, path, show, names)
    ways = f"by a fit of {steps} steps" if fit else "by projection"
    about = {"damage": damage or (None if pictures else "scratches"), "how": ways, "n": len(x)}
    fields = page.write("restore", written, about)
    head = page.told() if page.measures else f"{len(x)} pictures (step {loaded.step})"
    context.tell.answer("restored", fields, f"{head}\n\n  restored {ways}\n" + "\n".join(f"  {f}" for f in written))


def _consistent(
    damage: str | None, strength: float | None, pictures: tuple[Path, ...], mask: Path | None, label: Any, show: int
) -> None:
    """Raise UserError where the flags contradict one another."""
    if show < 1:
        raise UserError(f"--show {show} draws nothing: take 1 or more.")
    if mask is not None and not pictures:
        raise UserError("--mask says where --pictures are damaged, and held-out items are whole: give --pictures too.")
    if label and not pictures:
        raise UserError("--label names the classes of --pictures, and held-out items have their own: leave it out.")
    if pictures and damage not in (None, "blur"):
        raise UserError(
            f"--damage {damage} would damage your pictures further: leave it out, and say with --mask where they are."
        )
    if mask is not None and damage is not None:
        raise UserError("--mask and --damage blur are two damages: give one of them.")
    if strength is not None and pictures and damage is None:
        raise UserError("--strength is of --damage, and none is named: leave it out, or give --damage blur.")
    if damage == "scratches" and strength is not None and not float(strength).is_integer():
        raise UserError(f"--strength {strength:g} of scratches is their number: take a whole one, such as 3.")


def _broken(
    space: Pictures,
    x: Tensor,
    begin: int,
    damage: str | None,
    strength: float | None,
    own: bool,
    mask: Path | None,
    seed: int,
) -> Damaged:
    """x as it is damaged, or, of the user's own pictures, what is known of their damage."""
    from ..core import Noise
    from ..latent.damage import DAMAGES, STRENGTHS, Damaged, masked

    if own and mask is not None:
        intact = (picture(space, mask).mean(0, keepdim=True) <= 0).to(x).expand(len(x), -1, -1, -1)
        return masked(x, intact)
    if own and damage is None:
        return Damaged(x, lambda made: made)
    name = damage or "scratches"
    given = {} if strength is None else {STRENGTHS[name]: int(strength) if name == "scratches" else strength}
    broken = DAMAGES[name](x, Noise.seeded(seed, len(x), start=begin), **given)
    return broken._replace(y=x) if own else broken


def _written(
    space: Pictures, y: Tensor, restored: Tensor, x: Tensor | None, path: Path, show: int, names: Sequence[str]
) -> list[Path]:
    """The sheet, a block for each, or a file of each restored picture."""
    from ..data.space import grid

    if not path.suffix:
        return space.save(restored, path, names)
    blocks = {"damaged": y, "restored": restored} | ({"as it was": x} if x is not None else {})
    pictures = [space.show(b[:show], min(show, len(b))) for b in blocks.values()]
    return [save(grid(pictures, 1, list(blocks)), path)]
