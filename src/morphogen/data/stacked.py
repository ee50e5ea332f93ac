"""Stacked digits: three grey pictures as the red, green and blue of one, 10³ modes that a judge can count.

Item i is made of `channels` pictures drawn by the key of (seed, i), each by itself and uniformly, so that every mode is
about as likely as its digits are. Its label is its mode, the digits written one after the other: 0 to 999.

Metz, Poole, Pfau & Sohl-Dickstein 2017, "Unrolled generative adversarial networks", arXiv:1611.02163; Srivastava et al.
2017, "VEEGAN", arXiv:1705.07761. Departure: the items are numbered and any of them can be had at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import Noise, keys
from ..errors import UserError
from ..spec import Remembers
from .items import Stored
from .only import Only
from .space import Pictures

_STACK = 0x57AC


class Stacked(Remembers):
    """`Items` of x (B, channels, H, W) and cond label (B,), the mode.

    items: grey pictures with labels. classes: those that are stacked, () for all ten digits. count: how many items
    there are. seed: of what is in them. Raises UserError, on first use, where the pictures are not grey.
    """

    def __init__(
        self, items: Stored, classes: Sequence[int] = (), *, count: int = 128_000, channels: int = 3, seed: int = 0
    ) -> None:
        if count < 0 or channels < 1:
            raise UserError(f"Stacked was given count={count}, channels={channels}: give 0 or more items, 1 channel.")
        self.classes = tuple(classes) or tuple(range(10))
        self.items: Stored = Only(items, self.classes) if classes else items
        self.count, self.channels, self.seed = count, channels, seed

    @property
    def modes(self) -> int:
        """How many there are."""
        return int(len(self.classes) ** self.channels)

    def __len__(self) -> int:
        return self.count

    def take(self, index: Tensor) -> dict[str, Any]:
        """Items `index` (B,)."""
        picked = Noise(keys(index, self.seed, _STACK)).integers(len(self.items), self.channels)
        found = self.items.take(picked.flatten().to(index.device))
        x, label = found["x"], found["cond"]["label"]
        if x.ndim != 4 or x.shape[1] != 1:
            raise UserError(f"Stacked makes colours of grey pictures (B, 1, H, W), and these are {tuple(x.shape)}.")
        mode = mode_of(label.view(len(index), self.channels), self.classes)
        return {"x": x.view(len(index), self.channels, *x.shape[2:]), "cond": {"label": mode}}


def mode_of(label: Tensor, classes: Sequence[int]) -> Tensor:
    """The mode (n,) of the classes (n, channels) of the channels; -1 where one of them is not stacked at all."""
    place = (label[:, :, None] == torch.tensor(classes, device=label.device)).int()  # (n, channels, classes)
    digit, known = place.argmax(2), place.any(2).all(1)
    power = len(classes) ** torch.arange(label.shape[1] - 1, -1, -1, device=label.device)
    return torch.where(known, (digit * power).sum(1), -1)


def space(size: int = 28) -> Pictures:
    """The `Space` of stacked digits."""
    return Pictures((3, size, size))
