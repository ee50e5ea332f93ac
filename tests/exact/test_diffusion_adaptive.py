"""The adaptive solver: its tableau, its control, known solutions, and both ends of every path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, solve_ivp

from morphogen import UserError
from morphogen.core import Noise
from morphogen.diffusion import adaptive as A
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion.adaptive import Dopri5, Joint, PerSample, integrate
from morphogen.diffusion.field import Mixture, gaussian
from morphogen.spec import build, spec

f64 = torch.float64
CONTROLS = [PerSample(), Joint()]
PATHS = [
    P.Linear(),
    P.Cosine(),
    P.VP(),
    P.Exploding(),
    P.LinearBetas(),
    P.CosineBetas(),
    P.ZeroTerminal(P.ScaledLinearBetas()),
]


class Spied(Mixture):
    """An exact field that keeps the times it is asked at."""

    def __init__(self, *args):
        super().__init__(*args)
        self.times = []

    def predict(self, x, t, p, q, cond=None):
        self.times.append(torch.as_tensor(t, dtype=f64).expand(len(x)))
        return super().predict(x, t, p, q)


def wavy(t, y):
    """Non-linear, and with a time of its own."""
    t = t[:, None] if isinstance(t, torch.Tensor) else t
    return (
        torch.sin(2 * y) * (1 + t)
        - y * y * 0.3
        + (torch.cos(3 * t) if isinstance(t, torch.Tensor) else math.cos(3 * t))
    )


def wavy_by_scipy(y, t0, t1):
    def f(t, y):
        return np.sin(2 * y) * (1 + t) - y * y * 0.3 + np.cos(3 * t)

    return torch.tensor(solve_ivp(f, (t0, t1), y, method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1])


# ---- the pair --------------------------------------------------------------------------------------------------------


def test_tableau_is_scipys():
    for i, row in enumerate(A._A[:-1], 1):
        np.testing.assert_allclose(RK45.A[i, :i], row, rtol=1e-14)
    np.testing.assert_allclose(RK45.B, A._A[-1], rtol=1e-14)
    np.testing.assert_allclose([*RK45.C[1:], 1.0], A._C, rtol=1e-14)
    np.testing.assert_allclose(-RK45.E, A._E, rtol=1e-14)  # scipy's is b* − b


def test_measured_order():
    """Five, with equal steps."""
    start = torch.linspace(-1, 1, 5, dtype=f64)[:, None]
    exact, errors = wavy_by_scipy(start[:, 0], 0.0, 2.0), []
    for n in (10, 20, 40):
        y, h = start, 2.0 / n
        for i in range(n):
            done = integrate(wavy, y, i * h, (i + 1) * h, rtol=1e9, atol=1e9, size=torch.full((5,), h, dtype=f64))
            assert (done.steps, done.refused, done.evaluations) == (1, 0, 7)
            y = done.y
        errors.append((y[:, 0] - exact).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(5, abs=0.5)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(5, abs=0.3)


# ---- known solutions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 2.0), (0.8, 0.1), (-0.7, 0.9)])
@pytest.mark.parametrize("tol", [1e-4, 1e-7, 1e-10])
def test_error_follows_the_tolerance(control, t0, t1, tol):
    y = torch.tensor([-0.8, 0.1, 0.9, 1.3, 1.9], dtype=f64)
    exact = torch.cat([wavy_by_scipy(y[i : i + 1], t0, t1) for i in range(5)])
    done = integrate(wavy, y[:, None], t0, t1, rtol=tol, atol=tol, control=control)
    error = (done.y[:, 0] - exact).abs().max().item()
    assert error < 100 * tol  # errors of steps add up, and this equation is no contraction
    assert error > 1e-4 * tol  # and nothing is given away
    assert done.evaluations == 2 + 6 * (done.steps + done.refused)
    torch.testing.assert_close(done.slope, wavy(torch.full((5,), t1, dtype=f64), done.y))


@pytest.mark.parametrize("control", CONTROLS)
def test_steps_shrink_where_the_slope_jumps(control):
    def f(t, y):
        late = torch.as_tensor(t, dtype=f64) > 0.5
        return torch.where(late.reshape(-1, 1), -50.0 * y, 0.1 * y)

    y = torch.ones(3, 2, dtype=f64)
    done = integrate(f, y, 0.0, 1.0, rtol=1e-8, atol=1e-10, control=control)
    assert done.refused > 0
    torch.testing.assert_close(done.y, y * math.exp(0.05 - 25), rtol=1e-5, atol=1e-10)


def test_float32_and_shapes():
    y = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))
    for control in CONTROLS:
        done = integrate(lambda t, y: -y, y, 0.0, 1.0, control=control)
        assert done.y.dtype == torch.float32
        torch.testing.assert_close(done.y, y * math.exp(-1), rtol=1e-4, atol=1e-5)
        assert integrate(lambda t, y: -y, y[:0], 0.0, 1.0, control=control).y.shape == (0, 2, 5)
        still = integrate(lambda t, y: -y, y, 0.4, 0.4, control=control)
        assert still.y is y
        assert still.evaluations == 1
        one = integrate(lambda t, y: -y, y[:1], 0.0, 1.0, control=control)
        torch.testing.assert_close(one.y, y[:1] * math.exp(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("control", CONTROLS)
def test_differentiable(control):
    rate, y = torch.tensor(0.7, dtype=f64, requires_grad=True), torch.tensor([[2.0], [-1.0]], dtype=f64)
    y.requires_grad_()
    # a logistic equation, so that the slope's own slope matters: y' = r y (1 − y/4)
    done = integrate(lambda t, y: rate * y * (1 - y / 4), y, 0.0, 1.5, rtol=1e-10, atol=1e-10, control=control)
    (got_r, got_y) = torch.autograd.grad(done.y.square().sum(), (rate, y))
    grow = (rate * 1.5).exp()
    exact = 4 * y * grow / (4 + y * (grow - 1))
    torch.testing.assert_close(done.y, exact, rtol=1e-7, atol=1e-8)
    (want_r, want_y) = torch.autograd.grad(exact.square().sum(), (rate, y))
    torch.testing.assert_close(got_r, want_r, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got_y, want_y, rtol=1e-6, atol=1e-8)


# ---- whose error -----------------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_its_company():
    """To the last bit, where the slope's own arithmetic does not depend on the batch."""
    y = torch.tensor([[0.3, -0.2], [40.0, 3.0], [1e-3, 0.0], [-7.0, 2.0]], dtype=f64)

    def f(t, y):
        return -y * y.abs() * 3 + torch.as_tensor(t, dtype=y.dtype).reshape(-1, 1)

    t1 = torch.tensor([1.0, 0.9, 1.4, 1.0], dtype=f64)
    together = integrate(f, y, 0.0, t1)
    for i in range(4):
        alone = integrate(f, y[i : i + 1], 0.0, t1[i : i + 1])
        assert torch.equal(together.y[i : i + 1], alone.y)
        assert together.size[i] == alone.size[0]
    assert together.steps + together.refused > 10
    joint = [integrate(f, v, 0.0, 1.0, control=Joint()) for v in (y, y[2:3])]
    assert not torch.equal(joint[0].y[2:3], joint[1].y)
    assert joint[1].evaluations < joint[0].evaluations


def test_mistakes_are_one_sentence():
    y = torch.ones(2, 1, dtype=f64)
    with pytest.raises(UserError, match="no error to a step"):
        integrate(lambda t, y: -y, y, 0.0, 1.0, rtol=0.0, atol=0.0)
    with pytest.raises(UserError, match="not finite at t = 0"):
        integrate(lambda t, y: y / 0, y, 0.0, 1.0)
    with pytest.raises(UserError, match="took 30 steps from t = 0 and has only come to"):
        integrate(lambda t, y: y * y, y, 0.0, 1.5, max_steps=30)  # 1 / (1 − t)
    with pytest.raises(UserError, match="one clock"):
        integrate(lambda t, y: -y, y, 0.0, torch.tensor([1.0, 2.0], dtype=f64), control=Joint())
    with pytest.raises(UserError, match="no slope at σ = 0"):
        Dopri5(end=0.0)
    for thing in (Dopri5(), Dopri5(1e-3, 1e-4, Joint(), 0.01, 50)):
        assert spec(build(spec(thing))) == spec(thing)


# ---- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_exact_transport_of_a_gaussian(path, control):
    """x_0 − m = (x_1 − α_1 m) s / √(α_1² s² + σ_1²), on every path, from end to end and back."""
    mean, std = torch.tensor([0.7, -0.3], dtype=f64), torch.tensor([0.5, 1.4], dtype=f64)
    field = Spied(path, mean[None], std[None])
    z = Noise.seeded(0, 7).normal(2, dtype=f64) * path.sigma(1.0)
    solver = Dopri5(1e-8, 1e-8, control, end=1e-5)
    x = S.solve(field, z, [1.0, 0.0], step=solver)
    alpha, sigma = path.alpha(1.0), path.sigma(1.0)
    exact = mean + (z - alpha * mean) * std / (alpha**2 * std**2 + sigma**2).sqrt()
    # what the arrival may err by; a chain's begins at its step index 0
    chained = isinstance(path, P.Chain)
    lowest = path.at_index(0.0) if chained else path.time(1e-5)
    arrival = path.ratio(lowest) ** 2 / 2 * ((exact - mean) / std**2).abs().max().item()
    torch.testing.assert_close(x, exact, rtol=0, atol=1.1 * arrival + 1e-6)
    assert len(field.times) == solver.evaluations
    assert (solver.evaluations - 2) % 6 == 0  # the arrival costs none
    assert torch.cat(field.times).min().item() == pytest.approx(lowest, rel=1e-6)
    back = S.solve(field, x, [0.0, 1.0], step=Dopri5(1e-8, 1e-8, control, end=1e-5))
    torch.testing.assert_close(back, z, rtol=0, atol=path.sigma(1.0) * (10 * arrival + 1e-5))


@pytest.mark.parametrize("path", [P.Linear(), P.VP(), P.Exploding()], ids=lambda p: type(p).__name__)
def test_the_arrival_errs_by_the_square_of_its_end(path):
    field = Mixture(path, [[-1.5], [0.5]], [0.25, 0.5])
    z = torch.linspace(-1.5, 1.5, 7, dtype=f64)[:, None] * path.sigma(1.0)
    exact = S.solve(field, z, [1.0, 0.0], step=Dopri5(1e-11, 1e-11, end=1e-6, max_steps=9999))
    errors = [
        (S.solve(field, z, [1.0, 0.0], step=Dopri5(1e-10, 1e-10, end=e, max_steps=9999)) - exact).abs().max().item()
        for e in (0.02, 0.01)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
    score = field.score(exact, 1e-6).abs().max().item()
    assert errors[1] == pytest.approx(0.01**2 / 2 * score, rel=0.1)


def test_below_its_end_it_goes_straight():
    """A grid whose last times lie below `end` still arrives, and the field is never asked there."""
    field = Spied(P.Linear(), [[0.4]], [0.5])
    z = torch.tensor([[1.0], [-0.5]], dtype=f64)
    x = S.solve(field, z, [1.0, 0.3, 1e-3, 1e-4, 0.0], step=Dopri5(1e-9, 1e-9))
    torch.testing.assert_close(x, 0.4 + z * 0.5, rtol=0, atol=1e-5)
    assert torch.cat(field.times).min().item() == pytest.approx(P.Linear().time(2e-3), rel=1e-9)
    up = S.solve(field, x, [0.0, 1e-4, 1e-3, 1.0], step=Dopri5(1e-9, 1e-9))
    torch.testing.assert_close(up, z, rtol=0, atol=1e-4)


@pytest.mark.parametrize("control", CONTROLS)
def test_it_remembers_its_step_and_slope(control):
    field = Spied(P.VP(), [[-1.0, 0.2], [1.0, 0.0]], [0.5, 0.4])
    z = Noise.seeded(3, 6).normal(2, dtype=f64)
    times = G.Uniform()(field.path, 8).tolist()
    solver = Dopri5(control=control)
    states = list(S.trajectory(field, z, times, step=solver))
    walked = solver.evaluations
    assert (walked - 2) % 6 == 0  # one start for the whole walk
    x, fresh = z, 0
    for (_, want), t, s in zip(states[1:], times[:-1], times[1:], strict=True):
        x = solver(field, x, t, s)
        fresh += solver.evaluations
        torch.testing.assert_close(x, want, rtol=1e-3, atol=1e-4)
    assert walked < fresh - 8

    # a state that somebody has changed in place has another slope
    def nudge(x, s):
        return x.mul_(1.1)

    kept = S.solve(field, z.clone(), times, step=Dopri5(1e-9, 1e-9, control), project=nudge)
    made = S.solve(field, z.clone(), times, step=Dopri5(1e-9, 1e-9, control), project=lambda x, s: x * 1.1)
    torch.testing.assert_close(kept, made, rtol=1e-7, atol=1e-8)
    with torch.inference_mode():
        torch.testing.assert_close(S.solve(field, z, times, step=Dopri5(control=control)), states[-1][1])


def test_fields_with_gradients_and_float32():
    field, z = gaussian(P.Exploding(), 0.0, 0.5), torch.full((2, 1), 80.0, requires_grad=True)
    x = S.solve(field, z, [1.0, 0.0], step=Dopri5())
    assert x.dtype == torch.float32
    x.sum().backward()
    torch.testing.assert_close(z.grad, torch.full((2, 1), 0.00624987793), rtol=2e-3, atol=0)
