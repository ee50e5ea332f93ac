r"""Returns, advantages and off-policy corrections: pure functions of a stretch of experience.

Time is the first dimension: every tensor is (T, ...), what follows being environments or nothing. Of step t the
functions are told the reward r_t, what the critic says before it, V(s_t) (`value`), and what it says of the state that
the step led to, V(s'_t) (`after`), which is the one seen *before* any reset. There are two ways for an episode to end:

    terminated   nothing follows                           c_t = 0, else 1         V(s'_t) counts c_t
    truncated    cut off; it would have gone on            n_t = 0 at either end   the recursion stops, V(s'_t) counts

The last row is cut off too, the stretch ending there. All but V-trace and Retrace are the λ-return

    G_t = r_t + γ c_t [(1 − λ n_t) V(s'_t) + λ n_t G_{t+1}]           λ = 1: Monte Carlo, λ = 0: one step of TD
    A_t = δ_t + γ λ n_t A_{t+1},    δ_t = r_t + γ c_t V(s'_t) − V(s_t)                  GAE; G_t − V(s_t)
    V-trace    v_t = V(s_t) + ρ̄_t δ_t + γ c̄_t n_t (v_{t+1} − V(s_{t+1})),    ρ̄ = min(ρ̂, ρ), c̄ = λ min(ĉ, ρ)
    Retrace    Q_t = r_t + γ c_t [E_π Q(s'_t, ·) + n_t λ min(1, ρ_{t+1}) (Q_{t+1} − Q(s_{t+1}, a_{t+1}))]

Sutton & Barto 2018, chapter 12; Schulman et al. 2016, arXiv:1506.02438 (GAE); Espeholt et al. 2018, arXiv:1802.01561
(V-trace); Munos et al. 2016, arXiv:1606.02647 (Retrace). Departure: the papers know no truncation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core import everyone
from ..errors import UserError


def backwards(x: Tensor, decay: Tensor) -> Tensor:
    """y (T, ...) with y_t = x_t + decay_t y_{t+1}, and y_T = 0, of the dtype that the two have together."""
    y = torch.empty_like(x, dtype=torch.promote_types(x.dtype, decay.dtype))
    later = torch.zeros_like(y[0]) if len(x) else y
    for t in range(len(x) - 1, -1, -1):
        later = y[t] = torch.addcmul(x[t], decay[t], later)
    return y


def discounted(reward: Tensor, terminated: Tensor, truncated: Tensor, gamma: float) -> Tensor:
    """Sums of the discounted rewards (T, ...) up to the end of each episode, or of the stretch, without V."""
    _alike(reward, terminated=terminated, truncated=truncated)
    return backwards(reward, gamma * _on(reward, terminated, truncated))


def lambda_return(
    reward: Tensor, after: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """λ-returns G (T, ...): Monte Carlo returns (bootstrapped where cut off) for λ = 1, TD's targets for 0."""
    _alike(reward, after=after, terminated=terminated, truncated=truncated)
    on = _on(reward, terminated, truncated)
    alive = _within(on)
    return backwards(reward + gamma * _not(reward, terminated) * (1 - lam * alive) * after, gamma * lam * alive)


def n_step(reward: Tensor, after: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float, n: int) -> Tensor:
    """n-step returns (T, ...): n rewards, or those to the end of episode or stretch, and the value after them.

    Raises UserError where n is less than 1.
    """
    if n < 1:
        raise UserError(f"A return of n = {n} steps sees no reward: take n of 1 or more.")
    _alike(reward, after=after, terminated=terminated, truncated=truncated)
    live, alive = gamma * _not(reward, terminated), _within(_on(reward, terminated, truncated)).bool()
    g = reward + live * after
    for _ in range(min(n, len(reward)) - 1):
        later = torch.cat((g[1:], g[-1:]))  # (T, ...); the last row is not read
        g = reward + live * torch.where(alive, later, after)
    return g


def gae(
    reward: Tensor,
    value: Tensor,
    after: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimates A (T, ...); A + value is what the critic learns (TD(λ))."""
    _alike(reward, value=value, after=after, terminated=terminated, truncated=truncated)
    on = _on(reward, terminated, truncated)
    return backwards(td_error(reward, value, after, terminated, gamma=gamma), gamma * lam * on)


def td_error(reward: Tensor, value: Tensor, after: Tensor, terminated: Tensor, *, gamma: float) -> Tensor:
    """δ (T, ...) = r + γ V(s') − V(s), V(s') counting nothing where the episode has terminated."""
    return reward + gamma * _not(reward, terminated) * after - value


class VTrace(NamedTuple):
    """value: targets v (T, ...) of the critic. advantage: ρ̄ (r + γ v' − V) (T, ...), for the policy's gradient."""

    value: Tensor
    advantage: Tensor


def vtrace(
    reward: Tensor,
    value: Tensor,
    after: Tensor,
    log_ratio: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float = 1.0,
    rho: float = 1.0,
    c: float = 1.0,
) -> VTrace:
    """Targets and advantages for a policy π from experience of another, µ.

    log_ratio: log π(a_t|s_t) − log µ(a_t|s_t). rho, c: where the ratios are cut off, ρ̂ and ĉ. On-policy and with
    ρ̂ = ĉ = λ = 1 the targets are the returns to the end of the stretch.
    """
    _alike(reward, value=value, after=after, log_ratio=log_ratio, terminated=terminated, truncated=truncated)
    ratio, on = log_ratio.exp(), _on(reward, terminated, truncated)
    clipped = ratio.clamp(max=rho)
    delta = clipped * td_error(reward, value, after, terminated, gamma=gamma)
    target = value + backwards(delta, gamma * lam * ratio.clamp(max=c) * on)
    later = torch.where(_within(on).bool(), torch.cat((target[1:], after[-1:])), after)  # v of s'
    return VTrace(target, clipped * td_error(reward, value, later, terminated, gamma=gamma))


def retrace(
    reward: Tensor,
    q: Tensor,
    after: Tensor,
    log_ratio: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float = 1.0,
) -> Tensor:
    """Retrace(λ) targets (T, ...) of Q(s_t, a_t) for a policy π from experience of another, µ.

    q: Q(s_t, a_t) of the action taken. after: E_π Q(s'_t, ·). log_ratio: log π(a_t|s_t) − log µ(a_t|s_t).
    """
    _alike(reward, q=q, after=after, log_ratio=log_ratio, terminated=terminated, truncated=truncated)
    alive = _within(_on(reward, terminated, truncated))
    trace = lam * log_ratio.exp().clamp(max=1)
    later = alive * torch.cat((trace[1:], trace[-1:]))  # min(1, ρ_{t+1})
    return q + backwards(td_error(reward, q, after, terminated, gamma=gamma), gamma * later)


def following(value: Tensor, last: Tensor) -> Tensor:
    """V(s'_t) (T, ...) where no episode ends: the values one step later, and `last` (...) after the stretch."""
    return torch.cat((value[1:], last[None]))


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 − Var(target − value) / Var(target), over ranks: 1 for a perfect critic, 0 for a constant (or no variance)."""
    spread = _variance(target)
    left = _variance(target - value) / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    return torch.where(spread > 0, 1 - left, torch.zeros_like(spread))


def _variance(x: Tensor) -> Tensor:
    """Of as many numbers on every rank."""
    return everyone.mean((x - everyone.mean(x.mean())).square().mean())


def _on(like: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
    """1 where the next row is of the same episode."""
    return _not(like, terminated | truncated)


def _not(like: Tensor, flag: Tensor) -> Tensor:
    """1 where not, as a number of the dtype of `like`: a float times a boolean would be of torch's default dtype."""
    return (~flag).to(like)


def _within(on: Tensor) -> Tensor:
    """1 where the next row is of the same episode and there is one: 0 in the last."""
    return torch.cat((on[:-1], torch.zeros_like(on[-1:])))


def _alike(reward: Tensor, **others: Tensor) -> None:
    """Raise UserError where a shape is not the reward's: a broadcast would be wrong without a word."""
    for name, t in others.items():
        if t.shape != reward.shape:
            raise UserError(
                f"The reward is {tuple(reward.shape)} but {name} {tuple(t.shape)}: give both as (T, ...), time first."
            )
        if name in ("terminated", "truncated") and t.dtype != torch.bool:
            raise UserError(f"{name} is {t.dtype}: give booleans, where an episode ends.")
