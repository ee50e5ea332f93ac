"""Score matching: the losses are one up to a constant, their minimiser is known, and the model is what they train."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from morphogen import UserError
from morphogen.core import Bounds, Field, LogProb, Net, Noise, Samples, can, keys
from morphogen.diffusion import Diffusion, Sampler
from morphogen.diffusion.divergence import gaussian, rademacher
from morphogen.diffusion.field import Eps
from morphogen.diffusion.grid import Karras
from morphogen.diffusion.langevin import MALA, ULA
from morphogen.diffusion.matching import (
    Denoising,
    Energy,
    Implicit,
    ScoreModel,
    Sliced,
    SlicedVR,
    denoising,
    explicit,
    implicit,
    sliced,
    sliced_vr,
)
from morphogen.diffusion.path import Exploding
from morphogen.diffusion.solve import euler
from morphogen.diffusion.weight import Uniform
from morphogen.nets.mlp import MLP
from morphogen.spec import build, spec

f64 = torch.float64


def some_score(d, seed, width=16):
    """A random smooth map of (B, d), no gradient of anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, d)).to(f64)


def jacobian(score, x):
    """(B, D, D), by torch's own functional transform."""
    return torch.func.vmap(torch.func.jacrev(lambda a: score(a[None])[0]))(x)


# ---- the losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_trace_is_exact(d):
    score, x = some_score(d, 0), torch.randn(7, d, generator=torch.Generator().manual_seed(d), dtype=f64)
    truth = jacobian(score, x).diagonal(dim1=1, dim2=2).sum(1) + score(x).square().sum(1) / 2
    torch.testing.assert_close(implicit(score, x), truth)
    picture = implicit(lambda y: score(y.flatten(1)).view_as(y), x.view(7, 1, d, 1))
    torch.testing.assert_close(picture, truth)
    assert implicit(score, x[:0]).shape == (0,)
    assert implicit(score, x).requires_grad
    with torch.no_grad():
        assert not implicit(score, x).requires_grad


@pytest.mark.parametrize("loss", [sliced, sliced_vr])
def test_sliced_is_unbiased(loss):
    """The mean over all 2^D Rademacher directions is the implicit loss itself."""
    d = 4
    score, x = some_score(d, 1), torch.randn(5, d, generator=torch.Generator().manual_seed(1), dtype=f64)
    v = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=f64).expand(5, 2**d, d)
    torch.testing.assert_close(loss(score, x, v), implicit(score, x))
    n = 40_000
    gauss = gaussian(Noise.seeded(0, 1), (n, d), f64)
    each = torch.stack([loss(score, x[:1].expand(n, d), gauss[0][:, None])])[0]
    assert abs(each.mean() - implicit(score, x)[0]) < 4 * each.std() / math.sqrt(n)


def test_the_variance_of_the_slices():
    """Of vᵀAv: Rademacher 2 Σ_{i≠j} a_ij² = 8, normal 2 |A|² = 36 (A symmetric)."""
    A = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 1.0]], dtype=f64)
    n = 200_000
    x = torch.zeros(n, 3, dtype=f64)  # where the score is 0 only the curvature is left
    for law, variance in ((rademacher, 8.0), (gaussian, 36.0)):
        v = law(Noise.seeded(3, n), (1, 3), f64)
        value = sliced_vr(lambda x: x @ A, x, v)
        fourth = (value - 6).pow(4).mean()
        assert abs(value.mean() - 6) < 4 * math.sqrt(variance / n)
        assert abs(value.var() - variance) < 4 * ((fourth - variance**2) / n).sqrt()
    assert rademacher(Noise.seeded(0, 50), (3,), torch.float32).unique().tolist() == [-1, 1]


def test_the_losses_differ_by_constants():
    """On a mixture, integrated exactly: explicit, implicit and denoising minus one another do not see the score."""
    x, sigma = torch.tensor([-1.2, -0.9, 0.3, 1.4, 1.5], dtype=f64), 0.4
    line = torch.linspace(-6, 6, 4001, dtype=f64)
    clean, noisy = x.repeat_interleave(4001)[:, None], line.repeat(5)[:, None]
    z = (noisy - clean) / sigma
    weights = (-z.square()[:, 0] / 2).exp()
    weights = weights / weights.sum()
    share = (-((noisy - x) ** 2) / (2 * sigma**2)).softmax(1)
    truth = (share * (x - noisy)).sum(1, keepdim=True) / sigma**2  # the score of the points with noise on them
    apart = []
    for seed in range(4):
        score = some_score(1, seed, width=6)
        losses = (explicit(score, noisy, truth), implicit(score, noisy), denoising(score, clean, z, sigma))
        e, i, d = ((weights * loss).sum().item() for loss in losses)
        apart.append((e - i, e - d))
    constant = 0.5 * (weights * truth.square()[:, 0]).sum().item()
    for e_i, e_d in apart:
        assert e_i == pytest.approx(constant, abs=1e-9)
        assert e_d == pytest.approx(constant - 0.5 / sigma**2, abs=1e-9)
    assert explicit(lambda y: truth, noisy, truth).abs().max() == 0


@pytest.mark.parametrize("loss", ["implicit", "sliced", "sliced_vr", "denoising"])
def test_the_minimiser_on_gaussian_data_is_the_precision(loss):
    """s = −P(x − m): the gradient vanishes at the sample's P = S⁻¹ (denoising: (S + σ²)⁻¹), m = x̄, and only there."""
    n, d, sigma = 64, 3, 0.6
    x = Noise.seeded(4, n).normal(d, dtype=f64) @ torch.tensor([[1.0, 0.4, 0.0], [0, 0.7, -0.3], [0, 0, 1.5]]).double()
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=f64)

    def value(P, m):
        score = lambda y: -(y - m) @ P.T  # noqa: E731
        if loss == "implicit":
            return implicit(score, x).mean()
        if loss == "denoising":  # ±1 noise has the two moments that a linear score sees
            every, z = x.repeat_interleave(2**d, 0), corners.repeat(n, 1)
            return denoising(score, every, z, sigma).mean()
        return {"sliced": sliced, "sliced_vr": sliced_vr}[loss](score, x, corners.expand(n, -1, -1)).mean()

    S = (x - x.mean(0)).T @ (x - x.mean(0)) / n + (sigma**2 * torch.eye(d, dtype=f64) if loss == "denoising" else 0)
    P, m = torch.linalg.inv(S).requires_grad_(), x.mean(0).requires_grad_()
    for gradient in torch.autograd.grad(value(P, m), (P, m)):
        assert gradient.abs().max() < 1e-12
    least = value(P, m)
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        other = P + 0.1 * torch.randn(d, d, generator=g, dtype=f64), m + 0.1 * torch.randn(d, generator=g, dtype=f64)
        assert value(*other) > least


def test_the_floor_of_denoising():
    """For data N(0, s²) the best score leaves s²/(s² + σ²) of each squared noise coordinate, and DDPM's ε does, too."""
    n, s, sigma = 200_000, 0.8, 0.5
    x = s * Noise.seeded(5, n).normal(2, dtype=f64)
    best = lambda y: -y / (s**2 + sigma**2)  # noqa: E731
    error = Denoising(sigma)(best, x, Noise.seeded(6, n))  # σ² ½ |s + z/σ|²
    floor = s**2 / (s**2 + sigma**2)
    assert abs(error.mean() - floor) < 4 * error.std() / math.sqrt(n)  # ½ D = 1
    assert Denoising(sigma)(lambda y: 0 * y, x, Noise.seeded(6, n)).mean().item() == pytest.approx(1, abs=0.01)


def test_diffusion_on_the_exploding_path_is_denoising_at_every_level():
    class Known(Net):
        def forward(self, x, cond):
            return torch.sin(x + cond["t"][:, None])

    path, n = Exploding(20.0), 50
    model = Diffusion(Known(), (3,), path, Eps(1.0), Uniform(), Sampler(euler, Karras(), 2))
    x, z = Noise.seeded(7, n).normal(3, dtype=f64), Noise.seeded(8, n).normal(3, dtype=f64)
    key = keys(torch.arange(n), 3)
    found = model.loss({"x": x, "z": z, "key": key}).seen["error"]
    t = Uniform()(Noise(key), path, f64)
    for i in range(n):
        sigma = path.sigma(t[i].item())
        score = lambda y, i=i, sigma=sigma: -torch.sin(y + t[i]) / sigma  # noqa: E731
        loss = denoising(score, x[i : i + 1], z[i : i + 1], sigma)
        assert found[i].item() == pytest.approx(2 * sigma**2 * loss.item() / 3, rel=1e-9)


# ---- the model -----------------------------------------------------------------------------------------------------

OBJECTIVES = [Implicit(), Sliced(2), SlicedVR(), SlicedVR(3, gaussian), Denoising(0.3)]
objectives = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)


def make(objective, energy=False, sampler=None, dtype=f64):
    torch.manual_seed(0)
    net = MLP(2, 2, 8, 2, classes=3)
    return ScoreModel(Energy(net) if energy else net, (2,), objective, sampler or ULA(0.1, 5)).to(dtype)


def batch_of(n, dtype=f64):
    index = torch.arange(n)
    x = Noise.seeded(9, n).normal(2, dtype=dtype)
    return {"x": x, "key": keys(index, 1), "index": index, "cond": {"label": index % 3}}


@objectives
@pytest.mark.parametrize("energy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_the_gradient_of_the_loss(objective, energy, dtype):
    """It reaches every weight through both differentiations, and is what differences say."""
    model, batch = make(objective, energy, dtype=dtype), batch_of(5, dtype)
    loss = model.loss(batch)
    assert loss.value.dtype == dtype
    assert loss.seen["error"].shape == (5,)
    assert not loss.seen["error"].requires_grad
    loss.value.backward()
    if dtype == f64:
        for p in model.parameters():
            place, h = p.grad.flatten().abs().argmax(), 1e-6
            found = []
            for change in (h, -2 * h):
                p.data.view(-1)[place] += change
                found.append(model.loss(batch).value.item())
            p.data.view(-1)[place] += h
            assert (found[0] - found[1]) / (2 * h) == pytest.approx(p.grad.flatten()[place].item(), rel=1e-5, abs=1e-8)
    with torch.no_grad():
        again = model.loss(batch)
    assert not again.value.requires_grad
    torch.testing.assert_close(again.value, loss.value.detach())


@objectives
def test_the_loss_is_a_function_of_each_samples_key(objective):
    model, batch = make(objective), batch_of(6)
    whole = model.loss(batch).seen["error"]
    order = torch.tensor([3, 0, 5, 1])
    piece = {k: v[order] if k != "cond" else {"label": v["label"][order]} for k, v in batch.items()}
    torch.testing.assert_close(model.loss(piece).seen["error"], whole[order], rtol=1e-12, atol=1e-12)
    other = model.loss({**batch, "key": batch["key"] + 1}).seen["error"]
    assert bool((other != whole).any()) == (not isinstance(objective, Implicit))


def test_an_energy_is_its_score():
    model = make(Implicit(), energy=True)
    x, cond = Noise.seeded(1, 4).normal(2, dtype=f64), {"label": torch.tensor([0, 1, 2, 0])}
    watched = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.log_density(watched, cond).sum(), watched)
    torch.testing.assert_close(model.score(x, cond), slope)
    with torch.no_grad():
        assert torch.equal(model.score(x, cond), slope)
    J = jacobian(lambda y: model.net(y, {"label": torch.zeros(len(y), dtype=torch.int64)}), x)
    torch.testing.assert_close(J, J.mT)  # a gradient: no current


def test_what_it_can_do():
    model = make(Implicit(), energy=True, sampler=MALA(0.1, 5))
    assert can(model, Samples)
    assert not any(can(model, protocol) for protocol in (LogProb, Bounds, Field))
    again = build(spec(model))
    again.load_state_dict(model.state_dict())
    cond = {"label": torch.tensor([0, 1, 2])}
    x = model.sample(3, cond, noise=Noise.seeded(0, 3))
    assert torch.equal(again.to(f64).sample(3, cond, noise=Noise.seeded(0, 3)), x)
    assert model.sample(0).shape == (0, 2)
    begun = model.sample(3, cond, noise=Noise.seeded(0, 3), sampler=ULA(1e-12, 1), x=x)
    torch.testing.assert_close(begun, x, rtol=0, atol=1e-4)
    scored = make(Denoising(0.3))
    (slope,) = torch.autograd.grad(scored.sample(3, cond, noise=Noise.seeded(0, 3)).sum(), scored.net.last.bias)
    assert slope.abs().min() > 0  # samples are differentiable


class Attends(Net):
    """A score of sequences with fused attention, whose backward has no backward of its own on some devices."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x, cond):
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])


@pytest.mark.parametrize("objective", [Implicit(), Sliced()], ids=["implicit", "sliced"])
def test_attention_and_compiled_nets_are_differentiated_twice(objective):
    model = ScoreModel(Attends(), (5, 4), objective, ULA(0.1, 2))
    index = torch.arange(6)
    batch = {"x": Noise.seeded(0, 6).normal(5, 4), "key": keys(index, 1)}
    value = model.loss(batch).value
    for child in model.children():
        child.compile()  # as the trainer does
    again = model.loss(batch).value
    again.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(again, value)


def test_mistakes():
    with pytest.raises(UserError, match=r"Energy\(net\)"):
        make(Implicit(), sampler=MALA(0.1, 5))
    with pytest.raises(UserError, match="use ULA"):
        make(Implicit()).sample(2, sampler=MALA(0.1, 5))
    with pytest.raises(UserError, match="no density"):
        make(Implicit()).log_density(torch.zeros(2, 2, dtype=f64))
    with pytest.raises(UserError, match="shape"):
        make(Implicit()).loss({"x": torch.zeros(2, 3), "key": torch.arange(2)})
    with pytest.raises(UserError, match="int64"):
        make(Implicit()).loss({"x": torch.zeros(2, 2, dtype=torch.int64), "key": torch.arange(2)})
    with pytest.raises(UserError, match="sigma is 0"):
        Denoising(0)
    with pytest.raises(UserError, match="0 directions"):
        make(Sliced(0)).loss(batch_of(2))
    with pytest.raises(UserError, match=r"'label'.* holds 3 conditions for 2 samples"):
        make(Implicit()).sample(2, {"label": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(UserError, match="noise has 3 keys for 2 samples"):
        make(Implicit()).sample(2, noise=Noise.seeded(0, 3))
