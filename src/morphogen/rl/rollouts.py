"""Experience as a source: an agent acts in environments, and what comes of it are its batches.

    Online     one step of every environment a batch, for methods that learn from each step as it comes
    Recent     the last n steps of every environment, one newer in each batch: methods of n steps
    Rollouts   stretches of T steps, kept for some epochs of minibatches: on-policy methods

All store unread what `act` says of its actions (`Act.info`: log-probabilities, values, …). What they remember is their
state: where the environment's state can be saved, a resumed run goes on with the same batches; else the environment
says in a sentence that it cannot, and the run goes on in new episodes, with all else that it remembered.

Of each batch `score` (B,) is the mean return of the last hundred episodes that ended, and of those in progress before
one has: a number to log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..core import Act, Acts, Batch, Loss, Model, Noise, Place, State, can, each, keys, size
from ..errors import UserError
from ..spec import Remembers
from .env.env import Env
from .losses import standardised
from .player import Player
from .returns import explained_variance, following, gae, lambda_return

_ORDER = 0x0DE2  # sets the keys of the order of minibatches apart
Rows = dict[str, Any]  # names to tensors (T, B, ...)


class Online(Remembers):
    """Each batch is one step of every environment: obs, action, reward, next, next_action, terminated, truncated, info.

    next (B, ...) is what the step led to, before any reset. The next action is chosen before the step is learnt from,
    as SARSA has it; it belongs to `next` unless the episode has ended.
    """

    def __init__(self, env: Env) -> None:
        self.env = env

    def start(self, place: Place) -> None:
        """Begin all environments."""
        self._player, self._ahead = Player(self.env, place), cast("dict[str, Any]", {})

    def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
        """Take a step."""
        player = self._player
        if not self._ahead:
            self._ahead = _kept(player.act(actor))
        act, obs = Act(**self._ahead), player.obs
        step = player.step(act)
        self._ahead = _kept(player.act(actor))
        return {
            "obs": obs,
            "action": act.action,
            "reward": step.reward,
            "next": step.final,
            "next_action": self._ahead["action"],
            "terminated": step.terminated,
            "truncated": step.truncated,
            "info": dict(act.info),
            "score": torch.full_like(step.reward, player.score()),
            "index": player.index,
            "key": keys(player.index, player.place.seed, _ORDER, player.steps),
        }

    @property
    def env_steps(self) -> int:
        """Steps taken so far: an action that is only chosen is none yet."""
        return (self._player.steps - bool(self._ahead)) * self.env.envs

    def state(self) -> State:
        """The player, and the action chosen ahead."""
        return {"player": self._player.state(), "ahead": self._ahead}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._player.restore(state["player"])
        self._ahead = dict(state["ahead"])
        if self._player.anew and self._ahead:  # what was chosen is never done
            self._ahead = {}
            self._player.steps -= 1

    @property
    def anew(self) -> bool:
        """Whether it went on in new episodes."""
        return self._player.anew


class Recent(Remembers):
    """Each batch is one of `Online`, and beside it `steps`: the last n of every environment, the newest last.

    steps: obs, action, reward, next, next_action, terminated, truncated (B, n, ...), and live (B, n): whether a step is
    there and of the newest one's episode. Raises UserError where n is less than 1.
    """

    def __init__(self, env: Env, n: int) -> None:
        if n < 1:
            raise UserError(f"The last {n} steps are no experience: take n of 1 or more.")
        self.env, self.n = env, n

    def start(self, place: Place) -> None:
        """Begin all environments."""
        self._online, self._steps = Online(self.env), cast("dict[str, Tensor]", {})
        self._online.start(place)

    def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
        """Take a step, and forget the oldest."""
        batch = self._online.next(actor, heard)
        new = {k: batch[k] for k in ("obs", "action", "reward", "next", "next_action", "terminated", "truncated")}
        if not self._steps:
            self._steps = {k: v[:, None].expand(-1, self.n, *v.shape[1:]) for k, v in new.items()}
            self._steps["live"] = torch.zeros_like(self._steps["terminated"])
        new["live"] = torch.ones_like(new["terminated"])
        ended = self._steps["terminated"][:, -1] | self._steps["truncated"][:, -1]
        kept = self._steps | {"live": self._steps["live"] & ~ended[:, None]}
        self._steps = {k: torch.cat((kept[k][:, 1:], v[:, None]), 1) for k, v in new.items()}
        return {**batch, "steps": dict(self._steps)}

    @property
    def env_steps(self) -> int:
        """Steps taken so far."""
        return self._online.env_steps

    def state(self) -> State:
        """The player, and the steps."""
        return {"online": self._online.state(), "steps": self._steps}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._online.restore(state["online"])
        self._steps = {} if self._online.anew else dict(state["steps"])


def _kept(act: Act) -> dict[str, Any]:
    return {"action": act.action, "info": dict(act.info), "memory": act.memory}


# ---- stretches -----------------------------------------------------------------------------------------------------


class GAE(Remembers):
    """Advantages by generalised advantage estimation, and returns A + V, of a critic that says "value".

    Raises UserError where gamma or lam is not in [0, 1].
    """

    def __init__(self, gamma: float = 0.99, lam: float = 0.95) -> None:
        if not (0 <= gamma <= 1 and 0 <= lam <= 1):
            raise UserError(f"GAE with gamma={gamma}, lam={lam}: give both in [0, 1] (0.99 and 0.95 are usual).")
        self.gamma, self.lam = gamma, lam

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        """`advantage` and `return` (T, B)."""
        ends = rows["terminated"], rows["truncated"]
        if "value" not in rows["info"]:
            raise UserError("GAE needs a critic: let act say info={'value': V(s)}, or take MonteCarlo().")
        value = rows["info"]["value"]
        advantage = gae(_counted(rows), value, rows["after"], *ends, gamma=self.gamma, lam=self.lam)
        return {"advantage": advantage, "return": advantage + value}


def _counted(rows: Rows) -> Tensor:
    """Rewards (T, B), in the "unit" that act says they count in: those of a stretch count alike."""
    reward: Tensor = rows["reward"]
    return reward / rows["info"]["unit"] if "unit" in rows["info"] else reward


class MonteCarlo(Remembers):
    """Returns to the end, from a critic's "value" on where cut off; what they exceed its value by is the advantage.

    Without a critic nothing counts after a cut, the end of the stretch included: then take stretches of many episodes.
    Raises UserError where gamma is not in [0, 1].
    """

    def __init__(self, gamma: float = 0.99) -> None:
        if not 0 <= gamma <= 1:
            raise UserError(f"MonteCarlo with gamma={gamma}: give a discount in [0, 1] (0.99 is usual).")
        self.gamma = gamma

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        """`advantage` and `return` (T, B)."""
        ends = rows["terminated"], rows["truncated"]
        target = lambda_return(_counted(rows), rows["after"], *ends, gamma=self.gamma, lam=1.0)
        return {"advantage": target - rows["info"].get("value", 0.0), "return": target}


@runtime_checkable
class Reviews(Protocol):
    """A policy that says of a whole stretch at once what `act` says of each step: a step then costs an action only."""

    def decide(self, obs: Tensor, *, noise: Noise) -> Tensor:
        """The actions (B, ...) of `act` alone."""
        ...

    def review(self, obs: Tensor, action: Tensor) -> Mapping[str, Tensor]:
        """What `act` says (its info) of actions (N, ...) for observations (N, ...)."""
        ...


def by_step(rows: Rows) -> Batch:
    """Every step a sample: (T, B, ...) as (T B, ...). What was remembered before each is left out."""
    return each({k: v for k, v in rows.items() if k != "memory"}, lambda t: t.flatten(0, 1))


def by_environment(rows: Rows) -> Batch:
    """Every environment's stretch a sample: (T, B, ...) as (B, T, ...), with the memory (B, ...) that it began with."""
    memory = rows["memory"]
    whole = each(
        {k: v for k, v in rows.items() if k != "memory"}, lambda t: t.transpose(0, 1).contiguous()
    )  # as it is after a resume
    return whole if memory is None else whole | {"memory": memory}


def standard(batch: Batch) -> Batch:
    """The batch, its advantages of mean 0 and standard deviation 1 over all ranks."""
    return {**batch, "advantage": standardised(batch["advantage"])}


def as_it_is(batch: Batch) -> Batch:
    """The batch."""
    return batch


class Rollouts(Remembers):
    """Stretches of `length` steps of every environment, each served for `epochs` epochs of `pieces` minibatches.

    estimate: what is made of a stretch (`GAE`, `MonteCarlo`, or a function of its rows (T, B, ...) that returns more).
    cut: how its rows become samples: `by_step`, or `by_environment` for policies with a memory. finish: what is done
    with each minibatch (`standard`: PPO's standardised advantages). most_kl: a stretch is left once a phase of the last
    step says a larger "kl" in its logs.

    A batch: obs, action, reward, terminated, truncated, begins (whether a step is an episode's first), info (what act
    said), what estimate says, epoch (how often a sample was served before), score, index, key; and by_environment the
    memory of the beginning.
    Raises UserError where the samples of a stretch do not divide into the pieces.
    """

    def __init__(
        self,
        env: Env,
        length: int,
        *,
        estimate: Callable[[Rows], dict[str, Tensor]] = GAE(),  # noqa: B008  (immutable)
        epochs: int = 1,
        pieces: int = 1,
        cut: Callable[[Rows], Batch] = by_step,
        finish: Callable[[Batch], Batch] = as_it_is,
        most_kl: float | None = None,
    ) -> None:
        if min(length, epochs, pieces) < 1:
            raise UserError(
                f"Rollouts of length {length} in {pieces} pieces for {epochs} epochs hold nothing: 1 or more of each."
            )
        if most_kl is not None and not most_kl > 0:
            raise UserError(f"No stretch has a KL below most_kl={most_kl}: give a number above 0 (0.015 is usual).")
        known = {by_step: length * env.envs, by_environment: env.envs}
        if cut in known:
            _divided(known[cut], pieces)
        self.env, self.length, self.estimate = env, length, estimate
        self.epochs, self.pieces, self.cut, self.finish, self.most_kl = epochs, pieces, cut, finish, most_kl

    def steps(self, experience: int) -> int:
        """How many steps of training so many steps of all environments are: of whole stretches, one at least.

        Raises UserError where there are none.
        """
        if experience < 1:
            raise UserError(f"{experience} steps of experience teach nothing: give 1 or more.")
        return max(1, experience // (self.env.envs * self.length)) * self.epochs * self.pieces

    def start(self, place: Place) -> None:
        """Begin all environments."""
        self._player, self._place = Player(self.env, place), place
        self._begins = torch.ones_like(self._player.index, dtype=torch.bool)
        self._count, self._used, self._whole = 0, 0, cast("dict[str, Any]", {})
        self._mixed: dict[str, Any] | None = None  # the samples in the order of the epoch: follows from the rest

    def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
        """The next minibatch, of a new stretch where the last is used up or left."""
        if not self._whole or self._used >= self.epochs * self.pieces or self._far(heard):
            self._whole, self._used, self._mixed = self._play(actor), 0, None
            self._count += 1
        epoch, piece = divmod(self._used, self.pieces)
        self._used += 1
        n = _divided(size(self._whole), self.pieces)
        if piece == 0 or self._mixed is None:
            self._mixed = self._mix(epoch)
        if self.pieces == 1:
            return self.finish(self._mixed)
        return self.finish(each(self._mixed, lambda t: t[piece * n : (piece + 1) * n]))

    def _mix(self, epoch: int) -> dict[str, Any]:
        """The samples of the stretch in this epoch's order."""
        index, mixed = self._whole["index"], self._whole
        if self.pieces > 1:
            order = keys(index, self._place.seed, _ORDER, self._count, epoch).argsort()
            mixed = each(mixed, lambda t: t[order])
        return {**mixed, "epoch": torch.full_like(index, epoch)}

    def _far(self, heard: Mapping[str, Loss]) -> bool:
        if self.most_kl is None:
            return False
        said = [loss.logs["kl"] for loss in heard.values() if "kl" in loss.logs]
        return any(bool(kl > self.most_kl) for kl in said)  # a log is the mean over ranks: all leave together

    @torch.no_grad()
    def _play(self, actor: Model) -> dict[str, Any]:
        """A new stretch, its samples."""
        player, later = self._player, can(actor, Reviews)
        memory, kept = player.memory, []
        for noise in player.noises(self.length):
            obs = player.obs
            act = Act(cast("Reviews", actor).decide(obs, noise=noise)) if later else player.act(actor, noise=noise)
            kept.append((obs, act, player.go(act)))
        rows: dict[str, Any] = {
            "obs": torch.stack([obs for obs, _, _ in kept]),
            "action": torch.stack([act.action for _, act, _ in kept]),
            "reward": torch.stack([step.reward for _, _, step in kept]),
            "terminated": torch.stack([step.terminated for _, _, step in kept]),
            "truncated": torch.stack([step.truncated for _, _, step in kept]),
        }
        ended = rows["terminated"] | rows["truncated"]
        rows["begins"], self._begins = torch.cat((self._begins[None], ended[:-1])), ended[-1]
        player.earn(rows["reward"], ended)
        if later:
            said = cast("Reviews", actor).review(rows["obs"].flatten(0, 1), rows["action"].flatten(0, 1))
            rows["info"] = {k: v.unflatten(0, (self.length, -1)) for k, v in said.items()}
        else:
            rows["info"] = {k: torch.stack([act.info[k] for _, act, _ in kept]) for k in kept[0][1].info}
        rows["after"] = self._after(actor, rows, [(step.final, act.memory) for _, act, step in kept])
        rows |= self.estimate(rows)
        rows["score"] = torch.full_like(rows["reward"], player.score())
        if "value" in rows["info"] and "return" in rows:
            rows["explained"] = explained_variance(rows["info"]["value"], rows["return"]).expand_as(rows["reward"])
        whole = dict(self.cut({**rows, "memory": _zeros(memory, kept[0][1].memory)}))
        n = size(whole)
        whole["index"] = torch.arange(n, device=self._place.device) + self._place.rank * n
        return whole | {"key": keys(whole["index"], self._place.seed, _ORDER, self._count)}

    def _after(self, actor: Model, rows: Rows, ends: list[tuple[Tensor, Any]]) -> Tensor:
        """What the critic says of where each step has led to (T, B); zeros where there is no critic."""
        if "value" not in rows["info"]:
            return torch.zeros_like(rows["reward"])
        cut, player = rows["truncated"], self._player
        seen: list[Batch] = [{"obs": player.obs, "memory": player.memory}]
        for t in cut.any(1).nonzero().flatten().tolist():
            obs, memory = ends[t]
            seen.append(each({"obs": obs, "memory": memory}, lambda x, t=t: x[cut[t]]))  # type: ignore[misc]
        asked = _joined(seen)  # all in one question, whose answer draws nothing
        noise = Noise.seeded(0, len(asked["obs"]), device=cut.device)
        value = cast("Acts", actor).act(asked["obs"], asked["memory"], noise=noise).info["value"]
        last, of_cuts = value.tensor_split([cut.shape[1]])
        after = following(rows["info"]["value"], last)
        after[cut] = of_cuts
        return after

    @property
    def env_steps(self) -> int:
        """Steps taken so far."""
        return self._player.steps * self.env.envs

    def state(self) -> State:
        """The player, and the stretch that is in use."""
        return {
            "player": self._player.state(),
            "begins": self._begins,
            "count": self._count,
            "used": self._used,
            "whole": self._whole,
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._player.restore(state["player"])
        self._begins = state["begins"] | self._player.anew
        self._whole, self._mixed = dict(state["whole"]), None
        self._count, self._used = int(state["count"]), int(state["used"])


def _joined(parts: list[Any]) -> Any:
    """Tensors (B, ...) as one, mappings of them name by name; None of None."""
    if isinstance(parts[0], Mapping):
        return {k: _joined([part[k] for part in parts]) for k in parts[0]}
    return None if parts[0] is None else torch.cat(parts)


def _divided(samples: int, pieces: int) -> int:
    """How many samples a piece has. Raises UserError where they do not divide."""
    if samples % pieces:
        whole = [n for n in range(1, samples + 1) if samples % n == 0]
        near = [*[n for n in whole if n < pieces][-1:], *[n for n in whole if n > pieces][:1]]
        raise UserError(
            f"A stretch of {samples} samples does not divide into {pieces} pieces: take {' or '.join(map(str, near))}."
        )
    return samples // pieces


def _zeros(memory: Any, like: Any) -> Any:
    """The memory, zeros where there was none yet."""
    if memory is not None or like is None:
        return memory
    return torch.zeros_like(like) if isinstance(like, Tensor) else each(like, torch.zeros_like)
