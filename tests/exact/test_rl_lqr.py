"""Control with a known model: Riccati's gains by number and beside scipy, iLQR and MPC that find them (A10, row 10)."""

from __future__ import annotations

import pytest
import torch

from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.rl.control import cem, ilqr, lqr, mppi, plan_return, riccati, shifted
from morphogen.rl.env import CartPole, LinearQuadratic, Pendulum

TASK = LinearQuadratic()
A, B, Q, R = TASK.a, TASK.b, TASK.q, TASK.r
K = torch.tensor([[2.585307, 3.574717]]).double()


def x0(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def step(x, u):
    return A @ x + B @ u


def cost(x, u):
    return x @ Q @ x + u @ R @ u


def test_riccatis_gains():
    made = lqr(A, B, Q, R)
    torch.testing.assert_close(made.gain, K, rtol=0, atol=1e-6)
    expected = torch.tensor([[13.827049, 3.868012], [3.868012, 4.961518]]).double()
    torch.testing.assert_close(made.cost, expected, rtol=0, atol=2e-6)
    made = lqr(A, B, Q, R, gamma=0.95)
    torch.testing.assert_close(made.gain, torch.tensor([[1.858154, 3.143797]]).double(), rtol=0, atol=1e-6)
    assert -float(made.cost[0, 0]) == pytest.approx(-10.1938998, abs=1e-6)  # V((1, 0))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 1), (4, 2), (2, 3)])
def test_riccati_beside_scipy(n, m):
    linalg = pytest.importorskip("scipy.linalg")
    noise = Noise.seeded(n * 10 + m, 1)
    a, b, q, r = (noise.normal(*s, dtype=torch.float64)[0] for s in ((n, n), (n, m), (n, n), (m, m)))
    a, q, r = 0.5 * a, q @ q.T + torch.eye(n), r @ r.T + torch.eye(m)
    for gamma in (1.0, 0.9):
        p = torch.as_tensor(linalg.solve_discrete_are(gamma**0.5 * a, gamma**0.5 * b, q, r))
        torch.testing.assert_close(lqr(a, b, q, r, gamma=gamma).cost, p, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_brought_to_rest_is_said():
    with pytest.raises(UserError, match="does not settle"):
        lqr(2 * torch.eye(1).double(), torch.zeros(1, 1).double(), torch.eye(1).double(), torch.eye(1).double())


def test_the_cost_of_the_best_is_paid_in_the_task():
    made, state, total = lqr(A, B, Q, R), x0(1.0, -0.5)[None], 0.0
    start = state
    for _ in range(300):
        there = TASK.advance(state, -state @ made.gain.T, Noise.seeded(0, 1))
        state, total = there.state, total - float(there.reward)
    assert total == pytest.approx(float(start[0] @ made.cost @ start[0]), abs=1e-9)


def test_ilqr_finds_riccatis_gains_in_one_sweep():
    """From the end backwards K_t is that of the finite horizon, and the first that of the infinite one (to 1e-4)."""
    final = lambda x: x @ Q @ x  # noqa: E731
    made = ilqr(step, cost, final, x0(1.0, 0.5), torch.zeros(150, 1).double(), sweeps=2)
    torch.testing.assert_close(-made.gains[0], K, rtol=0, atol=1e-4)
    p = Q
    for t in range(149, 120, -1):
        gain, p = riccati(A, B, Q, R, p)
        torch.testing.assert_close(-made.gains[t], gain, rtol=0, atol=1e-9)
    torch.testing.assert_close(made.actions[0], -K @ x0(1.0, 0.5), rtol=0, atol=1e-4)
    best = lqr(A, B, Q, R).cost
    assert made.cost == pytest.approx(float(x0(1.0, 0.5) @ best @ x0(1.0, 0.5)), abs=1e-4)


def test_ilqr_with_linear_and_mixed_terms_is_the_minimum():
    """A quadratic with all its terms, against one linear solve of the whole problem."""
    noise = Noise.seeded(3, 1)
    h, g = (noise.normal(*s, dtype=torch.float64)[0] for s in ((3, 3), (3,)))
    h = h @ h.T + torch.eye(3)
    mixed = lambda x, u: 0.5 * torch.cat((x, u)) @ h @ torch.cat((x, u)) + g @ torch.cat((x, u))  # noqa: E731
    final, start, horizon = lambda x: x @ x + g[:2] @ x, x0(1.0, -2.0), 6
    made = ilqr(step, mixed, final, start, noise.normal(horizon, 1, dtype=torch.float64)[0])

    def whole(u):
        x, total = start, 0.0
        for t in range(horizon):
            total, x = total + mixed(x, u[t : t + 1]), step(x, u[t : t + 1])
        return total + final(x)

    zero = torch.zeros(horizon).double()
    hessian, gradient = torch.func.hessian(whole)(zero), torch.func.grad(whole)(zero)
    torch.testing.assert_close(made.actions[:, 0], -torch.linalg.solve(hessian, gradient), rtol=0, atol=1e-8)
    assert made.cost == pytest.approx(float(whole(made.actions[:, 0])), abs=1e-9)


def test_ilqr_swings_a_pendulum_up():
    """Not linear: it ends upright and nearly still, and never costs more than the plan that it began with."""
    task = Pendulum()

    def dynamics(x, u):
        omega = x[1] + (15 * x[0].sin() + 3 * u[0]) * 0.05
        return torch.stack((x[0] + 0.05 * omega, omega))

    def price(x, u):
        return 0.05 * ((1 - x[0].cos()) + 0.05 * x[1] ** 2 + 0.02 * u[0] ** 2)

    final = lambda x: 50 * ((1 - x[0].cos()) + 0.1 * x[1] ** 2)  # noqa: E731
    start = x0(torch.pi, 0.0)
    plan = 0.5 * Noise.seeded(1, 50).normal(1, dtype=torch.float64)
    states = [start]
    for u in plan:
        states.append(dynamics(states[-1], u))
        there = task.advance(states[-2][None], u[None], Noise.seeded(0, 1)).state[0]
        torch.testing.assert_close(there, states[-1])  # it is the task's own physics, where nothing is cut off
    made = ilqr(dynamics, price, final, start, plan, sweeps=60)
    assert float(made.states[-1][0].cos()) > 0.98
    assert abs(float(made.states[-1][1])) < 0.5
    with pytest.raises(UserError, match="infinitely"):
        ilqr(dynamics, lambda x, u: price(x, u) / 0.0, final, start, plan)


@pytest.mark.parametrize("planner", ["mppi", "cem"])
def test_mpc_by_samples_comes_near_the_best(planner):
    """In the double integrator what they pay over 40 steps is within 5 % of Riccati's."""
    state, total, plan, start = x0(1.0, 0.0), 0.0, torch.zeros(25, 1).double(), x0(1.0, 0.0)
    for t in range(40):
        for again in range(8 if t == 0 else 2 if planner == "mppi" else 1):
            noise = Noise.seeded(1000 * again + t, 256)
            if planner == "mppi":
                plan = mppi(TASK, state, plan, noise, sigma=0.4 if t == 0 else 0.2, temperature=0.1)
            else:
                plan = cem(TASK, state, plan, noise, sigma=1.0, rounds=4)
        there = TASK.advance(state[None], plan[:1], Noise.seeded(0, 1))
        state, total, plan = there.state[0], total - float(there.reward), shifted(plan)
    best = float(start @ lqr(A, B, Q, R).cost @ start)
    assert best - 0.2 < total < 1.05 * best + 0.1


def gain_of(planner, task, horizon):
    """K of what a planner does first, u = d − K x: from rest and from a step along each axis, by the same noise. What
    the noise leaves undone, d, is then the same for all three: on a quadratic a plan's way to the best knows no x.
    """
    starts = x0(0.0, 0.0), x0(1.0, 0.0), x0(0.0, 1.0)
    first = [planner(task, x, torch.zeros(horizon, 1).double())[0] for x in starts]
    return -torch.stack([u - first[0] for u in first[1:]], 1)


def by_mppi(rounds, plans, sigma=1.0, temperature=1.0):
    def planner(task, x, plan):
        for again in range(rounds):
            plan = mppi(task, x, plan, Noise.seeded(again, plans), sigma=sigma, temperature=temperature)
        return plan

    return planner


def by_cem(task, x, plan):
    return cem(task, x, plan, Noise.seeded(0, 512), sigma=3.0, rounds=25)


QUICK = LinearQuadratic(a=((0.6, 0.3), (-0.2, 0.5)), b=((0.0,), (1.0,)), r=((0.5,),))  # at rest in a few steps


@pytest.mark.parametrize("planner", [by_mppi(50, 512), by_cem])
def test_mpc_by_samples_has_riccatis_gains(planner):
    """Of a short horizon its own, backwards from P = 0; and where all is at rest in 8 steps the stationary ones."""
    p = torch.zeros_like(A)
    for _ in range(4):
        gain, p = riccati(A, B, Q, R, p)
    torch.testing.assert_close(gain_of(planner, TASK, 4), gain, rtol=0, atol=1e-4)
    stationary = lqr(QUICK.a, QUICK.b, QUICK.q, QUICK.r).gain
    torch.testing.assert_close(gain_of(planner, QUICK, 8), stationary, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_mpc_by_samples_has_the_oracles_gains():
    """The double integrator's, which want a horizon of 60."""
    found = gain_of(by_mppi(100, 1024, sigma=0.5, temperature=0.5), TASK, 60)
    torch.testing.assert_close(found, K, rtol=0, atol=1e-4)


def test_plans_are_priced_as_they_are_walked():
    """Returns discounted, nothing after an end, and actions within their bounds."""
    plans = Noise.seeded(0, 3).normal(4, 1, dtype=torch.float64)
    made = plan_return(TASK, x0(1.0, 2.0), plans, gamma=0.9)
    for i in range(3):
        state, total = x0(1.0, 2.0)[None], 0.0
        for t in range(4):
            there = TASK.advance(state, plans[i : i + 1, t], Noise.seeded(0, 1))
            state, total = there.state, total + 0.9**t * float(there.reward)
        assert float(made[i]) == pytest.approx(total, abs=1e-12)
    falling = torch.tensor([0.0, 0.0, 0.2, 1.0])
    assert plan_return(CartPole(), falling, torch.zeros(2, 30)).tolist() == [1.0, 1.0]  # it falls in the first step
    with pytest.raises(UserError, match="CartPole"):
        mppi(CartPole(), falling, torch.zeros(3, 1), Noise.seeded(0, 4), sigma=1.0, temperature=1.0)
    bounded = mppi(Pendulum(), torch.zeros(2), torch.zeros(3, 1), Noise.seeded(0, 8), sigma=100.0, temperature=1.0)
    assert float(bounded.abs().max()) <= 2
