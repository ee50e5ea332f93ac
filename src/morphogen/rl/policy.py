"""Laws of actions, whose parameters a net says: log-probabilities and entropies in nats.

Categorical      one of n actions: the net gives n logits
DiagonalNormal   m numbers: the net gives their means, and log σ is a parameter that no observation changes
Squashed         m numbers within bounds, which tanh makes of the net's: no law yet, but what TD3 acts by
SquashedNormal   the same of normal numbers, of which the net gives means and log σ

The last: a = m + s tanh u, u ~ N(μ, σ²), with the middle m of the bounds and half their distance s, so that
log π(a) = Σ log N(u; μ, σ²) − log s − log(1 − tanh² u), and log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u))
(Haarnoja et al. 2018, arXiv:1812.05905, appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Net, Noise
from ..errors import UserError
from ..laws import normal_log_prob
from .losses import chosen, smoothed


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
    """One of n actions (B,) int64, by logits (B, n). Raises UserError where n is less than 1."""

    def __init__(self, n: int) -> None:
        super().__init__()
        if n < 1:
            raise UserError(f"A choice among {n} actions is none: give n of 1 or more.")
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
    """m numbers (B, m), independent, about means (B, m). log_sigma: what the parameter begins with.

    Raises UserError where m is less than 1, or log_sigma is no finite number.
    """

    def __init__(self, m: int, log_sigma: float = 0.0) -> None:
        super().__init__()
        if m < 1 or not math.isfinite(log_sigma):
            raise UserError(f"A law of {m} numbers with log_sigma={log_sigma}: give 1 or more, and a finite log_sigma.")
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


class Squashed(Net):
    """m numbers (B, m) within (low, high), which tanh makes of m numbers without bounds.

    Raises UserError where m is less than 1, a bound is infinite, or there is nothing between them.
    """

    def __init__(self, m: int, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"Actions from {low} to {high} cannot be squashed: give finite bounds, low < high.")
        if m < 1:
            raise UserError(f"An action of {m} numbers is none: give m of 1 or more.")
        self.m, self.outputs, self.low, self.high = m, m, low, high
        self.middle, self.scale = (low + high) / 2, (high - low) / 2

    def squash(self, u: Tensor) -> Tensor:
        """Actions (B, m) of numbers without bounds (B, m)."""
        return self.middle + self.scale * u.tanh()

    def uniform(self, noise: Noise) -> Tensor:
        """Any actions (B, m)."""
        return self.low + (self.high - self.low) * noise.uniform(self.m)

    def about(self, action: Tensor, noise: Noise, *, sigma: float, clip: float = math.inf) -> Tensor:
        """Actions (B, m) with normal noise, itself clipped, kept within the bounds. In units of half their distance."""
        normal = noise.normal(self.m, dtype=action.dtype)
        return smoothed(action, normal, sigma=self.scale * sigma, clip=self.scale * clip, low=self.low, high=self.high)


class SquashedNormal(Squashed):
    """A normal law, squashed: the net gives means and log σ (B, 2m), log σ being kept within [−20, 2]."""

    def __init__(self, m: int, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(m, low, high)
        self.outputs = 2 * m

    def draw(self, params: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Actions (B, m), differentiable, and their log-density (B,)."""
        mean, log_sigma = self._normal(params)
        z = noise.normal(self.m, dtype=params.dtype)
        u = torch.addcmul(mean, log_sigma.exp(), z)
        logp = (-0.5 * z.square() - log_sigma - self._log_slope(u)).sum(-1) - 0.5 * self.m * math.log(2 * math.pi)
        return self.squash(u), logp

    def sample(self, params: Tensor, noise: Noise) -> Tensor:
        """Actions (B, m)."""
        mean, log_sigma = self._normal(params)
        return self.squash(torch.addcmul(mean, log_sigma.exp(), noise.normal(self.m, dtype=params.dtype)))

    def mode(self, params: Tensor) -> Tensor:
        """What is done without chance (B, m): the mean, squashed."""
        return self.squash(self._normal(params)[0])

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-density (B,): −∞ beyond the bounds, and at them that of the nearest number within."""
        mean, log_sigma = self._normal(params)
        unit = (action - self.middle) / self.scale
        most = 1 - torch.finfo(unit.dtype).eps
        u = unit.clamp(-most, most).atanh()
        logp = (normal_log_prob(u, mean, 2 * log_sigma) - self._log_slope(u)).sum(-1)
        return torch.where((unit.abs() <= 1).all(-1), logp, -math.inf)

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy (B,): that of the normal law and the mean of log da/du.

        The mean is the trapezoid rule's, of points 0.08 σ apart. The poles of tanh lie π/2 off the line, so that its
        error is of order exp(−π²/(0.08 σ)): 1e-7 of the widest law, σ = e².
        """
        mean, log_sigma = self._normal(params)
        points = torch.linspace(-8, 8, 201, dtype=torch.float64).to(params)
        weights = (-0.5 * points.square()).exp()
        u = mean[..., None] + log_sigma.exp()[..., None] * points  # (B, m, 201)
        slope = self._log_slope(u) @ (weights / weights.sum())
        return (log_sigma + 0.5 * math.log(2 * math.pi * math.e) + slope).sum(-1)

    def _normal(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_sigma = params.chunk(2, -1)
        return mean, log_sigma.clamp(-20, 2)

    def _log_slope(self, u: Tensor) -> Tensor:
        """log da/du."""
        slope: Tensor = 2 * (math.log(2) - u - F.softplus(-2 * u)) + math.log(self.scale)
        return slope


def observed(cond: Mapping[str, Tensor] | None) -> Tensor:
    """What a policy is to act on, cond["obs"] (B, ...). Raises UserError where it is missing."""
    if not cond or "obs" not in cond:
        raise UserError("A policy acts on what it sees: give cond={'obs': (B, ...)}.")
    return cond["obs"]
