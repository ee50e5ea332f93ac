"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey pictures of 28x28 pixels each, in the idx format.

idx: a big-endian header (two zero bytes, the type's code, the number of axes, each axis's length as four bytes), then
the values in row-major order. Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner 1998, "Gradient-based learning
applied to document recognition", Proc. IEEE 86(11); H. Xiao, K. Rasul, R. Vollgraf 2017, "Fashion-MNIST: a novel image
dataset for benchmarking machine learning algorithms", arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError
from .items import Stored, part_named
from .roots import find
from .space import Pictures
from .table import describe

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_LARGEST = 1 << 32  # bytes of values that a header may announce


class _Idx(Stored):
    """Base of the sets whose four files are named as MNIST's. name: in the table; folders: where else they may lie."""

    levels = 256
    name: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    bare: ClassVar[bool] = False

    def __init__(self, part: str = "train", *, root: str | Path | None = None) -> None:
        self.part, self.root = part_named(part), root

    def where(self) -> tuple[str, Path]:
        """The form of the part's files ("gz" or "raw") and their folder. UserError where they are not found."""
        names = _FILES[self.part]
        return find(
            self.name,
            {"gz": [f"{n}.gz" for n in names], "raw": names},
            root=self.root,
            folders=self.folders,
            bare=self.bare,
            advice=f"`morphogen data get {self.name}` fetches them, or ",
        )

    def read(self) -> dict[str, Any]:
        """The part's pixels and labels."""
        form, folder = self.where()
        names = _FILES[self.part]
        paths = [folder / (f"{n}.gz" if form == "gz" else n) for n in names]
        images, labels = (read_idx(path) for path in paths)
        if images.shape[1:] != (28, 28) or images.shape[:1] != labels.shape or (labels.size and labels.max() > 9):
            raise UserError(
                f"{str(paths[0])!r} {images.shape} and {str(paths[1])!r} {labels.shape} are not a part of {self.name}:"
                " 28x28 pictures with one label 0 to 9 each were expected; fetch both files again."
            )
        return {"x": torch.from_numpy(images)[:, None], "cond": {"label": torch.from_numpy(labels).long()}}


class MNIST(_Idx):
    """Handwritten digits: `Items` of x (B, 1, 28, 28) in [-1, 1] and cond label (B,) int64, 0 to 9.

    part: "train" (60,000 items) or "test" (10,000). root: the only folder to look in; without it MORPHOGEN_DATA and
    the cache folder (`roots`). Files: the four idx files, as .gz or unpacked.
    Raises UserError, on first use, where a file is missing or damaged.
    """

    name, folders, bare = "mnist", ("MNIST/raw", "MNIST"), True


class FashionMNIST(_Idx):
    """Clothes: `Items` as those of `MNIST`, from files of the same names, which must lie in a folder of their own."""

    name, folders = "fashion-mnist", ("FashionMNIST/raw", "FashionMNIST", "fashion_mnist")


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """The uint8 array of an idx file, gzipped where its name ends in .gz. Raises UserError where it is damaged."""

    def damaged(what: str) -> UserError:
        return UserError(f"{str(path)!r} {what}: fetch the file again.")

    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not magic[3]:
                raise damaged(f"is not an idx file of bytes (it begins {magic.hex(' ')}, not 00 00 08)")
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise damaged("ends within its header")
            shape = struct.unpack(f">{magic[3]}I", header)
            expected = math.prod(shape)
            if expected > _LARGEST:
                raise damaged(f"announces {expected} values, which cannot be right")
            values = file.read(expected)
            if len(values) < expected or file.read(1):
                raise damaged(f"holds {'more' if len(values) == expected else 'fewer'} values than {shape} announces")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(f"is cut short or damaged ({error})") from error
    return np.frombuffer(bytearray(values), np.uint8).reshape(shape)


def space(name: str = "mnist") -> Pictures:
    """The `Space` of MNIST, or of "fashion-mnist"."""
    return Pictures((1, 28, 28), describe(name).classes)
