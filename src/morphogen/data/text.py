"""Text as a `Space`: what a model of tokens draws, as people read it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core import Tokens
from ..errors import UserError
from ..spec import Remembers
from .space import Picture, labels

_PAPER, _INK, _LINE = (250, 250, 248), (40, 40, 48), (205, 205, 200)
_WIDE, _TALL, _MOST = 88, 14, 24  # characters of a line, pixels between lines, lines of a sample that are shown


@runtime_checkable
class Spells(Protocol):
    """Tokens that are of bytes where they are `exact`."""

    exact: bool

    def decode_bytes(self, ids: Any) -> bytes:
        """The bytes of tokens (n,), special ones left out."""
        ...


class Text(Remembers):
    """The `Space` of texts: x (length,), tokens; a text of fewer is followed by what ends it.

    tokens: between text and integers. length: of x. end: the special token that ends a text; what follows it is no part
    of it. classes: names of the labels. Probabilities are of tokens, so there is no cell: volume = 0.
    """

    def __init__(self, tokens: Tokens, length: int, *, end: str | None = None, classes: Sequence[str] = ()) -> None:
        if length < 1:
            raise UserError(f"Texts of {length} tokens hold nothing: give length=1 or more.")
        self.tokens, self.length, self.end, self.classes = tokens, length, end, tuple(classes)
        self._end = None if end is None else tokens.special(end)
        self.shape: tuple[int, ...] = (length,)
        self.volume = 0.0

    def encode(self, thing: Any) -> Tensor:
        """The tokens (n,) int64 of a text, such as a prompt. UserError where they are more than `length`."""
        if not isinstance(thing, str):
            raise UserError(f"A text is a string, and this is a {type(thing).__name__}: give one.")
        ids = torch.from_numpy(self.tokens.encode(thing).astype(np.int64))
        if len(ids) > self.length:
            raise UserError(f"This text has {len(ids)} tokens, and there is room for {self.length}: give less of it.")
        return ids

    def decode(self, x: Tensor) -> list[str]:
        """The texts of tokens x (B, T), each up to what ends it."""
        return [self.tokens.decode(self.whole(row)) for row in x.detach().cpu()]

    def whole(self, row: Tensor) -> Any:
        """The tokens of a row (T,) before what ends it."""
        ids = row.numpy()
        if self._end is not None and (ends := np.flatnonzero(ids == self._end)).size:
            ids = ids[: ends[0]]
        return ids

    unit = "character"

    def units(self, row: Tensor) -> int:
        """How many characters are in the tokens (n,) of a row: of one that is cut, the piece with its first byte."""
        if isinstance(self.tokens, Spells) and self.tokens.exact:
            return sum(b & 0xC0 != 0x80 for b in self.tokens.decode_bytes(row.numpy()))  # others go on with one
        return len(self.tokens.decode(row.numpy()))

    def cond(self, n: int, **wishes: Any) -> dict[str, Tensor]:
        """Conditions of n samples, as `Pictures.cond`."""
        return labels(n, self.classes, wishes)

    def show(self, x: Tensor, columns: int | None = None) -> Picture:
        """The texts x (B, T) as one picture, in so many `columns` (by default as many as fit)."""
        return sheet(self.decode(x), columns)

    def save(self, x: Tensor, folder: str | Path) -> list[Path]:
        """Each text of x (B, T) as 00000.txt and so on, in `folder`; the paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, text in enumerate(self.decode(x)):
            paths.append(folder / f"{i:05d}.txt")
            paths[-1].write_bytes(text.encode("utf-8", "replace"))
        return paths


def sheet(texts: Sequence[str], columns: int | None = None) -> Picture:
    """Texts as one picture, in so many `columns` (by default as many as fit). Raises UserError where there is none."""
    if not texts:
        raise UserError("There is no text to show: give at least one.")
    longest = max(len(line) for text in texts for line in [*text.splitlines(), ""])
    columns = columns or max(1, min(6, len(texts), _WIDE // max(8, longest + 2)))
    each = max(8, _WIDE // columns)
    blocks = [_lines(text, each) for text in texts]
    font = ImageFont.load_default(11)
    wide = 8 + each * 7
    rows = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
    tall = [_TALL * max(len(b) for b in row) + 10 for row in rows]
    drawn = Image.new("RGB", (wide * columns, sum(tall)), _PAPER)
    pen, y = ImageDraw.Draw(drawn), 0
    for row, height in zip(rows, tall, strict=True):
        for k, block in enumerate(row):
            for i, line in enumerate(block):
                pen.text((wide * k + 6, y + 5 + _TALL * i), line, _INK, font)
        y += height
        pen.line((0, y - 1, wide * columns, y - 1), _LINE)
    return drawn


def _lines(text: str, width: int) -> list[str]:
    """A text as lines of at most `width` characters, and of so many as are shown."""
    shown = "".join(c if c.isprintable() or c == "\n" else "�" for c in text.expandtabs(4))
    lines = [w for line in shown.split("\n") for w in textwrap.wrap(line, width, drop_whitespace=False) or [""]]
    return lines if len(lines) <= _MOST else [*lines[: _MOST - 1], "…"]
