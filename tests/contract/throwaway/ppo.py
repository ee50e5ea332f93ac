"""PPO in sixty lines on a two-state MDP: data made by the policy, epochs stopped by the KL that the source hears.

The MDP: action 1 in state 0 leads to state 1; action 1 in state 1 pays 1 and stays; action 0 leads to state 0.
The best policy takes action 1 everywhere. (Schulman et al. 2017, arXiv:1707.06347.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from morphogen import Act, Data, Experiment, Loss, Model, Noise, Place, Remembers, Trainer
from morphogen.core import keys
from morphogen.optim import AdamW


class Policy(Model):
    def __init__(self, clip: float = 0.2) -> None:
        super().__init__()
        self.clip, self.logits, self.value = clip, nn.Linear(2, 2), nn.Linear(2, 1)

    def act(self, obs: Tensor, memory=None, *, noise: Noise) -> Act:
        logits = self.logits(obs)
        action = noise.categorical(logits)
        return Act(action, {"logp": _logp(logits, action), "value": self.value(obs).squeeze(1)})

    def loss(self, batch) -> Loss:
        logits, advantage = self.logits(batch["obs"]), batch["advantage"]
        log_ratio = _logp(logits, batch["action"]) - batch["logp"]
        ratio = log_ratio.exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage).mean()
        error = (self.value(batch["obs"]).squeeze(1) - batch["return"]).square().mean()
        kl = ((ratio - 1) - log_ratio).mean().detach()  # Schulman's k3
        return Loss(0.5 * error - gain, logs={"kl": kl, "reward": batch["reward"].mean()})


def _logp(logits: Tensor, action: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, action[:, None]).squeeze(1)


class Rollouts(Remembers):
    """Each rollout serves up to `epochs` steps, fewer once the KL that the last step reported passes `most_kl`."""

    def __init__(
        self, envs: int = 16, length: int = 8, epochs: int = 4, gamma: float = 0.9, most_kl: float = 0.003
    ) -> None:
        self.envs, self.length, self.epochs, self.gamma, self.most_kl = envs, length, epochs, gamma, most_kl

    def start(self, place: Place) -> None:
        self.place, self.rollouts, self.used = place, 0, self.epochs
        self.at, self.batch = torch.zeros(self.envs, dtype=torch.long), {}

    def next(self, actor, heard):
        if self.used >= self.epochs or (heard and heard["loss"].logs["kl"] > self.most_kl):
            self.batch, self.used = self._play(actor), 0
            self.rollouts += 1
        self.used += 1
        return self.batch

    @torch.no_grad()
    def _play(self, actor):
        noise = Noise(keys(torch.arange(self.envs), self.place.seed, self.rollouts))
        rows = []
        for _ in range(self.length):
            obs = nn.functional.one_hot(self.at, 2).float()
            act = actor.act(obs, noise=noise)
            reward = ((self.at == 1) & (act.action == 1)).float()
            rows.append({"obs": obs, "action": act.action, "reward": reward, **act.info})
            self.at = act.action.clone()
        after = actor.value(nn.functional.one_hot(self.at, 2).float()).squeeze(1)
        for row in reversed(rows):
            after = row["return"] = row["reward"] + self.gamma * after
            row["advantage"] = row["return"] - row["value"]
        return {k: torch.cat([row[k] for row in rows]) for k in rows[0]}

    def state(self):
        return {"rollouts": self.rollouts, "used": self.used, "at": self.at, "batch": dict(self.batch)}

    def restore(self, state) -> None:
        self.rollouts, self.used, self.at, self.batch = (state[k] for k in ("rollouts", "used", "at", "batch"))


def experiment(steps: int = 40) -> Experiment:
    return Experiment(Policy(), Data(Rollouts()), Trainer(steps, optim=AdamW(5e-2), save_every=7, log_every=10))
