"""The learned-variance chain: the exact bound of a Gaussian, the paper's formulas, and who gets which gradient."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from morphogen import UserError
from morphogen.core import Bounds, Net, Noise, Samples, can
from morphogen.diffusion import path as P
from morphogen.diffusion.chain import Hybrid, LearnedVariance, Variational, improved_ddpm
from morphogen.diffusion.decoder import Levels, Normal
from morphogen.diffusion.field import gaussian
from morphogen.diffusion.solve import posterior
from morphogen.nets.mlp import MLP
from morphogen.nets.unet import UNet
from morphogen.spec import build, spec

# ---- exact reverse kernels -----------------------------------------------------------------------------------------


class Knows(Net):
    """ε and v of the exact reverse kernels for data N(m, s²), s <= 1: v from the exact variance."""

    def __init__(self, path, m, s):
        super().__init__()
        self.field, self.path, self.s = gaussian(path, m, s), path, s

    def forward(self, x, cond):
        i = (cond["t"] / 1000 * self.path.steps).round().long()
        t = (i + 1).double() / self.path.steps
        eps = self.field.eps(x, t)
        several, row = i.unique(return_inverse=True)
        v = []
        for k in several.tolist():
            a, _, small, large = posterior(self.path, self.path.at_index(k), self.path.at_index(k - 1))
            abar = self.path.abar[k].item()
            left = self.s**2 * (1 - abar) / (abar * self.s**2 + 1 - abar)  # Var[x_0 | x_t]
            low = math.log(small if k else posterior(self.path, self.path.at_index(1), self.path.at_index(0))[2])
            w = (math.log(small + a * a * left) - low) / (math.log(large) - low)
            v.append(2 * w - 1)
        return torch.cat((eps, torch.tensor(v, dtype=x.dtype)[row].reshape(-1, 1).expand_as(x)), 1)


def exact(path, m=0.0, s=0.5):
    return LearnedVariance(Knows(path, m, s), (1,), path, Normal(), Hybrid())


@pytest.mark.parametrize(
    ("path", "m", "s"), [(P.LinearBetas(), 0.0, 0.5), (P.LinearBetas(), 0.3, 0.8), (P.CosineBetas(steps=57), -0.2, 0.3)]
)
def test_bound_of_a_gaussian(path, m, s):
    """Every term is a quadratic in x and in z, so Gauss-Hermite nodes give its mean exactly."""
    model = exact(path, m, s)
    nodes, weights = (
        torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64),
        torch.tensor([1.0, 4, 1]).double() / 6,
    )
    x = (m + s * nodes).repeat_interleave(3)[:, None]  # (9, 1)
    z, w = nodes.repeat(3)[:, None], (weights[:, None] * weights).flatten()
    i = torch.arange(path.steps).repeat_interleave(9)
    terms = model.term(x.repeat(path.steps, 1), i, z.repeat(path.steps, 1)).reshape(path.steps, 9)
    last = (model.last(x) * w).sum().item()
    total = (terms * w).sum().item() + last
    entropy = 0.5 * math.log(2 * math.pi * math.e * s * s)
    abar = path.abar[-1].item()
    end = abar * s * s + 1 - abar
    gap = 0.5 * (end - 1 - math.log(end) + abar * m * m)  # KL(q(x_T) ‖ N(0, 1))
    assert total == pytest.approx(entropy + gap, abs=1e-9)
    if isinstance(path, P.LinearBetas) and m == 0:
        assert total == pytest.approx(0.7257913529, abs=2e-10)
        assert last == pytest.approx(5.0452e-6, rel=1e-5)


def test_elbo_is_the_sum_of_its_terms_and_below_the_density():
    path = P.LinearBetas(0.001, 0.3, 20)
    model = exact(path, 0.2, 0.5)
    x = torch.tensor([[0.1], [0.9], [-1.4]], dtype=torch.float64)
    truth = torch.distributions.Normal(0.2, 0.5).log_prob(x)[:, 0]
    many = lambda n, k: model.elbo(x.repeat(n, 1), noise=Noise.seeded(k or 0, 3 * n), evaluations=k).reshape(n, 3)  # noqa: E731
    whole, few = many(1000, None), many(4000, 7)
    error = (whole.std(0) / 1000**0.5 + few.std(0) / 4000**0.5) * 4
    assert ((few.mean(0) - whole.mean(0)).abs() < error).all()  # picking steps is unbiased
    assert (whole.mean(0) < truth + error).all()
    assert (whole.mean(0) > truth - 0.05 - error).all()
    assert torch.equal(model.elbo(x), model.elbo(x.flip(0)).flip(0))  # a function of x alone
    assert model.elbo(x[:1]).shape == (1,)


# ---- formulas ------------------------------------------------------------------------------------------------------


def model_of(path, outputs=2, **more):
    torch.manual_seed(0)
    net = MLP(2, 2 * outputs, 16, 1, scalars=("t",), sinusoid=8, classes=3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return LearnedVariance(net.double(), (2,), path, more.pop("decoder", Normal()), more.pop("objective", Hybrid()))


def batch_of(n, dtype=torch.float64, levels=None):
    x = torch.rand(n, 2, dtype=dtype) * 2 - 1
    return {
        "x": x if levels is None else levels.observe(x),
        "cond": {"label": torch.arange(n) % 3},
        "key": torch.arange(n) * 7 + 3,
    }


@pytest.mark.parametrize("decoder", [Normal(), Levels()], ids=["normal", "levels"])
def test_terms_are_the_papers(decoder):
    """Written again from the tables of β, ᾱ and β̃, with scipy's normal distribution function."""
    T = 12
    path = P.CosineBetas(steps=T)
    model = model_of(path, decoder=decoder)
    batch = batch_of(T, levels=decoder)
    x, i, z = batch["x"], torch.arange(T), torch.randn(T, 2, dtype=torch.float64)
    abar = path.abar
    before = torch.cat((torch.ones(1), abar[:-1]))
    beta = 1 - abar / before
    tilde = beta * (1 - before) / (1 - abar)
    low = torch.cat((tilde[1:2], tilde[1:])).log()
    x_t = abar.sqrt()[:, None] * x + (1 - abar).sqrt()[:, None] * z
    eps, v = model.net(x_t, {"t": 1000 * i.double() / T}).chunk(2, 1)
    log_var = (v + 1) / 2 * beta.log()[:, None] + (1 - (v + 1) / 2) * low[:, None]
    mean = (x_t - (beta / (1 - abar).sqrt())[:, None] * eps) / (1 - beta).sqrt()[:, None]
    x0 = (x_t - (1 - abar).sqrt()[:, None] * eps) / abar.sqrt()[:, None]
    c0, ct = before.sqrt() * beta / (1 - abar), (1 - beta).sqrt() * (1 - before) / (1 - abar)
    torch.testing.assert_close(c0[:, None] * x0 + ct[:, None] * x_t, mean, rtol=1e-6, atol=1e-6)  # the two forms agree
    mean = c0[:, None] * decoder.clamp(x0) + ct[:, None] * x_t
    true = c0[:, None] * x + ct[:, None] * x_t
    p, q = (
        torch.distributions.Normal(mean, (log_var / 2).exp()),
        torch.distributions.Normal(true, (low / 2).exp()[:, None]),
    )
    expected = torch.distributions.kl_divergence(q, p).sum(1)
    if isinstance(decoder, Normal):
        expected[0] = -p.log_prob(x)[0].sum()
    else:
        m, s, cell = mean[0].detach(), (log_var[0] / 2).exp().detach(), 1 / 255
        mass = norm.cdf(x[0] + cell, m, s) - norm.cdf(x[0] - cell, m, s)
        expected[0] = -torch.as_tensor(mass).log().sum() + 2 * math.log(2 / 255)
    torch.testing.assert_close(model.term(x, i, z), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoder_sums_to_one_over_its_levels(dtype):
    levels = Levels()
    x = torch.linspace(-1, 1, 256, dtype=dtype)[:, None]
    g = torch.Generator().manual_seed(0)
    mean = torch.rand(40, dtype=dtype, generator=g) * 4 - 2
    for log_std in (-9.0, -5.0, -2.0, 0.0, 1.0):
        logp = levels.log_prob(x, mean, torch.full((40,), 2 * log_std, dtype=dtype)) + math.log(2 / 255)
        total = logp.double().exp().sum(0)
        torch.testing.assert_close(
            total, torch.ones_like(total), rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12
        )
        assert not logp.isnan().any()
    mean = mean.requires_grad_()
    levels.log_prob(x, mean, torch.full((40,), -9.0, dtype=dtype)).clamp(min=-1e30).sum().backward()
    assert not mean.grad.isnan().any()


@pytest.mark.parametrize("away", [3.0, 30.0, 300.0])
def test_decoder_far_in_both_tails(away):
    """Where the normal distribution function is 0 or 1 in floating point."""
    levels, s = Levels(), 1e-2
    x = torch.tensor([[-0.2], [0.2]], dtype=torch.float64)
    x = levels.observe(x)
    mean = x + torch.tensor([[away * s], [-away * s]], dtype=torch.float64)
    logp = levels.log_prob(x, mean, torch.tensor(2 * math.log(s), dtype=torch.float64))
    near = norm.logsf(away - 1 / 255 / s)
    far = norm.logsf(away + 1 / 255 / s)
    expected = near + math.log1p(-math.exp(far - near)) - math.log(2 / 255)
    torch.testing.assert_close(logp, torch.full_like(logp, expected), rtol=1e-9, atol=0)


def test_pixels_beyond_the_range_are_refused():
    model = model_of(P.CosineBetas(steps=8), decoder=Levels())
    with pytest.raises(UserError, match="256 levels from -1 to 1"):
        model.elbo(torch.full((2, 2), 1.5, dtype=torch.float64))
    x = batch_of(3)["x"]
    torch.testing.assert_close(
        model.elbo(Levels().observe(x)), model.elbo(Levels().observe(x) + 0.003)
    )  # the same level


# ---- training ------------------------------------------------------------------------------------------------------


def last_layer(model):
    return list(model.net.last.parameters())


def test_the_bound_trains_the_variance_alone():
    """In the hybrid loss: with weight w the gradient of ε's outputs is that of weight 0."""
    batch, gradients = batch_of(40), {}
    for weight in (0.0, 0.001, 1.0):
        model = model_of(P.CosineBetas(steps=9), objective=Hybrid(weight))
        model.loss(batch).value.backward()
        gradients[weight] = [p.grad.clone() for p in last_layer(model)]
        assert gradients[weight]
    for none, some, much in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(some[:2], none[:2], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(much[:2], none[:2], rtol=1e-9, atol=1e-12)
        assert (none[2:] == 0).all()
        torch.testing.assert_close(much[2:], some[2:] * 1000)
        assert (some[2:] != 0).all()
    model = model_of(P.CosineBetas(steps=9), objective=Variational())
    model.loss(batch).value.backward()
    assert all((p.grad != 0).all() for p in last_layer(model))


def test_losses_are_their_formulas():
    T, batch = 9, batch_of(500)
    model = model_of(P.CosineBetas(steps=T))
    loss = model.loss(batch)
    seen = loss.seen
    assert seen["step"].unique().tolist() == list(range(T))
    expected = seen["error"] + 0.001 * T * seen["term"] / math.log(2)
    torch.testing.assert_close(loss.value, expected.mean())
    model = model_of(P.CosineBetas(steps=T), objective=Variational())
    loss = model.loss(batch)
    torch.testing.assert_close(loss.value, T * loss.seen["term"].mean() / math.log(2))


def test_steps_are_drawn_by_their_losses():
    """Once every step has ten losses: by their root mean square, and the mean is unchanged."""
    T = 5
    model = model_of(P.CosineBetas(steps=T), objective=Variational(uniform=0.1))
    rows = torch.arange(1, T + 1.0)[:, None].expand(T, 10) * torch.tensor([1.0, 3.0] * 5)
    for k in range(12):  # the first two fall out
        value = rows[:, k % 10] if k >= 2 else torch.full((T,), 1e6)
        half = model.objective.steps(Noise.seeded(0, 4), model.history, model.filled)[1]
        assert (half == 1 / T).all() or k > 9
        model.after_step("loss", {"step": torch.arange(T).flip(0), "term": value.flip(0).double()})
    torch.testing.assert_close(model.history.sort(1).values, rows.sort(1).values)
    i, share = model.objective.steps(Noise.seeded(1, 60_000), model.history, model.filled)
    rms = rows.square().mean(1).sqrt()
    p = 0.9 * rms / rms.sum() + 0.1 / T
    torch.testing.assert_close(share, p[i])
    torch.testing.assert_close(torch.bincount(i) / 60_000, p, rtol=0, atol=0.01)
    batch = batch_of(60_000)
    weighted = model.loss(batch).value
    model.filled.zero_()
    torch.testing.assert_close(weighted, model.loss(batch).value, rtol=0.03, atol=0)
    several = {"step": torch.tensor([2, 2, 0]), "term": torch.tensor([7.0, 8.0, 9.0])}
    model.after_step("loss", several)
    assert model.history[2, :2].tolist() == [7.0, 8.0]
    assert model.filled.tolist() == [1, 0, 2, 0, 0]


# ---- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [200, 40, 7])
def test_learned_variance_samples_the_law_on_few_steps(steps):
    """With the exact kernels of each sub-sequence the chain returns the data's variance: β̃ gives less, β more."""
    path = P.LinearBetas(0.1 / 200, 0.1, 200)

    class Sub(Knows):
        def forward(self, x, cond):
            out = super().forward(x, cond)
            t = (cond["t"][0].item() / 1000 * path.steps + 1) / path.steps
            s = max((u for u in self.times if u < t - 1e-9), default=0.0)
            a, _, small, large = posterior(path, t, s)
            abar = path.alpha(t) ** 2
            left = self.s**2 * (1 - abar) / (abar * self.s**2 + 1 - abar)
            w = (math.log(small + a * a * left) - math.log(small)) / math.log(large / small) if small > 0 else 0.0
            out[:, 1] = 2 * w - 1
            return out

    net = Sub(path, 0.3, 0.5)
    from morphogen.diffusion.grid import Trailing

    net.times = Trailing()(path, steps).tolist()
    model = LearnedVariance(net, (1,), path, Normal(), Hybrid())
    x = model.sample(20_000, noise=Noise.seeded(0, 20_000), steps=steps)
    # the last step has no noise: x̂ of the first time, whose own variance is short of what is left there
    t = net.times[-2]
    abar = path.alpha(t) ** 2
    left = 0.25 * (1 - abar) / (abar * 0.25 + 1 - abar)
    assert x.var().item() + left == pytest.approx(0.25, abs=0.011)
    assert x.mean().item() == pytest.approx(0.3, abs=0.015)


def test_sampling_options():
    model = model_of(P.CosineBetas(steps=30), decoder=Levels()).float()
    cond = {"label": torch.tensor([0, 1, 2])}
    noise = lambda: Noise.seeded(4, 3)  # noqa: E731
    with torch.no_grad():
        plain = model.sample(3, cond, noise=noise(), steps=6)
        assert torch.equal(model.sample(3, cond, noise=noise(), steps=6, guidance=1.0), plain)
        assert not torch.equal(model.sample(3, cond, noise=noise(), steps=6, guidance=2.0), plain)
        free = model.sample(3, noise=noise(), steps=6)
        ddim = [model.sample(3, cond, noise=noise(), steps=6, solver=s) for s in ("ddim", "heun")]
        assert not torch.equal(*ddim)
        # with guidance 0 the mean forgets the condition, but v is that of the condition
        zero = model.sample(3, cond, noise=noise(), steps=6, guidance=0.0)
        assert not torch.allclose(zero, free)
        assert model.sample(0).shape == (0, 2)
    with pytest.raises(UserError, match="did you mean 'heun'"):
        model.sample(2, solver="huen")
    with pytest.raises(UserError, match="3 conditions for 2 samples"):
        model.sample(2, cond)


def test_preset_protocols_and_mistakes():
    net = UNet(1, outputs=2, widths=(8,), depth=1, groups=4, attention=())
    model = improved_ddpm(net, (1, 7, 5), steps=40)
    assert can(model, Samples)
    assert can(model, Bounds)
    assert isinstance(model.path, P.CosineBetas)
    assert improved_ddpm(nn.Identity(), (1,)).path.steps == 4000
    assert isinstance(model.decoder, Levels)
    graph = spec(model)
    assert spec(build(graph)) == graph
    x = model.sample(2, steps=4, noise=Noise.seeded(0, 2))
    assert x.shape == (2, 1, 7, 5)
    assert model.elbo(x.detach().clamp(-1, 1), evaluations=3).isfinite().all()
    with pytest.raises(UserError, match=r"twice the outputs, UNet\(…, outputs=2\)"):
        improved_ddpm(UNet(1, widths=(8,), depth=1, groups=4, attention=()), (1, 7, 5), steps=4).sample(1)
    with pytest.raises(UserError, match="none is left"):
        LearnedVariance(net, (1, 7, 5), P.ZeroTerminal(P.LinearBetas()), Normal(), Hybrid())
