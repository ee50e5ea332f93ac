"""What the checks of the battery stand on: a check, the case that it looks at, and the two ways it can end early."""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Batch, Loss, Model, Noise, Phase, Place, Source, Update, each, fold, keys, leaves, size
from ..errors import UserError


class Broken(Exception):
    """What a check found, in one sentence: what is wrong, where, and what to do."""


class NotApplicable(Exception):
    """Why a check says nothing of this model."""


class Check(NamedTuple):
    """One named check. It passes by returning, fails by `Broken`, and does not apply by `NotApplicable`.

    needs: checks that must not have failed; else this one would only repeat their finding, and is skipped.
    """

    run: Callable[[Case], None]
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def title(self) -> str:
        """The first line of the check's docstring."""
        return (inspect.getdoc(self.run) or self.name).splitlines()[0].rstrip(".")


def check(*needs: Check) -> Callable[[Callable[[Case], None]], Check]:
    """Make a function of a case a check that is skipped where one of `needs` failed."""
    return lambda run: Check(run, tuple(n.name for n in needs))


class Everything(NamedTuple):
    """All that a density is over, so that `log_prob` can be held against one.

    x: every value (N, ...), or the midpoints of a fine grid. cell: the volume that each stands for (1 for an
    enumeration). tolerance: how far from one the total may be.
    """

    x: Tensor
    cell: float = 1.0
    tolerance: float = 1e-3


def box(low: float | int, high: float | int, *shape: int, points: int = 200, tolerance: float = 1e-3) -> Everything:
    """The midpoints of a regular grid over [low, high] in every dimension of an x of `shape` (at most 3 numbers).

    The mass outside the box counts as missing: choose it so wide that less than `tolerance` is.
    """
    d = int(np.prod(shape, dtype=int))
    if not 1 <= d <= 3:
        raise UserError(f"A grid over x of shape {shape} has {points}^{d} points: check an instance of 1 to 3 numbers.")
    width = (high - low) / points
    axis = low + width * (torch.arange(points) + 0.5)
    x = torch.cartesian_prod(*[axis] * d).reshape(-1, *shape)  # (points^d, *shape)
    return Everything(x.to(torch.get_default_dtype()), width**d, tolerance)


SEED = 20240229  # of all that the battery draws itself


class Case:
    """The model under test with its source. Nothing here changes the model or the source that were given."""

    def __init__(
        self,
        model: Model,
        source: Source,
        *,
        cond: Mapping[str, Tensor] | None,
        normalise: Everything | None,
        options: Mapping[str, Any],
    ) -> None:
        self.given, self.source = model, source
        self._cond, self.normalise, self.options = cond, normalise, dict(options)
        self.device = next((t.device for t in model.state_dict().values()), torch.device("cpu"))

    # ---- models

    def fresh(self) -> Model:
        """A copy of the model as it stands before step 1, in training mode."""
        return copy.deepcopy(self._started)

    def perturbed(self, strength: float = 0.3) -> Model:
        """A fresh copy with noise on its weights, so that a start from zeros hides nothing. In training mode.

        strength: of what the noise adds to a layer's output, where its inputs are of order one.
        """
        model = self.fresh()
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for p in model.parameters():
                if p.is_floating_point() and p.requires_grad:
                    fan_in = p[0].numel() if p.ndim > 1 else 10
                    p.add_(torch.randn(p.shape, generator=generator).to(p), alpha=strength * fan_in**-0.5)
        return model

    @cached_property
    def _started(self) -> Model:
        model = copy.deepcopy(self.given).train()
        model.step = 0
        reseed(model)
        model.start(self.batch)
        return model

    # ---- batches

    def fresh_source(self, seed: int = SEED) -> Source:
        """A copy of the source, started; `check_model` leaves the given one alone."""
        try:
            source = copy.deepcopy(self.source)
        except TypeError as error:
            fail(f"the source cannot be copied ({error}): give check_model one that was not started yet.")
        source.start(Place(device=self.device, seed=seed))
        return source

    @cached_property
    def first(self) -> Batch:
        """The source's first batch, itself."""
        return self.on_device(self.fresh_source().next(copy.deepcopy(self.given).train(), {}))

    def on_device(self, batch: Batch) -> Batch:
        """The batch where the model is, as the trainer puts it."""
        return each(batch, lambda t: t.to(self.device))

    @property
    def batch(self) -> dict[str, Any]:
        """A copy of the source's first batch: a model that writes to its batch spoils no other check."""
        return each(self.first, torch.clone)

    @property
    def size(self) -> int:
        return size(self.first)

    @cached_property
    def trained(self) -> tuple[Model, list[Batch]]:
        """A copy after eight small steps of plain training, every turn in every step, and the batches that it saw."""
        model, source = self.fresh(), self.fresh_source()
        own = {turn_name(p): list(trained_by(model, p).values()) for p in phases(model)}
        optims = {name: torch.optim.Adam(params, 1e-3) for name, params in own.items() if params}
        heard: dict[str, Loss] = {}
        seen: list[Batch] = []
        for model.step in range(8):
            batch = self.on_device(source.next(model, heard))
            seen.append(batch)
            for turn in model.phases():
                name = turn_name(turn)
                loss = said(model, batch, turn)
                if name in optims:
                    differentiate(model, loss)
                    optims[name].step()
                heard[name] = loss._replace(value=detached(loss))
                model.after_step(name, loss.seen)
        model.step += 1
        model.zero_grad(set_to_none=True)
        return model, seen

    def piece(self, start: int, stop: int) -> dict[str, Any]:
        """Samples start to stop of the first batch."""
        return each(self.first, lambda t: t[start:stop].clone())

    def sizes(self, *wanted: int) -> list[int]:
        """Those of the wanted numbers of samples that the batch has."""
        return [n for n in wanted if n <= self.size]

    def cond(self, n: int) -> dict[str, Tensor] | None:
        """Conditions of n samples: those given to `check_model`, else the batch's, repeated where n is larger."""
        cond = self._cond if self._cond is not None else self.first.get("cond")
        if not cond:
            return None
        return each(cond, lambda t: t[torch.arange(n, device=t.device) % t.shape[0]])

    @property
    def x(self) -> Tensor:
        """The batch's data (B, ...)."""
        x = self.first.get("x")
        if not isinstance(x, Tensor):
            raise NotApplicable("the source's batch has no tensor 'x'")
        return x

    def noise(self, n: int, seed: int = SEED) -> Noise:
        return Noise(keys(torch.arange(n, device=self.device), seed))

    def sample(self, model: Any, n: int, noise: Noise, cond: Mapping[str, Tensor] | None) -> Tensor:
        """Samples of the model (n, ...), checked to be n."""
        with torch.no_grad():
            x = model.sample(n, cond, noise=noise, **self.options)
        if not isinstance(x, Tensor):
            fail(f"sample({n}) returned a {type(x).__name__}: return one tensor (n, ...).")
        if x.ndim == 0 or x.shape[0] != n:
            fail(f"sample({n}) returned the shape {tuple(x.shape)}: its first dimension must be n = {n}.")
        return x


# ---- turns of a step -----------------------------------------------------------------------------------------------


def turn_name(turn: Phase | Update) -> str:
    method = turn.loss if isinstance(turn, Phase) else turn.rule
    return str(getattr(method, "__name__", repr(method)))


def phases(model: Model) -> list[Phase]:
    return [turn for turn in model.phases() if isinstance(turn, Phase)]


def updates(model: Model) -> list[Update]:
    return [turn for turn in model.phases() if isinstance(turn, Update)]


def within(name: str, prefix: str) -> bool:
    """Whether a parameter is one that `trains` means by a prefix: "" is all, else a whole part of a dotted name."""
    return prefix in ("", name) or name.startswith(prefix + ".")


def trained_by(model: Model, phase: Phase) -> dict[str, nn.Parameter]:
    """The parameters that a phase trains, by name; frozen ones left out."""
    named = model.named_parameters()
    return {n: p for n, p in named if p.requires_grad and any(within(n, prefix) for prefix in phase.trains)}


def reseed(model: Model, seed: int = SEED) -> None:
    """Seed torch's default generator as the trainer does before each step."""
    torch.manual_seed(fold(seed, model.step))


def said(model: Model, batch: Batch, turn: Phase | Update, seed: int = SEED) -> Loss:
    """What a turn says of a batch, through the model's one door, the default generator seeded."""
    reseed(model, seed)
    with torch.set_grad_enabled(isinstance(turn, Phase)):
        loss: Loss = model(batch, turn_name(turn))
    return loss


def parts(loss: Loss) -> dict[str, Tensor]:
    """The means of a loss by the name of their denominator."""
    return {"": loss.value} if isinstance(loss.value, Tensor) else dict(loss.value)


def total(loss: Loss) -> Tensor:
    """What is differentiated: the sum of the means."""
    return torch.stack([v.reshape(()) for v in parts(loss).values()]).sum()


def detached(loss: Loss) -> Tensor | dict[str, Tensor]:
    """The loss's means without their graph."""
    value = loss.value
    return value.detach() if isinstance(value, Tensor) else {k: v.detach() for k, v in value.items()}


def differentiate(model: Model, loss: Loss) -> None:
    """Gradients of the loss, and of nothing before it."""
    model.zero_grad(set_to_none=True)
    value = total(loss)
    if value.requires_grad:
        value.backward()


# ---- comparing -----------------------------------------------------------------------------------------------------


def fail(sentence: str) -> NoReturn:
    raise Broken(sentence)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters and of all buffers, unsaved ones too."""
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit, type and shape; NaN equals NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors are not the same in every bit."""
    return [
        n for n in before.keys() | after.keys() if n not in after or n not in before or not same(before[n], after[n])
    ]


def distance(a: Tensor, b: Tensor) -> float:
    """The largest |a - b| / max(1, |b|): infinite where shapes differ, or whether a number is finite."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    apart = torch.where(a == b, 0.0, (a - b).abs() / b.abs().clamp(min=1))
    return float(apart.nan_to_num(nan=float("inf")).max())


def some(names: list[str], most: int = 4) -> str:
    """A few of the names, in words."""
    names = sorted(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def non_finite(batch: Batch) -> str | None:
    """The name of the first tensor of a nested mapping that is not all finite."""
    for name, t in leaves(batch):
        if t.is_floating_point() and not bool(t.isfinite().all()):
            return name
    return None


def repeated(cond: Mapping[str, Tensor] | None, n: int) -> dict[str, Tensor] | None:
    """The last row of the conditions, n times."""
    return None if cond is None else each(cond, lambda t: t[-1:].expand(n, *t.shape[1:]))


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Inside, anything may happen to the global random generators, default dtype and modes: it is undone."""
    devices = [device] if device.type == "cuda" else []
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(deterministic)
            np.random.set_state(numpy_state)
            random.setstate(python_state)
