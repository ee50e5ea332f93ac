"""Hold the promises of docs/evidence.md: recompute the quick rows, look the recorded ones up, fail on the rest.

    python tools/evidence.py docs/evidence.md [--only TEXT] [--no-run] [--fill]

A row belongs to a table with the columns

    | promise | command | value | bound | run |

value: `` `name` number``: what is measured, and what it was. A name may be a path through a JSON file, `a.b.c`.
bound: `≥ 0.95`, `≤ 3 %`, `= 0`, `< 0.5 s`; a unit is for the reader, "%" divides by 100.
run:   `quick` (the command is run again, and the fresh value must keep the bound), or the file of a recorded run:
       docs/runs/NAME, whose result.json holds the value and which has spec.json and log.jsonl beside it, or
       benchmarks/results/NAME.json. The file's value must be the row's, to the digits given, and keep the bound.

A new row may leave the number out, `` `name` ``: it is broken until `--fill` has measured it and written it down.

A command says its values in its last line that is a JSON object, in lines `name=number`, or, for pytest, in its
closing line (`passed`, `failed`, `skipped`, ...). It must end with status 0. Rows may share a command: it runs once.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["promise", "command", "value", "bound", "run"]
QUICK = "quick"
LIMIT = 900  # seconds of a command
NUMBER = r"[-+−]?[\d,]*\.?\d+(?:[eE][-+]?\d+)?"
RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "≥": operator.ge, ">=": operator.ge, "≤": operator.le, "<=": operator.le,
    ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip


class Row(NamedTuple):
    """A promise as the table has it."""

    line: int
    promise: str
    command: str
    value: str
    bound: str
    run: str


class Broken(Exception):
    """Why a row does not hold, in one sentence."""


# ---- reading -------------------------------------------------------------------------------------------------------


def cells(line: str) -> list[str]:
    """The cells of a table line, `\\|` standing for a bar."""
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", inner)]


def rows(text: str) -> list[Row]:
    """The promises of a page, in order. Raises Broken where a table is damaged, or where there is none."""
    found: list[Row] = []
    inside = False
    for n, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("|"):
            inside = False
        elif [c.lower() for c in cells(line)] == COLUMNS:
            inside = True
        elif inside and not re.fullmatch(r"[|\s:-]+", line):
            parts = cells(line)
            if len(parts) != len(COLUMNS):
                raise Broken(f"line {n}: the row has {len(parts)} cells, not {len(COLUMNS)}: {line.strip()[:80]}")
            found.append(Row(n, *parts))
    if not found:
        raise Broken("there is no table with the columns | " + " | ".join(COLUMNS) + " |")
    return found


def number(text: str) -> tuple[float, float]:
    """(value, half a unit of its last digit) of the number that a text begins with; "%" divides by 100."""
    match = re.match(rf"\s*({NUMBER})\s*(%?)", text)
    if not match:
        raise Broken(f"{text!r} begins with no number")
    plain = match[1].replace(",", "").replace("−", "-")
    mantissa, _, exponent = plain.lower().partition("e")
    half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    scale = 0.01 if match[2] else 1.0
    return float(plain) * scale, half * scale


def stated(row: Row) -> tuple[str, float, float]:
    """(name, value, half a unit of its last digit) of what a row says was measured."""
    match = re.fullmatch(r"`([^`]+)`\s*(.*)", row.value)
    if not match or not match[2]:
        raise Broken("it has no value: write `name` number")
    return match[1], *number(match[2])


def keeps(value: float, bound: str) -> bool:
    """Whether a value keeps a bound such as `≥ 95 %`."""
    match = re.match(r"\s*(≥|>=|≤|<=|>|<|=)(.*)", bound)
    if not match:
        raise Broken(f"its bound {bound!r} is none: write ≥, ≤, >, < or = and a number")
    return not math.isnan(value) and RELATIONS[match[1]](value, number(match[2])[0])


# ---- measuring -----------------------------------------------------------------------------------------------------


def look_up(values: Any, name: str) -> float:
    """The number at path `a.b.c` of nested mappings and lists (true is 1); a key may itself hold dots."""
    node, rest = values, name
    while rest:
        if isinstance(node, Mapping):
            fitting = [k for k in node if rest == k or rest.startswith(f"{k}.")]
            key: Any = max(fitting, key=len, default=None)
            if key is None:
                raise Broken(f"there is no value {name!r}: there are {', '.join(map(str, list(node)[:12])) or 'none'}")
            node, rest = node[key], rest[len(key) + 1 :]
        elif isinstance(node, list) and (match := re.match(r"(\d+)(?:\.|$)", rest)) and int(match[1]) < len(node):
            node, rest = node[int(match[1])], rest[match.end() :]
        else:
            raise Broken(f"there is no value {name!r}")
    if not isinstance(node, int | float):
        raise Broken(f"{name!r} is no number but {str(node)[:40]!r}")
    return float(node)


def said(output: str) -> dict[str, Any]:
    """The values that a command's output says."""
    values: dict[str, Any] = {}
    for line in output.splitlines():
        if match := re.fullmatch(rf"\s*([\w.]+)\s*=\s*({NUMBER})\s*", line):
            values[match[1]] = float(match[2].replace(",", ""))
        elif re.search(r"\d+ (passed|failed|skipped|error).* in [\d.]+s", line):
            values |= {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)", line)}
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                return values | dict(json.loads(line))
            except ValueError:
                continue
    return values


def run(command: str) -> dict[str, Any]:
    """Run a command in the repository; the values that it says. Raises Broken where it fails."""
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))}
    try:
        done = subprocess.run(shlex.split(command), cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT)
    except FileNotFoundError as error:
        raise Broken(f"`{command}` cannot be run: {error.filename} is not there") from error
    except subprocess.TimeoutExpired as error:
        raise Broken(f"`{command}` took more than {LIMIT} s") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Broken(f"`{command}` ended with {done.returncode}: {''.join(last)[:200]}")
    return said(done.stdout)


def recorded(name: str, root: Path) -> Any:
    """The values of a recorded run. Raises Broken where a file of it is missing."""
    path = (root / name).resolve()
    folders = [root / "docs" / "runs", root / "benchmarks" / "results"]
    if not any(path.is_relative_to(folder.resolve()) for folder in folders):
        raise Broken(f"{name!r} is neither `{QUICK}` nor a run in docs/runs or benchmarks/results")
    if path.is_dir():
        missing = [f for f in ("spec.json", "log.jsonl", "result.json") if not (path / f).is_file()]
        if missing:
            raise Broken(f"the run {name} lacks {', '.join(missing)}")
        path /= "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Broken(f"there is no run {name}") from None
    except ValueError as error:
        raise Broken(f"{name} is no JSON: {error}") from error


def link(cell: str) -> str:
    """The target of a Markdown link, or the cell without its backticks."""
    match = re.fullmatch(r"\[[^\]]*\]\(([^)]+)\)", cell)
    return match[1] if match else cell.strip("`").strip()


def measure(row: Row, name: str, root: Path, ran: dict[str, dict[str, Any] | Broken]) -> float:
    """The value `name` of a row's run, made now or recorded. Raises Broken where there is none."""
    if not row.run:
        raise Broken("it has no run")
    if link(row.run) == QUICK:
        command = row.command.strip("`")
        if not command:
            raise Broken("it is quick but has no command")
        if command not in ran:
            try:
                ran[command] = run(command)
            except Broken as reason:
                ran[command] = reason
        values = ran[command]
        if isinstance(values, Broken):
            raise values
        return look_up(values, name)
    target = link(row.run)
    if row.run.startswith("["):  # links are relative to docs/, bare names to the repository
        target = os.path.relpath((root / "docs" / target).resolve(), root.resolve())
    return look_up(recorded(target, root), name)


def hold(row: Row, root: Path, ran: dict[str, dict[str, Any] | Broken]) -> tuple[float, float]:
    """(value now, value stated) of a promise that holds. Raises Broken where it does not."""
    name, before, half = stated(row)
    value = measure(row, name, root, ran)
    if link(row.run) != QUICK and not abs(value - before) <= half * 1.001:
        raise Broken(f"the row says {before:g}, the recorded run {value:g}")
    if not keeps(value, row.bound):
        raise Broken(f"{name} is {value:g}, out of its bound {row.bound}")
    return value, before


def fill(page: Path, only: str, root: Path) -> None:
    """Measure the rows that name a value without its number, and write the numbers into the page."""
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    ran: dict[str, dict[str, Any] | Broken] = {}
    for row in rows("".join(lines)):
        if not re.fullmatch(r"`[^`]+`", row.value) or only not in row.promise + row.command:
            continue
        try:
            value = measure(row, row.value.strip("`"), root, ran)
        except Broken as reason:
            print(f"line {row.line}: {reason}", file=sys.stderr, flush=True)
            continue
        shown = f"{value:.0f}" if value == int(value) else f"{value:.4g}"
        lines[row.line - 1] = lines[row.line - 1].replace(f"| {row.value} |", f"| {row.value} {shown} |")
        print(f"line {row.line}: {row.value} {shown}", flush=True)
    page.write_text("".join(lines), encoding="utf-8")


# ---- the command ---------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Print a line per promise; 0 where all hold, else 1."""
    ap = argparse.ArgumentParser(description="Hold the promises of an evidence page.")
    ap.add_argument("page", type=Path)
    ap.add_argument("--only", default="", help="only rows whose promise or command has this text")
    ap.add_argument("--no-run", action="store_true", help="leave the quick rows out: look up recorded runs only")
    ap.add_argument("--fill", action="store_true", help="first measure and write down the numbers that are missing")
    a = ap.parse_args(arguments)
    try:
        if a.fill:
            fill(a.page, a.only, root)
        found = [r for r in rows(a.page.read_text(encoding="utf-8")) if a.only in r.promise + r.command]
    except (OSError, Broken) as error:
        print(f"{a.page}: {error}", file=sys.stderr)
        return 1
    ran: dict[str, dict[str, Any] | Broken] = {}
    broken = left = 0
    for row in found:
        if a.no_run and link(row.run) == QUICK:
            left += 1
            continue
        began = time.monotonic()
        what = row.promise if len(row.promise) <= 70 else row.promise[:69] + "…"
        try:
            value, before = hold(row, root, ran)
        except Broken as reason:
            broken += 1
            print(f"BROKEN  {what}\n        line {row.line}: {reason}", flush=True)
        else:
            took = time.monotonic() - began
            shown = f"{value:g}" + f" (recorded {before:g})" * (value != before)
            print(f"holds   {what}: {shown}, bound {row.bound}" + f", {took:.0f} s" * (took > 1), flush=True)
    skipped = f", {left} quick ones left out" if left else ""
    print(f"{len(found) - broken - left} of {len(found)} promises hold{skipped}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
