"""Presets: the papers' settings, what nets are told, and the law that each samples with a net that knows the field."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

from morphogen.core import Field, Net, Noise, Samples, can, keys
from morphogen.diffusion import (
    ddpm,
    edm,
    flow_matching,
    rectified_flow,
    score_sde_subvp,
    score_sde_ve,
    score_sde_vp,
    stochastic_interpolant,
)
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion import weight as W
from morphogen.diffusion.adaptive import Dopri5
from morphogen.diffusion.field import EDM, Eps, Velocity, gaussian
from morphogen.diffusion.stochastic import EulerMaruyama, PredictorCorrector
from morphogen.spec import build, spec

f64 = torch.float64
PRESETS = {
    "ddpm": ddpm,
    "score_sde_vp": score_sde_vp,
    "score_sde_subvp": score_sde_subvp,
    "score_sde_ve": score_sde_ve,
    "edm": edm,
    "flow_matching": flow_matching,
    "rectified_flow": rectified_flow,
    "stochastic_interpolant": stochastic_interpolant,
}
presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())


class Small(Net):
    """A net of any shape that reads the time, and keeps what it was given and told."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.inner = nn.Linear(math.prod(shape) + 1, 16)
        self.outer = nn.Linear(16, math.prod(shape))
        self.given, self.told = torch.empty(0), torch.empty(0)

    def forward(self, x, cond):
        self.given, self.told = x.detach(), cond["t"]
        return self.outer(torch.tanh(self.inner(torch.cat((x.flatten(1), cond["t"][:, None] / 1000), 1)))).view(x.shape)


def make(preset, shape=(2,), **settings):
    torch.manual_seed(0)
    return preset(Small(shape), shape, **settings)


def batch_of(n, shape=(2,), dtype=torch.float32):
    index = torch.arange(n)
    return {"x": Noise.seeded(9, n).normal(*shape, dtype=dtype), "key": keys(index, 1, 2), "index": index}


# ---- the papers' settings ------------------------------------------------------------------------------------------


def test_ddpm_edm_and_rectified_flow_have_the_papers_settings():
    one, two, three = make(ddpm), make(edm), make(rectified_flow)
    assert (one.sampler.steps, two.sampler.steps) == (1000, 18)
    assert isinstance(one.sampler.solver, S.Ancestral)
    assert two.sampler.solver is S.heun
    assert (two.density.mean, two.density.std, two.parametrisation.sigma_data) == (-1.2, 1.2, 0.5)
    assert isinstance(three.path, P.Linear)
    assert three.path.sigma_min == 0
    assert isinstance(three.parametrisation, Velocity)
    assert torch.equal(one.path.abar, P.LinearBetas().abar)
    for steps in (10, 20, 50, 4000):
        assert make(ddpm, steps=steps).path.alpha(1.0) < 0.04  # ends in noise
    small = make(ddpm, steps=50)
    small.loss(batch_of(200))
    assert small.net.told.max().item() == pytest.approx(980, abs=0.1)  # 1000 i / T


@pytest.mark.parametrize(
    ("preset", "path", "at_half"),
    [
        (score_sde_vp, P.VP, (0.2811828808, 0.9596542021)),
        (score_sde_subvp, P.SubVP, (0.2811828808, 0.9209361875)),
        (score_sde_ve, P.VE, (1.0, 0.7071067812)),
    ],
    ids=["vp", "subvp", "ve"],
)
def test_score_sdes_have_the_papers_settings(preset, path, at_half):
    model = make(preset)
    assert type(model.path) is path
    assert (model.path.alpha(0.5), model.path.sigma(0.5)) == pytest.approx(at_half, rel=1e-9)
    assert isinstance(model.parametrisation, Eps)  # σ² ‖score error‖² is the error of ε
    assert model.weight is None
    assert (model.density.low, model.density.high) == (1e-5, 1)
    assert model.sampler.steps == 1000
    assert isinstance(model.sampler.grid, G.Uniform)
    solver = model.sampler.solver
    if path is P.VE:
        assert isinstance(solver, PredictorCorrector)
        assert (solver.corrector.steps, solver.corrector.size) == (1, pytest.approx(2 * 0.16**2))
    else:
        assert isinstance(solver, EulerMaruyama)
        assert solver.noise == 1


def test_ves_predictor_is_reverse_diffusion():
    """Song et al. 2021, algorithm 2: x + (σ_t² − σ_s²) score + √(σ_t² − σ_s²) n."""
    model = make(score_sde_ve)
    field = gaussian(model.path, 0.3, 0.5)
    x = torch.randn(6, 1, dtype=f64, generator=torch.Generator().manual_seed(0))
    for t, s in ((1.0, 0.999), (0.4, 0.35), (0.001, 0.0)):
        new = model.path.sigma(t) ** 2 - model.path.sigma(s) ** 2
        n = Noise.seeded(1, 6).normal(1, dtype=f64)
        got = model.sampler.solver.predictor(field, x, t, s, {}, Noise.seeded(1, 6))
        torch.testing.assert_close(got, x + new * field.score(x, t) + new**0.5 * n, rtol=1e-9, atol=1e-10)


def test_flow_presets_have_the_papers_settings():
    fm, si = make(flow_matching), make(stochastic_interpolant)
    for model in (fm, si):
        assert isinstance(model.parametrisation, Velocity)
        assert model.weight is None
        assert (model.density.low, model.density.high) == (0, 1)
        assert isinstance(model.sampler.solver, Dopri5)
        assert (model.sampler.solver.rtol, model.sampler.solver.atol) == (1e-5, 1e-5)
    assert (fm.path.sigma(0.0), fm.path.sigma(1.0), fm.path.alpha(1.0)) == (1e-5, 1, 0)
    assert make(flow_matching, sigma_min=0.1).path.sigma(0.5) == pytest.approx(0.55)
    assert isinstance(si.path, P.Cosine)


def test_what_nets_are_told():
    model = make(ddpm)
    model.loss(batch_of(500))
    t = model.net.told
    torch.testing.assert_close(t, t.round(), rtol=0, atol=2e-4)
    assert 0 <= t.round().min() < 20
    assert 980 < t.round().max() <= 999
    model.sample(1, steps=4)
    assert model.net.told.item() == pytest.approx(249, abs=1e-3)  # the last of 999, 749, 499, 249
    model = make(edm)
    model.sample(1, steps=1)
    assert model.net.told.item() == pytest.approx(250 * math.log(80), rel=1e-5)
    model.denoise(torch.zeros(2, 2), {"t": torch.zeros(2)})
    assert model.net.told.isfinite().all()
    for name, preset in PRESETS.items():
        if name in ("ddpm", "edm"):
            continue
        for scale in (1.0, 1000.0):
            model = make(preset, scale=scale)
            model.loss(batch_of(500))
            assert 0 <= model.net.told.min() < 0.02 * scale
            assert 0.98 * scale < model.net.told.max() <= scale
            model.denoise(torch.zeros(2, 2), {"t": torch.full((2,), 0.25)})
            assert model.net.told.tolist() == [0.25 * scale] * 2


def test_ves_net_is_given_unit_variance():
    model = make(score_sde_ve, sigma_data=0.7)
    batch = batch_of(4000)
    model.loss({**batch, "x": 0.7 * batch["x"]})
    assert model.net.given.std().item() == pytest.approx(1, rel=0.02)


# ---- what they do --------------------------------------------------------------------------------------------------


@presets
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_loss_and_sample_on_any_shape(preset, shape, dtype):
    model = make(preset, shape).to(dtype)
    for n in (1, 4):
        loss = model.loss(batch_of(n, shape, dtype))
        assert loss.value.dtype == dtype
        loss.value.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        with torch.no_grad():
            x = model.sample(n, noise=Noise.seeded(0, n), steps=3)
        assert x.shape == (n, *shape)
        assert x.dtype == dtype
        assert x.isfinite().all()
    assert model.sample(0).shape == (0, *shape)


@presets
def test_presets_are_remembered_and_protocols_hold(preset):
    model = make(preset)
    graph = spec(model)
    again = build(graph, modules=[sys.modules[__name__]])
    assert spec(again) == graph
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.loss(batch_of(4)).value, model.loss(batch_of(4)).value)
    assert can(model, Samples)
    assert can(model, Field)


class Exact(Net):
    """The net that knows N(0.3, 0.5²): it reads the time back from what it is told."""

    def __init__(self, path, kind):
        super().__init__()
        self.field, self.kind = gaussian(path, 0.3, 0.5), kind
        self.one = nn.Parameter(torch.ones(1, dtype=f64))

    def forward(self, given, cond):
        path, told = self.field.path, cond["t"] / self.kind.scale
        if isinstance(self.kind, EDM):
            t = path.time((4 * told).exp())
        else:
            t = told + 1 / path.steps if isinstance(path, P.Chain) else told
        at = P.At(path, t)
        x_t = given / torch.as_tensor(self.kind.input(at)).reshape(-1, 1)
        return self.field.predict(x_t, t, *self.kind.target(at))


@presets
def test_presets_sample_the_law_with_an_exact_net(preset):
    """The whole way of `sample`: what the net is told, start, grid, solver and scale."""
    model = preset(nn.Identity(), (1,))
    model.net = Exact(model.path, model.parametrisation)
    steps = {"ddpm": 500, "edm": 60, "rectified_flow": 200, "flow_matching": 1, "stochastic_interpolant": 1}
    n = 10_000
    with torch.no_grad():
        x = model.sample(n, noise=Noise.seeded(0, n), steps=steps.get(preset.__name__, 300))
    assert x.dtype == f64
    assert x.mean().item() == pytest.approx(0.3, abs=0.018)
    assert x.std().item() == pytest.approx(0.5, rel=0.03)
    loss = model.loss({"x": x, "key": torch.arange(n)}).value.item()  # the exact net's loss is the least there is
    t = model.density(Noise(torch.arange(n)), model.path, f64)
    at = P.At(model.path, t)
    a, b = model.parametrisation.target(at)
    floor = (a * at.sigma - b * at.alpha) ** 2 * 0.25 / (at.alpha**2 * 0.25 + at.sigma**2)
    assert loss == pytest.approx(floor.mean().item(), rel=0.05)


# ---- flow matching in its own clock --------------------------------------------------------------------------------


def test_flow_matchings_published_values_are_ours_with_the_clock_turned():
    """There noise is at t = 0 and data at 1: t becomes 1 − t and v becomes −v.

    N(0, 1) → N(m, s²): v(x, t) = m + (t s² − (1 − t)) / ((1 − t)² + t² s²) (x − t m), m = 2, s = 0.5.
    """
    model = make(rectified_flow, (1,))
    field = gaussian(model.path, 2.0, 0.5)

    def ours(x, t):
        return -field.velocity(torch.tensor([[x]], dtype=f64), 1 - t).item()

    def published(x, t, m=2.0, s=0.5):
        return m + (t * s * s - (1 - t)) / ((1 - t) ** 2 + t * t * s * s) * (x - t * m)

    assert ours(0.3, 0.25) == pytest.approx(2.2378378378, abs=1e-10)
    assert ours(1.0, 0.9) == pytest.approx(1.5294117647, abs=1e-10)
    for x, t in torch.rand(20, 2, dtype=f64, generator=torch.Generator().manual_seed(0)).tolist():
        v = ours(4 * x - 2, t)
        assert v == pytest.approx(published(4 * x - 2, t), rel=1e-9)
        score = field.score(torch.tensor([[4 * x - 2]], dtype=f64), 1 - t).item()
        assert score == pytest.approx((t * v - (4 * x - 2)) / (1 - t), rel=1e-7)  # the interpolant's identity
    one = torch.ones(1, 1, dtype=f64)
    for n, value in ((1, 2.0), (4, 2.3405405405), (16, 2.4556830934)):
        got = S.solve(field, one, model.sampler.grid(model.path, n), step=model.sampler.solver)
        assert got.item() == pytest.approx(value, abs=1e-9)
    fm = make(flow_matching, (1,), sigma_min=0.0)
    got = S.solve(field, one, fm.sampler.grid(fm.path, 1), step=fm.sampler.solver)
    assert got.item() == pytest.approx(2.5, abs=1e-4)  # the exact flow


def test_lipmans_target_is_ours_with_the_clock_turned():
    """There ψ_t(x0) = (1 − (1 − σmin) t) x0 + t x1 and u = x1 − (1 − σmin) x0, x0 the noise."""
    path, m = P.Linear(0.1), 0.1
    x1, x0 = torch.randn(2, 5, dtype=f64, generator=torch.Generator().manual_seed(0)).unbind()
    for t in (0.0, 0.3, 1.0):
        at = P.At(path, 1 - t)
        torch.testing.assert_close(at.alpha * x1 + at.sigma * x0, (1 - (1 - m) * t) * x0 + t * x1)
        a, b = Velocity().target(at)
        torch.testing.assert_close(a * x1 + b * x0, -(x1 - (1 - m) * x0))


def test_steps_of_the_chain_are_ddpms():
    model = make(ddpm)
    assert isinstance(model.density, W.Steps)
    assert model.density.steps == model.path.steps == 1000
