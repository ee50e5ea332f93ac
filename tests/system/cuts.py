"""Cut the power of a training at every moment, in a model of the disk, and see whether its run can still be read.

    python -m tests.system.cuts --n 10000
    python -m tests.system.cuts --n 500 --plant files       with a fault that must be found: files, folders, late

`whole.py` is trained by the command line: a life killed before its first save is done, one killed within a later save,
and one that goes on to the end. Every system call on the run folder is recorded (`trap.c`). A cut is a prefix of that
record, of which the disk has:

    a file's bytes      all that was written before its last fsync. Each later write or change of length is there,
                        absent, or there in part (its first bytes, the rest absent or zeros), whatever became of others.
    a folder's entries  all changes (a name made, renamed, removed) before the folder's last fsync. Of later ones,
        unordered       each is there or not, whatever became of others: a file system that keeps no order
        journalled      those up to some moment, over all folders; any fsync writes the journal up to that moment

A renaming within a folder is one change: the new name is the old file or the new one, never none. A file that was
synced, but whose name was not, is lost; a file whose name was synced, but whose bytes were not, may hold anything of
the above. A process that is killed loses nothing. Nothing is assumed of the times at which a disk writes by itself.

A run is readable when the newest checkpoint whose save had returned, or a newer one, is what resuming finds, with the
very state that it was saved with; and when everything else of no later step is there as it was: spec, assets, log,
snapshots, pictures, and the averages load. Before the first save has returned, the same command must start cleanly.
Some of the cut runs are continued, and must end in the same bytes.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import morphogen as mg
from morphogen.checkpoint import Checkpoints
from morphogen.cli.recipe import load_files
from morphogen.log import read
from morphogen.posthoc import Snapshots

from . import trap
from .lives import asked, command, differences, image, recipe, state, tell, timeless, train, warm
from .trap import Call, Counters, How

_CREATE, _TRUNCATE, _WRITE, _SHARED = os.O_CREAT, os.O_TRUNC, 2, 1
_FREE = {"stat", "lstat", "newfstatat", "statx", "fstat", "access", "faccessat", "faccessat2", "readlink", "read"}
_FREE |= {"pread64", "readv", "getdents64", "flock", "lseek", "chmod", "fchmod", "utimensat"}


class Node:
    """A file or folder. What the disk surely has of it, and what came since: writes, or nothing for a folder."""

    def __init__(self, folder: bool) -> None:
        self.folder = folder
        self.now: dict[str, Node] = {}  # a folder's entries as the living see them
        self.entries: dict[str, Node] = {}  # … and as the disk has them
        self.data = b""
        self.writes: list[tuple[int, bytes | None]] = []  # (where, bytes), or (length, None)


Change = tuple[tuple[Node, str, "Node | None"], ...]  # entries that change together: folder, name, what it names then


class Disk:
    """The folder `home` as calls leave it. ordered: the journalled model."""

    def __init__(self, home: Path, ordered: bool) -> None:
        self.home, self.ordered = home, ordered
        self.root = Node(True)
        self.pending: list[Change] = []
        self.open: dict[int, Node] = {}

    def _at(self, path: str, folder: int = -100) -> tuple[Node, str]:
        """The folder that holds a path, and its name there."""
        node = self.root
        parts = Path(path).relative_to(self.home).parts if path.startswith("/") else Path(path).parts
        if not path.startswith("/"):
            node = self.open[folder & 0xFFFFFFFF]
        if not parts:
            return Node(True), ""
        for part in parts[:-1]:
            node = node.now[part]
        return node, parts[-1]

    def _change(self, *change: tuple[Node, str, Node | None]) -> None:
        for folder, name, node in change:
            folder.now.pop(name, None)
            if node is not None:
                folder.now[name] = node
        within = len({id(folder) for folder, _, _ in change}) == 1
        self.pending += [change] if within or self.ordered else [(one,) for one in change]

    def play(self, call: Call) -> None:
        """Take in a call. Raises NotImplementedError for one that the model does not know."""
        name, args, (first, second), result = call.name, call.args, call.paths, call.result
        if result < 0 or name in _FREE:
            return
        if name in ("open", "openat"):
            flags = args[1 if name == "open" else 2]
            folder, own = self._at(first, args[0] if name == "openat" else -100)
            if own and own not in folder.now:
                if not flags & _CREATE:
                    raise NotImplementedError(f"{first} was opened and never made")
                self._change((folder, own, Node(False)))
            self.open[result] = node = folder.now[own] if own else self.root
            if flags & _TRUNCATE:
                node.writes.append((0, None))
        elif name in ("write", "pwrite64", "writev"):
            self.open[args[0]].writes.append((call.at, call.data))
        elif name == "ftruncate":
            self.open[args[0]].writes.append((args[1], None))
        elif name in ("fsync", "fdatasync"):
            self._sync(self.open[args[0]])
        elif name in ("mkdir", "mkdirat"):
            self._change((*self._at(first, args[0]), Node(True)))
        elif name in ("rename", "renameat", "renameat2"):
            (a, old), (b, new) = self._at(first, args[0]), self._at(second, args[2])
            self._change((a, old, None), (b, new, a.now[old]))
        elif name in ("unlink", "rmdir", "unlinkat"):
            self._change((*self._at(first, args[0]), None))
        elif name == "close":
            self.open.pop(args[0], None)
        elif name in ("dup", "dup2", "dup3", "fcntl"):
            if name != "fcntl" or args[1] in (0, 1030):  # F_DUPFD, F_DUPFD_CLOEXEC
                self.open[result] = self.open[args[0]]
        elif name != "mmap" or (args[2] & _WRITE and args[3] & _SHARED):
            raise NotImplementedError(f"the model knows no {name}")

    def _sync(self, node: Node) -> None:
        if node.folder or self.ordered:
            mine = [c for c in self.pending if self.ordered or c[0][0] is node]
            self.pending = [c for c in self.pending if c not in mine]
            for change in mine:
                _apply(change)
        if not node.folder:
            node.data, node.writes = _written(node.data, node.writes), []

    def cut(self, rng: random.Random, folder: Path) -> None:
        """Make `folder` what is found after a cut now."""
        likely = rng.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        entries: dict[int, dict[str, Node]] = {}
        if self.ordered:
            kept = self.pending[: rng.randint(0, len(self.pending))]
        else:
            kept = [c for c in self.pending if rng.random() < likely]
        for change in kept:
            _apply(change, entries)
        self._put(self.root, folder, entries, rng, rng.choice((0.0, 0.5, 1.0)))

    def _put(
        self, node: Node, path: Path, entries: dict[int, dict[str, Node]], rng: random.Random, likely: float
    ) -> None:
        if not node.folder:
            path.write_bytes(_written(node.data, [w for w in node.writes if rng.random() < likely], rng))
            return
        path.mkdir()
        for name, inner in entries.get(id(node), node.entries).items():
            self._put(inner, path / name, entries, rng, likely)


def _apply(change: Change, copies: dict[int, dict[str, Node]] | None = None) -> None:
    """Carry out a change on the disk's entries, or on copies of them by their folder's id."""
    for folder, name, node in change:
        entries = folder.entries if copies is None else copies.setdefault(id(folder), dict(folder.entries))
        entries.pop(name, None)
        if node is not None:
            entries[name] = node


def _written(data: bytes, writes: list[tuple[int, bytes | None]], rng: random.Random | None = None) -> bytes:
    """A file's bytes after writes; with a generator, some of them are there in part."""
    made = bytearray(data)
    for at, piece in writes:
        if piece is None:
            del made[at:]
            made.extend(bytes(at - len(made)))
            continue
        length = len(piece)
        if rng is not None and rng.random() < 0.25:
            keep = rng.randrange(length + 1)
            piece = piece[:keep] + bytes(length - keep) * rng.randrange(2)
        made.extend(bytes(max(0, at - len(made))))
        made[at : at + len(piece)] = piece
    return bytes(made)


# ---- planted faults ------------------------------------------------------------------------------------------------


def _forgets(kind: Callable[[int], bool]) -> None:
    """No fsync of a kind of file."""
    real = os.fsync
    os.fsync = lambda fd: None if kind(os.fstat(fd).st_mode) else real(fd)  # type: ignore[assignment,arg-type]


def _late() -> None:
    """Whatever a checkpoint needs is synced after it was renamed, and older ones removed."""
    real, save, waiting = os.fsync, Checkpoints.save, list[int]()

    def later(self: Checkpoints, *args: Any) -> Path:
        os.fsync = lambda fd: waiting.append(os.dup(fd))  # type: ignore[assignment,arg-type]
        try:
            return save(self, *args)
        finally:
            os.fsync = real
            while waiting:
                real(waiting[0])
                os.close(waiting.pop(0))

    Checkpoints.save = later  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "files": lambda: _forgets(stat.S_ISREG),
    "folders": lambda: _forgets(stat.S_ISDIR),
    "late": _late,
}


# ---- the campaign --------------------------------------------------------------------------------------------------


class Record:
    """A straight run, and the calls of one that was killed on its way."""

    def __init__(self, folder: Path, plant: str = "", seed: int = 0) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        warm(folder)
        self.recipe = recipe(folder / "own")
        self.modules = load_files((self.recipe,))
        self._saved, self.plant = folder / "saved", PLANTS[plant]
        straight = folder / "straight"
        told = train(command(self.recipe, straight, "--keep", "99", "--save-every", "1"))
        assert told.status == 0, told.said
        store = Checkpoints(straight)
        self.states = {step: state(store.load(step)) for step in store.steps()}
        self.log = [timeless(line) for line in read(straight / "log.jsonl")]
        self.pictures = {p.name: p.read_bytes() for p in (straight / "samples").iterdir()}
        self.snapshots = {s: (straight / "snapshots" / f"{s:08d}.safetensors").read_bytes()
                          for s in Snapshots(straight).steps()}  # fmt: skip
        whole, saves = self._life(at=-1)
        shutil.rmtree(self.home / "run")
        inside = [i for i, c in enumerate(whole, 1) if c.name == "rename" and c.paths[1].endswith("/00000002")]
        rng = random.Random(seed)
        self.lives: list[list[Call]] = []
        self.saves: dict[int, int] = {}
        for at in (rng.randint(2, min(saves)), inside[0] - rng.randint(0, 30), -1):
            calls, saved = self._life(at)
            self.saves |= {sum(map(len, self.lives)) + n: step for n, step in saved.items()}
            self.lives.append(calls)
        self.end = image(self.home / "run")

    def _life(self, at: int) -> tuple[list[Call], dict[int, int]]:
        """The calls of a life, and after how many of them which steps had been saved."""
        counters = Counters()
        self._saved.write_text("")

        def before() -> None:
            self.plant()
            real = Checkpoints.save

            def noting(store: Checkpoints, step: int, *rest: Any) -> Path:
                made = real(store, step, *rest)
                with self._saved.open("a") as file:
                    file.write(f"{counters.calls} {step}\n")
                return made

            Checkpoints.save = noting  # type: ignore[method-assign,assignment]
            trap.arm(self.home, trace=trace.fileno(), counters=counters, at=at, how=How.KILL)

        with tempfile.TemporaryFile() as trace:
            told = train(self.words(self.home / "run"), before)
            assert told.status == (-9 if at >= 0 else 0), told
            trace.seek(0)
            calls = list(trap.recorded(trace.read()))
        return calls, {int(a): int(b) for a, b in map(str.split, self._saved.read_text().splitlines())}

    def words(self, run: Path) -> list[str]:
        """The command."""
        return command(self.recipe, run, "--save-every", "1")

    def read(self, run: Path, saved: int) -> list[str]:
        """What is wrong with a cut run of which step `saved` had been saved."""
        said: list[str] = []
        found = Checkpoints(run).newest(said.append)
        if found is None or found[0] < saved:
            return [f"step {saved} is lost; there is {None if found is None else found[0]} ({said})"]
        step, wrong = found[0], []
        if state(found[1]) != self.states[step]:
            wrong.append(f"step {step} is another")
        mg.load(run, modules=self.modules)
        if [timeless(x) for x in read(run / "log.jsonl") if x["step"] <= step] != [
            x for x in self.log if x["step"] <= step
        ]:
            wrong.append("the log is another")
        for name, picture in self.pictures.items():
            if int(name[:8]) <= step and (run / "samples" / name).read_bytes() != picture:
                wrong.append(f"{name} is another")
        for at, snapshot in self.snapshots.items():
            if at <= step and (run / "snapshots" / f"{at:08d}.safetensors").read_bytes() != snapshot:
                wrong.append(f"the snapshot of {at} is another")
        return wrong

    def cuts(self, n: int, seed: int, continued: float) -> dict[str, int]:
        """At least `n` cuts, every prefix at least once; what was found."""
        rng = random.Random(seed)
        total = sum(map(len, self.lives))
        each = -(-n // total)
        found = {"calls": total, "cuts": 0, "before_first_save": 0, "continued": 0, "unreadable": 0, "different": 0}
        disks = [Disk(self.home, ordered) for ordered in (False, True)]
        saved, done = -1, 0
        share = min(1.0, n / total)  # fewer than there are prefixes: a sample of them
        for calls in self.lives:
            for disk in disks:
                disk.open.clear()
            for call in calls:
                for disk in disks:
                    disk.play(call)
                done += 1
                saved = self.saves.get(done, saved)
                if rng.random() < share:
                    for k in range(each):
                        self._cut(disks[(done + k) % 2], rng, saved, rng.random() < continued, found, done)
        return found

    def _cut(self, disk: Disk, rng: random.Random, saved: int, go_on: bool, found: dict[str, int], at: int) -> None:
        home = self.folder / "after"
        shutil.rmtree(home, ignore_errors=True)
        disk.cut(rng, home)
        run = home / "run"
        found["cuts"] += 1
        found["before_first_save"] += saved < 0
        wrong = []
        try:
            if saved >= 0:
                wrong = self.read(run, saved)
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"]
        if not wrong and go_on:
            found["continued"] += 1
            told = train(self.words(run))
            if told.status:
                wrong = [f"status {told.status}: {told.said[-500:]}"]
            elif other := differences(self.end, image(run)):
                found["different"] += 1
                print(f"cut at {at}: another end: {', '.join(other)}", file=sys.stderr, flush=True)
        found["unreadable"] += bool(wrong)
        for text in wrong:
            model = "journalled" if disk.ordered else "unordered"
            print(f"cut at {at} ({model}, step {saved} saved): {text}", file=sys.stderr, flush=True)


def campaign(n: int, folder: Path, *, plant: str = "", seed: int = 0, continued: float = 0.02) -> dict[str, int]:
    """Cut the power `n` times; continued: the share of cut runs that are trained to their end."""
    return Record(folder, plant, seed).cuts(n, seed, continued)


if __name__ == "__main__":
    if reason := trap.missing():
        sys.exit(reason)
    told = asked("cuts", n=10_000, seed=0, continued=0.02, plant="")
    found = campaign(told.n, Path(told.folder), plant=told.plant, seed=told.seed, continued=told.continued)
    tell(found, told.record)
