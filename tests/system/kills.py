"""SIGKILL a training run again and again, a part of the times inside a save, and hold its end against one never killed.

    python tests/system/kills.py --kills 200

prints one JSON line: kills, how many inside a save, runs finished, how many of them lost something or differ.
Each life of a run is a forked child that dies by its own hand: at its n-th fsync, or at a random moment.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from morphogen.checkpoint import Checkpoints, digest, pack
from morphogen.experiment import Experiment
from morphogen.hooks import Voice
from morphogen.log import read

Make = Callable[[], Experiment]
NAMES = ("gan", "kmeans", "lm", "ppo")


def throwaway(name: str) -> Make:
    """The experiment maker of one of the throw-away models."""
    make: Make = importlib.import_module(f"tests.contract.throwaway.{name}").experiment
    return make


def train(make: Make, run: Path) -> None:
    """Train into `run`, from seeded weights, or go on with what is there."""
    torch.manual_seed(0)
    make().train(run, seed=3, voice=Voice())


def live(make: Make, run: Path, fsync: int | None, seconds: float | None) -> tuple[bool, bool]:
    """One life in a child, killed at its fsync-th fsync in a save or after `seconds`: (finished, died in a save)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _arm(fsync, seconds, writer)
            train(make, run)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        in_save = pipe.read() == b"("
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "a child failed; its traceback is above"
        return True, False
    return False, in_save


def _arm(fsync: int | None, seconds: float | None, writer: int) -> None:
    real, save, count, inside = os.fsync, Checkpoints.save, 0, False

    def die(*_: object) -> None:
        if inside:
            os.write(writer, b"(")
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(fd: int) -> None:
        nonlocal count
        count += inside
        if inside and fsync is not None and count == fsync and random.random() < 0.5:
            die()  # before the disk has it
        real(fd)
        if inside and fsync is not None and count == fsync:
            die()

    def watched(self: Checkpoints, *args: object, **kw: object) -> Path:
        nonlocal inside
        inside = True
        try:
            return save(self, *args, **kw)  # type: ignore[arg-type]
        finally:
            inside = False

    os.fsync, Checkpoints.save = counted, watched  # type: ignore[assignment, method-assign]
    if seconds is not None:
        signal.signal(signal.SIGALRM, die)
        signal.setitimer(signal.ITIMER_REAL, seconds)


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
    straight = {}
    for name, make in makes.items():
        finished, _ = live(make, folder / f"straight-{name}", None, None)
        assert finished
        straight[name] = weights(folder / f"straight-{name}")
    while found["kills"] < kills:
        name = list(makes)[found["runs"] % len(makes)]
        run = folder / f"{name}-{found['runs']}"
        last, lives = -1, 0
        while True:
            lives += 1
            at_fsync = rng.random() < 0.5 and lives < 12
            fsync = rng.randint(1, 24) if at_fsync else None
            seconds = rng.uniform(0.01, 0.25) if not at_fsync and lives < 12 else None
            random.seed(rng.random())
            finished, in_save = live(makes[name], run, fsync, seconds)
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temp:
        print(json.dumps(campaign(parser.parse_args().kills, {n: throwaway(n) for n in NAMES}, Path(temp))))
