"""What a verb is given beside its flags."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .flags import Flag
from .line import Given, finish
from .tell import Tell


class Context(NamedTuple):
    """How to answer, what was typed, and the flags that the verb itself does not know."""

    tell: Tell
    typed: list[str]
    command: str
    rest: Given
    flags: Sequence[Flag]

    def options(self, flags: Sequence[Flag], owner: str) -> dict[str, Any]:
        """The values of the remaining flags as those of `owner` (a recipe, a model). UserError on one unknown."""
        return finish(self.rest, flags, owner, self.command, self.flags)


@contextlib.contextmanager
def data_root(folder: Path | None) -> Iterator[None]:
    """Look for data sets in `folder` first, for the time of a command."""
    from ..errors import UserError

    before = os.environ.get("MORPHOGEN_DATA")
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--data-root {str(folder)!r} is no folder: name the one that holds your data sets.")
        os.environ["MORPHOGEN_DATA"] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop("MORPHOGEN_DATA") if before is None else os.environ.update(MORPHOGEN_DATA=before)
