"""Agents at the command line: what their episodes come to, over one run and over seeds."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from morphogen.cli import main
from morphogen.metrics.returns import interquartile_mean


def run(typed: str) -> int:
    return main(shlex.split(typed))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of a small world, and the first again as if of another experiment."""
    tmp = tmp_path_factory.mktemp("agents")
    for seed in range(3):
        assert run(f"train gridworld --world grid4 --steps 4 --seed {seed} --run {tmp / str(seed)}") == 0
    shutil.copytree(tmp / "0", tmp / "3")
    page = (tmp / "3" / "spec.json").read_text()
    (tmp / "3" / "spec.json").write_text(page.replace('"gamma": 0.99', '"gamma": 0.5'))
    return [tmp / str(seed) for seed in range(4)]


@pytest.fixture(autouse=True)
def _here(elsewhere: None) -> None:
    """In a folder of its own."""


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_agent_is_measured_by_fresh_episodes(seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"evaluate {seeds[0]} --limit 40 --n 50 --json") == 0
    told = answers(capsys)[-1]
    page = json.loads((seeds[0] / "evaluation.json").read_text())
    assert told == {"event": "evaluated", **page}
    assert (page["acting"], page["environment"], page["episodes"], page["limit"]) == ("greedy", "grid4", 50, 40)
    assert len(page["returns"]) == len(page["lengths"]) == 50
    assert page["measures"]["return"]["value"] == pytest.approx(sum(page["returns"]) / 50)
    assert page["measures"]["return_iqm"]["value"] == pytest.approx(float(interquartile_mean(page["returns"])))
    assert all(r == -n for r, n in zip(page["returns"], page["lengths"], strict=True))  # a move costs 1
    assert page["rated"]["best"] == pytest.approx(-2)
    assert page["measures"]["return"]["value"] <= page["rated"]["best"] + 0.5
    report = (seeds[0] / "report.html").read_text()
    assert "50 episodes of grid4, greedy" in report
    assert "Known returns: best -2" in report
    assert run(f"evaluate {seeds[0]} --limit 40 --n 50 --sample") == 0
    assert "sampling actions" in capsys.readouterr().out
    again = json.loads((seeds[0] / "evaluation.json").read_text())
    assert again["acting"] == "sampled"
    assert again["returns"] != page["returns"]


def test_seeds_are_scores(seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    three = " ".join(map(str, seeds[:3]))
    assert run(f"evaluate {three} --limit 40 --n 20 --json") == 0
    page = answers(capsys)[-1]
    each = [json.loads((path / "evaluation.json").read_text()) for path in seeds[:3]]
    scores = [e["measures"]["return"]["value"] for e in each]
    assert page["runs"] == [str(path) for path in seeds[:3]]
    assert page["measures"]["return"]["value"] == pytest.approx(sum(scores) / 3)
    assert page["measures"]["return"]["n"] == 3
    assert page["measures"]["return"]["low"] == pytest.approx(min(scores))
    assert page["measures"]["return"]["high"] == pytest.approx(max(scores))
    assert run(f"evaluate {three} --limit 40 --n 20") == 0
    assert "3 runs, 20 episodes each of grid4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("{0} {3}", "gamma"),
        ("{0} {1} {0}", "seed 0"),
        ("{0} {1} --ema 0.9 0.99", "one average"),
        ("{0} --judge {0}", "--judge"),
        ("{0} --n 0", "no interval"),
        ("{0} --limit 0", "--limit 0"),
        ("{0} --greedy --sample", "exclude each other"),
    ],
)
def test_what_cannot_be_compared_or_played_is_said(
    typed: str, says: str, seeds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"evaluate {typed.format(*seeds)}") == 2
    assert says in capsys.readouterr().err


def test_check_plays_an_agent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train gridworld --world grid4 --steps 4 --check") == 0
    assert "ok  play" in capsys.readouterr().out
