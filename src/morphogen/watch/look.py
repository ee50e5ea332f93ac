"""What a watch sees at one step: the log, samples beside held-out and training items, what conditions are worth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core import Items, Phase, Samples, can, each, fold, leaves
from ..data.source import in_order
from ..errors import UserError
from ..experiment import draw
from ..heldout import beside, frozen_weights, on
from ..log import read
from ..metrics.coverage import Coverage, Principal, coverage, expected
from ..metrics.judge import Judge, Reading
from ..metrics.judge import read as read_by
from ..seen import Seen, plain, seen_items
from ..spec import Remembers

if TYPE_CHECKING:
    from ..train import Training

_MOST = 10_000  # training items that a sample may be a copy of: of more, the first in a fixed random order
_TWINS = 32  # samples of one condition
_WORTH = 25  # items of a batch by which the worth of conditions is measured
_PAIRS = 250  # items by which it is


class Worth(NamedTuple):
    """By how much a loss rises when conditions are exchanged among items, on average, and the standard error."""

    value: float
    error: float


@runtime_checkable
class Delays(Protocol):
    """A model whose `scaffold` has no turn in its first `after` steps."""

    after: int


class Look:
    """A training as it is at one step. What is costly is made when first asked for, and once.

    lines: the log so far. stretch: those of its lines that report training since the last look. numbers: what this look
    has measured, for the log.
    """

    def __init__(self, training: Training, n: int, judge: Judge | None, options: Mapping[str, Any] | None) -> None:
        self.training, self.n, self.options = training, n, options
        self.model, self.step = training.model, training.step
        self.judge = judge if judge is None else on(judge, training.device)
        self.lines = read(training.log.path)
        self.looks = [line["watch"] for line in self.lines if "watch" in line]
        since = max((line["step"] for line in self.lines if "watch" in line), default=0)
        self.trained = [line for line in self.lines if "steps_per_s" in line]
        self.stretch = [line for line in self.trained if line["step"] > since]
        self.numbers: dict[str, Any] = {}
        if training.shard:  # all ranks draw and measure alike, whatever the log says
            _ = self.near, self.spread, self.worth, self.hears

    # ---- the log

    def series(self, name: str) -> list[float]:
        """All that the log has of `name`, in its order."""
        return [float(line[name]) for line in self.trained if name in line]

    def values(self, name: str) -> list[float]:
        """What the log has of `name` since the last look."""
        return [float(line[name]) for line in self.stretch if name in line]

    def mean(self, name: str) -> float | None:
        """The mean of `name` since the last look; None where the log says nothing of it."""
        values = self.values(name)
        return sum(values) / len(values) if values else None

    def phases(self, name: str) -> list[str]:
        """The phases that log `name`."""
        ends = "." + name
        return list(dict.fromkeys(k.removesuffix(ends) for line in self.stretch for k in line if k.endswith(ends)))

    @property
    def _phases(self) -> list[Phase]:
        return [p for p in self.model.phases() if isinstance(p, Phase)]

    @property
    def idle(self) -> frozenset[str]:
        """The parts, and the phases that train them, which have no turn yet."""
        if not isinstance(self.model, Delays) or self.step > self.model.after:
            return frozenset()
        parts = frozenset(self.model.scaffold)
        return parts | {p.loss.__name__ for p in self._phases if parts.issuperset(p.trains)}

    # ---- items and samples

    @cached_property
    def test(self) -> tuple[Tensor, dict[str, Any] | None] | None:
        """x (n, ...) and conditions of held-out items; None where there are none that have an x."""
        items = self.training.data.test
        return (
            None
            if items is None or not _shows(items)
            else beside(items, self.n, self.training.seed, self.training.device)
        )

    @cached_property
    def seen(self) -> Seen | None:
        """What the model learns from; None where that cannot be told."""
        if self.training.data.test is None:
            return None
        try:
            found = seen_items(self.training.data.train, self.training.data.test)
        except UserError:
            return None
        return found if _shows(found.items) else None

    @cached_property
    def train(self) -> Tensor | None:
        """x (n, ...) of training items."""
        return (
            None if self.seen is None else beside(self.seen.items, self.n, self.training.seed, self.training.device)[0]
        )

    @cached_property
    def recorded(self) -> Tensor | None:
        """x of the recorded items that the model learns from; None where there are none, as of a density."""
        if self.seen is None or not self.seen.recorded:
            return None
        return beside(self.seen.items, _MOST, self.training.seed, self.training.device)[0]

    @cached_property
    def drawn(self) -> Tensor | None:
        """Samples (n, ...) under the held-out items' conditions; None for a model that cannot sample."""
        if self.test is None or not can(self.model, Samples):
            return None
        x, cond = self.test
        return draw(self.model, len(x), cond, seed=self.training.seed, chunk=250, options=self.options)

    @cached_property
    def hears(self) -> bool:
        """Whether samples of the same noise change with the conditions."""
        if self.test is None or self.test[1] is None or not can(self.model, Samples):
            return False
        cond = each(self.test[1], lambda c: c[:_TWINS])
        n = min(_TWINS, len(self.test[0]))
        told = (cond, each(cond, lambda c: c.roll(1, 0)))
        a, b = (draw(self.model, n, c, seed=self.training.seed, chunk=n, options=self.options) for c in told)
        return not torch.equal(a, b)

    # ---- features and classes

    @cached_property
    def _principal(self) -> Principal:
        assert self.test is not None
        return Principal(self.test[0])

    @cached_property
    def readings(self) -> tuple[Reading, Reading] | None:
        """What the judge makes of held-out items and of samples."""
        if self.judge is None or self.test is None or self.drawn is None:
            return None
        return read_by(self.judge, self.test[0]), read_by(self.judge, self.drawn)

    @cached_property
    def asked(self) -> tuple[float, float] | None:
        """The share of samples that the judge reads as the class asked for, and of held-out items as what they are."""
        label = None if self.test is None else (self.test[1] or {}).get("label")
        if self.readings is None or label is None:
            return None
        there, here = (float((r.label == label).double().mean()) for r in self.readings)
        self.numbers["agreement"] = round(here, 4)
        return here, there

    def lost(self, rare: float) -> float | None:
        """The share of held-out items of classes that have less than `rare` of their share among samples, as the judge
        reads both. Classes of less than 10 held-out items are left out.
        """
        if self.readings is None:
            return None
        most = 1 + int(max(r.label.max() for r in self.readings))
        there, here = (torch.bincount(r.label, minlength=most).double() for r in self.readings)
        few = (here / here.sum() < rare * there / there.sum()) & (there >= 10)
        return float(there[few].sum() / there.sum())

    @cached_property
    def near(self) -> Coverage | None:
        """Samples beside held-out items."""
        if self.test is None or self.drawn is None or len(self.test[0]) < 20:
            return None
        if self.readings is not None:
            real, made = (r.features.double() for r in self.readings)
        else:
            real, made = self._principal.features(self.test[0]), self._principal.features(self.drawn)
        found = coverage(real, made)
        self.numbers |= {k: round(m.value, 4) for k, m in found._asdict().items()}
        return found

    @property
    def expected(self) -> float:
        """The coverage of the held-out items by as many others of their law."""
        n = self.n if self.test is None else len(self.test[0])
        return expected(n, n)

    def gained(self, gain: float) -> bool:
        """Whether samples cover more than at the last look, by `gain` or more (than nothing, at the first)."""
        before = self.looks[-1].get("coverage", 0.0) if self.looks else 0.0
        return self.near is not None and self.near.coverage.value >= before + gain

    @cached_property
    def floor(self) -> Coverage | None:
        """Training items beside held-out items: what samples can come to."""
        if self.test is None or self.train is None or min(len(self.test[0]), len(self.train)) < 20:
            return None
        if self.judge is not None:
            real, other = (read_by(self.judge, x).features.double() for x in (self.test[0], self.train))
        else:
            real, other = self._principal.features(self.test[0]), self._principal.features(self.train)
        found = coverage(real, other)
        self.numbers["floor"] = round(found.coverage.value, 4)
        return found

    @cached_property
    def spread(self) -> float | None:
        """The deviation of samples of one condition, over that of held-out items; None where a condition is a picture,
        which may well leave nothing open.
        """
        if self.test is None or not can(self.model, Samples):
            return None
        x, cond = self.test
        if cond is not None and any(c.ndim > 2 for _, c in leaves(cond)):
            return None
        one = None if cond is None else each(cond, lambda c: c[:1].repeat(_TWINS, *(1,) * (c.ndim - 1)))
        twins = draw(self.model, _TWINS, one, seed=self.training.seed, chunk=_TWINS, options=self.options)
        found = float(deviation(twins) / deviation(x).clamp(min=1e-12))
        self.numbers["spread"] = round(found, 6)
        return found

    @cached_property
    def weights(self) -> dict[str, float]:
        """The norm of each part that only training needs (critic, …) and that a phase may train."""
        if self.training.shard:  # pieces have no norm of the whole
            return {}
        found = {}
        for name in self.model.scaffold:
            if name in self.idle:
                continue
            named = [p for n, p in self.model.named_parameters() if n.partition(".")[0] == name and p.requires_grad]
            if named:
                found[name] = float(sum(p.detach().double().square().sum() for p in named)) ** 0.5
        self.numbers["norms"] = found
        return found

    # ---- conditions

    @cached_property
    def worth(self) -> dict[str, tuple[Worth, Worth]]:
        """By phase, up to the first that they are worth something: what conditions are worth on training items, and on
        held-out ones.
        """
        if self.seen is None or not self.seen.recorded or self.training.data.test is None:
            return {}
        found = {}
        for phase in self._phases:
            name = phase.loss.__name__
            pair = tuple(self._worth(name, items) for items in (self.seen.items, self.training.data.test))
            if pair[0] is not None and pair[1] is not None:
                found[name] = (pair[0], pair[1])
                self.numbers.setdefault("worth", {})[name] = [round(w.value, 6) for w in found[name]]
                if pair[0].value > 0:
                    break  # another's costs as much again: the generator of a GAN hears what its critic hears
        return found

    def _worth(self, phase: str, items: Items) -> Worth | None:
        rises: list[float] = []
        with torch.random.fork_rng(), frozen_weights(self.model):
            picked = Some(items, min(self.n, _PAIRS), self.training.seed)
            for i, batch in enumerate(in_order(picked, _WORTH, seed=self.training.seed, device=self.training.device)):
                cond = batch.get("cond")
                if not cond or len(batch["index"]) < 2 or not any(True for _ in leaves(cond)):
                    return None
                values = []
                for told in (cond, each(cond, lambda c: c.roll(1, 0))):
                    torch.manual_seed(fold(self.training.seed, i))
                    said = self.model({**batch, "cond": told}, phase).value
                    values.append(float(said if isinstance(said, Tensor) else sum(said.values())))
                rises.append(values[1] - values[0])
                if rises == [0.0]:
                    return Worth(0.0, 0.0)  # it is not told them
        if len(rises) < 2:
            return None
        rise = torch.tensor(rises, dtype=torch.float64)
        return Worth(float(rise.mean()), float(rise.std() / len(rise) ** 0.5))


class Some(Remembers):
    """At most n of the items, picked by a seed."""

    def __init__(self, items: Items, n: int, seed: int) -> None:
        self.items = items
        self.picked = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:n]

    def __len__(self) -> int:
        return len(self.picked)

    def take(self, index: Tensor) -> dict[str, Any]:
        """Those items."""
        return self.items.take(self.picked.to(index.device)[index])


def deviation(x: Tensor) -> Tensor:
    """The root of the mean squared distance of x (N, ...) from their mean."""
    x = x.flatten(1).double()
    out: Tensor = (x - x.mean(0)).square().sum(1).mean().sqrt()
    return out


def _shows(items: Items) -> bool:
    """Whether the items have an x of numbers."""
    if not len(items):
        return False
    x = plain(items).take(torch.zeros(1, dtype=torch.long)).get("x")
    return isinstance(x, Tensor) and x.is_floating_point()
