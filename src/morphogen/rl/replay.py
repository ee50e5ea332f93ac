"""A memory of experience as a source: off-policy methods learn from any of its steps, again and again.

    step s:  act `every` times in every environment, remember it;  draw a batch of what is remembered

Drawn uniformly, or by priorities: P_i ∝ p_i^α, with weights (N P_i)^−β over their largest, β going to 1 (losses.py).
A new step has the largest priority there is. **The door for priorities**: a phase of the agent that puts "priority"
(B,), such as its TD errors, into `Loss.seen` sets those of the batch that it was said of, to |priority| + ε each.

With n steps at once a sample is s_t, a_t, Σ_k γ^k r_{t+k} and what was seen m steps later, m being n, or fewer where
the episode or what is remembered ends; `discount` is γ^m, and 0 where the episode has terminated: the target is
reward + discount · V(next).

Lin 1992; Mnih et al. 2015; Schaul et al. 2016, arXiv:1511.05952. Departure: the sums over priorities are made anew for
each batch (a sum tree's way is not a tensor's): a millisecond for a million of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..core import Batch, Loss, Model, Noise, Place, State, each, keys
from ..errors import UserError
from ..spec import Remembers
from .env.env import Env
from .losses import importance, prioritised
from .player import Player

_DRAW, _KEY = 0xD2A, 0x4E7  # set apart the keys that choose places, and those that samples are given


class Priorities(Remembers):
    """How the memory is drawn from: alpha of the probabilities, beta of the weights, which goes to 1 in `anneal` steps.

    eps: what is added to every priority that is said, so that a step without an error may be drawn again too.
    Raises UserError where a number is out of its range.
    """

    def __init__(self, alpha: float = 0.6, beta: float = 0.4, *, anneal: int = 100_000, eps: float = 1e-6) -> None:
        if not (0 <= alpha < math.inf and 0 <= beta <= 1 and anneal >= 1 and 0 < eps < math.inf):
            raise UserError(
                f"Priorities with alpha={alpha}, beta={beta}, anneal={anneal}, eps={eps}: give alpha of 0 or more, beta"
                " in [0, 1], anneal of 1 or more, and eps above 0."
            )
        self.alpha, self.beta, self.anneal, self.eps = alpha, beta, anneal, eps


class Replay(Remembers):
    """A memory of the last `capacity` steps of all environments, of which each batch draws `batch`, with repetition.

    warmup: steps of every environment before the first batch; the agent takes them while its `step` is 0, and may then
    act otherwise (uniformly at random, as is usual). every: steps of every environment between two batches. n, gamma:
    of returns over n steps. priorities: without them, uniformly. Ranks each have their own environments and memory.

    A batch: obs, action, reward, discount, next, info (what act said), weight, score, index (the place in the memory),
    key. Raises UserError where a number is out of its range.
    """

    def __init__(
        self,
        env: Env,
        *,
        capacity: int,
        batch: int,
        warmup: int = 1,
        every: int = 1,
        n: int = 1,
        gamma: float = 0.99,
        priorities: Priorities | None = None,
    ) -> None:
        if min(batch, warmup, every, n) < 1 or capacity < env.envs:
            raise UserError(
                f"A Replay of capacity {capacity} with batch={batch}, warmup={warmup}, every={every}, n={n} and"
                f" {env.envs} environments: give 1 or more of each, and room for a step of all environments."
            )
        if not 0 <= gamma <= 1:
            raise UserError(f"A Replay with gamma={gamma}: give a discount in [0, 1] (0.99 is usual).")
        self.env, self.capacity, self.batch, self.warmup, self.every = env, capacity, batch, warmup, every
        self.n, self.gamma, self.priorities = n, gamma, priorities

    def start(self, place: Place) -> None:
        """Begin all environments with an empty memory."""
        if self.batch % place.ranks:
            raise UserError(f"A batch of {self.batch} does not divide among {place.ranks} processes: take a multiple.")
        self._player, self._place = Player(self.env, place), place
        self._envs = len(self._player.index)
        self._rows = max(1, self.capacity // self.env.envs)  # of steps, each of all environments
        self._total = self._draws = 0  # steps ever taken; batches ever drawn
        self._held = cast("dict[str, Any]", {})
        self._weight = torch.zeros(self._rows, self._envs, dtype=torch.float64, device=place.device)  # priorities
        self._last = torch.empty(0, dtype=torch.int64, device=place.device)

    def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
        """Learn the last batch's priorities, act, and draw."""
        self._hear(heard)
        self._remember(actor, self.every if self._total else self.warmup)
        self._draws += 1
        n = self.batch // self._place.ranks
        index = torch.arange(n, device=self._place.device) + self._place.rank * n
        place, weight = self._drawn(Noise(keys(index, self._place.seed, _DRAW, self._draws)), actor.step)
        self._last = place
        return {
            **self._samples(place),
            "weight": weight,
            "score": torch.full((n,), self._player.score(), device=place.device),
            "index": place,
            "key": keys(index, self._place.seed, _KEY, self._draws),
        }

    def _hear(self, heard: Mapping[str, Loss]) -> None:
        said = [loss.seen["priority"] for loss in heard.values() if "priority" in loss.seen]
        if self.priorities is not None and said and len(self._last):
            fresh = said[-1].detach().abs().double() + self.priorities.eps
            if fresh.shape != self._last.shape:
                raise UserError(
                    f"The priority in Loss.seen is {tuple(fresh.shape)}, of a batch of {len(self._last)} samples: give"
                    " one for each."
                )
            if not bool(fresh.isfinite().all()):
                raise UserError("A priority in Loss.seen is not finite: the memory cannot be drawn by it.")
            self._weight.view(-1)[self._last] = fresh.to(self._weight.device)

    @torch.no_grad()
    def _remember(self, actor: Model, steps: int) -> None:
        """Take steps, and put them in place of the oldest where the memory is full."""
        player, rows = self._player, list[dict[str, Any]]()
        for noise in player.noises(steps) if steps > 1 else (player.noise(),):
            obs, act = player.obs, player.act(actor, noise=noise)
            step = player.go(act)
            rows.append(
                {
                    "obs": obs,
                    "action": act.action,
                    "reward": step.reward,
                    "next": step.final,
                    "terminated": step.terminated,
                    "truncated": step.truncated,
                    "info": dict(act.info),
                }
            )
        ended = torch.stack([row["terminated"] | row["truncated"] for row in rows])
        player.earn(torch.stack([row["reward"] for row in rows]), ended)
        if not self._held:
            self._held = each(rows[0], lambda t: t.new_zeros(self._rows, *t.shape))
        largest = self._weight.max() if self._total and self.priorities is not None else 1.0
        while rows:
            at = self._total % self._rows
            n = min(len(rows), self._rows - at)
            _put(self._held, rows[:n], at)
            self._weight[at : at + n] = largest
            self._total += n
            del rows[:n]

    def _drawn(self, noise: Noise, step: int) -> tuple[Tensor, Tensor]:
        """Places (B,) in the memory, and the weights (B,) of what is there."""
        count = min(self._total, self._rows) * self._envs
        u = noise.uniform(dtype=torch.float64)
        if self.priorities is None:
            return (u * count).long(), torch.ones(len(u), device=u.device)
        chance = prioritised(self._weight.view(-1)[:count], self.priorities.alpha)
        cdf = chance.cumsum(0)
        place = torch.searchsorted(cdf, u * cdf[-1], right=True).clamp(max=count - 1)
        beta = self.priorities.beta
        beta += (1 - beta) * min(1.0, step / self.priorities.anneal)
        return place, importance(chance[place], count, beta).to(torch.get_default_dtype())

    def _samples(self, place: Tensor) -> dict[str, Any]:
        """What is remembered at places (B,), n steps at once."""
        held = each(self._held, lambda t: t.flatten(0, 1))  # (places, ...): step by step, all environments of each
        reward, last = held["reward"][place], place
        discount = torch.full_like(reward, self.gamma)
        if self.n > 1:
            age = (self._total - 1 - place // self._envs) % self._rows  # steps since
            live = torch.ones_like(place, dtype=torch.bool)
        for k in range(1, self.n):
            live = live & ~(held["terminated"][last] | held["truncated"][last]) & (age >= k)
            last = torch.where(live, (place + k * self._envs) % (self._rows * self._envs), last)
            reward = reward + torch.where(live, discount * held["reward"][last], 0.0)
            discount = torch.where(live, discount * self.gamma, discount)
        return {
            "obs": held["obs"][place],
            "action": held["action"][place],
            "reward": reward,
            "discount": discount.masked_fill_(held["terminated"][last], 0.0),
            "next": held["next"][last],
            "info": each(held["info"], lambda t: t[place]),
        }

    @property
    def env_steps(self) -> int:
        """Steps taken so far."""
        return self._total * self.env.envs

    def state(self) -> State:
        """The player and the whole memory."""
        count = min(self._total, self._rows)
        return {
            "player": self._player.state(),
            "held": each(self._held, lambda t: t[:count]),
            "weight": self._weight[:count],
            "last": self._last,
            "total": self._total,
            "draws": self._draws,
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._player.restore(state["player"])
        self._total, self._draws = int(state["total"]), int(state["draws"])
        self._held = each(state["held"], lambda t: _wide(t, self._rows))
        self._weight, self._last = _wide(state["weight"], self._rows), state["last"]
        if self._player.anew and self._total:  # the episodes in progress have ended here
            at = (self._total - 1) % self._rows
            self._held["truncated"][at] |= ~self._held["terminated"][at]


def _put(held: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], at: int) -> None:
    """Write rows into the memory, from row `at` on."""
    for name, value in held.items():
        if isinstance(value, Mapping):
            _put(value, [row[name] for row in rows], at)
        else:
            torch.stack([row[name] for row in rows], out=value[at : at + len(rows)])


def _wide(t: Tensor, rows: int) -> Tensor:
    """A copy of t (r, ...) with rows of zeros after it, `rows` in all."""
    return torch.cat((t, t.new_zeros(rows - len(t), *t.shape[1:])))
