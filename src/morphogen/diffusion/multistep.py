"""Linear multistep solvers: the net's earlier answers, interpolated and integrated.

In the noise-to-signal ratio r = σ/α the probability-flow ODE is d(x/α)/dr = ε̂, so that

    x_s/α_s = x_t/α_t + (r_s − r_t) Σ_j w_j ε̂_j,        w_j = ∫_0^1 ℓ_j(u) du,   u = (r − r_t) / (r_s − r_t)

with ℓ_j the Lagrange polynomials on the u_j of the last `order` evaluations. `weights` finds the w_j of any kernel from
its moments ∫ k(u) u^i du, in closed form; `dpm.py` uses it with the exponential kernel of the log-SNR.

    LMS    variable steps, any order up to 4: exact where ε̂ is a polynomial of degree < order in r (Crowson 2022,
           k-diffusion's sampler in EDM's σ; here on every path)

One evaluation a step. The first steps of a walk rise in order, for they have fewer answers to read. Where r is infinite
(α = 0, a zero terminal SNR) the step is DDIM's, the limit, and leaves nothing to remember; r = 0 is an end like others.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..core import NONE, Noise
from ..errors import UserError
from .field import Cond, Field
from .path import Path, Scalar
from .solve import Step


class Multistep(Step):
    """A solver that reads earlier steps of its walk (`begin`). Asked for one step alone, it takes a walk's first.

    Raises UserError for times per sample (B,): a walk has one clock.
    """

    @abstractmethod
    def begin(self) -> Step:
        """One walk along a grid, with nothing remembered."""

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        return self.begin()(field, x, t, s, cond, noise)


class End(NamedTuple):
    """One end of a step: α, σ and the two axes that multistep solvers walk along."""

    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """σ/α, infinite where α = 0."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def lam(self) -> float:
        """λ = log(α/σ), infinite at either end."""
        if self.alpha and self.sigma:
            return math.log(self.alpha / self.sigma)
        return -math.inf if self.sigma else math.inf


def ends(path: Path, t: Scalar, s: Scalar) -> tuple[End, End]:
    """Both ends of a multistep solver's step."""
    if isinstance(t, Tensor) or isinstance(s, Tensor):
        raise UserError(
            "A multistep solver remembers one time for the whole batch, so it takes t and s as floats: use ddim, heun"
            " or dpmpp-2s for times per sample."
        )
    here, there = (path.alpha(t), path.sigma(t)), (path.alpha(s), path.sigma(s))
    return End(*cast(tuple[float, float], here)), End(*cast(tuple[float, float], there))


def weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The w_j with Σ_j w_j p(nodes[j]) = ∫ k(u) p(u) du for every polynomial p of degree < len(nodes).

    nodes: all different. moments: ∫ k(u) u^i du for i = 0, 1, …; at least as many as nodes.
    """
    found = []
    for u in nodes:
        basis = [1.0]  # the coefficients of ℓ_u, of rising degree
        for v in nodes:
            if v != u:
                basis = [(a - v * b) / (u - v) for a, b in zip([0.0, *basis], [*basis, 0.0], strict=True)]
        found.append(sum(c * m for c, m in zip(basis, moments, strict=False)))
    return found


def combine(c: float, x: Tensor, factors: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """The sum c x + Σ factors_j terms_j, a new tensor."""
    y = c * x
    for w, m in zip(factors, terms, strict=True):
        y = torch.add(y, m, alpha=w)
    return y


class Past:
    """The last answers of a walk, newest first, and where on the solver's axis each was given."""

    __slots__ = ("answers", "most", "places")

    def __init__(self, most: int) -> None:
        self.most, self.places, self.answers = most, list[float](), list[Tensor]()

    def add(self, place: float, answer: Tensor) -> None:
        """Remember one more; a second answer at the same place takes the first one's."""
        if self.places and self.places[0] == place:
            self.answers[0] = answer
            return
        self.places.insert(0, place)
        self.answers.insert(0, answer)
        del self.places[self.most :], self.answers[self.most :]

    def nodes(self, here: float, h: float) -> list[float]:
        """The places as u = (place − here) / h."""
        return [(p - here) / h for p in self.places]


class LMS(Multistep):
    """The linear multistep method in σ/α, of order 1 (Euler in σ) to 4."""

    def __init__(self, order: int = 4) -> None:
        if not 1 <= order <= 4:
            raise UserError(f"LMS has orders 1 to 4, not {order}: above that it amplifies errors.")
        self.order = order

    def begin(self) -> Step:
        return _LMSWalk(self.order)


_FLAT = (1.0, 1 / 2, 1 / 3, 1 / 4)  # ∫ u^i du over [0, 1]


class _LMSWalk(Step):
    def __init__(self, order: int) -> None:
        self.past = Past(order)

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        here, there = ends(field.path, t, s)
        r, h = here.ratio, there.ratio - here.ratio
        if not math.isfinite(h):
            return field.predict(x, t, there.alpha, there.sigma, cond)
        self.past.add(r, field.predict(x, t, 0.0, 1.0, cond))
        if h == 0:
            return x
        w = [there.alpha * h * c for c in weights(self.past.nodes(r, h), _FLAT)]
        return combine(there.alpha / here.alpha, x, w, self.past.answers)
