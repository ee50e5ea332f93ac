"""Couplings: which noise goes with which data, as a source that gives each batch its `z`.

Straight paths that do not cross are what few steps can follow, and paths cross less where noise is near its data. For a
batch x_1 … x_B and as many draws z_1 … z_B ~ N(0, I), exact minibatch optimal transport takes the permutation

    π = argmin Σ_i |x_i − z_π(i)|²,   the same as   argmin Σ_i c(i, π(i)),   c(i, j) = −⟨x_i, z_j⟩ − u_i − v_j

for any u, v. Both marginals are kept; as B grows the paths become straight. Independent pairs, the other coupling, are
what `Diffusion` draws itself where no source says otherwise; the pairs of reflow are recorded data (`data.Pairs`).

The solver is exact (scipy's shortest augmenting paths), and quick where u, v nearly are the dual solution: they come
from a few of Sinkhorn's iterations at three falling temperatures, each followed by c-transforms. That changes no plan,
and makes one of 256 points in two dimensions three times faster (10.3 ms to 3.3 on one core of an AMD EPYC).

x_t given x is no longer normal about α x, so what is trained so is a flow and no score: it is sampled without noise
(Euler, Heun, Dormand–Prince), and neither its `score`, its bound nor a classifier's pull means what it does elsewhere.

Tong et al. 2023 (arXiv 2302.00482), Pooladian et al. 2023 (arXiv 2304.14772), Crouse 2016 ("On implementing 2D
rectangular assignment algorithms"), Cuturi 2013 (Sinkhorn, arXiv 1306.0895). Departures: each pair of the plan is used
once (Tong et al. draw pairs of it with replacement); the plan is made while the step before it runs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Batch, Loss, Model, Noise, Place, Source, State, keys, leaves
from ..errors import UserError, unknown
from ..spec import Remembers

_PAIRED = 0x0791  # sets the keys of z apart from those that the loss draws times and dropped conditions from


class OptimalTransport(Remembers):
    """The batches of `source`, each with "z" (B, ...): standard normal, paired with x at the least squared distance.

    source:  one whose batches do not depend on the model, such as `Shuffled` or `Fresh`: they are taken ahead of time.
    within:  names of the conditions ("label",): pairs are exchanged among samples that agree in all of them, so that z
             given the condition stays standard normal, as `sample` will draw it. Over the whole of a conditional batch
             it would not: the classes would share the noise out among them. () does that all the same.
    workers: threads that make plans while the training steps run, each at most one batch ahead; 0 makes them in the
             step. They change no batch.
    z is a function of the batch's keys and x; what `state` gives is the source's after the last batch handed out. Each
    rank pairs its own piece of the batch, so that the number of ranks changes the pairs. Held-out losses are of
    independent pairs: not to be compared with those of training.
    Raises UserError: on start without scipy; on a batch with conditions where `within` is not given, with numbers that
    are not finite, or of integers.
    """

    def __init__(self, source: Source, *, within: tuple[str, ...] | None = None, workers: int = 1) -> None:
        if workers < 0:
            raise UserError(f"OptimalTransport has workers={workers}: give 1 or more, or 0 for plans made in the step.")
        self.source, self.within, self.workers = source, within, workers
        self._ahead: deque[_Planned] = deque()
        self._state: State | None = None  # the source's, once it is ahead of what was handed out
        self._pool: ThreadPoolExecutor | None = None

    def start(self, place: Place) -> None:
        """Start the source."""
        _solver()
        self.source.start(place)
        self._drop()

    def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
        """The source's next batch with its "z"."""
        if not self.workers:
            self._state = None
            batch, z, groups = self._take(actor, heard)
            return {**batch, "z": z[_to(assign(batch["x"], z, groups), z)]}
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, "morphogen-coupling", _give_way)
        while len(self._ahead) <= self.workers:
            batch, z, groups = self._take(actor, heard)
            plan = self._pool.submit(assign, batch["x"], z, groups)
            self._ahead.append(_Planned(batch, z, plan, self.source.state()))
        planned = self._ahead[0]
        order = planned.plan.result()
        self._state = self._ahead.popleft().state
        return {**planned.batch, "z": planned.z[_to(order, planned.z)]}

    def state(self) -> State:
        """The source's state after the batch last handed out."""
        return self.source.state() if self._state is None else self._state

    def restore(self, state: State) -> None:
        """Continue from a state; what was planned ahead is dropped."""
        self._drop()
        self.source.restore(state)

    def _drop(self) -> None:
        for planned in self._ahead:
            planned.plan.cancel()
        self._ahead.clear()
        self._state = None

    def _take(self, actor: Model, heard: Mapping[str, Loss]) -> tuple[Batch, Tensor, Tensor | None]:
        """The next batch of the source, noise (B, *shape) for it, and each sample's group (B,) where that counts."""
        batch = self.source.next(actor, heard)
        x = batch["x"]
        if not x.is_floating_point():
            raise UserError(
                f"Optimal transport pairs noise with floats, and this data's x is"
                f" {str(x.dtype).removeprefix('torch.')}: give Tensors(levels=…)."
            )
        z = Noise(keys(batch["key"], _PAIRED)).normal(*x.shape[1:], dtype=x.dtype)
        return batch, z, self._groups(batch)

    def _groups(self, batch: Batch) -> Tensor | None:
        known = dict(leaves(batch.get("cond") or {}))
        if self.within is None and known:
            raise UserError(
                f"This data has conditions ({', '.join(known)}), and optimal transport over the whole batch would give"
                f" each its own noise: pair within them, OptimalTransport(source, within=({next(iter(known))!r},))."
            )
        group: Tensor | None = None
        for name in self.within or ():
            if name not in known:
                raise unknown("condition of this data", name, known, "(`within` of OptimalTransport names it)")
            same = known[name].flatten(1) if known[name].dim() > 1 else known[name][:, None]
            parts = same if group is None else torch.cat((group[:, None].to(same), same), 1)
            group = torch.unique(parts, dim=0, return_inverse=True)[1]
        return group


class _Planned(NamedTuple):
    """A batch ahead of time: its noise, the permutation under way, and the source's state after it."""

    batch: Batch
    z: Tensor
    plan: Future[Any]
    state: State


def _give_way() -> None:
    """Let this thread run where the step leaves a core free: a step in many threads waits for the slowest of them."""
    if sys.platform == "linux":  # elsewhere a priority belongs to a process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _to(order: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(order).to(like.device)


def assign(x: Float[Tensor, " b *shape"], z: Float[Tensor, " b *shape"], groups: Tensor | None = None) -> Any:
    """The permutation (B,) int64, a numpy array, with the least Σ |x_i − z_π(i)|², within each of `groups` (B,).

    Exact, in double precision. Computes with numpy alone: torch in a second thread brings a second pool of threads.
    Raises UserError where x is not finite, and where scipy is missing.
    """
    data, noise = (t.detach().cpu().flatten(1).double().numpy() for t in (x, z))  # (B, D)
    if bad := int((~np.isfinite(data).all(1)).sum()):
        raise UserError(f"{bad} of the {len(data)} samples of a batch are not finite (NaN or Inf): look at the data.")
    order = np.arange(len(data))
    if groups is None:
        return _plan(data, noise)
    group = groups.cpu().numpy()
    for g in np.unique(group):
        (mine,) = np.nonzero(group == g)
        order[mine] = mine[_plan(data[mine], noise[mine])]
    return order


def _plan(x: Any, z: Any) -> Any:
    """The best permutation (B,) for x (B, D) and z (B, D)."""
    cost = _reduced(-(x @ z.T))
    return _solver()(cost)[1].astype(np.int64, copy=False)


_TEMPERATURES, _ITERATIONS = (0.1, 0.03, 0.01), 8  # shares of the mean cost


def _reduced(cost: Any) -> Any:
    """The cost (B, B) less potentials of rows and columns: no entry negative, a zero in each row and column."""
    cost = _transformed(cost)
    if len(cost) < 2 or not (mean := cost.mean()):
        return cost
    for share in _TEMPERATURES:
        heat = share * mean
        # single precision will do for potentials: there is a one in each row and column, so that nothing is divided by
        # zero, and an iteration scales by B at most, B^8 < 1e38
        kernel = np.exp((cost / -heat).astype(np.float32))
        a = np.ones(len(cost), np.float32)
        for _ in range(_ITERATIONS):
            b = 1 / np.einsum("ij,i->j", kernel, a)
            a = 1 / np.einsum("ij,j->i", kernel, b)
        cost = _transformed(cost - heat * np.log(a)[:, None] - heat * np.log(b))
    return cost


def _transformed(cost: Any) -> Any:
    cost = cost - cost.min(1, keepdims=True, initial=np.inf)
    cost -= cost.min(0, initial=np.inf)
    return cost


def _solver() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(
            "Exact optimal transport needs scipy, which is not installed: pip install 'morphogen[ot]'."
        ) from None
    return linear_sum_assignment
