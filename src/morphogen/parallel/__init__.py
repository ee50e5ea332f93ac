"""Many processes for one run: the only folder that touches `torch.distributed`.

`ranks.py` is how the trainer sees the others, `shard.py` weights in pieces, `launch.py` torchrun. How to train on many
devices, and what is exact there, is told in docs/parallel.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ranks import ALONE, Elsewhere, Ranks, end, join, joins, part

__all__ = ["ALONE", "Elsewhere", "Ranks", "end", "in_pieces", "join", "joins", "part"]

if TYPE_CHECKING:
    import torch

    from ..core import Model


def in_pieces(ranks: Ranks, model: Model, device: torch.device) -> Ranks:
    """Take the model apart, in place, and return the ranks that hold a piece of its weights each."""
    from .ranks import Joined
    from .shard import Sharded

    assert isinstance(ranks, Joined)
    return Sharded(ranks, model, device)
