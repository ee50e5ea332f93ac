r"""Deep Q-learning: a net of Q(s, ·) learned from a memory, towards a target that a slower copy of it says.

    L = E w H(y − Q(s, a)),   y = r + γ̂ V(s'),   H Huber's loss, γ̂ = γ^n or 0 at the end, w the replay's weights
        V(s') = max_a Q'(s', a)                       Mnih et al. 2015
        V(s') = Q'(s', argmax_a Q(s', a))             double: van Hasselt et al. 2016, arXiv:1509.06461
    Q = V + A − mean A, in two streams                duelling: Wang et al. 2016, arXiv:1511.06581
    acting: any action with probability ε, which falls from 1, else the best

Memory, priorities (Schaul et al. 2016, arXiv:1511.05952) and n steps at once are `Replay`'s: |y − Q| is what the loss
says through the door for priorities. "Rainbow" without the law of returns and noisy nets (Hessel et al. 2018,
arXiv:1710.02298) is all of them together.

Departures: Adam for RMSProp, as everyone since; `tau` below 1 moves the copy a little at each copying; the gradient of
the duelling net's body is not scaled by 1/√2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..core import Act, Batch, Loss, Model, Net, Noise
from ..errors import UserError
from .losses import chosen, double_value, duelling, greedy_value, huber, td_target
from .target import Target


class Duelling(Net):
    """Q (B, A) in two streams: `value` (B, 1) and `advantage` (B, A) of what `body` makes of what is seen (B, ...)."""

    def __init__(self, body: Net, value: Net, advantage: Net) -> None:
        super().__init__()
        self.body, self.value, self.advantage = body, value, advantage

    def forward(self, obs: Tensor) -> Tensor:
        h = self.body(obs)
        return duelling(self.value(h), self.advantage(h))


class DQN(Model):
    """Q-learning with a net: observations (B, ...) to Q (B, A), from a `Replay`.

    actions: A. double: whether the net itself chooses the action that its copy values. copy_every, tau: after so many
    steps the copy goes this share of the way to the net. kappa: where Huber's loss becomes linear. explore, epsilon: in
    so many steps ε falls from 1 to `epsilon`; it is 1 before the first step, while the memory fills.
    Raises UserError where a number is out of its range.
    """

    judged_greedy: ClassVar[bool] = True  # the paper's agents keep an ε of 0.05, to vary games that begin alike
    scaffold: ClassVar[tuple[str, ...]] = ("target",)
    whole: ClassVar[tuple[str, ...]] = ("net",)  # the copy follows it whole

    def __init__(
        self,
        net: Net,
        actions: int,
        *,
        double: bool = True,
        copy_every: int = 100,
        tau: float = 1.0,
        kappa: float = 1.0,
        explore: int = 1000,
        epsilon: float = 0.05,
    ) -> None:
        super().__init__()
        if not (min(actions, copy_every, explore) >= 1 and 0 < tau <= 1 and 0 <= epsilon <= 1 and kappa > 0):
            raise UserError(
                f"A DQN with actions={actions}, copy_every={copy_every}, tau={tau}, kappa={kappa}, explore={explore},"
                f" epsilon={epsilon}: give actions and steps of 1 or more, kappa above 0, tau in (0, 1] and epsilon in"
                " [0, 1]."
            )
        self.net, self.target = net, Target(net)
        self.actions, self.doubled, self.copy_every, self.tau = actions, double, copy_every, tau
        self.kappa, self.explore, self.epsilon = kappa, explore, epsilon

    def act(self, obs: Tensor, memory: object = None, *, noise: Noise) -> Act:
        """ε-greedy actions (B,) for observations (B, ...)."""
        epsilon = 1 - (1 - self.epsilon) * min(1.0, self.step / self.explore)
        chance = noise.uniform(2, dtype=torch.float64)  # one draw for both: of few environments it is all calls
        explores, any_action = chance[:, 0] < epsilon, (chance[:, 1] * self.actions).long()
        if explores.is_cpu and bool(explores.all()):  # elsewhere reading the flag costs more than the net
            return Act(any_action)
        return Act(torch.where(explores, any_action, self.net(obs).argmax(1)))

    def greedy(self, obs: Tensor, memory: object = None) -> Act:
        """The best actions (B,) for observations (B, ...)."""
        return Act(self.net(obs).argmax(1))

    def loss(self, batch: Batch) -> Loss:
        """L of a batch of `Replay`; the priority of a step is its error."""
        with torch.no_grad():
            q_target = self.target(batch["next"])
            after = double_value(q_target, self.net(batch["next"])) if self.doubled else greedy_value(q_target)
            target = td_target(batch["reward"], batch["discount"], after)
        q = chosen(self.net(batch["obs"]), batch["action"])
        loss = (batch["weight"] * huber(q, target, self.kappa)).mean()
        logs = {"q": q.detach().mean(), "score": batch["score"].mean()}
        return Loss(loss, logs, {"priority": (target - q).detach()})

    def after_step(self, phase: str, seen: object) -> None:
        """Now and then the copy follows."""
        if (self.step + 1) % self.copy_every == 0:
            self.target.follow(self.net, self.tau)
