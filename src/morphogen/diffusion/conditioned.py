"""Processes that meet what is known of them: bridges, and Gaussian-process regression. All in closed form.

    Brownian bridge      a + (t/T)(b − a) + W_t − (t/T) W_T,    variance t (T − t)/T
    regression           y = f(x) + noise, f a Gaussian process of kernel k, with K = k(x, x) + σ² I:
                         mean k(·, x) K⁻¹ y,   covariance k(·, ·) − k(·, x) K⁻¹ k(x, ·)
    Schrödinger bridge   the process nearest in KL to x_0 + ε w_t whose ends are N(m_0, Σ_0) and N(m_1, Σ_1)

The Schrödinger bridge is the mixture of Brownian bridges over the entropic transport plan. That is Gaussian, with

    C = Cov(x_0, x_1) = ½ (R D R⁻¹ − ε² I),    R = Σ_0^½,    D = (4 R Σ_1 R + ε⁴ I)^½
    Cov(x_t) = (1−t)² Σ_0 + t² Σ_1 + t(1−t)(C + Cᵀ + ε² I)
    drift    = m_1 − m_0 + [(1−t)(Cᵀ − Σ_0) + t (Σ_1 − C − ε² I)] Cov(x_t)⁻¹ (x − mean_t)

and as ε → 0 its plan is Monge's map x_1 = m_1 + R⁻¹ (R Σ_1 R)^½ R⁻¹ (x_0 − m_0), whose cost is that of Bures.

Rasmussen & Williams 2006, "Gaussian processes for machine learning", algorithm 2.1; Bunne, Hsieh, Cuturi & Krause 2023,
"The Schrödinger bridge between Gaussian measures has a closed form" (arXiv 2202.05722). Departure: the drift is written
as above, which is finite at both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Noise
from ..errors import UserError
from .process import Brownian, Process, Times, exact, paths

# ---- Brownian bridge -----------------------------------------------------------------------------------------------


def bridge(
    a: Float[Tensor, " b *shape"], b: Float[Tensor, " b *shape"], times: Times, noise: Noise, *, sigma: float = 1.0
) -> Float[Tensor, "b t *shape"]:
    """Brownian motions σ w that are at a at times[0] and at b at times[-1]: their states at all times.

    Raises UserError where there are fewer than two times, or they do not rise.
    """
    t = torch.as_tensor(times, dtype=torch.float64)
    if len(t) < 2 or not bool((t.diff() > 0).all()):
        raise UserError("A bridge needs two or more times that rise, such as torch.linspace(0, 1, 101).")
    free = paths(Brownian(sigma), torch.zeros_like(a), t, noise, scheme=exact)  # (B, T, ...)
    share = ((t - t[0]) / (t[-1] - t[0])).to(a).reshape(-1, *(1,) * (a.dim() - 1))  # (T, 1, ...)
    return torch.lerp(a[:, None], b[:, None], share) + free - share * free[:, -1:]


# ---- Gaussian-process regression -----------------------------------------------------------------------------------

Kernel = Callable[[Tensor, Tensor], Tensor]  # points (N, D) and (M, D) -> covariances (N, M)


def squared_exponential(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], length: float = 1.0, variance: float = 1.0
) -> Float[Tensor, "n m"]:
    """The kernel of smooth functions, variance · exp(−|x − y|² / 2 length²)."""
    apart = (x[:, None] - y[None]).square().sum(-1)  # (N, M); not by |x|² + |y|² − 2xy, which cancels
    covariance: Tensor = variance * (apart / (-2 * length**2)).exp()
    return covariance


def wiener(x: Float[Tensor, "n 1"], y: Float[Tensor, "m 1"]) -> Float[Tensor, "n m"]:
    """The kernel min(s, t) of Brownian motion, for times ≥ 0."""
    return torch.minimum(x, y.T)


def exponential(
    x: Float[Tensor, "n 1"], y: Float[Tensor, "m 1"], theta: float = 1.0, sigma: float = 1.0
) -> Float[Tensor, "n m"]:
    """The kernel σ²/2θ · exp(−θ |s − t|) of the stationary Ornstein–Uhlenbeck process."""
    return sigma**2 / (2 * theta) * (-theta * (x - y.T).abs()).exp()


class Posterior(NamedTuple):
    """What is known of f at M points: mean (M,), covariance (M, M); and the evidence log p(y), nats."""

    mean: Tensor
    cov: Tensor
    logp: Tensor


def regress(
    kernel: Kernel,
    x: Float[Tensor, "n d"],
    y: Float[Tensor, " n"],
    at: Float[Tensor, "m d"],
    *,
    noise: float = 0.0,
) -> Posterior:
    """The law of f at the points `at`, given y = f(x) + noise of variance `noise`, f of mean zero.

    Raises UserError where two observations contradict each other: K is singular.
    """
    K = kernel(x, x) + noise * torch.eye(len(x), dtype=x.dtype, device=x.device)
    L, failed = torch.linalg.cholesky_ex(K)
    if bool(failed):
        raise UserError("The kernel's matrix of these points is singular: leave out repeated points or raise `noise`.")
    across = torch.linalg.solve_triangular(L, kernel(x, at), upper=False)  # (N, M)
    white = torch.linalg.solve_triangular(L, y[:, None], upper=False)  # (N, 1)
    logp = -0.5 * white.square().sum() - L.diagonal().log().sum() - len(x) / 2 * math.log(2 * math.pi)
    return Posterior((across.T @ white)[:, 0], kernel(at, at) - across.T @ across, logp)


# ---- Schrödinger bridge --------------------------------------------------------------------------------------------


def root(cov: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(cov)
    half: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return half


class SchroedingerBridge(Process):
    """The process on [0, 1] nearest to x_0 + ε w whose ends are N(m_0, Σ_0) and N(m_1, Σ_1); Σ_0 positive definite.

    eps: the standard deviation of the reference's noise; ε² is the regularisation of the entropic transport of the
    squared distance ½|x − y|².
    """

    def __init__(
        self,
        mean0: Float[Tensor, " d"],
        cov0: Float[Tensor, "d d"],
        mean1: Float[Tensor, " d"],
        cov1: Float[Tensor, "d d"],
        eps: float = 1.0,
    ) -> None:
        self.mean0, self.cov0, self.mean1, self.cov1 = (m.double() for m in (mean0, cov0, mean1, cov1))
        self.eps, self.unit = eps, torch.eye(len(mean0), dtype=torch.float64)
        R = root(self.cov0)
        if not bool(R.diagonal().min() > 0) or float(torch.linalg.eigvalsh(R)[0]) <= 0:
            raise UserError(
                "The covariance at t = 0 is singular, so no map leaves from it: add a little to its diagonal."
            )
        D = root(4 * R @ self.cov1 @ R + eps**4 * self.unit)
        self.plan = 0.5 * (R @ D @ torch.linalg.inv(R) - eps**2 * self.unit)  # Cov(x_0, x_1)

    def marginal(self, t: float) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """The mean and the covariance of x_t."""
        between = t * (1 - t) * (self.plan + self.plan.T + self.eps**2 * self.unit)
        return torch.lerp(self.mean0, self.mean1, t), (1 - t) ** 2 * self.cov0 + t**2 * self.cov1 + between

    def slope(self, t: float) -> Float[Tensor, "d d"]:
        """The matrix of the drift: f(x, t) = m_1 − m_0 + slope (x − mean_t)."""
        cross = (1 - t) * (self.plan.T - self.cov0) + t * (self.cov1 - self.plan - self.eps**2 * self.unit)
        slope: Tensor = torch.linalg.solve(self.marginal(t)[1], cross, left=False)
        return slope

    def drift(self, x: Float[Tensor, "b d"], t: float) -> Float[Tensor, "b d"]:
        mean = self.marginal(t)[0].to(x)
        return (self.mean1 - self.mean0).to(x) + (x - mean) @ self.slope(t).T.to(x)

    def diffusion(self, x: Float[Tensor, "b d"], t: float) -> float:
        return self.eps


def monge(cov0: Float[Tensor, "d d"], cov1: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The matrix of the optimal map from N(m_0, Σ_0) to N(m_1, Σ_1): x_1 = m_1 + A (x_0 − m_0), A symmetric."""
    R = root(cov0)
    inverse: Tensor = torch.linalg.inv(R)
    return inverse @ root(R @ cov1 @ R) @ inverse


def bures(cov0: Float[Tensor, "d d"], cov1: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """The squared Bures distance tr(Σ_0 + Σ_1 − 2 (Σ_0^½ Σ_1 Σ_0^½)^½): W₂² of centred Gaussians."""
    R = root(cov0)
    return (cov0 + cov1 - 2 * root(R @ cov1 @ R)).trace()
