"""A named metric on held-out data, with fixed noise, so that two measurements differ by the weights alone.

A loss is measured on the held-out items themselves; `Samples` measures what the model draws beside them, for models
whose loss says nothing of that (the critic's and the generator's of a GAN rise and fall with each other).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .core import Items, Model, Phase, each, fold, leaves, size
from .data.source import in_order
from .errors import UserError, unknown
from .experiment import draw
from .metrics.coverage import Principal, coverage
from .metrics.frechet import frechet, moments
from .metrics.judge import Judge, read
from .parallel import ALONE, Ranks
from .seen import plain
from .spec import Remembers


@runtime_checkable
class Measures(Protocol):
    """What more is measured of a model beside held-out items: numbers by name."""

    def __call__(self, model: Model, items: Items, seed: int, device: torch.device) -> Mapping[str, float]: ...


class Quality(Remembers):
    """What samples are worth beside held-out items: "frechet" (distance), "precision", "recall", "density", "coverage",
    and with a judge "agreement", the share that it reads as the class asked for, where items have a label.

    n: at most so many samples, each under the conditions of one held-out item, always of the same noise and beside the
    same items. judge: whose features are compared, such as `frozen(RUN)` of a classifier; without one, the items' own
    64 leading principal components. k: neighbours. options: the model's own sampling keywords.
    Raises UserError for a model that cannot sample.
    """

    def __init__(
        self, n: int = 1000, judge: Judge | None = None, *, k: int = 5, options: Mapping[str, Any] | None = None
    ) -> None:
        if n <= k or k < 1:
            raise UserError(f"A Quality of n={n} samples and k={k} neighbours says nothing: give n above k, k above 0.")
        self.n, self.judge, self.k, self.options = n, judge, k, options

    def __call__(self, model: Model, items: Items, seed: int, device: torch.device) -> dict[str, float]:
        """The numbers, by name."""
        real, cond = beside(items, self.n, seed, device)
        x = draw(model, len(real), cond, seed=seed, chunk=250, options=self.options)
        if self.judge is None:
            principal = Principal(real)
            a, b = principal.features(real), principal.features(x)
            found = {}
        else:
            judge = on(self.judge, device)
            drawn = read(judge, x)
            a, b = read(judge, real).features.double(), drawn.features.double()
            asked = (cond or {}).get("label")
            found = {} if asked is None else {"agreement": float((drawn.label == asked).double().mean())}
        near = coverage(a, b, k=self.k)
        return {
            "frechet": float(frechet(moments(b), moments(a))),
            **{k: m.value for k, m in near._asdict().items()},
        } | found


def beside(items: Items, n: int, seed: int, device: torch.device) -> tuple[Tensor, dict[str, Any] | None]:
    """x (N, ...) and conditions of at most n of the items, picked by the seed."""
    items = plain(items)
    picked = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:n]
    batch = each(items.take(picked), lambda t: t.to(device))
    cond = batch.get("cond")
    return batch["x"], cond if cond and any(True for _ in leaves(cond)) else None


def on(judge: Judge, device: torch.device) -> Judge:
    """The judge, where the samples are."""
    return judge.to(device) if isinstance(judge, nn.Module) else judge


class HeldOut(Remembers):
    """What to measure on the held-out items, and what follows.

    metric: "loss" (the training loss on held-out items) or any name that the model logs ("accuracy"), or that `also`
    measures ("frechet"). A model with several phases prefixes them: "critic.loss". better: "min" or "max". every: steps
    between measurements. limit: at most about so many items (whole batches). patience: stop after so many measurements
    without improvement. also: what more is measured, such as `Quality()`: the worth of samples.
    """

    def __init__(
        self,
        every: int = 500,
        metric: str = "loss",
        better: str = "min",
        batch: int = 64,
        limit: int | None = None,
        patience: int | None = None,
        also: Measures | None = None,
    ) -> None:
        if better not in ("min", "max"):
            raise unknown("direction of a metric", better, ("min", "max"))
        if any(dial is not None and dial < 1 for dial in (every, batch, limit, patience)):
            raise UserError("A HeldOut's every, batch, limit and patience must each be at least 1.")
        self.every, self.metric, self.direction, self.batch = every, metric, better, batch
        self.limit, self.patience, self.also = limit, patience, also

    def better(self, new: float, old: float) -> bool:
        """Whether `new` is the better value of the two."""
        return new < old if self.direction == "min" else new > old

    def measure(
        self, model: Model, items: Items, seed: int, device: torch.device, ranks: Ranks = ALONE
    ) -> dict[str, float]:
        """Every loss and log of the model's phases over the items, weighted by its own denominator.

        Ranks share the batches out among them, each measured as one process measures it. No weight wants a gradient
        meanwhile: a loss may differentiate by its input, and must not by a weight.
        """
        sums: dict[str, Tensor] = {}
        weights: dict[str, float] = {}

        def add(name: str, value: Tensor, weight: float) -> None:
            if not weight:  # a mean over nothing is NaN
                return
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach() * weight
            weights[name] = weights.get(name, 0.0) + weight

        phases = [p for p in model.phases() if isinstance(p, Phase)]
        with torch.random.fork_rng(), frozen_weights(model), ranks.apart():
            for i, batch in enumerate(in_order(items, self.batch, seed=seed, device=device)):
                if self.limit is not None and i * self.batch >= self.limit:
                    break
                if i % ranks.count != ranks.rank:
                    continue
                for phase in phases:
                    torch.manual_seed(fold(seed, i))
                    name = phase.loss.__name__
                    prefix = "" if name == "loss" else name + "."
                    said, n = model(batch, name), size(batch)
                    counts = model.counts(batch)
                    parts = {"": said.value} if isinstance(said.value, Tensor) else said.value
                    for k, value in parts.items():
                        if counts and k not in counts:
                            raise unknown("denominator", k, counts, "(counts must name every mean of the loss)")
                        add(f"{prefix}loss" + (f".{k}" if k else ""), value, counts[k] if counts else n)
                    for k, value in said.logs.items():
                        add(prefix + k, value, n)
        told = ranks.tell({k: (float(v), weights[k]) for k, v in sums.items()})
        found = {}
        for k in dict.fromkeys(k for said in told for k in said):
            pairs = [said[k] for said in told if k in said]
            found[k] = sum(v for v, _ in pairs) / sum(w for _, w in pairs)
        for phase in phases:  # a loss of several denominators is their sum
            prefix = "" if phase.loss.__name__ == "loss" else phase.loss.__name__ + "."
            if f"{prefix}loss" not in found:
                found[f"{prefix}loss"] = sum(v for k, v in found.items() if k.startswith(f"{prefix}loss."))
        return found | self._also(model, items, seed, device, ranks)

    def _also(self, model: Model, items: Items, seed: int, device: torch.device, ranks: Ranks) -> dict[str, float]:
        """What `also` measures, on one rank for all."""
        if self.also is None:
            return {}
        also = self.also
        with ranks.apart():
            found = ranks.once(lambda: dict(also(model, items, seed, device)))
        return dict(ranks.tell(found)[0])

    def check(self, measured: dict[str, float]) -> None:
        """Raise UserError where the metric was not measured, or is not a number."""
        if self.metric not in measured:
            raise unknown("held-out metric", self.metric, measured)
        if math.isnan(measured[self.metric]):
            raise UserError(f"The held-out {self.metric} is NaN while training is finite: look at the held-out data.")


@contextlib.contextmanager
def frozen_weights(model: Model) -> Iterator[None]:
    """No weight wants a gradient inside, so that no graph is kept (of a large batch it would fill the memory); a loss
    that differentiates by its input still can, which `no_grad` would forbid.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
