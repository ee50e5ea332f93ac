"""Exponential integrators in λ = log(α/σ), half the log-SNR: DPM-Solver++ and UniPC, by data prediction.

With h = λ_s − λ_t the probability-flow ODE (η = 0), and for η = 1 the SDE of the same marginals, is solved exactly by

    x_s = (σ_s/σ_t) e^(−ηh) x_t + α_s Σ_i c_i M_i + σ_s √(1 − e^(−2ηh)) n,   x̂(λ_t + u h) = Σ_i c_i u^i
    M_i = ∫_0^1 H e^(−H(1−u)) u^i du,   H = (1 + η) h,   M_0 = 1 − e^(−H),   M_i = 1 − i M_{i−1} / H

so that a solver is a guess of x̂ along the step from x̂_0 (here), x̂_1, x̂_2 … (earlier, at u_1, u_2 … < 0):

    1               x̂_0                                                     DDIM; with η = 1 `Ancestral`
    multistep 2     M_0 (x̂_0 + (x̂_1 − x̂_0) / (2u_1))                      the papers' midpoint rule
    multistep 3     the polynomial through three, integrated exactly
    singlestep 2    M_0 x̂(λ_t + h/2), got by 1                              two evaluations
    singlestep 3    M_0 x̂_0 + M_1 (x̂(λ_t + 2h/3) − x̂_0) · 3/2, got by 1 to h/3 and 2 from there     three evaluations
    UniP            as multistep, but order 2 is M_0 x̂_0 + B(h) (x̂_1 − x̂_0) / (2u_1),   B = h (bh1) or M_0 (bh2)
    UniC            the state that was stepped to is put right once x̂ is known there, by the polynomial through that one
                    too (order 1: M_0 x̂_0 + B/2 (x̂_s − x̂_0)): one more order for no more evaluations

λ is infinite at data (σ = 0) and at a zero terminal SNR (α = 0). A step from or to there is of order 1, the only one
with a finite limit, and is not remembered; nothing else lowers the order (no `lower_order_final` of other libraries).
The first steps of a walk rise in order.

Lu et al. 2022 (DPM-Solver++, arXiv 2211.01095; singlestep 3: DPM-Solver, arXiv 2206.00927), Zhao et al. 2023 (UniPC,
arXiv 2302.04867). Departures: multistep 3 has the whole second difference, of which published code takes half and is of
order 2 (a test shows it); UniC acts by its increment, so that what `project` did to the state between stays done.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..core import NONE, Noise
from ..errors import UserError
from .field import Cond, Field, affine, spread
from .multistep import End, Multistep, Past, combine, ends, weights
from .path import At, Path, Scalar, lib
from .solve import Step, drawn, power


def moments(H: float, n: int) -> list[float]:
    """The first n moments M_i of the kernel H e^(−H(1−u)) on [0, 1], to double precision for any H ≠ 0."""
    first = -math.expm1(-H)
    if abs(H) > 1:
        found = [first]
        for i in range(1, n):
            found.append(1 - i * found[-1] / H)
        return found
    top = term = H / n  # the last one by its series, the others from it: upwards the recursion loses digits
    for m in range(n + 1, n + 18):
        term *= -H / m
        top += term
    found = [top]
    for i in range(n - 1, 0, -1):
        found.append(H / i * (1 - found[-1]))
    return found[::-1]


def _first(
    field: Field, x: Tensor, t: Scalar, s: Scalar, there: End, eta: float, h: float, cond: Cond, noise: Noise | None
) -> Tensor:
    """A step of order 1 with h infinite."""
    if eta == 0 or there.sigma == 0:
        return field.predict(x, t, there.alpha, there.sigma, cond)
    kept = math.exp(-eta * h)
    n = drawn(x, there.sigma * power(1 - kept * kept, 0.5), t, s, noise)
    return n + field.predict(x, t, there.alpha, there.sigma * kept, cond)


class DPMMultistep(Multistep):
    """DPM-Solver++ from the net's earlier answers, one evaluation a step.

    order: 1, 2 or 3. eta: 0 for the ODE, 1 for the SDE (SDE-DPM-Solver++), between and above for more or less noise;
    with noise the law is of order 2 at most.
    """

    def __init__(self, order: int = 2, eta: float = 0.0) -> None:
        _known("DPMMultistep", order)
        if eta < 0:
            raise UserError(f"DPMMultistep's eta is {eta}: use 0 (the ODE) or 1 (the SDE).")
        self.order, self.eta = order, eta

    def begin(self) -> Step:
        return _DPMWalk(self.order, self.eta)


class _DPMWalk(Step):
    def __init__(self, order: int, eta: float) -> None:
        self.eta, self.past = eta, Past(order)

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        here, there = ends(field.path, t, s)
        lam, h = here.lam, there.lam - here.lam
        if not math.isfinite(h):
            return _first(field, x, t, s, there, self.eta, h, cond, noise)
        self.past.add(lam, field.predict(x, t, 1.0, 0.0, cond))
        if h == 0:
            return x
        w = [there.alpha * c for c in guess(self.past.nodes(lam, h), (1 + self.eta) * h)]
        c = there.sigma / here.sigma * math.exp(-self.eta * h)
        y = combine(c, x, w, self.past.answers)
        if self.eta == 0:
            return y
        return drawn(x, there.sigma * power(-math.expm1(-2 * self.eta * h), 0.5), t, s, noise) + y


def guess(nodes: list[float], H: float) -> list[float]:
    """DPM-Solver++'s weights on the answers at `nodes`, nodes[0] = 0."""
    if len(nodes) == 3:
        return weights(nodes, moments(H, 3))
    gain = -math.expm1(-H)
    if len(nodes) == 1:
        return [gain]
    slope = gain / (2 * nodes[1])
    return [gain - slope, slope]


class Singlestep(Step):
    """A solver that looks at λ between t and s; times may be per sample. A step from or to an infinite λ is DDIM's."""

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        here, there = At(field.path, t), At(field.path, s)
        endless = here.alpha * here.sigma * there.alpha * there.sigma == 0
        if not isinstance(endless, Tensor):
            if endless:
                return field.predict(x, t, there.alpha, there.sigma, cond)
            return self.inside(field, x, here, there, cond)
        if not endless.any():
            return self.inside(field, x, here, there, cond)
        ddim = field.predict(x, t, there.alpha, there.sigma, cond)
        if endless.all():
            return ddim
        far, near = (At(field.path, torch.where(endless, safe, at.t)) for at, safe in ((here, 0.6), (there, 0.4)))
        return torch.where(spread(endless, x), ddim, self.inside(field, x, far, near, cond))

    @abstractmethod
    def inside(self, field: Field, x: Tensor, here: At, there: At, cond: Cond) -> Tensor:
        """The step between two finite λ."""


def _between(path: Path, here: At, there: At, u: float) -> At:
    """Where λ = λ_t + u h."""
    return At(path, path.time((here.sigma / here.alpha) ** (1 - u) * (there.sigma / there.alpha) ** u))


class DPM2(Singlestep):
    """DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927; in σ it is k-diffusion's DPM2): x_s/α_s = x_t/α_t + (r_s − r_t) ε̂
    at λ_t + h/2, by noise prediction, r = σ/α. Two evaluations.
    """

    def inside(self, field: Field, x: Tensor, here: At, there: At, cond: Cond) -> Tensor:
        half = _between(field.path, here, there, 0.5)
        y = field.predict(x, here.t, half.alpha, half.sigma, cond)
        eps = field.predict(y, half.t, 0.0, 1.0, cond)
        grown = there.alpha / here.alpha
        last: Tensor = affine(spread(grown, x), x, spread(there.sigma - grown * here.sigma, x), eps)
        return last


class DPMSinglestep(Singlestep):
    """DPM-Solver++ of order 2 or 3 with as many evaluations a step, remembering nothing."""

    def __init__(self, order: int = 2) -> None:
        if order not in (2, 3):
            raise UserError(f"DPMSinglestep has orders 2 and 3, not {order}: order 1 is DDIM.")
        self.order = order

    def inside(self, field: Field, x: Tensor, here: At, there: At, cond: Cond) -> Tensor:
        ratio = here.sigma / here.alpha

        def ahead(to: At, x0: Tensor) -> Tensor:  # as if x̂ were x0 all the way
            gain = to.alpha - to.sigma / ratio  # α_to M_0
            y: Tensor = affine(spread(to.sigma / here.sigma, x), x, spread(gain, x), x0)
            return y

        if self.order == 2:
            half = _between(field.path, here, there, 0.5)
            y = field.predict(x, here.t, half.alpha, half.sigma, cond)
            return ahead(there, field.predict(y, half.t, 1.0, 0.0, cond))
        one, two = _between(field.path, here, there, 1 / 3), _between(field.path, here, there, 2 / 3)
        x0 = field.predict(x, here.t, 1.0, 0.0, cond)
        x1 = field.predict(ahead(one, x0), one.t, 1.0, 0.0, cond)
        x2 = field.predict(ahead(two, x1), two.t, 1.0, 0.0, cond)
        h = lib(ratio).log(ratio * there.alpha / there.sigma)
        last: Tensor = affine(1.0, ahead(there, x0), spread(there.alpha * _second(h) * 1.5, x), x2 - x0)
        return last


def _second(h: Scalar) -> Scalar:
    """M_1 of a step that is a float or one per sample."""
    if isinstance(h, Tensor):
        wide = h.double()
        small = wide.abs() < 1e-3
        exact = 1 + torch.expm1(-wide) / torch.where(small, 1.0, wide)
        return torch.where(small, wide / 2 - wide * wide / 6, exact).to(h.dtype)
    return moments(h, 2)[1]


def bh1(h: float) -> float:
    """UniPC's B(h) = h."""
    return h


def bh2(h: float) -> float:
    """UniPC's B(h) = 1 − e^(−h)."""
    return -math.expm1(-h)


class UniPC(Multistep):
    """The unified predictor-corrector, one evaluation a step: UniP of `order` 1 to 3, and after it UniC.

    b: `bh1` or `bh2` (the authors' choice with guidance); it only enters where the order is 1 or 2.
    The state after a step is the predictor's; the next step corrects it before it goes on, and the last one stays.
    """

    def __init__(self, order: int = 2, b: Callable[[float], float] = bh2) -> None:
        _known("UniPC", order)
        self.order, self.b = order, b

    def begin(self) -> Step:
        return _UniPCWalk(self.order, self.b)


class _UniPCWalk(Step):
    def __init__(self, order: int, b: Callable[[float], float]) -> None:
        self.order, self.b, self.past = order, b, Past(order + 1)
        self.change = list[float]()  # the corrector's weights less the predictor's, of the last step

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        here, there = ends(field.path, t, s)
        lam, h = here.lam, there.lam - here.lam
        if not math.isfinite(h):  # from no signal, or at data: where it is x̂ that counts, not the state put right
            self.change = []
            return field.predict(x, t, there.alpha, there.sigma, cond)
        self.past.add(lam, field.predict(x, t, 1.0, 0.0, cond))
        if h == 0:
            return x
        nodes = self.past.nodes(lam, h)[: self.order]
        predictor = self._predictor(nodes, h)
        kept = there.sigma / here.sigma
        w = [kept * c for c in self.change]  # the correction of x, carried along
        w += [0.0] * (len(self.past.places) - len(w))
        for i, c in enumerate(predictor):
            w[i] += there.alpha * c
        answers = self.past.answers[: len(w)]
        self.change = [there.alpha * c for c in self._correction(nodes, h, predictor)]
        return combine(kept, x, w, answers)

    def _predictor(self, nodes: list[float], h: float) -> list[float]:
        if len(nodes) == 2:
            slope = self.b(h) / (2 * nodes[1])
            return [-math.expm1(-h) - slope, slope]
        return weights(nodes, moments(h, len(nodes)))

    def _correction(self, nodes: list[float], h: float, predictor: list[float]) -> list[float]:
        if len(nodes) == 1:
            return [self.b(h) / 2, -self.b(h) / 2]
        corrector = weights([1.0, *nodes], moments(h, len(nodes) + 1))
        return [c - p for c, p in zip(corrector, [0.0, *predictor], strict=True)]


def _known(solver: str, order: int) -> None:
    if order not in (1, 2, 3):
        raise UserError(f"{solver} has orders 1, 2 and 3, not {order}.")
