"""Adaptive Runge-Kutta, Dormand and Prince's pair of orders 5 and 4: for any ODE `integrate`, for fields `Dopri5`.

    y' = y + h Σ b_i k_i,   k_i = f(t + c_i h, y + h Σ a_ij k_j),   e = rms( h Σ (b_i − b*_i) k_i / (atol + rtol |y|) )
    h ← h · 0.9 e^−0.17 e₋^0.04, a factor of 0.2 to 10;   a step with e > 1 is tried again, smaller

The last slope of a step is the first of the next: six evaluations a step, and two more at the start, where the first h
is found. Dormand & Prince 1980 ("A family of embedded Runge-Kutta formulae"); control and first step by Hairer, Nørsett
& Wanner 1993 ("Solving ordinary differential equations I", II.4); e₋ is the error of the accepted step before.

A field's ODE is solved in the straight frame of its path. With c = α + σ, τ = σ/c and y = x_t/c,

    y = (1 − τ) x + τ z,   dy/dτ = ε̂ − x̂,

so that every path is flow matching's: nothing is infinite at either end (σ̇ is, at t = 0 of `VP`; log-SNR, at both
ends), and on `Linear` τ is t. There a step of Euler is DDIM's. Below σ/α = `end` (and below step index 0 of a chain) a
field is not asked, since nets have not been trained there: the slope at `end` holds from there to data. That arrival is
DDIM's step, x = x̂; it costs no evaluation, and errs by end² |∇ log p| / 2.

Whose error sizes a step is a `Control`: `PerSample` gives each sample its own steps and its own time, so that it does
not depend on its company; `Joint` is the classical rule, one step for the whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import NONE, Noise
from ..errors import UserError
from ..spec import Remembers
from .field import Cond, Field, spread
from .path import Chain, Path, Scalar
from .solve import Step

Slope = Callable[[Scalar, Tensor], Tensor]  # f(t, y) -> dy/dt (B, *shape), with t (B,) or a number as the control tells

# Dormand and Prince's tableau: the rows a_ij of stages 2 to 7 (the last is b), their nodes, and b − b*
_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@lru_cache(maxsize=16)
def _nodes(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(_C, dtype=torch.float64, device=device)[:, None]  # (6, 1)


# ---- whose error -----------------------------------------------------------------------------------------------------


class Control(Remembers, ABC):
    """Who shares a step: R clocks for a batch of B samples."""

    @abstractmethod
    def rms(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " r"]:
        """The root mean square of x, one for each clock."""

    @abstractmethod
    def clock(self, t: Scalar, y: Float[Tensor, " b *shape"]) -> Float[Tensor, " r"]:
        """The times t (a number or (B,)) on each clock, float64."""

    @abstractmethod
    def told(self, times: Float[Tensor, "k r"], y: Float[Tensor, " b *shape"]) -> Sequence[Scalar]:
        """The k times as f is told them: tensors (B,) of y's dtype, or numbers."""


class PerSample(Control):
    """Each sample has its own error, step and time: it comes out the same in any company. f is told times (B,).

    A sample that has arrived waits for the others.
    """

    def rms(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " r"]:
        flat = x.flatten(1)
        norm: Tensor = torch.linalg.vector_norm(flat, dim=1).mul_(flat.shape[1] ** -0.5)
        return norm

    def clock(self, t: Scalar, y: Float[Tensor, " b *shape"]) -> Float[Tensor, " r"]:
        return torch.as_tensor(t, dtype=torch.float64, device=y.device).expand(len(y))

    def told(self, times: Float[Tensor, "k r"], y: Float[Tensor, " b *shape"]) -> Sequence[Scalar]:
        return times.to(y.dtype).unbind(0)


class Joint(Control):
    """One error, step and time for the whole batch: fewer evaluations, but a sample depends a little on the others.

    f is told numbers. Raises UserError where samples are to begin or end at different times.
    """

    def rms(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " r"]:
        norm: Tensor = torch.linalg.vector_norm(x).mul_(x.numel() ** -0.5).reshape(1)
        return norm

    def clock(self, t: Scalar, y: Float[Tensor, " b *shape"]) -> Float[Tensor, " r"]:
        one = torch.as_tensor(t, dtype=torch.float64, device=y.device).flatten()
        if bool((one != one[:1]).any()):
            raise UserError("Joint control has one clock, but these samples have different times: use PerSample().")
        return one[:1]

    def told(self, times: Float[Tensor, "k r"], y: Float[Tensor, " b *shape"]) -> Sequence[Scalar]:
        told: list[float] = times[:, 0].tolist()
        return told


PER_SAMPLE = PerSample()

# ---- the integrator --------------------------------------------------------------------------------------------------


class Walked(NamedTuple):
    """Where `integrate` came to: y (B, *shape) and its slope there, the step size (R,) it would try next, how many
    evaluations of f it took, and how many steps were taken and refused.
    """

    y: Tensor
    slope: Tensor
    size: Tensor
    evaluations: int
    steps: int
    refused: int


def integrate(
    f: Slope,
    y: Float[Tensor, " b *shape"],
    t0: Scalar,
    t1: Scalar,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    control: Control = PER_SAMPLE,
    size: Float[Tensor, " r"] | None = None,
    slope: Float[Tensor, " b *shape"] | None = None,
    max_steps: int = 1000,
) -> Walked:
    """The solution at t1 of dy/dt = f(t, y) that is y (B, *shape) at t0, forwards or backwards in t.

    f:          f(t, y) -> (B, *shape), each row of which depends on its own row of t and y. t is (B,) of y's dtype, or
                a number under `Joint`.
    t0, t1:     numbers or (B,). f is asked at both ends.
    rtol, atol: a step's error is kept below atol + rtol |y|, in the root mean square over coordinates.
    size:       the first step to try (R,), and `slope` f(t0, y), where they are known from a walk before.
    Differentiable in y and in what f depends on, with the steps taken as given. Clocks are float64 whatever y is.
    Raises UserError for a slope that is not finite at the start, and after max_steps tries.
    """
    if rtol < 0 or atol < 0 or rtol + atol == 0:
        raise UserError(f"rtol {rtol:g} and atol {atol:g} leave no error to a step: give positive ones, such as 1e-5.")
    t, end = control.clock(t0, y), control.clock(t1, y)  # (R,)
    sign = (end - t).sign()
    k, evaluations = slope, 0
    if k is None:
        k, evaluations = f(control.told(t[None], y)[0], y), 1
    if y.numel() == 0:
        return Walked(y, k, end, evaluations, 0, 0)
    going = bool((t != end).any())
    with torch.no_grad():
        if going and not bool(k.isfinite().all()):
            raise UserError(
                f"dy/dt is not finite at t = {t[0].item():.4g}, where an adaptive solver begins: check the field there."
            )
        if going and size is None:
            h = _first_size(f, y, k, t, end, rtol, atol, control)
            evaluations += 1
        else:
            h = end - t if size is None else size
        before = torch.full_like(h, 1e-4)  # the error before
    steps = refused = 0
    while going:
        if steps + refused == max_steps:
            raise UserError(
                f"An adaptive solver took {max_steps} steps from t = {control.clock(t0, y)[0].item():.4g} and has only"
                f" come to {t[(end - t).abs().argmax()].item():.4g}: loosen rtol and atol, or check the field there."
            )
        left = (end - t).abs()
        last = h * 1.01 >= left  # a sliver is not left over
        step = torch.where(last, left, h) * sign
        dt = spread(step.to(y.dtype), y)
        slopes, ahead = [k], y
        for weights, time in zip(_A, control.told(t + _nodes(y.device) * step, y), strict=True):
            ahead = torch.addcmul(y, dt, _mix(weights, slopes))
            slopes.append(f(time, ahead))
        evaluations += len(_A)
        with torch.no_grad():
            allowed = torch.maximum(y.abs(), ahead.abs()).mul_(rtol).add_(atol)
            error = control.rms(_mix(_E, slopes).mul_(dt).div_(allowed)).double().nan_to_num_(1e10, 1e10).clamp_(1e-10)
            good = error <= 1
            factor = (0.9 * error**-0.17 * before**0.04).clamp_(0.2, 10.0)
            wish = torch.where(good, factor, factor.clamp(max=1.0)) * step.abs()
            # a step that was cut short to meet the end says little of what the next may be
            h = torch.where(good & last, torch.maximum(wish, h), wish)
            before = torch.where(good, error.clamp(min=1e-4), before)
            t = torch.where(good, torch.where(last, end, t + step), t)
            some, every, going = torch.stack((good.any(), good.all(), (t != end).any())).tolist()
        if every:
            y, k = ahead, slopes[-1]
        elif some:
            moved = spread(good, y)
            y, k = torch.where(moved, ahead, y), torch.where(moved, slopes[-1], k)
        steps, refused = steps + every, refused + (not every)
    return Walked(y, k, h, evaluations, steps, refused)


def _mix(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """The sum Σ w_i k_i, a tensor of its own."""
    total = slopes[0] * weights[0]
    for w, k in zip(weights[1:], slopes[1:], strict=True):
        if w:
            total.add_(k, alpha=w)
    return total


def _first_size(
    f: Slope, y: Tensor, k: Tensor, t: Tensor, end: Tensor, rtol: float, atol: float, control: Control
) -> Tensor:
    """A first step (R,) such that one of Euler would err by a hundredth of what is allowed."""
    allowed = y.abs().mul_(rtol).add_(atol)
    d0, d1 = control.rms(y / allowed).double(), control.rms(k / allowed).double()
    h = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1.clamp(min=1e-5))
    h = torch.minimum(h, (end - t).abs()).clamp_(min=1e-12)
    step = h * (end - t).sign()
    ahead = f(control.told((t + step)[None], y)[0], torch.addcmul(y, spread(step.to(y.dtype), y), k))
    d2 = control.rms((ahead - k) / allowed).double() / h
    most = torch.maximum(d1, d2)
    h1 = torch.where(most <= 1e-15, (h * 1e-3).clamp(min=1e-6), (0.01 / most.clamp(min=1e-15)) ** 0.2)
    return torch.minimum(100 * h, h1)


# ---- fields ----------------------------------------------------------------------------------------------------------


def straight(path: Path, t: Scalar) -> tuple[Scalar, Scalar]:
    """τ and c of the straight frame at time t: x_t = c ((1 − τ) x + τ z)."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    scale = alpha + sigma
    return sigma / scale, scale


def time_of(path: Path, tau: Scalar) -> Scalar:
    """The time at which the straight frame's τ is `tau`."""
    if isinstance(tau, Tensor):
        return path.time(tau / (1 - tau).clamp(min=1e-15))
    return path.time(tau / max(1 - tau, 1e-15))


class Dopri5(Step):
    """Dormand and Prince's adaptive solver on the probability-flow ODE, from each time of the grid to the next.

    rtol, atol: see `integrate`. control: `PerSample()` or `Joint()`. end: the least σ/α that the field is asked at.
    Every time of the grid is met exactly, so that a grid of one step ([1, 0]) costs least. It goes both ways. The size
    of the steps, and the slope, are remembered from one interval to the next.
    evaluations: of the field, in the walk begun last.
    Raises UserError as `integrate` does; max_steps is for one interval.
    """

    intervals = 1

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        control: Control = PER_SAMPLE,
        end: float = 2e-3,
        max_steps: int = 1000,
    ) -> None:
        if not end > 0:
            raise UserError(f"Dopri5's end is {end:g}, but a field has no slope at σ = 0: give a small one, as 2e-3.")
        self.rtol, self.atol, self.control, self.end, self.max_steps = rtol, atol, control, end, max_steps
        self.evaluations = 0

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        return self.begin()(field, x, t, s, cond, noise)

    def begin(self) -> Step:
        self.evaluations = 0
        return _Walk(self)


class _Walk(Step):
    """`Dopri5` on one walk."""

    def __init__(self, solver: Dopri5) -> None:
        self.solver = solver
        self.size: Tensor | None = None
        self.left: tuple[Tensor, int, Tensor] | None = None  # the state that was handed out, its version, its slope

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        if x.numel() == 0:
            return x
        path, solver = field.path, self.solver

        def slope(tau: Scalar, y: Tensor) -> Tensor:
            time = time_of(path, tau)
            return field.predict(y * spread(straight(path, time)[1], y), time, -1.0, 1.0, cond)

        def counted(tau: Scalar, y: Tensor) -> Tensor:
            solver.evaluations += 1
            return slope(tau, y)

        low = straight(path, path.at_index(0.0) if isinstance(path, Chain) else path.time(solver.end))[0]
        (tau, scale), (goal, scale_s) = straight(path, t), straight(path, s)
        here, there = _at_least(tau, low), _at_least(goal, low)
        y = x / spread(_like(scale, x), x)
        if _any(tau < low):  # from data: on the slope at `end`
            asked = solver.control.told(solver.control.clock(here, y)[None], y)[0]
            y = y + spread(_like(here - tau, y), y) * counted(asked, y)
        done = integrate(
            counted,
            y,
            here,
            there,
            rtol=solver.rtol,
            atol=solver.atol,
            control=solver.control,
            size=self.size,
            slope=self._known(x) if not _any(tau < low) else None,
            max_steps=solver.max_steps,
        )
        y = done.y
        if _any(goal < low):
            y = y + spread(_like(goal - there, y), y) * done.slope
        moved: Tensor = y * spread(_like(scale_s, y), y)
        self.size = done.size if done.steps else self.size
        self.left = None if moved.is_inference() else (moved, moved._version, done.slope)
        return moved

    def _known(self, x: Tensor) -> Tensor | None:
        """The slope at x, if x is the state that was handed out and nobody has changed it."""
        if self.left is not None and self.left[0] is x and self.left[1] == x._version:
            return self.left[2]
        return None


def _at_least(a: Scalar, low: Scalar) -> Scalar:
    return torch.clamp(a, min=low) if isinstance(a, Tensor) else max(a, low)


def _any(happens: bool | Tensor) -> bool:
    return bool(happens.any()) if isinstance(happens, Tensor) else happens


def _like(c: Scalar, x: Tensor) -> Scalar:
    """A coefficient in x's dtype."""
    return c.to(x.dtype) if isinstance(c, Tensor) else c
