"""`morphogen evaluate` on every kind of source, on nets that were told no classes, and for the likelihood alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from morphogen import UserError
from morphogen.cli import main
from morphogen.data.augment import Augmented
from morphogen.data.densities import Drawn, Fresh, bumps, eight_gaussians
from morphogen.data.digits import Digits
from morphogen.data.source import Shuffled
from morphogen.diffusion.coupling import OptimalTransport
from morphogen.experiment import load
from morphogen.seen import seen_items

OWN = '''
"""Digits by a small U-Net, with or without classes, from under a source of a source."""
import morphogen as mg
from morphogen.data import Digits, Shuffled
from morphogen.data.augment import Augmented, Dequantise
from morphogen.data.digits import space
from morphogen.diffusion import flow_matching
from morphogen.diffusion.coupling import OptimalTransport
from morphogen.nets.unet import UNet


def pixels(classes: int = 0, paired: bool = False) -> mg.Experiment:
    """Digits.

    classes: that the net is told. paired: by optimal transport.
    """
    source = Augmented(Shuffled(Digits("train"), 16), (Dequantise(17),))
    source = OptimalTransport(source, within=("label",)) if paired else source
    net = UNet(1, widths=(8,), depth=1, attention=(), classes=classes, groups=4)
    return mg.Experiment(
        flow_matching(net, (1, 8, 8)), mg.Data(source, Digits("test"), space()), mg.Trainer(2, save_every=2)
    )
'''
POINTS = "--steps 2 --width 8 --depth 1 --batch 16"


def run(typed: str) -> int:
    return main(shlex.split(typed))


def page(of: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((of / "evaluation.json").read_text())
    return found


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "reader"
    assert run(f"train digits-classifier --run {path} --epochs 1 --width 4") == 0
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("coupling", ["independent", "optimal"])
def test_points_of_a_density(coupling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if coupling == "optimal":
        pytest.importorskip("scipy")
    path = tmp_path / "points"
    assert run(f"train points-diffusion --run {path} {POINTS} --coupling {coupling}") == 0
    assert run(f"evaluate {path} --n 500 --likelihood 12 --steps 4") == 0
    found = page(path)
    measures = found["measures"]
    assert set(measures) - {"reverse_kl"} == {"frechet", "floor", "log_prob", "KL", "elbo", "modes", "high_quality"}
    assert measures["high_quality"]["n"] == 500
    assert found["judge"] is None
    out, err = capsys.readouterr()
    assert "nothing to have memorised" in out + err
    assert measures["floor"]["value"] < 0.1 < measures["frechet"]["value"]  # 2 steps learn nothing
    # the mean of what the model says and of the distance is the mean of what the density says
    model, items = load(path, device="cpu").model, Drawn(eight_gaussians(), 10_000, 1)
    index = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:12]
    x = items.take(index)["x"]
    truth = items.density.log_prob(x.double()).mean().item()
    assert measures["log_prob"]["value"] + measures["KL"]["value"] == pytest.approx(truth, abs=1e-9)
    with torch.no_grad():
        assert measures["log_prob"]["value"] == pytest.approx(model.log_prob(x).mean().item(), abs=1e-3)
    assert measures["KL"]["low"] < measures["KL"]["value"] < measures["KL"]["high"]
    assert measures["KL"]["n"] == 12


def test_what_was_trained_on_is_found_under_its_sources() -> None:
    items, density = Digits("train"), bumps()
    test = Drawn(density, 50, seed=7)

    wrapped = OptimalTransport(Augmented(OptimalTransport(Shuffled(items, 4)), ()))
    assert seen_items(wrapped, Digits("test")) == (items, True)
    for source in (Fresh(density, 4), Augmented(OptimalTransport(Fresh(density, 4)), ())):
        other, recorded = seen_items(source, test)
        assert not recorded
        assert other.density is density
        assert len(other) == len(test)
        every = torch.arange(50)
        assert not (other.take(every)["x"] == test.take(every)["x"]).any()
    with pytest.raises(UserError, match="neither recorded items nor draws"):
        seen_items(object(), test)


@pytest.mark.parametrize("flags", ["", "--paired"])
def test_a_net_without_classes_is_not_asked_for_any(
    flags: str, reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if flags:
        pytest.importorskip("scipy")
    (tmp_path / "own.py").write_text(OWN)
    path = tmp_path / "pixels"
    assert run(f"train own.py:pixels --run {path} {flags}") == 0
    assert run(f"evaluate {path} --n 20 --steps 2 --judge {reader} --likelihood 4") == 0
    found = page(path)
    distances = {"memorised", "frechet", "floor"}
    assert set(found["measures"]) == distances | {"log_prob", "bits/dim", "elbo", "bits/dim (bound)"}
    assert found["judge"]["run"] == str(reader)
    assert "on 16 features" in found["measures"]["frechet"]["how"]  # the judge's, not the 64 pixels
    out, err = capsys.readouterr()
    assert "told no classes" in out + err


def test_a_net_with_classes_is_judged_from_under_its_source(reader: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    path = tmp_path / "pixels"
    assert run(f"train own.py:pixels --run {path} --classes 10") == 0
    assert run(f"evaluate {path} --n 20 --steps 2 --judge {reader}") == 0
    assert set(page(path)["measures"]) == {"judge", "agreement", "useful", "memorised", "frechet", "floor"}


def test_classes_are_counted_among_samples_that_were_asked_for_none(reader: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    path = tmp_path / "pixels"
    assert run(f"train own.py:pixels --run {path} --classes 10") == 0
    assert run(f"evaluate {path} --n 20 --steps 2 --judge {reader} --classes 30") == 0
    measures = page(path)["measures"]
    assert measures["rarest"]["value"] <= 0.1 <= measures["commonest"]["value"]
    assert measures["rarest"]["n"] == measures["commonest"]["n"] == 30
    assert run(f"evaluate {path} --n 20 --steps 2 --classes 30") == 2  # nobody reads them


def test_the_likelihood_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points"
    assert run(f"train points-diffusion --run {path} {POINTS}") == 0
    assert run(f"evaluate {path} --n 0 --likelihood 5") == 0
    found = page(path)
    assert set(found["measures"]) == {"log_prob", "KL", "elbo"}
    assert "n" not in found
    assert "options" not in found
    capsys.readouterr()
    for typed, says in (
        (f"evaluate {path} --n 0", "nothing to measure"),
        (f"evaluate {path} --n 0 --likelihood 5 --judge {path}", "no samples for the judge"),
        (f"evaluate {path} --n -3", "2 or more"),
        (f"evaluate {path} --n 0 --likelihood 1", "no interval"),
    ):
        assert run(typed) != 0
        assert says in capsys.readouterr().err
