"""The index of a user's pictures: which there are, how large, of what content, and what is said of each.

A line of JSON a picture, in the order of their names, after a line of the classes; kept as an `Asset`, so that a run
holds a copy, and a file that changed later is named when the run is continued. Nothing is decoded here: of each file
the bytes are hashed and the header is read.

What a table says of a picture, or files beside it, is in said.py. Where these name no label its folder does: the first
one below what all pictures have in common; folders further down say nothing. Folders train/ and test/ (or val/) at the
top are the two parts; else one picture in twenty is held out, by its name. What is read of none of these ways is told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from ..spec import Asset
from .decode import PIXELS, SUFFIXES, Bad, measure
from .files import Files, of_one_kind, opened
from .roots import cache, keep
from .said import TABLES, classes_of, common_folder, conditions_of, number_of, told

_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
_TABULAR = (".csv", ".tsv", ".jsonl")  # what may be a table, and was not read as one
_OPENS = 178_956_970  # pixels: of more Pillow opens no file
_SHARE = 20  # one picture in so many is held out
_LOOKED = {"bytes", "sha256", "height", "width", "bad"}  # what looking at a file tells


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


def index(folder: str | Path, *, table: str | Path | None = None, pixels: int = PIXELS) -> Asset:
    """Read what pictures a folder, a zip or WebDataset's tar shards hold, and write that down; the file written.

    table: a CSV or JSON-lines file of labels, captions and conditions (default: metadata.csv or .jsonl at the top).
    pixels: a picture of more is bad, and never decoded.
    Raises UserError where there are no pictures, or what is said of them does not hold together.
    """
    of_one_kind(folder)
    files = opened(folder)
    there = files.names()
    names = sorted(n for n in there if n.lower().endswith(SUFFIXES))
    if not 1 <= pixels <= _OPENS:
        raise UserError(f"The cap of {pixels:,} pixels is out of range: give 1 to {_OPENS:,}, the most that is opened.")
    if not names:
        others = f" (but {_others(len(there))}, such as {min(there)!r})" if there else ""
        raise UserError(f"There is no PNG, JPEG or WebP picture in {str(folder)!r}{others}: name the folder of yours.")
    parts, places = _places([_inside(n) for n in names])
    said, used = told(files, there, names, None if table is None else Path(table))
    _tell_unread(files.path, there.keys() - used - set(names))
    if not any(s.label is not None for s in said.values()):
        _sorted(names, places)
        said = {n: said[n]._replace(label=place) for n, place in zip(names, places, strict=True)}
    classes, conditions = classes_of(said), conditions_of(said)
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
    if not all(isinstance(v, float) and math.isfinite(number_of(v)) for v in entry.cond.values()):
        raise ValueError("a condition that is no number, or an integer of any size")


# ---- parts, and classes by folder ------------------------------------------------------------------------------------


def _inside(name: str) -> str:
    """The path within a shard."""
    return name.rpartition(".tar/")[2]


def _places(names: Sequence[str]) -> tuple[list[str], list[str | None]]:
    """The part of each picture, and the class that its folder says, if any."""
    folders = [tuple(n.split("/")[:-1]) for n in names]
    common = len(common_folder(folders))
    folders = [f[common:] for f in folders]
    tops = [f[0].lower() if f else "" for f in folders]
    train, held = (sorted(set(tops) & set(words)) for words in (_TRAIN, _TEST))
    if train and held:
        if len(held) > 1:
            raise UserError(f"Both {' and '.join(held)} lie beside {train[0]}: keep one, to be held out.")
        if odd := next((n for n, top in zip(names, tops, strict=True) if top not in (*train, *held)), None):
            where = "/".join(odd.split("/")[: common + 1])
            raise UserError(
                f"{where!r} lies beside {train[0]} and {held[0]}, which are trained on and held out: move it into one"
                " of them, or elsewhere."
            )
        parts = ["train" if top in train else "test" for top in tops]
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


def _drawn(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "little")


def _tell_unread(path: Path, others: Iterable[str]) -> None:
    """Say which files are neither pictures nor say anything of one."""
    kinds = Counter(PurePosixPath(n).suffix.lower() or "without ending" for n in others)
    if not kinds:
        return
    shown = ", ".join(f"{kind} {n:,}" for kind, n in kinds.most_common(5)) + (", …" if len(kinds) > 5 else "")
    table = min((n for n in others if n.lower().endswith(_TABULAR)), default=None)
    more = f": {table!r} is one where it is named as the table, or called {TABLES[0]}" if table else ""
    print(f"Not read of {str(path)!r}: {_others(kinds.total())} ({shown}){more}.", file=sys.stderr, flush=True)


# ---- what the files are --------------------------------------------------------------------------------------------


def _others(n: int) -> str:
    return f"{n:,} other file{'s' * (n > 1)}"


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
