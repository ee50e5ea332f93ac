"""The classifiers that samples are read by: given, or a data set's own; and those that learn from samples alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import recipe as recipes
from .context import Context
from .train import fit as fit_run
from .train import temporary

if TYPE_CHECKING:
    from torch import Tensor

    from ..experiment import Run

JUDGES = {"Digits": "digits-classifier", "MNIST": "mnist-classifier", "CIFAR10": "cifar-classifier"}
_AUTOMATIC = ("Digits",)  # those that are trained in seconds


def judge_of(context: Context, run: Run, given: Run | None, kind: str) -> Run | None:
    """The judge that was given, else the data set's own where that is trained in seconds."""
    if given is None:
        return _cached_judge(context, JUDGES[kind]) if kind in _AUTOMATIC else None
    return checked_judge(run, given)


def checked_judge(run: Run, given: Run) -> Run:
    """The judge that was given. UserError unless it reads what this run draws."""
    from ..core import can
    from ..metrics.judge import Judge

    if not can(given.model, Judge):
        model = type(given.model).__name__
        raise UserError(f"The run {str(given.path)!r} is a {model}, which reads no classes: give a classifier's run.")
    reads, drawn = (tuple(s.shape) if s is not None else () for s in (given.space, run.space))
    if reads != drawn:
        raise UserError(
            f"The judge {str(given.path)!r} reads items of shape {reads} and this run draws {drawn}: give a classifier"
            " of the same data, or leave --judge out."
        )
    return given


def _cached_judge(context: Context, name: str) -> Run:
    """The judge of a data set from the cache folder, trained there where it is not yet."""
    from ..data.roots import cache
    from ..experiment import load
    from ..spec import build, spec

    if cache().exists() and not cache().is_dir():
        raise UserError(
            f"The cache folder {str(cache())!r}, for the judge, is a file: name a folder in MORPHOGEN_CACHE, or give"
            " --judge RUN."
        )
    found = recipes.find(name)
    arguments = found.arguments({})
    graph = spec(found.build(arguments))
    path = cache() / "judges" / f"{name}-{hashlib.sha256(json.dumps(graph).encode()).hexdigest()[:12]}"
    experiment = build(graph, seed=0)
    with contextlib.suppress(UserError):  # it is not there, or not whole
        run = load(path)
        if run.step == experiment.trainer.steps:
            return run
    context.tell.note(f"Training the judge, {name}, once into {path} …")
    note = {"name": name, "arguments": arguments}
    return fit_run(context, experiment, path, 0, "cpu", note, found.file)


def learned(judge: Run, x: Tensor, label: Tensor, seed: int, device: str) -> Any:
    """A classifier like the judge, from other weights, that has seen only these samples."""
    from ..data.items import Tensors
    from ..data.source import Shuffled
    from ..experiment import Data
    from ..hooks import Voice
    from ..spec import arguments, build, call, modules_of

    modules = [m for part in (judge.model, judge.data) for m in modules_of(part)]
    fresh = build(judge.page["experiment"], modules=modules, seed=seed + 1, assets=judge.path / "assets")
    batch = arguments(fresh.data.train)["batch"]
    trainer = call(type(fresh.trainer), {**arguments(fresh.trainer), "heldout": None, "hooks": ()})
    with temporary() as folder:
        data = Data(Shuffled(Tensors(x, {"label": label}), min(batch, len(x))))
        trainer.fit(fresh.model, data, run=folder, seed=seed + 1, device=device, voice=Voice())
    return fresh.model.cpu().eval()
