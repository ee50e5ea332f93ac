"""Scaling laws: how the loss falls with the size of a model and with how much it learns from. Imports no torch.

    L(N, D) = E + A / N^α + B / D^β          N trained parameters, D tokens (or samples, or steps lived)

fitted as in approach 3 of Hoffmann et al. 2022, Training compute-optimal large language models, arXiv:2203.15556:

    min  Σ_i Huber_δ( LSE(a − α log N_i, b − β log D_i, e) − log L_i ),     A = e^a, B = e^b, E = e^e, δ = 10⁻³

by L-BFGS from a grid of starts. With a compute of C = k N D the least loss is at (section 3.3)

    N* = G (C/k)^(β/(α+β)),   D* = (C/k) / N*,   G = (αA / βB)^(1/(α+β)).

Departures: the starts are, for a grid of (α, β), the E, A, B ≥ 0 of least squares, so that a loss may be in any unit
(paper: a fixed grid for nats of text). The sum is minimised, and to convergence: the paper's own fit had stopped early
(Besiroglu et al. 2024, Chinchilla scaling: a replication attempt, arXiv:2404.10102). Intervals are by a bootstrap over
runs, each time fitted anew; what is told of a new run adds the scatter of the runs around the law.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

Array = NDArray[np.float64]
FORMAT = 1
DELTA = 1e-3  # of the Huber loss
NAMES = ("E", "A", "B", "alpha", "beta")
_OWN = ("format", "law", "level", "intervals", "scatter", "points", "draws", "optimum")  # the rest of a page is about
_EXPONENTS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0])
_FLATTEST, _STEEPEST = 1e-3, 6.0  # exponents beyond them say nothing
_NOTHING = 1e-12  # of the loss, instead of a zero whose logarithm is none


class Point(NamedTuple):
    """A run that was measured: trained parameters, what it learned from, held-out loss, and its name."""

    n: float
    d: float
    loss: float
    run: str = ""


class Told(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


class Best(NamedTuple):
    """Where a compute is best spent: size, amount, the loss there, each with its interval."""

    n: Told
    d: Told
    loss: Told


class Law:
    """A fitted law.

    theta: (5,), E, A, B, α, β. draws: (M, 5), the same of bootstrap resamples. scatter: residuals of log L (n,), each
    enlarged by √(n / (n − 5)). level: of all intervals. about: what it is of (recipe, metric, unit, flops, …), as JSON.
    """

    def __init__(
        self,
        theta: Array,
        draws: Array,
        scatter: Array,
        points: Sequence[Point],
        level: float = 0.9,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.theta, self.draws, self.scatter = theta, draws, scatter
        self.points, self.level, self.about = list(points), level, dict(about or {})

    def __call__(self, n: float | Array, d: float | Array) -> Array:
        """L(N, D)."""
        return np.asarray(curve(self.theta, n, d))

    @property
    def intervals(self) -> dict[str, Told]:
        """Each parameter with its interval."""
        ends = [self._ends(column) for column in self.draws.T]
        return {k: Told(float(v), *e) for k, v, e in zip(NAMES, self.theta, ends, strict=True)}

    def predict(self, n: float, d: float) -> Told:
        """The loss of a new run, and where so many (`level`) of such runs end."""
        drawn = curve(self.draws, n, d)[:, None] * np.exp(self.scatter)[None]
        return Told(float(self(n, d)), *self._ends(drawn.ravel()))

    def best(self, compute: float, k: float = 6.0) -> Best:
        """Where a compute C = k N D is best spent. k: operations for a parameter and a unit of D (6 for a transformer's
        tokens).
        """
        found = optimum(np.concatenate([self.theta[None], self.draws]), compute / k)
        return Best(*(Told(float(column[0]), *self._ends(column[1:])) for column in found.T))

    def beyond(self, n: float, d: float) -> list[str]:
        """What speaks against asking the law there: how far outside of the runs it was fitted to."""
        found = []
        unit = self.about.get("unit", "samples")
        for what, at, seen in (("parameters", n, [p.n for p in self.points]), (unit, d, [p.d for p in self.points])):
            if at > max(seen) * 1.0001:
                found.append(f"{at / max(seen):.2g} times more {what} than any run that the law was fitted to")
            if at < min(seen) / 1.0001:
                found.append(f"{min(seen) / at:.2g} times fewer {what} than any run that the law was fitted to")
        return found

    def untold(self) -> list[str]:
        """What the runs do not tell the loss by, of parameters and the unit of D: where its exponent was stopped at a
        bound, or over the runs its term falls by less than their scatter.
        """
        _, a, b, alpha, beta = self.theta
        found = []
        unit = self.about.get("unit", "samples")
        terms = (
            ("parameters", a, alpha, [p.n for p in self.points]),
            (unit, b, beta, [p.d for p in self.points]),
        )
        noise = float(np.sqrt(np.mean(self.scatter**2))) * min(p.loss for p in self.points)
        for what, scale, exponent, seen in terms:
            falls = scale * (min(seen) ** -exponent - max(seen) ** -exponent)
            if not _FLATTEST * 1.01 < exponent < _STEEPEST * 0.99 or not falls > noise:
                found.append(what)
        return found

    def page(self) -> dict[str, Any]:
        """The law as JSON."""
        return {
            "format": FORMAT,
            **self.about,
            "law": dict(zip(NAMES, map(float, self.theta), strict=True)),
            "level": self.level,
            "intervals": {k: list(t) for k, t in self.intervals.items()},
            "scatter": [round(float(r), 8) for r in self.scatter],
            "points": [p._asdict() for p in self.points],
            "draws": [[float(f"{v:.7g}") for v in row] for row in self.draws],
        }

    def _ends(self, values: Array) -> tuple[float, float]:
        tail = (1 - self.level) / 2
        low, high = np.quantile(values, (tail, 1 - tail))
        return float(low), float(high)


def read_law(path: Path) -> Law:
    """The law in a file. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"There is no law {str(path)!r}: `morphogen scale RECIPE …` writes one, law.json.")
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        if page["format"] != FORMAT:
            raise UserError(f"{str(path)!r} is of format {page['format']}, this version reads {FORMAT}: fit it anew.")
        theta = np.array([[page["law"][k] for k in NAMES], *page["draws"]], np.float64)
        scatter = np.array(page["scatter"], np.float64)
        points = [Point(float(p["n"]), float(p["d"]), float(p["loss"]), str(p["run"])) for p in page["points"]]
        level = float(page["level"])
        about = {k: v for k, v in page.items() if k not in _OWN}
        numbers = np.array([p[:3] for p in points])
        sound = (
            all(a.size and np.isfinite(a).all() for a in (theta[1:], theta, scatter, numbers)),
            (theta[:, :3] >= 0).all() and (theta[:, 3:] > 0).all() and (numbers > 0).all(),
            scatter.ndim == 1 and 0 < level < 1,
            isinstance(about.get("arguments", {}), dict) and isinstance(about.get("size", []), list),
        )
        if not all(sound):
            raise ValueError("numbers that no fit gives")
        return Law(theta[0], theta[1:], scatter, points, level, about)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        raise UserError(f"{str(path)!r} holds no law: give the law.json that `morphogen scale` wrote.") from None


def curve(theta: Array, n: float | Array, d: float | Array) -> Array:
    """E + A / N^α + B / D^β for theta (..., 5)."""
    e, a, b, alpha, beta = np.moveaxis(np.asarray(theta, np.float64), -1, 0)
    return np.asarray(e + a * np.power(n, -alpha) + b * np.power(d, -beta))


def optimum(theta: Array, product: float) -> Array:
    """N*, D* and L(N*, D*) (..., 3) where N D is given."""
    _, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    log_g = (np.log(alpha * a) - np.log(beta * b)) / (alpha + beta)
    n = np.exp(np.clip(log_g + beta / (alpha + beta) * math.log(product), 0, math.log(product)))  # N, D of 1 or more
    d = product / n
    return np.stack([n, d, curve(theta, n, d)], -1)


# ---- fitting -------------------------------------------------------------------------------------------------------


def fit(
    points: Sequence[Point],
    *,
    draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Law:
    """The law of measured runs, with intervals by `draws` bootstrap resamples of them.

    Raises UserError where the runs cannot tell five numbers: fewer than six, or fewer than three sizes or amounts;
    where a loss is not above 0; and without scipy.
    """
    n, d, loss = (np.array(column, np.float64) for column in list(zip(*points, strict=True))[:3] or ((), (), ()))
    if len(points) < 6 or len(np.unique(n)) < 3 or len(np.unique(d)) < 3:
        raise UserError(
            f"{len(points)} runs of {len(np.unique(n))} sizes and {len(np.unique(d))} amounts cannot tell a law's five"
            " numbers: give at least 3 sizes and 3 budgets."
        )
    if not (np.isfinite(loss).all() and (loss > 0).all()):
        bad = next(p for p in points if not (math.isfinite(p.loss) and p.loss > 0))
        raise UserError(
            f"The law is of losses above 0, and that of {bad.run or 'a run'} is {bad.loss:.4g}: choose another"
            " --metric, such as bits per dimension."
        )
    log_n, log_d, log_l = np.log(n), np.log(d), np.log(loss)
    center = np.array([log_n.mean(), log_d.mean()])  # where log N and log D are 0, the numbers are well conditioned
    at = np.stack([log_n, log_d]) - center[:, None]
    starts = _starts(at, log_l)
    found = min((_descend(start, at, log_l) for start in starts), key=lambda f: f[1])[0]
    rng = np.random.default_rng(seed)
    again: list[Array] = []
    while len(again) < draws:
        rows = rng.integers(len(points), size=len(points))
        if len(np.unique(n[rows])) < 3 or len(np.unique(d[rows])) < 3:  # which tell no law
            continue
        near = [found, *_starts(at[:, rows], log_l[rows], most=1)]
        again.append(min((_descend(s, at[:, rows], log_l[rows]) for s in near), key=lambda f: f[1])[0])
    residual = log_l - _log_curve(found, at)[0]
    scatter = residual * math.sqrt(len(points) / max(1, len(points) - 5))
    theta = _plain(np.stack([found, *again]), center)
    return Law(theta[0], theta[1:], scatter, points, level, about)


def _plain(theta: Array, center: Array) -> Array:
    """E, A, B, α, β of e, a, b, α, β around the center."""
    e, a, b, alpha, beta = theta.T
    return np.stack([np.exp(e), np.exp(a + alpha * center[0]), np.exp(b + beta * center[1]), alpha, beta], -1)


def _starts(at: Array, log_l: Array, most: int = 8) -> list[Array]:
    """The best of a grid of exponents, with the E, A, B of least squares (relative to the loss)."""
    nnls = _scipy().nnls
    weight = np.exp(-log_l)
    found = []
    for alpha in _EXPONENTS:
        for beta in _EXPONENTS:
            columns = np.stack([np.ones_like(log_l), np.exp(-alpha * at[0]), np.exp(-beta * at[1])], 1)
            x, rest = nnls(columns * weight[:, None], np.ones_like(log_l))
            floor = np.exp(log_l.mean()) * 1e-3
            found.append((rest, np.array([*np.log(np.maximum(x, floor)), alpha, beta])))
    return [theta for _, theta in sorted(found, key=lambda f: f[0])[:most]]


def _log_curve(theta: Array, at: Array) -> tuple[Array, Array]:
    """log L (n,) of e, a, b, α, β, and the shares of its three terms (3, n)."""
    e, a, b, alpha, beta = theta
    terms = np.stack([np.full(at.shape[1], e), a - alpha * at[0], b - beta * at[1]])
    top = terms.max(0)
    shares = np.exp(terms - top)
    total = shares.sum(0)
    return top + np.log(total), shares / total


def objective(theta: Array, at: Array, log_l: Array) -> tuple[float, Array]:
    """Σ Huber_δ of the residuals of log L, and its gradient (5,)."""
    predicted, shares = _log_curve(theta, at)
    r = predicted - log_l
    small = np.abs(r) <= DELTA
    value = np.where(small, 0.5 * r * r, DELTA * (np.abs(r) - 0.5 * DELTA)).sum()
    slope = np.where(small, r, DELTA * np.sign(r))
    by_term = shares * slope
    return float(value), np.array([*by_term.sum(1), -(by_term[1] * at[0]).sum(), -(by_term[2] * at[1]).sum()])


def _descend(start: Array, at: Array, log_l: Array) -> tuple[Array, float]:
    """The minimum near a start, and what it is worth."""
    scale = 1 / DELTA**2  # so that the tolerances of the optimiser mean something
    low = log_l.min() + math.log(_NOTHING)
    bounds = [(low, None)] * 3 + [(_FLATTEST, _STEEPEST)] * 2

    def scaled(theta: Array) -> tuple[float, Array]:
        value, gradient = objective(theta, at, log_l)
        return value * scale, gradient * scale

    done = _scipy().minimize(
        scaled, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300, "ftol": 1e-9, "gtol": 1e-6}
    )
    return np.asarray(done.x), float(done.fun)


def _scipy() -> Any:
    try:
        from scipy import optimize  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise UserError(
            "A scaling law is fitted by scipy, which is not installed: pip install 'morphogen[scale]'."
        ) from None
    return optimize
