"""Bijections: y = f(x) with log |det dy/dx|, both ways, and what is made of them.

    composition    f = f_n ∘ … ∘ f_1      log |det f'| = Σ_i log |det f_i'|
    inverse        f^-1                    log |det (f^-1)'| at y = −log |det f'| at x

Each way gives the log-determinant of its own Jacobian, so that an inverse is the same object read backwards and a
composition is a sum in either direction.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from ..nets.masked import permutation

Cond = Mapping[str, Tensor]
Mapped = tuple[Float[Tensor, "b *shape"], Float[Tensor, " b"]]


class Bijection(Net):
    """An invertible map of samples (B, ...), which may depend on conditions."""

    @abstractmethod
    def forward(self, x: Tensor, cond: Cond = NONE) -> Mapped:
        """y (B, ...) of x (B, ...), and log |det dy/dx| (B,)."""

    @abstractmethod
    def inverse(self, y: Tensor, cond: Cond = NONE) -> Mapped:
        """x (B, ...) of y (B, ...), and log |det dx/dy| (B,)."""


class Composition(Bijection):
    """One bijection after another, the first one first; of none it is the identity."""

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor, cond: Cond = NONE) -> Mapped:
        total = x.new_zeros(len(x))
        for bijection in self.bijections:
            x, logdet = bijection(x, cond)
            total = total + logdet
        return x, total

    def inverse(self, y: Tensor, cond: Cond = NONE) -> Mapped:
        total = y.new_zeros(len(y))
        for bijection in reversed(self.bijections):
            y, logdet = bijection.inverse(y, cond)  # type: ignore[operator]
            total = total + logdet
        return y, total


class Inverse(Bijection):
    """A bijection read backwards."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor, cond: Cond = NONE) -> Mapped:
        return self.bijection.inverse(x, cond)

    def inverse(self, y: Tensor, cond: Cond = NONE) -> Mapped:
        mapped: Mapped = self.bijection(y, cond)
        return mapped


class Permutation(Bijection):
    """y_i = x_order(i), of samples (B, D). Raises UserError where order is no permutation of 0 .. D - 1."""

    there: Tensor
    back: Tensor

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        there = torch.tensor(permutation(order, len(order)), dtype=torch.long)
        self.register_buffer("there", there, persistent=False)
        self.register_buffer("back", there.argsort(), persistent=False)

    def forward(self, x: Float[Tensor, "b d"], cond: Cond = NONE) -> Mapped:
        return x[:, self.there], x.new_zeros(len(x))

    def inverse(self, y: Float[Tensor, "b d"], cond: Cond = NONE) -> Mapped:
        return y[:, self.back], y.new_zeros(len(y))


class Flatten(Bijection):
    """Samples (B, *shape) as rows (B, D)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor, cond: Cond = NONE) -> Mapped:
        if x.shape[1:] != self.shape:
            raise UserError(f"x is {tuple(x.shape[1:])} a sample, and this flow is over {self.shape}: give that shape.")
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, y: Float[Tensor, "b d"], cond: Cond = NONE) -> Mapped:
        return y.unflatten(1, self.shape), y.new_zeros(len(y))
