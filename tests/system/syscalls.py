"""Refuse, halve or interrupt every system call of a training in turn, and see what is left.

    python -m tests.system.syscalls                  every call of a checkpoint's save, every way that it can fail
    python -m tests.system.syscalls --part writes    every call of the whole training that changes anything on the disk
    python -m tests.system.syscalls --part all       every call (an hour of a core)
    python -m tests.system.syscalls --part all --n 100    a sample of these

The training is `whole.py`'s by the command line, from an empty folder and, again, going on after a kill; its system
calls on the run folder (spec, assets, log, checkpoints, frozen weights, snapshots, pictures, report) are counted once.
Then the n-th is made to fail, for every n, whether Python made it or Rust. It must end with one sentence and status 2
(or do without what failed, and finish), the newest checkpoint whose save had returned must load, and the same command
must go on to the same bytes.
"""

from __future__ import annotations

import errno
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from morphogen.checkpoint import Checkpoints

from . import trap
from .lives import Life, asked, command, differences, image, recipe, tell, train, warm
from .trap import Call, Counters, How

_OPEN, _MAKE, _GO = {"open", "openat"}, {"mkdir", "rename", "renameat"}, {"unlink", "unlinkat", "rmdir"}
_LOOK, _SYNC = {"stat", "newfstatat", "statx", "access"}, {"fsync", "close", "ftruncate"}
_WRITE = _MAKE | _GO | {"write", "fsync", "ftruncate"}
_CREATE = 0o100


class Way(NamedTuple):
    """How a call fails. calls: those that can; new: of those that open, only the ones that make a file."""

    error: int
    how: How
    calls: set[str]
    new: bool = False


WAYS = {
    "ENOSPC": Way(errno.ENOSPC, How.ON, _OPEN | _MAKE | _SYNC | {"write"}, new=True),
    "short write": Way(errno.ENOSPC, How.SHORT, {"write"}),
    "EDQUOT": Way(errno.EDQUOT, How.ON, _OPEN | _MAKE | _SYNC | {"write"}, new=True),
    "EACCES": Way(errno.EACCES, How.ONCE, _OPEN | _MAKE | _GO | _LOOK),
    "EPERM": Way(errno.EPERM, How.ONCE, _OPEN | _MAKE | _GO),
    "EIO": Way(errno.EIO, How.ONCE, _OPEN | _MAKE | _GO | _LOOK | _SYNC | {"read", "write", "getdents64", "fstat"}),
    "EINTR": Way(errno.EINTR, How.ONCE, _OPEN | {"read", "write", "fsync", "close", "ftruncate", "flock"}),
    "EMFILE": Way(errno.EMFILE, How.ONCE, _OPEN),
    "SIGINT": Way(0, How.INTERRUPT, _OPEN | _MAKE | _GO | _LOOK | _SYNC | {"read", "write", "mmap", "getdents64"}),
    "SIGINT twice": Way(0, How.INTERRUPT_TWICE, _OPEN | _MAKE | _GO | _SYNC | {"read", "write"}),
}


class Case(NamedTuple):
    """A fault: in a life that begins or goes on, at the call `at` (from 1), in a way."""

    again: bool
    at: int
    way: str


class Campaign:
    """A straight run, one that was killed half way, and the calls of beginning and of going on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counters = folder, Counters()
        warm(folder)
        self.recipe = recipe(folder / "own")
        self._saved = folder / "saved"
        straight = self.live(folder / "straight")
        assert straight.status == 0, straight.said
        self.straight = image(folder / "straight")
        self.half = folder / "half"
        calls = self.calls(self.half)
        self.saves = [tuple(map(int, line.split())) for line in self._saved.read_text().splitlines()]
        middle = [i for i, c in enumerate(calls, 1) if c.name == "rename" and c.paths[1].endswith("/00000002")]
        shutil.rmtree(self.half)
        self.live(self.half, at=middle[0] + 1, how=How.KILL)
        assert Checkpoints(self.half).steps()[-1] == 2
        self.begins, self.goes_on = calls, self.calls(self.fresh(again=True))
        self.save = next((a, b) for step, a, b in self.saves if step == 4)  # within `begins`; it prunes, too

    def fresh(self, again: bool) -> Path:
        """The folder of the run to be broken, as it was before."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        if again:
            shutil.copytree(self.half, run)
        return run

    def live(self, run: Path, trace: int = -1, at: int = -1, error: int = 0, how: How = How.ONCE) -> Life:
        """A life with a fault, the steps whose saves returned noted beside the run."""
        self.counters.clear()
        self._saved.write_text("")

        def before() -> None:
            real = Checkpoints.save

            def noting(store: Checkpoints, step: int, *rest: object) -> Path:
                began = self.counters.calls
                made = real(store, step, *rest)  # type: ignore[arg-type]
                with self._saved.open("a") as file:
                    file.write(f"{step} {began + 1} {self.counters.calls}\n")
                return made

            Checkpoints.save = noting  # type: ignore[method-assign,assignment]
            trap.arm(run, trace=trace, counters=self.counters, at=at, error=error, how=how)

        return train(command(self.recipe, run), before)

    def calls(self, run: Path) -> list[Call]:
        """The system calls of a life without a fault."""
        with tempfile.TemporaryFile() as trace:
            life = self.live(run, trace.fileno())
            assert life.status == 0, life.said
            trace.seek(0)
            return list(trap.recorded(trace.read()))

    def cases(self, part: str) -> Iterator[Case]:
        """Every call of a part ("save", "writes" or "all"), failing in every way that it can."""
        for again, calls in ((False, self.begins), (True, self.goes_on)):
            for at, call in enumerate(calls, 1):
                opened = call.name in _OPEN
                makes = opened and call.args[1 if call.name == "open" else 2] & _CREATE
                if part == "save" and (again or not self.save[0] <= at <= self.save[1]):
                    continue
                if part == "writes" and (again or not (makes or call.name in _WRITE)):
                    continue
                for name, way in WAYS.items():
                    if call.name in way.calls and (not way.new or not opened or makes):
                        yield Case(again, at, name)

    def broken(self, case: Case) -> tuple[str, str, list[str]]:
        """(what became of the command, the call's name, what is wrong with that)."""
        way = WAYS[case.way]
        run = self.fresh(case.again)
        life = self.live(run, at=case.at, error=way.error, how=way.how)
        stopped = way.how in (How.INTERRUPT, How.INTERRUPT_TWICE)
        allowed = {0, 130} if stopped else {0, 2}
        if way.how == How.INTERRUPT_TWICE:  # the second may fall into the cleaning up of Python's own rmtree
            allowed.add(2)
        call, wrong = self.counters.call, []
        said = life.said.strip().splitlines()
        if life.status not in allowed or "Traceback" in life.said:
            wrong.append(f"status {life.status}: {life.said[-600:]}")
        elif life.status and not ((said and said[-1].endswith(".")) or stopped):
            wrong.append(f"no sentence: {said[-1:]}")
        saved = [int(line.split()[0]) for line in self._saved.read_text().splitlines()]
        last = max(saved, default=2 if case.again else -1)
        kept = [s for s in Checkpoints(run).steps() if s >= last] if run.is_dir() else []
        try:
            if last >= 0 and not any(self._loads(run, s) for s in kept):
                wrong.append(f"the checkpoint of step {last} is lost")
            if life.status:
                again = train(command(self.recipe, run))
                if again.status:
                    wrong.append(f"the same command again: status {again.status}: {again.said[-600:]}")
            if not wrong and (other := differences(self.straight, image(run))):
                wrong.append(f"another end: {', '.join(other)}")
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
        what = "interrupted" if life.status == 130 else "refused" if life.status else "finished"
        return what, call, wrong

    def _loads(self, run: Path, step: int) -> bool:
        try:
            Checkpoints(run).load(step)
        except Exception:
            return False
        return True


def campaign(n: int, folder: Path, *, part: str = "all", seed: int = 0) -> dict[str, int]:
    """Break `n` calls (0: all) of a part; how each ended, and how many wrongly."""
    own = Campaign(folder)
    cases = list(own.cases(part))
    if n:
        cases = random.Random(seed).sample(cases, min(n, len(cases)))
    found = {"calls": len(own.begins) + len(own.goes_on), "cases": 0}
    found |= {"refused": 0, "finished": 0, "interrupted": 0, "wrong": 0}
    for case in cases:
        what, call, wrong = own.broken(case)
        found["cases"] += 1
        found[what] += 1
        found["wrong"] += bool(wrong)
        for text in wrong:
            print(f"{case} {call} ({what}): {text}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    if reason := trap.missing():
        sys.exit(reason)
    told = asked("syscalls", n=0, part="save", seed=0)
    tell(campaign(told.n, Path(told.folder), part=told.part, seed=told.seed), told.record)
