"""PneumoniaMNIST: 4,708 + 624 chest X-rays of children, 28x28 grey pixels, normal or with pneumonia.

One .npz of MedMNIST with train_images, train_labels, val_…, test_…; the 524 items of its validation part are not used.
Sources: Yang, Shi, Wei, Liu, Zhao, Ke, Pfister & Ni 2023, "MedMNIST v2", arXiv:2110.14795; Kermany et al. 2018,
"Identifying medical diagnoses and treatable diseases by image-based deep learning" (the X-rays).
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .items import Stored, part_named
from .roots import find
from .space import Pictures
from .table import describe

_FILE = "pneumoniamnist.npz"


class PneumoniaMNIST(Stored):
    """`Items` of x (B, 1, 28, 28) in [-1, 1] and cond label (B,) int64: 0 normal, 1 pneumonia.

    part: "train" (4,708 items) or "test" (624). root: the only folder to look in; without it MORPHOGEN_DATA and the
    cache folder (`roots`). File: pneumoniamnist.npz, as MedMNIST has it.
    Raises UserError, on first use, where it is missing or damaged.
    """

    levels = 256

    def __init__(self, part: str = "train", *, root: str | Path | None = None) -> None:
        self.part, self.root = part_named(part), root

    def where(self) -> tuple[str, Path]:
        """The form of the file ("npz") and its folder. UserError where it is not found."""
        advice = "get it from medmnist.com, or "
        return find("pneumoniamnist", {"npz": [_FILE]}, root=self.root, folders=("medmnist",), advice=advice)

    def read(self) -> dict[str, Any]:
        """The part's pixels and labels."""
        path = self.where()[1] / _FILE
        try:
            with np.load(path) as held:
                images, labels = held[f"{self.part}_images"], held[f"{self.part}_labels"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{str(path)!r} is cut short or damaged ({error}): fetch it again.") from error
        fits = images.ndim == 3 and images.shape[1:] == (28, 28) and labels.shape in ((len(images), 1), (len(images),))
        if not fits or images.dtype != np.uint8 or labels.dtype.kind not in "iu" or (labels.size and labels.max() > 1):
            raise UserError(
                f"{str(path)!r} has images {images.dtype} {images.shape} and labels {labels.shape}, not 28x28 bytes"
                " with a label 0 or 1 each: it is another set; fetch pneumoniamnist.npz again."
            )
        x = torch.from_numpy(np.ascontiguousarray(images))[:, None]
        return {"x": x, "cond": {"label": torch.from_numpy(labels.reshape(-1).astype(np.int64))}}


def space() -> Pictures:
    """The `Space` of PneumoniaMNIST."""
    return Pictures((1, 28, 28), describe("pneumoniamnist").classes)
