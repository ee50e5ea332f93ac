r"""Agents that follow the gradient of their return: REINFORCE, A2C and PPO, one loss with another surrogate.

    L = L_π + c_v ½ E (V(s) − G)² − c_e E H(π(·|s))

    PolicyGradient   L_π = −E A log π(a|s)                                              REINFORCE, VPG, A2C
    Clipped          L_π = −E min(ρ A, clip(ρ, 1 − ε, 1 + ε) A),  ρ = π(a|s)/π_old(a|s)   PPO

A and G are the source's (`Rollouts`): GAE, or Monte Carlo's returns less V. So are the epochs, the minibatches, the
standardised advantages and the KL that ends a stretch early; the clip of gradients and the falling learning rate are
the trainer's. presets.py has the papers' numbers, and tells which details are a paper's and which its first code's.

Williams 1992, "Simple statistical gradient-following algorithms" (REINFORCE); Mnih et al. 2016, arXiv:1602.01783 (A3C,
of which A2C is the synchronous form: with one worker they are the same); Schulman et al. 2017, arXiv:1707.06347 (PPO).
Departures: what is seen is stored as the net saw it, so that moments may move on without moving the ratio; rewards are
divided by the deviation of the returns that the critic learns, which is fixed during a stretch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import Act, Batch, Loss, Model, Net, Noise
from ..errors import UserError
from ..nets.recurrent import Recurrence
from ..spec import Remembers
from .losses import approximate_kl, clipped_share, clipped_surrogate, clipped_value, policy_gradient, squared
from .moments import Moments
from .policy import Law, observed
from .rollouts import Reviews


class Surrogate(Remembers, ABC):
    """The loss whose gradient is minus that of the return."""

    @abstractmethod
    def __call__(self, logp: Tensor, old: Tensor, advantage: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what to log, of log π(a|s) now and when a was taken (B,). step: those finished."""


class PolicyGradient(Surrogate):
    """−E A log π."""

    def __call__(self, logp: Tensor, old: Tensor, advantage: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return policy_gradient(logp, advantage), {}


class Clipped(Surrogate):
    """−E min(ρ A, clip(ρ, 1 − ε, 1 + ε) A). clip: ε. until: the step at which ε, falling linearly, is 0 (None: never).

    Raises UserError where clip is not above 0 and finite, or until not above 0.
    """

    def __init__(self, clip: float = 0.2, *, until: int | None = None) -> None:
        if not 0 < clip < math.inf:
            raise UserError(f"PPO with clip={clip} cannot learn: give a number above 0 (the paper's is 0.2).")
        if until is not None and until < 1:
            raise UserError(f"The clip of PPO falls until step {until}: give the number of training steps.")
        self.clip, self.until = clip, until

    def __call__(self, logp: Tensor, old: Tensor, advantage: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        clip = self.clip if self.until is None else self.clip * max(0.0, 1 - step / self.until)
        with torch.no_grad():
            logs = {"kl": approximate_kl(logp, old), "clipped": clipped_share(logp, old, clip)}
        return clipped_surrogate(logp, old, advantage, clip), logs


class ActorCritic(Model):
    """An actor and a critic of what is seen (B, ...), or of what a core remembers of it.

    actor: says the parameters (B, law.outputs). critic: says V (B, 1); None: there is no baseline. law: of the actions
    (policy.py). surrogate: the policy's loss. value, entropy: c_v and c_e. value_clip: how far V may move from what it
    was, counted (None: anywhere). core: of a policy with a memory, zeros at the beginning of an episode; it is learnt
    from batches cut `by_environment`. observations, returns: moments, learnt on the way, by which what is seen is
    standardised, and rewards are scaled. Raises UserError where moments of the returns have no critic to learn them,
    and where a number is out of its range.
    """

    judged_greedy: ClassVar[bool] = False  # the papers report the returns of the law that is learnt

    def __init__(
        self,
        actor: Net,
        critic: Net | None,
        law: Law,
        surrogate: Surrogate,
        *,
        value: float = 0.5,
        entropy: float = 0.0,
        value_clip: float | None = None,
        core: Recurrence | None = None,
        observations: Moments | None = None,
        returns: Moments | None = None,
    ) -> None:
        super().__init__()
        if not (0 <= value < math.inf and 0 <= entropy < math.inf and (value_clip is None or value_clip > 0)):
            raise UserError(
                f"An ActorCritic with value={value}, entropy={entropy}, value_clip={value_clip}: give weights of 0 or"
                " more, and a value_clip above 0 or None."
            )
        if returns is not None and critic is None:
            raise UserError("Moments of the returns scale what a critic learns: give one, or leave returns out.")
        self.actor, self.critic, self.law, self.surrogate = actor, critic, law, surrogate
        self.value, self.entropy, self.value_clip = value, entropy, value_clip
        self.core, self.observations, self.returns = core, observations, returns
        self.lacks = () if core is None else (Reviews,)  # what it remembers is known only step by step

    # ---- acting

    def act(self, obs: Tensor, memory: Any = None, *, noise: Noise) -> Act:
        """Actions for observations (B, ...), and of each its "logp" and, where there are such, its "value" (B,), what
        the nets have "seen", and the "unit" that rewards are divided by.
        """
        seen = self._seen(obs)
        h, memory = self._remembered(seen, memory)
        params = self.actor(h)
        action = self.law.sample(params, noise)
        return Act(action, self._told(seen, h, params, action), memory)

    def decide(self, obs: Tensor, *, noise: Noise) -> Tensor:
        """The actions of `act` alone."""
        return self.law.sample(self.actor(self._seen(obs)), noise)

    def review(self, obs: Tensor, action: Tensor) -> Mapping[str, Tensor]:
        """What `act` says of actions (N, ...) for observations (N, ...), of a whole stretch at once."""
        seen = self._seen(obs)
        return self._told(seen, seen, self.actor(seen), action)

    def log_prob(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log π(x|obs) (B,) of actions x (B, ...), of what is seen in cond["obs"], nats."""
        return self.law.log_prob(self._params(cond), x)

    def sample(self, n: int, cond: Mapping[str, Tensor] | None = None, *, noise: Noise | None = None) -> Tensor:
        """n actions (n, ...), for what is seen in cond["obs"] (n, ...)."""
        noise = Noise.fresh(n, observed(cond).device) if noise is None else noise
        return self.law.sample(self._params(cond), noise)

    def _params(self, cond: Mapping[str, Tensor] | None) -> Tensor:
        memory = None if cond is None else cond.get("memory")
        params: Tensor = self.actor(self._remembered(self._seen(observed(cond)), memory)[0])
        return params

    def _seen(self, obs: Tensor) -> Tensor:
        return obs if self.observations is None else self.observations(obs)

    def _remembered(self, seen: Tensor, memory: Any) -> tuple[Tensor, Any]:
        if self.core is None:
            return seen, None
        return self.core.step(seen, memory)

    def _told(self, seen: Tensor, h: Tensor, params: Tensor, action: Tensor) -> dict[str, Tensor]:
        told = {"logp": self.law.log_prob(params, action)}
        if self.critic is not None:
            told["value"] = self.critic(h).squeeze(-1)
        if self.observations is not None:
            told["seen"] = seen
        if self.returns is not None:
            told["unit"] = self.returns.deviation.to(seen).expand(len(seen))
        return told

    def greedy(self, obs: Tensor, memory: Any = None) -> Act:
        """As `act`, by the mode of the law."""
        h, memory = self._remembered(self._seen(obs), memory)
        return Act(self.law.mode(self.actor(h)), memory=memory)

    # ---- learning

    def loss(self, batch: Batch) -> Loss:
        """L of a batch of `Rollouts`. Raises UserError where its estimate says too little."""
        for name in ("advantage",) if self.critic is None else ("advantage", "return"):
            if name not in batch:
                raise UserError(f"The batch has no {name!r} to learn from: let the estimate of Rollouts say it.")
        lessons = self._lessons(batch)
        h: Tensor = batch["info"].get("seen", batch["obs"])
        if self.core is not None:
            if "memory" not in batch:
                raise UserError("A policy with a memory learns from whole stretches: give Rollouts cut=by_environment.")
            h, _ = self.core(h, batch["memory"], begins=batch["begins"])  # (B, T, ...)
            h, batch = h.flatten(0, 1), {k: _steps(v) for k, v in batch.items() if k != "memory"}
        info = batch["info"]
        params = self.actor(h)
        logp = self.law.log_prob(params, batch["action"])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.entropy != 0):
            entropy = self.law.entropy(params).mean()
        total, logs = self.surrogate(logp, info["logp"], batch["advantage"], self.step)
        total = total - self.entropy * entropy if self.entropy else total
        if self.critic is not None:
            value = self.critic(h).squeeze(-1)
            if self.value_clip is None:
                error = squared(value, batch["return"])
            else:
                error = clipped_value(value, info["value"], batch["return"], self.value_clip)
            total = total + self.value * error
            logs["explained"] = batch["explained"].mean()
        return Loss(total, {**logs, "entropy": entropy.detach(), "score": batch["score"].mean()}, lessons)

    def _lessons(self, batch: Batch) -> dict[str, Tensor]:
        """What the moments learn from: each sample when it is served for the first time."""
        if (self.observations is None and self.returns is None) or bool(batch["epoch"].any()):
            return {}
        lessons = {"observations": batch["obs"]} if self.observations is not None else {}
        if self.returns is not None:
            lessons["returns"] = batch["return"] * batch["info"]["unit"]
        return lessons

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """Take new samples into the moments."""
        for name, x in seen.items():
            getattr(self, name).add(x)


def _steps(value: Any) -> Any:
    """(B, T, ...) as (B T, ...); what is said once of a whole stretch is left (B,)."""
    if isinstance(value, Mapping):
        return {k: _steps(v) for k, v in value.items()}
    return value.flatten(0, 1) if value.ndim > 1 else value
