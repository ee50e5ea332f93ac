r"""Word vectors by counting: GloVe.

With X_ij how often word j is near word i, a pair at distance d counting 1/d,

    L = Σ_ij f(X_ij) (w_i·w̃_j + b_i + b̃_j − log X_ij)²,      f(x) = min(1, (x / x_max)^α)

over the pairs that were met, by AdaGrad; a word's vector is w + w̃.

Pennington, Socher & Manning 2014, "GloVe: global vectors for word representation", eqs. 8 and 9; Duchi, Hazan & Singer
2011 (AdaGrad; its sums begin at 1, as in the published code). Departure: a step learns of a batch of pairs at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import Batch, Loss, Model, Update, everyone
from ..errors import UserError


def weight(x: Float[Tensor, " b"], x_max: float = 100.0, alpha: float = 0.75) -> Float[Tensor, " b"]:
    """f(x) = min(1, (x / x_max)^α)."""
    return (x / x_max).pow(alpha).clamp(max=1)


class GloVe(Model):
    """Word vectors of co-occurrences. Batches: x (B, 2) words i and j, and count (B,), X_ij.

    size: of the vocabulary. x_max, alpha: of the weight f. lr: of AdaGrad.
    """

    def __init__(
        self, size: int, width: int = 100, *, x_max: float = 100.0, alpha: float = 0.75, lr: float = 0.05
    ) -> None:
        super().__init__()
        if size < 2 or width < 1 or not x_max > 0 or not lr > 0:
            raise UserError("GloVe needs 2 words or more, a width of 1 or more, and x_max and lr above 0.")
        self.size, self.width, self.x_max, self.alpha, self.lr = size, width, x_max, alpha, lr
        # one table of both sides: w and b of the words, then w̃ and b̃ of what is near them
        self.register_buffer("table", (torch.rand(2 * size, width + 1) - 0.5) / (width + 1))
        self.register_buffer("squares", torch.ones(2 * size, width + 1))

    table: Tensor
    squares: Tensor

    def phases(self) -> list[Update]:
        """One turn: AdaGrad on the rows that are met."""
        return [Update(self.learn)]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """A batch is learnt from at once."""
        return {}

    @property
    def inner(self) -> Float[Tensor, "v d"]:
        """The vectors w + w̃ (V, width)."""
        return self.table[: self.size, :-1] + self.table[self.size :, :-1]

    def log_count(self, pairs: Int[Tensor, "b 2"]) -> Float[Tensor, " b"]:
        """What the model says log X_ij is."""
        w, v = self.table[pairs[:, 0]], self.table[pairs[:, 1] + self.size]
        return (w[:, :-1] * v[:, :-1]).sum(1) + w[:, -1] + v[:, -1]

    @torch.no_grad()
    def learn(self, batch: Batch) -> Loss:
        """One step of AdaGrad; the mean of the weighted squares. Raises UserError for pairs that were never met."""
        pairs, count = batch["x"], batch["count"].to(self.table.dtype)
        if not len(count) or not bool((count > 0).all()):
            raise UserError("GloVe learns from pairs that were met: give one or more, each with a count above 0.")
        f, off = weight(count, self.x_max, self.alpha), self.log_count(pairs) - count.log()
        loss = everyone.mean((f * off.square()).mean())
        w, v = self.table[pairs[:, 0]], self.table[pairs[:, 1] + self.size]
        pull = (f * off)[:, None]  # half the slope, as in the published code
        one = torch.ones_like(w[:, -1:])
        slope = torch.cat((torch.cat((pull * v[:, :-1], pull * one), 1), torch.cat((pull * w[:, :-1], pull * one), 1)))
        rows = everyone.gather(torch.cat((pairs[:, 0], pairs[:, 1] + self.size)))
        slope = everyone.gather(slope)
        met, back = rows.unique(return_inverse=True)
        total = slope.new_zeros(len(met), self.width + 1).index_add_(0, back, slope)
        self.squares.index_add_(0, rows, slope.square())
        self.table[met] -= self.lr * total / self.squares[met].sqrt()
        return Loss(loss)
