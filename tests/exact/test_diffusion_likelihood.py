"""Log-densities and bounds against closed forms: Gaussians on every path in every parametrisation, mixtures, counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from morphogen import UserError
from morphogen.core import Bounds, LogProb, Noise, can
from morphogen.diffusion import divergence as V
from morphogen.diffusion import field as F
from morphogen.diffusion import likelihood as L
from morphogen.diffusion import path as P
from morphogen.diffusion import weight as W
from morphogen.diffusion.adaptive import Joint
from morphogen.diffusion.decoder import Levels
from morphogen.diffusion.diffusion import Diffusion, Sampler
from morphogen.diffusion.grid import Uniform
from morphogen.diffusion.guide import guided
from morphogen.diffusion.presets import edm, rectified_flow
from morphogen.diffusion.solve import HEUN, euler
from morphogen.nets.mlp import MLP

PATHS = [
    P.Linear(),
    P.Cosine(),
    P.VP(),
    P.Exploding(),
    P.LinearBetas(),
    P.CosineBetas(),
    P.ZeroTerminal(P.ScaledLinearBetas()),
]
KINDS = [F.X(), F.Eps(), F.V(), F.Velocity(), F.EDM(0.5)]
FINE = L.Adaptive(1e-8, 1e-8, Joint())


def name(thing):
    return type(thing).__name__


class Perfect(nn.Module):
    """The net that a parametrisation would have if the field were known: F* = a E[x|x_t] + b E[z|x_t]."""

    def __init__(self, exact, kind):
        super().__init__()
        self.exact, self.kind = exact, kind


class Told(Diffusion):
    """A model whose net is exact, given the time itself."""

    def _net(self, x, at, cond):
        a, b = self.parametrisation.target(at)
        return self.net.exact.predict(x, at.t, a, b, cond)


def model(exact, kind, shape=(1,)):
    kind_of = F.V() if isinstance(kind, F.Eps) else kind
    made = Told(Perfect(exact, kind), shape, exact.path, kind_of, W.Uniform(), Sampler(euler, Uniform(), 4))
    made.parametrisation = kind
    return made


def gaussian(path, m=0.7, s=0.5):
    x = torch.linspace(m - 3 * s, m + 3 * s, 7, dtype=torch.float64)[:, None]
    return F.gaussian(path, m, s), x, torch.distributions.Normal(m, s).log_prob(x)[:, 0]


# ---- the probability flow ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_gaussian_on_every_path_in_every_parametrisation(path, kind):
    if isinstance(kind, F.Eps) and path.alpha(1.0) < 1e-12:
        pytest.skip("such a net says nothing of x at t = 1")
    if isinstance(kind, F.Velocity) and isinstance(path, P.VP):
        pytest.skip("dσ/dt of VP is infinite at data: V is to be used there")
    field, x, truth = gaussian(path)
    made = model(field, kind)
    said = L.log_density(made, x, low=1e-4, mean=0.7, std=0.5, integrator=FINE)
    torch.testing.assert_close(said, truth, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        made.log_prob(x[:1], integrator=L.Fixed(3)), L.log_density(field, x[:1], integrator=L.Fixed(3))
    )


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_the_default_is_the_law_blurred_a_little_from_the_samplers_noise(path):
    """By default: 50 steps, the noise N(0, σ_1²), and the density of x + r n; both differences in closed form."""
    m, s = 0.7, 0.5
    field, x, _ = gaussian(path, m, s)
    r = path.ratio(path.at_index(0)) if isinstance(path, P.Chain) else 1e-3
    blurred = torch.distributions.Normal(m, math.hypot(s, r)).log_prob(x)[:, 0]
    a, b = path.alpha(1.0), path.sigma(1.0)
    end = a * m + math.hypot(b, a * s) / math.hypot(s, r) * (x[:, 0] - m)  # where the flow takes x
    other = torch.distributions.Normal(0, b).log_prob(end) - torch.distributions.Normal(
        a * m, math.hypot(b, a * s)
    ).log_prob(end)
    torch.testing.assert_close(L.log_density(field, x), blurred + other, rtol=0, atol=3e-3)
    torch.testing.assert_close(L.log_density(field, x, integrator=FINE), blurred + other, rtol=0, atol=1e-6)
    # over the data it costs what the head of the file says
    nodes = m + s * torch.linspace(-8, 8, 4001, dtype=torch.float64)
    w = torch.distributions.Normal(m, s).log_prob(nodes).exp() * (16 * s / 4000)
    z = a * m + math.hypot(b, a * s) / s * (nodes - m)
    lost = (
        w
        * (
            torch.distributions.Normal(a * m, math.hypot(b, a * s)).log_prob(z)
            - torch.distributions.Normal(0, b).log_prob(z)
        )
    ).sum()
    assert lost.item() == pytest.approx(
        0.5 * (a * a * (m * m + s * s) / b**2 - math.log1p(a * a * s * s / b**2)), abs=1e-7
    )


def test_k_diffusions_error_is_the_priors():
    """On EDM's path a prior that forgets the data's mean costs |m|²/(2 σ_max²) on the data, and more in the tails."""
    field, x, truth = gaussian(P.Exploding(4.0), 1.3, 0.5)
    assert (L.log_density(field, x, low=1e-4, integrator=FINE) - truth).abs().max() > 0.05
    fixed = L.log_density(field, x, low=1e-4, mean=torch.tensor([1.3]), std=0.5, integrator=FINE)
    torch.testing.assert_close(fixed, truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", [P.Linear(), P.Cosine(), P.ZeroTerminal(P.LinearBetas())], ids=name)
def test_mixture_in_the_plane_and_its_mass(path):
    field = F.Mixture(path, [[-1.0, 0.5], [1.2, 0.0]], [[0.4, 0.7], [0.6, 0.2]], [0.3, 0.7])
    x = field.sample(40, torch.Generator().manual_seed(0))
    said = L.log_density(field, x, low=1e-3, integrator=FINE)
    t = path.time(1e-3)
    alpha = path.alpha(t)
    blurred = field.log_density(x * alpha, t) + 2 * math.log(alpha)
    torch.testing.assert_close(said, blurred, rtol=0, atol=1e-4)
    label = torch.arange(40) % 2
    one = L.log_density(field, x, {"label": label}, low=1e-4, integrator=FINE)
    exact = torch.distributions.Normal(field.means[label], field.stds[label]).log_prob(x).sum(1)
    torch.testing.assert_close(one, exact, rtol=0, atol=1e-4)
    line = torch.linspace(-4, 4, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    mass = L.log_density(field, grid).exp().sum() * (8 / 60) ** 2
    assert mass.item() == pytest.approx(1, abs=2e-3)


def test_a_net_that_knows_nothing_has_a_density_too():
    """The mass of a flow is one whatever its net: the sign and the size of the divergence."""
    torch.manual_seed(0)
    net = MLP(1, 1, 16, 1, scalars=("t",), sinusoid=8, classes=2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    line = torch.linspace(-40, 40, 2001, dtype=torch.float64)[:, None]  # such a net may well spread x beyond ±12
    for preset in (rectified_flow, edm):
        made = preset(net, (1,), scale=1.0).double()
        logp = made.log_prob(line, {"label": torch.ones(len(line), dtype=torch.int64)}, integrator=L.Fixed(40))
        assert logp.exp().sum().item() * 0.04 == pytest.approx(1, abs=2e-4)
        x = line[925:1076:50]
        fine = made.log_prob(x, integrator=L.Adaptive(1e-6, 1e-6, Joint()))
        torch.testing.assert_close(made.log_prob(x, integrator=L.Fixed(200)), fine, rtol=1e-4, atol=3e-3)
    made = rectified_flow(net, (1,), scale=1.0).double()
    fine = made.log_prob(x, integrator=L.Fixed(60))
    torch.testing.assert_close(made.log_prob(x, integrator=L.Fixed(200, HEUN)), fine, rtol=1e-3, atol=3e-3)


def test_order_of_the_fixed_steps():
    field, x, truth = gaussian(P.Linear())
    truth = L.log_density(field, x, integrator=L.Adaptive(1e-9, 1e-9, Joint()))
    errors = [(L.log_density(field, x, integrator=L.Fixed(n)) - truth).abs().max().item() for n in (20, 40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.5)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(4, abs=0.3)


# ---- divergence ----------------------------------------------------------------------------------------------------


def test_variances_of_hutchinson():
    A = torch.tensor([[2.0, 1, 0], [1, 3, -1], [0, -1, 1]], dtype=torch.float64)
    n = 200_000
    x = torch.randn(n, 3, dtype=torch.float64, requires_grad=True)
    v = x @ A.T
    for law, variance in ((V.Hutchinson(), 8.0), (V.Hutchinson(law=V.gaussian), 36.0), (V.Exact(), 0.0)):
        found = V.trace(v, x, law.probes(x, Noise.seeded(1, n)), graph=True)
        assert found.mean().item() == pytest.approx(6, abs=4 * (variance / n) ** 0.5 + 1e-9)
        assert found.var().item() == pytest.approx(variance, rel=0.03, abs=1e-9)
    four = V.trace(v, x, V.Hutchinson(4).probes(x, Noise.seeded(2, n)), graph=True)
    assert four.mean().item() == pytest.approx(6, abs=0.02)
    assert four.var().item() == pytest.approx(2.0, rel=0.03)


def test_hutchinson_is_the_exact_density_on_average():
    mean = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(1, 3, 5)
    field = F.Mixture(P.Linear(), torch.stack((mean, -mean)), [0.5, 0.8])
    x = field.sample(3, torch.Generator().manual_seed(1))
    exact = L.log_density(field, x, divergence=V.Exact(), integrator=L.Fixed(12))
    many = x.repeat(500, 1, 1, 1)
    for law in (V.Hutchinson(), V.Hutchinson(2, V.gaussian)):
        said = L.log_density(field, many, divergence=law, noise=Noise.seeded(5, 1500), integrator=L.Fixed(12))
        said = said.reshape(500, 3)
        assert said.std(0).min() > 1e-3
        assert ((said.mean(0) - exact).abs() < 4 * said.std(0) / 500**0.5).all()


def test_noise_belongs_to_x():
    x = torch.randn(6, 2, 3)
    one, two = Noise.of(x), Noise.of(torch.cat((x[3:], x[:3])))
    assert torch.equal(one.key.roll(3), two.key)
    assert one.key.unique().numel() == 6
    swapped = x.flip(1)
    assert (Noise.of(swapped).key != one.key).all()
    assert torch.equal(Noise.of(torch.tensor([[0.0]])).key, Noise.of(torch.tensor([[-0.0]])).key)
    u = Noise.of(torch.linspace(0, 1, 4000)[:, None]).uniform()
    assert u.mean().item() == pytest.approx(0.5, abs=0.02)
    assert u.std().item() == pytest.approx(12**-0.5, abs=0.01)


# ---- the bound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [F.V(), F.EDM(0.5)], ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_the_bound_of_an_exact_field_is_the_density(path, kind):
    """At every x, since the reverse diffusion of an exact field is the data's own."""
    field, x, truth = gaussian(path)
    n = 3000
    said = L.bound(
        model(field, kind),
        x.repeat(n, 1),
        noise=Noise.seeded(0, 7 * n),
        evaluations=16,
        low=1e-3,
        mean=0.7,
        std=0.5,
    ).reshape(n, 7)
    error = 4 * said.std(0) / n**0.5
    assert (error < 0.3).all()
    assert ((said.mean(0) - truth).abs() < error).all()


def test_the_bound_of_another_field_is_below():
    """Data N(0, 1), the field of N(0.5, 1): the bound is the reverse diffusion's density, up to the same noise."""
    x = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field = F.gaussian(P.Linear(), 0.5, 1.0)
    said = L.bound(field, x, noise=Noise.seeded(0, len(x)), evaluations=16)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    error = 4 * said.std().item() / len(x) ** 0.5
    assert -said.mean().item() == pytest.approx(entropy + 0.125, abs=error)  # KL(N(0, 1) ‖ N(0.5, 1)) = 1/8
    assert error < 0.12


def test_stratified_times_are_unbiased_and_better():
    field, x, _ = gaussian(P.Linear())
    x = x[4:5].repeat(2000, 1)
    one, many = (L.bound(field, x, noise=Noise.seeded(k, 2000), evaluations=k) for k in (2, 64))
    assert abs(one.mean() - many.mean()) < 4 * (one.std() + many.std()) / 2000**0.5
    assert many.std() < one.std() / 3


def test_levels_bound_the_bits_of_a_discrete_law():
    """Two levels, and a field that knows them: ½ each is one bit a coordinate."""
    field = F.Mixture(P.Linear(), [[-1.0], [1.0]], [0.0, 0.0])
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(500, 1)
    said = L.bound(field, x, decoder=Levels(2), noise=Noise.seeded(0, 1000), evaluations=64, low=0.02)
    bits = -(said + math.log(2)) / math.log(2)
    assert bits.mean().item() == pytest.approx(1, abs=4 * bits.std().item() / 1000**0.5 + 1e-3)
    assert bits.std() < 1


# ---- the model -----------------------------------------------------------------------------------------------------


def net_of(preset, shape=(2,), **more):
    torch.manual_seed(0)
    net = MLP(shape[0], shape[0], 16, 1, scalars=("t",), sinusoid=8, classes=3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return preset(net, shape, **more)


@pytest.mark.parametrize("preset", [edm, rectified_flow])
def test_methods_of_a_model(preset):
    made = net_of(preset)
    assert can(made, LogProb)
    assert can(made, Bounds)
    x, cond = torch.randn(5, 2), {"label": torch.tensor([0, 1, 2, 0, 1])}
    few = L.Fixed(4)
    for f in (
        lambda *a: made.log_prob(*a, integrator=few),
        lambda *a: made.log_prob(*a, integrator=few, divergence="hutchinson"),
        lambda *a: made.elbo(*a, evaluations=8),
    ):
        with torch.no_grad():
            whole = f(x, cond)
            assert whole.shape == (5,)
            assert whole.dtype == torch.float32
            torch.testing.assert_close(f(x, cond), whole, rtol=0, atol=0)
            for i in (4,):
                alone = f(x[i : i + 1], {"label": cond["label"][i : i + 1]})
                torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-4)
            assert (f(x) - whole).abs().max() > 1e-4  # the condition is heard
            double = made.double()
            wide = f(x.double(), cond)
            assert wide.dtype == torch.float64
            torch.testing.assert_close(wide, whole.double(), rtol=1e-2, atol=1e-2)
            double.float()
            assert f(x[:0], {"label": cond["label"][:0]}).shape == (0,)
    assert "50 Runge-Kutta steps, 200 evaluations, exact divergence" in made.likelihood("log_prob")
    assert "65 evaluations" in made.likelihood("elbo")


def test_adaptive_steps_of_a_sample_are_its_own():
    made = net_of(rectified_flow, scale=1.0).double()
    x = torch.randn(4, 2, dtype=torch.float64) * torch.tensor([[0.1], [1.0], [3.0], [9.0]])
    own = L.Adaptive(1e-4, 1e-4)
    with torch.no_grad():
        whole = made.log_prob(x, integrator=own)
        for i in range(4):
            torch.testing.assert_close(made.log_prob(x[i : i + 1], integrator=own)[0], whole[i], rtol=1e-9, atol=1e-9)


def test_evaluations_are_those_that_are_said():
    field, x, _ = gaussian(P.Linear())
    calls = []

    class Counted(F.Field):
        path = field.path

        def predict(self, *args, **kwargs):
            calls.append(1)
            return field.predict(*args, **kwargs)

    L.log_density(Counted(), x)
    assert len(calls) == 200
    assert str(L.Fixed()) == "25 Runge-Kutta steps, 100 evaluations"
    calls.clear()
    L.bound(Counted(), x)
    assert len(calls) == L.EVALUATIONS + 1
    calls.clear()
    adaptive = L.Adaptive()
    L.log_density(Counted(), x, integrator=adaptive)
    assert len(calls) == adaptive.evaluations


def test_log_prob_is_differentiable_in_x_and_weights():
    made = net_of(rectified_flow).double()
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    f = lambda y: made.log_prob(y, integrator=L.Fixed(4))  # noqa: E731
    assert torch.autograd.gradcheck(f, (x,), atol=1e-5)
    f(x.detach()).sum().backward()
    p = made.net.last.weight
    with torch.no_grad():
        h = 1e-5
        p[0, 0] += h
        up = f(x).sum()
        p[0, 0] -= 2 * h
        down = f(x).sum()
    assert p.grad[0, 0].item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-4)
    with torch.no_grad():
        assert not f(x).requires_grad


def test_guided_fields_have_the_density_of_their_flow():
    field = F.Mixture(P.Linear(), [[-1.0], [1.0]], [0.5, 0.5])
    line = torch.linspace(-12, 12, 2401, dtype=torch.float64)[:, None]
    cond = {"label": torch.ones(len(line), dtype=torch.int64)}
    logp = L.log_density(guided(field, 2.0), line, cond, integrator=L.Fixed(60))
    assert logp.exp().sum().item() * 0.01 == pytest.approx(1, abs=2e-3)
    plain = L.log_density(field, line, cond, integrator=L.Fixed(60))
    assert line[logp.argmax()] > line[plain.argmax()] + 0.05


def test_mistakes_are_one_sentence():
    made = net_of(edm)
    x = torch.randn(3, 2)
    with pytest.raises(UserError, match=r"floats of shape \(2,\)"):
        made.log_prob(torch.randn(3, 4))
    with pytest.raises(UserError, match="dequantised"):
        L.log_density(F.gaussian(P.Linear(), 0.0, 1.0), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(UserError, match="goes from 0 to 80: give a low between"):
        made.elbo(x, low=100.0)
    with pytest.raises(UserError, match="2 conditions for 3 samples"):
        made.elbo(x, {"label": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(UserError, match="did you mean 'hutchinson'"):
        made.log_prob(x, divergence="hutchinsons")
    with pytest.raises(UserError, match="4 keys for 3 samples"):
        made.log_prob(x, noise=Noise.seeded(0, 4))
    for wrong in (lambda: L.Fixed(0), lambda: V.Hutchinson(0), lambda: made.elbo(x, evaluations=0)):
        with pytest.raises(UserError, match="1 or more"):
            wrong()
