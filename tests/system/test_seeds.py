"""Learning curves over seeds: what is drawn is what the logs say, with the interval that the statistics give."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphogen import seeds, svg
from morphogen.cli import main
from morphogen.errors import UserError
from morphogen.metrics.returns import interquartile_mean, stratified_bootstrap


def written(folder: Path, seed: int, lines: list[dict[str, Any]], steps: int = 100) -> Path:
    """A run folder as training leaves it, written by hand."""
    folder.mkdir()
    trainer = {"class": "morphogen.train:Trainer", "args": {"steps": steps}}
    data = {"class": "morphogen.experiment:Data", "args": {"train": None, "test": None, "space": None}}
    parts = {"model": {"class": "my:Cats", "args": {}}, "data": data, "trainer": trainer}
    experiment = {"class": "morphogen.experiment:Experiment", "args": parts}
    page = {"format": 1, "morphogen": "9", "seed": seed, "recipe": {"name": "cats"}, "experiment": experiment}
    (folder / "spec.json").write_text(json.dumps(page))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def lines(seed: int, every: int = 10) -> list[dict[str, Any]]:
    """A score that is 10 times the steps lived, higher by the square of the seed."""
    return [
        {
            "step": s,
            "a.loss": 1.0 / s,
            "a.score": 40.0 * s + seed**2,
            "env_steps": 4 * s,
            "seconds": s,
            "steps_per_s": 1.0,
        }
        for s in range(10, 101, every)
    ]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [written(tmp_path / f"run{s}", s, lines(s, 10 if s else 15)) for s in range(5)]


def test_a_curve_is_the_statistic_of_all_runs_at_each_point(runs: list[Path]) -> None:
    """The first run has logged at other places; in between the others are straight lines."""
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in runs]
    scores = np.array([0.0, 1.0, 4.0, 9.0, 16.0])
    for name, value in (("iqm", 14 / 3), ("mean", 6.0), ("median", 4.0)):
        c = seeds.curve(logs, "a.score", name)  # type: ignore[arg-type]
        assert c is not None
        assert c.axis == "env_steps"
        assert c.x == [40.0, 100.0, 160.0, 220.0, 280.0, 340.0, 400.0]
        np.testing.assert_allclose(c.value, 10 * np.array(c.x) + value)
        low, high = stratified_bootstrap([scores], seeds.statistic_of(name), resamples=2000)  # type: ignore[arg-type]
        np.testing.assert_allclose(c.low, 10 * np.array(c.x) + low)
        np.testing.assert_allclose(c.high, 10 * np.array(c.x) + high)
    assert interquartile_mean(scores) == pytest.approx(14 / 3)
    assert seeds.named(logs) == ["a.score", "a.loss"]
    assert seeds.curve(logs, "no such") is None


def test_what_was_lived_counts_only_where_it_grows() -> None:
    """Lines of one stretch share a point; where a resume counts anew, training steps are the axis."""
    stretch = [{"step": s, "score": float(s), "env_steps": 64 * (1 + (s - 1) // 2)} for s in range(1, 9)]
    c = seeds.curve([stretch, stretch], "score")
    assert c is not None
    assert (c.x, c.value) == ([64.0, 128.0, 192.0, 256.0], [1.5, 3.5, 5.5, 7.5])
    anew = [{**line, "env_steps": line["env_steps"] % 192} for line in stretch]
    c = seeds.curve([stretch, anew], "score")
    assert c is not None
    assert (c.axis, c.x) == ("step", [float(s) for s in range(1, 9)])


def test_the_report_shows_line_band_and_runs(runs: list[Path], tmp_path: Path) -> None:
    (runs[2] / "evaluation.json").write_text(json.dumps({"measures": {"return": {"value": 470.25}}}))
    (runs[0] / "evaluation.json").write_text(json.dumps({"measures": {"return": {"value": 480.5}}}))
    path = tmp_path / "all.html"
    drawn = seeds.write(runs, path)
    assert list(drawn) == ["a.score", "a.loss"]
    text = path.read_text()
    assert "5 seeds of one experiment" in text
    assert "environment steps" in text
    assert "470.2500" in text
    assert "480.5000" in text
    svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(svgs) == 2
    assert all(picture.count("class='faint'") == 5 and picture.count("<polygon") == 1 for picture in svgs)


def test_a_band_lies_where_its_numbers_say() -> None:
    points = [(0.0, 2.0), (5.0, 4.0), (10.0, 3.0)]
    band = [(x, y - 1, y + 2) for x, y in points]
    root = ET.fromstring(svg.chart({"a": points}, bands={"a": band}, faint={"b": [(0.0, 9.0), (10.0, -3.0)]}))
    spots = lambda kind: [  # noqa: E731
        tuple(map(float, spot.split(","))) for e in root.iter(kind) for spot in e.attrib["points"].split()
    ]
    around, (faint, line) = spots("polygon"), (spots("polyline")[:2], spots("polyline")[2:])
    unit = (faint[1][1] - faint[0][1]) / 12  # pixels down for 1
    assert unit > 5
    assert [x for x, _ in around] == [x for x, _ in line] + [x for x, _ in reversed(line)]
    for (_, y), (_, high) in zip(line, around[:3], strict=True):
        assert y - high == pytest.approx(2 * unit, abs=0.2)
    for (_, y), (_, low) in zip(line, reversed(around[3:]), strict=True):
        assert low - y == pytest.approx(unit, abs=0.2)


def test_at_the_command_line(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["runs", "report", *map(str, runs)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"] == str(tmp_path / "seeds.html")
    assert told["curves"]["a.score"]["value"][-1] == pytest.approx(4000 + 14 / 3)
    assert main([*words, "--out", str(tmp_path / "deep" / "b.html"), "--statistic", "mean"]) == 0
    assert "4006" in capsys.readouterr().out
    assert (tmp_path / "deep" / "b.html").is_file()
    other = written(tmp_path / "other", 9, lines(9), steps=50)
    silent = written(tmp_path / "silent", 7, [])
    for wrong, says in (
        ([*words, str(other)], "trainer.steps: 100 there, 50 here"),
        ([*words, str(runs[0])], "seed 0"),
        ([*words, str(silent)], "nothing in common"),
        ([*words, "--out", "b.pdf"], "end in .html"),
        (["runs", "report", str(runs[0]), "--out", "b.html"], "several runs"),
        ([*words, "--out", "/proc/b.html"], "'/proc/b.html'"),  # and not a name that it has for a moment
    ):
        assert main(wrong) == 2
        assert says in capsys.readouterr().err


def test_runs_are_held_to_be_alike(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", 0, []), written(tmp_path / "b", 1, [])
    pages = [json.loads((run / "spec.json").read_text()) for run in (a, b)]
    seeds.alike([(a, pages[0]), (b, pages[1])])
    with pytest.raises(UserError, match="seed 0"):
        seeds.alike([(a, pages[0]), (b, pages[0])])
