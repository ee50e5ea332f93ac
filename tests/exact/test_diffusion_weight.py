"""Densities and weights: their laws, the papers' formulas, and the closed forms on Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen import UserError
from morphogen.core import Noise
from morphogen.diffusion import field as F
from morphogen.diffusion import path as P
from morphogen.diffusion import weight as W
from morphogen.spec import build, spec

f64 = torch.float64
PATHS = [
    P.Linear(),
    P.Linear(0.01),
    P.Cosine(),
    P.VP(),
    P.SubVP(),
    P.VE(),
    P.Exploding(),
    P.LinearBetas(),
    P.ZeroTerminal(P.ScaledLinearBetas()),
]
KINDS = [F.X(), F.Eps(), F.V(), F.Velocity(), F.EDM(0.5)]
DENSITIES = [
    W.Uniform(1e-4, 0.99),
    W.Uniform(0.2, 0.7),
    W.LogNormal(),
    W.LogNormal(0.3, 0.6),
    W.LogitNormal(),
    W.LogitNormal(-0.4, 0.8),
    W.LogSNR(1e-4, 0.99),
    W.LogSNR(0.3, 0.8),
]


def name(thing):
    return type(thing).__name__


# ---- densities -----------------------------------------------------------------------------------------------------


def test_densities_have_their_laws():
    noise, path = Noise.seeded(3, 200_000), P.Exploding()
    log = (path.ratio(W.LogNormal()(noise, path, f64))).log()
    assert (log.mean().item(), log.std().item()) == pytest.approx((-1.2, 1.2), abs=0.01)
    logit = W.LogitNormal(0.3, 0.7)(noise, path, f64).logit()
    assert (logit.mean().item(), logit.std().item()) == pytest.approx((0.3, 0.7), abs=0.01)
    t = W.Uniform(0.2, 0.6)(noise, path, f64)
    assert (t.min().item(), t.max().item()) == pytest.approx((0.2, 0.6), abs=1e-4)
    steps = W.Steps(7)(noise, path, torch.float32) * 7
    values, counts = steps.round().unique(return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 7]  # never 0: clean data is no step
    assert (counts / len(noise) * 7 - 1).abs().max() < 0.03


@pytest.mark.parametrize("density", DENSITIES, ids=lambda d: f"{name(d)}-{list(vars(d).values())[1:]}")
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_the_density_of_the_log_snr_is_that_of_the_draws(path, density):
    """Its integral over the quantiles of drawn times is what lies between them."""
    if isinstance(density, W.LogNormal) and (path.ratio(0.0) > 1e-3 or path.ratio(1.0) < 20):
        pytest.skip("draws beyond the path's ends gather there")
    n = 40_000
    t = density(Noise.seeded(5, n), path, f64)
    assert t.dtype == f64
    assert (t > 0).all()
    assert (t < 1).all()
    drawn = path.logsnr(t).sort().values
    cut = drawn[[n // 50, n // 5, n // 2, 4 * n // 5, n - n // 50]]
    for low, high, share in zip(cut[:-1], cut[1:], (0.18, 0.3, 0.3, 0.18), strict=True):
        grid = torch.linspace(low.item(), high.item(), 4001, dtype=f64)
        p = torch.as_tensor(density.per_logsnr(P.At(path, path.time_at(grid))), dtype=f64).expand_as(grid)
        assert torch.trapezoid(p, grid).item() == pytest.approx(share, abs=4 * math.sqrt(share / n) + 1e-3)
    at = 0.4
    alone = density.per_logsnr(P.At(path, at))
    several = torch.as_tensor(density.per_logsnr(P.At(path, torch.tensor([at, at], dtype=f64))), dtype=f64)
    assert several.expand(2).tolist() == pytest.approx([alone] * 2, rel=1e-9)


@pytest.mark.parametrize("density", [*DENSITIES, W.Steps(9)], ids=name)
def test_a_time_depends_on_its_own_key(density):
    noise, path = Noise.seeded(5, 6), P.VP()
    whole = density(Noise(noise.key), path, torch.float32)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(density(Noise(noise.key[2:3]), path, torch.float32), whole[2:3])
    assert density(Noise(noise.key[:0]), path, torch.float32).shape == (0,)
    assert spec(build(spec(density))) == spec(density)


def test_log_snr_from_an_infinite_end_is_refused():
    with pytest.raises(UserError, match="log-SNR is infinite at t = 1e-05 or 1 on Linear"):
        W.LogSNR()(Noise.seeded(0, 2), P.Linear(), f64)


# ---- weights from the formula --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [5.0, 0.7])
@pytest.mark.parametrize("path", [P.LinearBetas(), P.VP(), P.VE(), P.Linear()], ids=name)
def test_min_snr_is_the_papers(path, gamma):
    t = torch.tensor([1e-3, 0.3, 0.5, 0.9], dtype=f64)
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    at, weight = P.At(path, t), W.MinSNR(gamma)
    torch.testing.assert_close(weight(at, F.X()), snr.clamp(max=gamma), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(weight(at, F.Eps()), snr.clamp(max=gamma) / snr, rtol=1e-9, atol=0.0)
    if isinstance(path, P.VP | P.LinearBetas):  # where v's circle is
        torch.testing.assert_close(weight(at, F.V()), snr.clamp(max=gamma) / (snr + 1), rtol=1e-9, atol=0.0)
    for kind in KINDS:
        out = torch.as_tensor(kind.x(at)[1], dtype=f64)
        torch.testing.assert_close(weight(at, kind), snr.clamp(max=gamma) * out**2, rtol=1e-9, atol=0.0)
        alone = weight(P.At(path, 0.3), kind)
        assert alone == pytest.approx(weight(at, kind)[1].item(), rel=1e-9)


def test_min_snr_at_both_ends():
    weight = W.MinSNR(5.0)
    for tensor in (False, True):
        for t, values in ((0.0, (5, 0, 0)), (1.0, (0, 1, 0))):
            at = P.At(P.Cosine(), torch.tensor([t], dtype=f64) if tensor else t)
            for kind, value in zip((F.X(), F.Eps(), F.V()), values, strict=True):
                assert float(weight(at, kind)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_likelihood_is_g2_on_the_score(kind):
    """Song et al. 2021: g² ‖∇log p − s‖² / 2, with the paper's g of each SDE, for t uniform."""
    t = torch.tensor([1e-3, 0.1, 0.6, 1.0], dtype=f64)
    for path, g2 in (
        (P.VP(), P.VP().beta(t)),
        (P.SubVP(), P.SubVP().beta(t) * (1 - P.SubVP().alpha(t) ** 4)),
        (P.VE(), P.VE().sigma(t) ** 2 * 2 * math.log(5000)),
    ):
        at = P.At(path, t)
        score = torch.as_tensor(kind.eps(at)[1], dtype=f64) / path.sigma(t)  # by how much F moves it
        weight = W.Likelihood(W.Uniform())(at, kind)
        torch.testing.assert_close(weight, g2 * score**2 / 2, rtol=1e-9, atol=0.0)
        halved = W.Likelihood(W.Uniform(0.0, 0.5))(at, kind)
        torch.testing.assert_close(halved, weight / 2, rtol=1e-12, atol=0.0)


def test_likelihood_is_constant_for_eps_where_the_log_snr_is_uniform():
    for path in (P.VP(), P.VE(), P.LinearBetas()):
        density = W.LogSNR(1e-4, 0.9)
        t = density(Noise.seeded(0, 50), path, torch.float32)
        weight = W.Likelihood(density)(P.At(path, t), F.Eps())
        assert weight == pytest.approx((path.logsnr(1e-4) - path.logsnr(0.9)) / 2, rel=1e-12)


# ---- the closed form on Gaussian data ------------------------------------------------------------------------------


def floor(at, kind, s):
    """What no net can know of F* = a x + b z, x ~ N(0, s²): Var(ax + bz | x_t) per coordinate."""
    a, b = kind.target(at)
    return (a * at.sigma - b * at.alpha) ** 2 * s**2 / (at.alpha**2 * s**2 + at.sigma**2)


@pytest.mark.parametrize("s", [0.5, 1.7])
@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_the_weighted_loss_is_the_information(path, kind, s):
    """With the exact field the integral is I(x; x_low) − I(x; x_high) (I-MMSE), whatever the density and the aim."""
    low, high = (path.logsnr(t) for t in (0.97, 0.02))
    logsnr = torch.linspace(low, high, 20_001, dtype=f64)
    at = P.At(path, path.time_at(logsnr))
    information = [0.5 * math.log1p(s**2 * math.exp(v)) for v in (low, high)]
    for density in (W.Uniform(0.02, 0.97), W.LogitNormal(), W.LogNormal(), W.LogSNR(0.02, 0.97)):
        loss = density.per_logsnr(at) * W.Likelihood(density)(at, kind) * floor(at, kind, s)
        assert torch.trapezoid(loss, logsnr).item() == pytest.approx(information[1] - information[0], rel=1e-6)


def test_the_weighted_loss_of_drawn_times():
    """The same by the draws that training makes; where log-SNR is uniform they vary less."""
    path, s, n, spread = P.VP(), 0.5, 200_000, []
    information = [0.5 * math.log1p(s**2 * math.exp(path.logsnr(v))) for v in (0.01, 1.0)]
    for density in (W.Uniform(0.01, 1.0), W.LogSNR(0.01, 1.0)):
        at = P.At(path, density(Noise.seeded(1, n), path, f64))
        loss = W.Likelihood(density)(at, F.Eps()) * floor(at, F.Eps(), s)
        spread.append(loss.std().item())
        assert loss.mean().item() == pytest.approx(information[0] - information[1], abs=4 * spread[-1] / math.sqrt(n))
    assert spread[1] < spread[0] / 2


def test_flow_matchings_floor():
    """s π/2 per coordinate on the straight path with t uniform."""
    t = (torch.arange(20_000, dtype=f64) + 0.5) / 20_000
    for s in (0.5, 1.3):
        assert floor(P.At(P.Linear(), t), F.Velocity(), s).mean().item() == pytest.approx(s * math.pi / 2, rel=1e-7)
    assert floor(P.At(P.Linear(), t), F.Velocity(), 0.5).mean().item() == pytest.approx(0.7853981634, rel=1e-7)


def test_ddpms_floor():
    chain, s = P.LinearBetas(), 0.6
    for i in (0, 100, 499, 999):
        abar = chain.abar[i].item()
        exact = abar * s * s / (abar * s * s + 1 - abar)
        assert floor(P.At(chain, chain.at_index(float(i))), F.Eps(), s) == pytest.approx(exact, rel=1e-9)
