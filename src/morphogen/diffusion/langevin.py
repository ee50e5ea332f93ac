"""Langevin dynamics: samples of a law known by its score, or by its density up to a constant.

    ULA    x ← x + η ∇ log p(x) + √(2η) ξ
    MALA   the same proposal y, taken with probability min(1, p(y) q(x|y) / p(x) q(y|x)),  q(·|x) = N(x + η∇log p, 2η)

The unadjusted walk has a law of its own, which is p as η → 0: on N(0, 1) its variance is 1/(1 − η/2), and from η = 2 on
it runs away. The adjusted one has exactly p, and takes nearly every proposal while η is well below D^(−1/3).

Roberts & Tweedie 1996, "Exponential convergence of Langevin distributions and their discrete approximations"; Roberts &
Rosenthal 1998 (D^(−1/3) and 57 % taken).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Noise
from ..errors import UserError
from ..spec import Remembers
from .process import normals

Score = Callable[[Tensor], Tensor]  # x (B, ...) -> ∇ log p (B, ...)
LogDensity = Callable[[Tensor], Tensor]  # x (B, ...) -> log p (B,), nats, up to a constant


def ula(score: Score, x: Float[Tensor, " b *shape"], step: float, n: int, noise: Noise) -> Float[Tensor, " b *shape"]:
    """B chains after n unadjusted steps of size η = `step` from x; differentiable where the score is."""
    for xi in normals(noise, n, x.shape[1:], x.dtype):
        x = torch.add(x + step * score(x), xi.to(x.device), alpha=math.sqrt(2 * step))
    return x


class Adjusted(NamedTuple):
    """Chains (B, ...) and the share of the proposals that each took (B,)."""

    x: Tensor
    taken: Tensor


def mala(log_density: LogDensity, x: Float[Tensor, " b *shape"], step: float, n: int, noise: Noise) -> Adjusted:
    """B chains after n adjusted steps of size η = `step` from x, and the share of proposals taken. No gradients."""
    x = x.detach()
    logp, slope = _with_slope(log_density, x)
    taken = torch.zeros_like(logp)
    for xi in normals(noise, n, x.shape[1:], x.dtype):
        xi = xi.to(x.device)
        y = x + step * slope + math.sqrt(2 * step) * xi
        logp_y, slope_y = _with_slope(log_density, y)
        back = (x - y - step * slope_y).flatten(1).square().sum(1) / (4 * step)
        there = xi.flatten(1).square().sum(1) / 2
        yes = noise.uniform(dtype=x.dtype).to(x.device) < (logp_y - logp + there - back).exp()  # NaN takes nothing
        each = yes.reshape(-1, *(1,) * (x.dim() - 1))
        x, slope, logp = torch.where(each, y, x), torch.where(each, slope_y, slope), torch.where(yes, logp_y, logp)
        taken = taken + yes
    return Adjusted(x, taken / max(n, 1))


def _with_slope(log_density: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logp = log_density(x)
        (slope,) = torch.autograd.grad(logp.sum(), x)
    return logp.detach(), slope


# ---- as a model's sampler ------------------------------------------------------------------------------------------


class Law(NamedTuple):
    """What is known of a law: its score, and its log-density up to a constant where there is one."""

    score: Score
    log_density: LogDensity | None = None


class Langevin(Remembers, ABC):
    """A walk of `steps` steps of size `step`."""

    def __init__(self, step: float, steps: int) -> None:
        if step <= 0 or steps < 0:
            raise UserError(f"A walk of {steps} steps of size {step:g} goes nowhere: use positive numbers.")
        self.step, self.steps = step, steps

    @abstractmethod
    def __call__(self, law: Law, x: Tensor, noise: Noise) -> Tensor:
        """Chains (B, ...) that began at x."""


class ULA(Langevin):
    """Unadjusted: needs the score alone, and is off by O(η)."""

    def __call__(self, law: Law, x: Tensor, noise: Noise) -> Tensor:
        return ula(law.score, x, self.step, self.steps, noise)


class MALA(Langevin):
    """Adjusted by acceptance: exact in the limit, and needs a density. Raises UserError where there is none."""

    def __call__(self, law: Law, x: Tensor, noise: Noise) -> Tensor:
        if law.log_density is None:
            raise UserError("MALA weighs a density, and a net that says a score has none: use ULA, or Energy(net).")
        return mala(law.log_density, x, self.step, self.steps, noise).x
