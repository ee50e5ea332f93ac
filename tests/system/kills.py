"""SIGKILL a training run again and again, a part of the times inside a save, and hold its end against one never killed.

    python -m tests.system.kills --kills 1000

prints one JSON line: kills, how many inside a save, runs finished, how many of them lost something or differ.

A server imports and builds each experiment once; each life of a run is a forked child of it. A life dies by SIGKILL at
the n-th call that a save makes of the system (by Python), or by the kernel's alarm at a random moment, of its whole
length or of a save's, wherever it then is: in Python, in torch or in safetensors. No handler hears of either.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from morphogen.average import EMA
from morphogen.checkpoint import Checkpoints, digest, pack
from morphogen.experiment import Experiment
from morphogen.heldout import HeldOut
from morphogen.hooks import SampleGrid, Voice
from morphogen.log import read
from morphogen.optim import AdamW, Cosine
from morphogen.recipes.digits_diffusion import digits_diffusion
from morphogen.train import Trainer

Make = Callable[[], Experiment]
NAMES = ("gan", "kmeans", "lm", "ppo")
LIVES = 12  # of one run that are killed; the next one is let finish
_CALLS = ("fsync", "rename", "replace", "mkdir", "open", "unlink", "rmdir")


def throwaway(name: str) -> Make:
    """The experiment maker of one of the throw-away models."""
    make: Make = importlib.import_module(f"tests.contract.throwaway.{name}").experiment
    return make


def digits(steps: int = 8) -> Experiment:
    """The recipe digits-diffusion with a small net, and all else that it has in less time."""
    made = digits_diffusion(steps=steps, width=8, batch=16)
    trainer = Trainer(
        steps,
        optim=AdamW(2e-3, betas=(0.9, 0.99), schedule=Cosine(warmup=2)),
        clip=1.0,
        ema=EMA(0.995),
        heldout=HeldOut(every=4, batch=32, limit=32),
        hooks=(SampleGrid(every=4, n=2, wishes={"label": [3, 4]}, options={"guidance": 1.5, "steps": 2}),),
        save_every=3,
        log_every=2,
    )
    return Experiment(made.model, made.data, trainer)


def train(make: Make, run: Path) -> None:
    """Train into `run`, from seeded weights, or go on with what is there."""
    torch.manual_seed(0)
    make().train(run, seed=3, voice=Voice())


class Death(NamedTuple):
    """When a life ends: at the `call`-th call of saves, or `seconds` after it began or, in_save, after a save did."""

    call: int | None = None
    seconds: float | None = None
    in_save: bool = False


def live(experiment: Experiment, run: Path, death: Death) -> tuple[bool, bool]:
    """One life in a child: (finished, died in a save)."""
    inside = mmap.mmap(-1, 1)
    child = os.fork()
    if child == 0:
        try:
            _arm(death, inside)
            experiment.train(run, seed=3, voice=Voice())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "a child failed; its traceback is above"
        return True, False
    assert os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGALRM), os.WTERMSIG(status)
    return False, inside[0] == 1


def _arm(death: Death, inside: mmap.mmap) -> None:
    save, count = Checkpoints.save, 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            nonlocal count
            count += inside[0]
            mine = inside[0] and count == death.call
            if mine and random.random() < 0.5:
                os.kill(os.getpid(), signal.SIGKILL)  # before the disk has it
            made = real(*args, **kw)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        return call

    def watched(self: Checkpoints, *args: Any, **kw: Any) -> Path:
        inside[0] = 1
        if death.seconds is not None and death.in_save:
            signal.setitimer(signal.ITIMER_REAL, death.seconds)
        try:
            return save(self, *args, **kw)
        finally:
            inside[0] = 0

    Checkpoints.save = watched  # type: ignore[method-assign]
    if death.call is not None:
        for name in _CALLS:
            setattr(os, name, counted(getattr(os, name)))
    if death.seconds is not None and not death.in_save:
        signal.setitimer(signal.ITIMER_REAL, death.seconds)


def weights(run: Path) -> str:
    """Hash of everything in the last checkpoint that training made, and of the log's losses."""
    store = Checkpoints(run)
    parts = store.load(store.steps()[-1])
    tensors = dict(parts["model"]) | {"frozen." + k: v for k, v in parts["frozen"].items()}
    tensors |= {f"{part}.{k}": v for part in parts if part.startswith("average") for k, v in parts[part].items()}
    for i, optim in parts["optim"].items():
        for name, state in optim["state"].items():
            tensors |= {f"optim.{i}.{name}.{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
    losses = [(line["step"], line["loss"]) for line in read(run / "log.jsonl") if "loss" in line]
    skeleton = pack({"source": parts["source"], "best": parts["loop"]["best"]}, tensors, "kept")
    return f"{store.steps()[-1]} {digest(tensors)} {json.dumps(skeleton)} {losses}"


def campaign(kills: int, makes: dict[str, Make], folder: Path, seed: int = 0) -> dict[str, int]:
    """Kill runs of the given experiments in turn until `kills` have died."""
    rng = random.Random(seed)
    found = {"kills": 0, "inside_save": 0, "runs": 0, "lost": 0, "different": 0}
    built, straight, lasts = {}, {}, {}
    for name, make in makes.items():
        train(make, folder / f"here-{name}")  # imports what is imported late
        torch.manual_seed(0)
        built[name] = make()
        began = time.perf_counter()
        finished, _ = live(built[name], folder / f"straight-{name}", Death())
        assert finished
        lasts[name] = time.perf_counter() - began
        straight[name] = weights(folder / f"straight-{name}")
        assert straight[name] == weights(folder / f"here-{name}")
    while found["kills"] < kills:
        name = list(makes)[found["runs"] % len(makes)]
        run = folder / f"{name}-{found['runs']}"
        last, lives = -1, 0
        while True:
            lives += 1
            random.seed(rng.random())
            deaths = (
                Death(call=rng.randint(1, 60)),
                Death(seconds=rng.uniform(0.002, lasts[name])),
                Death(seconds=rng.uniform(0.0002, 0.03), in_save=True),
            )
            finished, in_save = live(built[name], run, rng.choice(deaths) if lives <= LIVES else Death())
            if finished:
                break
            found["kills"] += 1
            found["inside_save"] += in_save
            newest = Checkpoints(run).newest(lambda text: None) if run.exists() else None
            step = -1 if newest is None else newest[0]
            found["lost"] += step < last
            last = step
        found["runs"] += 1
        found["different"] += weights(run) != straight[name]
        shutil.rmtree(run)
    return found


if __name__ == "__main__":
    from tests.system.lives import asked, tell

    told = asked("kills", kills=1000)
    makes = {"digits": digits} | {n: throwaway(n) for n in NAMES}
    tell(campaign(told.kills, makes, Path(told.folder)), told.record)
