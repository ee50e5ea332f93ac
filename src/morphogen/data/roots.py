"""Where data files are: a folder that the user gives, the one MORPHOGEN_DATA names, or the cache folder.

The cache folder is MORPHOGEN_CACHE, else `$XDG_CACHE_HOME/morphogen`, else `~/.cache/morphogen`; data sets lie in its
`data/`, what was decoded from them once, in its `decoded/`, the indices of pictures in its `indexed/`, what torch
compiles in its `compiled/`, and trials, while they last, in its `trials/`. Nothing here downloads anything: `fetch`
does, when it is asked to.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from ..errors import UserError


def cache() -> Path:
    """The folder for files that can be made again."""
    if chosen := os.environ.get("MORPHOGEN_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "morphogen"


def keep(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file, whole or not at all: `write` is given it open, under another name until it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def roots(root: str | Path | None = None) -> list[Path]:
    """The folders to search, in order. A `root` that is given is the only one: another's files would be a surprise."""
    if root is not None:
        return [Path(root).expanduser()]
    given = os.environ.get("MORPHOGEN_DATA")
    return [*([Path(given).expanduser()] if given else []), cache() / "data"]


@runtime_checkable
class InFiles(Protocol):
    """`Items` that are read from files of the user's."""

    def where(self) -> tuple[str, Path]:
        """The form that the files have, and their folder; nothing is read. UserError where they are not found."""
        ...


def find(
    name: str,
    forms: Mapping[str, Sequence[str]],
    *,
    root: str | Path | None = None,
    folders: Sequence[str] = (),
    bare: bool = True,
    advice: str = "",
) -> tuple[str, Path]:
    """The first form of a data set all of whose files lie together in one folder, and that folder.

    forms: name of a form to its file names; of two in one folder the earlier wins. folders: where in a root the files
    may be, besides `name` and, if `bare`, the root itself. advice: what to do when there are none.
    Raises UserError naming the folders searched and the files wanted.
    """
    searched = [base / sub for base in roots(root) for sub in (name, *folders, *([""] if bare else []))]
    for folder in searched:
        for form, files in forms.items():
            if all((folder / file).is_file() for file in files):
                return form, folder
    wanted = " or ".join(_some(files) for files in forms.values())
    where = ", ".join(str(folder) for folder in searched)
    then = "put them into one of these folders, or name another with --data-root or MORPHOGEN_DATA"
    raise UserError(f"The data set {name!r} was not found: none of {where} holds {wanted}; {advice}{then}.")


def _some(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} … {files[-1]} ({len(files)} files)"
