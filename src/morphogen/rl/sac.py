r"""Soft actor-critic: the return and the entropy of a stochastic policy are sought together.

    values   ½ E w Σ_i (y − Q_i(s, a))²,   y = r + γ̂ [min_i Q'_i(s', a') − α log π(a'|s')],   a' ~ π(·|s')
    policy   E α log π(a|s) − min_i Q_i(s, a),   a ~ π(·|s), differentiably
    and      −log α E (log π(a|s) + H̄):  α rises while the policy's entropy is below its target H̄
    copies   Q' ← τ Q + (1 − τ) Q'

Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", arXiv:1812.05905; γ̂ and w are `Replay`'s. With
H̄ = None α stands still (their first paper, arXiv:1801.01290, without its net of V). Departures: the gradient of α is
that of log α, as in their code; the policy is moved after the values in each step, with the log-probabilities of one
draw for both it and α.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Act, Batch, Loss, Model, Net, Noise, Phase
from ..errors import UserError
from .losses import soft_policy, soft_value, td_target, temperature
from .policy import SquashedNormal, observed
from .target import Target
from .td3 import beside, critics_loss


class SAC(Model):
    """A policy and twin critics of observations (B, n) and actions (B, m), from a `Replay`.

    actor: says the parameters (B, law.outputs). critic: Q (2, B, 1) of observation and action side by side, an
    `Ensemble`. law: of the actions. target_entropy: nats, of actions in units of the law's bounds, usually −m as in the
    paper, so that H̄ = target_entropy + m log(scale) of the actions themselves; None: α stays. alpha: what it begins
    with. tau: of the copies. Before the first step any action is taken. Optimisers may be two: {"critic": …,
    "actor+log_alpha": …} ("actor" where α stays).
    Raises UserError where a number is out of its range.
    """

    judged_greedy: ClassVar[bool] = True
    scaffold: ClassVar[tuple[str, ...]] = ("critic", "target")
    whole: ClassVar[tuple[str, ...]] = ("critic",)  # the copy follows it whole

    def __init__(
        self,
        actor: Net,
        critic: Net,
        law: SquashedNormal,
        *,
        target_entropy: float | None = None,
        alpha: float = 1.0,
        tau: float = 0.005,
    ) -> None:
        super().__init__()
        if not (0 < alpha < math.inf and 0 < tau <= 1 and (target_entropy is None or math.isfinite(target_entropy))):
            raise UserError(
                f"SAC with target_entropy={target_entropy}, alpha={alpha}, tau={tau}: give a finite entropy or None,"
                " alpha above 0, and tau in (0, 1]."
            )
        self.actor, self.critic, self.law, self.target = actor, critic, law, Target(critic)
        self.entropy, self.tau = target_entropy, tau
        if target_entropy is not None:
            self.entropy = target_entropy + law.m * math.log(law.scale)  # of the actions themselves
        self.log_alpha = nn.Parameter(torch.tensor(alpha).log(), requires_grad=target_entropy is not None)

    def phases(self) -> list[Phase]:
        """The values, then the policy and its temperature."""
        trains = ("actor",) if self.entropy is None else ("actor", "log_alpha")
        return [Phase(self.values, ("critic",)), Phase(self.policy, trains)]

    def act(self, obs: Tensor, memory: object = None, *, noise: Noise) -> Act:
        """Actions (B, m) for observations (B, n)."""
        return Act(self.law.sample(self.actor(obs), noise) if self.step else self.law.uniform(noise))

    def greedy(self, obs: Tensor, memory: object = None) -> Act:
        """The law's modes (B, m) for observations (B, n)."""
        return Act(self.law.mode(self.actor(obs)))

    def log_prob(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log π(x|obs) (B,) of actions x (B, m), of what is seen in cond["obs"], nats."""
        return self.law.log_prob(self.actor(observed(cond)), x)

    def sample(self, n: int, cond: Mapping[str, Tensor] | None = None, *, noise: Noise | None = None) -> Tensor:
        """n actions (n, m), for what is seen in cond["obs"] (n, ...)."""
        noise = Noise.fresh(n, observed(cond).device) if noise is None else noise
        return self.law.sample(self.actor(observed(cond)), noise)

    def values(self, batch: Batch) -> Loss:
        """Both critics learn the soft value; the priority of a step is the larger error."""
        with torch.no_grad():
            action, logp = self.law.draw(self.actor(batch["next"]), Noise(batch["key"]))
            q1, q2 = self.target(beside(batch["next"], action))[..., 0]
            after = soft_value(q1, q2, logp, self.log_alpha.exp())
            target = td_target(batch["reward"], batch["discount"], after)
        return critics_loss(self.critic(beside(batch["obs"], batch["action"])), target, batch)

    def policy(self, batch: Batch) -> Loss:
        """The policy climbs the lesser critic and its own entropy, and α follows."""
        noise = Noise(~batch["key"])  # apart from the target's
        action, logp = self.law.draw(self.actor(batch["obs"]), noise)
        q = self.critic(beside(batch["obs"], action))[..., 0].amin(0)
        alpha = self.log_alpha.exp().detach()
        loss = soft_policy(logp, q, alpha)
        if self.entropy is not None:
            loss = loss + temperature(self.log_alpha, logp, self.entropy)
        return Loss(loss, {"alpha": alpha, "entropy": -logp.detach().mean()})

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """The copy follows the critics."""
        if phase == "values":
            self.target.follow(self.critic, self.tau)
