"""The user's own pictures as items: decoded once into the cache folder, and from there on read without decoding.

The cache is one file of raw pixels, N x C x H x W bytes, the training part first, mapped into memory; its name is made
of the index, the transform and Pillow's version. It grows in the order of the index, and what has been written is noted
beside it now and then: an interrupted decoding goes on from there, and ends in the same bytes. How many threads decode
changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..errors import UserError, unknown
from ..spec import Asset
from .decode import FITS, Bad, decode
from .files import Files, opened
from .items import Stored, part_named
from .listing import Entry, pace, read
from .roots import cache, keep
from .space import Pictures

Made = NDArray[np.uint8] | str  # pixels, or why there are none
ALLOWED = 0.01  # share of files that may be bad
_NOTED = 64 << 20  # bytes between two notes of how far a decoding has come
_NAMED = 5  # bad files that are named in one message


class Album(Stored):
    """`Items` of x (B, C, *size) in [-1, 1] and cond: label (B,) int64 where there are classes, and conditions (B,).

    folder: of PNG, JPEG and WebP files, a zip of them, or tar shards. index: what `index(folder)` wrote. part: "train"
    or "test". size: (H, W) of every item. colour: RGB, else grey. fit: how a picture is made to fit, a name in
    `decode.FITS`: "crop", "pad" or "stretch". among: shapes (H, W), `size` one of them; then only the pictures are
    taken whose aspect comes nearest to that of `size`. workers: threads that decode (default: as many as there are
    processors).
    Decodes all that is not in the cache on first use. Raises UserError where more than 1 % of the files are bad, where
    a file is no longer what the index says, or the cache folder has no room.
    """

    levels = 256

    def __init__(
        self,
        folder: str | Path,
        index: Asset,
        part: str = "train",
        *,
        size: tuple[int, int] = (64, 64),
        colour: bool = True,
        fit: str = "crop",
        among: Sequence[tuple[int, int]] = (),
        workers: int | None = None,
    ) -> None:
        self.folder, self.index, self.part = Path(folder), index, part_named(part)
        self.size, self.colour, self.fit, self.among = tuple(size), colour, fit, tuple(map(tuple, among))
        self.workers = workers
        if fit not in FITS:
            raise unknown("way to fit pictures", fit, FITS)
        if len(self.size) != 2 or min(self.size) < 1 or max(self.size) > 8192:
            raise UserError(f"Pictures of size {self.size} cannot be made: give (height, width), each 1 to 8192.")
        if among and self.size not in self.among:
            raise UserError(f"The size {self.size} is not among the shapes {self.among}: give it there too.")
        if workers is not None and workers < 0:
            raise UserError(f"Album has workers={workers}: give 0 or more threads.")
        self.shape = (3 if colour else 1, *self.size)
        self._listing = read(index)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self._listing.classes

    def holds(self, part: str) -> int:
        """How many pictures of a part the index has, before any is decoded: of a few none may be drawn for "test"."""
        return sum(e.part == part and not e.bad for e in self._listing.entries)

    def space(self) -> Pictures:
        """The `Space` of these pictures."""
        return Pictures(self.shape, self.classes)

    def entries(self) -> list[Entry]:
        """What the index says of the items, in their order. Decodes, as which files are bad is known only then."""
        kept, _ = self._decoded()
        return [e for e in kept if e.part == self.part]

    def bad(self) -> list[str]:
        """The names of those of the part that were left out, as they cannot be used."""
        kept = {e.name for e in self._decoded()[0]}
        return [e.name for e in self._wanted() if e.part == self.part and e.name not in kept]

    @property
    def captions(self) -> list[str]:
        """The captions of the items, in their order; [] where there are none."""
        return [e.caption for e in self.entries() if e.caption is not None]

    def read(self) -> dict[str, Any]:
        """The part's pixels, mapped from the cache, and what is said of them."""
        kept, path = self._decoded()
        own = [i for i, e in enumerate(kept) if e.part == self.part]
        if not own:
            return {"x": torch.zeros(0, *self.shape, dtype=torch.uint8), "cond": self._cond([])}
        pixels = np.memmap(path, np.uint8, "c", shape=(len(kept), *self.shape))  # "c": written to in memory alone
        x = torch.from_numpy(pixels[own[0] : own[-1] + 1])
        return {"x": x, "cond": self._cond([kept[i] for i in own])}

    def _cond(self, entries: Sequence[Entry]) -> dict[str, torch.Tensor]:
        cond = {c: torch.tensor([e.cond[c] for e in entries]) for c in self._listing.conditions}
        if self.classes:
            cond["label"] = torch.tensor([e.label for e in entries], dtype=torch.int64)
        return cond

    # ---- the cache ---------------------------------------------------------------------------------------------------

    def _wanted(self) -> list[Entry]:
        """The pictures to decode, the training part first."""
        chosen = [e for e in self._listing.entries if not self.among or _nearest(e, self.among) == self.size]
        return sorted(chosen, key=lambda e: e.part != "train")

    def _decoded(self) -> tuple[list[Entry], Path]:
        """The pictures that are not bad, and the file of their pixels; decoded now where it is not there."""
        wanted = self._wanted()
        how = [self.index.sha256, self.shape, self.fit, self.among, PIL.__version__]
        name = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:16]
        path = cache() / "decoded" / f"pictures-{name}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            state = _noted(path.with_suffix(".json"))
            size = (len(wanted) - len(state["bad"])) * math.prod(self.shape)
            if state["done"] != len(wanted) or not path.is_file() or path.stat().st_size != size:
                state = self._decode(wanted, path, state)
        return [e for e in wanted if e.name not in state["bad"]], path

    def _decode(self, wanted: Sequence[Entry], path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Decode what is not yet in the partial file, make it the whole one, and return {"done": …, "bad": …}."""
        partial, each = path.with_suffix(".partial"), math.prod(self.shape)
        with partial.open("ab") as file:
            written = (state["done"] - len(state["bad"])) * each
            if file.tell() < written or state["done"] > len(wanted):  # not what was noted: not to be trusted
                state, written = {"done": 0, "bad": {}}, 0
            file.truncate(written)
            left, bad = wanted[state["done"] :], state["bad"]
            self._room(path.parent, len(left) * each)

            def noted() -> None:
                file.flush()
                os.fsync(file.fileno())
                text = json.dumps(state).encode()
                keep(path.with_suffix(".json"), lambda page: page.write(text))

            began = time.perf_counter()
            bar = tqdm(None, "Decoding", len(wanted), unit=" pictures", initial=state["done"], mininterval=pace())
            with bar, contextlib.closing(self._stream(opened(self.folder), left)) as stream:
                for entry, made in stream:
                    state["done"] += 1
                    if isinstance(made, str):
                        bad[entry.name] = made
                        self._bearable(bad)
                    else:
                        file.write(made.data)
                        written += each
                        if written % _NOTED < each:
                            noted()
                    bar.update()
            noted()
            partial.replace(path)
        rate = len(left) / max(1e-9, time.perf_counter() - began)
        skipped = f" {len(bad):,} of them left out: {_named(bad)}." if bad else ""
        print(f"Decoded {len(left):,} pictures, {rate:,.0f} pictures/s.{skipped}", file=sys.stderr, flush=True)
        return state

    def _room(self, folder: Path, need: int) -> None:
        free = shutil.disk_usage(folder).free
        if need > free:
            raise UserError(
                f"The decoded pictures need {need:,} bytes and {str(folder)!r} has {free:,}: free some space, take a"
                " smaller size, or name another cache folder with MORPHOGEN_CACHE."
            )

    def _bearable(self, bad: dict[str, str]) -> None:
        if len(bad) > ALLOWED * len(self._listing.entries):
            raise UserError(
                f"More than 1 % of the pictures in {str(self.folder)!r} cannot be used, first {_named(bad)}: mend them"
                " or take them out."
            )

    def _stream(self, files: Files, entries: Sequence[Entry]) -> Generator[tuple[Entry, Made], None, None]:
        """Each picture's pixels, or why it is bad, in order."""

        def made(entry: Entry) -> Made:
            if entry.bad:
                return entry.bad
            try:
                data = files.read(entry.name)
            except Bad as bad:
                raise UserError(f"{entry.name!r} in {str(self.folder)!r} was there and now {bad}: {_AGAIN}") from None
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise UserError(f"{entry.name!r} in {str(self.folder)!r} has changed since it was indexed: {_AGAIN}")
            try:
                pixels = entry.height * entry.width  # the content is that which the index measured, and let pass
                return decode(data, self.shape, self.fit, pixels)
            except Bad as bad:
                return str(bad)

        threads = os.cpu_count() or 1 if self.workers is None else self.workers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of what is refused a line further on
            if not threads:
                yield from ((e, made(e)) for e in entries)
                return
            pool = ThreadPoolExecutor(threads, "morphogen-decode")
            try:
                left = iter(entries)
                ahead: list[tuple[Entry, Future[Made]]] = []
                while True:
                    ahead += [(e, pool.submit(made, e)) for e in islice(left, 4 * threads - len(ahead))]
                    if not ahead:
                        return
                    entry, future = ahead.pop(0)
                    yield entry, future.result()
            finally:
                pool.shutdown(cancel_futures=True)


_AGAIN = "put it back, or index the folder again (data.index) and begin another run."


def _noted(note: Path) -> dict[str, Any]:
    """How far a decoding came, {"done": pictures, "bad": {name: why}}."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        page = json.loads(note.read_bytes())
        return {"done": int(page["done"]), "bad": dict(page["bad"])}
    return {"done": 0, "bad": {}}


def _named(bad: dict[str, str]) -> str:
    shown = "; ".join(f"{name!r} ({why})" for name, why in islice(bad.items(), _NAMED))
    return shown + ("; …" if len(bad) > _NAMED else "")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait while another process decodes the same. Where the system has no such locks nothing is held."""
    with path.open("wb") as file:
        with contextlib.suppress(ModuleNotFoundError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _nearest(entry: Entry, among: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape whose aspect is nearest to the picture's, as a ratio; the first of two alike."""
    aspect = math.log(max(1, entry.height) / max(1, entry.width))
    return min(among, key=lambda s: abs(math.log(s[0] / s[1]) - aspect))
