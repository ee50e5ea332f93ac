"""Decoders: how x is read from the last latent of a chain or of a diffusion."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..laws import log1mexp, normal_log_prob
from ..spec import Remembers


class Decoder(Remembers, ABC):
    """The law of x given the end of the chain: a density over real numbers."""

    @abstractmethod
    def observe(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        """What of x is data: x itself, or the level that it stands for."""

    @abstractmethod
    def clamp(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        """A denoised x̂ within the range of the data."""

    @abstractmethod
    def log_prob(self, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        """Log-density of x, a coordinate at a time, nats."""


class Normal(Decoder):
    """N(mean, e^log_var), for data that are real numbers."""

    def observe(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        return x

    def clamp(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        return x

    def log_prob(self, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        return normal_log_prob(x, mean, log_var)


class Levels(Decoder):
    """The normal law's mass in the cell of each of `levels` values from `low` to `high`, the outer cells open (Ho et
    al. 2020, eq. 13), spread evenly over the cell: a density of dequantised pixels, log P(level) − log cell.

    Raises UserError in `observe` for x beyond the outer cells.
    """

    def __init__(self, levels: int = 256, low: float = -1.0, high: float = 1.0) -> None:
        if levels < 2 or not low < high:
            raise UserError(f"Levels({levels}, {low}, {high}) hold no picture: give 2 or more levels, and low < high.")
        self.levels, self.low, self.high = levels, low, high
        self.cell = (high - low) / (levels - 1)

    def _level(self, x: Tensor) -> Tensor:
        return ((x - self.low) / self.cell).round().clamp(0, self.levels - 1)

    def observe(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        reach = self.cell * 0.501
        if x.numel() and bool(((x < self.low - reach) | (x > self.high + reach)).any()):
            raise UserError(
                f"x runs from {float(x.min()):g} to {float(x.max()):g}, but this model's data are {self.levels} levels"
                f" from {self.low:g} to {self.high:g}: scale the pixels to that range."
            )
        return self._level(x) * self.cell + self.low

    def clamp(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        return x.clamp(self.low, self.high)

    def log_prob(self, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        level = self._level(x)
        away, scale, half = level * self.cell + self.low - mean, (-0.5 * log_var).exp(), self.cell / 2
        upper = torch.where(level == self.levels - 1, math.inf, (away + half) * scale)
        lower = torch.where(level == 0, -math.inf, (away - half) * scale)
        flip = away > 0  # where a difference of two numbers near 1 would lose all digits
        a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        # the open cells' infinite ends are taken out before log_ndtr: its gradient there is not a number
        shut = a == -math.inf
        log_b = torch.special.log_ndtr(torch.where(b == math.inf, 0.0, b)).masked_fill(b == math.inf, 0.0)
        log_a = torch.special.log_ndtr(torch.where(shut, 0.0, a))
        share = torch.where(shut, -math.inf, log_a - log_b)  # log Φ(a)/Φ(b) <= 0
        mass = log_b + torch.where(shut, 0.0, log1mexp(torch.where(shut, -1.0, share)))
        density: Tensor = mass - math.log(self.cell)
        return density
