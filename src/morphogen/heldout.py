"""A named metric on held-out data, with fixed noise, so that two measurements differ by the weights alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .core import Items, Model, Phase, fold, size
from .data.source import in_order
from .errors import UserError, unknown
from .parallel import ALONE, Ranks
from .spec import Remembers


class HeldOut(Remembers):
    """What to measure on the held-out items, and what follows.

    metric: "loss" (the training loss on held-out items) or any name that the model logs ("accuracy"). A model with
    several phases prefixes them: "critic.loss". better: "min" or "max". every: steps between measurements.
    limit: at most about so many items (whole batches). patience: stop after so many measurements without improvement.
    """

    def __init__(
        self,
        every: int = 500,
        metric: str = "loss",
        better: str = "min",
        batch: int = 64,
        limit: int | None = None,
        patience: int | None = None,
    ) -> None:
        if better not in ("min", "max"):
            raise unknown("direction of a metric", better, ("min", "max"))
        if any(dial is not None and dial < 1 for dial in (every, batch, limit, patience)):
            raise UserError("A HeldOut's every, batch, limit and patience must each be at least 1.")
        self.every, self.metric, self.direction, self.batch = every, metric, better, batch
        self.limit, self.patience = limit, patience

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
        with torch.random.fork_rng(), _frozen(model), ranks.apart():
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
        return found

    def check(self, measured: dict[str, float]) -> None:
        """Raise UserError where the metric was not measured, or is not a number."""
        if self.metric not in measured:
            raise unknown("held-out metric", self.metric, measured)
        if math.isnan(measured[self.metric]):
            raise UserError(f"The held-out {self.metric} is NaN while training is finite: look at the held-out data.")


@contextlib.contextmanager
def _frozen(model: Model) -> Iterator[None]:
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
