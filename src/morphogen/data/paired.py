"""Pictures and what they are to be translated from: in pairs, or two kinds that nothing pairs.

A batch has x (B, ...), the pictures that are wanted, and cond source (B, ...), those that they are made from. Items
with a `paired` that is False only look like pairs: nothing is learned of one picture from the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import Batch, Items, Loss, Model, Place, State, fold
from ..errors import UserError
from ..spec import Remembers
from .album import Album
from .source import Shuffled

Change = Callable[[Tensor], Tensor]  # pictures (B, C, H, W) in [-1, 1] -> pictures (B, D, H, W) in [-1, 1]
_OTHER = 0x07E2  # sets the order of the sources apart from that of the targets


class Derived(Remembers):
    """`Items`: pictures, each with what `change` makes of it as its source; the conditions of the picture stay.

    reverse: the picture is the source, and what is made of it is x.
    """

    paired = True

    def __init__(self, items: Items, change: Change, *, reverse: bool = False) -> None:
        self.items, self.change, self.reverse = items, change, reverse

    def __len__(self) -> int:
        return len(self.items)

    def take(self, index: Tensor) -> dict[str, Any]:
        """The pairs of that index (B,)."""
        batch = self.items.take(index)
        x, made = batch["x"], self.change(batch["x"])
        x, source = (made, x) if self.reverse else (x, made)
        return {**batch, "x": x, "cond": {**(batch.get("cond") or {}), "source": source}}


class Every(Remembers):
    """`Items`: each `step`-th of others, from `start` on. So halves are made that share no item."""

    def __init__(self, items: Items, step: int = 2, start: int = 0) -> None:
        if not 0 <= start < step:
            raise UserError(f"Every has step={step}, start={start}: give a step of 1 or more, and a start below it.")
        self.items, self.step, self.start = items, step, start

    def __len__(self) -> int:
        return max(0, -(-(len(self.items) - self.start) // self.step))

    def take(self, index: Tensor) -> dict[str, Any]:
        """The items of that index (B,)."""
        return self.items.take(index * self.step + self.start)


class Together(Remembers):
    """`Items`: the i-th of two collections as if they were a pair, as many as the shorter one has."""

    paired = False

    def __init__(self, source: Items, target: Items) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return min(len(self.source), len(self.target))

    def take(self, index: Tensor) -> dict[str, Any]:
        """The items of that index (B,)."""
        return {"x": self.target.take(index)["x"], "cond": {"source": self.source.take(index)["x"]}}


class Unpaired(Remembers):
    """Batches of two kinds of pictures, each in an order of its own; a `Source`. Both have batches of one size.

    "index" and "key" are the target's. Raises UserError where the batches are of two sizes.
    """

    def __init__(self, source: Shuffled, target: Shuffled) -> None:
        if source.batch != target.batch:
            raise UserError(f"Unpaired has batches of {source.batch} and of {target.batch}: give one size for both.")
        self.source, self.target = source, target

    def start(self, place: Place) -> None:
        """Take one's place among the ranks, at the beginning of both streams."""
        self.target.start(place)
        self.source.start(place._replace(seed=fold(place.seed, _OTHER)))

    def next(self, actor: Model | None = None, heard: Mapping[str, Loss] | None = None) -> Batch:
        """The next step's batch of this rank."""
        target, source = self.target.next(actor, heard), self.source.next(actor, heard)
        return {"x": target["x"], "cond": {"source": source["x"]}, "index": target["index"], "key": target["key"]}

    def state(self) -> State:
        """Both states."""
        return {"source": self.source.state(), "target": self.target.state()}

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self.source.restore(state["source"])
        self.target.restore(state["target"])


class Matched(Remembers):
    """`Items`: the pictures of an album, each with that of the same path (less its ending) in others as its source.

    sources: where it is looked for: both parts of an album, as it may be in either. A picture whose partner is bad is
    left out, aloud. Raises UserError, on first use, where one has no partner, or the sizes differ.
    """

    paired = True

    def __init__(self, sources: Sequence[Album], target: Album) -> None:
        self.sources, self.target = tuple(sources), target
        self._pairs: tuple[Tensor, Tensor] | None = None

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Where in the target each picture is (N,), and where among the sources, one after the other, its partner."""
        if self._pairs is None:
            if odd := [s for s in self.sources if s.size != self.target.size]:
                raise UserError(f"Sources of {odd[0].size} and targets of {self.target.size}: give them one size.")
            names = [_stem(e.name) for album in self.sources for e in album.entries()]
            place = {name: i for i, name in enumerate(names)}
            wanted = [_stem(e.name) for e in self.target.entries()]
            if len(place) < len(names):
                twice = next(n for n in names if names.count(n) > 1)
                raise UserError(f"Two pictures in {str(self.sources[0].folder)!r} are called {twice!r}: rename one.")
            spoilt = {_stem(name) for album in self.sources for name in album.bad()} - set(names)
            if alone := [name for name in wanted if name not in place and name not in spoilt]:
                raise UserError(
                    f"{alone[0]!r} in {str(self.target.folder)!r} has no partner of that name in"
                    f" {str(self.sources[0].folder)!r}: name both of a pair alike, or train with --unpaired."
                )
            if lost := [name for name in wanted if name in spoilt]:
                shown = ", ".join(map(repr, lost[:5])) + (", …" if len(lost) > 5 else "")
                print(f"Pairs left out, as their sources are bad: {len(lost):,} ({shown}).", file=sys.stderr)
            found = [(i, place[name]) for i, name in enumerate(wanted) if name in place]
            own, partner = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T.contiguous()
            self._pairs = own, partner
        return self._pairs

    def __len__(self) -> int:
        return len(self.pairs[0])

    def take(self, index: Tensor) -> dict[str, Any]:
        """The pairs of that index (B,)."""
        own, rows = (t.to(index.device)[index] for t in self.pairs)
        batch, begin = self.target.take(own), 0
        source = torch.empty(len(index), *self.sources[0].shape, dtype=batch["x"].dtype, device=index.device)
        for album in self.sources:
            here = (rows >= begin) & (rows < begin + len(album))
            source[here] = album.take(rows[here] - begin)["x"]
            begin += len(album)
        return {**batch, "cond": {**(batch.get("cond") or {}), "source": source}}


def _stem(name: str) -> str:
    """A picture's path without its ending."""
    return name.rpartition(".")[0]
