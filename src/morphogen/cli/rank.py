"""One rank of a training on a cluster, where its actor has started it: `python -m morphogen.cli.rank`.

The first line of its input is the order, as JSON: the words of a command, the text of the user's own files among them,
and what the user typed. When the input ends its actor is gone, and so it goes too: nobody would hear it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path


def order(words: Sequence[str], files: Sequence[Path], typed: Sequence[str]) -> str:
    """The order to carry out `words`, in which each of `files` travels by its text."""
    sent = [{"path": str(path), "text": path.expanduser().read_text(encoding="utf-8")} for path in files]
    return json.dumps({"words": [_marked(w, files) for w in words], "files": sent, "typed": list(typed)})


def _marked(word: str, files: Sequence[Path]) -> str:
    """A word with the user's file that it names (alone, after a "=", before a ":") as its number."""
    flag, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
    path, colon, function = value.partition(":")
    if path and Path(path) in files:
        return f"{flag}{equals}<file {list(files).index(Path(path))}>{colon}{function}"
    return word


def _placed(files: Sequence[dict[str, str]], folder: Path) -> list[Path]:
    """Where the files are here: by their own path where this machine sees them, else written into `folder`."""
    found = []
    for file in files:
        path = Path(file["path"]).expanduser()
        if not path.is_file() or path.read_text(encoding="utf-8") != file["text"]:
            path = folder / path.name
            path.write_text(file["text"], encoding="utf-8")
        found.append(path)
    return found


def _end_with_the_actor() -> None:
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Carry out the order; the exit status."""
    from . import main as command

    line = bytearray()
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or sys.exit("There is no order.")
    page = json.loads(line)
    threading.Thread(target=_end_with_the_actor, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="morphogen-") as folder:
        words = page["words"]
        for i, path in enumerate(_placed(page["files"], Path(folder))):
            words = [word.replace(f"<file {i}>", str(path)) for word in words]
        return command(words, page["typed"])


if __name__ == "__main__":
    sys.exit(main())
