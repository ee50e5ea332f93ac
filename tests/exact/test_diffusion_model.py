"""The model: the loss is keyed and additive, samples depend on their own key, presets are the papers'."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

from morphogen import UserError
from morphogen.core import Field, Net, Noise, Samples, can, keys
from morphogen.diffusion import Diffusion, Sampler, ddpm, edm, rectified_flow
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion import weight as W
from morphogen.diffusion.field import EDM, Eps, V, Velocity, X
from morphogen.diffusion.solvers import SOLVERS
from morphogen.spec import build, spec

PRESETS = {"ddpm": ddpm, "edm": edm, "rectified_flow": rectified_flow}
presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())


class Small(Net):
    """A net of any shape that reads the time and, where there is one, the label; it keeps what it was told."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.inner = nn.Linear(math.prod(shape) + 1, 16)
        self.outer = nn.Linear(16, math.prod(shape))
        self.label = nn.Embedding(4, 16)  # the last is the null
        self.told: dict = {}

    def forward(self, x, cond):
        self.told = dict(cond)
        h = self.inner(torch.cat((x.flatten(1), cond["t"][:, None] / 1000), 1))
        null = torch.full((len(x),), 3)
        label = cond.get("label", null)
        label = torch.where(cond["null"], null, label) if "null" in cond else label
        return self.outer(torch.tanh(h + self.label(label))).view(x.shape)


def make(preset, shape=(2,), **settings):
    torch.manual_seed(0)
    return preset(Small(shape), shape, **settings)


def batch_of(n, shape, labels=True, dtype=torch.float32):
    index = torch.arange(n)
    batch = {"x": Noise.seeded(9, n).normal(*shape, dtype=dtype), "key": keys(index, 1, 2), "index": index}
    return {**batch, "cond": {"label": index % 3}} if labels else batch


@presets
@pytest.mark.parametrize("shape", [(2,), (3,), (1, 5, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_sample_on_any_shape(preset, shape, labels, dtype):
    model = make(preset, shape).to(dtype)
    for n in (1, 5):
        batch = batch_of(n, shape, labels, dtype)
        loss = model.loss(batch)
        assert loss.value.shape == ()
        assert loss.value.dtype == dtype
        assert loss.value.isfinite()
        assert loss.seen["error"].shape == (n,)
        assert not loss.seen["error"].requires_grad
        loss.value.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        x = model.sample(n, batch.get("cond"), noise=Noise.seeded(0, n), steps=3)
        assert x.shape == (n, *shape)
        assert x.dtype == dtype
        assert x.isfinite().all()
    assert model.sample(0).shape == (0, *shape)
    assert model.sample(0, {"label": torch.zeros(0, dtype=torch.int64)}, guidance=2.0).dtype == dtype


@presets
def test_loss_is_a_function_of_weights_and_batch(preset):
    model, batch = make(preset), batch_of(8, (2,))
    one = model.loss(batch)
    torch.manual_seed(123)
    assert torch.equal(model.loss(batch).seen["error"], one.seen["error"])
    parts = [model.loss({**batch_slice(batch, a, b)}) for a, b in ((0, 3), (3, 8))]
    torch.testing.assert_close(torch.cat([p.seen["error"] for p in parts]), one.seen["error"])
    torch.testing.assert_close((3 * parts[0].value + 5 * parts[1].value) / 8, one.value)
    assert one.seen["error"].unique().numel() == 8
    again = model.loss({**batch, "key": batch["key"] + 1})
    assert (again.seen["error"] != one.seen["error"]).all()


def batch_slice(batch, a, b):
    return {k: batch_slice(v, a, b) if isinstance(v, dict) else v[a:b] for k, v in batch.items()}


@pytest.mark.parametrize("kind", [X(), Eps(), V(), Velocity(), EDM(0.5)], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("weight", [None, W.MinSNR(5.0)], ids=["plain", "min-snr"])
def test_loss_is_the_formula(kind, weight):
    """Recomputed by hand from the same keyed draws, through x̂ and ε̂ rather than through the target."""
    path = P.LinearBetas()
    torch.manual_seed(0)
    model = Diffusion(
        Small((2,)), (2,), path, kind, W.Uniform(0.05, 0.95), Sampler(S.euler, G.Uniform(), 2), weight, 0.5
    )
    model = model.double()
    batch = batch_of(64, (2,), dtype=torch.float64)
    noise = Noise(batch["key"])
    t = 0.05 + 0.9 * noise.uniform(dtype=torch.float64)
    z = noise.normal(2, dtype=torch.float64)
    null = noise.uniform(dtype=torch.float32) < 0.5
    assert 10 < null.sum() < 54
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    x_t = alpha * batch["x"] + sigma * z
    dx = model.predict(x_t, t, 1.0, 0.0, {**batch["cond"], "null": null}) - batch["x"]
    out = torch.as_tensor(kind.x(P.At(path, t))[1], dtype=torch.float64).expand(64)[:, None]
    error = (dx / out).square().mean(1)
    if weight is not None:
        error = ((alpha / sigma) ** 2).clamp(max=5.0)[:, 0] * dx.square().mean(1)
    seen = model.loss(batch).seen["error"]
    torch.testing.assert_close(seen, error, rtol=1e-7, atol=1e-9)


@presets
def test_sample_depends_on_its_own_key_alone(preset):
    model, cond = make(preset), {"label": torch.tensor([0, 1, 2, 0, 1, 2])}
    noise = Noise.seeded(4, 6)
    settings = {"guidance": 2.0, "steps": 4}
    with torch.no_grad():
        whole = model.sample(6, cond, noise=noise, **settings)
        assert whole.unique(dim=0).shape[0] == 6
        for i in (0, 3, 5):
            alone = model.sample(1, {"label": cond["label"][i : i + 1]}, noise=Noise(noise.key[i : i + 1]), **settings)
            torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)
        assert not torch.equal(model.sample(2, steps=2), model.sample(2, steps=2))  # without noise keys differ
        torch.manual_seed(3)
        first = model.sample(2, steps=2)
        torch.manual_seed(3)
        assert torch.equal(model.sample(2, steps=2), first)


@presets
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_by_name(preset, solver):
    model = make(preset)
    x = model.sample(3, noise=Noise.seeded(0, 3), solver=solver, grid="uniform", steps=4)
    y = model.sample(3, noise=Noise.seeded(0, 3), solver=SOLVERS[solver], grid=G.Uniform(), steps=4)
    assert torch.equal(x, y)


@presets
def test_guidance_of_one_is_none_and_null_is_reached(preset):
    model, noise = make(preset), lambda: Noise.seeded(4, 3)
    cond = {"label": torch.tensor([0, 1, 2])}
    plain = model.sample(3, cond, noise=noise(), steps=3)
    assert torch.equal(model.sample(3, cond, noise=noise(), steps=3, guidance=1.0), plain)
    assert torch.equal(model.sample(3, cond, noise=noise(), steps=3, guidance=5.0, interval=(2.0, 3.0)), plain)
    free = model.sample(3, noise=noise(), steps=3)
    torch.testing.assert_close(model.sample(3, cond, noise=noise(), steps=3, guidance=0.0), free)
    assert (plain - free).abs().max() > 1e-4


def test_sample_is_differentiable():
    model = make(rectified_flow)
    model.sample(2, steps=2).square().sum().backward()
    assert all(p.grad is not None for p in model.net.outer.parameters())


@presets
def test_presets_are_remembered_and_protocols_hold(preset):
    model = make(preset)
    graph = spec(model)
    again = build(graph, modules=[sys.modules[__name__]])
    assert spec(again) == graph
    again.load_state_dict(model.state_dict())
    batch = batch_of(4, (2,))
    assert torch.equal(again.loss(batch).value, model.loss(batch).value)
    assert can(model, Samples)
    assert can(model, Field)
    assert model.denoise(batch["x"], {"t": torch.rand(4), **batch["cond"]}).shape == (4, 2)


@pytest.mark.parametrize("x", [torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2, 2)])
def test_data_of_another_kind_are_refused(x):
    """A net that takes any size would train on them without a word."""
    with pytest.raises(UserError, match=r"this model learns floats of shape \(2,\)"):
        make(edm).loss({"x": x, "cond": {}, "key": torch.arange(2)})


def test_mistakes_are_one_sentence():
    model = make(rectified_flow)
    with pytest.raises(UserError, match="3 conditions for 2 samples"):
        model.sample(2, {"label": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(UserError, match="5 keys for 2 samples"):
        model.sample(2, noise=Noise.seeded(0, 5))
    with pytest.raises(UserError, match="did you mean 'heun'"):
        model.sample(2, solver="huen")
    with pytest.raises(UserError, match="did you mean 'karras'"):
        model.sample(2, grid="karas")
    with pytest.raises(UserError, match="needs a condition"):
        model.sample(2, guidance=2.0)
    with pytest.raises(UserError, match="drop=0"):
        make(rectified_flow, drop=0.0).sample(2, {"label": torch.zeros(2, dtype=torch.int64)}, guidance=2.0)
