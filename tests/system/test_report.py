"""The report: one file that needs nothing else, says what is in the run, and charts points where they belong."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from morphogen import report, svg
from morphogen.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as training leaves it, written by hand."""
    folder = tmp_path / "cats & dogs"
    (folder / "samples").mkdir(parents=True)
    test = {"class": "morphogen.data.digits:Digits", "args": {"part": "test"}}
    trainer = {"class": "morphogen.train:Trainer", "args": {"steps": 100}}
    data = {"class": "morphogen.experiment:Data", "args": {"train": None, "test": test, "space": None}}
    model = {"class": "my:Cats", "args": {}}
    experiment = {
        "class": "morphogen.experiment:Experiment",
        "args": {"model": model, "data": data, "trainer": trainer},
    }
    page = {
        "format": 1,
        "morphogen": "0.1.0",
        "seed": 7,
        "recipe": {"name": "<cats>", "arguments": {"width": 64}},
        "experiment": experiment,
    }
    (folder / "spec.json").write_text(json.dumps(page))
    log = []
    for step in range(10, 101, 10):
        log.append({"step": step, "loss": 1000.0 / step, "grad_norm": 1.0, "steps_per_s": 5.0, "seconds": step / 5})
        if step % 50 == 0:
            log.append({"step": step, "heldout": {"loss": 1100.0 / step, "accuracy": step / 100}, "gap": 1.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 11')
    for step in range(10, 101, 10):
        Image.new("RGB", (6, 4), (step, 0, 0)).save(folder / "samples" / f"{step:08d}.png")
    measure = {"value": 0.975, "low": 0.96, "high": 0.985, "n": 1000, "how": "share <of> samples"}
    evaluation = {"step": 100, "seed": 0, "n": 1000, "options": {"guidance": 2.0}, "measures": {"agreement": measure}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation | {"heldout": {"loss": 11.0}, "judge": None}))
    machine = {"cpu": "abacus", "cores": 2, "threads": 1, "device": "cpu", "torch": "9", "python": "3", "system": "Z"}
    result = {
        "seconds": 20.0,
        "steps_per_s": 5.0,
        "machine": machine,
        "parameters": 12345,
        "command": "morphogen train",
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


class Reader(HTMLParser):
    """Text, pictures, and tags that were not closed."""

    VOID = ("meta", "img", "line", "circle", "polyline", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.pictures: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.pictures.append(value or "")
            elif name in ("src", "href", "xlink:href", "action"):
                self.links.append(value or "")
        assert tag not in ("script", "iframe", "link", "object")

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def test_it_is_one_file_that_needs_nothing_else(run: Path) -> None:
    path = report.write(run)
    reader = read(path)
    assert reader.links == []
    assert "url(" not in path.read_text()
    assert not re.search(r"https?://", path.read_text())
    assert all(p.startswith("data:image/png;base64,") for p in reader.pictures)


def test_text_of_a_run_is_no_markup(run: Path) -> None:
    """Whatever a stranger has written as a name or a sentence is text on the page, and nothing to act on."""
    planted = "<script>alert(1)</script><img src=https://x onerror='y'>\"><a href=z>"

    def spoil(node: object) -> object:
        if isinstance(node, dict):
            return {(k if k in known else k + planted): spoil(v) for k, v in node.items()}
        if isinstance(node, list):
            return [spoil(v) for v in node]
        return node + planted if isinstance(node, str) and ":" not in node else node

    known = {"format", "morphogen", "seed", "recipe", "name", "arguments", "experiment", "class", "args", "step"}
    known |= {"seconds", "steps_per_s", "measures", "value", "low", "high", "n", "how", "heldout", "options", "machine"}
    known |= {
        "parameters",
        "command",
        "cpu",
        "cores",
        "threads",
        "device",
        "torch",
        "python",
        "system",
        "data",
        "trainer",
    }
    known |= {"model", "steps", "part", "test", "train", "space", "judge", "loss", "grad_norm", "gap"}
    for path in run.glob("*.json"):
        path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()[:-1]]
    (run / "log.jsonl").write_text("".join(json.dumps(spoil(line)) + "\n" for line in lines))
    reader = read(report.write(run))
    assert planted in " ".join(reader.text)
    assert reader.links == []
    assert all(p.startswith("data:image/png;base64,") for p in reader.pictures)


def test_it_says_what_is_in_the_run(run: Path) -> None:
    text = " ".join(read(report.write(run)).text)
    for words in (
        *("<cats>", "width=64", "100 of 100 steps", "20 s", "abacus, 2 cores, 1 threads", "torch 9", "12,345"),
        *("agreement", "0.9750", "0.9600 … 0.9850", "share <of> samples", "guidance 2.0", "Samples at step 100"),
        *("morphogen sample", "'", "cats & dogs", "loss", "accuracy"),
    ):
        assert words in text, words
    assert "grad_norm" not in text


def test_the_newest_samples_come_first_and_earlier_ones_are_spread(run: Path) -> None:
    pictures = [base64.b64decode(p.partition(",")[2]) for p in read(report.write(run)).pictures]
    shown = [next(i for i in range(10, 101, 10) if (run / f"samples/{i:08d}.png").read_bytes() == p) for p in pictures]
    assert shown[0] == 100
    assert shown[1:] == sorted(set(shown[1:]))
    assert (shown[1], shown[-1], len(shown)) == (10, 90, 9)


def test_a_bare_run_has_a_report_too(run: Path) -> None:
    for path in [*run.glob("samples/*"), run / "log.jsonl", run / "evaluation.json", run / "result.json"]:
        path.unlink()
    text = " ".join(read(report.write(run)).text)
    assert "0 of 100 steps" in text
    assert "Evaluation" not in text


def test_damaged_receipts_are_left_out(run: Path) -> None:
    (run / "evaluation.json").write_text("{")
    (run / "result.json").write_text("[]")
    assert "Evaluation" not in " ".join(read(report.write(run)).text)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        report.write(tmp_path / "nothing")


# ---- the chart -----------------------------------------------------------------------------------------------------


def drawn(svg: str) -> tuple[list[list[tuple[float, float]]], list[tuple[float, str]], list[tuple[float, str]]]:
    """Lines, and the ticks (place, text) of the axes x and y."""
    tree = ET.fromstring(svg)
    lines = [
        [(float(a), float(b)) for a, b in (p.split(",") for p in line.attrib["points"].split())]
        for line in tree.iter("polyline")
    ]
    words = [t for t in tree.iter("text") if "class" not in t.attrib]
    xs = [(float(t.attrib["x"]), t.text or "") for t in words if t.attrib.get("text-anchor") == "middle"]
    ys = [(float(t.attrib["y"]) - 4, t.text or "") for t in words if t.attrib.get("text-anchor") == "end"]
    return lines, xs, ys


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0.0), (10, 1.0)],
        [(1, -0.3), (7, 0.2), (40, -0.5)],
        [(100, 1e-5), (2000, 3e-5)],
        [(500, 123456.0), (1_000_000, 200000.0)],
        [(5, 2.0), (6, 2.0)],
        [(1, -7e-8), (2, 9e-8)],
    ],
)
def test_points_lie_where_the_axes_say(points: list[tuple[float, float]]) -> None:
    ((line,), xs, ys) = drawn(svg.chart({"training": points}))
    assert len(xs) >= 2
    assert len(ys) >= 2
    for axis, along in ((xs, 0), (ys, 1)):
        (p0, t0), (p1, t1) = axis[0], axis[-1]
        a, b = number(t0), number(t1)
        assert a < b
        for place, point in zip(line, points, strict=True):
            said = a + (place[along] - p0) / (p1 - p0) * (b - a)
            assert said == pytest.approx(point[along], abs=0.02 * (b - a))
    assert all(svg._LEFT - 0.1 <= x <= svg._W and 0 <= y <= svg._H for x, y in line)


def test_a_wide_range_is_drawn_logarithmically() -> None:
    import math

    points = [(1, 1000.0), (2, 10.0), (3, 0.1)]
    text = svg.chart({"training": points})
    ((line,), _, ys) = drawn(text)
    assert "logarithmic" in text
    (p0, t0), (p1, t1) = ys[0], ys[-1]
    a, b = math.log10(number(t0)), math.log10(number(t1))
    for (_, y), (_, value) in zip(line, points, strict=True):
        assert a + (y - p0) / (p1 - p0) * (b - a) == pytest.approx(math.log10(value), abs=0.02)
    assert "logarithmic" not in svg.chart({"training": [(1, -1.0), (2, 1000.0)]})


def test_lines_keep_their_colour_where_one_is_missing() -> None:
    assert "class='s1'" in svg.chart({"training": [], "held-out": [(1, 1.0), (2, 2.0)]})
    assert "s0" not in svg.chart({"training": [], "held-out": [(1, 1.0), (2, 2.0)]})


def test_a_long_log_is_thinned_to_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(8_000)]
    ((line,), _, _) = drawn(svg.chart({"training": points}))
    assert len(line) <= 400
    assert len({y for _, y in line}) == 1  # every group of neighbours has the mean 1/2


def test_what_a_watch_has_told_stands_first(run: Path) -> None:
    alarm = {"sign": "mode collapse", "evidence": "10 % <covered>", "cause": "no variety", "change": "R1"}
    lines = [{"step": 60, "alarm": alarm}, {"step": 90, "over": "mode collapse"}, {"step": 95, "alarm": alarm}]
    whole = (run / "log.jsonl").read_text().splitlines()[:-1]
    (run / "log.jsonl").write_text("".join(f"{line}\n" for line in [*whole, *map(json.dumps, lines)]))
    text = read(report.write(run)).text
    assert text.index("Alarms") < text.index("Samples")
    assert text.count("mode collapse") == 2
    assert {"60 … 90", "95", "10 % <covered>", "no variety", "R1"} <= set(text)
