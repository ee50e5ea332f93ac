"""The index of a user's pictures: which there are, how large, of what content, and what is said of each.

A line of JSON a picture, in the order of their names, after a line of the classes; kept as an `Asset`, so that a run
holds a copy, and a file that changed later is named when the run is continued. Nothing is decoded here: of each file
the bytes are hashed and the header is read.

What is said of a picture, from the first of these that says anything of a label:
    a table          metadata.csv or metadata.jsonl at the top, or another that is named: file_name, label, caption;
                     every other column of numbers is a condition
    files beside it  NAME.cls (a label), NAME.txt (a caption), NAME.json (an object with the table's columns)
    its folder       the first one below what all pictures have in common; folders further down say nothing
Folders train/ and test/ (or val/) at the top are the two parts; else one picture in twenty is held out, by its name.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from ..errors import UserError, unknown
from ..spec import Asset
from .decode import PIXELS, Bad, measure
from .files import Files, opened
from .roots import cache, keep

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TABLES = ("metadata.csv", "metadata.jsonl")
_TEST = ("test", "val", "valid", "validation")
_OPENS = 178_956_970  # pixels: of more Pillow opens no file
_SHARE = 20  # one picture in so many is held out
_TAKEN = ("t", "r", "null", "source", "text", "text_mask")  # conditions of nets' own
_LOOKED = {"bytes", "sha256", "height", "width", "bad"}  # what looking at a file tells
_COLUMNS = {"file": "file_name", "text": "caption"}  # other names of columns


class Entry(NamedTuple):
    """A picture. name: its path, "/" between. height, width: as it is looked at. bad: why it cannot be used, or ""."""

    name: str
    bytes: int
    sha256: str
    height: int
    width: int
    part: str
    label: int | None
    caption: str | None
    cond: dict[str, float]
    bad: str


_KINDS = (str, int, str, int, int, str, int | None, str | None, dict, str)


class Listing(NamedTuple):
    """An index that was read. classes: names of the labels. conditions: names of the numbers said of each picture."""

    classes: tuple[str, ...]
    conditions: tuple[str, ...]
    entries: tuple[Entry, ...]


class _Said(NamedTuple):
    label: str | None = None
    caption: str | None = None
    columns: Mapping[str, Any] = {}


def index(folder: str | Path, *, table: str | Path | None = None, pixels: int = PIXELS) -> Asset:
    """Read what pictures a folder, a zip or WebDataset's tar shards hold, and write that down; the file written.

    table: a CSV or JSON-lines file of labels, captions and conditions (default: metadata.csv or .jsonl at the top).
    pixels: a picture of more is bad, and never decoded.
    Raises UserError where there are no pictures, or what is said of them does not hold together.
    """
    files = opened(folder)
    there = files.names()
    names = sorted(n for n in there if n.lower().endswith(SUFFIXES))
    if not 1 <= pixels <= _OPENS:
        raise UserError(f"The cap of {pixels:,} pixels is out of range: give 1 to {_OPENS:,}, the most that is opened.")
    if not names:
        others = f" (but {len(there)} other files, such as {min(there)!r})" if there else ""
        raise UserError(f"There is no PNG, JPEG or WebP picture in {str(folder)!r}{others}: name the folder of yours.")
    parts, places = _places([_inside(n) for n in names])
    rows = _table(files, there, None if table is None else Path(table), names)
    said = rows or {n: _beside(files, there, n) for n in names}
    if not any(s.label is not None for s in said.values()):
        _sorted(names, places)
        said = {n: said[n]._replace(label=place) for n, place in zip(names, places, strict=True)}
    classes, conditions = _classes(said), _conditions(said)
    number = {name: k for k, name in enumerate(classes)}
    seen = _seen(files, names, there, pixels)
    entries = [
        Entry(
            name=name,
            part=part,
            label=None if said[name].label is None else number[str(said[name].label)],
            caption=said[name].caption,
            cond={column: values[name] for column, values in conditions.items()},
            **seen[name],
        )
        for name, part in zip(names, parts, strict=True)
    ]
    lines = [{"classes": classes, "conditions": list(conditions)}, *(e._asdict() for e in entries)]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = cache() / "indexed" / f"{hashlib.sha256(text).hexdigest()[:16]}.jsonl"
    keep(path, lambda file: file.write(text))
    return Asset(path)


def read(asset: Asset) -> Listing:
    """The index of a file that `index` wrote. Raises UserError on another file."""
    try:
        head, *lines = map(json.loads, asset.path.read_text(encoding="utf-8").splitlines())
        listing = Listing(tuple(head["classes"]), tuple(head["conditions"]), tuple(Entry(**line) for line in lines))
        if not all(isinstance(name, str) for name in (*listing.classes, *listing.conditions)):
            raise TypeError("names that are no strings")
        for entry in listing.entries:
            _check(entry, listing)
        return listing
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{str(asset.path)!r} is no index of pictures: make one with data.index(FOLDER).") from error


def _check(entry: Entry, listing: Listing) -> None:
    """Raise TypeError or ValueError unless an entry is one that `index` could have written."""
    if not all(isinstance(value, kind) for value, kind in zip(entry, _KINDS, strict=True)):
        raise TypeError("a value of another type")
    if entry.label is not None and not 0 <= entry.label < len(listing.classes):
        raise ValueError("a label without a class")
    if not 0 <= entry.height * entry.width <= _OPENS or min(entry.height, entry.width) < 0:
        raise ValueError("a size that no picture has")
    if set(entry.cond) != set(listing.conditions):
        raise ValueError("other conditions")
    if not all(isinstance(v, float) and math.isfinite(v) for v in entry.cond.values()):
        raise ValueError("a condition that is no number, or an integer of any size")


# ---- what is said of a picture -------------------------------------------------------------------------------------


def _inside(name: str) -> str:
    """The path within a shard."""
    return name.rpartition(".tar/")[2]


def _places(names: Sequence[str]) -> tuple[list[str], list[str | None]]:
    """The part of each picture, and the class that its folder says, if any."""
    folders = [tuple(n.split("/")[:-1]) for n in names]
    common = len(_common(folders))
    folders = [f[common:] for f in folders]
    tops = {f[0] if f else "" for f in folders}
    held = tops & set(_TEST)
    if "train" in tops and held and tops <= {"train", *_TEST}:
        if len(held) > 1:
            raise UserError(f"Both {' and '.join(sorted(held))} lie beside train: keep one, to be held out.")
        parts = ["train" if f[0] == "train" else "test" for f in folders]
        folders = [f[1:] for f in folders]
    else:
        parts = ["test" if _drawn(n) % _SHARE == 0 else "train" for n in names]
        if "train" not in parts:  # one picture, or two
            parts = ["train"] * len(parts)
    return parts, [f[0] if f else None for f in folders]


def _sorted(names: Sequence[str], places: Sequence[str | None]) -> None:
    """Raise UserError where some pictures lie in folders and others beside these."""
    if None in places and any(places):
        alone = names[places.index(None)]
        other = next(n for n, place in zip(names, places, strict=True) if place)
        raise UserError(
            f"{alone!r} lies beside folders of pictures (such as that of {other!r}), so it has no class: move it into"
            " one of them, or name labels in a table."
        )


def _common(folders: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """What all of the folders begin with."""
    first, last = min(folders), max(folders)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _drawn(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "little")


def _beside(files: Files, there: Mapping[str, int], name: str) -> _Said:
    stem = name.rpartition(".")[0]
    said: dict[str, Any] = {}
    if f"{stem}.json" in there:
        said = _object(files.read(f"{stem}.json"), repr(f"{stem}.json"))
    for suffix, column in ((".cls", "label"), (".txt", "caption")):
        if stem + suffix in there:
            said[column] = files.read(stem + suffix).decode("utf-8", "replace").strip()
    return _row(said)


def _row(columns: Mapping[str, Any]) -> _Said:
    named = {_COLUMNS.get(k, k): v for k, v in columns.items()}
    label, caption = named.pop("label", None), named.pop("caption", None)
    named.pop("file_name", None)
    return _Said(None if label in (None, "") else str(label), None if caption is None else str(caption), named)


def _table(files: Files, there: Mapping[str, int], path: Path | None, names: Sequence[str]) -> dict[str, _Said]:
    """What a table says of each picture; {} where there is none."""
    base = ""
    if path is None:
        common = _common([tuple(n.split("/")[:-1]) for n in names])
        bases = ["".join(f"{f}/" for f in common[:k]) for k in range(len(common) + 1)]
        found = [b + t for b in bases for t in TABLES if b + t in there]
        if not found:
            return {}
        if len(found) > 1:
            raise UserError(f"There are both {' and '.join(found)}: keep one of these tables.")
        where, content = found[0], files.read(found[0])
        base = where.rpartition("/")[0] + "/" if "/" in where else ""
    elif path.is_file():
        where, content = str(path), path.read_bytes()
    else:
        raise UserError(f"The table {str(path)!r} does not exist: give the path of a CSV or JSON-lines file.")
    said: dict[str, _Said] = {}
    known = set(names)
    for number, columns in _rows(content, where):
        name = columns.get("file_name", columns.get("file"))
        if not isinstance(name, str):
            raise UserError(f"Line {number} of {where!r} has no file_name: give each picture's path in that column.")
        name = base + name
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
    if where.lower().endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"Line {reader.line_num} of {where!r} has not as many fields as the first line.")
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"Line {reader.line_num} of {where!r} is no CSV ({error}): write it again.") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _object(line, f"Line {number} of {where!r}")


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f'{where} is no JSON object: write one, such as {{"file_name": "a.png", "label": "cat"}}.')
    return found


def _classes(said: Mapping[str, _Said]) -> list[str]:
    """The classes, by number where all are numbers. Raises UserError where only some have a label, or a caption."""
    for what in ("label", "caption"):
        have = {name: getattr(s, what) is not None for name, s in said.items()}
        if any(have.values()) and not all(have.values()):
            some, none = (next(n for n, h in have.items() if h is wanted) for wanted in (True, False))
            raise UserError(f"{some!r} has a {what} and {none!r} has none: give one to every picture, or to none.")
    labels = {s.label for s in said.values() if s.label is not None}
    numbered = all(label.isdecimal() for label in labels)
    return sorted(labels, key=lambda k: (int(k), k) if numbered else (0, k))


def _conditions(said: Mapping[str, _Said]) -> dict[str, dict[str, float]]:
    """The numbers said of every picture, by column. A column that is no number everywhere is left out, aloud.

    Raises UserError for a column whose name is taken.
    """
    found: dict[str, dict[str, float]] = {}
    for column in sorted({c for s in said.values() for c in s.columns}):
        if column in _TAKEN:
            raise UserError(f"The column {column!r} has a name that nets use themselves: give it another one.")
        values = {name: _number(s.columns.get(column)) for name, s in said.items()}
        wrong = next((name for name, v in values.items() if not math.isfinite(v)), None)
        if wrong is None:
            found[column] = values
        else:
            what = f"{said[wrong].columns.get(column)!r:.60}"
            print(f"The column {column!r} is left out: for {wrong!r} it is {what}, no number.", file=sys.stderr)
    return found


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


# ---- what the files are --------------------------------------------------------------------------------------------


def _seen(files: Files, names: Sequence[str], there: Mapping[str, int], pixels: int) -> dict[str, dict[str, Any]]:
    """Size, hash and header of each file. One whose stamp is as when it was last read is not read again."""
    place = hashlib.sha256(f"{files.path.resolve()}\0{pixels}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    memory = cache() / "indexed" / f"{place}.seen.json"
    stamps = {n: files.stamp(n) for n in names}
    seen: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged
        before = json.loads(memory.read_bytes())
        seen = {n: found for n, (stamp, found) in before.items() if stamp == stamps.get(n) and set(found) == _LOOKED}
    new = [n for n in names if n not in seen]

    def look(name: str) -> dict[str, Any]:
        size = {"bytes": there[name], "sha256": "", "height": 0, "width": 0, "bad": ""}
        try:
            data = files.read(name)
            size |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            size["height"], size["width"] = measure(data, pixels)
        except Bad as bad:
            size["bad"] = str(bad)
        return size

    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a cap of our own is kept, and it says more
        looked = tqdm(pool.map(look, new), "Indexing", len(new), unit=" pictures", mininterval=pace(), disable=not new)
        seen |= dict(zip(new, looked, strict=True))
    remembered = json.dumps({n: [stamps[n], seen[n]] for n in names if stamps[n] is not None}).encode()
    keep(memory, lambda file: file.write(remembered))
    return seen


def pace() -> float:
    """Seconds between two states of a progress bar: few lines where it is no terminal's."""
    return 0.1 if sys.stderr.isatty() else 10.0
