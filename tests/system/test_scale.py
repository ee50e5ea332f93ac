"""Trunks, cool-downs and grids: a branch is the very run that was trained alone, and what is stopped goes on."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import morphogen as mg
from morphogen.checkpoint import Checkpoints
from morphogen.cli import main
from morphogen.errors import UserError
from morphogen.experiment import Experiment, write_spec
from morphogen.heldout import HeldOut
from morphogen.hooks import Voice
from morphogen.optim import AdamW, Constant, CoolDown, MuonAdamW, Optim
from morphogen.rehearsal import rehearse
from morphogen.spec import build, modules_of, spec
from morphogen.train import Trainer
from morphogen.trunk import branch, check_alike, cooled, measured_once, trunk_of

OWN = '''"""A recipe that a test can train many times: a net learns a wave."""

import torch

import morphogen as mg
from morphogen.data import Shuffled
from morphogen.nets.mlp import MLP
from morphogen.optim import AdamW, Cosine


class Waves(mg.Remembers):
    """So many points of a wave."""

    def __init__(self, n: int, first: int = 0) -> None:
        self.n, self.first = n, first

    def __len__(self) -> int:
        return self.n

    def take(self, index: torch.Tensor) -> dict:
        t = (index + self.first).float()[:, None] * 0.618
        return {"x": t % 1}


class Wave(mg.Model):
    """y = sin(12 x), by least squares."""

    def __init__(self, net: MLP, steps: int = 0) -> None:
        super().__init__()
        self.net, self.steps = net, steps

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        error = self.net(batch["x"], {}) - (12 * batch["x"]).sin()
        return mg.Loss(error.square().mean() + 0.01, {"size": error.detach().abs().mean()})


def wave(
    width: int = 8, steps: int = 40, told: bool = False, ema: float = 0.9, empty: bool = False, high: bool = False
) -> mg.Experiment:
    """A wave.

    width: units. steps: of the training. told: whether the model knows how long it is trained. ema: of the weights.
    empty: nothing is held out. high: its best is the largest.
    """
    trainer = mg.Trainer(
        steps,
        optim=AdamW(1e-2, schedule=Cosine(warmup=steps // 10)),
        ema=mg.EMA(ema),
        heldout=mg.HeldOut(5, *(("size", "max") if high else ()), batch=64, patience=1),
        save_every=5,
    )
    data = mg.Data(Shuffled(Waves(64), 8), None if empty else Waves(32, 64))
    return mg.Experiment(Wave(MLP(1, 1, width, 1), steps if told else 0), data, trainer)
'''


@pytest.fixture(autouse=True)
def _here(elsewhere: None) -> None:
    """In a folder of its own, with a recipe in it."""
    Path("waves.py").write_text(OWN)


def recipe() -> Any:
    from morphogen.cli.recipe import find

    return find("waves.py:wave").make


def run(typed: str) -> int:
    return main(shlex.split(typed))


# ---- schedules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "share", "steps"), [(0, 0.2, 100), (3, 0.2, 100), (5, 0.5, 37), (0, 0.0, 9), (0, 1.0, 9)]
)
def test_until_it_cools_the_rate_is_constant(warmup: int, share: float, steps: int) -> None:
    """To the bit, for any two lengths; then the paper's 1 − √."""
    schedule, flat = CoolDown(warmup, share), Constant(warmup)
    begin = schedule.begins(steps)
    assert begin == pytest.approx((1 - share) * steps, abs=0.5)
    assert [schedule(s, steps) for s in range(1, begin + 1)] == [flat(s, 10**6) for s in range(1, begin + 1)]
    after = [schedule(s, steps) for s in range(begin + 1, steps + 1)]
    length = steps - begin
    assert after == pytest.approx([1 - ((i + 1) / length) ** 0.5 for i in range(length)])
    with pytest.raises(UserError, match="share"):
        CoolDown(0, 1.5)


# ---- a branch is the run trained alone -----------------------------------------------------------------------------


def states(folder: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds but clocks."""
    _, parts = Checkpoints(folder).newest(print) or (0, {})
    parts["loop"]["tally"].pop("seconds")
    return parts


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def trained(experiment: Experiment, folder: str, until: int | None = None) -> Path:
    again = build(spec(experiment), modules=modules_of(experiment), seed=3)
    again.train(folder, seed=3, device="cpu", voice=Voice(), until=until)
    return Path(folder)


@pytest.mark.parametrize(
    ("optim", "ema"),
    [(AdamW(1e-2), mg.EMA(0.9)), (MuonAdamW(1e-2), mg.PowerEMA((0.1,)))],
    ids=["adamw-ema", "muon-power"],
)
def test_a_cool_down_of_a_trunk_ends_in_the_bytes_of_a_run_trained_alone(optim: Optim, ema: Any) -> None:
    def made(steps: int) -> Experiment:
        own = recipe()(steps=steps)
        return Experiment(own.model, own.data, Trainer(steps, optim=optim, ema=ema, heldout=HeldOut(batch=32)))

    long, short = made(50), made(20)
    check_alike(long, short)
    trunk = trunk_of(long, 2)
    for steps, folder in ((20, "short"), (50, "long")):
        begin = CoolDown(2, 0.2).begins(steps)
        trained(trunk, "trunk", until=begin)
        run = cooled(made(steps), 2, 0.2)
        write_spec(Path(folder), build(spec(run), modules=modules_of(run), seed=3), 3)
        branch(Path("trunk"), begin, Path(folder))
        branch(Path("trunk"), begin, Path(folder))  # which is there
        trained(run, folder)
        trained(run, folder + "-alone")
        assert same(states(Path(folder)), states(Path(folder + "-alone")))
        lines, alone = (
            [json.loads(t) for t in (Path(f) / "log.jsonl").read_text().splitlines()]
            for f in (folder, folder + "-alone")
        )
        assert lines[-1]["heldout"] == alone[-1]["heldout"]
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        branch(Path("trunk"), 7, Path("other"))


def test_runs_that_differ_in_more_than_length_share_no_trunk() -> None:
    wave = recipe()
    check_alike(wave(steps=10), wave(steps=20))
    for other in (wave(steps=20, told=True), wave(steps=20, ema=0.5), wave(steps=20, width=9)):
        with pytest.raises(UserError, match="share no trunk"):
            check_alike(wave(steps=10), other)


# ---- the verb ------------------------------------------------------------------------------------------------------

GRID = "scale waves.py:wave --sizes width 2 4 8 --budgets steps 10 20 40 --draws 20 --run grid --device cpu"


def test_a_grid_is_trained_once_and_ends_in_a_law(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(f"{GRID} --json") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    page, told = said[-1], "\n".join(s.get("text", "") for s in said)
    assert "Data repeats: there are 64 samples, so the longest runs see each 5 times" in told
    assert page["event"] == "scaled"
    assert [(p["n"], p["d"]) for p in page["points"]] == [(3 * w + 1, 8 * s) for w in (2, 4, 8) for s in (10, 20, 40)]
    law = json.loads(Path("grid/law.json").read_text())
    assert (law["recipe"], law["size"], law["budget"], law["unit"]) == ("waves.py:wave", ["width"], "steps", "samples")
    for point in law["points"]:
        result = json.loads((Path("grid") / point["run"] / "result.json").read_text())
        assert (result["state"], result["heldout"]["loss"]) == ("finished", point["loss"])
    report = Path("grid/law.html").read_text()
    assert report.count("<svg") == 2
    assert "width-8-steps-40" in report

    # the same again trains nothing, and says the same
    before = {p: p.stat().st_mtime_ns for p in Path("grid").rglob("*.safetensors")}
    assert run(GRID) == 0
    assert {p: p.stat().st_mtime_ns for p in Path("grid").rglob("*.safetensors")} == before
    assert json.loads(Path("grid/law.json").read_text()) == law

    # a longer length goes on from the trunks that are there, and the shorter runs stay as they are
    assert run(GRID.replace("10 20 40", "10 20 40 50")) == 0
    kept = {p: at for p, at in before.items() if "trunk" not in p.parts[1]}
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    points = json.loads(Path("grid/law.json").read_text())["points"]
    assert [p["d"] for p in points] == [8 * s for s in (10, 20, 40, 50)] * 3
    assert run(GRID) == 0

    # another setting is another grid
    capsys.readouterr()
    assert run(f"{GRID} --ema 0.5") == 2
    said = capsys.readouterr().err
    assert "Name another folder for this grid (--run FOLDER)." in said
    assert "--like" not in said

    # a run that is lost is made again by the trunk that is there, unless that has gone on
    for lost in ("width-4-steps-40", "width-2-steps-10", "trunk-width-2"):
        shutil.rmtree(Path("grid") / lost)
    capsys.readouterr()
    assert run(GRID) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines() if "gone" in line] == [
        "trunk-width-2",
        "width-2-steps-10",
        "width-4-steps-40",
    ]
    assert json.loads(Path("grid/law.json").read_text()) == law

    # and its law tells a plan the final loss
    capsys.readouterr()
    monkeypatch.setattr(
        "morphogen.cli.plan.rehearsed",  # here, and not in a process of its own
        lambda folder, name, arguments, **_: rehearse(recipe()(**arguments), folder / "run", device="cpu", seconds=0.1),
    )
    plan = "plan waves.py:wave --width 16 --steps 20 --law grid/law.json --seconds 0.1 --json --device cpu"
    assert run(plan) == 0
    loss = json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]
    assert loss["low"] <= loss["value"] <= loss["high"]
    assert any("2 times more parameters" in text for text in loss["doubts"])  # 49 for 25
    assert run("plan digits-diffusion --law grid/law.json") == 2
    assert "not of digits-diffusion" in capsys.readouterr().err


def test_a_run_of_a_grid_is_measured_at_its_end_alone() -> None:
    made = recipe()(steps=10)
    run = measured_once(made)
    graph = spec(run)["args"]["trainer"]["args"]
    assert graph["optim"] == spec(made)["args"]["trainer"]["args"]["optim"]
    held = graph["heldout"]["args"]
    assert (held["every"], held["patience"], held["metric"], held["batch"]) == (10, None, "loss", 64)
    other = spec(measured_once(made, "size"))["args"]["trainer"]["args"]["heldout"]["args"]
    assert (other["metric"], other["better"]) == ("size", "min")


@pytest.mark.slow
def test_runs_alone_keep_the_schedule_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(GRID.replace("grid", "alone") + " --told --cool 0") == 0
    assert not list(Path("alone").glob("trunk-*"))
    page = json.loads((Path("alone") / "width-2-steps-10" / "spec.json").read_text())["experiment"]["args"]["trainer"]
    assert page["args"]["optim"]["args"]["schedule"]["class"].endswith("Cosine")
    assert (page["args"]["heldout"]["args"]["every"], page["args"]["heldout"]["args"]["patience"]) == (10, None)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("scale waves.py:wave --sizes width 2 4 8 --budgets steps 10 20 40 --told", "share no trunk"),
        ("scale waves.py:wave --sizes width 2 4 8 --budgets steps 10 20 40 --empty", "holds no data out"),
        ("scale waves.py:wave --sizes ema 0.5 0.6 0.7 --budgets steps 10 20 40", "the number of parameters as it is"),
        ("scale waves.py:wave --sizes width 2 4 8 --budgets ema 0.5 0.6 0.7", "the number of steps as it is"),
        ("scale waves.py:wave --sizes width 2 4 8 --budgets steps 1 2 3 --width 3", "--width is given beside"),
        ("scale waves.py:wave --sizes width 2 4 8 --budgets steps 10 20 40 --metric lss", "did you mean 'loss'"),
        ("scale waves.py:wave --sizes width 2 4 8 --budgets step 10 20 40", "such as --budgets steps 250 500 1000"),
        ("scale waves.py:wave --sizes wide 2 4 8 --budgets steps 10 20 40", "such as --sizes width 32 64 128"),
        ("scale cartpole-ppo --sizes hiden 2 4 8 --budgets stps 10 20 40", "holds no data out"),
        (
            "scale word-vectors --data waves.py --batch 1 --least 1 --sizes width 2 4 8 --budgets epochs 1 2 3",
            "a rule of its own",
        ),
        ("scale waves.py:wave --sizes width 2 4 8 --budgets steps 1 20 40", "too few for a warm-up"),
        ("scale waves.py:wave --sizes width 2 4 8 --budgets steps 10 20 40 --cool 0.02", "too few for a warm-up"),
        ("scale waves.py:wave --sizes width 2 4 8 --budgets steps 10 20 40 --high --metric size", "falls, and size"),
    ],
)
def test_what_cannot_be_scaled_is_said(typed: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{typed} --run grid --draws 20 --device cpu") == 2
    assert says in capsys.readouterr().err
    assert not Path("grid").exists()  # it is said before anything is trained
