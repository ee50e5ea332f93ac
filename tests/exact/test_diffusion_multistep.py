"""Exponential and multistep solvers: quadrature, local order, both ends of λ, memory that stays in its walk."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from morphogen import UserError
from morphogen.core import Noise
from morphogen.diffusion import dpm
from morphogen.diffusion import field as F
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion import weight as W
from morphogen.diffusion.diffusion import Diffusion, Sampler
from morphogen.diffusion.dpm import DPMMultistep, DPMSinglestep, UniPC, bh1, bh2
from morphogen.diffusion.field import Mixture, gaussian
from morphogen.diffusion.multistep import LMS, Multistep, weights
from morphogen.diffusion.solvers import SOLVERS
from morphogen.spec import build, spec
from tests.exact import solver_checks as check

f64 = torch.float64
MULTISTEP = {name: step for name, step in SOLVERS.items() if isinstance(step, Multistep)}
OURS = {name: step for name, step in SOLVERS.items() if name.startswith(("dpm", "lms", "unipc"))}
PATHS = [P.Linear(), P.Cosine(), P.VP(), P.Exploding(), P.LinearBetas(), P.ZeroTerminal(P.ScaledLinearBetas())]
KINDS = [F.X(), F.Eps(), F.V(), F.Velocity(), F.EDM(0.5)]


def name(thing):
    return type(thing).__name__


def two(path):
    return Mixture(path, [[-1.0, 0.5], [1.0, 0.2]], [0.5, 0.4], [0.4, 0.6])


def noise_at(field, n=5, seed=0):
    z = torch.randn(n, 2, dtype=f64, generator=torch.Generator().manual_seed(seed))
    return z * field.path.sigma(1.0)


# ---- quadrature ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "H", [-20.0, -1.3, -1.0, -0.2, -1e-5, 1e-12, 1e-6, 1e-3, 0.07, 0.9, 1.0, 1.1, 4.0, 30.0, 700.0]
)
def test_moments_of_the_exponential_kernel(H):
    for n in (1, 2, 3, 4):
        found = dpm.moments(H, n)
        for i, m in enumerate(found):
            # substituted so that the kernel's mass is not missed: v = 1 − u
            exact = quad(lambda v, i=i: H * math.exp(-H * v) * (1 - v) ** i, 0, 1, points=[min(1 / abs(H), 0.5)])[0]
            assert m == pytest.approx(exact, rel=1e-9 if H < 100 else 1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_weights_integrate_polynomials(n):
    g = torch.Generator().manual_seed(n)
    nodes = torch.randn(n, generator=g, dtype=f64).tolist()
    coefficients = torch.randn(n, generator=g, dtype=f64).tolist()
    moments = [1 / (i + 1) for i in range(5)]

    def p(u):
        return sum(c * u**i for i, c in enumerate(coefficients))

    exact = sum(c * m for c, m in zip(coefficients, moments, strict=False))
    assert sum(w * p(u) for w, u in zip(weights(nodes, moments), nodes, strict=True)) == pytest.approx(exact, rel=1e-8)


# ---- orders --------------------------------------------------------------------------------------------------------


def in_log_snr(u):
    return math.exp(-0.2 - u)


def in_ratio(u):
    return 0.8 * (1 - u)


@pytest.mark.parametrize(
    ("step", "axis"),
    [*((DPMMultistep(p), in_log_snr) for p in (1, 2, 3)), *((LMS(p), in_ratio) for p in (1, 2, 3, 4))],
    ids=lambda v: f"{name(v)}-{v.order}" if isinstance(v, S.Step) else "",
)
def test_local_order_with_an_exact_past(step, axis):
    """Uneven steps; what the first steps of a walk cost is left out."""
    one, other = (check.local_error(step, size, axis) for size in (0.05, 0.025))
    assert math.log2(one / other) == pytest.approx(step.order + 1, abs=0.15)


def test_half_a_second_difference_is_of_order_2(monkeypatch):
    """What published code does for order 3 (`tests/parity` holds that it is this)."""
    check.check_order(SOLVERS["dpmpp-3m"], 3, 1, "VP", (128, 256))
    whole = check.errors(SOLVERS["dpmpp-3m"], "VP", (256,))[0][0]
    monkeypatch.setattr(dpm, "guess", half_guess)
    check.check_order(SOLVERS["dpmpp-3m"], 2, 1, "VP", (128, 256))
    assert check.errors(SOLVERS["dpmpp-3m"], "VP", (256,))[0][0] > 10 * whole


def half_guess(nodes, H, whole=dpm.guess):
    if len(nodes) < 3:
        return whole(nodes, H)
    m = dpm.moments(H, 3)
    return weights(nodes, [m[0], m[1], m[2] / 2])


def test_lms_measured_order():
    check.check_order(SOLVERS["lms"], 4, 1, "VP", (256, 512), 0.2)
    check.check_order(LMS(1), 1, 1, "Linear", (128, 256))


@pytest.mark.parametrize("b", [bh1, bh2])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_of_one_more_order(order, b):
    check.check_order(UniPC(order, b), order + 1, 1, "VP", (128, 256))


# ---- what they are equal to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_order_1_is_ddim(path):
    field, times = two(path), G.Uniform(0.999)(path, 9)
    z, n = noise_at(field), [Noise.seeded(3, 5) for _ in range(5)]
    ddim = S.solve(field, z, times, step=S.DDIM())
    torch.testing.assert_close(S.solve(field, z, times, step=DPMMultistep(1)), ddim, rtol=1e-9, atol=1e-9)
    noisy = S.solve(field, z, times, step=S.DDIM(1.0), noise=n[0])
    torch.testing.assert_close(
        S.solve(field, z, times, step=DPMMultistep(1, 1.0), noise=n[1]), noisy, rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(S.solve(field, z, times, step=S.Ancestral(), noise=n[2]), noisy, rtol=1e-8, atol=1e-8)


def test_order_1_in_sigma_is_euler_and_dpm_2_is_its_midpoint():
    field = two(P.Exploding())
    times = G.Karras()(field.path, 12)
    z = noise_at(field)
    torch.testing.assert_close(S.solve(field, z, times, step=LMS(1)), S.solve(field, z, times, step=S.euler))
    t, s = times[3].item(), times[4].item()
    half = math.sqrt(t * s)
    middle = z + (half - t) * field.velocity(z, t)
    torch.testing.assert_close(SOLVERS["dpm-2"](field, z, t, s), z + (s - t) * field.velocity(middle, half))


def test_one_step_alone_is_the_first_of_a_walk():
    field = two(P.VP())
    z = noise_at(field)
    for step in MULTISTEP.values():
        alone = step(field, z, 0.9, 0.7, {}, Noise.seeded(1, 5))
        torch.testing.assert_close(S.solve(field, z, [0.9, 0.7], step=step, noise=Noise.seeded(1, 5)), alone)


@pytest.mark.parametrize("solver", MULTISTEP)
def test_walks_share_nothing(solver):
    field, other = two(P.VP()), gaussian(P.VP(), [3.0, -2.0], 0.1)
    times, z = [0.9, 0.7, 0.5, 0.2, 0.1], noise_at(field)
    first = S.solve(field, z, times, step=SOLVERS[solver], noise=Noise.seeded(1, 5))
    one = S.trajectory(field, z, times, step=SOLVERS[solver], noise=Noise.seeded(1, 5))
    two_ = S.trajectory(other, z, times, step=SOLVERS[solver], noise=Noise.seeded(2, 5))
    *_, ((_, x), _) = zip(one, two_, strict=True)
    assert torch.equal(x, first)


@pytest.mark.parametrize("solver", OURS)
def test_a_time_given_twice_changes_nothing(solver):
    field = two(P.Linear())
    z, noises = noise_at(field), (Noise.seeded(1, 5) for _ in range(2))
    times = [0.95, 0.7, 0.4, 0.2, 0.1]
    if "sde" in solver:
        return  # its draws are counted by steps
    once, twice = (
        S.solve(field, z, grid, step=SOLVERS[solver], noise=n)
        for grid, n in zip((times, [0.95, 0.7, 0.7, 0.4, 0.4, 0.4, 0.2, 0.1, 0.1]), noises, strict=True)
    )
    torch.testing.assert_close(twice, once, rtol=1e-9, atol=1e-9)


# ---- the ends ------------------------------------------------------------------------------------------------------


class Exact(nn.Module):
    """F* of a known field in a parametrisation, at the time that it is told."""

    def __init__(self, field, kind):
        super().__init__()
        self.field, self.kind, self.t = field, kind, 0.0

    def forward(self, given, cond):
        at = P.At(self.field.path, self.t)
        a, b = self.kind.target(at)
        return self.field.predict(given / F.spread(self.kind.input(at), given), self.t, a, b)


class Told(Diffusion):
    """Tells the exact net its time in double precision."""

    def predict(self, x, t, p, q, cond=None):
        self.net.t = t
        return super().predict(x, t, p, q)


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_every_path_and_parametrisation_from_noise_to_data(path, kind):
    """The same walk whatever the net says, finite at both ends, also from α = 0."""
    field = two(path)
    if (isinstance(kind, F.Eps) and path.alpha(1.0) == 0) or (isinstance(kind, F.Velocity) and isinstance(path, P.VP)):
        return  # said nothing of there, and refused by the model; infinite at data, and warned of
    model = Told(Exact(field, kind), (2,), path, kind, W.Uniform(), Sampler(S.euler, G.Uniform(), 1))
    z, times = noise_at(field), [1.0, 0.99, 0.8, 0.5, 0.3, 0.1, 0.02, 0.0]
    for step in OURS.values():
        exact = S.solve(field, z, times, step=step, noise=Noise.seeded(1, 5))
        assert exact.isfinite().all()
        torch.testing.assert_close(
            S.solve(model, z, times, step=step, noise=Noise.seeded(1, 5)), exact, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("solver", OURS)
@pytest.mark.parametrize("path", [P.Linear(), P.Cosine(), P.ZeroTerminal(P.LinearBetas())], ids=name)
def test_the_limits(solver, path):
    """The step to σ = 0 is x̂; the one from α = 0 is what steps from ever less signal tend to; the walk begins anew."""
    field, step = two(path), SOLVERS[solver]
    z = noise_at(field)

    def state(times, z=z):
        return S.solve(field, z, times, step=step, noise=Noise.seeded(1, 5))

    x = noise_at(field, seed=1)
    if not solver.startswith("lms"):  # σ/α = 0 is a place like others there
        for t in (0.5, 0.01):
            torch.testing.assert_close(step(field, x, t, 0.0), field.predict(x, t, path.alpha(0.0), 0.0))
    if solver != "dpm-2":  # noise prediction at a time in between has no limit
        near = path.time(1e6 if solver == "lms" else 1e13)
        torch.testing.assert_close(state([1.0, 0.6]), state([near, 0.6]), rtol=1e-4, atol=1e-4)
    if "sde" not in solver:  # (its draws are counted by steps)
        torch.testing.assert_close(state([1.0, 0.6, 0.4, 0.1]), state([0.6, 0.4, 0.1], state([1.0, 0.6])))


@pytest.mark.parametrize("solver", sorted(set(OURS) - {"dpmpp-2m-sde", "dpmpp-3m-sde"}))
def test_from_data_to_noise_and_back(solver):
    field = Mixture(P.Linear(), [[-1.0], [1.0]], [0.3, 0.5])
    x = torch.linspace(-1.5, 1.5, 7, dtype=f64)[:, None]
    there = G.LogSNR(0.98, 0.02)(field.path, 101)[:-1]
    z = S.solve(field, x, there.flip(0), step=SOLVERS[solver])
    torch.testing.assert_close(S.solve(field, z, there, step=SOLVERS[solver]), x, rtol=0, atol=2e-2)
    assert S.solve(field, x, [0.0, 0.01, 0.3, 0.9, 1.0], step=SOLVERS[solver]).isfinite().all()


# ---- the SDE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [P.Linear(), P.VP()], ids=name)
@pytest.mark.parametrize(("order", "falls"), [(1, 2), (2, 4), (3, 4)])
def test_the_sde_converges_to_the_variance(path, order, falls):
    """Mean and variance of a Gaussian without sampling: their errors are of order 1, then 2."""
    field, found = gaussian(path, 0.3, 0.5), []
    for n in (60, 120):
        times = G.LogSNR(0.999, 0.003)(path, n + 1)[:-1]
        start, end = float(times[0]), float(times[-1])
        exact = 0.25 * path.alpha(end) ** 2 + path.sigma(end) ** 2
        scale = math.sqrt(0.25 * path.alpha(start) ** 2 + path.sigma(start) ** 2) / path.sigma(start)
        mean, var = check.walked(field, times, DPMMultistep(order, 1.0))
        found.append(abs(var / exact - 1))
        assert mean == pytest.approx(0.3, abs=2e-2)
        assert scale == pytest.approx(1, abs=1e-2)
    assert found[1] < (0.11, 0.005, 0.002)[order - 1]
    assert found[0] / found[1] == pytest.approx(falls, rel=0.15)


def test_noise_between_the_ode_and_the_sde():
    """Any η has the same law in the limit."""
    field = gaussian(P.Linear(), 0.3, 0.5)
    for eta in (0.0, 0.3, 1.0, 1.5):
        assert check.walked(field, G.LogSNR(0.999, 0.003)(field.path, 200), DPMMultistep(2, eta))[1] == pytest.approx(
            0.25, rel=5e-3
        )


# ---- behaviour -----------------------------------------------------------------------------------------------------


class Kept(nn.Module):
    """A net that answers with one and the same tensor, which it writes anew each time."""

    def __init__(self):
        super().__init__()
        self.out = torch.zeros(3, 2)

    def forward(self, x, cond):
        return torch.tanh(x)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [F.X(), F.V(), F.Velocity()], ids=name)
def test_states_are_never_written_to_again(solver, kind):
    model = Diffusion(Kept(), (2,), P.Linear(), kind, W.Uniform(), Sampler(S.euler, G.Uniform(), 1))
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    states, copies = [], []
    for _, x in S.trajectory(
        model, z, [1.0, 0.8, 0.5, 0.5, 0.2, 0.1, 0.0], step=SOLVERS[solver], noise=Noise.seeded(0, 3)
    ):
        states.append(x)
        copies.append(x.clone())
    assert all(torch.equal(a, b) for a, b in zip(states, copies, strict=True))


@pytest.mark.parametrize("solver", OURS)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7)])
def test_shapes_and_dtypes(solver, shape):
    field = Mixture(P.Linear(), torch.stack((torch.zeros(shape), torch.ones(shape))), [0.5, 0.3])
    times = G.Uniform()(field.path, 5)
    for n in (0, 1, 3):
        z = Noise.seeded(1, n).normal(*shape, dtype=f64)
        wide = S.solve(field, z, times, step=SOLVERS[solver], noise=Noise.seeded(2, n))
        assert wide.shape == z.shape
        single = S.solve(field, z.float(), times, step=SOLVERS[solver], noise=Noise.seeded(2, n))
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, wide.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", OURS)
def test_differentiable(solver):
    field = two(P.Linear())
    z, noise = noise_at(field).requires_grad_(), check.Given([0.3, -1.0, 0.5, 2.0, -0.2])

    def end(z):
        return S.solve(field, z, [1.0, 0.7, 0.4, 0.2, 0.0], step=SOLVERS[solver], noise=noise).sum()

    (g,) = torch.autograd.grad(end(z), z)
    v = torch.ones_like(z)
    with torch.no_grad():
        slope = (end(z + 1e-6 * v) - end(z - 1e-6 * v)) / 2e-6
    assert (g * v).sum().item() == pytest.approx(slope.item(), rel=1e-6)
    jvp = torch.func.jvp(end, (z.detach(),), (v,))[1]
    assert jvp.item() == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("solver", OURS)
def test_project_stays(solver):
    """What is put right between steps is not undone, and the rest goes on as it would with the field told so."""
    field = Mixture(P.Linear(), [[-1.0, 0.0], [1.0, 0.5]], [0.5, 0.4])
    z = noise_at(field)

    def known(x, s):
        return torch.cat((torch.full((5, 1), 9.0, dtype=f64), x[:, 1:]), 1)

    for t, x in S.trajectory(
        field, z, G.Uniform()(field.path, 5), step=SOLVERS[solver], project=known, noise=Noise.seeded(1, 5)
    ):
        assert t == 1 or (x[:, 0] == 9).all()
        assert x.isfinite().all()


def test_mistakes_are_one_sentence():
    field, z = gaussian(P.VP(), 0.0, 0.5), torch.ones(2, 1, dtype=f64)
    with pytest.raises(UserError, match="orders 1, 2 and 3, not 4"):
        DPMMultistep(4)
    with pytest.raises(UserError, match="order 1 is DDIM"):
        DPMSinglestep(1)
    with pytest.raises(UserError, match="orders 1, 2 and 3, not 0"):
        UniPC(0)
    with pytest.raises(UserError, match="orders 1 to 4, not 5"):
        LMS(5)
    with pytest.raises(UserError, match="eta is -1"):
        DPMMultistep(2, -1.0)
    with pytest.raises(UserError, match="given none"):
        S.solve(field, z, [0.9, 0.5], step=DPMMultistep(2, 1.0))
    with pytest.raises(UserError, match="cannot go from"):
        S.solve(field, z, [0.2, 0.5], step=DPMMultistep(2, 1.0), noise=Noise.seeded(0, 2))
    for step in MULTISTEP.values():
        with pytest.raises(UserError, match="takes t and s as floats"):
            step(field, z, torch.ones(2), torch.zeros(2))


def test_solvers_are_remembered():
    for step in (DPMMultistep(3, 0.5), DPMSinglestep(3), UniPC(3, bh1), LMS(2)):
        assert spec(build(spec(step))) == spec(step)
    assert build(spec(UniPC(2, bh1))).b is bh1


def test_memory_is_no_longer_than_needed():
    field = two(P.Linear())
    for step, most in ((DPMMultistep(3), 3), (LMS(4), 4), (UniPC(3), 4), (UniPC(2), 3)):
        walk, x = step.begin(), noise_at(field)
        for t, s in pairwise(torch.linspace(0.9, 0.1, 9).tolist()):
            x = walk(field, x, t, s)
        assert len(walk.past.answers) == most
