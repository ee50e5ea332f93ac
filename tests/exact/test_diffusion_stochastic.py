"""Stochastic solvers: exact recursions of mean and variance, the papers' own loops, measured orders, quiet ends."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from morphogen import UserError
from morphogen.core import Noise
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion.field import Mixture, gaussian
from morphogen.diffusion.stochastic import (
    AnnealedLangevin,
    Churn,
    EulerMaruyama,
    PredictorCorrector,
    StochasticHeun,
    g_squared,
)
from morphogen.spec import build, spec
from tests.exact.solver_checks import Counted

f64 = torch.float64
MEAN, STD = 0.3, 0.5
PATHS = [P.Linear(), P.Cosine(), P.VP(), P.Exploding(), P.LinearBetas()]


class Impulses(Noise):
    """Sample i + 2 is given 1 in the i-th draw, and all else 0: what one unit of each draw does to the result."""

    def __init__(self, n):
        super().__init__(torch.zeros(n, dtype=torch.int64))
        self.at = 2

    def normal(self, *shape, dtype=None):
        drawn = torch.zeros(len(self), *shape, dtype=dtype)
        drawn[self.at] = 1.0
        self.at += 1
        return drawn


class Given(Noise):
    """Draws taken from a list."""

    def __init__(self, draws):
        super().__init__(torch.zeros(len(draws[0]), dtype=torch.int64))
        self.draws = iter(draws)

    def normal(self, *shape, dtype=None):
        return next(self.draws).clone()


def marginals(field, times, step, draws, start):
    """Times, means and variances along a walk from the law N(*start), exactly: on a Gaussian field all is affine."""
    x = torch.zeros(draws + 2, 1, dtype=f64)
    x[1] = 1.0
    told = []
    for t, state in S.trajectory(field, x, times, step=step, noise=Impulses(draws + 2)):
        zero, one, *noisy = state[:, 0].tolist()
        mean = zero + (one - zero) * start[0]
        told.append((t, mean, (one - zero) ** 2 * start[1] + sum((v - zero) ** 2 for v in noisy)))
    return told


def grid_of(path, n):
    return (G.Karras() if isinstance(path, P.Exploding) else G.Uniform())(path, n)


def law(path, t):
    return path.alpha(t) * MEAN, (path.alpha(t) * STD) ** 2 + path.sigma(t) ** 2


# ---- marginals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "step",
    [
        EulerMaruyama(0.0),
        EulerMaruyama(0.5),
        EulerMaruyama(),
        EulerMaruyama(1.5),
        StochasticHeun(),
        StochasticHeun(0.6),
    ],
    ids=lambda s: f"{type(s).__name__}-{s.noise}",
)
def test_any_noise_has_the_same_marginals(path, step):
    """Every time of the walk has N(α m, α² s² + σ²), to 2 % in the limit of small steps."""
    fine = grid_of(path, 400).tolist()
    field, start = gaussian(path, MEAN, STD), law(path, fine[0])

    def moments(times):
        """The law at each time: a step is affine, x_s = g x + o + c n."""
        x, (mean, var) = torch.tensor([[0.0], [1.0], [0.0]], dtype=f64), start
        told = {}
        for t, s in pairwise(times):
            n = Given([torch.tensor([[0.0], [0.0], [1.0]], dtype=f64)])
            zero, one, noisy = step(field, x, t, s, {}, n)[:, 0].tolist()
            mean, var = zero + (one - zero) * mean, (one - zero) ** 2 * var + (noisy - zero) ** 2
            told[s] = torch.tensor([mean, var], dtype=f64)
        return told

    one, two = moments(fine[::2]), moments(fine)
    first = isinstance(step, EulerMaruyama)  # its error falls with h, and what is left is told from two sizes of steps
    for t in one:
        if t < 0.9:  # at α = 0 the diffusion is infinite, and the first steps are coarse beside it
            mean, var = (2 * two[t] - one[t] if first else two[t]).tolist()
            want = law(path, t)
            assert abs(mean - want[0]) / want[1] ** 0.5 < 0.02
            assert abs(var / want[1] - 1) < 0.02
            assert abs(two[t][1].item() / want[1] - 1) < 0.1


def test_g_squared_is_the_sdes():
    vp, edm, line = P.VP(), P.Exploding(), P.Linear()
    for t in (0.2, 0.7, 0.99):
        assert g_squared(vp, t) == pytest.approx(vp.beta(t), rel=1e-9)  # dx = −β/2 x dt + √β dw
        assert g_squared(edm, t) == pytest.approx(2 * 80 * 80 * t, rel=1e-9)  # d(σ²)/dt
        assert g_squared(line, t) == pytest.approx(2 * t / (1 - t), rel=1e-9)


# ---- recursions and the papers' own loops ----------------------------------------------------------------------------


def test_langevin_at_one_level_has_its_own_variance():
    """v / (1 − κσ²/2v): 1/(1 − η/2) on N(0, 1)."""
    path, t = P.VP(), 0.5
    alpha, sigma = path.alpha(t), path.sigma(t)
    unit = gaussian(path, 0.0, 1.0)  # x_t is N(0, 1) too
    for eta, published in ((0.1, 1.0526316), (0.5, 1.3333333), (1.0, 2.0)):
        step = AnnealedLangevin(200, eta / sigma**2)
        var = marginals(unit, [t, t], step, 200, (0.0, 1.7))[-1][2]
        assert var == pytest.approx(published, rel=1e-6)
    v = alpha**2 * STD**2 + sigma**2
    mean, var = marginals(gaussian(path, MEAN, STD), [t, t], AnnealedLangevin(300, 0.4), 300, (2.0, 3.0))[-1][1:]
    assert mean == pytest.approx(alpha * MEAN, rel=1e-9)
    assert var == pytest.approx(v / (1 - 0.4 * sigma**2 / (2 * v)), rel=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_recursions_of_langevin_and_of_predictor_and_corrector(path):
    """Mean and variance of each step from the definition of the method."""
    times = [0.9, 0.6, 0.4, 0.15, 0.05, 0.0] if not isinstance(path, P.Exploding) else grid_of(path, 6).tolist()
    size, rounds, lam = 0.3, 4, 0.7

    def corrected(mean, var, s, rounds):
        m, v = law(path, s)
        for _ in range(rounds):
            eta = size * path.sigma(s) ** 2
            mean, var = mean + eta * (m - mean) / v, var * (1 - eta / v) ** 2 + 2 * eta
        return mean, var

    def arrived(mean, var, t):  # x̂ is affine: E[x | x_t] on a Gaussian
        m, v = law(path, t)
        gain = path.alpha(t) * STD**2 / v
        return MEAN + gain * (mean - m), gain**2 * var

    def euler_maruyama(mean, var, t, s):
        (m, v), h = law(path, t), s - t
        f, g2 = path.dalpha(t) / path.alpha(t), g_squared(path, t)
        slope = f + (1 + lam**2) / 2 * g2 / v  # the drift f x − (1 + λ²)/2 g² (m − x)/v
        return mean + h * (slope * (mean - m) + f * m), var * (1 + h * slope) ** 2 + lam**2 * g2 * -h

    start = (0.2, 1.3)
    annealed, pc = start, start
    walks = [
        marginals(gaussian(path, MEAN, STD), times, step, 30, start)
        for step in (
            AnnealedLangevin(rounds, size),
            PredictorCorrector(EulerMaruyama(lam), AnnealedLangevin(1, size)),
        )
    ]
    for i, (t, s) in enumerate(pairwise(times), 1):
        if path.sigma(s) == 0:
            annealed, pc = arrived(*annealed, t), arrived(*pc, t)
        else:
            keep = path.alpha(s) / path.alpha(t)
            annealed = corrected(keep * annealed[0], keep**2 * annealed[1], s, rounds)
            pc = corrected(*euler_maruyama(*pc, t, s), s, 1)
        assert walks[0][i][1:] == pytest.approx(annealed, rel=1e-9)
        assert walks[1][i][1:] == pytest.approx(pc, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.2, 40 / 256])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_recursion_of_churn(path, gamma):
    """In r = σ/α and y = x/α, which is where EDM's algorithm 2 stands, on N(m, s²)."""
    times = grid_of(path, 12).tolist()
    times = times if path.alpha(times[0]) > 0 else times[1:]
    mean, var = 0.4, 2.0
    step = Churn(gamma, low=0.3, high=20.0, inflate=1.01)
    walk = marginals(
        gaussian(path, MEAN, STD), times, step, 20, (mean * path.alpha(times[0]), var * path.alpha(times[0]) ** 2)
    )
    for (t, s), (_, got_mean, got_var) in zip(pairwise(times), walk[1:], strict=True):
        r, down = path.ratio(t), path.ratio(s)
        up = r * (1 + gamma) if 0.3 <= r <= 20 else r
        if isinstance(path, P.Chain):
            up = min(up, path.ratio(1.0))
        var += 1.01**2 * (up * up - r * r)
        # d(y − m)/dr = r (y − m)/(s² + r²): Euler, then the mean of both slopes, but for the arrival
        first, second = up / (STD**2 + up * up), down / (STD**2 + down * down)
        ahead = 1 + (down - up) * first
        gain = ahead if down == 0 else 1 + (down - up) / 2 * (first + second * ahead)
        mean, var = MEAN + gain * (mean - MEAN), gain * gain * var
        alpha = path.alpha(s)
        assert got_mean == pytest.approx(alpha * mean, rel=1e-7)
        assert got_var == pytest.approx(alpha**2 * var, rel=1e-7)


@pytest.mark.parametrize(("n", "error"), [(18, 0.0552698841), (36, 0.0122139530), (72, 0.0028708392)])
def test_churn_of_nothing_is_edms_heun(n, error):
    path = P.Exploding()
    field, x = Counted(path, [[0.0]], [0.5]), torch.tensor([[80.0], [-3.0]], dtype=f64)
    y = S.solve(field, x, G.Karras()(path, n), step=Churn(0.0))
    assert (y / x / 0.00624987793 - 1).flatten().tolist() == pytest.approx([error] * 2, rel=1e-5)
    assert field.calls == 2 * n - 1


def test_churn_is_algorithm_2():
    """Against the paper's loop, in its own symbols, with the same noise."""
    path, n, s_churn, s_min, s_max, s_noise = P.Exploding(), 20, 8.0, 0.05, 50.0, 1.003
    field, sigmas = Mixture(path, [[-1.0, 0.3], [1.0, 0.0]], [0.3, 0.6]), G.Karras()(path, 20).mul(80).tolist()
    x = 80 * Noise.seeded(0, 5).normal(2, dtype=f64)
    step = Churn(min(s_churn / n, math.sqrt(2) - 1), s_min, s_max, s_noise)
    got = S.solve(field, x, [v / 80 for v in sigmas], step=step, noise=Noise.seeded(1, 5))

    def slope(x, sigma):
        return (x - field.predict(x, sigma / 80, 1.0, 0.0)) / sigma

    eps = Noise.seeded(1, 5)
    for i in range(n):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_min <= sigmas[i] <= s_max else 0
        hat = sigmas[i] + gamma * sigmas[i]
        if gamma > 0:
            x = x + math.sqrt(hat**2 - sigmas[i] ** 2) * s_noise * eps.normal(2, dtype=f64)
        d = slope(x, hat)
        ahead = x + (sigmas[i + 1] - hat) * d
        if sigmas[i + 1] != 0:
            ahead = x + (sigmas[i + 1] - hat) * (d / 2 + slope(ahead, sigmas[i + 1]) / 2)
        x = ahead
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-10)


def test_langevin_is_song_and_ermons():
    """Against their loop, with the same noise: steps α_i = ε σ_i²/σ_L², T at each of 10 levels from 1 to 0.01."""
    path, rounds, eps = P.Exploding(), 7, 2e-5
    field = Mixture(path, [[-1.0, 0.3], [1.0, 0.0]], [0.3, 0.6])
    sigmas = torch.logspace(0, -2, 10, dtype=f64).tolist()
    x = Noise.seeded(0, 5).normal(2, dtype=f64)
    step = AnnealedLangevin(rounds, eps / (2 * sigmas[-1] ** 2))
    got = S.solve(field, x, [1.0, *(v / 80 for v in sigmas)], step=step, noise=Noise.seeded(1, 5))
    draws = Noise.seeded(1, 5)
    for sigma in sigmas:
        a = eps * sigma**2 / sigmas[-1] ** 2
        for _ in range(rounds):
            x = x + a / 2 * field.score(x, sigma / 80) + math.sqrt(a) * draws.normal(2, dtype=f64)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-10)


# ---- orders ----------------------------------------------------------------------------------------------------------

HARD = ([[-1.2], [0.9]], [0.5, 0.7], [0.4, 0.6])
EARLY, LATE = 0.7, 0.2


@pytest.mark.parametrize("path", [P.Linear(), P.VP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", [EulerMaruyama, StochasticHeun])
def test_strong_order(path, solver):
    """One, with the same Brownian motion in steps of every size (½ is for a g that depends on x)."""
    field, size, most = Mixture(path, *HARD), 1000, 512
    g = torch.Generator().manual_seed(0)
    fine = torch.randn(most, size, 1, dtype=f64, generator=g)
    x = torch.randn(size, 1, dtype=f64, generator=g)

    def walk(n):
        draws = fine.reshape(n, most // n, size, 1).sum(1) / (most // n) ** 0.5
        return S.solve(field, x, torch.linspace(EARLY, LATE, n + 1, dtype=f64), step=solver(), noise=Given(draws))

    exact = walk(most)
    errors = [(walk(n) - exact).abs().mean().item() for n in (16, 32, 64)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([1, 1], abs=0.2)


@pytest.mark.parametrize("path", [P.Linear(), P.VP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("solver", "order"), [(EulerMaruyama, 1), (StochasticHeun, 2)])
@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_weak_order(path, solver, order, lam):
    """Of the error of E φ(x_s), without sampling: φ is pulled back step by step, its mean over each step's noise taken
    by Gauss and Hermite's rule, and at last over the exact law of x_t.
    """
    field, phi = Mixture(path, *HARD), lambda x: np.sin(1.3 * x) + 0.4 * np.cos(2 * x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()
    place = np.linspace(-7, 7, 601)
    x = torch.tensor(np.repeat(place, 12))[:, None]
    draws = torch.tensor(np.tile(nodes, 601))[:, None]

    def mean(values, t):
        density = field.log_density(torch.tensor(place)[:, None], t).exp().numpy()
        return float((density * values).sum() / density.sum())

    errors = []
    for n in (8, 16, 32):
        value = CubicSpline(place, phi(place))
        for s, t in pairwise(torch.linspace(LATE, EARLY, n + 1, dtype=f64).tolist()):
            y = solver(lam)(field, x, t, s, {}, Given([draws]))[:, 0].numpy()
            value = CubicSpline(place, (value(y.clip(-7, 7)).reshape(601, 12) * weights).sum(1))
        errors.append(abs(mean(value(place), EARLY) - mean(phi(place), LATE)))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.25), (errors, slopes)


# ---- ends ------------------------------------------------------------------------------------------------------------

EACH = {
    "euler-maruyama": EulerMaruyama(),
    "heun-sde": StochasticHeun(),
    "churn": Churn(0.3, 0.0, 1e9),
    "langevin": AnnealedLangevin(2),
    "predictor-corrector": PredictorCorrector(EulerMaruyama(), AnnealedLangevin(1, 0.05)),
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("path", [*PATHS, P.ZeroTerminal(P.ScaledLinearBetas())], ids=lambda p: type(p).__name__)
def test_the_arrival_has_no_noise_and_no_end_is_infinite(path, name):
    point = torch.tensor([[0.4, -1.0]], dtype=f64)
    field = Mixture(path, point, [0.0])
    times = grid_of(path, 9)
    z = Noise.seeded(0, 5).normal(2, dtype=f64) * path.sigma(float(times[0]))
    x = S.solve(field, z, times, step=EACH[name], noise=Noise.seeded(1, 5))
    torch.testing.assert_close(x, point.expand(5, 2), rtol=1e-9, atol=1e-9)  # data that is a point is met exactly
    one = EACH[name](field, z, 1.0, 0.0, {}, Noise.seeded(1, 5))
    torch.testing.assert_close(one, point.expand(5, 2), rtol=1e-9, atol=1e-9)
    # times per sample, with both ends among them; and their gradient
    smooth = Mixture(path, [[-1.0, 0.0], [1.0, 0.5]], [0.5, 0.4])
    z.requires_grad_()
    t, s = torch.tensor([1.0, 1.0, 0.5, 0.2, 0.7], dtype=f64), torch.tensor([0.6, 0.0, 0.4, 0.0, 0.7], dtype=f64)
    mixed = EACH[name](smooth, z, t, s, {}, Noise.seeded(2, 5))
    assert mixed.isfinite().all()
    (slope,) = torch.autograd.grad(mixed.sum(), z)
    assert slope.isfinite().all()


def test_evaluations():
    path, n = P.VP(), 10
    for step, calls in (
        (EulerMaruyama(), n),
        (StochasticHeun(), 2 * n - 1),
        (Churn(), 2 * n - 1),
        (AnnealedLangevin(3), 3 * (n - 1) + 1),
        (PredictorCorrector(S.heun, AnnealedLangevin(2)), 4 * (n - 1) + 1),
    ):
        field = Counted(path, [[0.0]], [1.0])
        S.solve(field, torch.ones(3, 1, dtype=f64), G.Uniform()(path, n), step=step, noise=Noise.seeded(0, 3))
        assert field.calls == calls


def test_no_noise_is_the_ode_and_goes_both_ways():
    field, x = Mixture(P.VP(), [[-1.0], [1.0]], [0.5, 0.4]), torch.linspace(-2, 2, 5, dtype=f64)[:, None]
    for t, s in ((0.8, 0.5), (0.3, 0.6)):
        torch.testing.assert_close(EulerMaruyama(0.0)(field, x, t, s), S.euler(field, x, t, s))
        torch.testing.assert_close(StochasticHeun(0.0)(field, x, t, s), S.heun(field, x, t, s))


def test_mistakes_are_one_sentence():
    field, x = gaussian(P.VP(), 0.0, 0.5), torch.ones(2, 1, dtype=f64)
    for step in EACH.values():
        with pytest.raises(UserError, match="draws noise and was given none"):
            step(field, x, 0.5, 0.4)
        assert spec(build(spec(step))) == spec(step)
    with pytest.raises(UserError, match="cannot go from"):
        EulerMaruyama()(field, x, 0.2, 0.5, {}, Noise.seeded(0, 2))
    for wrong, match in (
        (lambda: EulerMaruyama(-0.1), "noise is -0.1"),
        (lambda: StochasticHeun(math.nan), "noise is nan"),
        (lambda: Churn(0.5), "gamma is 0.5"),
        (lambda: AnnealedLangevin(0), "0 steps"),
        (lambda: AnnealedLangevin(1, 2.0), "size 2"),
    ):
        with pytest.raises(UserError, match=match):
            wrong()
