r"""Planning with a known model: linear-quadratic control by Riccati's equation, iLQR, and a sampling MPC.

    lqr    of x' = A x + B u and cost xᵀQx + uᵀRu: P = Q + γ AᵀP(A − B K),  K = (R + γ BᵀPB)^{-1} γ BᵀPA;
           u = −K x is the best, and costs xᵀP x
    ilqr   of any differentiable step and cost: along a trajectory their expansion, dynamics to the first order and cost
           to the second, is such a problem with linear terms; solved backwards it gives u ← u + s k + K (x̂ − x), with
           the largest s of 1, ½, … that lowers the cost. Regularised as Q_uu + µ I until it is positive definite.
    mppi   of any batched step: N plans around the last one, weighed by exp(−cost/λ); the first action is taken
    cem    the same, the plans' mean and deviation fitted to the best of them, a few times over

Li & Todorov 2004 (iLQR; Gauss-Newton: second derivatives of the dynamics are left out); Tassa, Erez & Todorov 2012;
Williams et al. 2017, arXiv:1707.02342 (MPPI); Rubinstein & Kroese 2004 (cross-entropy method). Departure: the action's
noise does not enter MPPI's cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import hessian, jacrev, vmap

from ..core import Noise
from ..errors import UserError
from .env.env import Box, Task


class LQR(NamedTuple):
    """gain K (m, n), of u = −K x; cost P (n, n), of xᵀP x."""

    gain: Tensor
    cost: Tensor


def lqr(a: Tensor, b: Tensor, q: Tensor, r: Tensor, *, gamma: float = 1.0, tol: float = 1e-13) -> LQR:
    """The stationary solution of Riccati's equation, by going backwards in time from P = Q until it stands.

    a (n, n), b (n, m), q (n, n), r (m, m), double precision. Raises UserError where it does not settle: the system
    cannot be brought to rest.
    """
    p = q.clone()
    for _ in range(100_000):
        before, (gain, p) = p, riccati(a, b, q, r, p, gamma)
        if not bool(p.isfinite().all()):
            break
        if float((p - before).abs().max()) <= tol * max(1.0, float(p.abs().max())):
            return LQR(gain, p)
    raise UserError("Riccati's equation does not settle: B cannot bring this A to rest, or Q does not see it.")


def riccati(a: Tensor, b: Tensor, q: Tensor, r: Tensor, p: Tensor, gamma: float = 1.0) -> LQR:
    """One step backwards: the best gain before a cost-to-go xᵀP x, and the cost-to-go with it."""
    gain = torch.linalg.solve(r + gamma * b.T @ p @ b, gamma * b.T @ p @ a)
    p = q + gamma * a.T @ p @ (a - b @ gain)
    return LQR(gain, (p + p.T) / 2)


# ---- iLQR ----------------------------------------------------------------------------------------------------------

Dynamics = Callable[[Tensor, Tensor], Tensor]  # x (n,), u (m,) -> x' (n,)
Cost = Callable[[Tensor, Tensor], Tensor]  # x (n,), u (m,) -> a number


class Trajectory(NamedTuple):
    """states (T + 1, n), actions (T, m), gains (T, m, n) of u = u_t + K_t (x̂ − x_t), and the cost."""

    states: Tensor
    actions: Tensor
    gains: Tensor
    cost: float


def ilqr(
    dynamics: Dynamics,
    cost: Cost,
    final: Callable[[Tensor], Tensor],
    start: Tensor,
    actions: Tensor,
    *,
    sweeps: int = 100,
    tol: float = 1e-10,
) -> Trajectory:
    """A local optimum of Σ_t cost(x_t, u_t) + final(x_T) from `start` (n,), beginning with `actions` (T, m).

    On a linear system with a quadratic cost one sweep is exact. tol: of the improvement of a sweep, relative.
    Raises UserError where the first plan's cost is not finite, or a derivative along a plan.
    """
    states, total = _rolled(dynamics, cost, final, start, actions)
    if not torch.isfinite(torch.tensor(total)):
        raise UserError("The plan to begin with costs infinitely much: begin with gentler actions.")
    gains = start.new_zeros(len(actions), actions.shape[1], len(start))
    mu = 0.0
    for _ in range(sweeps):
        k, gains = _backwards(dynamics, cost, final, states, actions, mu)
        found = None
        for halvings in range(12):
            tried = _forwards(dynamics, cost, final, states, actions, k, gains, 0.5**halvings)
            if tried.cost <= total:
                found = tried
                break
        if found is None:
            if mu > 1e8:
                break
            mu = max(1e-6, 10 * mu)
            continue
        gained, mu = total - found.cost, mu / 10
        states, actions, total = found.states, found.actions, found.cost
        if gained <= tol * max(1.0, abs(total)):
            break
    return Trajectory(states, actions, gains, total)


def _rolled(
    dynamics: Dynamics, cost: Cost, final: Callable[[Tensor], Tensor], start: Tensor, actions: Tensor
) -> tuple[Tensor, float]:
    states = [start]
    for u in actions:
        states.append(dynamics(states[-1], u))
    x = torch.stack(states)
    return x, float(vmap(cost)(x[:-1], actions).sum() + final(x[-1]))


def _backwards(
    dynamics: Dynamics, cost: Cost, final: Callable[[Tensor], Tensor], x: Tensor, u: Tensor, mu: float
) -> tuple[Tensor, Tensor]:
    """Steps k (T, m) and gains K (T, m, n) of the expansion along a trajectory."""
    fx, fu = vmap(jacrev(dynamics, (0, 1)))(x[:-1], u)
    (lx, lu), ((lxx, lxu), (_, luu)) = vmap(jacrev(cost, (0, 1)))(x[:-1], u), vmap(hessian(cost, (0, 1)))(x[:-1], u)
    vx, vxx = jacrev(final)(x[-1]), hessian(final)(x[-1])
    eye = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    steps, gains = [], []
    for t in range(len(u) - 1, -1, -1):
        a, b = fx[t], fu[t]
        qx, qu = lx[t] + a.T @ vx, lu[t] + b.T @ vx
        qxx, quu, qux = lxx[t] + a.T @ vxx @ a, luu[t] + b.T @ vxx @ b, lxu[t].T + b.T @ vxx @ a
        if not bool(torch.cat((qu[:, None], qux, quu), 1).isfinite().all()):
            raise UserError(
                f"At step {t} of the plan a derivative of dynamics or cost is not finite: take smooth ones, such as"
                " (x @ x + 1e-6).sqrt() for (x @ x).sqrt()."
            )
        shift = mu
        while int(torch.linalg.cholesky_ex(quu + shift * eye).info):
            shift = max(1e-6, 10 * shift)
        best = -torch.linalg.solve(quu + shift * eye, torch.cat((qu[:, None], qux), 1))  # (m, 1 + n)
        k, gain = best[:, 0], best[:, 1:]
        vx = qx + gain.T @ quu @ k + gain.T @ qu + qux.T @ k
        vxx = qxx + gain.T @ quu @ gain + gain.T @ qux + qux.T @ gain
        vxx = (vxx + vxx.T) / 2
        steps.append(k)
        gains.append(gain)
    return torch.stack(steps[::-1]), torch.stack(gains[::-1])


def _forwards(
    dynamics: Dynamics,
    cost: Cost,
    final: Callable[[Tensor], Tensor],
    x: Tensor,
    u: Tensor,
    k: Tensor,
    gains: Tensor,
    share: float,
) -> Trajectory:
    states, actions = [x[0]], []
    for t in range(len(u)):
        actions.append(u[t] + share * k[t] + gains[t] @ (states[-1] - x[t]))
        states.append(dynamics(states[-1], actions[-1]))
    made, done = torch.stack(states), torch.stack(actions)
    total = float(vmap(cost)(made[:-1], done).sum() + final(made[-1]))
    return Trajectory(made, done, gains, total if total == total else float("inf"))


# ---- sampling ------------------------------------------------------------------------------------------------------


def plan_return(task: Task, state: Tensor, plans: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted returns (N,) of plans (N, T, m) in a task, all from one state (...); nothing counts after an end."""
    here = state.expand(len(plans), *state.shape)
    total, alive = plans.new_zeros(len(plans)), torch.ones(len(plans), dtype=torch.bool, device=plans.device)
    for t in range(plans.shape[1]):
        there = task.advance(here, plans[:, t], Noise.seeded(t, len(plans), device=plans.device))
        total = total + gamma**t * torch.where(alive, there.reward, 0.0)
        here, alive = there.state, alive & ~there.terminated
    return total


def mppi(
    task: Task,
    state: Tensor,
    plan: Tensor,
    noise: Noise,
    *,
    sigma: float,
    temperature: float,
    gamma: float = 1.0,
) -> Tensor:
    """A better plan (T, m) than `plan`: the mean of N around it, weighed by exp(return / temperature).

    noise: of N plans. sigma: the deviation of every number. The first row is what to do now; `shifted` goes on from it.
    Raises UserError where sigma or temperature is not above 0, or the task's actions are no numbers.
    """
    if not (0 < sigma < math.inf and 0 < temperature < math.inf):
        raise UserError(f"MPPI with sigma={sigma}, temperature={temperature}: give both above 0.")
    tried = _within(task, plan + sigma * noise.normal(*plan.shape, dtype=plan.dtype))  # (N, T, m)
    weight = (plan_return(task, state, tried, gamma) / temperature).softmax(0)
    return torch.einsum("n,ntm->tm", weight, tried)


def cem(
    task: Task,
    state: Tensor,
    plan: Tensor,
    noise: Noise,
    *,
    sigma: float,
    rounds: int = 5,
    elite: float = 0.1,
    gamma: float = 1.0,
) -> Tensor:
    """A better plan (T, m) by the cross-entropy method: in each round the mean and deviation of the best share `elite`
    of N plans is where the next are drawn. Raises UserError where a number is out of its range.
    """
    if not (0 < sigma < math.inf and rounds >= 1 and 0 < elite <= 1):
        raise UserError(
            f"The cross-entropy method with sigma={sigma}, rounds={rounds}, elite={elite}: give sigma above 0, 1 round"
            " or more, and elite in (0, 1]."
        )
    if len(noise) < 2:
        raise UserError(f"The best of {len(noise)} plan have no deviation: give noise of 2 or more, better 100.")
    best = max(2, round(elite * len(noise)))
    deviation = torch.full_like(plan, sigma)
    for _ in range(rounds):
        tried = _within(task, plan + deviation * noise.normal(*plan.shape, dtype=plan.dtype))
        chosen = tried[plan_return(task, state, tried, gamma).topk(best).indices]
        plan, deviation = chosen.mean(0), chosen.std(0)
    return plan


def shifted(plan: Tensor) -> Tensor:
    """The plan (T, m) a step later: its first action taken, nothing at its end."""
    return torch.cat((plan[1:], torch.zeros_like(plan[:1])))


def _within(task: Task, plans: Tensor) -> Tensor:
    if not isinstance(task.action, Box):
        raise UserError(
            f"A plan of numbers needs a task whose actions are a Box; those of {type(task).__name__} are not."
        )
    return plans.clamp(task.action.low, task.action.high)
