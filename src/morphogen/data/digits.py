"""The 1,797 handwritten digits of 8x8 pixels and 17 levels that scikit-learn ships, embedded in this package.

They are the test part of "Optical Recognition of Handwritten Digits" of the UCI repository (CC BY 4.0), written by 13
people. Source: E. Alpaydin and C. Kaynak 1998, "Cascading classifiers", Kybernetika 34(4).

The split is ours: the items sorted by label, in file order within a label; the first and every fifth after it are
the test part (360), the others the training part (1,437), so that each digit has its share of both.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .items import Stored, part_named
from .space import Pictures

NAMES = tuple("0123456789")


class Digits(Stored):
    """`Items` of x (B, 1, 8, 8) in [-1, 1] in steps of 1/8 and cond label (B,) int64, 0 to 9.

    part: "train" (1,437 items) or "test" (360).
    """

    levels = 17

    def __init__(self, part: str = "train") -> None:
        self.part = part_named(part)

    def read(self) -> dict[str, Any]:
        """The part's pixels and labels."""
        with files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as held:
            images, labels = held["images"], held["labels"]  # (1797, 8, 8) uint8 0 .. 16, (1797,) uint8
        kept = np.sort(part_of(labels, self.part))
        x = torch.from_numpy(images[kept])[:, None]  # (N, 1, 8, 8)
        return {"x": x, "cond": {"label": torch.from_numpy(labels[kept]).long()}}


def part_of(labels: NDArray[np.uint8], part: str) -> NDArray[np.intp]:
    """The indices of a part's items in the whole, ordered by label."""
    by_label = np.argsort(labels, kind="stable")
    test = np.arange(len(labels)) % 5 == 0
    chosen: NDArray[np.intp] = by_label[test if part == "test" else ~test]
    return chosen


def space() -> Pictures:
    """The `Space` of the digits."""
    return Pictures((1, 8, 8), NAMES, levels=17)
