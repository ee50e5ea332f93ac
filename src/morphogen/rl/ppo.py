r"""Proximal policy optimisation: several epochs on one stretch of experience, kept near the policy that made it.

    L = −E min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + c_v ½ E (V − G)² − c_e E H(π(·|s)),    ρ = π(a|s) / π_old(a|s)

A and G = A + V_old are GAE's, from `Rollouts`, which also has the epochs, the minibatches, the standardised advantages
(`finish=standard`), and the KL that ends them early; the clip of gradients and the falling learning rate are the
trainer's.

Schulman et al. 2017, arXiv:1707.06347. Departures: weights begin as those of the nets given (the first implementation's
are orthogonal); the value is clipped only where `value_clip` says so (as the paper has it: not).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Act, Batch, Loss, Model, Net, Noise
from ..errors import UserError
from .losses import approximate_kl, clipped_share, clipped_surrogate, clipped_value, squared
from .policy import Law
from .returns import explained_variance


class PPO(Model):
    """An actor and a critic of what is seen (B, ...).

    actor: says the parameters (B, law.outputs). critic: says V (B, 1). law: of the actions (policy.py). clip: ε.
    value, entropy: c_v and c_e. value_clip: how far V may move from what it was, counted (None: anywhere).
    Raises UserError where clip is not above 0.
    """

    def __init__(
        self,
        actor: Net,
        critic: Net,
        law: Law,
        *,
        clip: float = 0.2,
        value: float = 0.5,
        entropy: float = 0.0,
        value_clip: float | None = None,
    ) -> None:
        super().__init__()
        if clip <= 0:
            raise UserError(f"PPO with clip={clip} cannot learn: give one above 0 (the paper's is 0.2).")
        self.actor, self.critic, self.law = actor, critic, law
        self.clip, self.value, self.entropy, self.value_clip = clip, value, entropy, value_clip

    def act(self, obs: Tensor, memory: object = None, *, noise: Noise) -> Act:
        """Actions for observations (B, ...), with their "logp" and the critic's "value" (B,)."""
        params: Tensor = self.actor(obs)
        action = self.law.sample(params, noise)
        return Act(action, {"logp": self.law.log_prob(params, action), "value": self.critic(obs)[:, 0]})

    def log_prob(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log π(x|obs) (B,) of actions x (B, ...), of what is seen in cond["obs"], nats."""
        return self.law.log_prob(self.actor(self._seen(cond)), x)

    def sample(self, n: int, cond: Mapping[str, Tensor] | None = None, *, noise: Noise | None = None) -> Tensor:
        """n actions (n, ...), for what is seen in cond["obs"] (n, ...)."""
        noise = Noise.seeded(0, n) if noise is None else noise
        return self.law.sample(self.actor(self._seen(cond)), noise)

    def _seen(self, cond: Mapping[str, Tensor] | None) -> Tensor:
        if not cond or "obs" not in cond:
            raise UserError("A policy acts on what it sees: give cond={'obs': (B, ...)}.")
        return cond["obs"]

    def loss(self, batch: Batch) -> Loss:
        """L of a batch of `Rollouts`."""
        params, value = self.actor(batch["obs"]), self.critic(batch["obs"])[:, 0]
        logp, old = self.law.log_prob(params, batch["action"]), batch["info"]["logp"]
        policy = clipped_surrogate(logp, old, batch["advantage"], self.clip)
        if self.value_clip is None:
            error = squared(value, batch["return"])
        else:
            error = clipped_value(value, batch["info"]["value"], batch["return"], self.value_clip)
        entropy = self.law.entropy(params).mean()
        with torch.no_grad():
            logs = {
                "kl": approximate_kl(logp, old),
                "clipped": clipped_share(logp, old, self.clip),
                "entropy": entropy.detach(),
                "explained": explained_variance(batch["info"]["value"], batch["return"]),
                "score": batch["score"].mean(),
            }
        return Loss(policy + self.value * error - self.entropy * entropy, logs)
