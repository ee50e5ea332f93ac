"""Laws of actions, whose parameters a net says: log-probabilities and entropies in nats.

Categorical      one of n actions: the net gives n logits
DiagonalNormal   m numbers: the net gives their means, and log σ is a parameter that no observation changes
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core import Net, Noise
from ..laws import normal_log_prob
from .losses import chosen


@runtime_checkable
class Law(Protocol):
    """A law of actions (B, ...) with parameters (B, outputs)."""

    outputs: int

    def sample(self, params: Tensor, noise: Noise) -> Tensor:
        """Actions (B, ...)."""
        ...

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability or log-density (B,), nats."""
        ...

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy (B,), nats."""
        ...

    def mode(self, params: Tensor) -> Tensor:
        """What is done without chance (B, ...)."""
        ...


class Categorical(Net):
    """One of n actions (B,) int64, by logits (B, n)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.outputs = n

    def sample(self, params: Tensor, noise: Noise) -> Tensor:
        """Actions (B,)."""
        return noise.categorical(params)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability (B,)."""
        return chosen(params.log_softmax(-1), action)

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy (B,)."""
        logp = params.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def mode(self, params: Tensor) -> Tensor:
        """The likeliest action (B,)."""
        return params.argmax(-1)


class DiagonalNormal(Net):
    """m numbers (B, m), independent, about means (B, m). log_sigma: what the parameter begins with."""

    def __init__(self, m: int, log_sigma: float = 0.0) -> None:
        super().__init__()
        self.outputs = m
        self.log_sigma = nn.Parameter(torch.full((m,), log_sigma))

    def sample(self, params: Tensor, noise: Noise) -> Tensor:
        """Actions (B, m)."""
        return params + self.log_sigma.exp() * noise.normal(self.outputs, dtype=params.dtype)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-density (B,)."""
        return normal_log_prob(action, params, 2 * self.log_sigma).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy (B,)."""
        return (self.log_sigma + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(params))

    def mode(self, params: Tensor) -> Tensor:
        """The means (B, m)."""
        return params
