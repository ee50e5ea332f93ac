"""How the command line speaks: sentences and tables for people, one JSON object a line for machines."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..hooks import Voice


class Tell:
    """Where the answers of a verb go. With `machine`, only JSON objects are printed, and no sentence twice.

    words: the flags of every verb that were typed ("--json", "--debug").
    """

    def __init__(self, machine: bool = False, words: Sequence[str] = ()) -> None:
        self.machine, self.words = machine, words

    def say(self, text: str) -> None:
        """A sentence."""
        print(json.dumps({"event": "say", "text": text}) if self.machine else text, flush=True)

    def note(self, text: str) -> None:
        """A sentence beside the answer: on stderr for people, so that a pipe carries the answer alone."""
        if self.machine:
            self.say(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def answer(self, event: str, fields: Mapping[str, Any], text: str) -> None:
        """What the verb found: `text` for people, {"event": event, **fields} for machines."""
        print(json.dumps({"event": event, **fields}) if self.machine else text, flush=True)

    def voice(self) -> Voice:
        """The voice of a training."""
        from ..hooks import voice_for

        return voice_for(self.machine)

    @contextlib.contextmanager
    def progress(self, what: str, total: int, seconds: float = 5.0) -> Iterator[Callable[[int], None]]:
        """Tell how many of `total` are done: a bar at a terminal, else a line every so many seconds."""
        if not self.machine and sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(total=total, unit=what, dynamic_ncols=True, leave=False, file=sys.stderr) as bar:
                yield lambda done: bar.update(done - bar.n) and None
            return
        last = time.perf_counter()

        def tell(done: int) -> None:
            nonlocal last
            if time.perf_counter() - last < seconds:
                return
            last = time.perf_counter()
            if self.machine:
                print(json.dumps({"event": "progress", "what": what, "done": done, "of": total}), flush=True)
            else:
                print(f"{what} {done}/{total}", file=sys.stderr, flush=True)

        yield tell


class Silent(Tell):
    """Says nothing: of several processes one answers."""

    def say(self, text: str) -> None:
        """Nothing."""

    def answer(self, event: str, fields: Mapping[str, Any], text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows (the first is the heading) as a table for a terminal, the last column wrapped."""
    *widths, last = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = sum(widths) + 2 * len(widths)
    last = min(last, max(24, shutil.get_terminal_size((140, 24)).columns - left))
    lines = []
    for row in [rows[0], ["-" * w for w in (*widths, last)], *rows[1:]]:
        text, *more = textwrap.wrap(row[-1], last) or [""]
        cells = [f"{cell:<{w}}" for cell, w in zip(row[:-1], widths, strict=True)]
        lines += ["  ".join([*cells, text]).rstrip(), *(" " * left + t for t in more)]
    return "\n".join(lines)


def measured(measures: Mapping[str, Mapping[str, Any]]) -> str:
    """Measures with interval and receipt as a table for a terminal."""
    rows = [("measure", "value", "95 % interval", "N", "what it is")]
    for name, m in measures.items():
        rows.append((name, f"{m['value']:.4f}", f"{m['low']:.4f} … {m['high']:.4f}", str(m["n"]), m["how"]))
    return columns(rows)
