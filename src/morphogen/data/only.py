"""Some of the items: those of a few classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..core import each
from ..errors import UserError
from .items import Stored


class Only(Stored):
    """The items of some classes, in their order; a `Stored` as what they are taken from.

    items: data with cond label. classes: the numbers of the labels that stay. Raises UserError, on first use, where
    the items have no labels, or none of them stays.
    """

    def __init__(self, items: Stored, classes: Sequence[int]) -> None:
        self.items, self.classes, self.levels = items, tuple(classes), items.levels

    def read(self) -> dict[str, Any]:
        """The tensors of the items that stay."""
        held = self.items.all(torch.device("cpu"))
        label = held["cond"].get("label")
        if label is None:
            raise UserError(
                f"{type(self.items).__name__} has no labels, so Only cannot tell its classes: leave it out."
            )
        kept = torch.isin(label, torch.tensor(self.classes, dtype=label.dtype)).nonzero()[:, 0]
        if not len(kept):
            there = ", ".join(map(str, label.unique().tolist()[:12]))
            raise UserError(f"No item of {type(self.items).__name__} is of class {self.classes}: there are {there}.")
        return each(held, lambda t: t[kept])
