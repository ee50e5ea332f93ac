"""`morphogen sample`: pictures (or what the space holds) from a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import UserError, unknown
from . import recipe as recipes
from .context import Context
from .data import picture_path
from .flags import Flag, flags_of, plain
from .walk import Film, needs_field, side_by_side, with_each

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Space
    from ..experiment import Run
    from ..hooks import SampleGrid


def own_flags(given: Mapping[str, Any]) -> tuple[str, list[Flag]]:
    """The sampling options of a run's model, for --help."""
    from ..experiment import read_spec
    from ..spec import build

    run: Path = given["run"]
    graph, modules = read_spec(run)["experiment"], recipes.load_files(given.get("with_", ()))
    model = build(graph["args"]["model"], modules=modules, assets=run / "assets")
    return f"options of {type(model).__name__}, the model of {run}:", model_flags(model)


def model_flags(model: Any) -> list[Flag]:
    """The options of the model's own sampling; none where it cannot sample."""
    from ..core import Samples, can

    return flags_of(model.sample, skip=("n", "cond", "noise")) if can(model, Samples) else []


def sample(
    context: Context,
    run: Path,
    *,
    n: int = 64,
    label: tuple[str, ...] = (),
    negative: tuple[str, ...] = (),
    weak: Path | None = None,
    solvers: tuple[str, ...] = (),
    film: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    columns: int | None = None,
    checkpoint: str = "newest",
    device: str | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Draw samples from a run, into one picture or a folder of files.

    run: the folder of the run. n: how many. label: classes to ask for, by name or number, in turn, or none (also
    --class; default: every class in turn where the run's own pictures ask for classes, else none).
    negative: classes to be guided away from, in turn (default: from no class). weak: the run of a worse model of the
    same preset, smaller or trained less, to be guided away from. solvers: draw the same noise with each of these, one
    under the other. film: FILE.png for a strip of how the first samples come out of noise.
    seed: sample i is a function of the seed and i. out: FILE.png for one picture of all, FILE.npy for the numbers, else
    a folder for a file each (default: drawn-SEED.png in the run). columns: samples in a row of the picture.
    checkpoint: newest, best (by the held-out metric) or a step. device: cpu, cuda, …. with_: files that define classes
    of yours which the run uses.
    """
    from ..experiment import draw

    if n < 1:
        raise UserError(f"--n {n} asks for nothing: take 1 or more.")
    if columns is not None and columns < 1:
        raise UserError(f"--columns {columns} shows nothing: take 1 or more.")
    path = out or run / f"drawn-{seed}.png"
    for picture in [p for p in (path, film) if p is not None and p.suffix not in ("", ".npy")]:
        picture_path(picture)
    if solvers and path.suffix in ("", ".npy"):
        raise UserError(f"--solvers makes one picture of all, and {str(path)!r} is none: give --out FILE.png.")
    modules = recipes.load_files(with_)
    loaded = load_run(context, run, checkpoint, device, modules)
    asking = {"--negative": negative, "--weak": weak, "--solvers": solvers, "--film": film}
    needs_field(loaded, *[flag for flag, value in asking.items() if value])
    options = options_of(context, loaded)
    space = loaded.space
    if space is None and (path.suffix != ".npy" or film or negative):
        raise UserError(f"The run {str(run)!r} has no space to show samples in: write the numbers with --out FILE.npy.")
    cond, asked = _wished(loaded, n, label)
    reel, extra = Film(), dict[str, Any]()
    if film:
        extra["watch"] = reel.watch
    if negative and space is not None:
        cond = {**(cond or {}), "negative": space.cond(n, label=list(negative))}
    if weak is not None:
        extra["weak"] = load_run(context, weak, "newest", device, modules).model

    def drawn(more: Mapping[str, Any] = MappingProxyType({})) -> Tensor:
        with context.tell.progress("sample", n) as progress:
            given = options | extra | dict(more)
            x = draw(loaded.model, n, cond, seed=seed, options=given, progress=progress).cpu()
        if x.is_floating_point() and (bad := int((~x.isfinite()).flatten(1).any(1).sum())):
            raise UserError(
                f"{bad} of the {n} samples are not finite, so nothing was written: lower the guidance, take more steps,"
                " or train the run longer."
            )
        return x

    each = with_each(solvers, drawn) if solvers else {"": drawn()}
    files = _written(space, each, path, columns)
    if film:
        film.parent.mkdir(parents=True, exist_ok=True)
        reel.strip(loaded, n).save(film)
        files.append(film)
    where = path if path.suffix else f"{len(files)} files in {path}"
    settings = "".join(f", {k} {v}" for k, v in options.items() if k != "solver" or not solvers)
    settings += f", by {', '.join(solvers)}" if solvers else ""
    fields = {"n": n, "label": list(label), "seed": seed, "step": loaded.step, "options": plain_options(options)}
    text = f"{n} samples of {asked} (seed {seed}, step {loaded.step}{settings}) drawn to {where}"
    text += f"; how they came about in {film}" if film else ""
    context.tell.answer("sampled", {**fields, "files": [str(f) for f in files]}, text)


def _written(space: Space | None, drawn: Mapping[str, Tensor], path: Path, columns: int | None) -> list[Path]:
    """The files of what was drawn, by solver where several drew."""
    x = next(iter(drawn.values()))
    if path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        import numpy as np

        np.save(path, x.numpy())
        return [path]
    assert space is not None
    if not path.suffix:
        return space.save(x, path)
    picture = space.show(x, columns) if len(drawn) == 1 else side_by_side(space, drawn, columns)
    picture.save(path)
    return [path]


def _wished(run: Run, n: int, label: tuple[str, ...]) -> tuple[Mapping[str, Any] | None, str]:
    """The conditions of n samples, and how to name them."""
    if label == ("none",):
        return None, "no class"
    if label and run.space is None:
        raise UserError(f"The run {str(run.path)!r} has no space, so no classes by name: leave --label out.")
    wished: list[str] = list(label)
    if not label and any("label" in (g.wishes or {}) for g in _grids(run)):
        wished = list(getattr(run.space, "classes", ()))
    if not wished or run.space is None:
        return None, "no class"
    return run.space.cond(n, label=wished), ", ".join(label) or f"all {len(wished)} classes in turn"


def _grids(run: Run) -> list[SampleGrid]:
    from ..hooks import SampleGrid

    return [h for h in run.trainer.hooks if isinstance(h, SampleGrid)]


def load_run(context: Context, run: Path, checkpoint: str, device: str | None, modules: Sequence[ModuleType]) -> Run:
    """A run by the words of a command line."""
    from ..experiment import load, read_spec

    read_spec(run)
    if checkpoint not in ("newest", "best") and not checkpoint.isdecimal():
        raise unknown("checkpoint", checkpoint, ("newest", "best"), "(or give a step's number)")
    which = int(checkpoint) if checkpoint.isdecimal() else checkpoint
    return load(run, checkpoint=which, modules=modules, device=device, say=context.tell.note)


def options_of(context: Context, run: Run) -> dict[str, Any]:
    """The sampling options: the flags, over what the run's own pictures are drawn with."""
    grids = _grids(run)
    own: dict[str, Any] = dict(grids[0].options or {}) if grids else {}
    return own | context.options(model_flags(run.model), type(run.model).__name__)


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    kept = {k: plain(v) for k, v in options.items()}
    return {k: v if v is None or isinstance(v, bool | int | float | str | list) else str(v) for k, v in kept.items()}
