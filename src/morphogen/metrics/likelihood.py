r"""Bits per dimension: what a model with a likelihood, or with a bound of one, says of items that it never saw.

Pixels are integers and a density is over real numbers, so each coordinate is spread over its cell of side c: with u
uniform on [-1/2, 1/2)^D

    -log P(x) <= -E_u log p(x + c u) - D log c        bits/dim = that / (D ln 2),    D log c = `space.volume`

by Jensen's inequality: an upper bound of the bits that the discrete model needs, whatever p, from one keyed u an item.
Pixels on [0, 1] instead of [-1, 1] have half the cell and a density that is larger by as much: the bits are the same.
Where a model has only a lower bound of log p (`elbo`, or the tighter `importance` of k draws), the bits are bounded
once more. A model that gives probabilities of the levels themselves (`discrete`) has nothing spread and no cell:
bits/dim = -log P(x) / (D ln 2).

Sources: Theis, van den Oord & Bethge 2016, "A note on the evaluation of generative models", arXiv:1511.01844.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Bounds, Importance, Items, LogProb, Model, Noise, can, each, keys
from ..errors import UserError
from .measure import Z95, Measure


@runtime_checkable
class SaysHow(Protocol):
    """A model that can say how its likelihoods are computed."""

    def likelihood(self, method: str) -> str:
        """One clause on `method` ("log_prob" or "elbo"): solver, estimator, evaluations."""
        ...


class Likelihoods(NamedTuple):
    """What a model says of items.

    nats: a mean log-density of an item, or log-probability where data are discrete. bits: bits per dimension; None
    where the data have no cells.
    each: nats (N,) of the items, float64. items: which they are (N,) int64. seconds: that it took.
    """

    nats: Measure
    bits: Measure | None
    each: Tensor
    items: Tensor
    seconds: float


METHODS: dict[str, type] = {"log_prob": LogProb, "elbo": Bounds, "importance": Importance}


def bits_per_dim(nats: Tensor | float, volume: float, size: int) -> Any:
    """Bits per dimension of the log-density `nats` of x of `size` coordinates whose cells have log-volume `volume`."""
    return -(nats + volume) / (size * math.log(2))


def dequantised(x: Float[Tensor, " b *shape"], volume: float, noise: Noise) -> Float[Tensor, " b *shape"]:
    """Each coordinate of x (B, *shape) spread uniformly over its cell, whose log-volume is `volume` for the whole x."""
    if not volume:
        return x
    cell = math.exp(volume / math.prod(x.shape[1:]))
    u = noise.uniform(*x.shape[1:], dtype=x.dtype).to(x.device)
    return x + (u - 0.5) * cell


@torch.no_grad()
def likelihoods(
    model: Any,
    items: Items,
    *,
    volume: float = 0.0,
    method: str = "log_prob",
    n: int | None = None,
    seed: int = 0,
    chunk: int | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Likelihoods:
    """The mean log-likelihood of items, with its 95 % interval over them.

    method: "log_prob" (`LogProb`), "elbo" (`Bounds`) or "importance" (`Importance`). volume: log-volume of an x's
    quantisation cell, `space.volume`. n: the first n items after a shuffle under `seed` (all where None). chunk: items
    at a time, by default about 50,000 numbers. progress: told how many are done. options: further keywords of the
    method, the model's own.
    The model is in evaluation mode meanwhile; the noise of item i depends on seed and i alone.
    Raises UserError where there is no item, where the model lacks the method, or where a value is not a number.
    """
    if method not in METHODS or not can(model, METHODS[method]):
        has = [m for m, protocol in METHODS.items() if can(model, protocol)]
        raise UserError(
            f"{type(model).__name__} has no {method}, so no bits/dim by it:"
            + (f" use {has[0]!r}." if has else " measure its samples instead.")
        )
    count = len(items) if n is None else min(n, len(items))
    if count < 1:
        raise UserError("There is no item to measure the likelihood of: give at least one.")
    index = torch.arange(len(items))
    if count < len(items):
        index = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:count]
    discrete = isinstance(model, Model) and model.discrete
    volume = 0.0 if discrete else volume
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    began, done, said, size = time.perf_counter(), 0, [], 1
    try:
        for part in index.split(chunk or max(1, 50_000 // items.take(index[:1])["x"].numel())):
            batch = each(items.take(part), lambda t: t.to(device))
            x = dequantised(batch["x"], volume, Noise(keys(part, seed, 1)))
            size = math.prod(x.shape[1:])
            said.append(getattr(model, method)(x, batch.get("cond") or None, **(options or {})).double().cpu())
            done += len(part)
            if progress is not None:
                progress(done)
    finally:
        if isinstance(model, nn.Module):
            model.train(training)
    nats = torch.cat(said)
    if not bool(nats.isfinite().all()):
        raise UserError(
            f"{int((~nats.isfinite()).sum())} of {count} items have no finite {method}: the model gives them no"
            " density; look at its range and at its solver."
        )
    seconds = time.perf_counter() - began
    how = _how(model, method) + "".join(f", {k} {v}" for k, v in (options or {}).items())
    return Likelihoods(*_measures(nats, volume, size, method, how, discrete), nats, index, seconds)


def mean_of(each: Tensor, how: str) -> Measure:
    """The mean of numbers (N,), one an item, with its 95 % normal interval."""
    mean, n = float(each.mean()), len(each)
    half = Z95 * float(each.std()) / math.sqrt(n) if n > 1 else math.inf
    return Measure(mean, mean - half, mean + half, n, how)


def _how(model: Any, method: str) -> str:
    return f", {model.likelihood(method)}" if isinstance(model, SaysHow) else ""


def _measures(
    nats: Tensor, volume: float, size: int, method: str, how: str, discrete: bool
) -> tuple[Measure, Measure | None]:
    bound = "" if method == "log_prob" else "a lower bound (≥), "
    log = mean_of(nats, f"nats a test item, {bound}normal interval{how}")
    if not volume and not discrete:
        return log, None
    marks = [*([] if discrete else ["uniformly dequantised (≤)"]), *(["an upper bound (≤)"] if bound else [])]
    mark = "".join(f"{mark}, " for mark in marks[-1:])
    return log, mean_of(bits_per_dim(nats, volume, size), f"of test items, {mark}normal interval{how}")
