"""Grids: the times that a solver goes through, from noise to data.

Song et al. 2021 (uniform, arXiv 2011.13456), Karras et al. 2022 (arXiv 2206.00364), Lu et al. 2022 (log-SNR, arXiv
2206.00927), Lin et al. 2024 (leading, trailing and linspace of a discrete chain, arXiv 2305.08891).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError, unknown
from ..spec import Remembers
from .path import Chain, Path


class Grid(Remembers, ABC):
    """The times of n steps: n falling times, then 0, in double precision."""

    @abstractmethod
    def __call__(self, path: Path, n: int) -> Float[Tensor, " {n}+1"]:
        """The n + 1 times. Raises UserError for n < 1 or for times that the path does not have."""

    def on(self, path: Path) -> Grid:
        """What the grid's name means on this path: the grid itself, or one that begins where the path allows it."""
        return self


def _to_data(times: Tensor) -> Tensor:
    return torch.cat((times, times.new_zeros(1)))


def _enough(n: int, most: int | None = None) -> None:
    if n < 1 or (most is not None and n > most):
        bound = "at least 1" if most is None else f"1 to {most}"
        raise UserError(f"A grid of {n} steps was asked for: use {bound}.")


class Uniform(Grid):
    """Equal steps of t from `start` to 0."""

    def __init__(self, start: float = 1.0) -> None:
        self.start = start

    def __call__(self, path: Path, n: int) -> Float[Tensor, " {n}+1"]:
        _enough(n)
        return torch.linspace(self.start, 0.0, n + 1, dtype=torch.float64)


class Karras(Grid):
    """Noise levels σ/α equally spaced in their ρ-th root, from `high` to `low`, then 0 (Karras et al. 2022, eq. 5)."""

    def __init__(self, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> None:
        self.low, self.high, self.rho = low, high, rho

    def __call__(self, path: Path, n: int) -> Float[Tensor, " {n}+1"]:
        _enough(n)
        root = torch.linspace(self.high ** (1 / self.rho), self.low ** (1 / self.rho), n, dtype=torch.float64)
        return _to_data(torch.as_tensor(path.time(root.pow(self.rho))))


class LogSNR(Grid):
    """Equal steps of log-SNR between the times `start` and `end`, then one to 0 (Lu et al. 2022, arXiv 2206.00927)."""

    def __init__(self, start: float = 1.0, end: float = 1e-3) -> None:
        self.start, self.end = start, end

    def __call__(self, path: Path, n: int) -> Float[Tensor, " {n}+1"]:
        _enough(n)
        low, high = path.logsnr(self.start), path.logsnr(self.end)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(
                f"log-SNR is infinite at t = {self.start:g} or {self.end:g} on {type(path).__name__}:"
                " start LogSNR a little below 1 and end it above 0, such as LogSNR(0.999, 0.001)."
            )
        times = torch.as_tensor(path.time(torch.linspace(low, high, n, dtype=torch.float64).mul(-0.5).exp()))
        return _to_data(times)

    def on(self, path: Path) -> LogSNR:
        return self if math.isfinite(path.logsnr(self.start)) else LogSNR(min(self.start, 0.999), self.end)


class OfChain(Grid):
    """A grid over the step indices 0 .. T−1 of a discrete chain."""

    @abstractmethod
    def indices(self, steps: int, n: int) -> Tensor:
        """The n falling indices, of 0 .. steps − 1."""

    def __call__(self, path: Path, n: int) -> Float[Tensor, " {n}+1"]:
        if not isinstance(path, Chain):
            kind, own = type(path).__name__, type(self).__name__
            raise UserError(
                f"{own} picks steps of a discrete chain, but {kind} is no chain: use Uniform or LogSNR there."
            )
        _enough(n, path.steps)
        return _to_data((self.indices(path.steps, n).double() + 1) / path.steps)


class Leading(OfChain):
    """Indices (n−1)k, …, 2k, k, 0 with k = T // n: begins below full noise."""

    def indices(self, steps: int, n: int) -> Tensor:
        return torch.arange(n - 1, -1, -1) * (steps // n)


class Trailing(OfChain):
    """Indices round(T − iT/n) − 1, i = 0 … n−1: begins at full noise, and n = T is the whole chain."""

    def indices(self, steps: int, n: int) -> Tensor:
        return (steps - torch.arange(n, dtype=torch.float64) * (steps / n)).round() - 1


class Linspace(OfChain):
    """n indices equally spaced from T − 1 to 0, rounded."""

    def indices(self, steps: int, n: int) -> Tensor:
        return torch.linspace(steps - 1, 0, n, dtype=torch.float64).round()


GRIDS: Mapping[str, Grid] = {
    "karras": Karras(),
    "leading": Leading(),
    "linspace": Linspace(),
    "logsnr": LogSNR(),
    "trailing": Trailing(),
    "uniform": Uniform(),
}


def chosen(wish: Grid | str | None, own: Grid, path: Path) -> Grid:
    """The grid that was asked for: an object, `own` for None and for its own kind's name, another name as on `path`.

    By its name a model's own kind of grid keeps the ends that the model gave it.
    Raises UserError for unknown names.
    """
    if not isinstance(wish, str):
        return own if wish is None else wish
    if wish not in GRIDS:
        raise unknown("grid", wish, GRIDS)
    return own if type(own) is type(GRIDS[wish]) else GRIDS[wish].on(path)
