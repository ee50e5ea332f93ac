"""What a plan says of a training before it is begun: counted by hand, and beside what then happens."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import morphogen as mg
from morphogen.cli import main
from morphogen.data import Shuffled
from morphogen.experiment import Data, Experiment, import_recipe
from morphogen.optim import SGD, AdamW, Optim
from morphogen.rehearsal import flops, rehearse
from morphogen.train import Trainer

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """A clock that goes on where it is told to, and not while a busy machine does."""

    now = 0.0

    @staticmethod
    def perf_counter() -> float:
        return Clock.now

    time = perf_counter


class Part(mg.Net):
    """A matrix, a bias and a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(width, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("kept", torch.zeros(5, dtype=torch.float64))


class Twin(mg.Model):
    """Two parts trained in turn, one of whose weights is frozen and one shared under two names."""

    def __init__(self, wait: float = 0.0) -> None:
        super().__init__()
        self.left, self.right, self.wait = Part(7), Part(11), wait
        self.left.matrix.requires_grad_(False)
        self.again = Part(2)
        self.again.matrix, self.again.bias = self.right.matrix, self.right.bias
        del self.again.kept

    def one(self, batch: mg.core.Batch) -> mg.Loss:
        """The left part alone."""
        return mg.Loss((self.left.bias.sum() - batch["x"].mean()) ** 2)

    def two(self, batch: mg.core.Batch) -> mg.Loss:
        """The right part alone."""
        Clock.now += self.wait if self.training else self.wait / 4
        return mg.Loss((self.right.matrix.sum() + self.right.bias.sum() - batch["x"].mean()) ** 2)

    def phases(self) -> tuple[mg.Phase, ...]:
        return (mg.Phase(self.one, ("left",)), mg.Phase(self.two, ("right",)))


class Nap(mg.Remembers):
    """A hook that takes its time."""

    def __init__(self, every: int, wait: float) -> None:
        self.every, self.wait = every, wait

    def __call__(self, training: Any) -> None:
        Clock.now += self.wait


def twin(optim: Optim, steps: int = 7, wait: float = 0.0, nap: float = 0.0, **more: Any) -> Experiment:
    data = Data(Shuffled(_Rows(40), 4), _Rows(8))
    heldout = mg.HeldOut(every=2, metric="two.loss", batch=4)
    hooks = (Nap(3, nap),) if nap else ()
    return Experiment(Twin(wait), data, Trainer(steps, optim=optim, heldout=heldout, hooks=hooks, **more))


class _Rows(mg.Remembers):
    """So many rows of two numbers."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def take(self, index: torch.Tensor) -> dict[str, Any]:
        return {"x": index[:, None].float().expand(-1, 2)}


TRAINED = {"left": 7, "right": 33 + 11}  # numbers; the left matrix is frozen


@pytest.mark.parametrize(
    ("optim", "bytes_"),
    [
        (AdamW(1e-3), sum(8 * n for n in TRAINED.values()) + 3 * 4),  # two moments; of each tensor its own step
        (SGD(1e-3, momentum=0.9), sum(4 * n for n in TRAINED.values())),
        (SGD(1e-3, momentum=0.0), 0),
    ],
    ids=["adamw", "momentum", "sgd"],
)
def test_what_stands_in_memory_is_counted(optim: Optim, bytes_: int, tmp_path: Path) -> None:
    ema = (mg.EMA(0.9), mg.EMA(0.99))
    said = rehearse(twin(optim, ema=ema), tmp_path / "run", device="cpu", seconds=0.01)
    memory, parameters = said["memory"], said["parameters"]
    assert memory["weights"] == 4 * (21 + 7 + 33 + 11) + 2 * 5 * 8
    assert memory["gradients"] == 4 * max(TRAINED.values())  # the turns follow one another
    assert memory["optimiser"] == bytes_
    assert memory["averages"] == 2 * 4 * sum(TRAINED.values())
    assert (parameters["total"], parameters["trained"]) == (72, sum(TRAINED.values()))
    assert parameters["parts"] == {"left": 28, "right": 44}
    assert 0 < memory["before"] <= memory["process"]


def test_everything_is_counted_as_often_as_it_is_due(tmp_path: Path) -> None:
    said = rehearse(twin(AdamW(), steps=7, nap=0.01, save_every=3), tmp_path / "run", device="cpu", seconds=0.01)
    due = {"start": 1, "step": 7, "held-out data": 4, "Nap": 3, "checkpoint": 5, "end": 1}
    assert said["times"] == due  # measured after 2, 4, 6, 7; drawn after 3, 6, 7; saved at each of these at worst
    assert said["seconds"] >= sum(said["once"][k] * n for k, n in due.items()) * 0.999
    assert said["amount"] == {"unit": "samples", "step": 4, "total": 28, "distinct": 40}
    assert said["disk"]["checkpoint"] > 4 * (72 + sum(TRAINED.values()) * 2)


def test_a_training_of_fewer_steps_than_are_measured(tmp_path: Path) -> None:
    said = rehearse(twin(AdamW(), steps=1), tmp_path / "run", device="cpu")
    assert (said["steps"], said["steps_measured"], said["times"]["step"]) == (1, 1, 1)


@pytest.mark.parametrize(("steps", "seconds"), [(24, 0.4), (9, 5.0)])
def test_time_is_what_happens(steps: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 60 ms, held-out batches of 15, hooks of 200, by a clock that knows nothing else: to the millisecond."""
    monkeypatch.setattr("morphogen.rehearsal.time", Clock)
    make = lambda: twin(AdamW(), steps=steps, wait=0.06, nap=0.2)  # noqa: E731
    said = rehearse(make(), tmp_path / "plan", device="cpu", seconds=seconds, began=Clock.now - 3)
    Clock.now = 0.0
    make().train(tmp_path / "run", device="cpu", voice=mg.hooks.Voice())
    assert said["seconds"] == pytest.approx(3 + Clock.now, abs=1e-3)
    assert said["training_seconds"] == pytest.approx(Clock.now, abs=1e-3)
    assert said["once"]["step"] == pytest.approx(0.06)


def test_operations_are_counted() -> None:
    """A product of (5, 7) and (7, 3) is 2 · 5 · 7 · 3 operations; so is each of its two gradients; attention too."""
    x, w = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    assert flops(lambda: (x @ w).sum().backward()) == 3 * 2 * 5 * 7 * 3
    q = torch.randn(2, 4, 16, 8, requires_grad=True)
    forward = 2 * 2 * (2 * 4 * 16 * 16 * 8)  # scores, and what is made of them
    counted = flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q).sum().backward())
    assert counted in (forward * 3, forward * 3.5)  # back: four such products, a fifth where scores are made anew
    assert flops(lambda: x.sum()) is None


def test_what_is_learned_from_has_its_own_unit(tmp_path: Path) -> None:
    made = import_recipe("names-gpt")(steps=4, width=16, depth=1, batch=4)
    said = rehearse(made, tmp_path / "names", device="cpu", seconds=0.01)
    assert said["amount"]["unit"] == "tokens"
    assert 4 * 3 <= said["amount"]["step"] <= 4 * 24
    made = import_recipe("cartpole-ppo")(experience=640, envs=2, length=16, epochs=2, pieces=1, width=8)
    said = rehearse(made, tmp_path / "pole", device="cpu", seconds=0.01)
    assert (said["amount"]["unit"], said["amount"]["distinct"]) == ("environment steps", None)
    assert said["steps"] == 40


def test_the_verb_says_it_all_and_leaves_nothing(elsewhere: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p for p in Path.cwd().rglob("*") if "cache" not in p.parts)
    small = "points-diffusion --steps 12 --width 8 --depth 1 --batch 16"
    assert main(shlex.split(f"plan {small} --seconds 0.1 --json")) == 0
    page = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (page["event"], page["recipe"], page["steps"]) == ("plan", "points-diffusion", 12)
    assert page["amount"]["total"] == 12 * 16
    assert page["next"] == f"morphogen train {small}"
    assert page["run"] == "runs/points-diffusion-0"
    assert page["loss"] is None
    assert sorted(p for p in Path.cwd().rglob("*") if "cache" not in p.parts) == before
    assert not list(Path("cache").rglob("order.json"))


def test_where_nothing_is_held_out_no_law_is_promised(
    elsewhere: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = import_recipe("cartpole-ppo")(experience=640, envs=2, length=16, epochs=2, pieces=1, width=8)
    monkeypatch.setattr(
        "morphogen.cli.plan.rehearsed", lambda folder, *_, **__: rehearse(made, folder / "run", device="cpu", seconds=0)
    )
    assert main(["plan", "cartpole-ppo"]) == 0
    last = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("final")]
    assert ["nothing is held out" in line for line in last] == [True]
    assert "scale" not in last[0]


WATCHED = (  # what a command took: its parent is small, so that the peak is its own
    "import json, resource, subprocess, sys, time; t = time.time(); done = subprocess.run(sys.argv[1:],"
    " capture_output=True, text=True); used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    "print(json.dumps({'seconds': time.time() - t, 'peak': used.ru_maxrss * 1024, 'status': done.returncode,"
    " 'out': done.stdout, 'err': done.stderr[-2000:]}))"
)
SIX = {
    "digits-diffusion": "--steps 40 --width 16",
    "names-gpt": "--steps 100",
    "points-diffusion": "--steps 400",
    "mnist-vae": "--steps 100",
    "cartpole-ppo": "--experience 20000",
    "shakespeare-gpt": "--steps 24 --width 64 --depth 2 --batch 8",
}


def watched(words: list[str]) -> dict[str, Any]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", WATCHED, sys.executable, "-m", "morphogen", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["status"] == 0, said["err"]
    return said


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", SIX)
def test_six_recipes_take_what_was_planned(recipe: str, tmp_path: Path) -> None:
    """Planned, trained, and planned again: the machine's other programs come and go, so the mean of the two plans."""
    words = [recipe, *shlex.split(SIX[recipe]), "--device", "cpu"]
    plans = []
    for part in ("before", "run", "after"):
        if part == "run":
            run = watched(["train", *words, "--run", str(tmp_path / "run")])
            continue
        plans.append(json.loads(watched(["plan", *words, "--json"])["out"].splitlines()[-1]))
    seconds = sum(p["seconds"] for p in plans) / 2
    peak = plans[0]["memory"]["process"]
    off = {"time": seconds / run["seconds"] - 1, "memory": peak / run["peak"] - 1}
    name = recipe.replace("-", "_")
    beside = f"{seconds:.1f} s planned, {run['seconds']:.1f} s taken; {peak / 1e6:.0f} and {run['peak'] / 1e6:.0f} MB"
    print(f"\n{recipe}: {beside}", *(f"{name}_{k}={abs(v):.3f}" for k, v in off.items()), sep="\n")
    assert abs(off["memory"]) <= 0.25
    assert abs(off["time"]) <= 0.25
