"""Where in time a net is trained, and how much an error counts there: the density of t and the weight w(t).

The loss is the mean over t ~ density of w(t) |F − F*|². The product of density and weight, taken over the net's own
output, is what a model sees; the split between them is a matter of variance (Kingma & Gao 2023, arXiv 2303.00848).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..core import Noise
from ..spec import Remembers
from .field import Parametrisation
from .path import At, Path, Scalar, over

# ---- densities of t ------------------------------------------------------------------------------------------------


class Density(Remembers, ABC):
    """The law of the times t (B,) at which a net is trained."""

    @abstractmethod
    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        """One time per key of `noise` (B,)."""


class Uniform(Density):
    """t uniform on [low, high]."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.low, self.high = low, high

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        u = noise.uniform(dtype=dtype)
        return u if (self.low, self.high) == (0.0, 1.0) else self.low + (self.high - self.low) * u


class Steps(Density):
    """t uniform on the T times 1/T, 2/T, …, 1 of a discrete chain: DDPM's law."""

    def __init__(self, steps: int = 1000) -> None:
        self.steps = steps

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        return (noise.integers(self.steps) + 1).to(dtype) / self.steps


class LogNormal(Density):
    """log(σ/α) normal: EDM's law (Karras et al. 2022, table 1: −1.2, 1.2)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        self.mean, self.std = mean, std

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        t = path.time((noise.normal(dtype=dtype) * self.std + self.mean).exp())
        assert isinstance(t, Tensor)
        return t


class LogitNormal(Density):
    """Logit of t normal (Esser et al. 2024, arXiv 2403.03206: 0, 1)."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        return (noise.normal(dtype=dtype) * self.std + self.mean).sigmoid()


# ---- weights -------------------------------------------------------------------------------------------------------


class Weight(Remembers, ABC):
    """A factor (B,) on the squared error of F. None at all is each paper's own choice: DDPM's simple loss for `Eps`,
    EDM's λ(σ) for `EDM`, flow matching for `Velocity`.
    """

    @abstractmethod
    def __call__(self, at: At, parametrisation: Parametrisation) -> Scalar:
        """The factor at these times."""


class MinSNR(Weight):
    """min(SNR, γ) on the squared error of x̂ (Hang et al. 2023, arXiv 2303.09556)."""

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, at: At, parametrisation: Parametrisation) -> Scalar:
        """min(α²/σ², γ) out², written for both ends: the error of x̂ is `out` times that of F."""
        out = parametrisation.x(at)[1]
        r = over(at.alpha, at.sigma, self.gamma**0.5)
        snr = r * r
        return (snr.clamp(max=self.gamma) if isinstance(snr, Tensor) else min(snr, self.gamma)) * out * out
