"""Averages of the weights that only sampling reads. (Those that a loss reads belong to the model, in `after_step`.)

Exponential moving average (Polyak & Juditsky 1992, in the form of Ho et al. 2020):
    a_t = d_t a_{t-1} + (1 - d_t) w_t,   d_t = min(decay, (1 + t) / (10 + t)),   a_0 = w_0.
The warm-up d_t lets a short run forget its random start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .core import Model
from .errors import UserError
from .spec import Remembers


class EMA(Remembers):
    """Exponential moving average of the trained weights; decay in [0, 1)."""

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"An EMA's decay is {decay}: it must lie in [0, 1).")
        self.decay = decay

    def of(self, model: Model) -> Average:
        """Start an average of `model`'s trained weights, its scaffold left out."""
        return Average(self, model)


class Average:
    """A running average: `update` after each step, `swapped` to read the model with averaged weights."""

    def __init__(self, rule: EMA, model: Model) -> None:
        self.rule = rule
        outside = tuple(part + "." for part in model.scaffold)
        self.live: dict[str, nn.Parameter] = {
            n: p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(outside)
        }
        self.mean: dict[str, Tensor] = {n: p.detach().clone() for n, p in self.live.items()}
        self._live: list[Tensor] = list(self.live.values())
        self._mean = list(self.mean.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 1)."""
        decay = min(self.rule.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the averaged weights inside, and its own again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for live, mean in zip(self._live, self._mean, strict=True):
            live.data, mean.data = mean.data, live.data
