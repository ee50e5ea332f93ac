"""Every solver of the table draws the exact mixture: W1 ≤ 0.02 at 200 evaluations of the analytic field.

W1 of n numbers to a law is taken to its quantiles at (i + ½)/n. In one dimension a solver without noise is a monotone
map, and from the normal law's quantiles it has no sampling error at all. One with noise has, of mean at most
∫ √(F (1 − F) / n) dx: n is so large that this is below 0.01, half of what is allowed. In two dimensions the laws are
compared along eight directions, from Sobol's points.

Annealed Langevin dynamics is given what its paper takes, 1000 evaluations: it has no predictor, and lags behind its
levels (W1 at 200 is 0.03 to 0.06). `ancestral` goes EDM's path in equal steps of log-SNR: on Karras' grid its own small
variance costs it 0.018.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import norm

from morphogen import UserError
from morphogen.core import Noise
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion.field import Mixture
from morphogen.diffusion.solvers import SOLVERS
from morphogen.diffusion.stochastic import EulerMaruyama

f64 = torch.float64
GROUND = {
    "vp": (P.VP(), G.LogSNR(1.0, 1e-4)),
    "linear": (P.Linear(), G.Uniform()),
    "edm": (P.Exploding(), G.Karras()),
    "cosine": (P.CosineBetas(), G.LogSNR(0.99, 1e-3)),
}
LINE = ([[-1.5], [0.5]], [0.25, 0.5], [0.35, 0.65])
PLANE = ([[-1.2, 0.4], [0.9, 0.9], [0.2, -1.1]], [0.3, 0.5, 0.25], [0.3, 0.4, 0.3])
OWN = {("ancestral", "edm"): G.LogSNR(1.0, 2.5e-5)}
ALLOWED, EVALUATIONS = 0.02, {"langevin": 1000}
NOISY, NOISY_SLOW = 1 << 15, 1 << 17
MISSED = pytest.mark.xfail(
    strict=True, reason="annealed Langevin has W1 of 0.023 to 0.027 in the plane: see docs/log.md"
)


class Counted(Mixture):
    calls = 0

    def predict(self, x, t, p, q, cond=None):
        self.calls += 1
        return super().predict(x, t, p, q)


def draws_noise(step):
    try:
        S.solve(Mixture(P.VP(), *LINE), torch.ones(1, 1, dtype=f64), [0.9, 0.5, 0.3], step=step)
    except UserError:
        return True
    return False


def ground_of(name, ground):
    path, grid = GROUND[ground]
    return path, OWN.get((name, ground), grid)


def sampled(path, grid, step, z, law, budget, n):
    """What a solver makes of normal z in at most n steps, and as many as `budget` evaluations allow."""
    field = Counted(path, *law)
    while True:
        field.calls, times = 0, grid(path, n)
        x = S.solve(field, z * path.sigma(float(times[0])), times, step=step, noise=Noise.seeded(6, len(z)))
        if field.calls <= budget:
            assert field.calls > 0
            return x
        n = max(1, min(n - 1, n * budget // field.calls))


@cache
def steps_of(name, ground, budget):
    """How many steps `budget` evaluations are, told from few samples (with all of them, an adaptive solver may need
    more, and is given fewer steps).
    """
    (path, grid), n = ground_of(name, ground), budget
    while True:
        field, times = Counted(path, *LINE), grid(path, n)
        z = torch.linspace(-3, 3, 9, dtype=f64)[:, None] * path.sigma(float(times[0]))
        S.solve(field, z, times, step=SOLVERS[name], noise=Noise.seeded(6, 9))
        if field.calls <= budget or n == 1:
            return n
        n = max(1, min(n - 1, n * budget // field.calls))


def quantiles(law, n, direction=(1.0,)):
    """The quantiles at (i + ½)/n of the mixture along a direction."""
    means, stds, weights = np.array(law[0]) @ np.array(direction), np.array(law[1]), np.array(law[2])
    x = np.linspace(-6, 6, 200_001)
    cdf = (weights[:, None] * norm.cdf((x - means[:, None]) / stds[:, None])).sum(0)
    spread = np.sqrt(cdf * (1 - cdf)).sum() * (x[1] - x[0])  # sampling error's bound, times √n
    return torch.tensor(np.interp((np.arange(n) + 0.5) / n, cdf, x)), spread


def w1_line(name, ground, n):
    """W1 in one dimension, from the quantiles of the normal law."""
    (path, grid), budget = ground_of(name, ground), EVALUATIONS.get(name, 200)
    z = torch.tensor(norm.ppf((np.arange(n) + 0.5) / n))[:, None]
    exact, _ = quantiles(LINE, n)
    x = sampled(path, grid, SOLVERS[name], z, LINE, budget, steps_of(name, ground, budget))
    return (x[:, 0].sort().values - exact).abs().mean().item()


NOISELESS = [name for name in SOLVERS if not draws_noise(SOLVERS[name])]
WITH_NOISE = [name for name in SOLVERS if name not in NOISELESS]


@pytest.mark.parametrize("ground", GROUND)
@pytest.mark.parametrize("name", NOISELESS)
def test_without_noise(name, ground):
    assert w1_line(name, ground, 1000) <= ALLOWED


@pytest.mark.parametrize("name", WITH_NOISE)
@pytest.mark.parametrize(
    ("ground", "n"),
    [("vp", NOISY), ("edm", NOISY), *(pytest.param(g, NOISY_SLOW, marks=pytest.mark.slow) for g in GROUND)],
)
def test_with_noise(name, ground, n):
    assert quantiles(LINE, n)[1] / n**0.5 < ALLOWED / 2
    assert w1_line(name, ground, n) <= ALLOWED


@pytest.mark.parametrize(
    ("ground", "name"),
    [("vp", name) for name in NOISELESS]
    + [
        pytest.param(g, name, marks=[pytest.mark.slow, *([MISSED] if name == "langevin" else [])])
        for g in GROUND
        for name in SOLVERS
        if g != "vp" or name in WITH_NOISE
    ],
)
def test_in_the_plane(ground, name):
    (path, grid), budget = ground_of(name, ground), EVALUATIONS.get(name, 200)
    n = NOISY_SLOW if name in WITH_NOISE else 1 << 12
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(n, dtype=f64).clamp(1e-9, 1 - 1e-9)
    z = math.sqrt(2) * torch.erfinv(2 * u - 1)
    x = sampled(path, grid, SOLVERS[name], z, PLANE, budget, steps_of(name, ground, budget))
    for angle in np.arange(8) * (math.pi / 8):
        direction = (math.cos(angle), math.sin(angle))
        exact, spread = quantiles(PLANE, n, direction)
        if name in WITH_NOISE:
            assert spread / n**0.5 < ALLOWED / 2
        w1 = ((x @ torch.tensor(direction, dtype=f64)).sort().values - exact).abs().mean().item()
        assert w1 <= ALLOWED


# ---- planted faults --------------------------------------------------------------------------------------------------


class NoCorrection(EulerMaruyama):
    """Draws Anderson's noise on the drift of the ODE."""

    def __call__(self, field, x, t, s, cond=None, noise=None):
        drawn = super().__call__(field, x, t, s, {}, noise) - super().__call__(field, x, t, s, {}, Still(len(x)))
        return S.euler(field, x, t, s) + drawn


class Still(Noise):
    def __init__(self, n):
        super().__init__(torch.zeros(n, dtype=torch.int64))

    def normal(self, *shape, dtype=None):
        return torch.zeros(len(self), *shape, dtype=dtype)


class Later(S.DDIM):
    """Asks the field at the end of the step."""

    def __call__(self, field, x, t, s, cond=None, noise=None):
        return field.predict(x, max(s, 1e-4), field.path.alpha(s), field.path.sigma(s))


class Short(S.DDIM):
    """Takes away a hundredth too much noise in each step."""

    def __call__(self, field, x, t, s, cond=None, noise=None):
        return field.predict(x, t, field.path.alpha(s), 0.99 * field.path.sigma(s))


@pytest.mark.parametrize("fault", [NoCorrection(), Later(), Short()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("ground", ["linear", "edm"])
def test_faults_are_noticed(fault, ground):
    (path, grid), n = GROUND[ground], 4000
    z = torch.tensor(norm.ppf((np.arange(n) + 0.5) / n))[:, None]
    x = sampled(path, grid, fault, z, LINE, 200, 200)
    assert (x[:, 0].sort().values - quantiles(LINE, n)[0]).abs().mean().item() > 1.5 * ALLOWED
