"""Recorded data as a source: which item comes when is a pure function of (seed, epoch, index).

The stream of samples is epoch 0's permutation of the data, then epoch 1's, and so on without a gap; step s takes the
samples [s B, (s + 1) B) of it, B the global batch, and rank r of R the r-th of R equal pieces of that, so that the
ranks' batches put together are the batch of one process. A permutation is made from (seed, epoch) by a counter-based
generator, so that nothing random is stored and the position in the stream is the whole state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import Batch, Items, Loss, Model, Place, State, each, fold, keys
from ..errors import UserError
from ..spec import Remembers
from .items import Stored

_ORDER = 0x0DE5  # sets the key that orders an epoch apart from all else that is drawn under (seed, epoch)
_BUCKETS = 0xB0C5  # and so for the order of buckets
_RESIDENT = 1 << 30  # bytes: smaller data in memory moves to an accelerator whole and is gathered there


def steps_of(epochs: float, items: int, batch: int) -> int:
    """How many batches go through `items` items `epochs` times. Raises UserError where that is less than one."""
    steps = int(epochs * items / batch) if batch > 0 else 0
    if steps < 1:
        raise UserError(
            f"{epochs} epochs of {items} items in batches of {batch} leave nothing to train on: give epochs of 1 or"
            f" more, and a batch of 1 to {items}."
        )
    return steps


class Shuffled(Remembers):
    """Endless batches of `items` in a new order each epoch; a `Source`.

    items: recorded data (`Items`). batch: samples of a step over all ranks; it may be larger than the data, and then
    meets items more than once a step. workers: threads that take the next batches ahead of time, for items that read
    or decode files; they change no batch, need not be saved, and end with the process. Items in memory need none.
    Each batch is what `items.take` gives, with "index" (B,) and "key" (B,) = keys(index, seed, epoch), on the device.
    Raises UserError, on start, where the data is empty or the batch does not divide among the ranks.
    """

    def __init__(self, items: Items, batch: int, *, workers: int = 0) -> None:
        if batch < 1 or workers < 0:
            raise UserError(
                f"Shuffled has batch={batch}, workers={workers}: give batch of 1 or more, workers 0 or more."
            )
        self.items, self.batch, self.workers = items, batch, workers
        self._place, self._position, self._count = Place(), 0, 0
        self._epochs: dict[int, tuple[Tensor, Tensor]] = {}
        self._ahead: deque[Future[Batch]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def start(self, place: Place) -> None:
        """Take one's place among the ranks, at the beginning of the stream. Reads the data."""
        if self.batch % place.ranks:
            raise UserError(
                f"A batch of {self.batch} does not divide among {place.ranks} processes:"
                f" take {-(-self.batch // place.ranks) * place.ranks}."
            )
        if not len(self.items):
            raise UserError(f"There is nothing to train on: {type(self.items).__name__} holds no items.")
        self._place, self._count = place, len(self.items)
        resident = isinstance(self.items, Stored) and self.items.nbytes <= _RESIDENT
        self._device = place.device if resident else torch.device("cpu")  # where batches are put together
        self._go_to(0)

    def next(self, actor: Model | None = None, heard: Mapping[str, Loss] | None = None) -> Batch:
        """The next step's batch of this rank; neither the model nor what it said matters."""
        if not self._count:
            self.start(self._place)
        batch = self._fetch() if self.workers else self._take(*self._order(self._position))
        self._position += self.batch
        return batch if self._device == self._place.device else self._send(batch)

    def state(self) -> State:
        """The position in the stream: samples that all ranks have been given."""
        return {"position": self._position}

    def restore(self, state: State) -> None:
        """Continue from a position."""
        if not self._count:
            self.start(self._place)
        self._go_to(int(state["position"]))

    def _go_to(self, position: int) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._epochs.clear()
        self._position = position

    def _order(self, position: int) -> tuple[Tensor, Tensor]:
        """Index (b,) and keys (b,) of this rank's piece of the step that begins at `position`."""
        length = self.batch // self._place.ranks
        epoch, begin = divmod(position + self._place.rank * length, self._count)
        index, key = self._epoch(epoch)
        if begin + length <= self._count:
            return index[begin : begin + length], key[begin : begin + length]
        pieces = [(index[begin:], key[begin:])]
        missing = length - (self._count - begin)
        while missing > 0:
            epoch += 1
            index, key = self._epoch(epoch)
            pieces.append((index[:missing], key[:missing]))
            missing -= self._count
        return torch.cat([i for i, _ in pieces]), torch.cat([k for _, k in pieces])

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The permutation (N,) of an epoch and the keys (N,) of its samples; the last two epochs are kept."""
        if epoch not in self._epochs:
            index = permutation(self._count, self._place.seed, epoch).to(self._device)
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = index, keys(index, self._place.seed, epoch)
        return self._epochs[epoch]

    def _take(self, index: Tensor, key: Tensor) -> dict[str, Any]:
        return {**self.items.take(index), "index": index, "key": key}

    def _fetch(self) -> Batch:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, "morphogen-data")
        while len(self._ahead) < 2 * self.workers:
            order = self._order(self._position + len(self._ahead) * self.batch)
            self._ahead.append(self._pool.submit(self._take_pinned, *order))
        batch = self._ahead[0].result()
        self._ahead.popleft()
        return batch

    def _take_pinned(self, index: Tensor, key: Tensor) -> Batch:
        batch = self._take(index, key)
        pin = self._place.device.type == "cuda" and self._device.type == "cpu"
        return each(batch, Tensor.pin_memory) if pin else batch

    def _send(self, batch: Batch) -> Batch:
        return each(batch, lambda t: t.to(self._place.device, non_blocking=True))


class Buckets(Remembers):
    """Batches of several sources in turn, each batch from one alone: pictures by their aspect, say; a `Source`.

    Every source has its own shape. Within an epoch each gives ceil(items / batch) batches, in an order drawn anew, so
    that an item comes as often as any other, but for what fills up each source's last batch. One without items has no
    turn. Raises UserError where none has any.
    """

    def __init__(self, sources: Sequence[Shuffled]) -> None:
        self.sources = tuple(sources)
        if not self.sources:
            raise UserError("Buckets was given no source: give at least one.")
        self._step, self._place = 0, Place()
        self._turns: list[int] = []  # which source gives each batch of an epoch, before they are put in order
        self._orders: tuple[int, Tensor] = (-1, torch.empty(0))

    def start(self, place: Place) -> None:
        """Take one's place among the ranks, at the beginning of the stream. Reads the data."""
        held = [source for source in self.sources if len(source.items)]
        if not held:
            raise UserError(f"There is nothing to train on: none of {len(self.sources)} buckets holds an item.")
        for source in held:
            source.start(place)
        self._step, self._place = 0, place
        self._turns = [i for i, s in enumerate(self.sources) for _ in range(-(-len(s.items) // s.batch))]

    def next(self, actor: Model | None = None, heard: Mapping[str, Loss] | None = None) -> Batch:
        """The next step's batch of this rank, of the source whose turn it is."""
        if not self._turns:
            self.start(self._place)
        epoch, at = divmod(self._step, len(self._turns))
        if self._orders[0] != epoch:
            self._orders = epoch, permutation(len(self._turns), fold(self._place.seed, _BUCKETS), epoch)
        self._step += 1
        return self.sources[self._turns[int(self._orders[1][at])]].next(actor, heard)

    def state(self) -> State:
        """The steps taken, and each source's own state."""
        return {"step": self._step, "sources": [s.state() for s in self.sources]}

    def restore(self, state: State) -> None:
        """Continue from a state."""
        if not self._turns:
            self.start(self._place)
        self._step = int(state["step"])
        for source, own in zip(self.sources, state["sources"], strict=True):
            if len(source.items):
                source.restore(own)


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation (n,) of 0 .. n - 1, a function of its arguments alone.

    From Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") through numpy's RandomState, the one
    of its generators whose results no later version of numpy may change.
    """
    return torch.from_numpy(
        np.random.RandomState(np.random.Philox(key=fold(seed, epoch, _ORDER))).permutation(n)
    ).long()


def in_order(items: Items, batch: int, *, seed: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Every item once, in its own order, as batches of `batch` (the last may be smaller): a pass over held-out data.

    The keys are those of epoch 0 under `seed`, whatever the batch: a loss on held-out data has fixed noise.
    Raises UserError where the data is empty.
    """
    if batch < 1:
        raise UserError(f"in_order has batch={batch}: give 1 or more.")
    count, device = len(items), torch.device(device)
    if not count:
        raise UserError(f"There is nothing to go through: {type(items).__name__} holds no items.")
    on = device if isinstance(items, Stored) and items.nbytes <= _RESIDENT else torch.device("cpu")
    for begin in range(0, count, batch):
        index = torch.arange(begin, min(begin + batch, count), device=on)
        found = {**items.take(index), "index": index, "key": keys(index, seed, 0)}
        yield found if on == device else each(found, lambda t: t.to(device))
