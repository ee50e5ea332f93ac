r"""Does a series go round? What turns is against itself half a turn later, and with itself again after a whole one.

    r(l) = Σ x_t x_{t+l} / (Σ x_t² Σ x_{t+l}²)^½      x less its best line, the sums over t = 1 … N - l

Each lag has norms of its own, so that a swing that grows or shrinks steadily keeps |r| = 1. Half a turn is the first
lag at which r is least, a whole one the best lag between 1.5 and 2.5 times that. A drift has no second peak, and noise
none of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Turn(NamedTuple):
    """length: of a turn, in numbers of the series. half, whole: the correlations after half a turn and a whole one.
    kept: the deviation of the newer half of the series over that of the older.
    """

    length: int
    half: float
    whole: float
    kept: float


def turn(values: Sequence[float]) -> Turn | None:
    """How a series goes round. None where it does not, or is too short to tell."""
    n = len(values)
    if n < 24:
        return None
    x = torch.tensor(values, dtype=torch.float64)
    if not bool(x.isfinite().all()):
        return None
    x = _level(x)
    if float(x.square().mean()) < 1e-24:
        return None
    r = [1.0] + [float(_correlation(x[:-lag], x[lag:])) for lag in range(1, n // 2 + 1)]
    trough = next((k for k in range(2, len(r) - 1) if r[k] < 0 and r[k] <= r[k - 1] and r[k] < r[k + 1]), None)
    if trough is None or trough < 3:
        return None
    peak = max(range(trough, len(r)), key=lambda k: r[k] if 1.5 * trough <= k <= 2.5 * trough else -2.0)
    if not 1.5 * trough <= peak <= 2.5 * trough:
        return None
    older, newer = x[: n // 2], x[n // 2 :]
    return Turn(peak, r[trough], r[peak], float(newer.std() / older.std().clamp(min=1e-300)))


def _level(x: Tensor) -> Tensor:
    """x (N,) less its best line."""
    t = torch.linspace(-1, 1, len(x), dtype=x.dtype)
    x = x - x.mean()
    out: Tensor = x - t * (t @ x) / (t @ t)
    return out


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    out: Tensor = (a @ b) / (a.norm() * b.norm()).clamp(min=1e-300)
    return out
