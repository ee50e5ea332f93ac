"""Lives of a run: commands in forked children that share what was imported once, and what two runs have in common."""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from morphogen.checkpoint import Checkpoints, digest, pack
from morphogen.cli import main
from morphogen.cli.receipts import machine, now
from morphogen.log import read

WHOLE = Path(__file__).with_name("whole.py")
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
_CLOCK = {"seconds", "steps_per_s", "at_seconds", "began", "ended", "command", "continued_on"}


class Life(NamedTuple):
    """How a command ended: its exit status (negative: the signal that killed it), and what it said on stderr."""

    status: int
    said: str


def forked(act: Callable[[], int]) -> Life:
    """The status that `act` returns in a child. An exception is status 70, its traceback said."""
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                sys.stderr = open(told.fileno(), "w", buffering=1, closefd=False)  # noqa: SIM115
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
                os.dup2(told.fileno(), 2)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                status = act()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        told.seek(0)
        return Life(os.waitstatus_to_exitcode(ended), told.read().decode(errors="replace"))


def recipe(folder: Path) -> Path:
    """A copy of `whole.py` and its asset in a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("one two", encoding="utf-8")
    return Path(shutil.copyfile(WHOLE, folder / "whole.py"))


def command(recipe: Path, run: Path, *flags: str) -> list[str]:
    """The words of a command that trains the recipe into `run`, or goes on with it."""
    return ["train", f"{recipe}:whole", "--run", str(run), "--device", "cpu", *flags]


def train(words: list[str], before: Callable[[], None] = lambda: None) -> Life:
    """Run a command line in a child, after `before`."""

    def act() -> int:
        before()
        return main(words)

    return forked(act)


def warm(folder: Path) -> None:
    """Import all that a life needs, so that no child does: a life in this very process."""
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert main(command(recipe(folder / "warm"), folder / "warm" / "run")) == 0


def image(run: Path) -> dict[str, Any]:
    """All that a finished run holds but its clock's times: every file's hash, and checkpoints as what they load to."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if name == "log.jsonl":
            found[name] = [timeless(line) for line in read(path)]
        elif name == "result.json":
            found[name] = timeless(json.loads(path.read_bytes()))
        elif name not in (".lock", "report.html") and not name.startswith("checkpoints/"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    store = Checkpoints(run)
    found["step"] = store.steps()[-1]  # one more than are kept may be there: nothing was removed in vain
    found["last"] = state(store.load(store.steps()[-1]))
    return found


def state(parts: dict[str, Any]) -> str:
    """Hash of everything in a checkpoint but its clock's times."""
    tensors: dict[str, Any] = {}
    skeleton = pack(timeless(parts), tensors)
    return hashlib.sha256(f"{digest(tensors)} {json.dumps(skeleton)}".encode()).hexdigest()


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in _CLOCK}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The names of what differs between two images."""
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def asked(tool: str, **own: Any) -> argparse.Namespace:
    """What a campaign was asked for on its command line: its own flags with their defaults, and --record.

    Everything then runs in one thread, with no data of the user's, and in memory where there is a disk of memory.
    """
    import torch

    parser = argparse.ArgumentParser(prog=f"python -m tests.system.{tool}")
    for name, default in own.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--record", default="", metavar="NAME", help="write benchmarks/results/NAME.json")
    told = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.pop("MORPHOGEN_DATA", None)
    shared = Path("/dev/shm")
    told.folder = tempfile.mkdtemp(prefix="morphogen-", dir=shared if shared.is_dir() else None)
    atexit.register(shutil.rmtree, told.folder, ignore_errors=True)
    return told


def tell(found: dict[str, Any], record: str) -> None:
    """Print what a campaign found as one line, and record it where that was asked for."""
    print(json.dumps(found), flush=True)
    if record:
        page = {"command": "python " + shlex.join(["-m", *_called()]), "values": found, "date": now()[:10]}
        text = json.dumps(page | {"machine": machine("cpu")}, indent=1) + "\n"
        (RESULTS / f"{record}.json").write_text(text, encoding="utf-8")


def _called() -> list[str]:
    return [f"tests.system.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
