"""Averages of the weights that only sampling reads. (Those that a loss reads belong to the model, in `after_step`.)

Each follows a_t = d_t a_{t-1} + (1 - d_t) w_t after step t = 1, 2, …, with a_0 = w_0 and a decay d_t of its rule.

`EMA` (Polyak & Juditsky 1992, in the form of Ho et al. 2020): d_t = min(decay, (1 + t) / (10 + t)).
The warm-up lets a short run forget its random start.

`PowerEMA` (Karras et al. 2024, Analyzing and improving the training dynamics of diffusion models, arXiv:2312.02696):
d_t = (1 - 1/t)^(γ+1), which gives w_i the weight (i/t)^(γ+1) - ((i-1)/t)^(γ+1). Its length is said as σ_rel, the
standard deviation of that profile relative to t: it grows with the training, and the start is forgotten. From snapshots
of a few lengths any other one is put together when training is over: see `posthoc.py`.

Averaged is what is trained: parameters that need a gradient when training begins and are not of the scaffold alone, a
tied one once. An average is kept in its parameter's precision, but at least in float32: a step of 0.001 (w - a) is
lost in bfloat16.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .core import Model
from .errors import UserError, unknown
from .parallel import ALONE, Ranks
from .posthoc import LONGEST, Snapshots, due, gamma_of, put_together
from .spec import Remembers

Decay = Callable[[int], float]  # of a step, from 1
LIVE = "live"  # the name of the weights themselves


class Rule(Remembers):
    """Base of the ways to average. decays: of each average that is kept, by its name. snapshots: how many of them are
    stored while the step doubles, for lengths to be chosen later; 0 is none.
    """

    decays: Mapping[str, Decay]
    snapshots: int = 0


class EMA(Rule):
    """Exponential moving average of the trained weights; decay in [0, 1). Its name is the decay: "0.999"."""

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"An EMA's decay is {decay}: it must lie in [0, 1).")
        self.decay = decay
        self.decays = {_spelled(decay): lambda t: min(decay, (1 + t) / (10 + t))}


class PowerEMA(Rule):
    """Power-function averages of the trained weights, of any length after training.

    lengths: σ_rel of the averages that are kept at every step, each in (0, 0.2886]; their names. snapshots: how many
    are stored while the step doubles (16: at steps 64, 68, …, 124, 128, 136, …), those before a 64th of the present
    step being removed; 0: none, and no other length can be had.
    """

    def __init__(self, lengths: Sequence[float] = (0.05, 0.1), snapshots: int = 16) -> None:
        if not lengths or not all(0 < length <= LONGEST for length in lengths):
            raise UserError(
                f"A PowerEMA's lengths are {tuple(lengths)}: give one or more in (0, {LONGEST}], such as 0.05, 0.1."
            )
        if snapshots < 0:
            raise UserError(f"A PowerEMA's snapshots are {snapshots}: give how many a doubling of the step, or 0.")
        self.snapshots = snapshots
        self.decays = {_spelled(length): _power(gamma_of(length)) for length in lengths}
        if len(self.decays) < len(lengths):
            raise UserError(f"A PowerEMA's lengths are {tuple(lengths)}: give each of them once.")


def _power(gamma: float) -> Decay:
    return lambda t: (1 - 1 / t) ** (gamma + 1)


def _spelled(number: float) -> str:
    return repr(float(number))


def rules_of(ema: object) -> tuple[Rule, ...]:
    """What was given for `Trainer(ema=…)` as rules, none of whose averages share a name. Raises UserError."""
    rules = (ema,) if isinstance(ema, Rule) else tuple(ema) if isinstance(ema, list | tuple) else ()
    if (ema is not None and not isinstance(ema, Rule | list | tuple)) or not all(isinstance(r, Rule) for r in rules):
        raise UserError(f"A Trainer's ema is {ema!r}: give EMA(0.999), PowerEMA((0.05, 0.1)), a list of such, or None.")
    names = [name for rule in rules for name in rule.decays]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"A Trainer's ema keeps two averages by the name of {twice[0]}: leave one of them out.")
    return rules


def parts_of(rules: Sequence[Rule]) -> dict[str, str]:
    """Of each average's name, the part of a checkpoint that holds it; the first is the one meant for sampling."""
    names = [name for rule in rules for name in rule.decays]
    return {name: f"average-{name}" if i else "average" for i, name in enumerate(names)}


class Average:
    """A running average: `update` after each step, `swapped` to read the model with averaged weights.

    name: as in `--ema NAME`. part: of a checkpoint. mean: the averages by the parameter's name.
    """

    def __init__(self, name: str, part: str, rule: Rule, live: Mapping[str, nn.Parameter]) -> None:
        self.name, self.part, self.rule, self._decay = name, part, rule, rule.decays[name]
        self.mean: dict[str, Tensor] = {
            n: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for n, p in live.items()
        }
        self._live, self._mean = list(live.values()), list(self.mean.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 1)."""
        if self._mean:
            live = [p.to(mean.dtype) for p, mean in zip(self._live, self._mean, strict=True)]
            torch._foreach_lerp_(self._mean, live, 1 - self._decay(step))

    @contextlib.contextmanager
    def copied(self) -> Iterator[None]:
        """`swapped`, the weights staying where they are in memory."""
        held = [p.detach().clone() for p in self._live]
        try:
            self._copy(self._mean)
            yield
        finally:
            self._copy(held)

    @torch.no_grad()
    def _copy(self, weights: Sequence[Tensor]) -> None:
        for p, w in zip(self._live, weights, strict=True):
            p.copy_(w)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the averaged weights inside, and its own again afterwards."""
        held = [p.data for p in self._live]
        try:
            for p, mean in zip(self._live, self._mean, strict=True):
                p.data = mean.to(p.dtype)  # the same memory where the types are the same
            yield
        finally:
            for p, own in zip(self._live, held, strict=True):
                p.data = own


def averages(
    rules: Sequence[Rule], model: Model, own: Callable[[nn.Parameter], nn.Parameter] = lambda p: p
) -> list[Average]:
    """Start the averages of `model`'s trained weights. own: what of a weight is averaged here."""
    outside = tuple(part + "." for part in model.scaffold)
    live: dict[str, nn.Parameter] = {}
    seen: set[nn.Parameter] = set()
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.requires_grad and not f"{name}.".startswith(outside) and p not in seen:  # by identity
            live[name] = own(p)
            seen.add(p)
    parts = parts_of(rules)
    return [Average(name, parts[name], rule, live) for rule in rules for name in rule.decays]


def snapshot(kept: Sequence[Average], run: Path, step: int, ranks: Ranks = ALONE) -> None:
    """Store those averages whose snapshots are due after `step`."""
    stored = {a.name: ranks.full(a.mean) for a in kept if a.mean and due(step, a.rule.snapshots)}
    if stored and ranks.rank == 0:
        Snapshots(run).write(step, stored)


def chosen(
    rules: Sequence[Rule],
    wish: str | float | None,
    run: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    say: Callable[[str], None],
) -> tuple[str, Mapping[str, Tensor]]:
    """The name and tensors of the average that is wished for; "live", and none, where there is none to take.

    wish: None for the first; the name of one that is kept; a length to be put together from snapshots; or "live".
    step, parts: of the checkpoint. Raises UserError where there is no such average.
    """
    stored = parts_of(rules)
    name = next(iter(stored), LIVE) if wish is None else str(wish)
    with contextlib.suppress(ValueError):
        name = _spelled(float(name))
    if name == LIVE:
        return LIVE, {}
    if name in stored:
        return name, parts[stored[name]]
    if not stored:
        raise UserError(
            f"The run {str(run)!r} keeps no average of its weights, so none called {str(wish)!r}: leave ema out, or"
            " train one with Trainer(ema=…)."
        )
    bases = [n for rule in rules if rule.snapshots for n in rule.decays]
    length = float(name) if _is_length(name) else None
    if not bases or length is None:
        hint = f"any length in (0, {LONGEST}] can be had too" if bases else "a choice of length needs ema=PowerEMA(…)"
        raise unknown("average", str(wish), (*stored, LIVE), f"(of {str(run)!r}; {hint})")
    return name, put_together(length, {n: parts[stored[n]] for n in bases}, run, step, say)


def _is_length(name: str) -> bool:
    try:
        return math.isfinite(float(name)) and 0 < float(name) <= LONGEST
    except ValueError:
        return False
