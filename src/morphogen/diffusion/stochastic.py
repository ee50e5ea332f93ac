"""Stochastic solvers: reverse SDEs, EDM's churn, Langevin dynamics, predictor and corrector.

The path's SDE is dx = f x dt + g dw with f = α̇/α and g² = 2σσ̇ − 2fσ². Going back, any λ ≥ 0 has its marginals:

    dx = [f x − (1 + λ²)/2 g² ∇ log p] dt + λ g dw = [α̇ x̂ + (σ̇ + λ² ρ) ε̂] dt + λ √(2σρ) dw,   ρ = σ̇ − fσ = g²/2σ

λ = 0 is the probability-flow ODE, λ = 1 Anderson's SDE. With h = s − t and n standard normal,

    EulerMaruyama    x_s = x + h d(x, t) + λ g_t √|h| n                                  d the bracket
    StochasticHeun   x_s = x + h/2 (d(x, t) + d(x′, s)) + λ √(|h| (g_t² + g_s²)/2) n     x′ is x_s with d(x, t) for both
    Churn            σ/α raised to r̂ = r (1 + γ) by fresh noise, then Heun's step in r of the ODE (EDM, algorithm 2)
    AnnealedLangevin x ← x + κσ² ∇ log p_s(x) + σ √(2κ) n, some times at each level s
    PredictorCorrector  any step to s, then `AnnealedLangevin` there

f and g² are infinite where nothing is left of the data (α_t = 0: `Linear` and `Cosine` at t = 1), and noise has no
place in data (σ_s = 0). Both steps are DDIM's without noise, x_s = α_s x̂ + σ_s ε̂.

Anderson 1982 ("Reverse-time diffusion equation models"), Song & Ermon 2019 (annealed Langevin, arXiv 1907.05600), Song
et al. 2021 (predictor and corrector, arXiv 2011.13456), Karras et al. 2022 (churn, arXiv 2206.00364). Departures: a
Langevin step is κσ², a constant for its level. Song & Ermon's step ε σ²/σ_L² is κ = ε/2σ_L². Song et al. take 2 (r
‖n‖/‖∇ log p‖)² with the norms' averages over the batch, so that samples depend on each other: in pure noise that is
2 (rσ)², which is κ = 2r². The paper keeps x from a level to the next, with α = 1: here that is x/α.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import NONE, Noise
from ..errors import UserError
from .field import Cond, Field, affine, spread
from .path import Path, Scalar, over
from .solve import Step, drawn, power


def g_squared(path: Path, t: Scalar) -> Scalar:
    """g² of the path's SDE dx = f x dt + g dw, f = α̇/α; for times at which α > 0."""
    return 2 * path.sigma(t) * _rate(path, t)


def _rate(path: Path, t: Scalar) -> Scalar:
    """ρ = g²/2σ: the log-SNR falls by g²/σ² a unit of time."""
    return -0.5 * path.sigma(t) * path.dlogsnr(t)


def _either(which: bool | Tensor, a: Scalar, b: Scalar) -> Scalar:
    """a where `which`, else b."""
    return torch.where(which, a, b) if isinstance(which, Tensor) else a if which else b


def _quiet(path: Path, t: Scalar, s: Scalar) -> bool | Tensor:
    """Whether the step from t to s has one of the ends at which there is no noise."""
    return (path.alpha(t) == 0) | (path.sigma(s) == 0)


def _inside(quiet: bool | Tensor, t: Scalar) -> Scalar:
    """The time t, and some time inside where the step is quiet: its coefficients are finite and unused there."""
    return _either(quiet, 0.5, t)


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise UserError(
            f"{name} is {value:g}: use 0 (no noise), 1 (Anderson's SDE) or another number that is not less."
        )


class EulerMaruyama(Step):
    """Euler and Maruyama's method on the reverse SDE, in t. One evaluation a step.

    noise: λ, how much noise the SDE draws; 0 is Euler's method on the probability-flow ODE, 1 Anderson's SDE.
    """

    def __init__(self, noise: float = 1.0) -> None:
        _not_negative("EulerMaruyama's noise", noise)
        self.noise = noise

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        path, quiet = field.path, _quiet(field.path, t, s)
        at = _inside(quiet, t)
        var = self.noise**2 * g_squared(path, at)
        return _stage(field, x, t, s, cond, quiet, self.noise, var, noise)[0]


class StochasticHeun(Step):
    """Heun's method on the reverse SDE, in t: the drift's mean over both ends under the same noise. Two evaluations.

    noise: λ, as in `EulerMaruyama`. Of weak order 2, since g does not depend on x.
    """

    def __init__(self, noise: float = 1.0) -> None:
        _not_negative("StochasticHeun's noise", noise)
        self.noise = noise

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        path, quiet = field.path, _quiet(field.path, t, s)
        at, to = _inside(quiet, t), _inside(quiet, s)
        var = self.noise**2 * (g_squared(path, at) + g_squared(path, to)) / 2
        ahead, drawn = _stage(field, x, t, s, cond, quiet, self.noise, var, noise)
        if quiet is True:
            return ahead
        second = field.predict(ahead, to, *drift(path, to, s - t, self.noise), cond)
        mean = 0.5 * (x + ahead + second + drawn)
        return torch.where(spread(quiet, x), ahead, mean) if isinstance(quiet, Tensor) else mean


def drift(path: Path, t: Scalar, h: Scalar, noise: float) -> tuple[Scalar, Scalar]:
    """(p, q) of h times the reverse SDE's drift at t, p x̂ + q ε̂, with λ = `noise`; for times at which α > 0."""
    return h * path.dalpha(t), h * (path.dsigma(t) + noise**2 * _rate(path, t))


def _stage(
    field: Field,
    x: Tensor,
    t: Scalar,
    s: Scalar,
    cond: Cond,
    quiet: bool | Tensor,
    strength: float,
    var: Scalar,
    noise: Noise | None,
) -> tuple[Tensor, Tensor | float]:
    """Euler and Maruyama's step with noise of variance `var` a unit of time, DDIM's where it is quiet; and its noise.

    A step that leaves α = 0 draws noise and has no use for it: so each draw has its number, whatever a sample's time.
    """
    path = field.path
    if quiet is True and path.sigma(s) == 0:
        return field.predict(x, t, path.alpha(s), path.sigma(s), cond), 0.0
    p, q = drift(path, _inside(quiet, t), s - t, strength)
    p, q = _either(quiet, path.alpha(s), p), _either(quiet, path.sigma(s), q)
    moved = field.predict(x, t, p, q, cond)
    kept = torch.where(spread(quiet, x), 0.0, x) if isinstance(quiet, Tensor) else x
    ahead = moved if quiet is True else moved + kept
    if strength == 0:
        return ahead, 0.0
    new = drawn(x, _either(quiet, 0.0, power(var * (t - s), 0.5)), t, s, noise)
    return ahead + new, new


class Churn(Step):
    """EDM's stochastic sampler (algorithm 2), for any path: σ/α is raised by fresh noise, then Heun's step goes down.

    gamma:     by what share σ/α is raised: the paper's min(S_churn / N, √2 − 1), N being the number of steps.
    low, high: σ/α between which it is raised: S_tmin, S_tmax.
    inflate:   a factor on the fresh noise, against nets that take too much of it away: S_noise.
    Defaults are the paper's for ImageNet (S_churn 40, N = 256), but for its S_noise of 1.003, which an exact field does
    not need. Two evaluations a step, one in the step that arrives at data: 2N − 1.
    """

    def __init__(self, gamma: float = 40 / 256, low: float = 0.05, high: float = 50.0, inflate: float = 1.0) -> None:
        if not 0 <= gamma <= 0.4143:
            raise UserError(
                f"Churn's gamma is {gamma:g}: use 0 (no noise) to 0.4142, that is min(S_churn / N, √2 − 1) for N steps."
            )
        self.gamma, self.low, self.high, self.inflate = gamma, low, high, inflate

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        path = field.path
        x, t = self._raised(path, x, t, s, noise)
        alpha, alpha_s, sigma_s = path.alpha(t), path.alpha(s), path.sigma(s)
        ahead = field.predict(x, t, alpha_s, sigma_s, cond)
        quiet = (alpha == 0) | (sigma_s == 0)
        if quiet is True:
            return ahead
        keep = over(alpha_s, alpha)  # Heun in σ/α: x/α goes along the mean of the ε̂ of both ends
        second = field.predict(ahead, _either(quiet, t, s), 0.0, sigma_s - keep * path.sigma(t), cond)
        mean: Tensor = 0.5 * (affine(1.0, ahead, spread(keep, x), x) + second)
        return torch.where(spread(quiet, x), ahead, mean) if isinstance(quiet, Tensor) else mean

    def _raised(self, path: Path, x: Tensor, t: Scalar, s: Scalar, noise: Noise | None) -> tuple[Tensor, Scalar]:
        """x at a later time, and that time; both as they are where nothing is raised."""
        ratio = path.ratio(t)
        rises = (ratio >= self.low) & (ratio <= self.high) & (path.alpha(t) > 0)
        if rises is False or self.gamma == 0:
            return x, t
        up = path.time(_either(rises, ratio, 1.0) * (1 + self.gamma))
        up = _either(rises, up, t)  # a chain has no later time than its last: what is reached is read again
        keep = _either(rises, over(path.alpha(up), path.alpha(t)), 1.0)
        var = path.sigma(up) ** 2 - (keep * path.sigma(t)) ** 2
        new = drawn(x, self.inflate * _either(rises, power(var, 0.5), 0.0), t, s, noise)
        return torch.addcmul(new, x, spread(keep, x)) if isinstance(keep, Tensor) else new.add_(x, alpha=keep), up


class AnnealedLangevin(Step):
    """Unadjusted Langevin dynamics at each noise level of a grid: annealed, as in Song & Ermon 2019.

    From t to s the state keeps x/α; then come `steps` steps x ← x + κσ_s² ∇ log p_s(x) + σ_s √(2κ) n, an evaluation
    each. With s = t it is plain Langevin dynamics at that level, whose stationary law on N(m, v) has the variance
    v / (1 − κσ²/2v). A step to data (σ_s = 0) is DDIM's, as is one from α_t = 0 before its dynamics.

    steps: at each level (the paper's T; it takes 100 at each of 10 levels). size: κ, in 0 .. 2.
    """

    def __init__(self, steps: int = 5, size: float = 0.4) -> None:
        if steps < 1 or not 0 < size < 2:
            raise UserError(
                f"AnnealedLangevin takes {steps} steps of size {size:g}: use at least 1, of a size above 0 and below 2"
                " (from there it is unstable)."
            )
        self.steps, self.size = steps, size

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        path = field.path
        quiet, sigma = _quiet(path, t, s), path.sigma(s)
        if quiet is True:
            x = field.predict(x, t, path.alpha(s), sigma, cond)
        else:
            kept = spread(over(path.alpha(s), path.alpha(t)), x) * x
            if isinstance(quiet, Tensor) and bool(quiet.any()):
                kept = torch.where(spread(quiet, x), field.predict(x, t, path.alpha(s), sigma, cond), kept)
            x = kept
        if not isinstance(sigma, Tensor) and sigma == 0:
            return x
        pull, push = -self.size * sigma, math.sqrt(2 * self.size) * sigma
        for _ in range(self.steps):
            x = x + field.predict(x, s, 0.0, pull, cond) + drawn(x, push, t, s, noise)
        return x


class PredictorCorrector(Step):
    """A step to the next noise level by any solver, then Langevin dynamics there (Song et al. 2021).

    The step that arrives at data is not corrected. The paper's r = 0.16 (for VE) is AnnealedLangevin(1, 0.0512).
    """

    def __init__(self, predictor: Step, corrector: AnnealedLangevin) -> None:
        self.predictor, self.corrector = predictor, corrector

    def begin(self) -> Step:
        return PredictorCorrector(self.predictor.begin(), self.corrector)

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        x = self.predictor(field, x, t, s, cond, noise)
        sigma = field.path.sigma(s)
        if not isinstance(sigma, Tensor) and sigma == 0:
            return x
        return self.corrector(field, x, s, s, cond, noise)
