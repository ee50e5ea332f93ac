"""The tool that holds the evidence page: promises that hold pass, and every way in which one can be broken is found."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = "| promise | command | value | bound | run |\n|---|---|---|---|---|\n"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


evidence = load("evidence")


def says(text: str, status: int = 0) -> str:
    """A command that prints `text` and ends with `status`."""
    return f"`{shlex.join([sys.executable, '-c', f'print({text!r}); raise SystemExit({status})'])}`"


def verdict(tmp_path: Path, *lines: str) -> int:
    page = tmp_path / "evidence.md"
    page.write_text("# Evidence\n\nWords.\n\n" + HEAD + "\n".join(lines) + "\n\nMore words.\n", encoding="utf-8")
    return int(evidence.main([str(page)], root=tmp_path))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = tmp_path / "docs" / "runs" / "digits"
    run.mkdir(parents=True)
    (run / "spec.json").write_text("{}")
    (run / "log.jsonl").write_text("{}\n")
    (run / "result.json").write_text(json.dumps({"judge": {"accuracy": 0.98765}, "ok": True, "by_class": [0.1, 0.2]}))
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "overhead.json").write_text(json.dumps({"pairs": {"a:b:train": {"ratio": 1.1239}, "x.y": {"z": 2}}}))
    return tmp_path


HOLDS = {
    "a recorded run": "| p | `make x` | `judge.accuracy` 0.988 | ≥ 0.95 | docs/runs/digits |",
    "as a link": "| p | | `judge.accuracy` 0.9877 | ≥ 0.95 | [digits](runs/digits) |",
    "per cent": "| p | | `judge.accuracy` 98.8 % | ≥ 95 % | docs/runs/digits |",
    "a truth": "| p | | `ok` 1 | = 1 | docs/runs/digits |",
    "an entry of a list": "| p | | `by_class.1` 0.2 | < 0.3 s | docs/runs/digits |",
    "a benchmark": "| p | | `pairs.a:b:train.ratio` 1.124 | ≤ 1.15 times | benchmarks/results/overhead.json |",
    "a key with a dot": "| p | | `pairs.x.y.z` 2 | = 2 | benchmarks/results/overhead.json |",
    "json line": f"| p | {says('{}' + chr(10) + json.dumps({'a': {'b': 3}}))} | `a.b` 3 | > 2 | quick |",
    "json before other lines": f"| p | {says(json.dumps({'a': 3}) + chr(10) + 'done')} | `a` 3 | = 3 | quick |",
    "value line": f"| p | {says('x' + chr(10) + 'gap = 1e-7')} | `gap` 1e-7 | ≤ 1e-6 | `quick` |",
    "pytest": f"| p | {says('..s  [100%]' + chr(10) + '2 passed, 1 skipped in 0.31s')} | `passed` 2 | ≥ 2 | quick |",
    "a bar in a cell": f"| p | `{sys.executable} -c \"print('a=%d' % (0 \\| 1))\"` | `a` 1 | = 1 | quick |",
    "another value now, within the bound": f"| p | {says('a=3')} | `a` 2 | ≤ 3 | quick |",
}
BROKEN = {
    "no run": "| p | `make x` | `a` 1 | = 1 | |",
    "no value": "| p | `make x` | | ≥ 0.95 | docs/runs/digits |",
    "a name without its number": "| p | | `judge.accuracy` | ≥ 0.95 | docs/runs/digits |",
    "no bound": "| p | | `judge.accuracy` 0.988 | | docs/runs/digits |",
    "a bound without its number": "| p | | `judge.accuracy` 0.988 | ≥ many | docs/runs/digits |",
    "a run that is not there": "| p | | `a` 1 | = 1 | docs/runs/other |",
    "a run elsewhere": "| p | | `a` 1 | = 1 | docs/digits.json |",
    "a way out of the folder": "| p | | `a` 1 | = 1 | docs/runs/../../x.json |",
    "a value that the run lacks": "| p | | `judge.recall` 1 | = 1 | docs/runs/digits |",
    "a value that is no number": "| p | | `judge` 1 | = 1 | docs/runs/digits |",
    "a number that the run does not hold": "| p | | `judge.accuracy` 0.989 | ≥ 0.95 | docs/runs/digits |",
    "a rounder number than is true": "| p | | `judge.accuracy` 0.99 | ≥ 0.988 | docs/runs/digits |",
    "out of bound": "| p | | `judge.accuracy` 0.988 | ≥ 0.99 | docs/runs/digits |",
    "out of bound now": f"| p | {says('a=3')} | `a` 2 | ≤ 2 | quick |",
    "not a number": f"| p | {says(json.dumps({'a': float('nan')}))} | `a` 2 | ≤ 2 | quick |",
    "quick without a command": "| p | | `a` 2 | ≤ 2 | quick |",
    "a failing command": f"| p | {says('a=1', 1)} | `a` 1 | = 1 | quick |",
    "a command that is not there": "| p | `no-such-command` | `a` 1 | = 1 | quick |",
    "a command that says nothing": f"| p | {says('hello')} | `a` 1 | = 1 | quick |",
    "a missing cell": "| p | `make x` | `a` 1 | quick |",
}


@pytest.mark.parametrize("case", HOLDS)
def test_promises_that_hold(case: str, runs: Path) -> None:
    assert verdict(runs, HOLDS[case]) == 0


@pytest.mark.parametrize("case", BROKEN)
def test_broken_promises_are_found(case: str, runs: Path) -> None:
    assert verdict(runs, BROKEN[case]) == 1
    assert verdict(runs, HOLDS["a recorded run"], BROKEN[case]) == 1


@pytest.mark.parametrize("file", ["spec.json", "log.jsonl", "result.json"])
def test_a_run_without_one_of_its_files_is_none(file: str, runs: Path) -> None:
    (runs / "docs" / "runs" / "digits" / file).unlink()
    assert verdict(runs, HOLDS["a recorded run"]) == 1


def test_a_page_without_a_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Evidence\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    assert evidence.main([str(tmp_path / "page.md")], root=tmp_path) == 1


def test_equal_commands_run_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    code = f"open({str(count)!r}, 'a').write('x'); print('a=1'); print('b=2')"
    command = f"`{shlex.join([sys.executable, '-c', code])}`"
    assert (
        verdict(tmp_path, f"| p | {command} | `a` 1 | = 1 | quick |", f"| q | {command} | `b` 2 | = 2 | quick |") == 0
    )
    assert count.read_text() == "x"


def test_missing_numbers_are_filled_in(runs: Path) -> None:
    lines = [
        f"| p | {says('a=3')} | `a` | ≥ 2 | quick |",
        "| q | | `judge.accuracy` | ≥ 0.9 | docs/runs/digits |",
        "| r | | `judge.accuracy` 0.988 | ≥ 0.9 | docs/runs/digits |",
        "| s | | `judge.nothing` | ≥ 0.9 | docs/runs/digits |",
    ]
    page = runs / "evidence.md"
    page.write_text("# Evidence\n\n" + HEAD + "\n".join(lines) + "\n\nEnd.\n", encoding="utf-8")
    assert evidence.main([str(page), "--fill"], root=runs) == 1  # of s alone
    text = page.read_text(encoding="utf-8").splitlines()
    assert "| `a` 3 |" in text[4]
    assert "| `judge.accuracy` 0.9877 |" in text[5]
    assert text[6:] == [*lines[2:], "", "End."]
    assert verdict(runs, *text[4:7]) == 0


@pytest.mark.parametrize(
    ("text", "value", "half"),
    [
        ("1.124", 1.124, 5e-4),
        ("95 %", 0.95, 5e-3),
        ("35,746,307", 35746307, 0.5),
        ("1e-6", 1e-6, 5e-7),
        ("−2.5", -2.5, 0.05),
    ],
)
def test_numbers(text: str, value: float, half: float) -> None:
    found = evidence.number(text)
    assert found[0] == pytest.approx(value)
    assert found[1] == pytest.approx(half)


def test_the_evidence_page_can_be_read() -> None:
    assert len(evidence.rows((ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"))) > 20
