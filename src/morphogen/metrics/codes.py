"""How much of its code book a discrete codec uses: the codes that are written at all, and their perplexity.

Perplexity is exp of the entropy of how often each code is used: K where all of K are alike (van den Oord, Vinyals &
Kavukcuoglu 2017, arXiv:1711.00937, report it). Both are counted, not estimated: over all positions of the items given.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from ..core import Items
from .measure import Measure


@runtime_checkable
class Writes(Protocol):
    """A codec whose latents are integers below `codes`; None where they are none."""

    codes: int | None

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, ...) of x (B, ...)."""
        ...


def code_use(written: Int[Tensor, " n *shape"], codes: int) -> dict[str, Measure]:
    """Of an alphabet of `codes`, the share that is written in `written`, and the perplexity."""
    counts = torch.bincount(written.flatten(), minlength=codes).double()
    p = counts / counts.sum().clamp(min=1)
    share, spread = float((counts > 0).double().mean()), float(torch.special.entr(p).sum().exp())
    how = f"counted over {written.numel()} positions"
    return {
        "codes in use": Measure(share, share, share, len(written), f"share of {codes} codes written at all, {how}"),
        "perplexity": Measure(spread, spread, spread, len(written), f"of {codes} codes, {how}"),
    }


@torch.no_grad()
def written(
    codec: Writes, items: Items, *, batch: int = 256, device: torch.device | str = "cpu"
) -> Int[Tensor, " n *_"]:
    """The codes of all items, in their order."""
    pieces = torch.arange(len(items)).split(batch)
    return torch.cat([codec.encode(items.take(piece)["x"].to(device)).cpu() for piece in pieces])
