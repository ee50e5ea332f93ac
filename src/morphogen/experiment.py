"""An experiment is a model, its data and a trainer; what it leaves behind is a run folder. Imports no torch.

run/  spec.json        the experiment's constructor calls, seed and recipe: written before the first step
      assets/          files that constructors need, by hash
      checkpoints/     see checkpoint.py
      snapshots/       averaged weights, see posthoc.py
      log.jsonl        losses, held-out metrics, speed
      samples/         pictures drawn on the way
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from .disk import make, write
from .errors import UserError, unknown
from .spec import Asset, Json, Remembers, adopt_assets, build, differences, modules_of, remembered, spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .core import Items, Model, Source, Space
    from .hooks import Voice
    from .train import Trainer

FORMAT = 1


class Data(Remembers):
    """Where batches come from, what is held out, and the way between tensors and the user's objects."""

    def __init__(self, train: Source, test: Items | None = None, space: Space | None = None) -> None:
        self.train, self.test, self.space = train, test, space


class Experiment(Remembers):
    """A model, its data and its trainer: what a recipe returns."""

    def __init__(self, model: Model, data: Data, trainer: Trainer) -> None:
        from .core import Model

        if not isinstance(data, Data):
            raise UserError(
                f"An Experiment(model, data, trainer) was given a {type(data).__name__} as data: give Data(train, …)."
            )
        if not isinstance(model, Model):
            raise UserError(
                f"An Experiment(model, data, trainer) was given a {type(model).__name__} as model: give a Model."
            )
        self.model, self.data, self.trainer = model, data, trainer

    def train(
        self,
        run: str | Path,
        *,
        seed: int = 0,
        device: str | None = None,
        voice: Voice | None = None,
        recipe: Mapping[str, Json] | None = None,
        until: int | None = None,
        shard: bool = False,
    ) -> Run:
        """Train into the run folder `run` (made, or continued where it holds this experiment) and return it.

        The model is trained in place, starting from the weights it has. recipe: how the experiment was made (name,
        arguments), noted in the run. until: stop after this step, as if interrupted. shard: where several processes
        train, each holds a piece of the weights only (docs/parallel.md).
        Raises UserError where the folder holds another experiment, naming the difference.
        """
        from .parallel import join

        run = Path(run)
        join().once(lambda: write_spec(run, self, seed, recipe))
        self.trainer.fit(
            self.model, self.data, run=run, seed=seed, device=device, voice=voice, until=until, shard=shard
        )
        return load(run, modules=modules_of(self), device=device)


def write_spec(
    run: Path, experiment: Experiment, seed: int, recipe: Mapping[str, Json] | None = None, *, instead: str = ""
) -> None:
    """Write `spec.json`, or hold the one that is there against the experiment.

    instead: what to do where they differ, said to the user.
    """
    from . import __version__

    check_seed(seed)
    if run.exists() and not run.is_dir():
        raise UserError(f"{str(run)!r} is a file: name another folder for the run (--run FOLDER).")
    graph = spec(experiment)
    path = run / "spec.json"
    if not (run / "checkpoints").is_dir():  # nothing was begun: the folder is free for whatever comes
        leftovers = {"assets", "spec.json.partial"}  # of a kill during the lines below
        if run.is_dir() and not path.exists() and any(p.name not in leftovers for p in run.iterdir()):
            raise UserError(f"The folder {str(run)!r} is not empty and holds no run: name another one (--run FOLDER).")
        make(run)
        adopt_assets(graph, run / "assets")
        page = {"format": FORMAT, "morphogen": __version__, "seed": seed, "recipe": recipe, "experiment": graph}
        write(path, json.dumps(page, indent=1) + "\n")
        return
    there = read_spec(run)
    adopt_assets(graph, run / "assets")
    found = differences(there["experiment"], graph, assets=run / "assets")
    if there["seed"] != seed:
        found.insert(0, f"seed: {there['seed']} there, {seed} here")
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        own = f"Continue it with its own settings, or start another from them (--like {run} --run FOLDER)."
        raise UserError(
            f"The run {str(run)!r} was started as another experiment: {'; '.join(found[:3])}{more}. {instead or own}"
        )


def check_seed(seed: int) -> None:
    """Raise UserError unless a generator can be seeded with it."""
    if not 0 <= seed < 2**63:
        raise UserError(f"The seed {seed} is out of range: take a whole number from 0 to {2**63 - 1}.")


def read_spec(run: str | Path) -> dict[str, Any]:
    """A run's `spec.json`. Raises UserError where the folder is no run, or of another format."""
    path = Path(run) / "spec.json"
    if not path.is_file():
        raise _no_run(Path(run))
    try:
        page: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = page["format"]
        page["experiment"]["args"]
        check_seed(int(page["seed"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{str(path)!r} is damaged: restore it from a copy of the run.") from None
    if version != FORMAT:
        raise UserError(f"{str(path)!r} is of format {version}, this version reads {FORMAT}: use the one that made it.")
    return page


def _no_run(run: Path) -> UserError:
    if inside := sorted(str(p.parent) for p in run.glob("*/spec.json")):
        raise UserError(f"{str(run)!r} is no run folder, but one of runs: name one of them, such as {inside[0]}.")
    parent = run.parent
    siblings = [p.name for p in parent.iterdir() if (p / "spec.json").is_file()] if parent.is_dir() else []
    if siblings:
        return unknown("run", run.name, siblings, f"(in {str(parent)!r}; `morphogen runs` lists them)")
    return UserError(f"{str(run)!r} is no run folder: train one first (morphogen train RECIPE --run {run}).")


class Run:
    """A finished or interrupted run, loaded: its model with the weights meant for sampling, and its space.

    Attributes: path, model, space, data, trainer, seed, page (spec.json), and of the weights step and average (its
    name, or "live").
    """

    def __init__(self, path: Path, experiment: Experiment, page: dict[str, Any], step: int, average: str) -> None:
        self.path, self.page, self.step, self.average = path, page, step, average
        self.model, self.data, self.trainer = experiment.model, experiment.data, experiment.trainer
        self.space, self.seed = experiment.data.space, int(page["seed"])

    @property
    def device(self) -> torch.device:
        """Where its model is."""
        from .device import device_of

        return device_of(self.model)

    def log(self) -> list[dict[str, Any]]:
        """The lines of the run's log."""
        from .log import read

        return read(self.path / "log.jsonl")


def load(
    run: str | Path,
    *,
    checkpoint: str | int = "newest",
    ema: str | float | None = None,
    modules: Iterable[ModuleType] = (),
    device: str | torch.device | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Run:
    """Load a run folder.

    checkpoint: "newest", "best" (by the held-out metric) or a step. ema: which averaged weights, by name (the decay
    of an EMA, the length of a PowerEMA), any other length of a PowerEMA that has snapshots, or "live" for the weights
    themselves; by default the first average where there is any. modules: where the user's own classes are. say: told
    about damaged checkpoints that were skipped.
    Raises UserError where the folder is no run, or holds no such checkpoint or average.
    """
    from .average import chosen
    from .checkpoint import Checkpoints, Damaged
    from .device import choose_device

    path = Path(run)
    page = read_spec(path)
    experiment = build(page["experiment"], modules=modules, assets=path / "assets", seed=int(page["seed"]))
    if not isinstance(experiment, Experiment):
        raise UserError(f"{str(path / 'spec.json')!r} is damaged: it is of a {type(experiment).__name__}.")
    checkpoints = Checkpoints(path)
    found = checkpoints.newest(say)
    if found is None:
        raise UserError(f"The run {str(path)!r} has no checkpoint yet: continue its training first.")
    step, parts = found
    if checkpoint == "best":
        with fitting(step):
            best = parts["loop"]["best"] and parts["loop"]["best"]["step"]
        if not best:
            raise UserError(f"The run {str(path)!r} has no best checkpoint, nothing having been measured: take newest.")
        checkpoint = best
    if isinstance(checkpoint, str) and checkpoint != "newest" and not checkpoint.isdecimal():
        raise unknown("checkpoint", checkpoint, ("newest", "best", *map(str, checkpoints.steps())))
    if checkpoint != "newest" and int(checkpoint) != step:
        step = int(checkpoint)
        try:
            parts = checkpoints.load(step)
        except Damaged as damage:
            there = ", ".join(map(str, checkpoints.steps()))
            raise UserError(f"Step {step} of {str(path)!r} cannot be loaded ({damage}): there are {there}.") from None
    model = experiment.model
    fit_weights(model, parts, step)
    with fitting(step):
        average, weights = chosen(experiment.trainer.ema, ema, path, step, parts, say)
        model.load_state_dict(weights, strict=False)  # on their own: the live weights of a tied twin wait
    model.step = step
    model.to(choose_device(device)).eval()
    return Run(path, experiment, page, step, average)


@contextlib.contextmanager
def fitting(step: int) -> Iterator[None]:
    """Where a checkpoint's parts are taken up. Raises UserError where they are not those that this experiment saves."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise UserError(
            f"The checkpoint of step {step} does not hold what this experiment saves ({said}): use the code that made"
            " the run, or train another one."
        ) from error


def fit_weights(model: Model, parts: Mapping[str, Any], step: int) -> None:
    """Load a checkpoint's weights. Raises UserError where the model has other tensors now."""
    with fitting(step):
        weights = parts["model"] | parts["frozen"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).partition("\n\t")[2].partition("\n")[0].strip().rstrip(".")
        raise UserError(
            f"The weights of step {step} of this run do not fit {type(model).__name__} ({first}): use the code that"
            " made the run, or train another one."
        ) from None


@remembered
def with_weights(model: Model, weights: Asset) -> Model:
    """`model` with the weights of a file, frozen: in evaluation mode, none of them trained. What it was is a part of
    what it remembers, so a run that uses it needs no other.

    weights: a .safetensors file with all of its tensors by name, such as `frozen` writes.
    Raises UserError where the file is none, or holds other tensors than the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(weights.path)
    except SafetensorError as error:
        raise UserError(f"The file {str(weights.path)!r} holds no weights: give a .safetensors file.") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).partition("\n\t")[2].partition("\n")[0].strip().rstrip(".")
        raise UserError(
            f"The weights in {str(weights.path)!r} do not fit {type(model).__name__} ({first}): give those of a model"
            " that was made alike."
        ) from None
    return model.requires_grad_(False).eval()


def frozen(
    run: str | Path,
    *,
    checkpoint: str | int = "newest",
    ema: str | float | None = None,
    modules: Iterable[ModuleType] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Model:
    """The model of a run as a part of another one: a codec, a judge, a teacher; on the CPU, its weights fixed.

    A run that uses it keeps its settings and weights (as an asset): what becomes of `run` afterwards is all the same.
    Arguments: see `load`. The weights lie in the cache folder until then. Raises UserError as `load` does.
    """
    from safetensors.torch import save

    from .checkpoint import digest
    from .data.roots import cache, keep

    model = load(run, checkpoint=checkpoint, ema=ema, modules=modules, device="cpu", say=say).model
    tensors = {name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}
    path = cache() / "weights" / f"{digest(tensors)}.safetensors"
    if not path.is_file():
        keep(path, lambda file: file.write(save(tensors)))
    return with_weights(model, Asset(path))


@contextlib.contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def draw(
    model: Model,
    n: int,
    cond: Mapping[str, Tensor] | None = None,
    *,
    seed: int = 0,
    chunk: int = 64,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """n samples (n, ...): without gradients, in evaluation mode, in padded chunks of one size.

    Sample i depends on (seed, i, chunk) and its own condition only: asking for more samples changes none.
    cond: conditions (n, ...) by name. options: the model's own sampling keywords ({"guidance": 2.0}).
    progress: told how many samples are done. Raises UserError for a model that cannot sample, or unknown options.
    """
    import torch

    from .core import Noise, Samples, can, each, fold, leaves
    from .device import device_of

    if not can(model, Samples):
        raise UserError(f"{type(model).__name__} cannot sample: it has no sample(n, cond, noise=...).")
    sample = cast("Samples", model).sample
    known = inspect.signature(sample).parameters
    for name in options or {}:
        if name not in known:
            own = [k for k in known if k not in ("n", "cond", "noise")]
            raise unknown(f"sampling option of {type(model).__name__}", name, own)
    check_seed(seed)
    if n < 0 or chunk < 1:
        raise UserError(f"Cannot draw {n} samples in chunks of {chunk}: ask for n >= 0 and chunk >= 1.")
    for name, c in leaves(cond or {}):
        if len(c) != n:
            raise UserError(f"The condition {name!r} has {len(c)} rows for {n} samples: give one row a sample.")
    device, drawn = device_of(model), []
    with torch.no_grad(), _evaluating(model), torch.random.fork_rng():
        for start in range(0, max(n, 1), chunk):
            rows = torch.arange(start, start + chunk, device=device).clamp(max=max(n - 1, 0))
            piece = None if cond is None or n == 0 else each(cond, lambda c: c.to(device)[rows])  # noqa: B023
            torch.manual_seed(fold(seed, start))
            noise = Noise.seeded(seed, chunk, start=start, device=device)
            x = sample(chunk, piece, noise=noise, **(options or {}))
            drawn.append(x[: max(0, min(chunk, n - start))])
            progress(min(n, start + chunk))
    return torch.cat(drawn)


def import_recipe(name: str) -> Callable[..., Experiment]:
    """A shipped recipe by its name ("digits-diffusion")."""
    module = importlib.import_module(f".recipes.{name.replace('-', '_')}", __package__)
    recipe: Callable[..., Experiment] = getattr(module, name.replace("-", "_"))
    return recipe
