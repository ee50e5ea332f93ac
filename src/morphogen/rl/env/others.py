"""Environments of others behind the same protocol: gymnasium's, and simulators that live on the GPU.

Their state is their own and cannot be saved, so that a run goes on from new episodes after a resume, and says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...core import CannotRestore, Place, State, fold
from ...errors import UserError
from ...spec import Remembers
from .env import Box, Choice, Shape, Step

_SEED = 0x6E5  # sets the seeds of foreign environments apart


def gymnasium() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("gymnasium")
    except ImportError as error:
        raise UserError("This needs gymnasium, which is not installed: pip install 'morphogen[rl]'.") from error


class Gymnasium(Remembers):
    """`envs` environments of gymnasium by name, one after another in this process; an `Env`.

    options: keywords of `gymnasium.make` ({"is_slippery": False}). An observation of integers stays integers, all
    else becomes torch's default dtype. A box of actions takes what lies outside at its bounds.
    Raises UserError where gymnasium, the name or what it needs is missing, or a space is neither discrete nor a box.
    """

    def __init__(self, name: str, envs: int, options: Mapping[str, Any] | None = None) -> None:
        if envs < 1:
            raise UserError(f"{envs} environments hold no experience: give 1 or more.")
        self.name, self.envs, self.options = name, envs, dict(options or {})
        gym = gymnasium()
        try:
            one = gym.make(name, **self.options)
        except gym.error.Error as error:
            raise UserError(f"Gymnasium cannot make {name!r}: {str(error).partition(chr(10))[0]}") from error
        self.observation, self.action = _space(one.observation_space, name), _space(one.action_space, name)
        self.limit: int | None = one.spec.max_episode_steps
        one.close()

    def start(self, place: Place) -> None:
        """Take one's place: rank r of R has an R-th of them, seeded from r E / R on."""
        if self.envs % place.ranks:
            raise UserError(f"{self.envs} environments do not divide among {place.ranks} processes: take a multiple.")
        gym, n = gymnasium(), self.envs // place.ranks
        self._device, first = place.device, place.rank * n
        self._seeds = [fold(place.seed, _SEED, first + i) % 2**31 for i in range(n)]
        self._each = [gym.make(self.name, disable_env_checker=True, **self.options) for _ in range(n)]

    def reset(self) -> Tensor:
        """Begin all anew: what is seen (B, ...)."""
        return self._tensor([env.reset(seed=seed)[0] for env, seed in zip(self._each, self._seeds, strict=True)])

    def step(self, action: Tensor) -> Step:
        """Act (B, ...) in each, one after another."""
        if isinstance(self.action, Box):
            act: Any = action.detach().cpu().numpy().clip(self.action.low, self.action.high)
            act = act.astype(self._each[0].action_space.dtype, copy=False)
        else:
            act = action.tolist()
        finals, rewards, terminated, truncated = [], [], [], []
        for env, a in zip(self._each, act, strict=True):
            seen, reward, over, cut, _ = env.step(a)
            finals.append(seen)
            rewards.append(float(reward))
            terminated.append(bool(over))
            truncated.append(bool(cut and not over))
        final = obs = self._tensor(finals)
        if any(terminated) or any(truncated):
            ends = zip(self._each, finals, terminated, truncated, strict=True)
            obs = self._tensor([env.reset()[0] if over or cut else seen for env, seen, over, cut in ends])
        told: Callable[[list[Any]], Tensor] = lambda x: torch.tensor(x, device=self._device)  # noqa: E731
        return Step(obs, told(rewards), told(terminated), told(truncated), final)

    def state(self) -> State:
        """Raises CannotRestore: the state of gymnasium's environments is their own."""
        raise CannotRestore(f"the environments {self.name!r} of gymnasium begin new episodes.")

    def restore(self, state: State) -> Tensor:
        """Never called, as there is no state."""
        return self.reset()

    def _tensor(self, seen: list[Any]) -> Tensor:
        t = torch.from_numpy(np.array(seen))  # a copy: gymnasium may write to its own
        return t.to(self._device, torch.int64 if isinstance(self.observation, Choice) else torch.get_default_dtype())


def _space(space: Any, name: str) -> Shape:
    spaces = gymnasium().spaces
    if isinstance(space, spaces.Discrete) and int(space.start) == 0:
        return Choice(int(space.n))
    if isinstance(space, spaces.Box):
        return Box(tuple(space.shape), float(space.low.min()), float(space.high.max()))
    raise UserError(f"The environment {name!r} has a space {space}: only Discrete from 0 and Box are known here.")


class Batched(Protocol):
    """What a simulator on the GPU offers, in the manner of Isaac: tensors (B, ...), begun anew within the step."""

    def reset(self) -> Any:
        """What is seen, alone or in a tuple with more: a tensor (B, ...), or a mapping with one named "policy"."""
        ...

    def step(self, action: Tensor) -> Any:
        """(seen, reward, terminated, truncated, more): tensors (B, ...)."""
        ...


class Simulator(Remembers):
    """A simulator that steps many environments as torch tensors and begins them anew by itself; an `Env`.

    make: a function of your module that is called with the number of environments, the device and the seed, and
    returns the simulator (`Batched`). final: what `more` calls the last observation of an episode; where it is missing
    the observation before the step stands for it, as is usual with such simulators.
    Each rank makes its own part of the `envs`.
    """

    def __init__(
        self,
        make: Callable[[int, torch.device, int], Batched],
        envs: int,
        observation: Shape,
        action: Shape,
        *,
        final: str = "final_obs",
    ) -> None:
        self.make, self.envs, self.observation, self.action, self.final = make, envs, observation, action, final

    def start(self, place: Place) -> None:
        """Make this rank's part."""
        if self.envs % place.ranks:
            raise UserError(f"{self.envs} environments do not divide among {place.ranks} processes: take a multiple.")
        n = self.envs // place.ranks
        self._sim = self.make(n, place.device, fold(place.seed, _SEED, place.rank) % 2**31)

    def reset(self) -> Tensor:
        """Begin all anew: what is seen (B, ...)."""
        said = self._sim.reset()
        self._last = _policy(said[0] if isinstance(said, tuple) else said)
        return self._last

    def step(self, action: Tensor) -> Step:
        """Act (B, ...) in each."""
        said, reward, terminated, truncated, more = self._sim.step(action)
        obs, over = _policy(said), terminated.bool() | truncated.bool()
        known = more.get(self.final) if isinstance(more, Mapping) else None
        last = self._last if known is None else _policy(known)
        final = torch.where(over.view(-1, *[1] * (obs.ndim - 1)), last, obs)
        self._last = obs
        return Step(obs, reward, terminated.bool(), truncated.bool() & ~terminated.bool(), final)

    def state(self) -> State:
        """Raises CannotRestore: the simulator's state is its own."""
        raise CannotRestore(f"the simulator of {self.make.__name__!r} begins new episodes.")

    def restore(self, state: State) -> Tensor:
        """Never called, as there is no state."""
        return self.reset()


def _policy(seen: Any) -> Tensor:
    t: Tensor = seen["policy"] if isinstance(seen, Mapping) else seen
    return t
