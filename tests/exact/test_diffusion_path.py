"""Paths: published tables, derivatives against autograd, inverses, both ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from morphogen import UserError
from morphogen.diffusion import path as P
from morphogen.diffusion.solve import posterior
from morphogen.spec import build, spec

PATHS = {
    "linear": P.Linear(),
    "linear-min": P.Linear(0.03),
    "cosine": P.Cosine(),
    "vp": P.VP(),
    "vp-odd": P.VP(0.3, 7.0),
    "sub-vp": P.SubVP(),
    "ve": P.VE(),
    "ve-odd": P.VE(0.3, 7.0),
    "exploding": P.Exploding(),
    "chain": P.LinearBetas(),
    "cosine-chain": P.CosineBetas(),
    "scaled-chain": P.ScaledLinearBetas(),
    "zero-terminal": P.ZeroTerminal(P.ScaledLinearBetas()),
    "odd-chain": P.LinearBetas(1e-3, 0.3, 37),
}
anypath = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def abar(chain: P.Chain, i: int) -> float:
    """ᾱ at a step index, by way of the path's own clock."""
    alpha = chain.alpha(chain.at_index(float(i)))
    assert isinstance(alpha, float)
    return alpha**2


@pytest.mark.parametrize(
    ("chain", "table", "rel"),
    [
        (P.LinearBetas(), {0: 0.9999, 1: 0.99978009, 499: 0.0785872429, 999: 4.03582977e-5}, 1e-8),
        (P.CosineBetas(), {499: 0.4938436, 999: 2.428767e-9}, 1e-6),
        (P.ScaledLinearBetas(), {0: 0.99915, 499: 0.27767, 999: 0.00466}, 1e-3),
        (P.ZeroTerminal(P.ScaledLinearBetas()), {0: 0.99915, 499: 0.2423592}, 1e-6),
    ],
    ids=["linear", "cosine", "scaled", "zero-terminal"],
)
def test_published_tables(chain, table, rel):
    for i, value in table.items():
        assert abar(chain, i) == pytest.approx(value, rel=rel)
        assert abar(chain, i) == pytest.approx(chain.abar[i].item(), rel=1e-11)


def test_cosine_betas_are_the_published_ones():
    betas = P.CosineBetas().betas[[0, 499, 998, 999]]
    assert betas.tolist() == pytest.approx([4.128422e-5, 3.145886e-3, 0.7499994, 0.999], rel=1e-6)


@pytest.mark.parametrize("last", [0.02, 0.005, 0.7])
def test_betas_posterior_and_times_of_a_linear_chain(last):
    """The table's own formulas (Ho et al. 2020, eqs. 6 and 7) against the continuous path at the chain's times."""
    steps = 61
    chain = P.LinearBetas(1e-4, last, steps)
    beta = np.linspace(1e-4, last, steps)
    abar = np.cumprod(1 - beta)
    before = np.append(1.0, abar[:-1])
    np.testing.assert_allclose(chain.betas, beta, rtol=1e-10)
    for i in (0, 1, 2, 30, steps - 1):
        small = beta[i] * (1 - before[i]) / (1 - abar[i])
        x0 = beta[i] * before[i] ** 0.5 / (1 - abar[i])
        x_t = (1 - beta[i]) ** 0.5 * (1 - before[i]) / (1 - abar[i])
        got = posterior(chain, chain.at_index(float(i)), chain.at_index(i - 1.0))
        np.testing.assert_allclose(got, (x0, x_t, small, beta[i]), rtol=1e-9, atol=1e-13)
        assert chain.logsnr(chain.at_index(float(i))) == pytest.approx(math.log(abar[i] / (1 - abar[i])), rel=1e-10)


def test_the_published_posterior():
    chain = P.LinearBetas()
    t = [(i + 1) / 1000 for i in range(1000)]
    assert posterior(chain, t[499], t[498])[:2] == pytest.approx((0.0030700711, 0.9941066702), abs=1e-10)
    assert posterior(chain, t[0], 0.0)[:2] == pytest.approx((1, 0), abs=1e-12)
    for i, small in ((1, 5.45318766e-5), (499, 0.0100313554), (999, 0.0199999835)):
        assert posterior(chain, t[i], t[i - 1])[2] == pytest.approx(small, rel=1e-8)


def test_scaled_linear_ends_and_zero_terminal():
    chain = P.ScaledLinearBetas()
    assert chain.ratio(1.0) == pytest.approx(14.6146416, rel=1e-5)
    zero = P.ZeroTerminal(chain)
    assert abar(zero, 999) == pytest.approx(0, abs=1e-30)
    assert zero.sigma(1.0) == 1


def test_the_three_sdes_at_a_half():
    vp, sub, ve = P.VP(0.1, 20.0), P.SubVP(0.1, 20.0), P.VE(0.01, 50.0)
    assert (vp.alpha(0.5), vp.sigma(0.5)) == pytest.approx((0.2811828808, 0.9596542021), rel=1e-9)
    assert (sub.alpha(0.5), sub.sigma(0.5)) == pytest.approx((0.2811828808, 0.9209361875), rel=1e-9)
    assert (ve.alpha(0.5), ve.sigma(0.5)) == pytest.approx((1.0, 0.7071067812), rel=1e-9)
    assert (ve.sigma(0.0), ve.sigma(1.0)) == pytest.approx((0.01, 50), rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (0.7, 3.3)])
def test_the_sdes_own_moments(low, high):
    """Mean and variance of dx = f x dt + g dw with the paper's f and g, by an ODE solver; g² = −σ² dλ/dt."""

    def beta(t):
        return low + t * (high - low)

    def rest(t):
        return 1 - math.exp(-2 * (low * t + t * t * (high - low) / 2))

    def exploding(t):
        return low**2 * (high / low) ** (2 * t) * 2 * math.log(high / low)

    for path, f, g2, begin in (
        (P.VP(low, high), lambda t: -beta(t) / 2, beta, 0.0),
        (P.SubVP(low, high), lambda t: -beta(t) / 2, lambda t: beta(t) * rest(t), 0.0),
        (P.VE(low, high), lambda t: 0.0, exploding, low**2),
    ):
        times = [0.03, 0.4, 1.0]
        walk = solve_ivp(
            lambda t, y, f=f, g2=g2: (f(t) * y[0], 2 * f(t) * y[1] + g2(t)),
            (0, 1),
            (1, begin),
            "DOP853",
            times,
            rtol=1e-10,
            atol=1e-13,
        )
        for t, alpha, var in zip(times, *walk.y, strict=True):
            assert (path.alpha(t), path.sigma(t) ** 2) == pytest.approx((alpha, var), rel=1e-7)
            assert -path.dlogsnr(t) * path.sigma(t) ** 2 == pytest.approx(g2(t), rel=1e-9)


@anypath
def test_derivatives_are_those_of_autograd(path):
    t = (torch.arange(1, 60, dtype=torch.float64) / 60 + 0.00123).requires_grad_()  # off every knot
    for f, df in ((path.alpha, path.dalpha), (path.sigma, path.dsigma), (path.logsnr, path.dlogsnr)):
        (exact,) = torch.autograd.grad((f(t) + 0 * t).sum(), t)
        derivative = torch.as_tensor(df(t), dtype=t.dtype).expand_as(t)
        torch.testing.assert_close(derivative, exact, rtol=1e-9, atol=1e-12)


@anypath
def test_floats_and_tensors_agree(path):
    t = torch.tensor([0.0, 1e-4, 0.03, 0.5, 0.77, 1.0], dtype=torch.float64)
    for f in (path.alpha, path.sigma, path.dalpha, path.dsigma, path.clock, path.ratio, path.logsnr, path.dlogsnr):
        assert torch.as_tensor(f(t), dtype=t.dtype).expand_as(t).tolist() == pytest.approx(
            [float(f(v)) for v in t.tolist()], rel=1e-12
        )
    assert path.alpha(t.float()).dtype == torch.float32
    assert path.sigma(torch.ones(0)).shape == (0,)


@anypath
def test_time_inverts_the_ratio_and_the_logsnr(path):
    t = torch.linspace(1e-4, 0.9995, 41, dtype=torch.float64)
    for inverse, f in ((path.time, path.ratio), (path.time_at, path.logsnr)):
        torch.testing.assert_close(inverse(f(t)), t, rtol=1e-9, atol=1e-12)
        assert [inverse(f(v)) for v in t.tolist()] == pytest.approx(t.tolist(), rel=1e-9)
        for end in (0.0, 1.0):
            assert inverse(f(end)) == pytest.approx(end, abs=1e-12)
            assert inverse(f(torch.full((2,), end, dtype=torch.float64))).tolist() == pytest.approx(
                [end] * 2, abs=1e-12
            )


@anypath
def test_a_ratio_that_is_not_reached_is_the_nearer_end(path):
    low, high = path.ratio(0.0) / 2, path.ratio(1.0) * 2
    assert (path.time(low), path.time(high), path.time(math.inf)) == pytest.approx((0, 1, 1), abs=1e-12)
    assert (path.time_at(math.inf), path.time_at(-math.inf)) == pytest.approx((0, 1), abs=1e-12)
    for dtype in (torch.float32, torch.float64):
        infinities = torch.tensor([math.inf, -math.inf], dtype=dtype)
        assert path.time_at(infinities).tolist() == pytest.approx([0, 1], abs=1e-6)
        assert path.time(torch.tensor([low, high, math.inf], dtype=dtype)).tolist() == pytest.approx(
            [0, 1, 1], abs=1e-6
        )


@anypath
def test_single_precision_keeps_its_digits_at_both_ends(path):
    t = torch.tensor([1e-7, 1e-5, 3e-3, 0.2, 0.5, 0.9, 0.998, 1 - 2**-20, 1 - 2**-24])
    for f in (path.alpha, path.sigma, path.ratio):
        torch.testing.assert_close(f(t).double(), f(t.double()), rtol=5e-6, atol=0.0)
    r = path.ratio(t.double())
    atol = 1e-6 if path.sigma(0.0) else 0.0  # next to σmin a ratio's last digit is worth more than t's
    torch.testing.assert_close(path.time(r.float()).double(), t.double(), rtol=5e-5, atol=atol)
    logsnr = path.logsnr(t.double()).float()
    back = path.logsnr(path.time_at(logsnr).double())  # a time next to 1 has its own last digit
    torch.testing.assert_close(back[:-2], logsnr.double()[:-2], rtol=1e-5, atol=1e-4)


@anypath
def test_gradients_by_time_hold_at_both_ends(path):
    for end in (0.0, 1.0):
        t = torch.full((2,), end, dtype=torch.float64, requires_grad=True)
        for f, df in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
            (g,) = torch.autograd.grad((f(t) + 0 * t).sum(), t)
            if math.isfinite(df(end)):
                torch.testing.assert_close(g, torch.full_like(g, df(end)), rtol=1e-9, atol=1e-9)


@anypath
def test_data_at_zero_and_monotone(path):
    least = {"linear-min": 0.03, "ve": 0.01, "ve-odd": 0.3}.get(next(k for k, p in PATHS.items() if p is path), 0)
    assert path.alpha(0.0) == 1
    assert path.sigma(0.0) == pytest.approx(least, rel=1e-12)
    assert path.logsnr(0.0) == (-2 * math.log(least) if least else math.inf)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert (path.logsnr(t).diff() < 0).all()
    assert (path.dlogsnr(t) < 0).all()
    assert path.logsnr(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(path.logsnr(1.0))


def test_ve_is_straight_in_log_snr():
    t = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ve = P.VE(0.02, 31.0)
    torch.testing.assert_close(ve.logsnr(t), ve.logsnr(0.0) * (1 - t) + ve.logsnr(1.0) * t)


def test_ends_where_nothing_is_left():
    for path in (P.Linear(), P.Linear(1e-5), P.Cosine(), P.ZeroTerminal(P.LinearBetas())):
        assert path.alpha(1.0) == 0
        assert path.sigma(1.0) == 1
        assert path.dlogsnr(1.0) == -math.inf
        assert path.logsnr(1.0) == -math.inf
        assert path.logsnr(torch.ones(2)).tolist() == [-math.inf] * 2


@pytest.mark.parametrize("chain", [P.LinearBetas(), P.LinearBetas(1e-3, 0.3, 37)])
def test_chain_indices_and_what_a_net_is_told(chain):
    T = chain.steps
    assert chain.at_index(-1.0) == 0
    assert chain.at_index(T - 1.0) == 1
    for i in (0, 1, T // 2, T - 1):
        assert chain.index(chain.at_index(float(i))) == pytest.approx(i, abs=1e-9)
        assert T * chain.clock(chain.at_index(float(i))) == pytest.approx(i, abs=1e-9)


@anypath
def test_paths_are_remembered(path):
    again = build(spec(path))
    assert type(again) is type(path)
    assert again.alpha(0.3) == path.alpha(0.3)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: P.VP(0.0, 20.0), "beta_min"),
        (lambda: P.SubVP(3.0, 2.0), "SubVP needs"),
        (lambda: P.VE(0.0, 50.0), "sigma_min"),
        (lambda: P.VE(2.0, 1.0), "sigma_max"),
        (lambda: P.Linear(1.0), "sigma_min"),
        (lambda: P.Linear(-1e-3), "sigma_min"),
    ],
)
def test_senseless_paths_are_refused(make, word):
    with pytest.raises(UserError, match=word):
        make()
