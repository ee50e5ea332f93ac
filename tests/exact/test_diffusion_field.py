"""Fields and parametrisations: closed forms, conversions of every kind into every other, both ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from morphogen import UserError
from morphogen.core import Field as CoreField
from morphogen.core import can
from morphogen.diffusion import field as F
from morphogen.diffusion import path as P
from morphogen.diffusion import weight as W
from morphogen.diffusion.diffusion import Diffusion, Sampler
from morphogen.diffusion.grid import Uniform
from morphogen.diffusion.solve import euler, rk4, trajectory

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
KINDS = [F.X(), F.Eps(), F.V(), F.Velocity(), F.EDM(0.5), F.EDM(2.0), F.Eps(1.0, 0.7)]
TIMES = [1e-3, 0.1, 0.5, 0.93, 1.0]


def name(thing):
    return type(thing).__name__


class Perfect(nn.Module):
    """The net that a parametrisation would have if the field were known: F* = a E[x|x_t] + b E[z|x_t]."""

    def __init__(self, exact: F.Mixture, kind: F.Parametrisation, t):
        super().__init__()
        self.exact, self.kind, self.t, self.calls = exact, kind, t, 0

    def forward(self, given, cond):
        self.calls += 1
        at = P.At(self.exact.path, self.t)
        x_t = given / F.spread(self.kind.input(at), given)
        a, b = self.kind.target(at)
        return self.exact.predict(x_t, self.t, a, b)


def model(path, kind, net):
    return Diffusion(net, (2,), path, kind, W.Uniform(), Sampler(euler, Uniform(), 4))


def mixture(path):
    return F.Mixture(
        path, [[-1.0, 0.5], [2.0, 0.0], [0.3, -1.5]], [[0.4, 0.7], [0.6, 0.2], [1.0, 1.0]], [0.2, 0.5, 0.3]
    )


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_every_parametrisation_gives_every_view(path, kind, tensor):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, dtype=torch.float64, generator=g)
    exact = mixture(path)
    for t in TIMES:
        if isinstance(kind, F.Eps) and path.alpha(t) < 1e-12:
            continue  # refused by Diffusion, see below
        x_t = x * (1 + path.sigma(t))
        time = torch.full((5,), t, dtype=torch.float64) if tensor else t
        net = Perfect(exact, kind, time)
        field = model(path, F.V() if isinstance(kind, F.Eps) else kind, net)
        field.parametrisation = kind
        close = {"rtol": 1e-7, "atol": 1e-9}
        torch.testing.assert_close(field.predict(x_t, time, 1.0, 0.0), exact.predict(x_t, time, 1.0, 0.0), **close)
        torch.testing.assert_close(field.eps(x_t, time), exact.eps(x_t, time), **close)
        torch.testing.assert_close(field.velocity(x_t, time), exact.velocity(x_t, time), **close)
        torch.testing.assert_close(field.score(x_t, time), exact.score(x_t, time), **close)
        cond = {"t": torch.full((5,), t, dtype=torch.float64)}
        torch.testing.assert_close(exact.denoise(x_t, cond), exact.predict(x_t, time, 1.0, 0.0), **close)
        assert net.calls == 4


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_coefficients_solve_the_two_equations(path, kind):
    """x_t = αx + σz and F = ax + bz must give back x and z, for any x and z."""
    t = torch.tensor([1e-4, 0.01, 0.3, 0.8, 0.99], dtype=torch.float64)
    for time in (t, *t.tolist()):
        at = P.At(path, time)
        (a, b), (sx, ox), (se, oe) = kind.target(at), kind.x(at), kind.eps(at)
        for x, z in ((1.3, -0.4), (-2.0, 0.7)):
            x_t, f = at.alpha * x + at.sigma * z, a * x + b * z
            assert torch.as_tensor(sx * x_t + ox * f, dtype=t.dtype).tolist() == pytest.approx(
                [x] * 5 if time is t else x, rel=1e-8
            )
            assert torch.as_tensor(se * x_t + oe * f, dtype=t.dtype).tolist() == pytest.approx(
                [z] * 5 if time is t else z, rel=1e-8
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("kind", [F.X(), F.Eps(), F.V(), F.Velocity(), F.EDM()], ids=name)
@pytest.mark.parametrize("path", [p for p in PATHS if not isinstance(p, P.VP)], ids=name)
def test_both_ends_are_finite_and_right(path, kind, tensor, dtype):
    x, z = torch.randn(2, 3, 2, dtype=dtype, generator=torch.Generator().manual_seed(0)).unbind()
    for t in (0.0, 1.0):
        at = P.At(path, torch.full((3,), t, dtype=dtype) if tensor else t)
        x_t = F.spread(at.alpha, x) * x + F.spread(at.sigma, x) * z
        a, b = kind.target(at)
        f = F.affine(F.spread(a, x), x, F.spread(b, x), z)
        views = {}
        for p, q in ((1.0, 0.0), (0.0, 1.0)):
            (sx, ox), (se, oe) = kind.x(at), kind.eps(at)
            skip, out = F.affine(p, sx, q, se), F.affine(p, ox, q, oe)
            views[p] = F.affine(F.spread(skip, x), x_t, F.spread(out, x), f)
            assert views[p].isfinite().all(), (t, p)
        assert torch.as_tensor(kind.noise(at)).isfinite().all()
        close = {"rtol": 1e-3 if dtype == torch.float32 else 1e-7, "atol": 1e-4 if dtype == torch.float32 else 1e-9}
        if not (isinstance(kind, F.Eps) and path.alpha(t) < 1e-9):  # the one thing that is not known
            torch.testing.assert_close(views[1.0], x, **close)
        if isinstance(kind, F.X) and path.sigma(t) == 0:
            assert (views[0.0] == 0).all()  # the limit of E[z | x_t] for a smooth density
        else:
            torch.testing.assert_close(views[0.0], z, **close)


def says(kind, at, x, z):
    """F* = a x + b z, the target itself."""
    a, b = kind.target(at)
    return F.affine(F.spread(a, x), x, F.spread(b, x), z)


def unknown(path, t, given, wanted):
    """What no algebra can know: ε from x at clean data, x from ε in pure noise, and what is infinite."""
    if isinstance(given, F.X) and path.sigma(t) == 0 and not isinstance(wanted, F.X):
        return True
    if isinstance(given, F.Eps) and path.alpha(t) < 1e-12 and not isinstance(wanted, F.Eps):
        return True
    return math.isinf(path.dsigma(t)) and isinstance(given, F.Velocity)


@pytest.mark.parametrize("wanted", KINDS, ids=name)
@pytest.mark.parametrize("given", KINDS, ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_every_kind_of_net_becomes_every_other(path, given, wanted):
    """Every ordered pair, at both ends, next to them and between; values, dtypes and gradients."""
    g = torch.Generator().manual_seed(4)
    middle = torch.rand(3, dtype=f64, generator=g).tolist()
    for t in (0.0, 1e-5, *middle, 1 - 1e-5, 1.0):
        if math.isinf(path.dsigma(t)) and isinstance(wanted, F.Velocity):
            continue
        for dtype in (torch.float32, f64) if t in (0.0, 1.0, *middle) else (f64,):
            x, z = torch.randn(2, 3, 2, dtype=dtype, generator=g).unbind()
            for time in (t, torch.full((3,), t, dtype=dtype)):
                at = P.At(path, time)
                x_t = (F.spread(at.alpha, x) * x + F.spread(at.sigma, x) * z).requires_grad_()
                if math.isinf(path.dsigma(t)) and isinstance(given, F.Velocity):
                    said = torch.randn(3, 2, dtype=dtype, generator=g).requires_grad_()
                else:
                    said = says(given, at, x, z).requires_grad_()
                got = F.convert(said, x_t, at, given, wanted)
                assert got.dtype == dtype
                assert got.isfinite().all()
                grads = torch.autograd.grad(got.sum() + 0 * (said.sum() + x_t.sum()), (said, x_t))
                assert all(v.isfinite().all() for v in grads)
                if unknown(path, t, given, wanted):
                    continue
                exact = says(wanted, at, x, z)
                scale = exact.abs().max().item() + 1
                rtol = 2e-3 if dtype == torch.float32 else 1e-7  # Eps on a chain's end knows x to 1 in 1e-5 or so
                torch.testing.assert_close(got.detach(), exact, rtol=rtol, atol=rtol * scale)
                back = F.convert(got, x_t, at, wanted, given)
                if not unknown(path, t, wanted, given):
                    torch.testing.assert_close(
                        back, said, rtol=10 * rtol, atol=10 * rtol * (said.abs().max() + 1).item()
                    )


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_a_kind_becomes_itself_unchanged(kind):
    for path in PATHS:
        for t in (0.0, 0.3, 1.0):
            skip, out = kind.mix(P.At(path, t), *kind.target(P.At(path, t)))
            if not unknown(path, t, kind, kind):
                assert (skip, out) == pytest.approx((0, 1), abs=1e-9)


def test_what_is_not_known_counts_as_nothing():
    """X at clean data says ε = 0 (the limit for a smooth density), Eps in pure noise x = 0."""
    x_t, said = torch.randn(2, 4, 2, dtype=f64, generator=torch.Generator().manual_seed(0)).unbind()
    data, noise = P.At(P.Linear(), 0.0), P.At(P.Linear(), 1.0)
    assert (F.convert(said, x_t, data, F.X(), F.Eps()) == 0).all()
    torch.testing.assert_close(F.convert(said, x_t, data, F.X(), F.Velocity()), -said)
    assert (F.convert(said, x_t, noise, F.Eps(), F.X()) == 0).all()
    torch.testing.assert_close(F.convert(said, x_t, noise, F.Eps(), F.Velocity()), said)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_the_inputs_are_at_unit_variance_where_they_are_to_be(kind):
    for path in PATHS:
        for t in (1e-3, 0.4, 1.0):
            at = P.At(path, t)
            std = 0.7 if isinstance(kind, F.Eps) else getattr(kind, "sigma_data", None)
            given = kind.input(at)
            if getattr(kind, "sigma_data", None) is None:
                assert given == 1
            else:
                assert given**2 * (at.alpha**2 * std**2 + at.sigma**2) == pytest.approx(1, rel=1e-12)


def test_eps_where_nothing_is_left_is_refused():
    with pytest.raises(UserError, match="Eps says nothing"):
        model(P.Cosine(), F.Eps(), nn.Identity())
    model(P.CosineBetas(), F.Eps(), nn.Identity())


def test_edm_preconditioning_is_the_papers():
    sd, path = 0.7, P.Exploding(80.0)
    for sigma in (0.002, 0.1, 0.7, 3.0, 80.0):
        at, kind = P.At(path, path.time(sigma)), F.EDM(sd, scale=1.0)
        both = sigma**2 + sd**2
        assert kind.x(at) == pytest.approx((sd**2 / both, sigma * sd / both**0.5), rel=1e-12)
        assert kind.input(at) == pytest.approx(both**-0.5, rel=1e-12)
        assert kind.noise(at) == pytest.approx(math.log(sigma) / 4, rel=1e-12)
        assert kind.x(at)[1] ** -2 == pytest.approx(both / (sigma * sd) ** 2, rel=1e-12)  # λ(σ): the weight on x̂
        several = P.At(path, torch.tensor([at.t, at.t], dtype=torch.float64))
        assert kind.noise(several).tolist() == pytest.approx([math.log(sigma) / 4] * 2, rel=1e-12)
        a, b = kind.target(at)
        assert a * a * sd * sd + b * b == pytest.approx(1, rel=1e-12)  # unit variance of the target
        skip, out = kind.x(at)
        assert ((1 - skip) / out, -skip * sigma / out) == pytest.approx((a, b), rel=1e-9)


# ---- the analytic fields themselves --------------------------------------------------------------------------------


class Fixed(P.Path):
    """α = .6, σ = .8 at any time."""

    def alpha(self, t):
        return 0.6

    def sigma(self, t):
        return 0.8

    def dalpha(self, t):
        return 0.0

    def dsigma(self, t):
        return 0.0

    def time(self, ratio):
        return 0.5

    def clock(self, t):
        return t


def test_mixture_score_and_tweedie():
    field = F.Mixture(Fixed(), [[-2.0], [0.0], [3.0]], [0.5**0.5, 1.0, 0.5], [0.2, 0.5, 0.3])
    x = torch.tensor([[0.7]], dtype=torch.float64)
    assert field.score(x, 0.5).item() == pytest.approx(-0.1749943403, abs=1e-9)
    assert field.predict(x, 0.5, 1.0, 0.0).item() == pytest.approx(0.9800060370, abs=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_score_is_the_gradient_of_the_log_density(path):
    field = mixture(path)
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    label = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    for t in (1e-3, 0.2, 0.6, torch.linspace(0.05, 1, 7, dtype=torch.float64)):
        (exact,) = torch.autograd.grad(field.log_density(x, t).sum(), x)
        torch.testing.assert_close(field.score(x, t), exact, rtol=1e-8, atol=1e-10)
        (pull,) = torch.autograd.grad(field.log_label(x, t, label).sum(), x)
        conditional = field.score(x, t, {"label": label})
        torch.testing.assert_close(conditional, exact + pull, rtol=1e-7, atol=1e-8)  # Bayes


def test_conditional_point_is_the_conditional_model():
    """In any view: with a label the field is that of the component alone; a null label forgets it."""
    both, one = F.Mixture(P.VP(), [[-2.0], [1.0]], [0.5, 0.3]), F.gaussian(P.VP(), 1.0, 0.3)
    x, t = torch.randn(4, 1, dtype=torch.float64), 0.4
    label, null = torch.ones(4, dtype=torch.int64), torch.tensor([True, False, True, False])
    torch.testing.assert_close(both.velocity(x, t, {"label": label}), one.velocity(x, t))
    mixed = both.velocity(x, t, {"label": label, "null": null})
    torch.testing.assert_close(mixed, torch.where(null[:, None], both.velocity(x, t), one.velocity(x, t)))


def test_velocity_transports_the_marginals():
    """∂p/∂t + ∂(u p)/∂x = 0 on a grid, for a mixture: the sign and the clock of every view."""
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None]
    for path in (P.Linear(), P.Linear(0.05), P.VP(), P.SubVP(), P.VE(0.1, 3.0), P.Cosine()):
        field = F.Mixture(path, [[-1.0], [1.5]], [0.5, 0.3], [0.3, 0.7])
        t, h = 0.4, 1e-4
        rate = (field.log_density(x, t + h).exp() - field.log_density(x, t - h).exp()) / (2 * h)
        flux = (field.velocity(x, t)[:, 0] * field.log_density(x, t).exp()).diff() / (x[1, 0] - x[0, 0])
        assert (rate[1:] + rate[:-1]).div(2).add(flux).abs().max() < 2e-3 * rate.abs().max()


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_probability_flow_has_every_marginal(path):
    """From N(αμ, α²s² + σ²) at t = 1 the flow is x ↦ mean + std/std₁ (x − mean₁), at every time, per coordinate."""
    mean, std = torch.tensor([0.4, -1.1], dtype=f64), torch.tensor([0.5, 0.9], dtype=f64)
    field = F.gaussian(path, mean, std)
    grid = torch.linspace(1, 0.05, 201, dtype=f64)
    x = torch.randn(4, 2, dtype=f64, generator=torch.Generator().manual_seed(5)) * path.sigma(1.0)

    def law(t):
        return path.alpha(t) * mean, (path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2).sqrt()

    mean_1, std_1 = law(1.0)
    for k, (t, y) in enumerate(trajectory(field, x, grid, step=rk4)):
        if k % 40 == 0:
            mean_t, std_t = law(t)
            torch.testing.assert_close(y, mean_t + std_t / std_1 * (x - mean_1), rtol=1e-4, atol=1e-4)


def test_where_sigma_never_ends_all_is_finite_at_data():
    """t = 0 of VE and of Linear(σmin) is the law under that noise: its score is the exact one."""
    x = torch.randn(5, 2, dtype=f64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    for path in (P.VE(), P.Linear(0.01)):
        field = mixture(path)
        (exact,) = torch.autograd.grad(field.log_density(x, 0.0).sum(), x)
        torch.testing.assert_close(field.score(x, 0.0), exact, rtol=1e-8, atol=1e-10)
        assert field.velocity(x, 0.0).isfinite().all()


def test_velocity_at_data_of_vp_is_refused():
    field, x = F.gaussian(P.VP(), 0.0, 1.0), torch.ones(2, 1, dtype=f64)
    with pytest.raises(UserError, match="velocity at t = 0 on VP"):
        field.velocity(x, 0.0)
    got = field.velocity(x, torch.tensor([0.0, 0.5], dtype=f64))
    assert got[0].item() == pytest.approx(-0.05)  # α̇ x̂ = −βmin/2 x
    torch.testing.assert_close(got[1:], field.velocity(x[1:], 0.5))


def test_score_at_data_is_refused_and_protocol_holds():
    field = F.gaussian(P.Linear(), 0.0, 1.0)
    with pytest.raises(UserError, match="score at t = 0"):
        field.score(torch.zeros(1, 1), 0.0)
    assert field.score(torch.ones(2, 1), torch.tensor([0.0, 0.5])).isfinite().all()
    assert can(field, CoreField)


def test_a_senseless_deviation_is_refused():
    for make in (lambda: F.EDM(0.0), lambda: F.Eps(1.0, 0.0)):
        with pytest.raises(UserError, match="sigma_data"):
            make()


def test_exact_samples_have_the_law():
    field = F.Mixture(P.VP(), [[-2.0], [1.0]], [0.5, 0.3], [0.25, 0.75])
    x = field.sample(100_000, torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(0.25, abs=0.02)


# ---- one field on every path, in every kind ------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", PATHS, ids=name)
@pytest.mark.parametrize("given", [P.Linear(), P.VP(), P.Cosine(), P.ZeroTerminal(P.ScaledLinearBetas())], ids=name)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_a_field_is_a_field_on_every_other_path_and_in_every_kind(given, wanted, tensor):
    g = torch.Generator().manual_seed(2)
    there, exact = mixture(given), mixture(wanted)
    for t in (0.02, 0.1, 0.5, 0.93):
        if wanted.ratio(t) > given.ratio(1.0):
            continue  # beyond the noise that the field knows
        x_t = torch.randn(5, 2, dtype=f64, generator=g) * math.hypot(wanted.alpha(t), wanted.sigma(t))
        time = torch.full((5,), t, dtype=f64) if tensor else t
        for kind in (None, *KINDS):
            field = F.viewed(there, wanted, kind)
            for p, q in ((1.0, 0.0), (0.0, 1.0), (-0.3, 0.8)):
                torch.testing.assert_close(
                    field.predict(x_t, time, p, q), exact.predict(x_t, time, p, q), rtol=1e-6, atol=1e-7
                )


def test_views_of_conditions_and_ends():
    field = F.Mixture(P.VP(), [[-1.0], [2.0]], [0.4, 0.6])
    x, cond = torch.randn(4, 1, dtype=f64), {"label": torch.tensor([0, 1, 1, 0])}
    other = F.viewed(field, P.Linear(), F.V())
    exact = F.Mixture(P.Linear(), [[-1.0], [2.0]], [0.4, 0.6])
    torch.testing.assert_close(other.eps(x, 0.4, cond), exact.eps(x, 0.4, cond), rtol=1e-7, atol=1e-9)
    for t in (0.0, 1.0, torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=f64)):
        assert other.predict(x, t, -1.0, 1.0).isfinite().all()
    assert F.viewed(field).path is field.path
