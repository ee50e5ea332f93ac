"""`morphogen sample`: pictures (or what the space holds) from a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import UserError, unknown
from . import pretrained
from . import recipe as recipes
from .context import Context
from .data import picture_path
from .flags import Flag, flags_of, plain
from .walk import Film, known_solvers, needs_field, side_by_side, weaker, with_each

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Space
    from ..experiment import Run
    from ..hooks import SampleGrid


_TOLD = 16  # texts that are printed


def own_flags(given: Mapping[str, Any]) -> tuple[str, list[Flag]]:
    """The sampling options of a run's model, for --help."""
    from ..experiment import read_spec
    from ..spec import build

    if given.get("from_") is not None:
        return pretrained.own_flags()
    run: Path = given["run"]
    graph, modules = read_spec(run)["experiment"], recipes.load_files(given.get("with_", ()))
    model = build(graph["args"]["model"], modules=modules, assets=run / "assets")
    return f"options of {type(model).__name__}, the model of {run}:", model_flags(model)


def model_flags(model: Any) -> list[Flag]:
    """The options of the model's own sampling; none where it cannot sample."""
    from ..core import Samples, can
    from ..diffusion import Field
    from ..diffusion.grid import GRIDS
    from ..diffusion.solvers import SOLVERS

    if not can(model, Samples):
        return []
    flags = flags_of(model.sample, skip=("n", "cond", "noise"))
    names = {"solver": SOLVERS, "grid": GRIDS} if isinstance(drawing(model), Field) else {}
    return [f._replace(text=f"{f.text}; one of {', '.join(names[f.name])}") if f.name in names else f for f in flags]


def sample(
    context: Context,
    run: Path | None = None,
    *,
    from_: Path | None = None,
    prompt: str = "",
    length: int | None = None,
    n: int | None = None,
    label: tuple[str, ...] = (),
    negative: tuple[str, ...] = (),
    weak: Path | None = None,
    solvers: tuple[str, ...] = (),
    film: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    columns: int | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    weights: str | None = None,
    device: str | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Draw samples from a run, into one picture or a folder of files, or as text; or text from a model of transformers.

    run: the folder of the run. from_: instead of a run, a folder that transformers has saved a GPT-2 or a Llama in.
    prompt: what text goes on from (of music: steps of MIDI numbers, a line each). length: at most so many tokens after
    it (default: 100, of a run all that there is room for). n: how many (default: 64; of text 16, with a prompt 1).
    label: classes to ask for, by name or number, in turn, or none (also --class; default: every class in turn where the
    run's own pictures ask for classes, else none).
    negative: classes to be guided away from, in turn (default: from no class). weak: the run of a worse model of the
    same preset, smaller or trained less, to be guided away from. solvers: draw the same noise with each of these, one
    under the other. film: FILE.png for a strip of how the first samples come out of noise (with --solvers: by the first
    of these).
    seed: sample i is a function of the seed and i. out: FILE.png for one picture of all, FILE.npy for the numbers, else
    a folder for a file each, and of text FILE.txt (default: drawn-SEED.png in the run, of text drawn-SEED.txt).
    columns: samples in a row of the picture.
    checkpoint: newest, best (by the held-out metric) or a step. ema: which averaged weights, by decay or length, or
    live (default: the run's first average). weights: int8 for those of linear layers in eight bits, which writes text
    faster. device: cpu, cuda, …. with_: files that define classes of yours which the
    run uses.
    """
    from ..core import Samples, can
    from ..data.music import Music
    from ..data.text import Text
    from ..experiment import draw
    from ..metrics.translation import Translates

    if n is not None and n < 1:
        raise UserError(f"--n {n} asks for nothing: take 1 or more.")
    if length is not None and length < 1:
        raise UserError(f"--length {length} asks for nothing: take 1 or more.")
    if from_ is not None:
        if run is not None:
            raise UserError(f"--from {from_} and the run {str(run)!r} exclude each other: give one of them.")
        of_runs: dict[str, object] = {
            "--label": label,
            "--negative": negative,
            "--weak": weak,
            "--solvers": solvers,
            "--film": film,
            "--columns": columns,
            "--checkpoint": checkpoint != "newest",
            "--ema": ema,
            "--with": with_,
        }
        if idle := [flag for flag, value in of_runs.items() if value]:
            raise UserError(
                f"{' and '.join(idle)} would change nothing of a model of transformers, but of a run: leave"
                f" {'them' if len(idle) > 1 else 'it'} out, or give RUN instead of --from."
            )
        pretrained.sample(
            context,
            from_,
            prompt,
            n=1 if n is None else n,
            length=100 if length is None else length,
            seed=seed,
            out=out,
            weights=weights,
            device=device,
        )
        return
    if run is None:
        raise UserError(f"RUN is missing: put it first, as in `{context.command} RUN …`.")
    if columns is not None and columns < 1:
        raise UserError(f"--columns {columns} shows nothing: take 1 or more.")
    path = out or run / f"drawn-{seed}.png"
    if path.suffix not in ("", ".npy", ".txt"):
        picture_path(path, ", or in .npy for the numbers")
    if film is not None:
        picture_path(film)
    if solvers and path.suffix in ("", ".npy"):
        raise UserError(f"--solvers makes one picture of all, and {str(path)!r} is none: give --out FILE.png.")
    modules = recipes.load_files(with_)
    loaded = load_run(context, run, checkpoint, device, modules, ema)
    pretrained.lighten(loaded.model, weights)
    if isinstance(loaded.model, Translates):
        raise UserError(
            f"A {type(loaded.model).__name__} makes pictures of others: `morphogen translate {run} --from PICTURES`."
        )
    if not can(loaded.model, Samples):
        raise UserError(f"A {type(loaded.model).__name__} cannot sample: `morphogen evaluate {run}` measures it.")
    asking = {"--negative": negative, "--weak": weak, "--solvers": solvers, "--film": film}
    needs_field(loaded, *[flag for flag, value in asking.items() if value])
    known_solvers(solvers)
    if negative:
        _needs_labels(loaded, "--negative")
    options = options_of(context, loaded)
    typed = context.options(model_flags(loaded.model), type(loaded.model).__name__)
    if solvers and typed.get("solver"):
        raise UserError(f"--solver {typed['solver']} and --solvers exclude each other: give one of them.")
    _no_idle_guidance(loaded, options, typed, negative, weak)
    space = loaded.space
    if out is None and isinstance(space, Text) and not isinstance(space, Music):
        path = path.with_suffix(".txt")
    asked_of_text = {"--prompt": prompt, "--length": length, f"--out {path}": path.suffix == ".txt"}
    if not isinstance(space, Text) and (flags := [flag for flag, value in asked_of_text.items() if value]):
        raise UserError(
            f"{flags[0]} is for runs that write text or music, and {str(run)!r} does not: leave it out, or give a"
            " language model of transformers with --from FOLDER."
        )
    n = n or (64 if not isinstance(space, Text) else 1 if prompt else _TOLD)
    begun = {"prompt": _begun(loaded, prompt)} if prompt else {}
    if space is None and (path.suffix != ".npy" or film or negative):
        raise UserError(f"The run {str(run)!r} has no space to show samples in: write the numbers with --out FILE.npy.")
    cond, asked = wished(loaded, n, label)
    if negative and space is not None:
        if "label" not in (cond or {}):
            raise UserError("--negative says what to be led away from, and no class is asked for: give --label too.")
        cond = {**(cond or {}), "negative": space.cond(n, label=list(negative))}
    extra = {} if weak is None else {"weak": weaker(loaded, load_run(context, weak, "newest", device, modules))}
    reel = Film(space, n)

    def drawn(more: Mapping[str, Any] = MappingProxyType({})) -> Tensor:
        with context.tell.progress("sample", n) as progress:
            given = options | extra | begun | dict(more)
            if film and not reel.states:
                given |= reel.options(loaded.model, given)
            x = draw(loaded.model, n, cond, seed=seed, options=given, progress=progress).cpu()
        if length is not None:
            x = x[:, : length + (len(begun["prompt"]) if begun else 0)]
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
        reel.strip(loaded).save(film)
        files.append(film)
    where = path if path.suffix else f"{len(files)} files in {path}"
    settings = "".join(f", {k} {v}" for k, v in options.items() if k != "solver" or not solvers)
    settings += f", by {', '.join(solvers)}" if solvers else ""
    fields = {
        "n": n,
        "label": list(label),
        "seed": seed,
        "step": loaded.step,
        "ema": loaded.average,
        "weights": weights,
    }
    fields["options"] = plain_options(options)
    which = f"step {loaded.step}" + (f", ema {loaded.average}" if ema is not None else "")
    which += f", {weights} weights" if weights is not None else ""
    what, shown = f"{n} samples of {asked}", ""
    if isinstance(space, Text):
        fields["texts"] = texts = space.decode(next(iter(each.values())))
        what = what if space.classes else f"{n} texts"
        shown = f"{_told(texts)}\n\n" if path.suffix == ".txt" else ""
    text = f"{shown}{what} (seed {seed}, {which}{settings}) drawn to {where}"
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
    if path.suffix == ".txt":
        path.write_bytes("\n\n".join(space.decode(x)).encode("utf-8", "replace") + b"\n")
        return [path]
    picture = space.show(x, columns) if len(drawn) == 1 else side_by_side(space, drawn, columns)
    picture.save(path)
    return [path]


def _begun(run: Run, prompt: str) -> Tensor:
    """The tokens (p,) that all samples begin with. Raises UserError where there is no room for more."""
    import inspect

    assert run.space is not None
    ids: Tensor = run.space.encode(prompt)
    if "prompt" not in inspect.signature(getattr(run.model, "sample")).parameters:  # noqa: B009
        raise UserError(f"A {type(run.model).__name__} does not go on from a prompt: leave --prompt out.")
    if len(ids) >= run.space.shape[0]:
        raise UserError(
            f"This prompt has {len(ids)} tokens, and the run {str(run.path)!r} writes {run.space.shape[0]} in all: give"
            " a shorter one."
        )
    return ids


def _told(texts: Sequence[str]) -> str:
    """What was drawn, for the terminal: the first of them."""
    few = texts[:_TOLD]
    lines = few if all("\n" not in t for t in few) else [f"{'—' * 24}\n{t}" for t in few]
    more = [f"… and {len(texts) - len(few)} more"] if len(texts) > len(few) else []
    return "\n".join([*lines, *more])


def _no_idle_guidance(
    run: Run, options: Mapping[str, Any], typed: Mapping[str, Any], negative: tuple[str, ...], weak: Path | None
) -> None:
    """Raise UserError where something was asked of guidance that it does not do."""
    from ..diffusion import Field

    if not isinstance(drawing(run.model), Field):
        return
    if weak is not None and negative:
        raise UserError("--weak and --negative are two things to be led away from: give one of them.")
    asking = {
        "--weak": weak,
        "--negative": negative,
        "--rescale": typed.get("rescale"),
        "--interval": "interval" in typed,
    }
    idle = [flag for flag, value in asking.items() if value]
    if idle and options.get("guidance", 1.0) == 1:
        does, it = ("do", "them") if len(idle) > 1 else ("does", "it")
        raise UserError(
            f"{' and '.join(idle)} {does} nothing at guidance 1, which is none: give --guidance 2, or leave {it} out."
        )
    low, high = options.get("interval", (0.0, 1.0))
    if not low < high or high <= 0 or low >= 1:
        raise UserError(
            f"--interval {low:g} {high:g} holds no time at which guidance could pull: data are at 0 and noise at 1, so"
            " give LOW below HIGH, such as --interval 0.2 0.8."
        )


def wished(run: Run, n: int, label: tuple[str, ...]) -> tuple[Mapping[str, Any] | None, str]:
    """The conditions of n samples, and how to name them."""
    if label == ("none",):
        return None, "no class"
    if label and run.space is None:
        raise UserError(f"The run {str(run.path)!r} has no space, so no classes by name: leave --label out.")
    if label:
        _needs_labels(run, "--label")
    names: list[str] = list(label)
    if not label and knows_labels(run.model) and any("label" in (g.wishes or {}) for g in _grids(run)):
        names = list(getattr(run.space, "classes", ()))
    if not names or run.space is None:
        return None, "no class"
    return run.space.cond(n, label=names), ", ".join(label) or f"all {len(names)} classes in turn"


def _needs_labels(run: Run, flag: str) -> None:
    """Raise UserError where this flag asks a net for classes that knows none."""
    if not knows_labels(run.model):
        raise UserError(
            f"The net of the run {str(run.path)!r} was built without classes, so {flag} would change nothing: leave it"
            " out."
        )


def _grids(run: Run) -> list[SampleGrid]:
    from ..hooks import SampleGrid

    return [h for h in run.trainer.hooks if isinstance(h, SampleGrid)]


def drawing(model: Any) -> Any:
    """The part of a model that draws, and is told conditions and options: of one in a latent space, the prior."""
    from ..latent import Latent

    return model.prior if isinstance(model, Latent) else model


def knows_labels(model: Any) -> bool:
    """Whether a label can change what the model draws; False only of a net that says that it has no classes."""
    from ..latent import Latent
    from ..nets.embed import ClassEmbedding

    parts = list((model.prior if isinstance(model, Latent) else model).modules())
    if any(isinstance(part, ClassEmbedding) for part in parts):
        return True
    return not any("classes" in vars(part) for part in parts)  # None in a net that has none; else a net of the user's


def load_run(
    context: Context,
    run: Path,
    checkpoint: str,
    device: str | None,
    modules: Sequence[ModuleType],
    ema: str | None = None,
) -> Run:
    """A run by the words of a command line."""
    from ..experiment import load, read_spec
    from ..recipes import names

    if str(run) in names() and not run.exists():
        raise UserError(f"{str(run)!r} is a recipe and no run: `morphogen train {run}` makes one, in runs/{run}-0.")
    read_spec(run)
    if checkpoint not in ("newest", "best") and not checkpoint.isdecimal():
        raise unknown("checkpoint", checkpoint, ("newest", "best"), "(or give a step's number)")
    which = int(checkpoint) if checkpoint.isdecimal() else checkpoint
    return load(run, checkpoint=which, ema=ema, modules=modules, device=device, say=context.tell.note)


def options_of(context: Context, run: Run) -> dict[str, Any]:
    """The sampling options: the flags, over what the run's own pictures are drawn with."""
    grids = _grids(run)
    own: dict[str, Any] = dict(grids[0].options or {}) if grids else {}
    return own | context.options(model_flags(run.model), type(run.model).__name__)


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    kept = {k: plain(v) for k, v in options.items()}
    return {k: v if v is None or isinstance(v, bool | int | float | str | list) else str(v) for k, v in kept.items()}
