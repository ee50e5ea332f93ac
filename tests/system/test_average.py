"""Averages in a run: checkpoints, snapshots that a kill cannot hurt, `load`, the command line and the report."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from morphogen import EMA, Data, Experiment, Loss, PowerEMA, Trainer, UserError, checkpoint, load, report
from morphogen.checkpoint import Checkpoints, Damaged
from morphogen.cli import main
from morphogen.experiment import Run
from morphogen.hooks import Voice
from morphogen.posthoc import Snapshots
from morphogen.spec import build, spec

from .test_trainer import Fit, Line, seeded

HERE = [sys.modules["tests.system.test_trainer"], sys.modules[__name__]]
RUNS = Path(__file__).resolve().parents[2] / "docs" / "runs"
EXACT = (0.04, 0.07, 0.15, 0.25)  # kept at every step beside those that snapshots are of


class Frozen(Fit):
    """A layer that learns nothing, one that stops learning, and a weight used twice."""

    def __init__(self) -> None:
        super().__init__(2)
        self.net[2].requires_grad_(False)
        self.late, self.again = nn.Linear(2, 2), nn.Linear(2, 2)
        self.again.weight = self.net[0].weight

    def loss(self, batch) -> Loss:
        self.late.requires_grad_(self.step < 5)
        return Loss((self.net(self.again(self.late(batch["x"]))) - batch["y"]).square().mean())


class Half(Fit):
    """Weights in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()

    def loss(self, batch) -> Loss:
        return Loss((self.net(batch["x"].bfloat16()).float() - batch["y"]).square().mean())


def train(run: Path, ema, steps: int = 60, model=Fit, until: int | None = None, **dials) -> Run:
    trainer = Trainer(steps, ema=ema, **({"save_every": 9} | dials))
    return Experiment(seeded(model), Data(Line()), trainer).train(run, seed=3, voice=Voice(), until=until)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in run.model.named_parameters()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run with snapshots of two lengths, and its twin that kept four more at full rate."""
    folder = tmp_path_factory.mktemp("averages")
    train(folder / "run", PowerEMA())
    train(folder / "twin", [PowerEMA(EXACT, snapshots=0), EMA(0.9)])
    return folder


def test_any_length_is_loaded_as_the_full_rate_average_of_the_same_run(world):
    own = weights(load(world / "run", ema="live", modules=HERE))
    assert same(own, weights(load(world / "twin", ema="live", modules=HERE)))  # averages do not touch training
    for length in EXACT:
        found, exact = (load(world / name, ema=length, modules=HERE) for name in ("run", "twin"))
        assert found.average == exact.average == str(length)
        for a, b, c in zip(*(weights(x).values() for x in (found, exact)), own.values(), strict=True):
            assert (a - b).norm() < 0.02 * (b - c).norm() + 1e-6  # what it is off by, beside what averaging does
    kept = load(world / "run", ema="0.10", modules=HERE)
    assert same(weights(kept), Checkpoints(world / "run").load(60)["average-0.1"])
    assert load(world / "run", modules=HERE).average == "0.05"
    assert load(world / "twin", modules=HERE, ema=0.9).average == "0.9"


def test_an_earlier_checkpoint_is_put_together_from_what_came_before_it(tmp_path):
    train(tmp_path / "run", PowerEMA(), keep=9)
    train(tmp_path / "short", PowerEMA((0.07,), snapshots=0), until=45)
    early = load(tmp_path / "run", checkpoint=45, ema=0.07, modules=HERE)
    for a, b in zip(weights(early).values(), weights(load(tmp_path / "short", modules=HERE)).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_names_that_are_not_there_are_sentences(world, tmp_path):
    for name, wish, says in (
        ("run", 0.4, r"no average '0\.4'.*any length in \(0, 0\.2886\] can be had"),
        ("run", "lve", "did you mean 'live'"),
        ("run", "nan", "no average 'nan'"),
        ("run", 0.001, r"length 0\.001 after step 60 .* off"),
        ("twin", 0.05, r"no average '0\.05'.*needs ema=PowerEMA"),
    ):
        with pytest.raises(UserError, match=says):
            load(world / name, ema=wish, modules=HERE)
    train(tmp_path / "bare", None, steps=2)
    assert load(tmp_path / "bare", modules=HERE).average == "live"
    with pytest.raises(UserError, match=r"keeps no average of its weights, so none called '0\.9'"):
        load(tmp_path / "bare", ema=0.9, modules=HERE)


@pytest.mark.parametrize("model", [Fit, Frozen, Half])
def test_several_averages_are_each_what_they_are_alone(tmp_path, model):
    rules = {"0.9": EMA(0.9), "0.99": EMA(0.99), "0.1": PowerEMA((0.1,), snapshots=4)}
    several = train(tmp_path / "several", list(rules.values()), steps=12, model=model)
    assert several.average == "0.9"
    for name, rule in rules.items():
        alone = train(tmp_path / name, rule, steps=12, model=model)
        assert alone.average == name
        assert same(weights(alone), weights(load(tmp_path / "several", ema=name, modules=HERE)))
    start, kept = seeded(model), Checkpoints(tmp_path / "several").load(12)["average"]
    assert all(t.dtype == torch.float32 for t in kept.values())
    if model is Half:
        assert all(p.dtype == torch.bfloat16 for p in several.model.parameters())
        assert all(torch.equal(p, kept[n].bfloat16()) for n, p in several.model.named_parameters())
        assert load(tmp_path / "several", ema=0.095, modules=HERE).average == "0.095"  # put together
    if model is Frozen:
        assert torch.equal(several.model.net[2].weight, start.net[2].weight)
        assert several.model.again.weight is several.model.net[0].weight
        assert "net.2.weight" not in kept


# ---- nothing is lost -----------------------------------------------------------------------------------------------


def bytes_of(run: Path) -> dict[str, bytes]:
    """Every snapshot, what lies beside them, and the tensors of the last checkpoint."""
    files = [*run.glob("snapshots/*"), *max(run.glob("checkpoints/0*")).glob("*.safetensors")]
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def life(run: Path, fsync: int, how: str) -> bool:
    """Train in a child that kills itself before or after its n-th fsync, or half way through the next snapshot's
    writing; whether it got through.
    """
    child = os.fork()
    if child == 0:
        real, count = os.fsync, 0

        def counted(fd: int) -> None:
            nonlocal count
            count += 1
            if count == fsync and how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            real(fd)
            if count == fsync and how == "after":
                os.kill(os.getpid(), signal.SIGKILL)

        def written(tensors, path: Path, metadata=None) -> None:
            save_file(tensors, path, metadata)
            if count >= fsync and how == "within" and metadata:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync, checkpoint.save_file = counted, written
        try:
            train(run, [PowerEMA(snapshots=8), EMA(0.9)], steps=40, model=Frozen)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def test_a_run_killed_at_any_sync_ends_in_the_same_bytes_snapshots_included(tmp_path):
    train(tmp_path / "straight", [PowerEMA(snapshots=8), EMA(0.9)], steps=40, model=Frozen)
    expected = bytes_of(tmp_path / "straight")
    assert sum(name.startswith("snapshots") for name in expected) > 20
    for k in range(4):
        run, kills = tmp_path / str(k), 0
        while not life(run, 17 + 13 * k + 14 * kills, ("before", "within", "after")[kills % 3]):
            kills += 1
            for step in Snapshots(run).steps():
                Snapshots(run).read(step)  # whole, or not there
        assert kills
        assert bytes_of(run) == expected


def test_half_written_and_damaged_snapshots_are_never_read(tmp_path):
    train(tmp_path / "run", PowerEMA())
    store = Snapshots(tmp_path / "run")
    whole = weights(load(tmp_path / "run", ema=0.07, modules=HERE))
    file = store.folder / "00000058.safetensors"
    (store.folder / "00000059.partial").write_bytes(file.read_bytes()[:50])
    (store.folder / "notes.safetensors").write_bytes(b"mine")
    assert same(whole, weights(load(tmp_path / "run", ema=0.07, modules=HERE)))
    tensors = {k: t.clone() for k, t in load_file(file).items()}  # no longer a view of the file
    raw = bytearray(file.read_bytes())
    for spoil in (
        lambda: file.write_bytes(bytes(raw[: len(raw) // 2])),
        lambda: file.write_bytes(bytes([*raw[:-3], raw[-3] ^ 64, *raw[-2:]])),  # a flipped bit
        lambda: file.write_bytes(b""),
        lambda: save_file(tensors, file),  # another program's, without its hash
    ):
        spoil()
        with pytest.raises(Damaged):
            store.read(58)
        said: list[str] = []
        without = weights(load(tmp_path / "run", ema=0.07, modules=HERE, say=said.append))
        assert len(said) == 1
        assert "Left out the snapshot of step 58" in said[0]
        for a, b in zip(without.values(), whole.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_snapshots_after_the_checkpoint_are_not_looked_at(tmp_path):
    train(tmp_path / "run", PowerEMA(), until=50)
    before = weights(load(tmp_path / "run", ema=0.07, modules=HERE))
    store = Snapshots(tmp_path / "run")
    store.write(58, {"0.05": {"net.0.weight": torch.full((8, 2), torch.nan)}})  # as a kill at step 59 would leave one
    assert same(before, weights(load(tmp_path / "run", ema=0.07, modules=HERE)))


# ---- what was recorded before --------------------------------------------------------------------------------------


def test_recorded_runs_keep_their_averages():
    found = 0
    for path in sorted(RUNS.glob("*/spec.json")):
        node = json.loads(path.read_text())["experiment"]["args"]["trainer"]["args"]["ema"]
        if node is not None:
            rule = build(node)
            assert spec(rule) == node
            assert spec(Trainer(1, ema=rule))["args"]["ema"] == node
            found += 1
    assert found > 10


def test_a_spec_knows_every_rule():
    ema = [EMA(0.99), PowerEMA((0.05, 0.2), snapshots=4)]
    again = build(spec(Trainer(3, ema=ema)))
    assert spec(again) == spec(Trainer(3, ema=ema))
    assert [list(rule.decays) for rule in again.ema] == [["0.99"], ["0.05", "0.2"]]


# ---- command line and report ---------------------------------------------------------------------------------------

OWN = '''

def averaged(steps: int = 64) -> mg.Experiment:
    """Blurred digits with averages."""
    made = blurs(steps=steps, pictures=False)
    trainer = mg.Trainer(steps, optim=AdamW(0.05), ema=mg.PowerEMA(), save_every=16)
    return mg.Experiment(made.model, made.data, trainer)
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    file = folder / "own.py"
    file.write_text(Path(__file__).with_name("tiny.py").read_text() + OWN)
    assert main(["train", f"{file}:averaged", "--run", str(folder / "run")]) == 0
    return folder


def test_evaluate_compares_lengths_and_sample_takes_one(own, capsys):
    run, files = str(own / "run"), ["--with", str(own / "own.py")]
    few = ["--n", "0", "--likelihood", "20"]
    assert main(["evaluate", run, *few, "--ema", "0.05", "0.15", "live", *files]) == 0
    out = capsys.readouterr().out
    pages = json.loads((own / "run" / "averages.json").read_text())["averages"]
    assert [p["ema"] for p in pages] == ["0.05", "0.15", "live"]
    assert not (own / "run" / "evaluation.json").exists()
    values = [p["heldout"]["loss"] for p in pages]
    assert len(set(values)) == 3
    for name, value in zip(("0.05", "0.15", "live"), values, strict=True):
        (row,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert f"{value:.4f}" in row
    for name in ("0.05", "0.15"):  # what a comparison says of an average is what it says of it alone
        assert main(["evaluate", run, *few, "--ema", name, *files]) == 0
        alone = json.loads((own / "run" / "evaluation.json").read_text())
        page = next(p for p in pages if p["ema"] == name)
        assert alone["measures"] == page["measures"]
        assert alone["heldout"] == page["heldout"]
    assert main(["runs", "show", run]) == 0
    shown = capsys.readouterr().out
    assert "step 64, average 0.15:" in shown
    assert all(f"{value:.4f}" in shown for value in values)
    text = (own / "run" / "report.html").read_text()
    assert "<h2>Averages</h2>" in text
    assert "decay or length of the average" in text
    assert "weights of step 64, average 0.15" in text
    assert "PowerEMA(lengths=(0.05, 0.1), snapshots=16)" in text
    capsys.readouterr()
    drawn = {}
    for name in ("0.05", "0.15", "live"):
        out = own / f"{name}.npy"
        assert main(["sample", run, "--n", "3", "--ema", name, "--out", str(out), *files]) == 0
        assert f"ema {name}" in capsys.readouterr().out
        drawn[name] = out.read_bytes()
    assert len(set(drawn.values())) == 3


def test_a_wrong_average_is_told_before_anything_is_measured(own, capsys):
    run, files = str(own / "run"), ["--with", str(own / "own.py")]
    assert main(["evaluate", run, "--ema", "0.05", "0.7", *files]) == 2
    err = capsys.readouterr().err
    assert "There is no average '0.7'" in err
    assert "Drawing" not in err
    assert main(["sample", run, "--ema", "0.001", *files]) == 2
    assert "train with more snapshots" in capsys.readouterr().err


def test_the_report_knows_runs_without_averages(tmp_path):
    train(tmp_path / "bare", None, steps=2)
    text = report.write(tmp_path / "bare").read_text()
    assert "Averages" not in text
    assert "<dt>averages</dt>" not in text
