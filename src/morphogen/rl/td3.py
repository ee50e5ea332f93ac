r"""Deterministic policies that climb a learned Q: TD3, and DDPG as TD3 without its three changes.

    values   ½ E w Σ_i (y − Q_i(s, a))²,   y = r + γ̂ min_i Q'_i(s', π'(s') + clip(ε, −c, c)),   ε ~ N(0, σ²)
    policy   −E Q_1(s, π(s)),   every `delay` steps, and then the copies: θ' ← τ θ + (1 − τ) θ'
    acting   π(s) + N(0, s²), within the bounds

Fujimoto et al. 2018, arXiv:1802.09477: twin critics, smoothed target actions, and a delayed policy. DDPG (Lillicrap et
al. 2016, arXiv:1509.02971) has one critic, σ = 0 and no delay. γ̂ and w are `Replay`'s. σ, c and s are in units of half
the distance between the bounds. Departure from DDPG's paper: noise without memory for an Ornstein-Uhlenbeck process,
which TD3's authors found to be no better; no batch normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Act, Batch, Loss, Model, Net, Noise, Phase
from ..errors import UserError
from .losses import td_target
from .policy import Squashed
from .target import Target


class TD3(Model):
    """A policy and critics of observations (B, n) and actions (B, m), from a `Replay`.

    actor: says (B, m), which `law` squashes into the bounds. critic: Q (K, B, 1) of observation and action side by
    side, an `Ensemble`; two for TD3. sigma, clip: of the target's noise. delay: steps of the critics for one of the
    policy. noise: s, of acting. tau: of the copies. Before the first step any action is taken. Optimisers may be two:
    {"critic": …, "actor": …}.
    Raises UserError where a number is out of its range.
    """

    judged_greedy: ClassVar[bool] = True
    scaffold: ClassVar[tuple[str, ...]] = ("critic", "target_actor", "target_critic")
    whole: ClassVar[tuple[str, ...]] = ("actor", "critic")  # the copies follow them whole

    def __init__(
        self,
        actor: Net,
        critic: Net,
        law: Squashed,
        *,
        sigma: float = 0.2,
        clip: float = 0.5,
        delay: int = 2,
        noise: float = 0.1,
        tau: float = 0.005,
    ) -> None:
        super().__init__()
        if not (0 <= sigma < math.inf and clip >= 0 and 0 <= noise < math.inf and delay >= 1 and 0 < tau <= 1):
            raise UserError(
                f"TD3 with sigma={sigma}, clip={clip}, delay={delay}, noise={noise}, tau={tau}: give sigma, clip and"
                " noise of 0 or more, a delay of 1 or more, and tau in (0, 1]."
            )
        self.actor, self.critic, self.law = actor, critic, law
        self.target_actor, self.target_critic = Target(actor), Target(critic)
        self.sigma, self.clip, self.delay, self.noise, self.tau = sigma, clip, delay, noise, tau

    def phases(self) -> list[Phase]:
        """The values, and now and then the policy."""
        return [Phase(self.values, ("critic",)), Phase(self.policy, ("actor",), self.delay)]

    def act(self, obs: Tensor, memory: object = None, *, noise: Noise) -> Act:
        """Actions (B, m) for observations (B, n)."""
        if self.step == 0:
            return Act(self.law.uniform(noise))
        return Act(self.law.about(self.law.squash(self.actor(obs)), noise, sigma=self.noise))

    def greedy(self, obs: Tensor, memory: object = None) -> Act:
        """Actions (B, m) without noise for observations (B, n)."""
        return Act(self.law.squash(self.actor(obs)))

    def values(self, batch: Batch) -> Loss:
        """The critics learn the value of the policy's copy; the priority of a step is the largest error."""
        with torch.no_grad():
            action = self.law.squash(self.target_actor(batch["next"]))
            if self.sigma:
                action = self.law.about(action, Noise(batch["key"]), sigma=self.sigma, clip=self.clip)
            after = self.target_critic(beside(batch["next"], action))[..., 0].amin(0)
            target = td_target(batch["reward"], batch["discount"], after)
        return critics_loss(self.critic(beside(batch["obs"], batch["action"])), target, batch)

    def policy(self, batch: Batch) -> Loss:
        """The policy climbs the first critic."""
        action = self.law.squash(self.actor(batch["obs"]))
        return Loss(-self.critic(beside(batch["obs"], action))[0].mean())

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """The copies follow after the policy."""
        if phase == "policy":
            self.target_actor.follow(self.actor, self.tau)
            self.target_critic.follow(self.critic, self.tau)


def ddpg(actor: Net, critic: Net, law: Squashed, *, noise: float = 0.1, tau: float = 0.005) -> TD3:
    """Lillicrap et al. 2016: one critic (an `Ensemble` of one), and the policy is moved in every step."""
    return TD3(actor, critic, law, sigma=0.0, delay=1, noise=noise, tau=tau)


def beside(obs: Tensor, action: Tensor) -> Tensor:
    """Observations (B, ...) and actions (B, m) as rows, which critics read."""
    return torch.cat((obs.flatten(1), action), 1)


def critics_loss(q: Tensor, target: Tensor, batch: Batch) -> Loss:
    """½ E w Σ_i (y − Q_i)² of critics (K, B, 1) and targets (B,); the priority of a step is the largest error."""
    error = target - q[..., 0]  # (K, B)
    loss = 0.5 * (batch["weight"] * error.square().sum(0)).mean()
    logs = {"q": q.detach().mean(), "score": batch["score"].mean()}
    return Loss(loss, logs, {"priority": error.detach().abs().amax(0)})
