"""Resume a training after each of its steps, and hold its end against one that was never stopped.

    python -m tests.system.resumes --steps 200

For each model: a straight run of that many steps keeps the checkpoint of every one. Each is then, alone with the log,
the newest of a run that goes on for a stretch of steps, every tenth to the very end. There everything in the checkpoint
must be what the straight run saved (weights, optimisers, averages, source, what the turns said, the log's tallies), and
the log's lines those of the straight run. As the stretches overlap, and a step is a function of what the checkpoint
before it holds, the way from any step is then the straight one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from morphogen.checkpoint import Checkpoints
from morphogen.experiment import Experiment
from morphogen.hooks import Voice
from morphogen.log import read
from morphogen.spec import build, modules_of, spec

from .kills import digits, throwaway
from .lives import asked, state, tell, timeless

MAKES = {"digits": digits} | {name: throwaway(name) for name in ("gan", "lm", "ppo")}
STRETCH = 3


def straight(name: str, steps: int, run: Path) -> Experiment:
    """Train a model with a checkpoint of every step; the experiment, as it was before."""
    torch.manual_seed(0)
    made = MAKES[name](steps)
    graph = spec(made)
    graph["args"]["trainer"]["args"] |= {"save_every": 1, "keep": steps + 2}
    fresh = build(graph, modules=modules_of(made), seed=5)
    build(graph, modules=modules_of(made), seed=5).train(run, seed=3, voice=Voice())
    return fresh  # type: ignore[no-any-return]


def resumed(fresh: Experiment, whole: Path, run: Path, step: int, until: int) -> bool:
    """Whether a run cut after `step` and trained on until `until` is the straight one there; in a child."""
    source, store = Checkpoints(whole), Checkpoints(run)
    shutil.rmtree(run, ignore_errors=True)
    store.folder.mkdir(parents=True)
    shutil.copy(whole / "spec.json", run)
    shutil.copytree(source.path(step), store.path(step))
    if source.frozen.is_dir():
        shutil.copytree(source.frozen, store.frozen)
    if not step % 2:  # of half of them the log goes on, as after a kill: what came later is cut away
        shutil.copy(whole / "log.jsonl", run)
    else:
        lines = [json.dumps(x) + "\n" for x in read(whole / "log.jsonl") if x["step"] <= step]
        (run / "log.jsonl").write_text("".join(lines))
    child = os.fork()
    if child == 0:
        try:
            fresh.train(run, seed=3, voice=Voice(), until=until)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status or store.steps()[-1] != until:
        return False
    lines = [timeless(x) for x in read(run / "log.jsonl")]
    return state(store.load(until)) == state(source.load(until)) and lines == [
        timeless(x) for x in read(whole / "log.jsonl") if x["step"] <= until
    ]


def campaign(steps: int, folder: Path, names: list[str] | None = None) -> dict[str, int]:
    """Resume after every step from 0 to `steps` - 1 of each model."""
    found = {"resumes": 0, "to_the_end": 0, "different": 0}
    for name in names or list(MAKES):
        whole = folder / name
        fresh = straight(name, steps, whole)
        for step in range(steps):
            until = steps if step % 10 == 9 or step + STRETCH > steps else step + STRETCH
            found["resumes"] += 1
            found["to_the_end"] += until == steps
            if not resumed(fresh, whole, folder / "resumed", step, until):
                found["different"] += 1
                print(f"{name}: resumed after step {step}, another at step {until}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    told = asked("resumes", steps=200, models=",".join(MAKES))
    tell(campaign(told.steps, Path(told.folder), told.models.split(",")), told.record)
