r"""Learning to act in a finite world from experience alone: tables Q(s, a) that move towards a target.

    Q(s, a) ← Q(s, a) + α [r + γ c V(s') − Q(s, a)]        c = 0 where the episode has terminated
        q_learning        V(s') = max_a Q(s', a)                                   Watkins 1989
        sarsa             V(s') = Q(s', a'), a' the next action                    Rummery & Niranjan 1994
        expected_sarsa    V(s') = Σ_a π(a|s') Q(s', a)                             van Seijen et al. 2009
    DoubleQ               two tables; a coin says which learns, A say:
                          V(s') = Q_B(s', argmax_a Q_A(s', a))                     van Hasselt 2010
    NStep                 after n steps, or where the episode ends, G = r_n + γ c V(s_n) and backwards
        sampled           G ← r + γ G                                              n-step SARSA, n-step expected SARSA
        tree_backup       G ← r + γ [Σ_a π(a|s') Q(s', a) + π(a'|s') (G − Q(s', a'))]     Precup, Sutton & Singh 2000

π is ε-greedy, ties shared. There may be several learners, each with tables of its own, to which the environments belong
in turn: so a learning curve over seeds is one run. Where environments share a learner and a state, what they say is
averaged. Departure: of a truncated step sarsa takes the expected value, its next action being of another episode.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...core import NONE, Act, Batch, Loss, Model, Noise, Update, each, everyone
from ...errors import UserError
from ..env.env import Picture
from ..losses import chosen, double_value, expected_value, greedy_value
from .mdp import MDP, picture

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def q_learning(q: Tensor, policy: Tensor, action: Tensor, truncated: Tensor) -> Tensor:
    """V(s') (B,) = max_a Q(s', a) of q (B, A)."""
    return greedy_value(q)


def expected_sarsa(q: Tensor, policy: Tensor, action: Tensor, truncated: Tensor) -> Tensor:
    """V(s') (B,) = Σ_a π(a|s') Q(s', a) of q and policy (B, A)."""
    return expected_value(q, policy)


def sarsa(q: Tensor, policy: Tensor, action: Tensor, truncated: Tensor) -> Tensor:
    """V(s') (B,) = Q(s', a') of q (B, A) and the next action (B,); the expected value where truncated (B,)."""
    return torch.where(truncated, expected_value(q, policy), chosen(q, action))


def epsilon_greedy(q: Tensor, epsilon: float) -> Tensor:
    """Probabilities (B, A): 1 − ε shared among the best actions of q (B, A), and ε among all."""
    best = (q == q.amax(-1, keepdim=True)).to(q)
    return (1 - epsilon) * best / best.sum(-1, keepdim=True) + epsilon / q.shape[-1]


class Tabular(Model, ABC):
    """What all of them are: tables Q (..., learners, S, A), from which actions are chosen ε-greedily.

    world: the MDP, of which only the numbers of states and actions are used. gamma: γ. alpha: the step size, divided by
    n(s, a)^decay where an entry moves for the n-th time. epsilon: ε. initial: what Q says at first. Of the source's B
    environments, environment i of a rank belongs to learner i mod `learners`: several ranks train as one where each has
    a multiple of so many environments. Raises UserError where a number is out of its range.
    """

    q: Tensor
    visits: Tensor
    judged_greedy: ClassVar[bool] = True

    def __init__(
        self,
        world: MDP,
        tables: tuple[int, ...],
        gamma: float,
        alpha: float,
        decay: float,
        epsilon: float,
        initial: float,
        learners: int,
    ) -> None:
        super().__init__()
        if not (0 <= gamma <= 1 and 0 < alpha < math.inf and 0 <= epsilon <= 1 and learners >= 1):
            raise UserError(
                f"A tabular agent has gamma={gamma}, alpha={alpha}, epsilon={epsilon}, learners={learners}: give gamma"
                " and epsilon in [0, 1], alpha above 0, and at least one learner."
            )
        if not (0 <= decay < math.inf and math.isfinite(initial)):
            raise UserError(
                f"A tabular agent has decay={decay}, initial={initial}: give a decay of 0 or more, and a finite value."
            )
        self.world, self.gamma, self.alpha, self.decay, self.epsilon = world, gamma, alpha, decay, epsilon
        shape = (*tables, learners, world.states, world.actions)
        self.register_buffer("q", torch.full(shape, initial, dtype=torch.float64))
        self.register_buffer("visits", torch.zeros(shape, dtype=torch.float64))

    def phases(self) -> list[Update]:
        """One rule, and no gradient."""
        return [Update(self.learn)]

    @abstractmethod
    def learn(self, batch: Batch) -> Loss:
        """Move the tables towards their targets."""

    def values(self) -> Tensor:
        """Q (learners, S, A) by which actions are chosen."""
        return self.q

    def at(self, states: Tensor) -> Tensor:
        """Each environment's Q (B, A) in states (B,)."""
        values = self.values()
        return values[_learner(states, len(values)), states]

    def policy(self, states: Tensor) -> Tensor:
        """Probabilities (B, A) in states (B,)."""
        return epsilon_greedy(self.at(states), self.epsilon)

    def act(self, obs: Tensor, memory: object = None, *, noise: Noise) -> Act:
        """An ε-greedy action (B,) in states (B,)."""
        return Act(noise.categorical(self.policy(obs).log()))

    def greedy(self, obs: Tensor, memory: object = None) -> Act:
        """The first of the best actions (B,) in states (B,)."""
        return Act(self.at(obs).argmax(-1))

    def picture(self) -> Picture:
        """The first learner's values, and its best actions."""
        value, best = self.values()[0].cpu().max(1)
        return picture(self.world, value, best)


class Control(Tabular):
    """ε-greedy control of a finite world by one of the rules, from an `Online` source. Arguments: see `Tabular`."""

    def __init__(
        self,
        world: MDP,
        rule: Rule = q_learning,
        *,
        gamma: float = 1.0,
        alpha: float = 0.5,
        decay: float = 0.0,
        epsilon: float = 0.1,
        initial: float = 0.0,
        learners: int = 1,
    ) -> None:
        super().__init__(world, (), gamma, alpha, decay, epsilon, initial, learners)
        self.rule = rule

    def learn(self, batch: Batch) -> Loss:
        """Move Q(s, a) towards its target."""
        next, (who, s, a) = batch["next"], _where(batch, len(self.q))
        after = self.rule(self.at(next), self.policy(next), batch["next_action"], batch["truncated"])
        error = _target(batch, self.gamma, after) - self.q[who, s, a]
        _move(self.q, self.visits, (who, s, a), error, torch.ones_like(error), self.alpha, self.decay)
        return _said(batch, error)


Backup = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def sampled(q: Tensor, policy: Tensor, action: Tensor, later: Tensor) -> Tensor:
    """What follows (B,) by the return `later` (B,) of the action that was taken: the return itself."""
    return later


def tree_backup(q: Tensor, policy: Tensor, action: Tensor, later: Tensor) -> Tensor:
    """What follows (B,) by q and policy (B, A), but for the action (B,) taken by its return `later` (B,)."""
    return expected_value(q, policy) + chosen(policy, action) * (later - chosen(q, action))


class NStep(Tabular):
    """ε-greedy control by returns of n steps, from a `Recent` source, which says n; one step is `Control`.

    rule: what follows the last step (`sarsa`: n-step SARSA; `expected_sarsa`: that by expectation, and with
    `tree_backup` the tree backup). backup: what follows each step before it. Where an episode ends, all of its steps
    that were not learnt from yet are, oldest first, each seeing what the one before has changed. Others: see `Tabular`.
    Sutton & Barto 2018, sections 7.2 and 7.5.
    """

    def __init__(
        self,
        world: MDP,
        rule: Rule = sarsa,
        backup: Backup = sampled,
        *,
        gamma: float = 1.0,
        alpha: float = 0.5,
        decay: float = 0.0,
        epsilon: float = 0.1,
        initial: float = 0.0,
        learners: int = 1,
    ) -> None:
        super().__init__(world, (), gamma, alpha, decay, epsilon, initial, learners)
        self.rule, self.backup = rule, backup

    def learn(self, batch: Batch) -> Loss:
        """Move Q of the oldest step, and of all where the episode has ended, towards their returns."""
        steps = batch["steps"]
        live, ended = steps["live"], (steps["terminated"] | steps["truncated"])[:, -1]
        learner, total, count = _learner(live, len(self.q)), self.q.new_zeros(()), self.q.new_zeros(())
        for t in range(live.shape[1]):
            if t and not bool(everyone.any(ended.any())):
                break
            due = (live[:, t] & (ended | (t == 0))).double()
            entry = learner, steps["obs"][:, t], steps["action"][:, t]
            error = self.returns(steps, t) - self.q[entry]
            _move(self.q, self.visits, entry, error, due, self.alpha, self.decay)
            total, count = total + (due * error.square()).sum(), count + due.sum()
        logs: Mapping[str, Tensor] = {"score": batch["score"].mean()} if "score" in batch else NONE
        return Loss(0.5 * everyone.sum(total) / everyone.sum(count).clamp(min=1), logs)

    def returns(self, steps: Batch, start: int) -> Tensor:
        """The return G (B,) from the step `start` of each stretch on."""
        columns = [each(steps, lambda t, i=i: t[:, i]) for i in range(start, steps["live"].shape[1])]  # type: ignore[misc]
        g: Tensor | None = None
        for step in reversed(columns):
            q, policy = self.at(step["next"]), self.policy(step["next"])
            if g is None:
                after = self.rule(q, policy, step["next_action"], step["truncated"])
            else:
                after = self.backup(q, policy, step["next_action"], g)
            g = _target(step, self.gamma, after)
        assert g is not None, "a stretch holds a step"
        return g


class DoubleQ(Tabular):
    """Double Q-learning: `Control` with two tables, (2, learners, S, A), of which a coin says which learns."""

    def __init__(
        self,
        world: MDP,
        *,
        gamma: float = 1.0,
        alpha: float = 0.5,
        decay: float = 0.0,
        epsilon: float = 0.1,
        initial: float = 0.0,
        learners: int = 1,
    ) -> None:
        super().__init__(world, (2,), gamma, alpha, decay, epsilon, initial, learners)

    def values(self) -> Tensor:
        """The mean of the tables (learners, S, A)."""
        return self.q.mean(0)

    def learn(self, batch: Batch) -> Loss:
        """Move one table's Q(s, a) towards what the other says of the action that it would take."""
        next, (who, s, a) = batch["next"], _where(batch, self.q.shape[1])
        first = Noise(batch["key"]).uniform() < 0.5  # (B,)
        errors = [
            _target(batch, self.gamma, double_value(other[who, next], own[who, next])) - own[who, s, a]
            for own, other in (self.q, self.q.flip(0))
        ]  # both before either moves
        for q, visits, error, moves in zip(self.q, self.visits, errors, (first, ~first), strict=True):
            _move(q, visits, (who, s, a), error, moves.to(error), self.alpha, self.decay)
        return _said(batch, torch.where(first, errors[0], errors[1]))


def _learner(obs: Tensor, learners: int) -> Tensor:
    return torch.arange(len(obs), device=obs.device) % learners


def _where(batch: Batch, learners: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whose table, and which of its entries: (B,) each."""
    return _learner(batch["obs"], learners), batch["obs"], batch["action"]


def _target(batch: Batch, gamma: float, after: Tensor) -> Tensor:
    reward: Tensor = batch["reward"]
    return reward.double() + gamma * torch.where(batch["terminated"], 0.0, after)


def _move(
    q: Tensor,
    visits: Tensor,
    entry: tuple[Tensor, ...],
    error: Tensor,
    weight: Tensor,
    alpha: float,
    decay: float,
) -> None:
    """Move entries (B,) of a table by α times the mean of their errors, over the batches of all ranks."""
    count = everyone.sum(torch.zeros_like(q).index_put_(entry, weight, accumulate=True))
    total = everyone.sum(torch.zeros_like(q).index_put_(entry, weight * error, accumulate=True))
    visits += count > 0
    q += alpha * visits.clamp(min=1).pow(-decay) * total / count.clamp(min=1)


def _said(batch: Batch, error: Tensor) -> Loss:
    logs: Mapping[str, Tensor] = {"score": batch["score"].mean()} if "score" in batch else NONE
    return Loss(0.5 * error.square().mean(), logs, {"error": error})
