"""What a solver must pass, as functions that assert: for ours (`test_diffusion_solve`, `test_diffusion_multistep`), and
for planted faults, which must not pass (`test_diffusion_faults`).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from scipy.integrate import solve_ivp

from morphogen.core import Noise
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion.field import Mixture, gaussian

f64 = torch.float64


class Counted(Mixture):
    """An exact field that counts its evaluations."""

    calls = 0

    def predict(self, x, t, p, q, cond=None):
        self.calls += 1
        return super().predict(x, t, p, q)


class Given(Noise):
    """The same numbers (B,) in every draw."""

    def __init__(self, values):
        super().__init__(torch.zeros(len(values), dtype=torch.int64))
        self.values = torch.tensor(values, dtype=f64)

    def normal(self, *shape, dtype=None):
        return self.values.to(dtype).reshape(-1, *(1,) * len(shape)).repeat(1, *shape)


def moments(field, times, step):
    """Mean and variance of what a solver that remembers nothing makes of N(0, σ²) on a one-dimensional Gaussian field,
    without sampling: a step is affine in x and in its noise, x_s = g x + o + c n.
    """
    mean, var = 0.0, float(field.path.sigma(float(times[0]))) ** 2
    x = torch.tensor([[0.0], [1.0], [0.0]], dtype=f64)
    for t, s in pairwise(times.tolist()):
        zero, one, noisy = step(field, x, t, s, {}, Given([0.0, 0.0, 1.0]))[:, 0].tolist()
        mean, var = zero + (one - zero) * mean, (one - zero) ** 2 * var + (noisy - zero) ** 2
    return mean, var


class Impulses(Noise):
    """Sample i + 2 is given 1 in the i-th draw; 0 otherwise."""

    def __init__(self, n):
        super().__init__(torch.zeros(n, dtype=torch.int64))
        self.at = 2

    def normal(self, *shape, dtype=None):
        drawn = torch.zeros(len(self), *shape, dtype=dtype)
        drawn[self.at] = 1.0
        self.at += 1
        return drawn


def walked(field, times, step):
    """`moments` of any solver, in one walk: from 0 and from 1 without noise, and from 0 with one unit in each draw."""
    x = torch.zeros(len(times) + 1, 1, dtype=f64)
    x[1] = 1.0
    mean, one, *noisy = S.solve(field, x, times, step=step, noise=Impulses(len(x)))[:, 0].tolist()
    var = (float(field.path.sigma(float(times[0]))) * (one - mean)) ** 2
    return mean, var + sum((y - mean) ** 2 for y in noisy)


# ---- DDIM and the grid ---------------------------------------------------------------------------------------------


def indices(spacing, n, T=1000):
    """The published grids of a chain, from their definitions, in whole numbers."""
    leading = [i * (T // n) for i in reversed(range(n))]
    trailing = [round(T - i * T / n) - 1 for i in range(n)]
    linspace = [round((T - 1) * i / (n - 1)) for i in reversed(range(n))] if n > 1 else [T - 1]
    return {"leading": leading, "trailing": trailing, "linspace": linspace}[spacing]


def ddim(chain, spacing, n, mean, var):
    """DDIM's mean and variance on N(mean, var) along published indices, by its definition on the table ᾱ alone."""
    table = [*chain.abar.tolist(), 1.0]  # index -1 is clean data
    steps = [*indices(spacing, n), -1]
    m, g = 0.0, 1.0
    for i, j in pairwise(steps):
        a, b, A, B = (math.sqrt(v) for v in (table[i], 1 - table[i], table[j], 1 - table[j]))
        gain = a * var / (a * a * var + b * b)  # x̂ = mean + gain (x − a mean)
        slope = A * gain + B * (1 - a * gain) / b
        m = slope * (m - a * mean) + A * mean
        g *= slope
    return m, g * g * (1 - table[steps[0]])


def check_ddim(step, grid, spacing, n):
    """The mean and variance of a deterministic solver of order 1 along a chain's grid."""
    chain = P.LinearBetas()
    field, times = gaussian(chain, 0.7, 0.3**0.5), grid(chain, n)
    mean, var = ddim(chain, spacing, n, 0.7, 0.3)
    assert walked(field, times, step) == (pytest.approx(mean, rel=1e-8), pytest.approx(var, rel=1e-8))


def check_published_ddim(step, grid):
    """13 steps: a published mean, which t − T//N brings to 0.662."""
    chain = P.LinearBetas()
    field = gaussian(chain, 0.7, 0.3**0.5)
    assert walked(field, grid(chain, 13), step)[0] == pytest.approx(0.698, abs=2e-3)


# ---- the last step -------------------------------------------------------------------------------------------------


def check_ancestral(step, n=1000):
    """DDPM's whole chain with the exact ε: not the data's 0.25 but 0.246125."""
    chain = P.LinearBetas()
    assert walked_chain(step, chain, n) == pytest.approx(0.246125, abs=1e-6)


def walked_chain(step, chain, n):
    return moments(gaussian(chain, 0.0, 0.5), G.Trailing()(chain, n), step)[1]


def check_point(step, n=20):
    """Data that is one point is met exactly: nothing random is left at the end."""
    chain = P.LinearBetas()
    mean, var = walked(gaussian(chain, 0.4, 0.0), G.Trailing()(chain, n), step)
    assert mean == pytest.approx(0.4, abs=1e-9)
    assert var == pytest.approx(0, abs=1e-15)


# ---- orders --------------------------------------------------------------------------------------------------------


def check_published_errors(step, errors, order):
    """Relative errors on the VP ODE, N(0, 1/4), 20, 40, 80 equal steps of λ from t = 1 to 1e-3, to the digits given."""
    path = P.VP(0.1, 20.0)
    field, x, got = gaussian(path, 0.0, 0.5), torch.ones(1, 1, dtype=f64), []
    for n, error in zip((20, 40, 80), errors, strict=True):
        times = G.LogSNR()(path, n + 1)[:-1]
        assert times[[0, -1]].tolist() == pytest.approx([1, 1e-3], rel=1e-9)
        got.append(S.solve(field, x, times, step=step).item() / 0.5000905500 - 1)
        assert got[-1] == pytest.approx(error, rel=1.5e-3)
    assert math.log2(got[1] / got[2]) == pytest.approx(order, abs=0.1)


PATHS = {
    "VP": (P.VP(), 1.0, 0.01),
    "Linear": (P.Linear(), 0.999, 0.01),
    "Exploding": (P.Exploding(), 1.0, 0.001),
    "middle": (P.Linear(), 0.8, 0.02),  # begins where x̂ already moves: the first steps of a walk count
}


def mixture(path):
    return Counted(path, [[-1.0], [1.5]], [0.6, 0.8], [0.4, 0.6])


@cache
def problem(name):
    """A non-linear problem: field, start, its two times, and the end by scipy's DOP853 to 1e-11."""
    path, high, low = PATHS[name]
    field = mixture(path)
    x = torch.linspace(-2, 2, 9, dtype=f64)[:, None] * path.sigma(high)

    def slope(lam, y):
        """dx/dλ = (α̇x̂ + σ̇ε̂) / λ̇: smooth where the problem is stiff in t."""
        t = float(path.time(math.exp(-lam)))
        rate = path.dalpha(t) / path.alpha(t) - path.dsigma(t) / path.sigma(t)
        return (field.velocity(torch.as_tensor(y)[:, None], t) / rate)[:, 0].numpy()

    ends = [-math.log(path.ratio(high)), -math.log(path.ratio(low))]
    end = solve_ivp(slope, ends, x[:, 0].numpy(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    return field, x, (high, low), torch.as_tensor(end)[:, None]


def errors(step, name, ns):
    """Errors after n equal steps of λ, and the evaluations that they took."""
    field, x, (high, low), exact = problem(name)
    found, calls = [], []
    for n in ns:
        field.calls = 0
        y = S.solve(field, x, G.LogSNR(high, low)(field.path, n + 1)[:-1], step=step)
        found.append((y - exact).norm().item())
        calls.append(field.calls)
    return found, calls


def check_order(step, order, evaluations, name, ns=(64, 128), tolerance=0.15):
    """Halving the step divides the error by 2^order, and each step asks the field `evaluations` times."""
    (one, two), calls = errors(step, name, ns)
    assert calls == [evaluations * n for n in ns]
    assert math.log2(one / two) == pytest.approx(order, abs=tolerance)


def local_error(step, size, axis):
    """The error of one step of `size` along an axis after three others, all from the exact solution's states."""
    path = P.Linear()
    field, x = mixture(path), torch.linspace(-2, 2, 9, dtype=f64)[:, None]
    times = [path.time(axis(offset * size)) for offset in (-2.7, -1.9, -1.2, 0.0, 1.0)]
    walk = step.begin()
    for t, s in pairwise(times):
        exact = S.solve(field, x, torch.linspace(t, s, 41, dtype=f64), step=S.rk4)
        error, x = (walk(field, x, t, s, {}) - exact).norm().item(), exact
    return error
