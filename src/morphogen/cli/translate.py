"""`morphogen translate`: pictures made from pictures, by a run that has learned to; and what such a run is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import recipe as recipes
from .codec import Page, held_out, pictures_in, read_pictures, ready, save, some, stems
from .context import Context, data_root
from .data import picture_path
from .sample import load_run

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Items
    from ..experiment import Run
    from ..metrics.measure import Measure

_root = data_root
_SHOWN = 100  # items on a sheet at most


def translate(
    context: Context,
    run: Path,
    *,
    from_: tuple[Path, ...] = (),
    back: bool = False,
    n: int = 12,
    seed: int = 0,
    out: Path | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Make pictures from pictures: your own, or held-out ones, with a sheet of before and after.

    run: the folder of the run, of a pix2pix or a CycleGAN. from_: files of yours, or folders of them (default: held-out
    items, with the truth where it is known). back: the other way, for a model that goes both. n: how many pictures to
    show on the sheet, which has room for 100, and how many held-out items to take. seed: of the noise, and of which
    held-out items. out: a folder for a file of each picture, named as what it was made from, or FILE.png for the sheet
    alone (default: the sheet alone; it is translated.png in the run). checkpoint: newest, best or a step. ema: which
    averaged weights, by decay or length, or live (default: the run's first average). device: cpu, cuda, ….
    data_root: the folder that holds the data sets. with_: files that define classes of yours which the run uses.
    """
    from ..data.space import Pictures, stacked
    from ..metrics.translation import BothWays, Translates, is_paired, translated

    if n < 1:
        raise UserError(f"--n {n} shows nothing: take 1 or more.")
    if out is not None and out.suffix:
        picture_path(out, ", or name a folder")
    folder = out if out is not None and not out.suffix else None
    sheet = out if out is not None and out.suffix else run / "translated.png"
    files, shown = pictures_in(from_), min(n, _SHOWN)
    names = [] if folder is None else stems(files)
    if folder is None:
        n = shown
        if n < len(files):
            context.tell.note(f"The first {n:,} of {len(files):,} are translated: --out FOLDER makes a file of each.")
        files = files[:n]
    with _root(data_root):
        loaded = load_run(context, run, checkpoint, device, recipes.load_files(with_), ema)
        model = loaded.model
        if not isinstance(model, Translates):
            raise UserError(
                f"The run {str(run)!r} is a {type(model).__name__}, which makes no pictures of others:"
                f" {context.command} needs a pix2pix or a CycleGAN (`morphogen train --help` lists recipes)."
            )
        if back and not isinstance(model, BothWays):
            raise UserError(f"A {type(model).__name__} goes one way only: leave --back out.")
        truth: Tensor | None = None
        if files:
            shape = model.shape if back and isinstance(model, BothWays) else model.source_shape
            source = read_pictures(Pictures(shape), files, context.tell.note)
        else:
            test = held_out(loaded)
            chosen = some(test, min(n, len(test)), seed)
            source, truth = (chosen.cond or {})["source"], chosen.x
            source, truth = (truth, source) if back else (source, truth)
            truth = truth if is_paired(test) else None
    for path in (sheet, folder or sheet):
        ready(path)
    with context.tell.progress("picture", len(source)) as told:
        made = translated(model, source, back=back, seed=seed, progress=told)
    rows = {"from": source, "made": made} | ({"truth": truth} if truth is not None else {})
    written = [save(stacked({name: x[:shown] for name, x in rows.items()}), sheet)]
    if folder is not None:
        written += Pictures(made.shape[1:]).save(made, folder, names)
    page = Page(context, loaded, seed)
    fields = page.write("translate", written, {"n": len(made), "back": back})
    where = f"\n  {len(made)} files in {folder}" if folder is not None else ""
    text = f"{len(made)} pictures made by {run} (step {loaded.step})\n\n  sheet  {sheet}{where}"
    context.tell.answer("translated", fields, text)


def measured_translations(
    context: Context, run: Run, test: Items, n: int, judge: Any, seen: Items, seed: int
) -> dict[str, Measure]:
    """What translations of n held-out sources are worth. seen: the training pictures of the wanted kind."""
    import torch

    from ..data.edges import edges
    from ..metrics.translation import evaluate_translations, is_paired, translated

    chosen = some(test, n, seed)
    cond = chosen.cond or {}
    context.tell.note(f"Translating {len(chosen.x)} held-out pictures …")
    with context.tell.progress("picture", len(chosen.x)) as told:
        made = translated(run.model, cond["source"], seed=seed, progress=told)
    if judge is None:
        context.tell.note(
            "Without a judge there is no distance: train a classifier of these data and give --judge RUN."
        )
    order = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(seen), generator=order)[: len(made)]
    real = some(test, min(10_000, len(test)), seed).x
    return evaluate_translations(
        made,
        chosen.x,
        edges=edges,
        paired=is_paired(test),
        judge=judge,
        label=cond.get("label"),
        real=real,
        seen=seen.take(picked)["x"] if judge is not None else None,
    )
