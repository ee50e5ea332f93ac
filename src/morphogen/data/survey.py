"""The user's own pictures as they are read, before anything is trained on them: what they are, and a sheet of some."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import UserError
from .decode import Bad, decode
from .files import opened
from .listing import Entry, Listing, index, read
from .space import Picture, grid

_EDGE = 64  # pixels of a picture on the sheet
_ROWS = 20  # of the sheet at most


class Survey(NamedTuple):
    """counts: pictures of each part, and classes: of each class, less those that are bad: why, by name.

    smallest, median, largest: (height, width) by area, the median of each edge. captions: whether there are some.
    conditions: names of the numbers said of each picture.
    """

    counts: dict[str, int]
    classes: dict[str, int]
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    captions: bool
    conditions: tuple[str, ...]
    bad: dict[str, str]


def survey(folder: str | Path, *, table: str | Path | None = None, columns: int = 12) -> tuple[Survey, Picture]:
    """What `index(folder)` finds, and a sheet: a row of `columns` pictures for each class, cut to squares.

    table: as of `index`. Raises UserError as that does, and where no picture can be used.
    """
    if columns < 1:
        raise UserError(f"A sheet of {columns} columns shows nothing: take 1 or more.")
    listing = read(index(folder, table=table))
    sheet, damaged = _sheet(folder, listing, columns)
    bad = {e.name: e.bad for e in listing.entries if e.bad} | damaged
    good = [e for e in listing.entries if e.name not in bad]
    if sheet is None:
        name, why = next(iter(bad.items()))
        raise UserError(f"No picture in {str(folder)!r} can be used, such as {name!r} ({why}): mend them.")
    by_area = sorted(((e.height, e.width) for e in good), key=lambda s: (s[0] * s[1], s))
    parts, labels = Counter(e.part for e in good), Counter(e.label for e in good)
    height, width = (int(statistics.median(edges)) for edges in zip(*by_area, strict=True))
    found = Survey(
        {part: parts[part] for part in ("train", "test")},
        {name: labels[k] for k, name in enumerate(listing.classes)},
        by_area[0],
        (height, width),
        by_area[-1],
        any(e.caption is not None for e in good),
        listing.conditions,
        bad,
    )
    return found, sheet


def _sheet(folder: str | Path, listing: Listing, columns: int) -> tuple[Picture | None, dict[str, str]]:
    """Pictures in rows, None where there are none; and which of those that were decoded are damaged."""
    files, damaged = opened(folder), dict[str, str]()

    def decoded(entry: Entry) -> Picture | None:
        try:
            pixels = decode(files.read(entry.name), (3, _EDGE, _EDGE))
        except Bad as bad:
            damaged[entry.name] = str(bad)
            return None
        return Image.fromarray(pixels.transpose(1, 2, 0))

    classes = listing.classes[:_ROWS]
    rows: dict[int | None, list[tuple[Picture, str]]] = {k: [] for k in (range(len(classes)) if classes else (None,))}
    room = columns if classes else columns * _ROWS // 2
    for entry in listing.entries:
        row = rows.get(entry.label)
        if row is not None and len(row) < room and not entry.bad and (made := decoded(entry)) is not None:
            row.append((made, Path(entry.name).name if entry.label is None else classes[entry.label]))
    if not any(rows.values()):
        return None, damaged
    blank = (Image.new("RGB", (_EDGE, _EDGE), "white"), "")
    cells = [cell for row in rows.values() for cell in [*row, *[blank] * (-len(row) % columns)]]
    return grid([p for p, _ in cells], columns, [text for _, text in cells]), damaged
