r"""Bandits: one state, K arms, and the question of when to try another. Many problems (N, K) are played side by side.

    ε-greedy    the best mean so far, or with probability ε any arm
    UCB1        argmax_k  µ̂_k + c sqrt(ln t / n_k)                               Auer, Cesa-Bianchi & Fischer 2002
    Thompson    argmax_k of a draw from each arm's posterior                     Thompson 1933
    gradient    π = softmax(h),  h ← h + α (r − r̄)(1_a − π)                      Williams 1992; Sutton & Barto, 2.8

Regret after T pulls is Σ_t µ* − µ_{a_t}. For rewards in [0, 1] that of UCB1 (c = √2) is in the mean at most
Σ_k 8 ln T / Δ_k + (1 + π²/3) Σ_k Δ_k, and no consistent player's grows slower than Σ_k Δ_k ln T / KL(µ_k, µ*)
(Lai & Robbins 1985), which Thompson's reaches.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ...core import Noise
from ...errors import UserError
from ...spec import Remembers


class Arms(NamedTuple):
    """Means (N, K) of N problems of K arms, and the standard deviation of a normal reward; 0 is a reward of 0 or 1."""

    mean: Tensor
    sigma: float = 1.0

    def pull(self, arm: Tensor, noise: Noise) -> Tensor:
        """Rewards (N,) of arms (N,)."""
        mean = self.mean.gather(1, arm[:, None])[:, 0]
        if self.sigma:
            return mean + self.sigma * noise.normal(dtype=mean.dtype)
        return (noise.uniform(dtype=mean.dtype) < mean).to(mean)


class Record(NamedTuple):
    """What a player knows of N problems: pulls and mean rewards (N, K), and its preferences h (N, K)."""

    pulls: Tensor
    mean: Tensor
    preference: Tensor


class Player(Remembers):
    """How arms are chosen and what is learnt of a reward. Subclasses are final."""

    @abstractmethod
    def choose(self, record: Record, t: int, noise: Noise) -> Tensor:
        """Arms (N,) for pull t = 1, 2, …"""

    def prefer(self, record: Record, arm: Tensor, reward: Tensor, average: Tensor) -> Tensor:
        """Preferences (N, K) after a reward (N,); average (N,): of the rewards before it."""
        return record.preference


class EpsilonGreedy(Player):
    """The best mean so far, ties shared, or with probability epsilon any arm. Untried arms are worth `initial`."""

    def __init__(self, epsilon: float = 0.1, initial: float = 0.0) -> None:
        if not 0 <= epsilon <= 1:
            raise UserError(f"The probability epsilon = {epsilon} must lie in [0, 1].")
        self.epsilon, self.initial = epsilon, initial

    def choose(self, record: Record, t: int, noise: Noise) -> Tensor:
        """Arms (N,)."""
        value = torch.where(record.pulls > 0, record.mean, self.initial)
        best = (value == value.amax(1, keepdim=True)).to(value)
        probs = (1 - self.epsilon) * best / best.sum(1, keepdim=True) + self.epsilon / value.shape[1]
        return noise.categorical(probs.log())


class UCB(Player):
    """The upper confidence bound; every arm once to begin with. c: of 0 or more, else UserError; √2 is UCB1's."""

    def __init__(self, c: float = 2.0**0.5) -> None:
        if not 0 <= c < math.inf:
            raise UserError(f"A bound of c = {c} deviations is none: take 0 or more (UCB1's is √2).")
        self.c = c

    def choose(self, record: Record, t: int, noise: Noise) -> Tensor:
        """Arms (N,)."""
        log_t = torch.tensor(float(t), dtype=record.mean.dtype).log()
        bound = record.mean + self.c * (log_t / record.pulls.clamp(min=1)).sqrt()
        return torch.where(record.pulls > 0, bound, torch.inf).argmax(1)


class ThompsonNormal(Player):
    """Thompson's sampling for normal rewards of a known sigma under the prior N(0, prior²)."""

    def __init__(self, sigma: float = 1.0, prior: float = 1.0) -> None:
        if not (0 < sigma < math.inf and 0 < prior < math.inf):
            raise UserError(f"Standard deviations sigma = {sigma} and prior = {prior} must lie above 0.")
        self.sigma, self.prior = sigma, prior

    def choose(self, record: Record, t: int, noise: Noise) -> Tensor:
        """Arms (N,)."""
        precision = record.pulls / self.sigma**2 + 1 / self.prior**2
        mean = record.mean * record.pulls / self.sigma**2 / precision
        return (mean + noise.normal(mean.shape[1], dtype=mean.dtype) * precision.rsqrt()).argmax(1)


class ThompsonBernoulli(Player):
    """Thompson's sampling for rewards of 0 and 1 under the uniform prior: posteriors Beta(1 + wins, 1 + losses).

    A draw of a beta law is one of two gamma laws' ratio, each by Marsaglia and Tsang's method, eight tries of it.
    """

    def choose(self, record: Record, t: int, noise: Noise) -> Tensor:
        """Arms (N,)."""
        wins = record.mean * record.pulls
        won, lost = _gamma(1 + wins, noise), _gamma(1 + record.pulls - wins, noise)
        return (won / (won + lost)).argmax(1)


class Gradient(Player):
    """A softmax of preferences that follow the gradient of the expected reward, the mean reward as baseline."""

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0 < alpha < math.inf:
            raise UserError(f"A step of alpha = {alpha} learns nothing: take one above 0.")
        self.alpha = alpha

    def choose(self, record: Record, t: int, noise: Noise) -> Tensor:
        """Arms (N,)."""
        return noise.categorical(record.preference)

    def prefer(self, record: Record, arm: Tensor, reward: Tensor, average: Tensor) -> Tensor:
        """h + α (r − r̄)(1_a − π)."""
        chosen = torch.nn.functional.one_hot(arm, record.preference.shape[1])
        step = (reward - average)[:, None] * (chosen - record.preference.softmax(1))
        return record.preference + self.alpha * step


class Played(NamedTuple):
    """arm, reward (T, N); regret (T, N), summed up to each pull; best (T, N) bool: whether it was the best arm."""

    arm: Tensor
    reward: Tensor
    regret: Tensor
    best: Tensor


def play(arms: Arms, player: Player, pulls: int, seed: int = 0) -> Played:
    """`pulls` pulls of every problem. Raises UserError where there is none."""
    if pulls < 1:
        raise UserError(f"{pulls} pulls tell nothing: make 1 or more.")
    zero = torch.zeros_like(arms.mean)
    record, total = Record(zero, zero, zero), zero[:, 0]
    noise, chosen, rewards = Noise.seeded(seed, len(zero), device=zero.device), [], []
    for t in range(1, pulls + 1):
        arm = player.choose(record, t, noise)
        reward = arms.pull(arm, noise)
        preference = player.prefer(record, arm, reward, total / max(1, t - 1))
        mark = torch.nn.functional.one_hot(arm, zero.shape[1]).to(zero)
        count = record.pulls + mark
        mean = record.mean + mark * (reward[:, None] - record.mean) / count.clamp(min=1)
        record, total = Record(count, mean, preference), total + reward
        chosen.append(arm)
        rewards.append(reward)
    arm = torch.stack(chosen)  # (T, N)
    top = arms.mean.amax(1)
    missed = top - arms.mean.gather(1, arm.T).T
    return Played(arm, torch.stack(rewards), missed.cumsum(0), missed == 0)


def _gamma(shape: Tensor, noise: Noise) -> Tensor:
    """Draws of Gamma(shape, 1), shape (N, K) ≥ 1, by Marsaglia & Tsang 2000; the mode where eight tries all fail."""
    d = shape - 1 / 3
    c = (9 * d).rsqrt()
    out = d  # in place of what is refused eight times, which has a probability below 1e-10
    for _ in range(8):
        x, u = noise.normal(shape.shape[1], dtype=shape.dtype), noise.uniform(shape.shape[1], dtype=shape.dtype)
        v = (1 + c * x) ** 3
        fits = (v > 0) & (u.clamp(min=1e-12).log() < 0.5 * x * x + d - d * v + d * v.clamp(min=1e-12).log())
        out = torch.where(fits, d * v, out)
    return out
