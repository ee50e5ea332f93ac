"""Paths from data to noise: x_t = α(t) x + σ(t) z, with data at t = 0 and noise at t = 1.

    r(t) = σ/α (noise to signal; EDM's σ),   log-SNR = 2 log(α/σ),   time(r) and time_at(log-SNR) their inverses

Time is a real number. `Linear` is flow matching's path (Lipman et al. 2023, arXiv 2210.02747), `Cosine` the circle
α = cos(πt/2), σ = sin(πt/2) (Albergo & Vanden-Eijnden 2023, arXiv 2209.15571); `VP`, `SubVP` and `VE` are the SDEs of
Song et al. 2021 (arXiv 2011.13456), β(t) = βmin + t (βmax − βmin); `Exploding` is the path of EDM (Karras et al. 2022,
arXiv 2206.00364): α = 1 and σ = σmax t, so that a step that is straight in t is straight in EDM's σ.

Where σ(0) = σmin > 0 (`VE`, `Linear(σmin)`), t = 0 is not clean data but the data under that much noise: the law that
the path knows best. All is finite there, so a solver ends at it by an ordinary step, and a likelihood at t = 0 is that
law's. A ratio that a path does not reach is the time of its nearer end. (Song et al. let σ jump to 0 at t = 0.)

A discrete chain β_0 … β_{T−1} (Ho et al. 2020, arXiv 2006.11239) is `Chain`: its step index i is the time
t = (i + 1) / T, where α² is the table's ᾱ_i; t = 0 is clean data, ᾱ = 1. Between two such times the angle
φ = atan2(σ, α) is linear in t: exact at both ends, also where the last ᾱ is zero and its log-SNR infinite.

Every function takes a float (computed in double precision by `math`) or a tensor of any shape, and answers in kind,
except that a derivative which does not depend on t may be a float.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..errors import UserError
from ..spec import Remembers

Scalar = float | Tensor  # one number, or one per sample (B,)


@runtime_checkable
class Functions(Protocol):
    """What `math` and `torch` have in common."""

    def asinh(self, t: Scalar, /) -> Scalar: ...
    def exp(self, t: Scalar, /) -> Scalar: ...
    def expm1(self, t: Scalar, /) -> Scalar: ...
    def log(self, t: Scalar, /) -> Scalar: ...
    def log1p(self, t: Scalar, /) -> Scalar: ...
    def sqrt(self, t: Scalar, /) -> Scalar: ...
    def sin(self, t: Scalar, /) -> Scalar: ...
    def cos(self, t: Scalar, /) -> Scalar: ...
    def atan(self, t: Scalar, /) -> Scalar: ...


def lib(t: Scalar) -> Functions:
    """The module whose functions take `t`: `torch` for tensors, `math` for floats."""
    return cast(Functions, torch if isinstance(t, Tensor) else math)


def over(a: Scalar, b: Scalar, at_zero: float = 0.0) -> Scalar:
    """The ratio a / b, and `at_zero` where b is 0 (also in the gradient)."""
    if isinstance(b, Tensor):
        zero = b == 0
        return torch.where(zero, at_zero, a / torch.where(zero, 1.0, b))
    if b:
        return a / b
    return torch.full_like(a, at_zero) if isinstance(a, Tensor) else at_zero


def clip(a: Scalar, low: float, high: float) -> Scalar:
    """The value a, or the nearer of `low` and `high`."""
    return a.clamp(low, high) if isinstance(a, Tensor) else min(max(a, low), high)


class Path(Remembers, ABC):
    """α(t), σ(t), their derivatives by t, and the time of a ratio σ/α."""

    @abstractmethod
    def alpha(self, t: Scalar) -> Scalar:
        """What is left of the data at time t."""

    @abstractmethod
    def sigma(self, t: Scalar) -> Scalar:
        """How much noise there is at time t."""

    @abstractmethod
    def dalpha(self, t: Scalar) -> Scalar:
        """dα/dt."""

    @abstractmethod
    def dsigma(self, t: Scalar) -> Scalar:
        """dσ/dt (infinite at t = 0 on `VP`)."""

    @abstractmethod
    def time(self, ratio: Scalar) -> Scalar:
        """The time at which σ/α is `ratio` (not negative, infinite where nothing is left), else the nearer end."""

    @abstractmethod
    def clock(self, t: Scalar) -> Scalar:
        """What a net is told of t, in [0, 1]; times 1000 it is the step number that sinusoidal embeddings know."""

    def ratio(self, t: Scalar) -> Scalar:
        """σ/α, infinite where nothing is left of the data."""
        return over(self.sigma(t), self.alpha(t), math.inf)

    def logsnr(self, t: Scalar) -> Scalar:
        """Log signal-to-noise ratio, 2 log(α/σ): +inf at data, -inf where α = 0."""
        r = self.ratio(t)
        if isinstance(r, Tensor):
            return -2 * r.log()
        return -2 * math.log(r) if r > 0 else math.inf

    def dlogsnr(self, t: Scalar) -> Scalar:
        """Its derivative by t, 2 (α̇/α − σ̇/σ): −g²/σ² of the path's SDE, -inf where α or σ is 0."""
        signal = over(self.dalpha(t), self.alpha(t), -math.inf)
        return 2 * (signal - over(self.dsigma(t), self.sigma(t), math.inf))

    def time_at(self, logsnr: Scalar) -> Scalar:
        """The time at which the log-SNR is `logsnr` (may be infinite), else the nearer end."""
        if isinstance(logsnr, Tensor):
            return self.time((logsnr * -0.5).exp())
        return self.time(math.exp(min(-logsnr / 2, 700.0)))  # not beyond the largest float


class At:
    """A path at one time (or at one time per sample): what a parametrisation reads."""

    __slots__ = ("alpha", "path", "sigma", "t")

    def __init__(self, path: Path, t: Scalar) -> None:
        self.path, self.t, self.alpha, self.sigma = path, t, path.alpha(t), path.sigma(t)

    @property
    def dalpha(self) -> Scalar:
        """dα/dt here."""
        return self.path.dalpha(self.t)

    @property
    def dsigma(self) -> Scalar:
        """dσ/dt here."""
        return self.path.dsigma(self.t)


class Linear(Path):
    """α = 1 − t, σ = σmin + (1 − σmin) t: straight lines from data (under noise σmin) to noise."""

    def __init__(self, sigma_min: float = 0.0) -> None:
        if not 0 <= sigma_min < 1:
            raise UserError(f"Linear's sigma_min is {sigma_min}: use 0 (clean data at t = 0) or a little, as 1e-5.")
        self.sigma_min, self.slope = sigma_min, 1.0 - sigma_min

    def alpha(self, t: Scalar) -> Scalar:
        return 1 - t

    def sigma(self, t: Scalar) -> Scalar:
        return t if self.sigma_min == 0 else t + (1 - t) * self.sigma_min  # both ends are met exactly

    def dalpha(self, t: Scalar) -> Scalar:
        return -1.0

    def dsigma(self, t: Scalar) -> Scalar:
        return self.slope

    def time(self, ratio: Scalar) -> Scalar:
        r = clip(ratio - self.sigma_min, 0.0, 1e30)  # finite: at infinity this is 1
        return r / (1 + r)

    def clock(self, t: Scalar) -> Scalar:
        return t


class Cosine(Path):
    """α = cos(πt/2), σ = sin(πt/2), both exactly 0 at their ends."""

    def alpha(self, t: Scalar) -> Scalar:
        return lib(t).sin((1 - t) * (math.pi / 2))  # cos(pi/2) is 6e-17 in floating point, sin(0) is 0

    def sigma(self, t: Scalar) -> Scalar:
        return lib(t).sin(t * (math.pi / 2))

    def dalpha(self, t: Scalar) -> Scalar:
        return self.sigma(t) * (-math.pi / 2)

    def dsigma(self, t: Scalar) -> Scalar:
        return self.alpha(t) * (math.pi / 2)

    def time(self, ratio: Scalar) -> Scalar:
        return lib(ratio).atan(ratio) * (2 / math.pi)

    def clock(self, t: Scalar) -> Scalar:
        return t


class Decay(Path):
    """α² = exp(−B), B(t) = t βmin + t² (βmax − βmin) / 2: what the SDEs of drift −β x / 2 share."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise UserError(
                f"{type(self).__name__} needs 0 < beta_min <= beta_max, not {beta_min} and {beta_max}:"
                " the paper's are 0.1, 20."
            )
        self.beta_min, self.slope = beta_min, beta_max - beta_min

    def _exponent(self, t: Scalar) -> Scalar:
        return -t * (self.beta_min + t * (self.slope / 2))  # log(alpha^2)

    def _when(self, exponent: Scalar) -> Scalar:
        """The time at which B is `exponent`, at most 1."""
        b = clip(exponent, 0.0, self.beta_min + self.slope / 2)
        return 2 * b / (self.beta_min + lib(b).sqrt(self.beta_min**2 + 2 * self.slope * b))

    def beta(self, t: Scalar) -> Scalar:
        """The SDE's β(t), in dx = −β/2 x dt + g dw."""
        return self.beta_min + t * self.slope

    def alpha(self, t: Scalar) -> Scalar:
        return lib(t).exp(self._exponent(t) / 2)

    def dalpha(self, t: Scalar) -> Scalar:
        return self.beta(t) * self.alpha(t) * -0.5

    def clock(self, t: Scalar) -> Scalar:
        return t


class VP(Decay):
    """The variance-preserving SDE: g² = β, σ² = 1 − α²."""

    def sigma(self, t: Scalar) -> Scalar:
        return lib(t).sqrt(-lib(t).expm1(self._exponent(t)))  # expm1: no cancellation near data

    def dsigma(self, t: Scalar) -> Scalar:
        alpha = self.alpha(t)
        return over(self.beta(t) * alpha * alpha * 0.5, self.sigma(t), math.inf)

    def time(self, ratio: Scalar) -> Scalar:
        return self._when(lib(ratio).log1p(ratio * ratio))


class SubVP(Decay):
    """The sub-VP SDE: g² = β (1 − α⁴), σ = 1 − α²."""

    def sigma(self, t: Scalar) -> Scalar:
        return -lib(t).expm1(self._exponent(t))

    def dsigma(self, t: Scalar) -> Scalar:
        return self.beta(t) * lib(t).exp(self._exponent(t))

    def time(self, ratio: Scalar) -> Scalar:
        return self._when(2 * lib(ratio).asinh(ratio / 2))  # 2 sinh(B/2) = 1/α − α = σ/α


class VE(Path):
    """The variance-exploding SDE: α = 1, σ = σmin (σmax/σmin)^t, its log-SNR straight in t.

    The paper's σ are for data in [0, 1], and σmax of the order of the largest distance between two samples.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise UserError(
                f"VE needs 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}: the paper's are 0.01, 50."
            )
        self.sigma_min, self.sigma_max, self.log = sigma_min, sigma_max, math.log(sigma_max / sigma_min)

    def alpha(self, t: Scalar) -> Scalar:
        return torch.ones_like(t) if isinstance(t, Tensor) else 1.0

    def sigma(self, t: Scalar) -> Scalar:
        return lib(t).exp(t * self.log) * self.sigma_min

    def dalpha(self, t: Scalar) -> Scalar:
        return 0.0

    def dsigma(self, t: Scalar) -> Scalar:
        return self.sigma(t) * self.log

    def time(self, ratio: Scalar) -> Scalar:
        return lib(ratio).log(clip(ratio, self.sigma_min, self.sigma_max) / self.sigma_min) / self.log

    def clock(self, t: Scalar) -> Scalar:
        return t


class Exploding(Path):
    """α = 1, σ = σmax t: EDM's path. Its σ runs from σmax at t = 1 to 0 at t = 0."""

    def __init__(self, sigma_max: float = 80.0) -> None:
        self.sigma_max = sigma_max

    def alpha(self, t: Scalar) -> Scalar:
        return torch.ones_like(t) if isinstance(t, Tensor) else 1.0

    def sigma(self, t: Scalar) -> Scalar:
        return t * self.sigma_max

    def dalpha(self, t: Scalar) -> Scalar:
        return 0.0

    def dsigma(self, t: Scalar) -> Scalar:
        return self.sigma_max

    def time(self, ratio: Scalar) -> Scalar:
        return clip(ratio / self.sigma_max, 0.0, 1.0)

    def clock(self, t: Scalar) -> Scalar:
        return t


class Chain(Path):
    """A discrete chain ᾱ_0 … ᾱ_{T−1} as samples of a continuous path: index i is the time (i + 1) / T.

    A net is told i / T. Subclasses give the table.
    """

    def __init__(self, abar: Tensor) -> None:
        """abar: (T,) float64, falling, in [0, 1)."""
        self.abar, self.steps = abar, len(abar)
        self.angles: list[float] = [0.0, *torch.atan2((1 - abar).sqrt(), abar.sqrt()).tolist()]
        self._tables: dict[torch.device, Tensor] = {}

    @property
    def betas(self) -> Tensor:
        """The chain's β_i = 1 − ᾱ_i / ᾱ_{i−1}, (T,) float64."""
        return 1 - self.abar / torch.cat((self.abar.new_ones(1), self.abar[:-1]))

    def index(self, t: float) -> float:
        """The step index of a time, T t − 1; -1 is clean data."""
        return self.steps * t - 1

    def at_index(self, index: float) -> float:
        """The time of a step index, (i + 1) / T."""
        return (index + 1) / self.steps

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            with torch.inference_mode(False):
                self._tables[device] = torch.tensor(self.angles, dtype=torch.float64, device=device)  # (T + 1,)
        return self._tables[device]

    def _angle(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """φ and dφ/dt, in double precision."""
        if isinstance(t, Tensor):
            table, place = self._table(t.device), t.double() * self.steps
            i = place.long().clamp(0, self.steps - 1)
            low = table[i]
            rise = table[i + 1] - low
            return low + rise * (place - i), rise * self.steps
        k = min(max(int(t * self.steps), 0), self.steps - 1)
        up = self.angles[k + 1] - self.angles[k]
        return self.angles[k] + up * (t * self.steps - k), up * self.steps

    def alpha(self, t: Scalar) -> Scalar:
        return _as(t, lib(t).sin(math.pi / 2 - self._angle(t)[0]))

    def sigma(self, t: Scalar) -> Scalar:
        return _as(t, lib(t).sin(self._angle(t)[0]))

    def dalpha(self, t: Scalar) -> Scalar:
        angle, slope = self._angle(t)
        return _as(t, lib(t).sin(angle) * -slope)

    def dsigma(self, t: Scalar) -> Scalar:
        angle, slope = self._angle(t)
        return _as(t, lib(t).cos(angle) * slope)

    def time(self, ratio: Scalar) -> Scalar:
        if isinstance(ratio, Tensor):
            table, angle = self._table(ratio.device), ratio.double().atan()
            i = (torch.searchsorted(table, angle, right=True) - 1).clamp(0, self.steps - 1)
            low = table[i]
            return ((i + (angle - low) / (table[i + 1] - low)) / self.steps).clamp(max=1.0).to(ratio.dtype)
        phi = math.atan(ratio)
        k = min(max(bisect_right(self.angles, phi) - 1, 0), self.steps - 1)
        return min((k + (phi - self.angles[k]) / (self.angles[k + 1] - self.angles[k])) / self.steps, 1.0)

    def clock(self, t: Scalar) -> Scalar:
        return t - 1 / self.steps


def _as(t: Scalar, value: Scalar) -> Scalar:
    return value.to(t.dtype) if isinstance(t, Tensor) and isinstance(value, Tensor) else value


class LinearBetas(Chain):
    """β linear from `first` to `last` (Ho et al. 2020)."""

    def __init__(self, first: float = 1e-4, last: float = 0.02, steps: int = 1000) -> None:
        super().__init__(_abar(torch.linspace(first, last, steps, dtype=torch.float64)))


class ScaledLinearBetas(Chain):
    """√β linear from √first to √last (Rombach et al. 2022, arXiv 2112.10752)."""

    def __init__(self, first: float = 0.00085, last: float = 0.012, steps: int = 1000) -> None:
        super().__init__(_abar(torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()))


class CosineBetas(Chain):
    """ᾱ(u) ∝ cos²(π/2 (u + s) / (1 + s)), with each β cut at `clip` (Nichol & Dhariwal 2021, arXiv 2102.09672)."""

    def __init__(self, s: float = 0.008, clip: float = 0.999, steps: int = 1000) -> None:
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        f = ((u + s) / (1 + s) * (math.pi / 2)).cos().square()
        super().__init__(_abar((1 - f[1:] / f[:-1]).clamp(max=clip)))


class ZeroTerminal(Chain):
    """Another chain, its √ᾱ shifted and scaled so that the last is 0 and the first is kept (Lin et al. 2024,
    arXiv 2305.08891).
    """

    def __init__(self, chain: Chain) -> None:
        root = chain.abar.sqrt()
        super().__init__(((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square())


def _abar(betas: Tensor) -> Tensor:
    return (1 - betas).cumprod(0)
