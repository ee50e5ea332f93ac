"""Environments of others behind the same protocol: gymnasium's, and simulators that live on the GPU.

Where their state is their own and cannot be saved, a run goes on from new episodes after a resume, and says so.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core import CannotRestore, Place, State, fold
from ...errors import UserError, unknown
from ...spec import Remembers
from .bodies import drawn
from .env import Box, Choice, Picture, Shape, Step
from .state import read, write

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
    else becomes torch's default dtype. A box of actions takes what lies outside at its bounds; where these differ from
    number to number each is stretched to the widest, so that gas in [0, 1] beside steering in [−1, 1] is in [−1, 1].
    The state of classic control, toy text and MuJoCo is saved and gone on from exactly; of others it cannot be.
    A name without a version is the newest of it, as `name` then says. Raises UserError where gymnasium, the name or
    what it needs is missing, an option is wrong, or a space is neither discrete nor a box.
    """

    pins = ("name",)

    def __init__(self, name: str, envs: int, options: Mapping[str, Any] | None = None) -> None:
        if envs < 1:
            raise UserError(f"{envs} environments hold no experience: give 1 or more.")
        self.name, self.envs, self.options = name, envs, dict(options or {})
        one = self._make()
        module, colon, _ = name.rpartition(":")
        self.name = module + colon + one.spec.id
        modes = one.metadata.get("render_modes") or ()
        if (mode := self.options.get("render_mode")) not in (None, *modes):
            raise unknown(f"render_mode of {self.name}", str(mode), modes)
        self.observation, self.action = _space(one.observation_space, name), _space(one.action_space, name)
        self.limit: int | None = self.options.get("max_episode_steps", one.spec.max_episode_steps)
        usual = gymnasium().spec(one.spec.id).max_episode_steps
        self.solved: float | None = one.spec.reward_threshold if self.limit == usual else None
        one.close()

    def _make(self) -> Any:
        gym = gymnasium()
        try:
            with _quiet():
                return gym.make(self.name, **self.options)
        except (gym.error.Error, TypeError, KeyError, ValueError, AssertionError, ImportError) as error:
            said = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
            raise UserError(
                f"Gymnasium cannot make {self.name!r} with options {self.options} ({said}): look at its page."
            ) from error

    def _made(self) -> tuple[Any, bool]:
        """An environment; and whether it is bare, its limit and checks being ours: they cost as much as its physics."""
        made, wrappers = self._make(), gymnasium().wrappers
        bare = made
        while isinstance(bare, wrappers.TimeLimit | wrappers.OrderEnforcing | wrappers.PassiveEnvChecker):
            bare = bare.env
        return (bare, True) if bare is made.unwrapped else (made, False)

    def start(self, place: Place) -> None:
        """Take one's place: rank r of R has an R-th of them, seeded from r E / R on."""
        if self.envs % place.ranks:
            raise UserError(f"{self.envs} environments do not divide among {place.ranks} processes: take a multiple.")
        n = self.envs // place.ranks
        self._device, self._place = place.device, place
        made = [self._made() for _ in range(n)]
        self._all, self._bare = [env for env, _ in made], made[0][1]
        self._elapsed, self._seeds = [0] * n, self._fresh()
        space = self._all[0].action_space
        self._bounds = _Bounds(space, self.action) if isinstance(self.action, Box) else None
        integers = isinstance(self.observation, Choice)
        self._kind = np.int64 if integers else np.float64 if torch.get_default_dtype() == torch.float64 else np.float32
        self._shape = () if isinstance(self.observation, Choice) else self.observation.shape
        self._drawn: dict[int, Picture] = {}
        self._ours = False  # whether we draw it, there being no OpenGL

    def _fresh(self, *more: int) -> list[int | None]:
        n = len(self._all)
        return [fold(self._place.seed, _SEED, self._place.rank * n + i, *more) % 2**31 for i in range(n)]

    def reset(self) -> Tensor:
        """Begin all anew, in other episodes at each call: what is seen (B, ...)."""
        seen, self._elapsed = self._room(), [0] * len(self._all)
        for i, (env, seed) in enumerate(zip(self._all, self._seeds, strict=True)):
            seen[i] = env.reset(seed=seed)[0]
        self._seeds = [None] * len(self._all)  # each goes on by its own generator
        self._seen = self._tensor(seen)
        return self._seen

    def step(self, action: Tensor) -> Step:
        """Act (B, ...) in each."""
        if self._bounds is None:
            acts: Any = action.tolist()  # numpy's integers are looked at three times as long
        else:
            acts = self._bounds.within(action.detach().cpu().numpy())
        seen, n, limit = self._room(), len(self._all), self.limit if self._bare else None
        reward, ends, cuts = np.empty(n, np.float64), np.zeros(n, bool), np.zeros(n, bool)
        over = []
        self._drawn = {}
        for i, env in enumerate(self._all):
            seen[i], reward[i], ended, cut, _ = env.step(acts[i])
            self._elapsed[i] += 1
            cut = cut or self._elapsed[i] == limit
            if ended or cut:
                over.append(i)
                ends[i], cuts[i] = ended, cut and not ended
        final = obs = self._tensor(seen)
        if over:
            for i in over:
                if self.options.get("render_mode") == "rgb_array":
                    self._drawn[i] = self._picture(i)  # before the end is wiped away
                seen[i], self._elapsed[i] = self._all[i].reset()[0], 0
            obs = self._tensor(seen)
        self._seen = obs
        rewarded = torch.from_numpy(reward).to(self._device, torch.get_default_dtype())
        return Step(
            obs, rewarded, torch.from_numpy(ends).to(self._device), torch.from_numpy(cuts).to(self._device), final
        )

    def draw(self, i: int) -> Picture:
        """Environment i as the last step left it, by gymnasium; MuJoCo's by bodies.py where there is no OpenGL.

        Raises UserError where it was not made to be drawn, or cannot be.
        """
        return self._drawn[i] if i in self._drawn else self._picture(i)

    def _picture(self, i: int) -> Picture:
        if self.options.get("render_mode") != "rgb_array":
            raise UserError(f"{self.name} was not made to be drawn: give options={{'render_mode': 'rgb_array'}}.")
        bare = self._all[i].unwrapped
        if self._ours:
            return drawn(bare.model, bare.data)
        try:
            with _quiet():
                return Image.fromarray(np.asarray(self._all[i].render()))
        except Exception as error:  # pygame is missing, or OpenGL is, which each says in its own way
            if type(bare).__module__.startswith("gymnasium.envs.mujoco."):
                self._ours = True
                return drawn(bare.model, bare.data)
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(
                f"{self.name} cannot be drawn here ({said}): gymnasium draws by pygame (pip install 'morphogen[rl]')."
            ) from error

    def rated(self) -> Mapping[str, float]:
        """From what return on gymnasium calls it solved."""
        return {} if self.solved is None else {"solved": float(self.solved)}

    def state(self) -> State:
        """Each one's, see state.py. Raises CannotRestore where there is none."""
        if not self._bare:
            raise CannotRestore(f"the environments {self.name!r} of gymnasium begin new episodes: they are wrapped.")
        each = [read(env, self.name) for env in self._all]
        return {"each": each, "elapsed": list(self._elapsed), "seen": self._seen}

    def restore(self, state: State) -> Tensor:
        """Go on from a state: what is seen (B, ...)."""
        if "anew" in state:
            self._seeds = self._fresh(int(state["anew"]))
            return self.reset()
        self.reset()
        for env, there in zip(self._all, state["each"], strict=True):
            write(env, there)
        self._elapsed, self._seen = [int(n) for n in state["elapsed"]], state["seen"]
        return self._seen

    def _room(self) -> Any:
        return np.empty((len(self._all), *self._shape), self._kind)

    def _tensor(self, seen: Any) -> Tensor:
        """A copy, on the device: `seen` is written to again where an episode has ended."""
        return torch.from_numpy(seen.copy()).to(self._device)


class _Bounds:
    """From actions of a box, whose bounds are one for all numbers, to those of gymnasium's space, whose may differ."""

    def __init__(self, space: Any, box: Box) -> None:
        self.low, self.high, self.dtype, self.box = space.low, space.high, space.dtype, box
        width = box.high - box.low
        alike = bool(((space.low == box.low) & (space.high == box.high)).all())
        self.share = None if alike or not math.isfinite(width) else (space.high - space.low) / width

    def within(self, action: Any) -> Any:
        """Actions (B, ...) of the space."""
        if self.share is not None:
            action = self.low + (action - self.box.low) * self.share
        return action.clip(self.low, self.high).astype(self.dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without gymnasium's and glfw's warnings: what matters raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    returns the simulator (`Batched`), which may write to the same tensors in each step. final: what `more` calls the
    last observation of an episode; where it is missing the observation before the step stands for it, as is usual with
    such simulators. Each rank makes its own part of the `envs`.
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
        if envs < 1:
            raise UserError(f"{envs} environments hold no experience: give 1 or more.")
        self.make, self.envs, self.observation, self.action, self.final = make, envs, observation, action, final

    def start(self, place: Place) -> None:
        """Take one's place. This rank's part is made when it begins, since many a simulator can be made once only."""
        if self.envs % place.ranks:
            raise UserError(f"{self.envs} environments do not divide among {place.ranks} processes: take a multiple.")
        self._place, self._more = place, cast("tuple[int, ...]", ())
        self._sim: Batched | None = None

    def reset(self) -> Tensor:
        """Begin all anew: what is seen (B, ...)."""
        if self._sim is None:
            place = self._place
            seed = fold(place.seed, _SEED, place.rank, *self._more) % 2**31
            self._sim = self.make(self.envs // place.ranks, place.device, seed)
        said = self._sim.reset()
        self._last = _policy(said[0] if isinstance(said, tuple) else said).clone()
        return self._last

    def step(self, action: Tensor) -> Step:
        """Act (B, ...) in each."""
        assert self._sim is not None
        said, reward, terminated, truncated, more = self._sim.step(action)
        obs, ended = _policy(said).clone(), terminated.to(torch.bool, copy=True)
        cut = truncated.bool() & ~ended
        known = more.get(self.final) if isinstance(more, Mapping) else None
        last = self._last if known is None else _policy(known)
        final = torch.where((ended | cut).view(-1, *[1] * (obs.ndim - 1)), last, obs)
        self._last = obs
        return Step(obs, reward.clone(), ended, cut, final)

    def state(self) -> State:
        """Raises CannotRestore: the simulator's state is its own."""
        raise CannotRestore(f"the simulator of {self.make.__name__!r} begins new episodes.")

    def restore(self, state: State) -> Tensor:
        """Begin episodes that are other ones for each state["anew"]: what is seen (B, ...)."""
        self._sim, self._more = None, (int(state["anew"]),)
        return self.reset()


def _policy(seen: Any) -> Tensor:
    t: Tensor = seen["policy"] if isinstance(seen, Mapping) else seen
    return t
