"""What is said of pictures besides their pixels, from the first of these that is there:

    a table          metadata.csv or metadata.jsonl at the top, or another that is named: file_name, label, caption;
                     every other column of numbers is a condition
    files beside it  NAME.cls (a label), NAME.txt (a caption), NAME.json (an object with the table's columns)

A CSV has commas, or the ; or tab of spreadsheets. Capitals in these names, and space around what is said, mean nothing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, unknown
from .decode import Bad
from .files import Files

TABLES = ("metadata.csv", "metadata.jsonl")
_TAKEN = ("t", "r", "null", "source", "text", "text_mask")  # conditions of nets' own
_COLUMNS = {"file_name": "file_name", "file": "file_name", "label": "label", "caption": "caption", "text": "caption"}
_LARGEST = float(np.finfo(np.float32).max)
_NAMED = 12  # columns that are named in one message


class Said(NamedTuple):
    """What is said of one picture. columns: all else that a table says."""

    label: str | None = None
    caption: str | None = None
    columns: Mapping[str, Any] = {}


def told(
    files: Files, there: Mapping[str, int], names: Sequence[str], table: Path | None = None
) -> tuple[dict[str, Said], set[str]]:
    """What is said of each of the pictures `names`, and which of the files that are `there` said it.

    table: the file to ask instead. Raises UserError where what is said does not hold together.
    """
    if table is not None:
        if not table.is_file():
            raise UserError(f"The table {str(table)!r} does not exist: give the path of a CSV or JSON-lines file.")
        inside = {n for n in there if n.endswith(table.name) and (files.path / n).resolve() == table.resolve()}
        return _table(table.read_bytes(), str(table), "", names), inside
    common = common_folder([tuple(n.split("/")[:-1]) for n in names])
    bases = ["".join(f"{f}/" for f in common[:k]) for k in range(len(common) + 1)]
    found = sorted(n for n in there if posixpath.basename(n).lower() in TABLES and n[: n.rfind("/") + 1] in bases)
    if len(found) > 1:
        raise UserError(f"There are both {' and '.join(found)}: keep one of these tables.")
    if found:
        return _table(_read(files, found[0]), found[0], found[0][: found[0].rfind("/") + 1], names), set(found)
    used: set[str] = set()
    return {n: _beside(files, there, n, used) for n in names}, used


def common_folder(folders: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    """What all of the folders begin with."""
    first, last = min(folders), max(folders)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _read(files: Files, name: str) -> bytes:
    try:
        return files.read(name)
    except Bad as bad:
        raise UserError(
            f"{name!r} in {str(files.path)!r} should say something of the pictures, but {bad}: mend it or take it away."
        ) from None


def _beside(files: Files, there: Mapping[str, int], name: str, used: set[str]) -> Said:
    stem = name.rpartition(".")[0]
    said: dict[str, Any] = {}
    if (page := f"{stem}.json") in there:
        said = _named(_object(_read(files, page), repr(page)), repr(page))
        used.add(page)
    for page, column in ((f"{stem}.cls", "label"), (f"{stem}.txt", "caption")):
        if page in there:
            said[column] = _read(files, page).decode("utf-8", "replace")
            used.add(page)
    return _row(said)


def _row(columns: Mapping[str, Any]) -> Said:
    label, caption = (None if columns.get(c) is None else str(columns[c]).strip() for c in ("label", "caption"))
    return Said(label or None, caption, {k: v for k, v in columns.items() if k not in _COLUMNS.values()})


# ---- tables --------------------------------------------------------------------------------------------------------


def _table(content: bytes, where: str, base: str, names: Sequence[str]) -> dict[str, Said]:
    """What a table in the folder `base` says of each picture."""
    said: dict[str, Said] = {}
    known = set(names)
    for number, columns in _rows(content, where):
        given = columns.get("file_name")
        if not isinstance(given, str) or not given.strip():
            shown = ", ".join(map(repr, list(columns)[:_NAMED])) or "nothing"
            raise UserError(
                f"Line {number} of {where!r} has no file_name (it has {shown}): give each picture's path in a column of"
                " that name."
            )
        name = base + given if base + given in known else posixpath.normpath(base + given.strip().replace("\\", "/"))
        if name in said:
            raise UserError(f"{where!r} has two lines of {name!r}, the second is {number}: keep one.")
        if name not in known:
            raise unknown(f"picture (line {number} of {where!r})", name, names)
        said[name] = _row(columns)
    for name in names:
        if name not in said:
            raise UserError(f"{where!r} has no line of {name!r}: add one, or take the picture out of the folder.")
    return said


def _rows(content: bytes, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, columns) of a CSV or JSON-lines table."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where!r} is not UTF-8: save it as UTF-8.") from None
    if not where.lower().endswith((".csv", ".tsv")):
        for i, row in enumerate(text.split("\n"), 1):
            if row.strip():
                yield i, _named(_object(row, f"Line {i} of {where!r}"), f"Line {i} of {where!r}")
        return
    line = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        header = next(reader, [])
        _named(dict.fromkeys(header), repr(where), header)
        for fields in reader:
            line = reader.line_num
            if fields and len(fields) != len(header):
                raise UserError(f"Line {line} of {where!r} has not as many fields as the first line.")
            if fields:
                yield line, _named(dict(zip(header, fields, strict=True)), repr(where))
    except csv.Error as error:
        raise UserError(f"Line {line} of {where!r} or the next is no CSV ({error}): write it again.") from None


def _delimiter(text: str) -> str:
    """The comma, unless only by another the first line has a column of paths."""
    first = text.splitlines()[:1]
    return next((d for d in ",;\t" for row in csv.reader(first, delimiter=d) if "file_name" in map(_name, row)), ",")


def _name(column: str) -> str:
    return _COLUMNS.get(column.strip().lower(), column.strip())


def _named(columns: Mapping[str, Any], where: str, names: Iterable[str] = ()) -> dict[str, Any]:
    """Columns by our names for them, less one without a name, as pandas writes. Raises UserError where two have one.

    names: of all columns, where some may be there twice.
    """
    found: set[str] = set()
    for name in filter(None, map(_name, names or columns)):
        if name in found and name in _COLUMNS.values():
            raise UserError(f"{where} has two columns of the {name}: keep one of them.")
        found.add(name)
    return {_name(column): value for column, value in columns.items() if _name(column)}


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f'{where} is no JSON object: write one, such as {{"file_name": "a.png", "label": "cat"}}.')
    return found


# ---- of all pictures -----------------------------------------------------------------------------------------------


def classes_of(said: Mapping[str, Said]) -> list[str]:
    """The classes, by number where all are numbers. Raises UserError where only some have a label, or a caption."""
    for what in ("label", "caption"):
        have = {name: getattr(s, what) is not None for name, s in said.items()}
        if any(have.values()) and not all(have.values()):
            some, none = (next(n for n, h in have.items() if h is wanted) for wanted in (True, False))
            raise UserError(f"{some!r} has a {what} and {none!r} has none: give one to every picture, or to none.")
    labels = {s.label for s in said.values() if s.label is not None}
    numbered = all(label.isdecimal() for label in labels)
    return sorted(labels, key=lambda k: (int(k), k) if numbered else (0, k))


def conditions_of(said: Mapping[str, Said]) -> dict[str, dict[str, float]]:
    """The numbers said of every picture, by column. A column that is no number everywhere is left out, aloud.

    Raises UserError for a column whose name is taken.
    """
    found: dict[str, dict[str, float]] = {}
    for column in sorted({c for s in said.values() for c in s.columns}):
        if column in _TAKEN:
            raise UserError(f"The column {column!r} has a name that nets use themselves: give it another one.")
        values = {name: number_of(s.columns.get(column)) for name, s in said.items()}
        wrong = next((name for name, v in values.items() if not math.isfinite(v)), None)
        if wrong is None:
            found[column] = values
        else:
            what = f"{said[wrong].columns.get(column)!r:.60}"
            why = "no number, or one beyond single precision"
            print(f"The column {column!r} is left out: for {wrong!r} it is {what}, {why}.", file=sys.stderr)
    return found


def number_of(value: Any) -> float:
    """A value as a number; NaN where it is none, or beyond what single precision holds."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if abs(found) <= _LARGEST else math.nan
