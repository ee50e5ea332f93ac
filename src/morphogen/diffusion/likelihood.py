"""Likelihood of a field: the log-density of its probability flow, and a lower bound for its reverse diffusion.

Every path is walked on the unit circle, whatever its own clock: θ = atan(σ/α), x̃ = x_t / √(α² + σ²) = cos θ x + sin θ z

    dx̃/dθ = v̂ = cos θ ε̂ − sin θ x̂          finite at both ends, also where dσ/dt or σ/α are not

in the variable u = log θ, between the noise-to-signal ratios r_0 = σ/α = `low` and r_1 = σ(1)/α(1) ≤ ∞:

    log p(x) = log N(x̃_1; 0, sin²θ_1) + D log cos θ_0 + ∫ θ ∇·v̂(x̃_u) du,     x̃_0 = cos θ_0 x          (`log_density`)
    log p(x) ≥ E log p(x | y_0) − ½ cot²θ_1 |x|² − ∫ E θ cot θ |v − v̂|² du,   y_0 = x + r_0 z           (`bound`)

The density is that of y_0, which a solver draws that stops at r_0: normalised whatever the field, and for an exact one
that of the data blurred by N(0, r_0²). The bound's integral is ∫ E |z − ε̂|² d log(σ/α), VDM's in continuous time, its
decoder N(x; x̂(y_0), r_0²) or that over levels of pixels. It bounds the density of the reverse *diffusion*; where the
field is no score that of the flow is another (Song et al. 2021, arXiv 2101.09258).

The noise at t = 1 is N(0, σ_1²), with which `sample` begins. Where α_1 > 0 the data's noisy marginal is another: for
data of mean m and deviation s the expected error is ½ [α_1² (m² + s²) / σ_1² − log(1 + α_1² s² / σ_1²)] nats a
coordinate. `mean` and `std` put N(α_1 m, σ_1² + α_1² s²) in its place.

∇· is exact (D backward passes) or Hutchinson's vᵀJv, unbiased in log p, v kept along the way (FFJORD). Chen et al. 2018
(arXiv 1806.07366), Grathwohl et al. 2018 (arXiv 1810.01367), Song et al. 2021 (arXiv 2011.13456), Kingma et al. 2021
(VDM, arXiv 2107.00630). Departure: one clock for all paths; they integrate in t, from an ε of each path's own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..core import NONE, Noise
from ..errors import UserError
from ..laws import normal_kl, normal_log_prob
from ..spec import Remembers
from .adaptive import PER_SAMPLE, Control, integrate
from .decoder import Decoder, Normal
from .divergence import Divergence, Exact, divergence_for, trace
from .field import Cond, Field, spread
from .path import Chain, Path, Scalar, lib
from .solve import RK4, Rate, Tableau, runge_kutta

EVALUATIONS = 64  # of the bound's integral, unless told otherwise

# ---- integrators ---------------------------------------------------------------------------------------------------


class Integrator(Remembers, ABC):
    """Takes dy/du = f(u, y) from y (B, N) at u to w."""

    @abstractmethod
    def __call__(self, f: Rate, y: Float[Tensor, "b n"], u: float, w: float) -> Float[Tensor, "b n"]:
        """The state at w."""

    @abstractmethod
    def __str__(self) -> str:
        """Its name and number of evaluations, for receipts."""


class Fixed(Integrator):
    """`steps` equal steps of an explicit Runge-Kutta method: each row's result depends on that row alone."""

    def __init__(self, steps: int = 25, tableau: Tableau = RK4) -> None:
        if steps < 1:
            raise UserError(f"Fixed(steps={steps}) goes nowhere: use 1 or more.")
        self.steps, self.tableau = steps, tableau

    def __call__(self, f: Rate, y: Float[Tensor, "b n"], u: float, w: float) -> Float[Tensor, "b n"]:
        edges = [u + (w - u) * i / self.steps for i in range(self.steps)] + [w]
        for a, b in pairwise(edges):
            y = runge_kutta(self.tableau, f, y, a, b)
        return y

    def __str__(self) -> str:
        return f"{self.steps} Runge-Kutta steps, {self.steps * len(self.tableau.b)} evaluations"


def integrator_for(size: int) -> Integrator:
    """The integrator that is used where none is named: 200 evaluations up to 16 coordinates, which twenty-five narrow
    modes in the plane need (100 err by 0.02 nats there), then 64, whose error on a digits net is below 0.001 bits per
    dimension, far below the standard error of a test set.
    """
    return Fixed(50 if size <= 16 else 16)


class Adaptive(Integrator):
    """Dormand and Prince's adaptive method: a step errs by less than atol + rtol |y|, log p being one of the y.

    evaluations: of the field, in the last call.
    """

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, control: Control = PER_SAMPLE) -> None:
        self.rtol, self.atol, self.control, self.evaluations = rtol, atol, control, 0

    def __call__(self, f: Rate, y: Float[Tensor, "b n"], u: float, w: float) -> Float[Tensor, "b n"]:
        walked = integrate(f, y, u, w, rtol=self.rtol, atol=self.atol, control=self.control)
        self.evaluations = walked.evaluations
        return walked.y

    def __str__(self) -> str:
        return f"adaptive Dormand-Prince, rtol {self.rtol:g}, atol {self.atol:g}"


# ---- the density of the probability flow ---------------------------------------------------------------------------


def floor(path: Path) -> float:
    """The σ/α down to which a likelihood goes where none is said: the first step of a chain, else 0.001, or what noise
    the path begins with.
    """
    return float(path.ratio(path.at_index(0))) if isinstance(path, Chain) else max(1e-3, float(path.ratio(0.0)))


def angles(path: Path, low: float | None) -> tuple[float, float]:
    """θ_0 and θ_1."""
    low = floor(path) if low is None else low
    first, last = float(path.ratio(0.0)), float(path.ratio(1.0))
    if not first <= low < last or low <= 0:
        raise UserError(
            f"A likelihood from σ/α = {low:g} is asked for on {type(path).__name__}, whose noise goes from {first:g} to"
            f" {last:g}: give a low between, above 0, such as {floor(path):g}."
        )
    return math.atan(low), math.atan2(float(path.sigma(1.0)), float(path.alpha(1.0)))


def time(path: Path, theta: Scalar, end: float, dtype: torch.dtype) -> Scalar:
    """The time of an angle; a tensor of angles is float64, since near the end of a path tan θ is steep."""
    if isinstance(theta, Tensor):
        time = torch.as_tensor(path.time(theta.clamp(max=end * (1 - 1e-9)).tan()))
        return torch.where(theta >= end * (1 - 1e-6), 1.0, time).to(dtype)
    return 1.0 if theta >= end * (1 - 1e-12) else path.time(math.tan(theta))


def circle(path: Path, t: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """cos θ, sin θ and √(α² + σ²) at a time."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    h = lib(t).sqrt(alpha * alpha + sigma * sigma)
    return alpha / h, sigma / h, h


def log_density(
    field: Field,
    x: Shaped[Tensor, " b *shape"],
    cond: Cond = NONE,
    *,
    noise: Noise | None = None,
    divergence: Divergence | None = None,
    integrator: Integrator | None = None,
    low: float | None = None,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 0.0,
) -> Float[Tensor, " b"]:
    """The log-density of x (B, *shape) under a field's probability flow, nats; differentiable in x and in weights.

    noise:      of the divergence's directions; by default that of the numbers in x (`Noise.of`).
    divergence: `Exact()`, `Hutchinson()` …; by default exact up to 16 coordinates.
    integrator: by default `integrator_for`, 64 or 200 evaluations; `Adaptive()` where the last 0.001 nats matter.
    low:        the noise-to-signal ratio at which the flow ends: the density is that of x + low · noise. By default
                0.001, or that of a chain's first step.
    mean, std:  of the data, numbers or (*shape), where the noise at t = 1 is to keep what the path leaves of them; by
                default it is N(0, σ(1)²), which `sample` begins with.
    A guided field has the density of what guided sampling draws, which is not p(x) p(c | x)^w made to sum to one.
    Raises UserError where x holds integers, or `low` is not between the ends of the path.
    """
    _floats(x)
    path, graph, shape = field.path, torch.is_grad_enabled(), x.shape
    size = math.prod(x.shape[1:])
    start, end = angles(path, low)
    divergence = divergence_for(size) if divergence is None else divergence
    probes = divergence.probes(x, Noise.of(x) if noise is None else noise)

    def rate(u: Scalar, y: Tensor) -> Tensor:
        theta = u.double().exp() if isinstance(u, Tensor) else math.exp(u)
        t = time(path, theta, end, x.dtype)
        cos, sin, h = circle(path, t)
        scale = theta.to(x.dtype) if isinstance(theta, Tensor) else theta
        with torch.enable_grad():
            at = y[:, :-1].reshape(shape)  # (B, *shape)
            at = at if graph and at.requires_grad else at.detach().requires_grad_()
            v = field.predict(at * spread(h, x), t, -scale * sin, scale * cos, cond)
            rise = trace(v, at, probes, graph)
        return torch.cat(((v if graph else v.detach()).flatten(1), rise[:, None]), 1)

    y = torch.cat((x.flatten(1) * math.cos(start), x.new_zeros(len(x), 1)), 1)  # (B, D + 1)
    y = (integrator_for(size) if integrator is None else integrator)(rate, y, math.log(start), math.log(end))
    return _log_prior(y[:, :-1].reshape(shape), path, mean, std) + y[:, -1] + size * math.log(math.cos(start))


def told(path: Path, shape: tuple[int, ...], method: str) -> str:
    """How `log_density` ("log_prob") and `bound` ("elbo") go about it by default, in a clause."""
    low = f"from σ/α = {floor(path):.4g}"
    if method == "elbo":
        return f"bound of the reverse diffusion {low}, {EVALUATIONS + 1} evaluations"
    size = math.prod(shape)
    trace = "exact divergence" if isinstance(divergence_for(size), Exact) else "Hutchinson's divergence"
    return f"probability flow {low}, {integrator_for(size)}, {trace}"


def _log_prior(x: Tensor, path: Path, mean: float | Tensor, std: float | Tensor) -> Tensor:
    """Log-density of x̃ (B, *shape) at t = 1: of the noise, or of what it is with the data's mean and deviation."""
    alpha, sigma = float(path.alpha(1.0)), float(path.sigma(1.0))
    h = math.hypot(alpha, sigma)
    m, s = torch.as_tensor(mean).to(x), torch.as_tensor(std).to(x)
    var = (sigma * sigma + alpha * alpha * s * s) / (h * h)
    return normal_log_prob(x, m * (alpha / h), var.log()).flatten(1).sum(1)


def _floats(x: Tensor) -> None:
    if not x.is_floating_point():
        raise UserError(
            f"The likelihood of {str(x.dtype).removeprefix('torch.')} numbers is asked for, but this density is over"
            " real ones: give x as floats, pixels dequantised."
        )


# ---- the bound -----------------------------------------------------------------------------------------------------


def bound(
    field: Field,
    x: Shaped[Tensor, " b *shape"],
    cond: Cond = NONE,
    *,
    noise: Noise | None = None,
    evaluations: int = EVALUATIONS,
    decoder: Decoder | None = None,
    low: float | None = None,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 0.0,
) -> Float[Tensor, " b"]:
    """An unbiased estimate of the variational bound of log p(x) (B,), nats, from `evaluations` + 1 of the field.

    noise:       of the estimate; by default that of the numbers in x.
    evaluations: times in the integral, one in each of as many equal pieces of log θ, all shifted by one draw.
    decoder:     `Normal()` by default; `Levels()` for pixels.
    low, mean, std: as in `log_density`.
    """
    _floats(x)
    if evaluations < 1:
        raise UserError(f"evaluations={evaluations} estimates nothing: use 1 or more, better 64.")
    path, decoder = field.path, Normal() if decoder is None else decoder
    start, end = angles(path, low)
    x = decoder.observe(x)
    noise = Noise.of(x) if noise is None else noise

    def draw() -> Tensor:
        return noise.normal(*x.shape[1:], dtype=x.dtype).to(x.device)

    # the decoder, at θ_0
    t = time(path, start, end, x.dtype)
    alpha, sigma = path.alpha(t), path.sigma(t)
    x0 = decoder.clamp(field.predict(alpha * x + sigma * draw(), t, 1.0, 0.0, cond))
    found = decoder.log_prob(x, x0, x.new_tensor(2 * math.log(math.tan(start)))).flatten(1).sum(1)
    # the latents' end, at θ_1
    alpha, sigma = float(path.alpha(1.0)), float(path.sigma(1.0))
    m, s = torch.as_tensor(mean).to(x), torch.as_tensor(std).to(x)
    log_noise = x.new_tensor(2 * math.log(sigma))
    log_prior = (sigma * sigma + alpha * alpha * s * s).log() if bool((s > 0).any()) else log_noise
    found = found - normal_kl(alpha * x, log_noise, alpha * m, log_prior).flatten(1).sum(1)
    # between
    u = noise.uniform(dtype=torch.float64).to(x.device)  # (B,)
    width = math.log(end / start)
    for k in range(evaluations):
        theta = start * ((k + u) / evaluations * width).exp()
        gap = _gap(field, x, draw(), time(path, theta, end, x.dtype), theta, cond)
        found = found - gap * (width / evaluations)
    return found


def _gap(field: Field, x: Tensor, z: Tensor, t: Scalar, theta: Tensor, cond: Cond) -> Tensor:
    """θ cot θ |v − v̂|² (B,): what the bound loses in each unit of log θ."""
    cos, sin, h = circle(field.path, t)
    on, off = spread(cos, x), spread(sin, x)
    told = field.predict((on * x + off * z) * spread(h, x), t, -sin, cos, cond)
    lost: Tensor = (on * z - off * x - told).square().flatten(1).sum(1)
    return lost * (theta / theta.tan()).to(x.dtype)
