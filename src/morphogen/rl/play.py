"""Episodes played to be judged: their returns, without bias towards the short ones.

Several environments step together, and each is given a number of episodes beforehand. Whoever stopped at the first n
episodes that end would count short ones too often, which for an agent that falls over are the bad ones.

The first observations and the noise of actions are keyed by (seed, environment, step), apart from those of training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..core import Acts, Greedy, Model, Place, beneath, can, fold
from ..errors import UserError
from ..spec import arguments, call, maker
from .env.env import Env, Simulated
from .env.others import Gymnasium
from .player import Player

_PLAY = 0x91A  # sets what is played apart from what is trained on
AT_ONCE = 32  # environments that step together


class Episodes(NamedTuple):
    """returns (N,) float64, undiscounted; lengths (N,) int64; truncated (N,) bool: whether a limit cut one off."""

    returns: Tensor
    lengths: Tensor
    truncated: Tensor


@runtime_checkable
class HasEnv(Protocol):
    """A source of experience: what comes of acting in its environments."""

    env: Env


def environment(source: Any) -> Env | None:
    """The environments of a source, from under whatever wraps it; None where it has none."""
    found: HasEnv | None = beneath(source, HasEnv)
    return None if found is None else found.env


def another(env: Env, envs: int, *, limit: int | None = None, drawn: bool = False) -> Env:
    """The same environments, made anew: `envs` of them, or, where their constructor has no `envs`, as many as ever.

    limit: steps after which an episode is cut off, in place of their own. drawn: whether they will be drawn, for which
    gymnasium must be prepared. Raises UserError where the limit cannot be changed.
    """
    given = arguments(cast("Any", env))
    changes: dict[str, Any] = {"envs": envs} if "envs" in given else {}
    if isinstance(env, Gymnasium):
        more = ({"render_mode": "rgb_array"} if drawn else {}) | ({"max_episode_steps": limit} if limit else {})
        changes["options"] = {**env.options, **more}
    elif limit and isinstance(env, Simulated):
        of = arguments(env.task)
        changes["task"] = task = call(maker(env.task), of | ({"limit": limit} if "limit" in of else {}))
        task.limit = limit
    elif limit:
        raise UserError(f"The environments are a {type(env).__name__}, whose limit is its own: leave --limit out.")
    made: Env = call(type(env), given | changes)
    return made


def usually_greedy(model: Model) -> bool:
    """Whether its paper judges it by acting without chance."""
    return can(model, Greedy) and cast("Greedy", model).judged_greedy


@torch.no_grad()
def play(
    model: Model,
    env: Env,
    n: int,
    *,
    seed: int = 0,
    greedy: bool | None = None,
    device: torch.device | str = "cpu",
    most: int = 100_000,
    progress: Callable[[int], None] = lambda done: None,
    watch: Callable[[Env, Tensor], None] = lambda env, over: None,
) -> Episodes:
    """Play n episodes of environments like `env`.

    greedy: without chance (by default as the agent's paper judges it). most: steps within which an episode must end.
    progress: told how many episodes are done. watch: shown the environments before the first step and after each, and
    which of them have played all their episodes (B,).
    The model is in evaluation mode meanwhile. Raises UserError where it cannot act so, or an episode does not end.
    """
    if not can(model, Acts):
        raise UserError(f"{type(model).__name__} cannot act: it has no act(obs, memory, noise=...).")
    if n < 1:
        raise UserError(f"{n} episodes are none: play 1 or more.")
    greedy = usually_greedy(model) if greedy is None else greedy
    if greedy and not can(model, Greedy):
        raise UserError(f"{type(model).__name__} has no way to act without chance: play it sampling.")
    slots, training = env.envs, model.training
    model.eval()
    try:
        player = Player(env, Place(device=torch.device(device), seed=fold(seed, _PLAY)))
        quota = torch.tensor([n // slots + (i < n % slots) for i in range(slots)], device=device)
        first = quota.cumsum(0) - quota  # where an environment's episodes stand among all
        count, steps = torch.zeros_like(quota), torch.zeros_like(quota)
        total = torch.zeros(slots, dtype=torch.float64, device=device)
        returns, lengths = total.new_zeros(n), quota.new_zeros(n)
        cut = torch.zeros(n, dtype=torch.bool, device=device)
        player.begin()
        watch(env, count >= quota)
        while bool((count < quota).any()):
            step = player.step(player.act(model, greedy=greedy))
            total, steps = total + step.reward.double(), steps + 1
            ended = step.terminated | step.truncated
            done = ended & (count < quota)
            if bool(done.any()):
                place = (first + count)[done]
                returns[place], lengths[place], cut[place] = total[done], steps[done], step.truncated[done]
                count = count + done
                progress(int(count.sum()))
            total, steps = torch.where(ended, 0.0, total), torch.where(ended, 0, steps)
            if int(torch.where(count < quota, steps, 0).max()) >= most:
                raise UserError(f"An episode has not ended in {most:,} steps: give a limit, such as --limit 1000.")
            watch(env, count >= quota)
    finally:
        model.train(training)
    return Episodes(returns.cpu(), lengths.cpu(), cut.cpu())
