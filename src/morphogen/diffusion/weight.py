"""Where in time a net is trained, and how much an error counts there: the density of t and the weight w(t).

The loss is the mean over t ~ density of w(t) |F − F*|². The product of density and weight, taken over the net's own
output, is what a model sees; the split between them is a matter of variance (Kingma & Gao 2023, arXiv 2303.00848).

With λ the log-SNR, p(λ) = p(t) / |dλ/dt| the density over it, and ox, oe the factors on F in x̂ and ε̂ (oe² = SNR ox²),
so that the squared errors of x̂, ε̂ and F are as ox², oe² and 1:

    min-SNR       min(SNR, γ) ox²         on ε̂: min(1, γ/SNR), on x̂: min(SNR, γ), on v: min(SNR, γ) / (SNR + 1)
    likelihood    ½ |dλ/dt| oe² / p(t) = ½ oe² / p(λ)        the integrand of the variational bound, per coordinate

The likelihood's weight is constant for a net that says ε where λ is uniform (`LogSNR`): the importance sampling of
Song, Durkan, Murray & Ermon 2021 (arXiv 2101.09258), whose g²/σ² is |dλ/dt|. Every sample's time is drawn from its own
key, so times are not stratified over the batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..core import Noise
from ..errors import UserError
from ..spec import Remembers
from .field import Parametrisation
from .path import At, Path, Scalar, lib, over

# ---- densities of t ------------------------------------------------------------------------------------------------


class Density(Remembers, ABC):
    """The law of the times t (B,) at which a net is trained."""

    @abstractmethod
    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        """One time per key of `noise` (B,)."""

    @abstractmethod
    def per_logsnr(self, at: At) -> Scalar:
        """The density of the log-SNR, p(t) / |dλ/dt|, at times of this law; 0 where |dλ/dt| is infinite."""


def _by_t(p: Scalar, at: At) -> Scalar:
    """The density p of t as one of the log-SNR."""
    return -p / at.path.dlogsnr(at.t)


class Uniform(Density):
    """t uniform on [low, high]."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.low, self.high = low, high

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        u = noise.uniform(dtype=dtype)
        return u if (self.low, self.high) == (0.0, 1.0) else self.low + (self.high - self.low) * u

    def per_logsnr(self, at: At) -> Scalar:
        return _by_t(1 / (self.high - self.low), at)


class Steps(Density):
    """t uniform on the T times 1/T, 2/T, …, 1 of a discrete chain: DDPM's law."""

    def __init__(self, steps: int = 1000) -> None:
        self.steps = steps

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        return (noise.integers(self.steps) + 1).to(dtype) / self.steps

    def per_logsnr(self, at: At) -> Scalar:
        """As if uniform on [0, 1], which it is as T grows."""
        return _by_t(1.0, at)


class LogNormal(Density):
    """log(σ/α) normal: EDM's law (Karras et al. 2022, table 1: −1.2, 1.2)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        self.mean, self.std = mean, std

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        t = path.time((noise.normal(dtype=dtype) * self.std + self.mean).exp())
        assert isinstance(t, Tensor)
        return t

    def per_logsnr(self, at: At) -> Scalar:
        return _normal(at.path.logsnr(at.t) * -0.5, self.mean, self.std) * 0.5


class LogitNormal(Density):
    """Logit of t normal (Esser et al. 2024, arXiv 2403.03206: 0, 1)."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        return (noise.normal(dtype=dtype) * self.std + self.mean).sigmoid()

    def per_logsnr(self, at: At) -> Scalar:
        t, m = at.t, lib(at.t)
        return _by_t(_normal(m.log(t / (1 - t)), self.mean, self.std) / (t * (1 - t)), at)


class LogSNR(Density):
    """Log-SNR uniform between those of the times `low` and `high`.

    Drawing from it raises UserError where one of the two is infinite.
    """

    def __init__(self, low: float = 1e-5, high: float = 1.0) -> None:
        self.low, self.high = low, high

    def _range(self, path: Path) -> tuple[float, float]:
        ends = float(path.logsnr(self.low)), float(path.logsnr(self.high))
        if not (math.isfinite(ends[0]) and math.isfinite(ends[1])):
            raise UserError(
                f"log-SNR is infinite at t = {self.low:g} or {self.high:g} on {type(path).__name__}:"
                " draw it a little inside, such as LogSNR(1e-5, 0.999)."
            )
        return ends

    def __call__(self, noise: Noise, path: Path, dtype: torch.dtype) -> Tensor:
        high, low = self._range(path)
        t = path.time_at(noise.uniform(dtype=dtype) * (low - high) + high)
        assert isinstance(t, Tensor)
        return t

    def per_logsnr(self, at: At) -> Scalar:
        high, low = self._range(at.path)
        return 1 / (high - low)


def _normal(a: Scalar, mean: float, std: float) -> Scalar:
    """The density of N(mean, std²) at a."""
    z = (a - mean) / std
    return lib(a).exp(z * z * -0.5) / (std * math.sqrt(2 * math.pi))


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
        """Written so that it holds at both ends: SNR ox² = oe²."""
        r = over(at.alpha, at.sigma, math.inf)
        out_x, out_e = parametrisation.x(at)[1], parametrisation.eps(at)[1]
        low, high = out_e * out_e, out_x * out_x * self.gamma
        if isinstance(r, Tensor):
            return torch.where(r * r < self.gamma, low, high)
        return low if r * r < self.gamma else high


class Likelihood(Weight):
    """The weight that makes the loss the integral of the variational bound: nats per coordinate, less the terms of the
    two ends (Kingma et al. 2021, arXiv 2107.00630; Song et al. 2021, arXiv 2101.09258).

    density: the law of t that the model is trained with. `LogSNR` makes the weight a constant for ε; `Uniform` from
    t = 0 makes it infinite at t = 0 where σ(0) = 0.
    """

    def __init__(self, density: Density) -> None:
        self.density = density

    def __call__(self, at: At, parametrisation: Parametrisation) -> Scalar:
        out = parametrisation.eps(at)[1]
        return over(out * out * 0.5, self.density.per_logsnr(at), math.inf)
