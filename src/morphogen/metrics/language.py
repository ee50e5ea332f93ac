"""What a law of sequences says of sequences that it never saw: nats a token, perplexity, and nats or bits a character.

    nats/token = − Σ log p(x) / Σ n,      perplexity = exp(nats/token),      the sums over all items, n their tokens

The same sum over the characters of text, or the steps of music, compares models whatever their tokens are. What ends a
sequence is a token, and costs; it is no character. Intervals are of a ratio of means over the items (the delta method).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core import Items, each
from ..errors import UserError
from .measure import Z95, Measure


@runtime_checkable
class Sequential(Protocol):
    """A model with the probability of sequences that have lengths."""

    def log_prob(self, x: Tensor, cond: Any = None, lengths: Tensor | None = None) -> Tensor:
        """log p (B,) of the first `lengths` symbols of each row, nats."""
        ...

    def lengths(self, x: Tensor) -> Tensor:
        """How many symbols each row has (B,)."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A space of sequences that are made of something that people count. unit: what they call it."""

    unit: str

    def units(self, row: Tensor) -> int:
        """How many are in the tokens (n,) of a row."""
        ...


@torch.no_grad()
def sequences(
    model: Any,
    items: Items,
    space: Any = None,
    *,
    n: int | None = None,
    chunk: int = 64,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Measure]:
    """Nats a token, perplexity, and of a `Counted` space nats and bits a unit, of the first n items (all where None).

    Raises UserError where there is nothing to measure, or the model has no law of sequences.
    """
    if not isinstance(model, Sequential):
        raise UserError(f"A {type(model).__name__} has no law of sequences, so no perplexity.")
    count = len(items) if n is None else min(n, len(items))
    if count < 1:
        raise UserError("There is no item to measure: give at least one.")
    training = bool(getattr(model, "training", False))
    nats, tokens, units = [], [], []
    model.eval()  # type: ignore[attr-defined]
    try:
        for index in torch.arange(count).split(chunk):
            batch = each(items.take(index), lambda t: t.to(device))
            x, lengths = batch["x"], batch.get("lengths")
            there = model.lengths(x) if lengths is None else lengths
            nats.append(-model.log_prob(x, batch.get("cond") or None, there).double().cpu())
            tokens.append(there.double().cpu())
            if isinstance(space, Counted):
                rows = zip(x.cpu(), there.tolist(), strict=True)
                units.append(torch.tensor([space.units(row[:k]) for row, k in rows], dtype=torch.float64))
            if progress is not None:
                progress(min(count, int(index[-1]) + 1))
    finally:
        model.train(training)  # type: ignore[attr-defined]
    cost, long = torch.cat(nats), torch.cat(tokens)
    if not bool(cost.isfinite().all()):
        raise UserError(f"{int((~cost.isfinite()).sum())} of {count} items have no finite probability.")
    per = ratio(cost, long, "of test items, interval over them")
    found = {
        "nats/token": per,
        "perplexity": Measure(math.exp(per.value), math.exp(per.low), math.exp(per.high), count, "exp(nats/token)"),
    }
    if units and float(torch.cat(units).sum()) > 0 and isinstance(space, Counted):
        by = ratio(cost, torch.cat(units), "of test items, what ends them paid for, interval over them")
        found[f"nats/{space.unit}"] = by
        bits = [v / math.log(2) for v in (by.value, by.low, by.high)]
        found[f"bits/{space.unit}"] = Measure(bits[0], bits[1], bits[2], count, "nats / ln 2")
    return found


def ratio(a: Tensor, b: Tensor, how: str) -> Measure:
    """Σ a / Σ b of items (N,), with its 95 % interval."""
    n, value = len(a), float(a.sum() / b.sum())
    off = a - value * b
    half = Z95 * float(off.square().sum().sqrt() / b.sum()) * math.sqrt(n / (n - 1)) if n > 1 else math.inf
    return Measure(value, value - half, value + half, n, how)
