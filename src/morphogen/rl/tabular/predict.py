r"""What a policy is worth, from recorded experience: Monte Carlo and temporal differences. Pure functions.

`Experience` is a stream of steps in which one episode follows the other. V is a list of one number for each state.

    Monte Carlo      V(s) = mean of G over the visits to s: the first of each episode, or every one
    off-policy       ρ = Π π(a|s)/µ(a|s) from the visit on: ordinary, Σ ρ G / n, or weighted, Σ ρ G / Σ ρ
    TD(0)            V(s) ← V(s) + α δ,    δ = r + γ c V(s') − V(s)
    n-step TD        V(s_t) ← V(s_t) + α (r_t + … + γ^{n−1} r_{t+n−1} + γ^n V(s_{t+n}) − V(s_t)), n steps later
    TD(λ)            e ← γ λ e, e(s) ← e(s) + 1,  V ← V + α δ e: the backward view, traces accumulating
    batch TD         TD(0) over all steps again and again: the value in the model that the steps suggest

Sutton & Barto 2018, chapters 5, 6, 7 and 12. An episode that was cut off, or has not ended, has no return: Monte Carlo
leaves it out, and temporal differences go on from its last state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...core import Noise, Place
from ...errors import UserError
from ..env.env import Simulated
from ..returns import backwards
from .mdp import MDP


class Experience(NamedTuple):
    """T steps, each of shape (T,): states, actions, rewards, states after, and how an episode ended where it did."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next: Tensor
    terminated: Tensor
    truncated: Tensor


def walked(world: MDP, policy: Tensor, steps: int, seed: int = 0) -> Experience:
    """The steps of a policy (S, A) of probabilities in a world, episode after episode."""
    env, rows = Simulated(world, 1), []
    env.start(Place(seed=seed))
    obs, noise = env.reset(), Noise.seeded(seed, steps)
    for t in range(steps):
        action = Noise(noise.key[t : t + 1]).categorical(policy[obs].log())
        step = env.step(action)
        rows.append((obs, action, step.reward.double(), step.final, step.terminated, step.truncated))
        obs = step.obs
    return Experience(*(torch.cat(column) for column in zip(*rows, strict=True)))


# ---- Monte Carlo ---------------------------------------------------------------------------------------------------


def returns(seen: Experience, gamma: float) -> tuple[Tensor, Tensor]:
    """The return G (T,) from each step on, and whether its episode has come to its own end (T,) bool."""
    on = (~(seen.terminated | seen.truncated)).double()
    whole = backwards(seen.terminated.double(), on) > 0
    return backwards(seen.reward.double(), gamma * on), whole


def first_visits(seen: Experience) -> Tensor:
    """Whether a step is the first of its episode in its state (T,)."""
    met: set[int] = set()
    out = torch.zeros(len(seen.obs), dtype=torch.bool)
    ends = (seen.terminated | seen.truncated).tolist()
    for t, (s, ended) in enumerate(zip(seen.obs.tolist(), ends, strict=True)):
        out[t] = s not in met
        met.add(s)
        if ended:
            met.clear()
    return out


def monte_carlo(seen: Experience, states: int, gamma: float, visits: Tensor | None = None) -> Tensor:
    """V (S,): means of returns over the visits (T,) bool that count; every visit without them. NaN of none.

    For first visits: `monte_carlo(seen, states, gamma, first_visits(seen))`.
    """
    g, counts = returns(seen, gamma)
    return _mean(seen.obs, g, (counts if visits is None else counts & visits).double(), states)


def importance_ratios(seen: Experience, target: Tensor, behaviour: Tensor) -> Tensor:
    """ρ (T,): how much likelier the rest of the episode, from this action on, is under `target` (S, A).

    behaviour: (S, A), who made the steps. Raises UserError where it could not have taken an action.
    """
    p, q = target[seen.obs, seen.action], behaviour[seen.obs, seen.action]
    if bool((q <= 0).any()):
        raise UserError(f"The behaviour never takes action {int(seen.action[q <= 0][0])} where it was taken.")
    on = ~(seen.terminated | seen.truncated)
    ratio, later = p / q, torch.ones((), dtype=torch.float64)
    out = torch.empty_like(ratio)
    for t in range(len(ratio) - 1, -1, -1):
        later = out[t] = ratio[t] * (later if bool(on[t]) else 1.0)
    return out


def ordinary(seen: Experience, states: int, gamma: float, ratios: Tensor) -> Tensor:
    """V (S,) of another policy by ordinary importance sampling over every visit: without bias, of large variance."""
    g, whole = returns(seen, gamma)
    return _mean(seen.obs, ratios * g, whole.double(), states)


def weighted(seen: Experience, states: int, gamma: float, ratios: Tensor) -> Tensor:
    """V (S,) of another policy by weighted importance sampling over every visit: biased, of bounded variance."""
    g, whole = returns(seen, gamma)
    return _mean(seen.obs, g, ratios * whole, states)


def _mean(obs: Tensor, value: Tensor, weight: Tensor, states: int) -> Tensor:
    """Weighted means (S,) of value (T,) by state."""
    total = torch.zeros(states, dtype=torch.float64)
    return total.index_add(0, obs, weight * value) / total.index_add(0, obs, weight)


# ---- temporal differences ------------------------------------------------------------------------------------------


def td_n(seen: Experience, value: Tensor, gamma: float, alpha: float, n: int = 1) -> Tensor:
    """V (S,) after n-step TD along the steps, from `value` (S,); n = 1 is TD(0).

    Raises UserError where n is less than 1.
    """
    if n < 1:
        raise UserError(f"TD of n = {n} steps sees no reward: take n of 1 or more.")
    v, steps = value.double().tolist(), _steps(seen)
    waiting: list[tuple[int, float]] = []  # states and rewards of the steps that have not been learnt from

    def learn(after: float) -> None:
        """Learn from the oldest."""
        g = after
        for _, r in reversed(waiting):
            g = r + gamma * g
        v[waiting[0][0]] += alpha * (g - v[waiting[0][0]])
        del waiting[0]

    for s, r, to, terminated, truncated in steps:
        waiting.append((s, r))
        after = 0.0 if terminated else None
        if len(waiting) == n:
            learn(v[to] if after is None else after)
        if terminated or truncated:
            while waiting:
                learn(v[to] if after is None else after)
    return torch.tensor(v, dtype=torch.float64)


def td_lambda(seen: Experience, value: Tensor, gamma: float, alpha: float, lam: float) -> Tensor:
    """V (S,) after TD(λ) along the steps, from `value` (S,), with accumulating traces; lam = 0 is TD(0)."""
    v = value.double().clone()
    trace = torch.zeros_like(v)
    for s, r, to, terminated, truncated in _steps(seen):
        delta = r + (0.0 if terminated else gamma * float(v[to])) - float(v[s])
        trace *= gamma * lam
        trace[s] += 1
        v += alpha * delta * trace
        if terminated or truncated:
            trace.zero_()
    return v


def batch_td(seen: Experience, states: int, gamma: float, alpha: float = 0.1, *, tol: float = 1e-10) -> Tensor:
    """V (S,) that TD(0) over all steps at once, again and again, comes to; 0 of states that were not met.

    alpha: of the mean error in each state. Raises UserError where 100,000 sweeps did not suffice.
    """
    v, ones = torch.zeros(states, dtype=torch.float64), torch.ones(len(seen.obs), dtype=torch.float64)
    for _ in range(100_000):
        delta = seen.reward + gamma * torch.where(seen.terminated, 0.0, v[seen.next]) - v[seen.obs]
        change = _mean(seen.obs, delta, ones, states).nan_to_num(0.0)
        v = v + alpha * change
        if float(change.abs().max()) < tol:
            return v
    raise UserError("Batch TD has not settled in 100,000 sweeps: take a larger alpha (at most 1), or gamma < 1.")


def _steps(seen: Experience) -> list[tuple[int, float, int, bool, bool]]:
    columns = (seen.obs, seen.reward, seen.next, seen.terminated, seen.truncated)
    return list(zip(*(c.tolist() for c in columns), strict=True))
