"""Processes against closed forms: walks, orders of convergence, bridges, the Fokker–Planck equation, Langevin."""

from __future__ import annotations

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import gamma
from torch.distributions import LogNormal, MultivariateNormal, Normal

from morphogen import UserError
from morphogen.core import Noise
from morphogen.diffusion import path as P
from morphogen.diffusion.conditioned import (
    SchroedingerBridge,
    bridge,
    bures,
    exponential,
    monge,
    regress,
    root,
    squared_exponential,
    wiener,
)
from morphogen.diffusion.field import Mixture
from morphogen.diffusion.fokker_planck import Mesh, fokker_planck, marginals
from morphogen.diffusion.langevin import MALA, ULA, Law, mala, ula
from morphogen.diffusion.process import (
    SDE,
    Brownian,
    Forward,
    Geometric,
    OrnsteinUhlenbeck,
    Reverse,
    coefficients,
    euler_maruyama,
    exact,
    milstein,
    normals,
    paths,
    simulate,
)

f64 = torch.float64


def close(value, expected, standard_error):
    """Within 4 standard errors, each number on its own."""
    assert ((torch.as_tensor(value) - torch.as_tensor(expected)).abs() <= 4 * torch.as_tensor(standard_error)).all()


def covariance(x):
    """The covariance of the columns of x (B, T) and its standard error, for normal x of any mean."""
    c = x.T.cov()
    d = c.diagonal()
    return c, ((c.square() + d[:, None] * d) / len(x)).sqrt()


# ---- Brownian motion and its bridge --------------------------------------------------------------------------------


def test_brownian_motion_has_its_covariance_and_quadratic_variation():
    n, times = 40_000, torch.tensor([0.0, 0.1, 0.35, 0.4, 1.0, 2.5])
    w = paths(Brownian(1.5), torch.zeros(n, 1, dtype=f64), times, Noise.seeded(0, n), scheme=exact)[..., 0]
    assert w.shape == (n, 6)
    assert (w[:, 0] == 0).all()
    c, error = covariance(w[:, 1:])
    close(c, 1.5**2 * torch.minimum(times[1:, None], times[1:]), error)
    fine = torch.linspace(0, 2, 10_001)
    few = paths(Brownian(1.5), torch.zeros(3, 1, dtype=f64), fine, Noise.seeded(1, 3))[..., 0]
    close(few.diff(dim=1).square().sum(1), 1.5**2 * 2.0, 1.5**2 * 2 * math.sqrt(2 / 10_000))


def test_a_particle_hears_its_own_key_alone():
    x, times = torch.ones(5, 2, 3), torch.linspace(0, 1, 8)  # an odd number of steps
    whole = simulate(Geometric(0.1, 0.5), x, times, Noise.seeded(3, 5))
    again = simulate(Geometric(0.1, 0.5), x[:2], times, Noise.seeded(3, 2, start=3))
    assert torch.equal(whole[3:], again)
    assert not torch.equal(whole[0], whole[1])
    assert simulate(Brownian(), x[:0], times, Noise.seeded(3, 0)).shape == (0, 2, 3)
    assert torch.equal(simulate(Brownian(), x, [0.5], Noise.seeded(3, 5)), x)
    assert [z.dtype for z in normals(Noise.seeded(0, 2), 3, (1,), torch.float32)] == [torch.float32] * 3
    all_of_them = torch.cat(list(normals(Noise.seeded(0, 1000), 31, (1,), f64)), 1)  # (1000, 31), independent
    c, error = covariance(all_of_them)
    assert ((c - torch.eye(31)).abs() < 5 * error).all()


def test_the_bridge_meets_its_ends_and_has_its_covariance():
    n, times = 40_000, torch.tensor([1.0, 1.2, 1.9, 3.0])
    a, b = torch.full((n, 1), -1.0, dtype=f64), torch.full((n, 1), 2.0, dtype=f64)
    x = bridge(a, b, times, Noise.seeded(4, n), sigma=0.7)[..., 0]
    assert torch.equal(x[:, 0], a[:, 0])
    torch.testing.assert_close(x[:, -1], b[:, 0], rtol=0, atol=1e-12)
    s = (times[1:3].double() - 1) / 2
    c, error = covariance(x[:, 1:3])
    close(c, 0.7**2 * 2 * (torch.minimum(s[:, None], s) - s[:, None] * s), error)  # T min(s, t) (1 − max) = t(T − t)/T
    close(x[:, 1:3].mean(0), -1 + 3 * s, (c.diagonal() / n).sqrt())


# ---- Ornstein–Uhlenbeck and geometric ------------------------------------------------------------------------------


def test_ornstein_uhlenbeck_transition():
    mean, variance = OrnsteinUhlenbeck(1.5, 0.8).transition(torch.tensor(2.0, dtype=f64), 0.7)
    assert mean.item() == pytest.approx(0.6998754982, abs=1e-10)
    assert variance == pytest.approx(0.1872092953, abs=1e-10)
    n = 100_000
    process, start = OrnsteinUhlenbeck(0.9, 0.6, mean=-1.0), torch.full((n, 1), 1.5)
    for times in ([0.0, 2.0], [0.0, 0.3, 0.5, 2.0]):  # any steps make one law
        x = simulate(process, start, times, Noise.seeded(5, n), scheme=exact)
        mean, variance = process.transition(start[0], 2.0)
        close(x.mean(), mean, math.sqrt(variance / n))
        close(x.var(), variance, variance * math.sqrt(2 / n))
    steps = simulate(process, start, torch.linspace(0, 2, 201), Noise.seeded(5, n))
    assert steps.var().item() == pytest.approx(variance, rel=0.03)


def test_exact_steps_agree_with_the_smallest_steps():
    """Itô and not Stratonovich: the path of the closed form is the limit of the steps with the same increments."""
    for process in (Geometric(0.3, 0.7), OrnsteinUhlenbeck(1.1, 0.4, 0.5)):
        x, total = torch.full((64, 1), 1.3, dtype=f64), torch.zeros(64, 1, dtype=f64)
        for i, n in enumerate(normals(Noise.seeded(6, 64), 1024, (1,), f64)):
            dw = n / 32
            x, total = milstein(process, x, i / 1024, (i + 1) / 1024, dw), total + dw
        if isinstance(process, Geometric):  # its end is a function of w_1 alone
            torch.testing.assert_close(x, exact(process, torch.full_like(x, 1.3), 0, 1, total), rtol=1e-2, atol=0)
        else:
            assert x.mean().item() == pytest.approx(process.transition(torch.tensor(1.3), 1.0)[0].item(), abs=0.25)


# ---- orders of convergence -----------------------------------------------------------------------------------------

SINH = SDE(lambda x, t: x / 2 + (1 + x * x).sqrt(), lambda x, t: (1 + x * x).sqrt())  # x = sinh(t + w + asinh x_0)


def slope(errors):
    """The order: minus the slope of log₂ error over the exponents 4 … 9."""
    k = torch.arange(4.0, 10.0)
    y = torch.tensor(errors).log2()
    return -((k - k.mean()) * (y - y.mean())).sum().item() / (k - k.mean()).square().sum().item()


@pytest.mark.parametrize(("scheme", "order"), [(euler_maruyama, 0.5), (milstein, 1.0)])
@pytest.mark.parametrize("name", ["geometric", "sinh"])
def test_strong_order(scheme, order, name):
    n, errors = 4000, []
    process = Geometric(0.4, 0.8) if name == "geometric" else SINH
    fine = Noise.seeded(7, n).normal(512, 2, dtype=f64) / math.sqrt(512)
    x0 = torch.tensor([[0.7, 1.2]], dtype=f64).expand(n, 2)
    w = fine.sum(1)
    truth = exact(process, x0, 0.0, 1.0, w) if name == "geometric" else (1 + w + x0.asinh()).sinh()
    for k in range(4, 10):
        x = x0
        for i, dw in enumerate(fine.unflatten(1, (2**k, -1)).sum(2).unbind(1)):
            x = scheme(process, x, i / 2**k, (i + 1) / 2**k, dw)
        errors.append((x - truth).abs().mean().item())
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("scheme", [euler_maruyama, milstein])
def test_weak_order(scheme):
    """The factor of a step is independent of x, so that moments of x_1 are powers of moments of one step: no noise."""
    mu, sigma = 0.6, 0.5
    nodes, weights = (torch.from_numpy(a) for a in hermegauss(20))
    weights = weights / weights.sum()
    for power in (1, 2, 3):
        errors = []
        for k in range(4, 10):
            h = 2.0**-k
            factor = scheme(Geometric(mu, sigma), torch.ones(20, dtype=f64), 0.0, h, nodes * math.sqrt(h))
            moment = (weights * factor**power).sum().item() ** (2**k)
            errors.append(abs(moment - math.exp(power * mu + power * (power - 1) / 2 * sigma**2)))
        assert slope(errors) == pytest.approx(1, abs=0.15)


# ---- the process of a path, and back -------------------------------------------------------------------------------

PATHS = [P.Linear(), P.Cosine(), P.VP(), P.Exploding(5.0), P.LinearBetas()]
named = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


@named
def test_the_coefficients_make_the_path(path):
    """dα/dt = (α̇/α) α and dσ²/dt = 2 (α̇/α) σ² + g², by differences of the path itself."""
    for t in (0.0505, 0.3125, 0.7705, 0.9435):  # the middle of a chain's steps
        fade, g2 = coefficients(path, t)
        h = 1e-6
        dalpha = (path.alpha(t + h) - path.alpha(t - h)) / (2 * h)
        dvar = (path.sigma(t + h) ** 2 - path.sigma(t - h) ** 2) / (2 * h)
        assert fade * path.alpha(t) == pytest.approx(dalpha, rel=1e-5, abs=1e-6)
        assert 2 * fade * path.sigma(t) ** 2 + g2 == pytest.approx(dvar, rel=1e-5)
    if isinstance(path, P.VP):
        assert coefficients(path, 0.0) == pytest.approx((-0.05, 0.1))  # −β/2 and β, though σ̇ is infinite
        assert coefficients(path, 0.3)[1] == pytest.approx(path.beta(0.3))


def test_the_forward_process_has_the_marginals_of_the_path():
    n, path = 20_000, P.VP()
    x0 = 0.5 * Noise.seeded(8, n).normal(1) + 2
    x = simulate(Forward(path), x0, torch.linspace(0, 0.6, 301), Noise.seeded(9, n))
    assert x.mean().item() == pytest.approx(2 * path.alpha(0.6), abs=0.02)
    assert x.var().item() == pytest.approx(0.25 * path.alpha(0.6) ** 2 + path.sigma(0.6) ** 2, rel=0.04)


@pytest.mark.parametrize("path", [P.VP(), P.Linear(), P.Exploding(5.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("churn", [0.0, 0.4, 1.0, 1.5])
def test_every_churn_has_the_same_marginals(path, churn):
    """Particles from t = 0.95 to 0.05 against the exact density: mean, variance, and the share of each mode."""
    field = Mixture(path, [[-1.5], [1.0]], [0.4, 0.2], [0.3, 0.7])
    n = 20_000
    k = (Noise.seeded(10, n).uniform(1, dtype=f64) < 0.7).long()[:, 0]
    data = field.means[k] + field.stds[k] * Noise.seeded(11, n).normal(1, dtype=f64)
    alpha, sigma = path.alpha(0.95), path.sigma(0.95)
    x = alpha * data + sigma * Noise.seeded(12, n).normal(1, dtype=f64)
    ratio = torch.logspace(math.log10(path.ratio(0.95)), math.log10(path.ratio(0.05)), 401, dtype=f64)
    x = simulate(Reverse(field, churn), x, path.time(ratio), Noise.seeded(13, n))
    grid = Mesh((-4.0,), (4.0,), (8000,))
    p = field.log_density(grid.points, 0.05).exp() * grid.volume
    mean = (p * grid.points[:, 0]).sum()
    var = (p * (grid.points[:, 0] - mean).square()).sum()
    right = p[grid.points[:, 0] > 0].sum()
    close(x.mean(), mean, (var / n).sqrt() + 0.003)  # and what 400 steps leave
    assert x.var().item() == pytest.approx(var.item(), rel=0.03)
    close((x > 0).double().mean(), right, (right * (1 - right) / n).sqrt() + 0.002)


def test_conditions_reach_the_field():
    field = Mixture(P.VP(), [[-1.5], [1.0]], [0.1, 0.1])
    cond = {"label": torch.tensor([0, 1, 1, 0])}
    x = simulate(Reverse(field, 1.0, cond), torch.zeros(4, 1), torch.linspace(1, 0, 101), Noise.seeded(0, 4))
    assert (x.sign()[:, 0] == torch.tensor([-1, 1, 1, -1])).all()


def test_mistakes_of_walks():
    x, noise = torch.zeros(2, 1), Noise.seeded(0, 2)
    with pytest.raises(UserError, match="theta 0"):
        OrnsteinUhlenbeck(0.0)
    with pytest.raises(UserError, match="no closed form"):
        simulate(SINH, x, [0, 1], noise, scheme=exact)
    with pytest.raises(UserError, match="cannot go back"):
        simulate(Brownian(), x, [1, 0], noise, scheme=exact)
    with pytest.raises(UserError, match="no times"):
        simulate(Brownian(), x, [], noise)
    with pytest.raises(UserError, match="2 keys for 3 particles"):
        simulate(Brownian(), torch.zeros(3, 1), [0, 1], noise)
    with pytest.raises(UserError, match="nothing is left"):
        simulate(Reverse(Mixture(P.Linear(), [[0.0]], [1.0])), x, [1, 0], noise)
    with pytest.raises(UserError, match="times that rise"):
        bridge(x, x, [0, 1, 1], noise)
    with pytest.raises(UserError, match="singular"):
        regress(wiener, torch.ones(2, 1), torch.ones(2), x)
    with pytest.raises(UserError, match="singular"):
        SchroedingerBridge(torch.zeros(2), torch.ones(2, 2), torch.zeros(2), torch.eye(2))


# ---- Gaussian processes --------------------------------------------------------------------------------------------


def test_regression_is_conditioning():
    """Against the conditional law of a joint Gaussian, got from its precision matrix."""
    g = torch.Generator().manual_seed(0)
    for n, m, d in ((1, 1, 1), (5, 3, 2), (12, 7, 3)):
        x, at = torch.randn(n, d, generator=g, dtype=f64), torch.randn(m, d, generator=g, dtype=f64)
        y = torch.randn(n, generator=g, dtype=f64)
        noise, every = 0.3, torch.cat((x, at))
        joint = squared_exponential(every, every, 0.8, 1.7)
        joint += torch.diag(torch.cat((torch.full((n,), noise), torch.full((m,), 1e-10)))).double()
        precision = torch.linalg.inv(joint)
        cov = torch.linalg.inv(precision[n:, n:])
        found = regress(lambda a, b: squared_exponential(a, b, 0.8, 1.7), x, y, at, noise=noise)
        torch.testing.assert_close(found.mean, -cov @ precision[n:, :n] @ y, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.cov, cov, rtol=1e-6, atol=1e-6)
        logp = MultivariateNormal(torch.zeros(n, dtype=f64), joint[:n, :n]).log_prob(y)
        torch.testing.assert_close(found.logp, logp)


def test_a_bridge_is_a_regression_on_its_end_and_ornstein_uhlenbeck_one_on_its_past():
    t = torch.tensor([[0.2], [0.5], [1.4]], dtype=f64)
    found = regress(wiener, torch.tensor([[2.0]], dtype=f64), torch.tensor([3.0], dtype=f64), t)
    torch.testing.assert_close(found.mean, t[:, 0] * 1.5)
    torch.testing.assert_close(found.cov, torch.minimum(t, t.T) - t * t.T / 2)
    process, past = OrnsteinUhlenbeck(1.5, 0.8), torch.tensor([[-2.0], [0.0]], dtype=f64)  # what is longer ago is moot
    found = regress(lambda a, b: exponential(a, b, 1.5, 0.8), past, torch.tensor([9.0, 2.0], dtype=f64), t[:1])
    mean, variance = process.transition(torch.tensor([2.0], dtype=f64), 0.2)
    torch.testing.assert_close(found.mean, mean)
    assert found.cov.item() == pytest.approx(variance)


# ---- Schrödinger's bridge ------------------------------------------------------------------------------------------


def random_covariance(d, seed, scale=1.0):
    a = torch.randn(d, d + 2, generator=torch.Generator().manual_seed(seed), dtype=f64)
    return scale * a @ a.T / d


def some_bridge(d, eps, seed=0):
    m = torch.randn(2, d, generator=torch.Generator().manual_seed(seed + 9), dtype=f64)
    return SchroedingerBridge(m[0], random_covariance(d, seed), m[1], random_covariance(d, seed + 1), eps)


@pytest.mark.parametrize(("d", "eps"), [(1, 1.0), (2, 0.3), (3, 1.7)])
def test_the_plan_is_optimal_and_the_drift_carries_it(d, eps):
    b = some_bridge(d, eps)
    C = b.plan.clone().requires_grad_()  # KL(plan | reference) up to constants: −tr C/ε² − ½ log det Cov(x_1 | x_0)
    cost = -C.trace() / eps**2 - 0.5 * torch.logdet(b.cov1 - C.T @ torch.linalg.inv(b.cov0) @ C)
    (gradient,) = torch.autograd.grad(cost, C)
    assert gradient.abs().max() < 1e-9
    for t, m, cov in ((0.0, b.mean0, b.cov0), (1.0, b.mean1, b.cov1)):
        torch.testing.assert_close(b.marginal(t)[0], m)
        torch.testing.assert_close(b.marginal(t)[1], cov)
    for t in (0.1, 0.5, 0.83):
        h = 1e-5
        change = (b.marginal(t + h)[1] - b.marginal(t - h)[1]) / (2 * h)
        flow = b.slope(t) @ b.marginal(t)[1]
        torch.testing.assert_close(flow + flow.T + eps**2 * torch.eye(d), change, rtol=1e-7, atol=1e-7)


def test_the_schroedinger_bridge_arrives():
    b, n = some_bridge(2, 0.8, seed=4), 20_000
    x = b.mean0 + Noise.seeded(14, n).normal(2, dtype=f64) @ root(b.cov0)
    y = simulate(b, x, torch.linspace(0, 1, 201), Noise.seeded(15, n))
    both = torch.cat((x, y), 1).T.cov()
    torch.testing.assert_close(both[2:, 2:], b.cov1, rtol=0.05, atol=0.05)
    torch.testing.assert_close(both[:2, 2:], b.plan, rtol=0.05, atol=0.05)
    torch.testing.assert_close(y.mean(0), b.mean1, rtol=0, atol=0.05)


def test_the_limits_of_the_bridge():
    """No noise: Monge's map, whose cost is Bures' distance. No width: the Brownian bridge (Doob's drift)."""
    b = some_bridge(3, 1e-4, seed=7)
    A = monge(b.cov0, b.cov1)
    torch.testing.assert_close(A, A.T)
    torch.testing.assert_close(A @ b.cov0 @ A, b.cov1)
    assert torch.linalg.eigvalsh(A).min() > 0  # a gradient of a convex function: optimal
    torch.testing.assert_close(b.plan, b.cov0 @ A, rtol=1e-6, atol=1e-6)
    cost = (b.cov0 + b.cov1 - 2 * b.plan).trace()
    torch.testing.assert_close(cost, bures(b.cov0, b.cov1), rtol=1e-6, atol=1e-6)
    assert bures(b.cov0, b.cov0).abs() < 1e-9
    assert bures(torch.tensor([[4.0]]), torch.tensor([[0.25]])).item() == pytest.approx(1.5**2)
    tiny = 1e-10 * torch.eye(1, dtype=f64)
    thin = SchroedingerBridge(torch.zeros(1), tiny, torch.full((1,), 2.0), tiny, 0.7)
    x = torch.tensor([[0.4]], dtype=f64)
    assert thin.drift(x, 0.3).item() == pytest.approx((2 - 0.4) / 0.7, rel=1e-6)


# ---- the Fokker–Planck equation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [(2,), (7,), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize("h", [1e-3, 1.0, 300.0])
def test_a_step_is_the_exponential_of_its_rates(cells, h):
    """Against the matrix exponential of the chain's generator, written out by its neighbours."""
    g = torch.Generator().manual_seed(len(cells))
    low, high = (0.0,) * len(cells), tuple(float(n) for n in cells)
    a = torch.randn(len(cells), generator=g, dtype=f64)
    sde, mesh = SDE(lambda x, t: a * x.sin() + x.sum(1, keepdim=True).cos(), lambda x, t: 0.9), Mesh(low, high, cells)
    n = len(mesh.points)
    A = torch.zeros(n, n, dtype=f64)
    for k in range(len(cells)):
        for i in range(n):
            for j in range(n):
                if (mesh.points[j] - mesh.points[i] - torch.eye(len(cells))[k]).abs().max() < 1e-9:
                    face = (mesh.points[i] + mesh.points[j])[None] / 2
                    w, D = sde.drift(face, 0.0)[0, k].item() / 0.405, 0.405
                    A[j, i], A[i, j] = D * -w / math.expm1(-w), D * w / math.expm1(w)
    A -= torch.diag(A.sum(0))
    p = mesh.normalised(torch.rand(cells, generator=g, dtype=f64))
    found = fokker_planck(sde, p, mesh, [0.0, h])
    torch.testing.assert_close(found.flatten(), torch.linalg.matrix_exp(h * A) @ p.flatten(), rtol=1e-9, atol=1e-12)


def test_ornstein_uhlenbeck_on_a_grid():
    """From one point, in one step: L1 to the exact density at most 1e-3 with cells of 0.01."""
    process = OrnsteinUhlenbeck(1.5, 0.8)
    mesh = Mesh((-3.005,), (3.995,), (700,))
    p = fokker_planck(process, mesh.at(2.0), mesh, [0.0, 0.7])
    mean, var = process.transition(torch.tensor(2.0, dtype=f64), 0.7)
    truth = Normal(mean, math.sqrt(var)).log_prob(mesh.points[:, 0]).exp()
    assert mesh.volume == pytest.approx(0.01)
    assert (p - truth).abs().sum() * mesh.volume <= 1e-3
    assert abs(mesh.mass(p) - 1) < 1e-12
    assert (p >= 0).all()


def test_second_order_in_space_and_in_time():
    """In time: a pull to a place that moves, m(t) = 3t², whose mean is known."""
    theta, sigma = 1.5, 0.8
    moving = SDE(lambda x, t: theta * (3 * t * t - x), lambda x, t: sigma)
    law = lambda x, m, v: (-((x - m) ** 2) / (2 * v)).exp()  # noqa: E731
    found = {}
    for cells, steps in ((80, 64), (160, 64), (640, 2), (640, 4)):
        mesh = Mesh((-4.0,), (4.0,), (cells,))
        x = mesh.points[:, 0]
        var = 0.3**2 * math.exp(-2 * theta) + sigma**2 * (1 - math.exp(-2 * theta)) / (2 * theta)
        mean = 3 * (1 - 2 / theta + 2 / theta**2) + math.exp(-theta) * (1 - 6 / theta**2)
        p = mesh.normalised(law(x, 1.0, 0.3**2))
        p = fokker_planck(moving, p, mesh, torch.linspace(0, 1, steps + 1, dtype=f64))
        found[cells, steps] = ((p - mesh.normalised(law(x, mean, var))).abs().sum() * mesh.volume).item()
    assert found[80, 64] / found[160, 64] == pytest.approx(4, abs=0.5)
    assert found[640, 2] / found[640, 4] == pytest.approx(4, abs=0.5)


def test_the_stationary_law_stays():
    """That of a quadratic potential in every bit that counts; that of any other, with noise that varies, to dx²."""
    mesh = Mesh((-2.0,), (3.0,), (150,))
    x = mesh.points[:, 0]
    p = mesh.normalised((-((x - 0.4) ** 2) * 1.2 / 0.6**2).exp())
    moved = fokker_planck(OrnsteinUhlenbeck(1.2, 0.6, mean=0.4), p, mesh, [0, 1e-3, 1.0])
    torch.testing.assert_close(moved, p, rtol=1e-11, atol=1e-300)
    sde = SDE(  # f = D′ − D U′: the law is e^−U
        lambda x, t: 0.1 * x.cos() - (0.2 + 0.1 * x.sin()) * (4 * x**3 - 3 * x),
        lambda x, t: (2 * (0.2 + 0.1 * x.sin())).sqrt(),
    )

    def error(cells):
        mesh = Mesh((-2.0,), (2.0,), (cells,))
        truth = mesh.normalised((1.5 * mesh.points**2 - mesh.points**4).exp())
        end = fokker_planck(sde, truth, mesh, [0.0, 60.0])
        return ((end - truth).abs().sum() * mesh.volume).item()

    coarse, fine = error(50), error(100)
    assert 1e-5 < fine < 2e-3
    assert coarse / fine == pytest.approx(4, abs=0.5)


def test_noise_that_varies_is_itos():
    """The log-normal law of geometric Brownian motion; Stratonovich's would have another mean."""
    process, mesh = Geometric(0.3, 0.4), Mesh((0.0,), (6.0,), (400,))
    x = mesh.points[:, 0]
    p = mesh.normalised(LogNormal(0.0, 0.2).log_prob(x).exp())
    p = fokker_planck(process, p, mesh, [0.0, 1.0])
    truth = LogNormal(0.3 - 0.08, math.sqrt(0.04 + 0.16)).log_prob(x).exp()
    assert (p - truth).abs().sum() * mesh.volume < 4e-3


def test_nothing_is_lost_and_nothing_falls_below_zero():
    """Wild drifts, no noise at places, any step: mass to 1e-12, every density at least 0."""
    g = torch.Generator().manual_seed(1)
    for seed in range(8):
        a, b, c = (10 * torch.randn(3, 2, generator=g, dtype=f64)).unbind(0)
        sde = SDE(
            lambda x, t, a=a, b=b: a * (b * x + t).sin() * 20,
            lambda x, t, c=c: (c * x).sin().clamp(min=0) * 3,
        )
        mesh = Mesh((-1.0, 0.0), (2.0, 1.0), (23, 2 + seed))
        p = mesh.normalised(torch.rand(mesh.cells, generator=g, dtype=f64) ** 8)
        for _, p in marginals(sde, p, mesh, [0.0, 1e-6, 1e-3, 0.03, 0.3]):  # noqa: B020
            assert p.min() >= 0
            assert abs(mesh.mass(p) - 1) < 1e-12


def test_two_dimensions_with_a_current():
    """A rotating pull has no potential: the mean turns by e^{−θt} R(ωt) and the covariance stays a circle."""
    omega, theta = 2.0, 0.7
    A = torch.tensor([[-theta, -omega], [omega, -theta]], dtype=f64)
    sde = SDE(lambda x, t: x @ A.T.to(x), lambda x, t: 0.6)
    mesh = Mesh((-3.0, -2.75), (3.0, 2.75), (120, 110))
    start = torch.tensor([1.2, 0.0], dtype=f64)

    def law(mean, var):
        return mesh.normalised((-(mesh.points - mean).square().sum(1) / (2 * var)).exp())

    p = fokker_planck(sde, law(start, 0.1), mesh, [0.0, 0.8])
    mean = torch.linalg.matrix_exp(0.8 * A) @ start
    var = 0.1 * math.exp(-2 * theta * 0.8) + 0.36 * (1 - math.exp(-2 * theta * 0.8)) / (2 * theta)
    assert (p - law(mean, var)).abs().sum() * mesh.volume < 1e-2
    assert abs(mesh.mass(p) - 1) < 1e-12
    n = 100_000
    x = start + math.sqrt(0.1) * Noise.seeded(16, n).normal(2, dtype=f64)
    x = simulate(sde, x, torch.linspace(0, 0.8, 201), Noise.seeded(17, n))
    coarse = Mesh(mesh.low, mesh.high, (12, 11))
    shares = p.reshape(12, 10, 11, 10).sum((1, 3)) * mesh.volume
    assert_same_law(coarse.histogram(x) * coarse.volume, shares, n, more=0.01)


def assert_same_law(found, shares, n, more=0.0):
    """The L1 distance of a histogram to the law that it was drawn from: its mean and four of its deviations."""
    mean = (2 * shares * (1 - shares) / (math.pi * n)).sqrt().sum()
    assert (found - shares).abs().sum() < mean + 4 * math.sqrt((1 - 2 / math.pi) / n) + more


@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_a_diffusion_model_on_a_grid_against_its_particles(churn):
    """The reverse equation of a mixture, as a density and as particles; the truth is the mixture itself."""
    path = P.VP()
    field = Mixture(path, [[-1.0], [0.8]], [0.3, 0.15], [0.4, 0.6])
    mesh = Mesh((-5.0,), (5.0,), (400,))
    ratio = torch.logspace(math.log10(path.ratio(1.0)), math.log10(path.ratio(0.02)), 201, dtype=f64)
    times = path.time(ratio)
    p0 = mesh.normalised(field.log_density(mesh.points, 1.0).exp())
    p = fokker_planck(Reverse(field, churn), p0, mesh, times)
    truth = mesh.normalised(field.log_density(mesh.points, 0.02).exp())
    assert (p - truth).abs().sum() * mesh.volume < (0.002 if churn else 0.05)  # without noise the flux is upwind
    assert ((p - truth).cumsum(0) * mesh.volume).abs().sum() * mesh.volume < (0.001 if churn else 0.02)  # W1
    n = 50_000
    x = path.alpha(1.0) * field.sample(n, torch.Generator().manual_seed(0))
    x = x + path.sigma(1.0) * Noise.seeded(18, n).normal(1, dtype=f64)
    x = simulate(Reverse(field, churn), x, times, Noise.seeded(19, n))
    shares = truth.reshape(50, 8).sum(1) * mesh.volume
    assert_same_law(Mesh((-5.0,), (5.0,), (50,)).histogram(x) * 0.2, shares, n, more=0.01)


def test_mistakes_of_meshes():
    mesh = Mesh((0.0,), (1.0,), (10,))
    with pytest.raises(UserError, match="no box"):
        Mesh((0.0,), (0.0,), (3,))
    with pytest.raises(UserError, match="no faces"):
        Mesh((0.0,), (1.0,), (1,))
    with pytest.raises(UserError, match="outside the mesh"):
        mesh.at(1.5)
    with pytest.raises(UserError, match="float64"):
        fokker_planck(Brownian(), torch.ones(10), mesh, [0, 1])
    with pytest.raises(UserError, match="mesh's shape"):
        fokker_planck(Brownian(), torch.ones(11, dtype=f64), mesh, [0, 1])
    with pytest.raises(UserError, match="nowhere negative"):
        fokker_planck(Brownian(), -torch.ones(10, dtype=f64), mesh, [0, 1])
    with pytest.raises(UserError, match="no times"):
        fokker_planck(Brownian(), mesh.at(0.5), mesh, [])
    with pytest.raises(UserError, match="not finite"):
        fokker_planck(SDE(lambda x, t: 1 / (x - 0.5), lambda x, t: 1.0), mesh.at(0.5), mesh, [0, 1])
    x = torch.tensor([[0.0], [0.099], [0.95], [1.0], [-0.01]])
    assert (mesh.histogram(x) * 0.1).tolist() == pytest.approx([0.4, *[0] * 8, 0.2])


# ---- Langevin ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.1, 0.5, 1.0])
def test_ula_has_a_variance_of_its_own_and_mala_none(step):
    n = 200_000
    x = ula(lambda x: -x, torch.zeros(n, 1), step, 60, Noise.seeded(20, n))
    assert x.var().item() == pytest.approx(1 / (1 - step / 2), rel=0.02)
    y = mala(lambda x: -0.5 * x.square().sum(1), torch.zeros(n, 1), step, 60, Noise.seeded(21, n)).x
    assert y.var().item() == pytest.approx(1, rel=0.02)


def test_ula_is_its_affine_recursion():
    """On N(m, s²) each step maps mean and variance: for a few steps, from any start."""
    n, m, s, step = 200_000, 1.5, 0.7, 0.2
    mean, var = -2.0, 4.0
    x = mean + math.sqrt(var) * Noise.seeded(22, n).normal(1, dtype=f64)
    for k in (1, 2, 4):
        x = ula(lambda x: (m - x) / s**2, x, step, k, Noise.seeded(23 + k, n))
        for _ in range(k):
            a = 1 - step / s**2
            mean, var = m + a * (mean - m), a * a * var + 2 * step
        close(x.mean(), mean, math.sqrt(var / n))
        close(x.var(), var, var * math.sqrt(2 / n))


def test_mala_has_the_law_itself():
    """Of e^{−x⁴/4} in 3 coordinates, and of an exponential law with its wall at 0; with proposals turned down."""
    n = 20_000
    chain = mala(lambda x: -x.pow(4).flatten(1).sum(1) / 4, torch.zeros(n, 1, 3), 0.4, 60, Noise.seeded(24, n))
    second = 2 * gamma(0.75) / gamma(0.25)
    assert 0.5 < chain.taken.mean() < 0.99
    close(chain.x.square().mean(), second, math.sqrt((1 - second**2) / (3 * n)))  # E x⁴ = 1
    wall = mala(lambda x: torch.where(x > 0, -x, -math.inf).sum(1), torch.ones(n, 1), 0.3, 100, Noise.seeded(25, n))
    assert (wall.x > 0).all()
    close(wall.x.mean(), 1.0, 1 / math.sqrt(n))
    assert mala(lambda x: -x.sum(1), torch.ones(2, 1), 0.1, 0, Noise.seeded(0, 2)).taken.tolist() == [0, 0]


def test_samplers_of_models():
    law = Law(lambda x: -x)
    x = ULA(0.1, 3)(law, torch.ones(4, 2), Noise.seeded(0, 4))
    assert torch.equal(x, ula(lambda x: -x, torch.ones(4, 2), 0.1, 3, Noise.seeded(0, 4)))
    with pytest.raises(UserError, match="use ULA"):
        MALA(0.1, 3)(law, torch.ones(4, 2), Noise.seeded(0, 4))
    with pytest.raises(UserError, match="goes nowhere"):
        ULA(0.0, 3)
