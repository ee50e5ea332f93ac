"""CIFAR-10: 50,000 + 10,000 colour pictures of 32x32 pixels in ten classes.

Source: A. Krizhevsky 2009, "Learning multiple layers of features from tiny images".

Its original files are pickles. They are never unpickled: all of them have one layout, and the two things wanted are
found in the bytes by that layout: the labels as "K" and a byte each, in marked runs behind the key "labels", and the
pixels as one raw block behind the description of a C-ordered uint8 array of shape (n, 3072).
The other form read is `cifar-10-webp.zip`: for each batch a hundred lossless WebP strips of 100 pictures (32 wide,
3,200 high), and all labels in `labels.npy`. Either is decoded once; the result is kept in the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from .items import Stored, part_named
from .roots import cache, find, keep
from .space import Pictures
from .table import describe

Rows = NDArray[np.uint8]
NAMES = describe("cifar10").classes
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
SHA256 = describe("cifar10").sha256  # of the rows: label, then 3 x 32 x 32 pixels, a byte each, in the original order
_ZIP, _TAR, _TAR_FOLDER = "cifar-10-webp.zip", "cifar-10-python.tar.gz", "cifar-10-batches-py"
_LARGEST = 64 << 20  # bytes: no member of an archive is larger
_DAMAGE = (  # what reading a damaged archive can raise
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
    *(EOFError, KeyError, ValueError, OSError, RuntimeError),
)


class CIFAR10(Stored):
    """`Items` of x (B, 3, 32, 32) in [-1, 1] and cond label (B,) int64, 0 to 9, in the order of `NAMES`.

    part: "train" (50,000 items) or "test" (10,000). root: the only folder to look in; without it MORPHOGEN_DATA and
    the cache folder (`roots`). Files: the original python batches, their tar.gz, or the lossless WebP archive.
    Raises UserError, on first use, where they are missing or damaged.
    """

    levels = 256

    def __init__(self, part: str = "train", *, root: str | Path | None = None) -> None:
        self.part, self.root = part_named(part), root

    def where(self) -> tuple[str, Path]:
        """The form of the files ("batches", "tar" or "zip") and their folder. UserError where they are not found."""
        return find(
            "cifar10",
            {"batches": BATCHES[self.part], "tar": [_TAR], "zip": [_ZIP]},
            root=self.root,
            folders=(_TAR_FOLDER, "cifar-10"),
            advice="`morphogen data get cifar10` fetches it, or ",
        )

    def read(self) -> dict[str, Any]:
        """The part's pixels and labels, from the cache or decoded now. Either way they are held to their SHA-256."""
        form, folder = self.where()
        cached = cache() / "decoded" / f"cifar10-{self.part}-{SHA256[self.part][:12]}.npy"
        rows = _cached(cached, SHA256[self.part])
        if rows is None:
            read = {"batches": _from_batches, "tar": _from_tar, "zip": _from_zip}[form]
            rows = np.concatenate(list(read(folder, self.part)))
            if _hash(rows) != SHA256[self.part]:
                raise UserError(
                    f"The {self.part} part of CIFAR-10 in {str(folder)!r} is complete, but its content is not that of"
                    " CIFAR-10: fetch it again."
                )
            with contextlib.suppress(OSError):  # a full or read-only disk costs the next start a few seconds, no more
                keep(cached, lambda file: np.save(file, rows))
        whole = torch.from_numpy(rows)  # (N, 1 + 3072) uint8
        return {"x": whole[:, 1:].reshape(-1, 3, 32, 32).contiguous(), "cond": {"label": whole[:, 0].long()}}


# ---- the three forms -----------------------------------------------------------------------------------------------

_LABELS = re.compile(rb"U\x06labelsq.\](?:q.)?((?:\((?:K[\x00-\x09])+e)+)", re.DOTALL)
_PIXELS = re.compile(
    rb"(?:M(?P<n2>..)|K(?P<n1>.))M\x00\x0c\x86cnumpy\ndtype\nq.U\x02u1K\x00K\x01\x87Rq.\(K\x03U\x01\|NNN"
    rb"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T(?P<size>....)",
    re.DOTALL,
)  # two numbers that make a tuple, the type uint8, not Fortran order, a string of `size` bytes


def parse_batch(data: bytes, name: str) -> Rows:
    """Rows (n, 1 + 3072) uint8, label and pixels, of an original python batch. Raises UserError on another layout."""

    def refuse(what: str) -> UserError:
        return UserError(f"{name} is not an original CIFAR-10 python batch: {what}; fetch it again.")

    pixels = _PIXELS.search(data)
    if pixels is None or not data.startswith(b"\x80\x02}"):
        raise refuse("the pixel block was not found")
    labels = _LABELS.search(data, 0, pixels.start())
    if labels is None:
        raise refuse("the labels were not found")
    count = int.from_bytes(pixels["n2"] or pixels["n1"], "little")
    if int.from_bytes(pixels["size"], "little") != count * 3072:
        raise refuse("the size of its pixel block is not that of its pictures")
    block = data[pixels.end() : pixels.end() + count * 3072]
    if len(block) < count * 3072 or not data.endswith(b"."):
        raise refuse("it is cut short")
    runs = labels[1].replace(b"e", b"").replace(b"(", b"")  # labels are 0 .. 9: no byte of theirs is a mark
    if len(runs) != 2 * count:
        raise refuse(f"it has {len(runs) // 2} labels for {count} pictures")
    rows = np.empty((count, 1 + 3072), np.uint8)
    rows[:, 0] = np.frombuffer(runs, np.uint8)[1::2]
    rows[:, 1:] = np.frombuffer(block, np.uint8).reshape(count, 3072)
    return rows


def _from_batches(folder: Path, part: str) -> Iterator[Rows]:
    for name in BATCHES[part]:
        yield parse_batch((folder / name).read_bytes(), repr(str(folder / name)))


def _from_tar(folder: Path, part: str) -> Iterator[Rows]:
    path = folder / _TAR
    try:
        with tarfile.open(path, "r:gz") as archive:
            for name in BATCHES[part]:
                member = archive.getmember(f"{_TAR_FOLDER}/{name}")
                file = archive.extractfile(member) if member.size <= _LARGEST else None
                if file is None:
                    raise UserError(f"{name} in {str(path)!r} is no file of the right size: fetch the archive again.")
                yield parse_batch(file.read(), f"{name} in {str(path)!r}")
    except _DAMAGE as error:
        raise UserError(f"{str(path)!r} is cut short or damaged ({error}): fetch it again.") from error


def _from_zip(folder: Path, part: str) -> Iterator[Rows]:
    path = folder / _ZIP
    names = BATCHES["train"] + BATCHES["test"]
    try:
        with zipfile.ZipFile(path) as archive:

            def read(name: str) -> bytes:
                if archive.getinfo(name).file_size > _LARGEST:
                    raise ValueError(f"{name} is too large")
                return archive.read(name)

            labels = np.load(io.BytesIO(read("labels.npy")))
            if labels.shape != (60_000,) or labels.dtype != np.uint8 or labels.max() > 9:
                raise ValueError(f"labels.npy is {labels.dtype} {labels.shape}, not 60000 bytes 0 to 9")
            for name in BATCHES[part]:
                rows = np.empty((10_000, 1 + 3072), np.uint8)
                rows[:, 0] = labels.reshape(6, 10_000)[names.index(name)]
                for i in range(100):
                    member = f"{name}/{i:02d}.webp"
                    with Image.open(io.BytesIO(read(member)), formats=["WEBP"]) as strip:
                        if strip.size != (32, 3200):
                            raise ValueError(f"{member} is {strip.size[0]}x{strip.size[1]}, not 32x3200")
                        pixels = np.asarray(strip.convert("RGB")).reshape(100, 32, 32, 3)
                    rows[100 * i : 100 * (i + 1), 1:] = pixels.transpose(0, 3, 1, 2).reshape(100, 3072)
                yield rows
    except _DAMAGE as error:
        raise UserError(f"{str(path)!r} is cut short or damaged ({error}): fetch it again.") from error


# ---- the cache -----------------------------------------------------------------------------------------------------


def _hash(rows: Rows) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()


def _cached(path: Path, sha256: str) -> Rows | None:
    try:
        rows: Rows = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.dtype == np.uint8 and rows.shape[1:] == (3073,) and _hash(rows) == sha256 else None


def space() -> Pictures:
    """The `Space` of CIFAR-10."""
    return Pictures((3, 32, 32), NAMES)
