"""Solvers on exact fields: published errors and orders, grids, the sampled law (`test_diffusion_faults` turns these
checks against planted faults).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from morphogen import UserError
from morphogen.core import Noise
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion.dpm import DPM2, DPMMultistep
from morphogen.diffusion.field import Mixture, gaussian
from morphogen.diffusion.multistep import Multistep
from morphogen.diffusion.solvers import SOLVERS
from morphogen.spec import build, spec
from tests.exact import solver_checks as check
from tests.exact.solver_checks import Counted, Given, moments

f64 = torch.float64


def draws(step):
    """Whether a solver draws noise."""
    field = gaussian(P.Linear(), 0.0, 0.5)
    try:
        S.solve(field, torch.ones(1, 1, dtype=f64), [0.9, 0.5, 0.3], step=step)
    except UserError:
        return True
    return False


STOCHASTIC = {name for name, step in SOLVERS.items() if draws(step)}


# ---- published numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "n", "error"),
    [
        (S.heun, 18, 0.0552698841),
        (S.heun, 36, 0.0122139530),
        (S.heun, 72, 0.0028708392),
        (S.euler, 18, -0.1539206027),
        (S.euler, 36, -0.0779895604),
    ],
)
def test_edm_sampler(step, n, error):
    path = P.Exploding(80.0)
    field = Counted(path, [[0.0]], [0.5])
    x = torch.tensor([[80.0], [-3.0]], dtype=f64)
    y = S.solve(field, x, G.Karras()(path, n), step=step)
    exact = 0.5 / math.sqrt(0.25 + 80**2)
    assert exact == pytest.approx(0.00624987793, rel=1e-8)
    assert (y / x / exact - 1).flatten().tolist() == pytest.approx([error] * 2, rel=1e-6)
    assert field.calls == (2 * n - 1 if step is S.heun else n)


@pytest.mark.parametrize(
    ("step", "errors", "order"),
    [
        (S.DDIM(), (-1.128e-1, -5.81e-2, -2.95e-2), 1),
        (DPMMultistep(2), (1.302e-2, 3.507e-3, 8.90e-4), 2),
        (DPM2(), (1.551e-2, 3.730e-3, 9.144e-4), 2),
    ],
    ids=["ddim", "dpmpp-2m", "dpm-2"],
)
def test_errors_with_equal_steps_of_log_snr(step, errors, order):
    check.check_published_errors(step, errors, order)


@pytest.mark.parametrize(
    ("step", "grid", "errors", "order"),
    [
        (S.DDIM(), G.LogSNR(), (-1.128e-1, -5.81e-2, -2.95e-2), 1),
        (S.heun, None, (6.21e-3, 1.65e-3, 4.26e-4), 2),
        (S.rk4, None, (-1.84e-5, -1.02e-6, -6.1e-8), 4),
    ],
    ids=["ddim", "heun", "rk4"],
)
def test_orders_on_the_vp_ode(step, grid, errors, order):
    path = P.VP(0.1, 20.0)
    field, x, got = gaussian(path, 0.0, 0.5), torch.ones(1, 1, dtype=f64), []
    for n, error in zip((20, 40, 80), errors, strict=True):
        times = grid(path, n + 1)[:-1] if grid else torch.linspace(1, 1e-3, n + 1, dtype=f64)
        assert times[[0, -1]].tolist() == pytest.approx([1, 1e-3], rel=1e-9)
        got.append(S.solve(field, x, times, step=step).item() / 0.5000905500 - 1)
        assert got[-1] == pytest.approx(error, rel=6e-3)
    slopes = [math.log2(a / b) for a, b in pairwise(got)]
    assert slopes[-1] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("problem", ["VP", "Linear", "Exploding"])
@pytest.mark.parametrize(
    ("name", "order", "evaluations"),
    [
        ("ddim", 1, 1),
        ("euler", 1, 1),
        ("midpoint", 2, 2),
        ("heun", 2, 2),
        ("rk4", 4, 4),
        ("dpm-2", 2, 2),
        ("dpmpp-2s", 2, 2),
        ("dpmpp-3s", 3, 3),
        ("dpmpp-2m", 2, 1),
        ("dpmpp-3m", 3, 1),
        ("unipc", 3, 1),
        ("unipc-3", 4, 1),
    ],
)
def test_measured_order_and_evaluations_on_a_nonlinear_problem(name, order, evaluations, problem):
    check.check_order(SOLVERS[name], order, evaluations, problem, (96, 192))


def test_flow_matching_euler():
    field = gaussian(P.Linear(), 2.0, 0.5)
    x = torch.ones(1, 1, dtype=f64)
    for n, value in ((1, 2.0), (4, 2.3405405405), (16, 2.4556830934)):
        assert S.solve(field, x, G.Uniform()(field.path, n)).item() == pytest.approx(value, rel=1e-9)
    assert S.solve(field, x, G.Uniform()(field.path, 64), step=S.rk4).item() == pytest.approx(2.5, abs=1e-5)


def test_karras_grid():
    published = """80 57.585985 40.785574 28.374585 19.352453 12.910082 8.400935 5.315195 3.256822 1.92334 1.088171
        .585348 .296442 .139516 .059947 .022935 .007528 .002 0"""
    for path in (P.Exploding(80.0), P.Exploding(100.0), P.LinearBetas(1e-8, 0.06)):
        times = G.Karras()(path, 18)
        assert path.ratio(times).tolist() == pytest.approx([float(v) for v in published.split()], abs=1e-6, rel=1e-5)


def test_grids_of_a_chain():
    chain = P.LinearBetas()

    def indices(grid, n):
        times = grid(chain, n)
        assert times[-1] == 0
        assert len(times) == n + 1
        return [round(chain.index(t), 6) for t in times.tolist()]

    assert indices(G.Leading(), 4) == [750, 500, 250, 0, -1]
    assert indices(G.Trailing(), 4) == [999, 749, 499, 249, -1]
    assert indices(G.Linspace(), 4) == [999, 666, 333, 0, -1]
    assert indices(G.Leading(), 13)[:2] == [912, 836]  # 1000 // 13 = 76
    assert indices(G.Trailing(), 13)[:3] == [999, 922, 845]
    whole = list(range(999, -2, -1))
    assert indices(G.Leading(), 1000) == indices(G.Trailing(), 1000) == indices(G.Linspace(), 1000) == whole
    assert indices(G.Uniform(), 1000) == whole


@pytest.mark.parametrize("path", [P.Linear(), P.VP(), P.Exploding(), P.LinearBetas(), P.LinearBetas(1e-3, 0.3, 37)])
@pytest.mark.parametrize("grid", [*G.GRIDS.values(), G.LogSNR(0.99, 0.01)], ids=[*G.GRIDS, "logsnr-inside"])
def test_grids_fall_to_zero(path, grid):
    endless = isinstance(grid, G.LogSNR) and not math.isfinite(path.logsnr(grid.start))
    if endless or (isinstance(grid, G.OfChain) and not isinstance(path, P.Chain)):
        with pytest.raises(UserError, match="log-SNR is infinite" if endless else "discrete chain"):
            grid(path, 5)
        return
    for n in (1, 2, 5, 36):
        times = grid(path, n)
        assert times.shape == (n + 1,)
        assert times.dtype == f64
        assert times[-1] == 0
        assert times[0] <= 1 + 1e-12
        if not (isinstance(grid, G.Karras) and isinstance(path, P.Chain)):  # a chain need not reach σ/α = 80
            assert (times.diff() < 0).all()


# ---- the posterior and DDIM ----------------------------------------------------------------------------------------


def test_posterior_of_the_linear_chain():
    chain = P.LinearBetas()

    def at(i):
        return S.posterior(chain, chain.at_index(float(i)), chain.at_index(i - 1.0))

    assert at(499)[:2] == pytest.approx((0.0030700711, 0.9941066702), abs=1e-10)
    assert at(0)[:2] == pytest.approx((1, 0), abs=1e-12)
    for i, small in ((1, 5.45318766e-5), (499, 0.0100313554), (999, 0.0199999835)):
        assert at(i)[2] == pytest.approx(small, rel=1e-8)
        assert at(i)[3] == pytest.approx(1e-4 + (0.02 - 1e-4) * i / 999, rel=1e-9)  # β


@pytest.mark.parametrize("path", [P.Linear(), P.Cosine(), P.VP(), P.Exploding(), P.CosineBetas()])
@pytest.mark.parametrize(("t", "s"), [(0.7, 0.3), (0.31, 0.3), (1.0, 0.4), (0.2, 0.0)])
def test_posterior_is_bayes(path, t, s):
    """Mean and variance of x_s given x_t and x_0 from the joint Gaussian of the Markov chain x_0 -> x_s -> x_t."""
    a, b, small, large = S.posterior(path, t, s)
    fade, var_s, var_t = path.alpha(t) / path.alpha(s), path.sigma(s) ** 2, path.sigma(t) ** 2
    gain = fade * var_s / var_t  # Cov(x_s, x_t) / Var(x_t), given x_0
    assert (a, b) == pytest.approx((path.alpha(s) - gain * path.alpha(t), gain), abs=1e-9)
    assert small == pytest.approx(var_s - gain * fade * var_s, abs=1e-12, rel=1e-7)
    assert large == pytest.approx(var_t - fade * fade * var_s, abs=1e-12, rel=1e-7)
    as_tensor = S.posterior(path, torch.tensor([t], dtype=f64), torch.tensor([s], dtype=f64))
    assert torch.cat([torch.as_tensor(c) for c in as_tensor]).tolist() == pytest.approx([a, b, small, large])


def test_ddim_with_all_noise_is_ddpm():
    chain = P.LinearBetas()
    field = Mixture(chain, [[-1.0, 0.2], [1.0, 0.5]], [0.3, 0.5])
    x = torch.randn(5, 2, dtype=f64, generator=torch.Generator().manual_seed(0))
    for i, j in ((999, 998), (499, 498), (1, 0), (0, -1), (499, 479), (80, 20)):
        t, s = chain.at_index(float(i)), chain.at_index(float(j))
        one = S.DDIM(1.0)(field, x, t, s, {}, Noise.seeded(1, 5))
        two = S.Ancestral()(field, x, t, s, {}, Noise.seeded(1, 5))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)
    zero, one = (
        S.DDIM(1.0)(field, x, chain.at_index(499.0), chain.at_index(479.0), {}, Given([v] * 5)) for v in (0.0, 1.0)
    )
    assert (one - zero).tolist() == [[pytest.approx(0.4198451625, rel=1e-9)] * 2] * 5


def test_encode_then_decode_is_the_identity_as_steps_grow():
    field = Mixture(P.VP(), [[-1.0], [1.0]], [0.3, 0.5])
    x, errors = torch.linspace(-1.5, 1.5, 7, dtype=f64)[:, None], []
    for n in (50, 100, 200):
        up = torch.linspace(1e-3, 1, n + 1, dtype=f64)
        z = S.solve(field, x, up, step=S.DDIM())
        errors.append((S.solve(field, z, up.flip(0), step=S.DDIM()) - x).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)


SPACINGS = {"leading": G.Leading(), "trailing": G.Trailing(), "linspace": G.Linspace()}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [1, 2, 13, 20, 30, 50])
def test_ddim_on_all_grids_of_a_chain(spacing, n):
    """Also where the number of steps does not divide the chain's length."""
    check.check_ddim(S.DDIM(), SPACINGS[spacing], spacing, n)


def test_a_published_mean_in_13_steps():
    for spacing in ("linspace", "trailing"):
        check.check_published_ddim(S.DDIM(), SPACINGS[spacing])


def test_ddpm_with_the_exact_eps_has_its_own_variance():
    """Not the data's 0.25: 0.246125 with the small variance and 0.250752 with the large one."""
    chain = P.LinearBetas()
    field, times = gaussian(chain, 0.0, 0.5), G.Trailing()(chain, 1000)
    start = chain.sigma(1.0) ** 2  # the published numbers begin at variance 1
    for v, value in ((0.0, 0.246125), (1.0, 0.250752)):
        assert moments(field, times, S.Ancestral(v))[1] == pytest.approx(value, abs=1e-6)
    assert start == pytest.approx(1, abs=1e-4)
    middle = moments(field, times, S.Ancestral(0.5))[1]
    assert 0.246125 < middle < 0.250752


# ---- the law ---------------------------------------------------------------------------------------------------------


def test_data_that_is_a_point_is_met_exactly():
    for step in (S.Ancestral(), S.Ancestral(1.0), S.DDIM(1.0), S.DDIM(0.3), DPMMultistep(1, 1.0)):
        check.check_point(step)
    for name in SOLVERS:
        if name.startswith(("ancestral", "ddim", "dpm", "lms", "unipc")):
            check.check_point(SOLVERS[name])


LAW = ([[-1.5], [0.5]], [0.25, 0.5], [0.35, 0.65])


@cache
def quantiles(n):
    """The n quantiles (i + ½)/n of the law."""
    x = torch.linspace(-4, 4, 40_001, dtype=f64)[:, None]
    cdf = Mixture(P.Linear(), *LAW).log_density(x, 0.0).exp().cumsum(0)
    return x[torch.searchsorted(cdf / cdf[-1], (torch.arange(n, dtype=f64) + 0.5) / n).clamp(max=40_000), 0]


@pytest.mark.parametrize("step", [S.Ancestral(), S.Ancestral(1.0), S.DDIM(0.5), S.DDIM(1.0)])
@pytest.mark.parametrize("path", [P.Linear(), P.VP(), P.Exploding()], ids=lambda p: type(p).__name__)
def test_stochastic_solvers_converge_to_the_variance(path, step):
    field = gaussian(path, 0.3, 0.5)
    grid = G.Karras() if isinstance(path, P.Exploding) else G.Uniform()
    errors = [abs(moments(field, grid(path, n), step)[1] / 0.25 - 1) for n in (100, 400)]
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)  # first order
    assert moments(field, grid(path, 400), step)[0] == pytest.approx(0.3, abs=3e-3)


# ---- behaviour -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_per_sample_equal_times_one_by_one(name, dtype):
    path = P.Linear()
    field = Mixture(path, [[-1.0, 0.0, 0.5], [1.0, 0.3, 0.0]], [0.5, 0.4])
    x = torch.randn(4, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t, s = torch.tensor([1.0, 0.7, 0.4, 0.2], dtype=dtype), torch.tensor([0.6, 0.65, 0.1, 0.0], dtype=dtype)
    noise = Noise.seeded(3, 4)
    if isinstance(SOLVERS[name], Multistep):
        with pytest.raises(UserError, match="takes t and s as floats"):
            SOLVERS[name](field, x, t, s, {}, noise)
        return
    together = SOLVERS[name](field, x, t, s, {}, noise)
    assert together.dtype == dtype
    for i in range(4):
        alone = SOLVERS[name](field, x[i : i + 1], t[i].item(), s[i].item(), {}, Noise(noise.key[i : i + 1]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_are_independent_of_their_batch(name):
    field = Mixture(P.VP(), [[-1.0], [1.0]], [0.5, 0.4])
    times, noise = G.LogSNR()(field.path, 7), Noise.seeded(11, 6)
    z = Noise.seeded(12, 6).normal(1, dtype=f64)
    whole = S.solve(field, z, times, step=SOLVERS[name], noise=noise)
    part = S.solve(field, z[2:4], times, step=SOLVERS[name], noise=Noise(noise.key[2:4]))
    torch.testing.assert_close(whole[2:4], part, rtol=1e-12, atol=1e-12)
    assert S.solve(field, z[:0], times, step=SOLVERS[name], noise=Noise.seeded(0, 0)).shape == (0, 1)


def test_project_and_trajectory():
    field = Mixture(P.Linear(), [[-1.0, 0.0], [1.0, 0.5]], [0.5, 0.4])
    z, times = torch.randn(3, 2, dtype=f64), G.Uniform()(field.path, 4)
    seen = []

    def known(x, s):
        seen.append(s)
        return torch.cat((torch.full((3, 1), 9.0, dtype=f64), x[:, 1:]), 1)

    x = S.solve(field, z, times, project=known)
    assert seen == [0.75, 0.5, 0.25, 0.0]
    assert (x[:, 0] == 9).all()
    states = list(S.trajectory(field, z, times))
    assert [t for t, _ in states] == times.tolist()
    assert states[0][1] is z
    torch.testing.assert_close(states[-1][1], S.solve(field, z, times))
    assert S.solve(field, z, [0.5]) is z


def test_solve_is_differentiable():
    field, z = gaussian(P.Linear(), 0.0, 0.5), torch.ones(2, 1, dtype=f64, requires_grad=True)
    S.solve(field, z, G.Uniform()(field.path, 3), step=S.heun).sum().backward()
    assert (z.grad > 0).all()


def test_mistakes_are_one_sentence():
    field, z = gaussian(P.VP(), 0.0, 0.5), torch.ones(2, 1, dtype=f64)
    with pytest.raises(UserError, match="draws noise and was given none"):
        S.solve(field, z, G.Uniform()(field.path, 3), step=S.Ancestral())
    with pytest.raises(UserError, match="cannot go from"):
        S.solve(field, z, [0.2, 0.5], step=S.DDIM(1.0), noise=Noise.seeded(0, 2))
    with pytest.raises(UserError, match="eta"):
        S.DDIM(-0.1)
    with pytest.raises(UserError, match="0 steps"):
        G.Uniform()(field.path, 0)
    with pytest.raises(UserError, match="1 to 1000"):
        G.Trailing()(P.LinearBetas(), 1001)
    with pytest.raises(UserError, match="discrete chain"):
        G.Leading()(P.Linear(), 10)
    with pytest.raises(UserError, match="log-SNR is infinite"):
        G.LogSNR()(P.Linear(), 10)
    with pytest.raises(UserError, match="no times"):
        S.solve(field, z, [])


def test_solvers_and_grids_are_remembered():
    for thing in (*SOLVERS.values(), *G.GRIDS.values(), S.DDIM(0.3), G.Karras(0.1, 3.0, 5.0)):
        assert spec(build(spec(thing))) == spec(thing)
