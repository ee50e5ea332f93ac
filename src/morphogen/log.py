"""`log.jsonl`: one JSON line per report, the means of everything tallied since the last one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .disk import write


class Log:
    """The log of a run. `tally` is cheap enough for every step: tensors are read when the line is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tallies: dict[str, list[Tensor | float]] = {}
        self._latest: dict[str, float] = {}
        self._before = 0.0  # training seconds of earlier processes
        self._began = time.perf_counter()
        self._steps_then = (0.0, 0)

    def open(self, after: int) -> None:
        """Start writing; lines of steps later than `after` (and a torn last line) are cut away."""
        kept = [json.dumps(line) for line in read(self.path) if line.get("step", 0) <= after]
        write(self.path, "".join(line + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)
        self._began = time.perf_counter()
        self._steps_then = (0.0, max(after, 0))

    def tally(self, name: str, value: Tensor | float) -> None:
        """Take in a scalar; its mean over the steps since the last line is what the line says."""
        try:
            self._tallies[name].append(value)
        except KeyError:
            self._tallies[name] = [value]

    def line(self, step: int, more: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Write the line of `step` and begin the next; returns it, with steps per second of this stretch.

        more: numbers of this very moment, which are no means.
        """
        means = self._means()
        self._latest = means
        self._tallies = {}
        now = time.perf_counter() - self._began
        then, step_then = self._steps_then
        self._steps_then = (now, step)
        rate = (step - step_then) / (now - then) if now > then else 0.0
        line = {"step": step, **means, **(more or {}), "steps_per_s": round(rate, 3), "seconds": round(self.seconds, 3)}
        self.write(line)
        return line

    def _means(self) -> dict[str, float]:
        return {name: sum(float(v) for v in values) / len(values) for name, values in self._tallies.items()}

    @property
    def seconds(self) -> float:
        """Training seconds so far, earlier processes included."""
        return self._before + time.perf_counter() - self._began

    def latest(self, name: str) -> float | None:
        """The newest mean of `name`: of the stretch under way, else of the last line."""
        values = self._tallies.get(name)
        return sum(float(v) for v in values) / len(values) if values else self._latest.get(name)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Make what is written durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to write the same next line."""
        tallies = {k: [float(v) for v in values] for k, values in self._tallies.items()}
        return {"tallies": tallies, "latest": self._latest, "seconds": self.seconds}

    def restore(self, state: dict[str, Any]) -> None:
        self._tallies, self._latest, self._before = state["tallies"], state["latest"], state["seconds"]


class Unwritten(Log):
    """The log of a rank that does not speak: it knows the same numbers and writes none."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def open(self, after: int) -> None:
        """Start counting."""
        self._began, self._steps_then = time.perf_counter(), (0.0, max(after, 0))

    def write(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log up to the first that is torn or none of a log's. An absent log is empty."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for raw in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                break
            if not isinstance(line, dict) or not isinstance(line.get("step", 0), int):
                break
            lines.append(line)
    return lines
