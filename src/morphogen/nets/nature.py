"""The convolutional net that read the pixels of Atari games: filters without padding, then a hidden layer.

Mnih et al. 2015, "Human-level control through deep reinforcement learning", Nature 518. The defaults are theirs, for
four frames of 84×84; smaller pictures take smaller filters. Departure: weights begin as those of `dense` layers do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError
from .embed import dense


class NatureCNN(Net):
    """Pictures (B, channels, size, size) -> (B, outputs).

    filters: of each layer how many, their size, and their stride. width: of the hidden layer. outputs: None for what
    the filters see, flattened, whose number is then the attribute `outputs` (the body of a duelling net).
    Raises UserError where a picture is too small for the filters, they do not reach its edge, or width is less than 1.
    """

    def __init__(
        self,
        channels: int = 4,
        size: int = 84,
        outputs: int | None = None,
        filters: Sequence[tuple[int, int, int]] = ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
        width: int = 512,
    ) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"A NatureCNN of width {width} has no units: use 1 or more.")
        layers, inputs, side = [], channels, size
        for count, kernel, stride in filters:
            if kernel > side:
                raise UserError(
                    f"Pictures of {size}×{size} are too small for the filters {tuple(filters)}: of {side}×{side} that"
                    f" are left, one sees {kernel}×{kernel}. Give smaller ones."
                )
            if unseen := (side - kernel) % stride:
                raise UserError(
                    f"Filters of {kernel}×{kernel} with stride {stride} leave the last {unseen} of {side} rows and"
                    " columns unseen: choose others that end at the edge."
                )
            conv = nn.Conv2d(inputs, count, kernel, stride)
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers.append(conv)
            inputs, side = count, (side - kernel) // stride + 1
        self.filters = nn.ModuleList(layers)
        seen = inputs * side * side
        self.hidden = None if outputs is None else dense(seen, width)
        self.last = None if outputs is None else dense(width, outputs)
        self.outputs = seen if outputs is None else outputs

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b {self.outputs}"]:
        for conv in self.filters:
            x = F.relu(conv(x))
        h = x.flatten(1)  # (B, seen)
        if self.hidden is None or self.last is None:
            return h
        out: Tensor = self.last(F.relu(self.hidden(h)))
        return out
