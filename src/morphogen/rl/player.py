"""Who acts in the environments: what it sees, its memory, the noise of its actions, and how its episodes have gone.

An action's noise is keyed by (seed, environment, step). That of a whole stretch is made ahead, in one go, which gives
the same numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..core import Act, Acts, CannotRestore, Greedy, Model, Noise, Place, State, can, each, keys
from ..errors import UserError
from .env.env import Env, Step

_ACT = 0xAC7  # sets the keys of actions apart


class Player:
    """Who acts in the environments of one rank: what it sees, its memory, and how it has fared.

    A memory is a tensor (B, ...) or a mapping of them, and nothing but zeros is the beginning of an episode.
    """

    def __init__(self, env: Env, place: Place) -> None:
        if env.envs % place.ranks:
            raise UserError(f"{env.envs} environments do not divide among {place.ranks} processes: take a multiple.")
        env.start(place)
        n = env.envs // place.ranks
        index = torch.arange(place.rank * n, (place.rank + 1) * n, device=place.device)
        self.env, self.index, self.place = env, index, place
        self.memory, self.steps, self.anew = None, 0, False
        self._obs: Tensor | None = None  # nothing yet: a run that goes on has no use for a beginning
        self.running = torch.zeros(n, device=place.device)
        self.recent: deque[float] = deque(maxlen=100)
        self._actor: Model | None = None

    @property
    def obs(self) -> Tensor:
        """What is seen now (B, ...)."""
        return self.begin()

    def begin(self) -> Tensor:
        """Begin the episodes, where none has: what is seen now (B, ...)."""
        if self._obs is None:
            self._obs = self.env.reset()
        return self._obs

    def act(self, actor: Model, greedy: bool = False, noise: Noise | None = None) -> Act:
        """What the actor does now. greedy: without chance, where it can. noise: where it was made ahead."""
        if actor is not self._actor:  # asked once: it takes as long as a small net
            if not can(actor, Acts):
                raise UserError(f"{type(actor).__name__} cannot act: it has no act(obs, memory, noise=...).")
            self._actor = actor
        noise = self.noise() if noise is None else noise
        with torch.no_grad():
            if greedy:
                return cast("Greedy", actor).greedy(self.obs, self.memory)
            return cast("Acts", actor).act(self.obs, self.memory, noise=noise)

    def noise(self) -> Noise:
        """That of the next action."""
        self.steps += 1
        return Noise(keys(self.index, self.place.seed, _ACT, self.steps))

    def noises(self, n: int) -> list[Noise]:
        """Those of the next n actions."""
        key = torch.stack([self.noise().key for _ in range(n)])  # (n, B)
        drawn: dict[tuple[Any, ...], Tensor] = {}
        return [Ahead(key, t, drawn) for t in range(n)]

    def step(self, act: Act) -> Step:
        """Do it, and count what it earned."""
        step = self.go(act)
        self.earn(step.reward[None], (step.terminated | step.truncated)[None])
        return step

    def go(self, act: Act) -> Step:
        """Do it: what it earned is to be counted later, with that of other steps."""
        step = self.env.step(act.action)
        self._obs = step.obs
        if act.memory is not None:
            self.memory = forgotten(act.memory, step.terminated | step.truncated)
        return step

    def earn(self, reward: Tensor, ended: Tensor) -> None:
        """Count the rewards of steps (T, B), and the episodes that they ended."""
        since = 0
        for t in ended.any(1).nonzero().flatten().tolist():
            self.running = self.running + reward[since : t + 1].sum(0)
            self.recent.extend(self.running[ended[t]].tolist())
            self.running, since = self.running * ~ended[t], t + 1
        self.running = self.running + reward[since:].sum(0)

    def score(self) -> float:
        """The mean return of the last episodes."""
        return sum(self.recent) / len(self.recent) if self.recent else float(self.running.mean())

    def state(self) -> State:
        """All of it; for environments that cannot be saved, why."""
        self.begin()
        try:
            env = self.env.state()
        except CannotRestore as reason:
            env = {"cannot": f"{reason} All else goes on."}
        return {
            "env": env,
            "memory": self.memory,
            "steps": self.steps,
            "running": self.running,
            "recent": list(self.recent),
        }

    def restore(self, state: State) -> None:
        """Go on from a state; `anew` says whether in new episodes. UserError where it is of another number."""
        had, has = len(state["running"]), len(self.index)
        if had != has:
            raise UserError(
                f"Each process had {had} environment{'s' * (had != 1)} and would now have {has}: what was lived through"
                " goes on with as many processes as before."
            )
        self.memory, self.running, self.steps = state["memory"], state["running"], int(state["steps"])
        self.recent, self.anew = deque(state["recent"], maxlen=100), "cannot" in state["env"]
        if self.anew:
            self.memory, self.running = None, torch.zeros_like(self.running)
        self._obs = self.env.restore({"anew": self.steps} if self.anew else state["env"])


class Ahead(Noise):
    """The noise of one step of a stretch, with keys (T, B), whose numbers are drawn for all of its steps at once."""

    def __init__(self, key: Tensor, t: int, drawn: dict[tuple[Any, ...], Tensor]) -> None:
        super().__init__(key[t])
        self._keys, self._t, self._drawn = key, t, drawn

    def uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """As Noise has it (B, *shape)."""
        return self._of(Noise.uniform, shape, dtype)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """As Noise has it (B, *shape)."""
        return self._of(Noise.normal, shape, dtype)

    def _of(self, draw: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
        asked = self._draws, draw, shape, dtype or torch.get_default_dtype()
        if asked not in self._drawn:
            noise = Noise(self._keys.flatten())
            noise._draws = self._draws
            self._drawn[asked] = draw(noise, *shape, dtype=dtype).unflatten(0, self._keys.shape)  # (T, B, *shape)
        self._draws += 1
        return self._drawn[asked][self._t]


def forgotten(memory: Any, ended: Tensor) -> Any:
    """The memory with zeros where an episode has ended (B,)."""
    if memory is None:
        return None
    wipe: Callable[[Tensor], Tensor] = lambda t: torch.where(ended.view(-1, *[1] * (t.ndim - 1)), 0, t)  # noqa: E731
    return wipe(memory) if isinstance(memory, Tensor) else each(memory, wipe)
