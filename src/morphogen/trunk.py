"""Runs of many lengths for little more than the longest: a trunk at a constant rate, and cool-downs that branch from it
(Hägele et al. 2024, Scaling laws and compute-optimal training beyond fixed training durations, arXiv:2405.18392).

    rate   1 ‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾  trunk
             \\        \\                  \\     cool-downs, each a run of its own length: 1 − √

Up to where it cools a run with `CoolDown` does what one with `Constant` does, to the bit: so a cool-down takes up the
trunk's checkpoint, and ends in the very bytes of a run that was trained alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoints
from .disk import copy, make
from .errors import UserError
from .experiment import Experiment
from .heldout import HeldOut
from .log import read
from .optim import Constant, CoolDown, Schedule
from .posthoc import Snapshots
from .spec import Json, Remembers, arguments, call, differences, spec
from .train import Trainer

ENDLESS = 10**9  # steps of a trunk


def rescheduled(optim: Any, schedule: Schedule) -> Any:
    """A maker of optimisers (or several by name) with another schedule. Raises UserError for one that has none."""
    if isinstance(optim, Mapping):
        return {name: rescheduled(maker, schedule) for name, maker in optim.items()}
    args = arguments(optim)
    if "schedule" not in args:
        raise UserError(
            f"{type(optim).__name__} takes no schedule, so its runs share no trunk: train each alone (--cool 0)."
        )
    return call(type(optim), {**args, "schedule": schedule})


def warmup_of(optim: Any) -> int:
    """Steps of the warm-up of a maker of optimisers, the longest of several."""
    if isinstance(optim, Mapping):
        return max((warmup_of(maker) for maker in optim.values()), default=0)
    schedule = arguments(optim).get("schedule")
    return int(arguments(schedule).get("warmup", 0)) if isinstance(schedule, Remembers) else 0


def measured_once(experiment: Experiment, metric: str | None = None, optim: Any = None) -> Experiment:
    """The experiment without pictures on the way, measured on held-out data at its end alone. metric: "loss", or what
    the recipe measures. optim: instead of the recipe's.
    """
    trainer = experiment.trainer
    before = {} if trainer.heldout is None else arguments(trainer.heldout)
    steps = trainer.steps
    heldout = {**before, "every": steps, "patience": None, "metric": metric or before.get("metric", "loss")}
    if heldout["metric"] != before.get("metric"):
        heldout["better"] = "min"
    own = {**arguments(trainer), "heldout": call(HeldOut, heldout), "hooks": (), "save_every": steps}
    own["optim"] = trainer.optim if optim is None else optim
    return Experiment(experiment.model, experiment.data, call(Trainer, own))


def cooled(experiment: Experiment, warmup: int, share: float, metric: str | None = None) -> Experiment:
    """The experiment at a constant rate that cools over the last `share` of its steps."""
    optim = rescheduled(experiment.trainer.optim, CoolDown(warmup, share))
    return measured_once(experiment, metric, optim=optim)


def trunk_of(experiment: Experiment, warmup: int) -> Experiment:
    """The trunk that such runs branch from: at a constant rate, and never trained to its end, so that it knows nothing
    of how long they are and longer ones can be added.
    """
    optim = rescheduled(experiment.trainer.optim, Constant(warmup))
    own = {**arguments(experiment.trainer), "steps": ENDLESS, "save_every": ENDLESS, "optim": optim}
    own |= {"heldout": None, "hooks": ()}
    return Experiment(experiment.model, experiment.data, call(Trainer, own))


def check_alike(a: Experiment, b: Experiment) -> None:
    """Raise UserError where two experiments differ in more than length: their runs can share no trunk."""

    def plain(experiment: Experiment) -> Json:
        trainer = experiment.trainer
        own = {**arguments(trainer), "optim": rescheduled(trainer.optim, Constant())}
        own |= {"steps": 1, "heldout": None, "hooks": (), "save_every": 1, "log_every": 1}
        return spec(Experiment(experiment.model, experiment.data, call(Trainer, own)))

    if found := differences(plain(a), plain(b)):
        raise UserError(
            f"Runs of different lengths differ in more than that ({found[0]}), so they share no trunk: train each alone"
            " (--cool 0)."
        )


def branch(trunk: Path, step: int, run: Path) -> None:
    """Let the run in folder `run`, whose spec.json is written, begin with the trunk's checkpoint of `step`.

    Where it has a checkpoint of that step or a later one, nothing is done. Raises UserError where the trunk has none.
    """
    there, here = Checkpoints(trunk), Checkpoints(run)
    if any(s >= step for s in here.steps()):
        return
    if step not in there.steps():
        raise UserError(f"The trunk {str(trunk)!r} has no checkpoint of step {step}: remove its folder, and run again.")
    parts = there.load(step)
    frozen = parts.pop("frozen")
    stored, own = Snapshots(trunk).folder, Snapshots(run).folder
    if stored.is_dir():
        make(own)
        for file in sorted(stored.glob("*.safetensors")):
            copy(file, own / file.name)
    if read(trunk / "log.jsonl"):
        copy(trunk / "log.jsonl", run / "log.jsonl")  # its later lines are cut away when the run goes on
    here.save(step, parts, frozen)
