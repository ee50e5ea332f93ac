"""Stochastic processes: what drives them, and walks along them, exact or by steps.

    dx = f(x, t) dt + g(x, t) dw,   every coordinate with a Brownian motion of its own

    Euler–Maruyama       x + f h + g Δw                               strong order ½, weak 1
    Milstein             x + f h + g Δw + ½ g ∂g (Δw² − h)            strong order 1, weak 1
    Ornstein–Uhlenbeck   x_t = m + e^{−θh} (x − m) + √(σ² (1 − e^{−2θh}) / 2θ) n
    geometric            x_t = x exp((μ − σ²/2) h + σ Δw)

A path x_t = αx + σz of diffusion models is the process with f = (α̇/α) x and g² = 2σ (σ̇ − σ α̇/α). With ∇ log p_t the
score of its marginals, the same marginals are walked from noise to data, t falling, for any λ ≥ 0, by

    dx = [f − (1 + λ²)/2 g² ∇ log p_t] dt + λ g dw̄ = [u − λ²/2 g² ∇ log p_t] dt + λ g dw̄

with λ = 1 Anderson's reverse SDE and λ = 0 the probability-flow ODE. Where times fall, Δw has variance |h|.

Uhlenbeck & Ornstein 1930; Maruyama 1955; Milstein 1974; Anderson 1982, "Reverse-time diffusion equation models"; Song
et al. 2021, "Score-based generative modeling through SDEs" (arXiv 2011.13456); all are told in Särkkä & Solin 2019,
"Applied stochastic differential equations".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import NONE, Noise
from ..errors import UserError
from .field import Cond, Field
from .path import Path
from .stochastic import drift, g_squared

Times = Tensor | Sequence[float]

# ---- processes -----------------------------------------------------------------------------------------------------


class Process(ABC):
    """The drift f and the diffusion g of dx = f dt + g dw. Coordinate i of g multiplies dw_i."""

    @abstractmethod
    def drift(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"]:
        """f(x, t)."""

    @abstractmethod
    def diffusion(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"] | float:
        """g(x, t): a number where it does not depend on x."""


class Solved(Process):
    """A process whose transition is known in closed form."""

    @abstractmethod
    def exact(self, x: Float[Tensor, " b *shape"], h: float, dw: Tensor) -> Float[Tensor, " b *shape"]:
        """A draw of the state at h > 0 after x, made of dw ~ N(0, h)."""


class SDE(Process):
    """A process of two functions of (x, t); the diffusion may be a number where it is one."""

    def __init__(
        self, drift: Callable[[Tensor, float], Tensor], diffusion: Callable[[Tensor, float], Tensor | float]
    ) -> None:
        self._drift, self._diffusion = drift, diffusion

    def drift(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"]:
        return self._drift(x, t)

    def diffusion(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"] | float:
        return self._diffusion(x, t)


class Brownian(Solved):
    """dx = σ dw: Cov(x_s, x_t) = σ² min(s, t) from x_0 = 0."""

    def __init__(self, sigma: float = 1.0) -> None:
        self.sigma = sigma

    def drift(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"]:
        return torch.zeros_like(x)

    def diffusion(self, x: Float[Tensor, " b *shape"], t: float) -> float:
        return self.sigma

    def exact(self, x: Float[Tensor, " b *shape"], h: float, dw: Tensor) -> Float[Tensor, " b *shape"]:
        return x + self.sigma * dw


class OrnsteinUhlenbeck(Solved):
    """dx = θ (m − x) dt + σ dw, pulled to m; its stationary law is N(m, σ²/2θ). Raises UserError unless θ > 0."""

    def __init__(self, theta: float = 1.0, sigma: float = 1.0, mean: float = 0.0) -> None:
        if theta <= 0:
            raise UserError(f"An Ornstein-Uhlenbeck process with theta {theta} is not pulled back: use a positive one.")
        self.theta, self.sigma, self.mean = theta, sigma, mean

    def drift(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"]:
        return self.theta * (self.mean - x)

    def diffusion(self, x: Float[Tensor, " b *shape"], t: float) -> float:
        return self.sigma

    def transition(self, x: Tensor, h: float) -> tuple[Tensor, float]:
        """The mean (like x) and the variance of the state at h after x."""
        mean = self.mean + math.exp(-self.theta * h) * (x - self.mean)
        return mean, self.sigma**2 * -math.expm1(-2 * self.theta * h) / (2 * self.theta)

    def exact(self, x: Float[Tensor, " b *shape"], h: float, dw: Tensor) -> Float[Tensor, " b *shape"]:
        mean, variance = self.transition(x, h)
        return mean + math.sqrt(variance / h) * dw


class Geometric(Solved):
    """dx = μ x dt + σ x dw (geometric Brownian motion): a growth whose logarithm is a Brownian motion with drift."""

    def __init__(self, mu: float = 0.0, sigma: float = 1.0) -> None:
        self.mu, self.sigma = mu, sigma

    def drift(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"]:
        return self.mu * x

    def diffusion(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"]:
        return self.sigma * x

    def exact(self, x: Float[Tensor, " b *shape"], h: float, dw: Tensor) -> Float[Tensor, " b *shape"]:
        return x * ((self.mu - self.sigma**2 / 2) * h + self.sigma * dw).exp()


# ---- the processes of a path ---------------------------------------------------------------------------------------


def coefficients(path: Path, t: float) -> tuple[float, float]:
    """(α̇/α, g²) of the process that makes noise of data along a path: f = (α̇/α) x.

    Raises UserError where nothing is left of the data: there both are infinite.
    """
    t = _finite(path, t)
    return float(path.dalpha(t)) / float(path.alpha(t)), float(g_squared(path, t))


def _finite(path: Path, t: float) -> float:
    """The time t, a little above 0: on VP σ̇ is infinite and σ is 0 there, and their product is not."""
    t = max(t, 1e-12)
    if path.alpha(t) == 0:
        raise UserError(
            f"The process along {type(path).__name__} is infinitely fast at t = {t:g}, where nothing is left of the"
            " data: keep to times below, such as 0.999."
        )
    return t


class Forward(Process):
    """From data to noise along a path: x_t given x_0 is N(αx_0, σ²), t rising."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def drift(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"]:
        return coefficients(self.path, t)[0] * x

    def diffusion(self, x: Float[Tensor, " b *shape"], t: float) -> float:
        return math.sqrt(coefficients(self.path, t)[1])


class Reverse(Process):
    """From noise to data in a field, t falling, with λ = `noise` times the noise of the forward process.

    noise: 1 is Anderson's reverse SDE, 0 the probability-flow ODE; every λ has the forward process's marginals.
    cond:  conditions (B, ...) of the B particles.
    """

    def __init__(self, field: Field, noise: float = 1.0, cond: Cond = NONE) -> None:
        self.field, self.noise, self.cond = field, noise, cond

    def drift(self, x: Float[Tensor, " b *shape"], t: float) -> Float[Tensor, " b *shape"]:
        if self.noise == 0:
            return self.field.velocity(x, t, self.cond)
        t = _finite(self.field.path, t)
        return self.field.predict(x, t, *drift(self.field.path, t, 1.0, self.noise), self.cond)

    def diffusion(self, x: Float[Tensor, " b *shape"], t: float) -> float:
        return self.noise * math.sqrt(coefficients(self.field.path, t)[1]) if self.noise else 0.0


# ---- walks ---------------------------------------------------------------------------------------------------------

Scheme = Callable[[Process, Tensor, float, float, Tensor], Tensor]  # (process, x, t, s, Δw) -> the state at s


def euler_maruyama(process: Process, x: Tensor, t: float, s: float, dw: Tensor) -> Tensor:
    """One step from t to s with the increment dw ~ N(0, |s − t|)."""
    return x + (s - t) * process.drift(x, t) + process.diffusion(x, t) * dw


def milstein(process: Process, x: Tensor, t: float, s: float, dw: Tensor) -> Tensor:
    """One step from t to s with the increment dw ~ N(0, |s − t|); g_i may depend on x_i and on no other coordinate."""
    g = process.diffusion(x, t)
    step = x + (s - t) * process.drift(x, t) + g * dw
    if not isinstance(g, Tensor):
        return step
    with torch.enable_grad():
        y = x if x.requires_grad else x.detach().requires_grad_()
        again = process.diffusion(y, t)
        if not (isinstance(again, Tensor) and again.requires_grad):
            return step  # g does not depend on x
        (slope,) = torch.autograd.grad(again.sum(), y, create_graph=g.requires_grad, materialize_grads=True)
    return step + 0.5 * g * slope * (dw.square() - abs(s - t))


def exact(process: Process, x: Tensor, t: float, s: float, dw: Tensor) -> Tensor:
    """One step of any size without error. Raises UserError for processes without a closed form, and for s < t."""
    if not isinstance(process, Solved):
        raise UserError(f"{type(process).__name__} has no closed form: use euler_maruyama or milstein.")
    if s < t:
        raise UserError(f"An exact step cannot go back from t = {t:g} to {s:g}: give times that rise.")
    return process.exact(x, s - t, dw) if s > t else x


def normals(noise: Noise, n: int, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """n draws (B, *shape) of standard normals; made in pairs, since one 64-bit integer is good for two numbers."""
    for i in range(0, n, 2):
        yield from noise.normal(2, *shape, dtype=dtype).unbind(1)[: n - i]


def walk(
    process: Process, x: Tensor, times: Times, noise: Noise, *, scheme: Scheme = euler_maruyama
) -> Iterator[tuple[float, Tensor]]:
    """`simulate`, state by state: (times[0], x), (times[1], …), …"""
    grid = [float(t) for t in (times.tolist() if isinstance(times, Tensor) else times)]
    if not grid:
        raise UserError("There are no times to walk through: give at least one, such as torch.linspace(0, 1, 101).")
    if len(noise) != len(x):
        raise UserError(f"The noise has {len(noise)} keys for {len(x)} particles: give one for each.")
    yield grid[0], x
    for (t, s), n in zip(pairwise(grid), normals(noise, len(grid) - 1, x.shape[1:], x.dtype), strict=True):
        x = scheme(process, x, t, s, n.to(x.device) * math.sqrt(abs(s - t)))
        yield s, x


def simulate(
    process: Process,
    x: Float[Tensor, " b *shape"],
    times: Times,
    noise: Noise,
    *,
    scheme: Scheme = euler_maruyama,
) -> Float[Tensor, " b *shape"]:
    """The state at times[-1] of B particles that are at x at times[0]; particle i hears the noise's key i alone.

    times:  rising, or falling for `Reverse`: one step of `scheme` from each to the next.
    scheme: `euler_maruyama`, `milstein`, or `exact` where the process knows its transition.
    Raises UserError where there are no times, or not one key for each particle.
    """
    state = x
    for _, state in walk(process, x, times, noise, scheme=scheme):  # noqa: B007
        pass
    return state


def paths(
    process: Process,
    x: Float[Tensor, " b *shape"],
    times: Times,
    noise: Noise,
    *,
    scheme: Scheme = euler_maruyama,
) -> Float[Tensor, "b t *shape"]:
    """`simulate` with the states at all times, the first included."""
    return torch.stack([state for _, state in walk(process, x, times, noise, scheme=scheme)], 1)
