"""Paths: published tables, derivatives against autograd, inverses, both ends."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen import UserError
from morphogen.core import Noise
from morphogen.diffusion import path as P
from morphogen.diffusion import weight as W
from morphogen.spec import build, spec

PATHS = {
    "linear": P.Linear(),
    "cosine": P.Cosine(),
    "vp": P.VP(),
    "vp-odd": P.VP(0.3, 7.0),
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
    chain = P.CosineBetas()
    beta = [1 - chain.abar[i] / (chain.abar[i - 1] if i else 1) for i in (0, 499, 998, 999)]
    assert torch.stack(beta).tolist() == pytest.approx([4.128422e-5, 3.145886e-3, 0.7499994, 0.999], rel=1e-6)


def test_scaled_linear_ends_and_zero_terminal():
    chain = P.ScaledLinearBetas()
    assert chain.ratio(1.0) == pytest.approx(14.6146416, rel=1e-5)
    zero = P.ZeroTerminal(chain)
    assert abar(zero, 999) == pytest.approx(0, abs=1e-30)
    assert zero.sigma(1.0) == 1


def test_vp_at_a_half():
    vp = P.VP(0.1, 20.0)
    assert (vp.alpha(0.5), vp.sigma(0.5)) == pytest.approx((0.2811828808, 0.9596542021), rel=1e-9)


@anypath
def test_derivatives_are_those_of_autograd(path):
    t = (torch.arange(1, 60, dtype=torch.float64) / 60 + 0.00123).requires_grad_()  # off every knot
    for f, df in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        (exact,) = torch.autograd.grad((f(t) + 0 * t).sum(), t)
        derivative = torch.as_tensor(df(t), dtype=t.dtype).expand_as(t)
        torch.testing.assert_close(derivative, exact, rtol=1e-9, atol=1e-12)


@anypath
def test_floats_and_tensors_agree(path):
    t = torch.tensor([0.0, 1e-4, 0.03, 0.5, 0.77, 1.0], dtype=torch.float64)
    for f in (path.alpha, path.sigma, path.dalpha, path.dsigma, path.clock, path.ratio, path.logsnr):
        assert torch.as_tensor(f(t)).expand_as(t).tolist() == pytest.approx(
            [float(f(v)) for v in t.tolist()], rel=1e-12
        )
    assert path.alpha(t.float()).dtype == torch.float32
    assert path.sigma(torch.ones(0)).shape == (0,)


@anypath
def test_time_inverts_the_ratio(path):
    t = torch.linspace(1e-4, 0.9995, 41, dtype=torch.float64)
    torch.testing.assert_close(path.time(path.ratio(t)), t, rtol=1e-9, atol=1e-12)
    assert [path.time(path.ratio(v)) for v in t.tolist()] == pytest.approx(t.tolist(), rel=1e-9)
    assert path.time(0.0) == 0


@anypath
def test_data_at_zero_and_monotone(path):
    assert path.alpha(0.0) == 1
    assert path.sigma(0.0) == 0
    assert path.logsnr(0.0) == math.inf
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert (path.logsnr(t).diff() < 0).all()
    assert path.logsnr(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(path.logsnr(1.0))


def test_ends_where_nothing_is_left():
    for path in (P.Linear(), P.Cosine()):
        assert path.alpha(1.0) == 0
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


def test_densities():
    noise, path = Noise.seeded(3, 200_000), P.Exploding()
    log = (path.ratio(W.LogNormal()(noise, path, torch.float64))).log()
    assert (log.mean().item(), log.std().item()) == pytest.approx((-1.2, 1.2), abs=0.01)
    logit = W.LogitNormal(0.3, 0.7)(noise, path, torch.float64).logit()
    assert (logit.mean().item(), logit.std().item()) == pytest.approx((0.3, 0.7), abs=0.01)
    t = W.Uniform(0.2, 0.6)(noise, path, torch.float64)
    assert (t.min().item(), t.max().item()) == pytest.approx((0.2, 0.6), abs=1e-4)
    steps = W.Steps(7)(noise, path, torch.float32) * 7
    values, counts = steps.round().unique(return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 7]  # never 0: clean data is no step
    assert (counts / len(noise) * 7 - 1).abs().max() < 0.03


def test_a_senseless_vp_is_refused():
    with pytest.raises(UserError, match="beta_min"):
        P.VP(0.0, 20.0)
