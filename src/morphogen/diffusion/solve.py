"""Solvers: from noise to data along a grid of times, for any field.

A step takes the state x at time t to the time s, and is given both. With x̂, ε̂ the field's views at (x, t):

    Runge-Kutta   dx/dt = u(x, t) = α̇x̂ + σ̇ε̂, any explicit tableau                  (Euler, midpoint, Heun, RK4)
    posterior     q(x_s | x_t, x_0) = N(a x_0 + b x_t, β̃),  α' = α_t/α_s,  β = σ_t² − α'²σ_s²,
                  a = α_s β/σ_t²,  b = α' σ_s²/σ_t²,  β̃ = β σ_s²/σ_t²
    Ancestral     x_s = a x̂ + b x_t + β̃^((1−v)/2) β^(v/2) n            v = 0 or 1: DDPM's two variances
    DDIM          x_s = α_s x̂ + √(σ_s² − c²) ε̂ + c n,   c² = η² β̃      η = 0 no noise, η = 1 `Ancestral`

The step that arrives at data (σ_s = 0) draws no noise, and there a Runge-Kutta method does not ask for a velocity at
σ = 0 but takes the tableau `end` (Euler for Heun, as in EDM: 2N − 1 evaluations for N steps).

Ho et al. 2020 (arXiv 2006.11239), Song, Meng & Ermon 2021 (DDIM, arXiv 2010.02502), Nichol & Dhariwal 2021 (v, arXiv
2102.09672), Karras et al. 2022 (Heun and its grid, arXiv 2206.00364), Lin et al. 2024 (grids, arXiv 2305.08891).
Departure: DDIM goes to the next time of the grid, whatever the grid; implementations that go to t − T//N are wrong on
most grids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import NONE, Noise
from ..errors import UserError
from ..spec import Remembers
from .field import Cond, Field, affine, spread
from .path import Path, Scalar, over

Project = Callable[[Tensor, float], Tensor]  # the state and its time -> the state put right (known pixels, a cut)
Rate = Callable[[Scalar, Tensor], Tensor]  # (t, x (B, ...)) -> dx/dt (B, ...), t a number or (B,)

# ---- the loop ------------------------------------------------------------------------------------------------------


def trajectory(
    field: Field,
    z: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step | None = None,
    cond: Cond = NONE,
    project: Project | None = None,
    noise: Noise | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """`solve`, state by state: (times[0], z), (times[1], …), …"""
    grid = [float(t) for t in (times.tolist() if isinstance(times, Tensor) else times)]
    if not grid:
        raise UserError("There are no times to go through: give at least one, such as Uniform()(path, 50).")
    stepper = (euler if step is None else step).begin()
    x = z
    yield grid[0], x
    for t, s in pairwise(grid):
        x = stepper(field, x, t, s, cond, noise)
        if project is not None:
            x = project(x, s)
        yield s, x


def solve(
    field: Field,
    z: Float[Tensor, " b *shape"],
    times: Tensor | Sequence[float],
    *,
    step: Step | None = None,
    cond: Cond = NONE,
    project: Project | None = None,
    noise: Noise | None = None,
) -> Float[Tensor, " b *shape"]:
    """The state at times[-1] of what is z (B, ...) at times[0].

    times:   any times, falling from noise towards data or, for solvers without noise, rising.
    step:    the solver, by default `euler`.
    project: applied to the state after each step, as project(x, s).
    noise:   keyed noise of B samples, for solvers that draw some.
    Raises UserError where a step needs noise and has none, or draws noise while going away from data.
    """
    x = z
    for _, x in trajectory(field, z, times, step=step, cond=cond, project=project, noise=noise):  # noqa: B007
        pass
    return x


# ---- steps ---------------------------------------------------------------------------------------------------------


class Step(Remembers, ABC):
    """A solver: `step(field, x, t, s, cond, noise)` is x (B, ...) at time t taken to time s.

    t and s are floats or tensors (B,). intervals: how many of them a grid should have for it where nobody says, as 1
    for a solver that chooses its own steps.
    """

    intervals: int | None = None

    @abstractmethod
    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        """The state at time s."""

    def begin(self) -> Step:
        """The solver for one walk along a grid; one that remembers earlier steps gives a fresh one here."""
        return self


class Tableau(Remembers):
    """An explicit Runge-Kutta method: nodes c_i, weights a_ij (j < i) of the stages, weights b_i of the result."""

    def __init__(self, a: tuple[tuple[float, ...], ...], b: tuple[float, ...], c: tuple[float, ...]) -> None:
        self.a, self.b, self.c = a, b, c


EULER = Tableau(((),), (1.0,), (0.0,))
MIDPOINT = Tableau(((), (0.5,)), (0.0, 1.0), (0.0, 0.5))
HEUN = Tableau(((), (1.0,)), (0.5, 0.5), (0.0, 1.0))
RK4 = Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0))


def runge_kutta(
    tableau: Tableau, rate: Rate, x: Float[Tensor, "b ..."], t: Scalar, s: Scalar
) -> Float[Tensor, "b ..."]:
    """One step of dx/dt = rate(t, x) from t to s."""
    h = s - t
    slopes: list[Tensor] = []

    def ahead(weights: tuple[float, ...]) -> Tensor:
        y = x
        for w, u in zip(weights, slopes, strict=True):
            if w:
                y = y + spread(w * h, x) * u
        return y

    for weights, c in zip(tableau.a, tableau.c, strict=True):
        time = s if c == 1 else t if c == 0 else t + c * h  # an end is met exactly
        slopes.append(rate(time, ahead(weights)))
    return ahead(tableau.b)


class RungeKutta(Step):
    """An explicit Runge-Kutta method on the probability-flow ODE, in t.

    end: the tableau for a step that arrives at σ = 0.
    """

    def __init__(self, tableau: Tableau, end: Tableau = EULER) -> None:
        self.tableau, self.end = tableau, end

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        def stepped(tableau: Tableau) -> Tensor:
            return runge_kutta(tableau, lambda time, y: field.velocity(y, time, cond), x, t, s)

        end = field.path.sigma(s) == 0
        if isinstance(end, Tensor) and end.any():
            return torch.where(spread(end, x), stepped(self.end), stepped(self.tableau))
        return stepped(self.end if end is True else self.tableau)


euler = RungeKutta(EULER)
midpoint = RungeKutta(MIDPOINT, end=MIDPOINT)
heun = RungeKutta(HEUN)
rk4 = RungeKutta(RK4, end=MIDPOINT)


def posterior(path: Path, t: Scalar, s: Scalar) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """a, b, β̃, β of q(x_s | x_t, x_0) = N(a x_0 + b x_t, β̃), s nearer to data than t; β is x_t's variance given x_s."""
    alpha, sigma, alpha_s, sigma_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
    fade = alpha / alpha_s
    kept = over(fade * sigma_s, sigma)
    new = 1 - kept * kept  # β / σ_t²
    return alpha_s * new, kept * over(sigma_s, sigma), new * sigma_s * sigma_s, new * sigma * sigma


def drawn(x: Tensor, scale: Scalar, t: Scalar, s: Scalar, noise: Noise | None) -> Tensor:
    """Noise `scale` n, with n (B, ...) standard normal."""
    if not isinstance(t, Tensor) and not isinstance(s, Tensor) and s > t:
        raise UserError(
            f"This solver draws noise, so it cannot go from t = {t:g} up to {s:g}: use DDIM(0) or heun there."
        )
    if noise is None:
        raise UserError("This solver draws noise and was given none: pass noise=Noise.seeded(seed, n).")
    n = noise.normal(*x.shape[1:], dtype=x.dtype).to(x.device)
    return n.mul_(spread(scale, x))


class DDIM(Step):
    """DDIM with noise η. η = 0 is deterministic (and goes both ways); η = 1 is DDPM's chain between these times."""

    def __init__(self, eta: float = 0.0) -> None:
        if eta < 0:
            raise UserError(f"DDIM's eta is {eta}: use 0 (no noise) to 1 (as much as DDPM).")
        self.eta = eta

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        alpha, sigma = field.path.alpha(s), field.path.sigma(s)
        if self.eta == 0 or (not isinstance(sigma, Tensor) and sigma == 0):
            return field.predict(x, t, alpha, sigma, cond)
        var = self.eta**2 * posterior(field.path, t, s)[2]
        n = drawn(x, power(var, 0.5), t, s, noise)
        return n + field.predict(x, t, alpha, power(sigma * sigma - var, 0.5), cond)


class Ancestral(Step):
    """DDPM's reverse chain: x_s drawn from the posterior at x̂, with variance β̃^(1−v) β^v.

    v: 0 is the variance that is right for data that is one point, 1 for data that is standard normal.
    """

    def __init__(self, v: float = 0.0) -> None:
        self.v = v

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        a, b, small, large = posterior(field.path, t, s)
        mean: Tensor = affine(1.0, field.predict(x, t, a, 0.0, cond), spread(b, x), x)
        if not isinstance(small, Tensor) and small <= 0 and t >= s:
            return mean
        return drawn(x, power(small, (1 - self.v) / 2) * power(large, self.v / 2), t, s, noise) + mean


def power(c: Scalar, exponent: float) -> Scalar:
    """c^exponent of a variance that rounding may have made negative, and 0 where it is 0."""
    if isinstance(c, Tensor):
        return torch.where(c > 0, c.clamp(min=0) ** exponent, 0.0)
    return c**exponent if c > 0 else 0.0
