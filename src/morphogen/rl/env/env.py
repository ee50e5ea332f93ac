"""The protocol of environments, and the tensors that keep it.

An `Env` is many environments of one kind that step together. An episode ends in one of two ways, and is then begun anew
within the same step: the `Step` holds what is seen next (`obs`, of the new episode), and what was seen last of the old
one (`final`), which a critic needs where the episode was only cut off.

    terminated   nothing follows: the value of `final` counts nothing
    truncated    cut off by a limit of time: the value of `final` counts

A `Task` is the mathematics of one environment as pure functions of a batch of states: where it begins, what an action
leads to, what is seen, how it looks. `Simulated(task, envs)` makes an `Env` of it. Planners take the task itself.

Random numbers are keyed by (seed, environment, step), so that environment i is the same whatever their number or the
ranks that share them, and the state is a tensor and two counters.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from ...core import Noise, Place, State, keys
from ...errors import UserError
from ...spec import Remembers

Picture = Image.Image
_ENVS = 0xE17  # sets the keys of environments apart from all else that is drawn under the seed


class Choice(Remembers):
    """The space of the integers 0 … n − 1: tensors (B,) int64."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise UserError(f"A choice among {n} is none: give 1 or more.")
        self.n = n


class Box(Remembers):
    """The space of arrays of a shape: tensors (B, *shape). low, high: bounds of every number; infinite is none."""

    def __init__(self, shape: tuple[int, ...], low: float = -math.inf, high: float = math.inf) -> None:
        if not low < high:
            raise UserError(f"A box from {low} to {high} is empty: give low < high.")
        self.shape, self.low, self.high = tuple(shape), low, high


Shape = Choice | Box


class Step(NamedTuple):
    """What a step of B environments has come to.

    obs (B, ...): what is seen next, of a new episode where the old one has ended. reward (B,). terminated, truncated
    (B,) bool. final (B, ...): what the step led to, before any reset. They are kept: the next step must not write to
    them.
    """

    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final: Tensor


@runtime_checkable
class Env(Protocol):
    """Environments that step together. `envs` counts those of all ranks, of which each has an equal part.

    One of yours that a run is to remember derives from `morphogen.Remembers`. If its constructor has an argument
    `envs`, an agent is judged in as many as it asks for; else in as many as it was trained in.
    """

    envs: int
    observation: Shape
    action: Shape

    def start(self, place: Place) -> None:
        """Take one's place among the ranks. Called once, before `reset` or `restore`."""
        ...

    def reset(self) -> Tensor:
        """Begin all anew, in other episodes at each call: what is seen (B, ...)."""
        ...

    def step(self, action: Tensor) -> Step:
        """Act (B, ...) in each."""
        ...

    def state(self) -> State:
        """All that is needed to go on exactly. Raises `CannotRestore` where that is impossible."""
        ...

    def restore(self, state: State) -> Tensor:
        """Go on from a state, whose tensors lie on the device of the place: what is seen (B, ...).

        Where there was none to save the state is {"anew": n}: begin episodes that are other ones for each n.
        """
        ...


@runtime_checkable
class Rated(Protocol):
    """Environments in which one knows what an agent's mean return is worth."""

    def rated(self) -> Mapping[str, float]:
        """Mean returns to hold an agent's against, by what they are: {"best": 500.0}."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """Environments that can be seen by people."""

    def draw(self, i: int) -> Picture:
        """Environment i as the last step left it: of an episode that has ended, its end."""
        ...


class Transition(NamedTuple):
    """Where an action leads: states (B, ...), rewards (B,), and whether the episode is over (B,) bool."""

    state: Tensor
    reward: Tensor
    terminated: Tensor


class Task(Remembers):
    """One environment as pure functions of a batch of states (B, ...). Subclasses are final.

    observation, action: what is seen and done. limit: steps after which an episode is cut off; None is never.
    """

    observation: Shape
    action: Shape
    limit: int | None = None

    @abstractmethod
    def begin(self, noise: Noise) -> Tensor:
        """States (B, ...) to begin with, one for each key of the noise."""

    @abstractmethod
    def advance(self, state: Tensor, action: Tensor, noise: Noise) -> Transition:
        """Where actions (B, ...) lead from states (B, ...)."""

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """What is seen (B, ...) of states (B, ...)."""

    @abstractmethod
    def draw(self, state: Tensor) -> Picture:
        """A picture of one state (...)."""

    def rated(self) -> Mapping[str, float]:
        """The mean return of the best policy there is, where one knows: {"best": 500.0}."""
        return {}


class Simulated(Remembers):
    """`envs` environments of a task, begun anew when they end; an `Env` whose state is exact.

    Raises UserError where there are none, their number does not divide among the ranks, or the task's limit is below 1.
    """

    def __init__(self, task: Task, envs: int) -> None:
        if envs < 1:
            raise UserError(f"{envs} environments hold no experience: give 1 or more.")
        if task.limit is not None and task.limit < 1:
            raise UserError(f"A limit of {task.limit} steps ends an episode before it began: give 1 or more.")
        self.task, self.envs = task, envs
        self.observation, self.action = task.observation, task.action
        self._key = torch.empty(0, dtype=torch.int64)

    def start(self, place: Place) -> None:
        """Take one's place: rank r of R has environments r E / R …"""
        if self.envs % place.ranks:
            raise UserError(f"{self.envs} environments do not divide among {place.ranks} processes: take a multiple.")
        n = self.envs // place.ranks
        index = torch.arange(place.rank * n, (place.rank + 1) * n, device=place.device)
        self._key, self._steps = keys(index, place.seed, _ENVS), 0

    def reset(self) -> Tensor:
        """Begin all anew: what is seen (B, ...)."""
        self._here = self._left = self.task.begin(self._noise())
        self._elapsed = torch.zeros(len(self._key), dtype=torch.int64, device=self._key.device)
        return self.task.observe(self._here)

    def step(self, action: Tensor) -> Step:
        """Act (B, ...) in each."""
        there = self.task.advance(self._here, action, self._noise())
        self._left = there.state
        self._elapsed = self._elapsed + 1
        limit = self.task.limit
        late = torch.zeros_like(there.terminated) if limit is None else self._elapsed >= limit
        truncated = late & ~there.terminated
        ended, final = there.terminated | truncated, self.task.observe(there.state)
        self._steps += 1  # the draw of a reset, whether or not it is made: no device changes what comes later
        if ended.device.type != "cpu":  # where to read which have ended costs more than to begin all anew
            fresh = self.task.begin(Noise(keys(self._key, self._steps)))
            self._here = torch.where(_across(ended, fresh), fresh, there.state)
            self._elapsed = self._elapsed * ~ended
            obs = torch.where(_across(ended, final), self.task.observe(self._here), final)
        elif len(which := ended.nonzero()[:, 0]):
            fresh = self.task.begin(Noise(keys(self._key[which], self._steps)))
            self._here = there.state.index_put((which,), fresh)
            self._elapsed = self._elapsed.index_fill(0, which, 0)
            obs = final.index_put((which,), self.task.observe(fresh))
        else:
            self._here, obs = there.state, final
        return Step(obs, there.reward, there.terminated, truncated, final)

    def look(self) -> Tensor:
        """The states (B, ...) themselves, for pictures and planners."""
        return self._here

    def draw(self, i: int) -> Picture:
        """Environment i as the last step left it."""
        return self.task.draw(self._left[i].cpu())

    def rated(self) -> Mapping[str, float]:
        """What the task says."""
        return self.task.rated()

    def state(self) -> State:
        """The states, how long each episode has gone on, and how much was drawn."""
        return {"here": self._here, "elapsed": self._elapsed, "steps": self._steps}

    def restore(self, state: State) -> Tensor:
        """Go on from a state: what is seen (B, ...)."""
        self._here, self._elapsed, self._steps = state["here"], state["elapsed"], int(state["steps"])
        self._left = self._here
        return self.task.observe(self._here)

    def _noise(self) -> Noise:
        self._steps += 1
        return _Later(self._key, self._steps)


class _Later(Noise):
    """Noise whose keys are made when it is drawn from, which most tasks never do."""

    def __init__(self, key: Tensor, step: int) -> None:
        self._from, self._step, self._draws = key, step, 0

    @cached_property
    def key(self) -> Tensor:  # type: ignore[override]
        return keys(self._from, self._step)


def _across(flag: Tensor, like: Tensor) -> Tensor:
    """flag (B,) as (B, 1, …, 1), to choose among rows of `like` (B, ...)."""
    return flag.view(-1, *[1] * (like.ndim - 1))
