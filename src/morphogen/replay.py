"""A turn of training that met NaN or Inf, done again to say where it came from.

A turn is a function of weights, batch and seed, and the weights are still those before it, so it can be replayed: once
with an eye on every module's output, then sample by sample to find the guilty ones.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .core import Batch, each, leaves, size
from .errors import UserError

if TYPE_CHECKING:
    from .train import Training, Turn

MOST = 4096  # samples that are tried one by one


class NotFinite(UserError):
    """Training met NaN or Inf; says step, phase, first bad tensor and data indices."""


@torch.enable_grad()
def explain(training: Training, step: int, turn: Turn, batch: Batch) -> NotFinite:
    """Replay the turn of `step` on its batch, the weights untouched, and name what was bad.

    Of several ranks each replays its own part of the batch, and the first that finds anything is quoted by all.
    """
    if not turn.optimisers:
        return NotFinite(f"Step {step}, update {turn.name!r}: its value is not finite. No bad number was saved.")
    with contextlib.nullcontext() if training.ranks.sharded else training.apart():
        found, rows = _look(training, step, turn, batch)
    told = training.ranks.tell([found, rows])
    rank, (what, rows) = next(((r, said) for r, said in enumerate(told) if said[0]), (0, told[0]))
    where = f" of process {rank}" if len(told) > 1 and what else ""
    what = what or "one that did not come back when the turn was replayed (randomness that is not keyed by the batch)"
    kept = training.checkpoints.steps()
    return NotFinite(
        f"Step {step}, phase {turn.name!r}: the first tensor that is not finite is {what}; data indices{where} {rows}."
        f" No bad number was saved (last checkpoint: step {kept[-1] if kept else 'none'}): check that data, lower the"
        " learning rate, or set clip=1.0."
    )


def _look(training: Training, step: int, turn: Turn, batch: Batch) -> tuple[str | None, str]:
    """What was bad, where anything was, and the indices of the data it came from."""
    training.model.step = step - 1
    training.reseed(step)
    _no_gradients(turn)
    with _outputs(training.model) as bad_outputs:
        loss = training.backward(turn, batch).value
    values = {"": loss} if isinstance(loss, Tensor) else loss
    bad_inputs = [n for n, t in leaves(batch) if not _finite(t)]
    bad_grads = [training.names[p] for p in turn.params if p.grad is not None and not _finite(p.grad)]
    if bad_inputs:
        what = f"the batch's {bad_inputs[0]!r} itself"
    elif bad_outputs:
        what = f"the output of {bad_outputs[0]!r}"
    elif not all(_finite(v) for v in values.values()):
        what = "the loss, all module outputs being finite"
    elif bad_grads:
        what = f"the gradient of {bad_grads[0]!r}, the loss being finite"
    elif not math.isfinite(math.hypot(*(p.grad.norm().item() for p in turn.params if p.grad is not None))):
        what = "the gradient norm, which overflows while every gradient is finite"
    else:
        what = None
    rows = _guilty(training, step, turn, batch)
    _no_gradients(turn)
    return what, rows


def _guilty(training: Training, step: int, turn: Turn, batch: Batch, shown: int = 8) -> str:
    """The indices of the samples whose own loss or gradient is not finite."""
    n = size(batch)
    if not training.model.counts(batch) or n > MOST or training.ranks.sharded:
        return "not separable"
    index = batch.get("index")
    guilty = []
    for i in range(n):
        _no_gradients(turn)
        training.reseed(step)
        with contextlib.suppress(Exception):  # a model may refuse a batch of one: then this sample is not named
            loss = training.backward(turn, each(batch, lambda t, i=i: t[i : i + 1])).value  # type: ignore[misc]
            values = [loss] if isinstance(loss, Tensor) else list(loss.values())
            grads = [p.grad for p in turn.params if p.grad is not None]
            if not all(_finite(t) for t in [*values, *grads]):
                guilty.append(i if index is None else int(index[i]))
    named = ", ".join(map(str, guilty[:shown])) + (", …" if len(guilty) > shown else "")
    return f"{named} ({len(guilty)} of {n})" if guilty else "none alone (only together)"


def _no_gradients(turn: Turn) -> None:
    for p in turn.params:
        p.grad = None


@contextlib.contextmanager
def _outputs(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules whose output is not finite, in the order in which they say it."""
    names = {m: n for n, m in model.named_modules()}
    bad: list[str] = []

    def look(module: nn.Module, _args: Any, output: Any) -> None:
        if module is not model and not all(_finite(t) for t in _tensors(output)):
            bad.append(names[module])

    handles = [m.register_forward_hook(look) for m in model.modules()]
    try:
        yield bad
    finally:
        for h in handles:
            h.remove()


def _finite(t: Tensor) -> bool:
    return not t.is_floating_point() or bool(t.isfinite().all())


def _tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping | list | tuple):
        for v in thing.values() if isinstance(thing, Mapping) else thing:
            yield from _tensors(v)
