"""Optimisers as remembered makers: called with named parameters, they return torch optimisers.

A maker may return several (`MuonAdamW`: matrices to one, the rest to the other). Learning rates follow
`schedule(step, steps)`, a factor in [0, 1], step counting from 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .core import State
from .errors import UserError
from .spec import Remembers


@runtime_checkable
class Schedule(Protocol):
    """A factor on the learning rate, in [0, 1], at `step` (from 1) of `steps`."""

    def __call__(self, step: int, steps: int) -> float: ...


class Constant(Remembers):
    """Factor 1, after a linear warm-up over the first `warmup` steps."""

    def __init__(self, warmup: int = 0) -> None:
        self.warmup = warmup

    def __call__(self, step: int, steps: int) -> float:
        return min(1.0, step / (self.warmup + 1))


class Cosine(Remembers):
    """Linear warm-up, then half a cosine from 1 down to `floor` (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    def __init__(self, warmup: int = 0, floor: float = 0.0) -> None:
        self.warmup, self.floor = warmup, floor

    def __call__(self, step: int, steps: int) -> float:
        if step <= self.warmup:
            return step / (self.warmup + 1)
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Triangle(Remembers):
    """Linearly up to 1 at `peak` (a share of the run), then linearly down to `floor` (Smith 2018, arXiv:1803.09820)."""

    def __init__(self, peak: float = 0.2, floor: float = 0.0) -> None:
        self.peak, self.floor = peak, floor

    def __call__(self, step: int, steps: int) -> float:
        at = step / steps
        up = at / self.peak if self.peak else 1.0
        return min(1.0, up) if at <= self.peak else max(self.floor, (1 - at) / (1 - self.peak))


class Linear(Remembers):
    """Factor 1 for the first `flat` of the run (a share of it), then linearly down to `floor`."""

    def __init__(self, flat: float = 0.5, floor: float = 0.0) -> None:
        self.flat, self.floor = flat, floor

    def __call__(self, step: int, steps: int) -> float:
        at = step / steps
        return 1.0 if at <= self.flat else self.floor + (1 - self.floor) * (1 - at) / (1 - self.flat)


class CoolDown(Remembers):
    """Linear warm-up, factor 1, and over the last `share` of the run down to `floor` by 1 − √ of what is done of that
    (Hägele et al. 2024, arXiv:2405.18392). Until then it is `Constant(warmup)`, whatever the length of the run.
    """

    def __init__(self, warmup: int = 0, share: float = 0.2, floor: float = 0.0) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"A CoolDown's share is {share}: give the part of the run that cools, from 0 to 1.")
        self.warmup, self.share, self.floor = warmup, share, floor

    def begins(self, steps: int) -> int:
        """The last step before the cooling."""
        return steps - round(self.share * steps)

    def __call__(self, step: int, steps: int) -> float:
        begin = self.begins(steps)
        if step <= begin:
            return min(1.0, step / (self.warmup + 1))
        return self.floor + (1 - self.floor) * (1 - math.sqrt((step - begin) / (steps - begin)))


ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop)  # each number by itself


@runtime_checkable
class Optim(Protocol):
    """A maker of optimisers."""

    schedule: Schedule

    def make(self, named: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        """Optimisers that together hold each of the named parameters once."""
        ...


def _decayed(named: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups: weight decay on matrices and filters, none on biases, gains and scalars."""
    if weight_decay == 0:
        return [{"params": list(named.values())}]
    matrices = [p for p in named.values() if p.ndim >= 2]
    rest = [p for p in named.values() if p.ndim < 2]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def _sensible(lr: float, momenta: tuple[float, ...]) -> None:
    if not 0 <= lr < float("inf"):
        raise UserError(f"The learning rate is {lr}: give a number of 0 or more, such as 0.001.")
    if wrong := [m for m in momenta if not 0 <= m < 1]:
        raise UserError(f"A momentum or beta is {wrong[0]}: give one from 0 to below 1, such as 0.9.")


class AdamW(Remembers):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused. Only matrices and filters decay."""

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        schedule: Schedule = Constant(),  # noqa: B008  (immutable)
    ) -> None:
        _sensible(lr, betas)
        self.lr, self.betas, self.eps, self.weight_decay, self.schedule = lr, betas, eps, weight_decay, schedule

    def make(self, named: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        groups = _decayed(named, self.weight_decay)
        return [torch.optim.AdamW(groups, self.lr, self.betas, self.eps, weight_decay=0.0, fused=_fusable(named))]


class SGD(Remembers):
    """Stochastic gradient descent with (Nesterov) momentum, fused. Only matrices and filters decay."""

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        schedule: Schedule = Constant(),  # noqa: B008
    ) -> None:
        _sensible(lr, (momentum,))
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self.weight_decay, self.schedule = weight_decay, schedule

    def make(self, named: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        groups = _decayed(named, self.weight_decay)
        nesterov = self.nesterov and self.momentum > 0
        return [torch.optim.SGD(groups, self.lr, self.momentum, nesterov=nesterov, fused=_fusable(named))]


class MuonAdamW(Remembers):
    """Muon (Jordan et al. 2024) for the matrices inside the net, AdamW for all other parameters.

    Muon's learning rate is matched to AdamW's RMS update (Liu et al. 2025, arXiv:2502.16982), so one `lr` serves
    both. Embeddings and heads, named in `outside` (parts of parameter names), are left to AdamW.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        outside: tuple[str, ...] = ("embed", "head"),
        schedule: Schedule = Constant(),  # noqa: B008
    ) -> None:
        _sensible(lr, (momentum, *betas))
        self.lr, self.momentum, self.betas = lr, momentum, betas
        self.weight_decay, self.outside, self.schedule = weight_decay, outside, schedule

    def make(self, named: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        inner = {n: p for n, p in named.items() if p.ndim == 2 and not any(o in n for o in self.outside)}
        rest = {n: p for n, p in named.items() if n not in inner}
        made: list[torch.optim.Optimizer] = []
        if inner:
            decay, adjust = self.weight_decay, "match_rms_adamw"
            made += [
                torch.optim.Muon(
                    inner.values(), self.lr, momentum=self.momentum, weight_decay=decay, adjust_lr_fn=adjust
                )
            ]
        if rest:
            made += AdamW(self.lr, self.betas, weight_decay=self.weight_decay).make(rest)
        return made


def _fusable(named: dict[str, nn.Parameter]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps", "xpu") for p in named.values())


# ---- what a checkpoint holds of an optimiser: its state by parameter name ------------------------------------------


def optimiser_state(optimiser: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> State:
    """The optimiser's state by parameter name, and the settings of its groups."""
    order = [names[p] for g in optimiser.param_groups for p in g["params"]]
    state = optimiser.state_dict()
    groups = [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]]
    return {"state": {order[i]: s for i, s in state["state"].items()}, "groups": groups}


def restore_optimiser(optimiser: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], saved: State) -> None:
    """Put back what `optimiser_state` took."""
    order = [names[p] for g in optimiser.param_groups for p in g["params"]]
    now = optimiser.state_dict()["param_groups"]
    groups = [g | new for g, new in zip(now, saved["groups"], strict=True)]
    state = {i: saved["state"][n] for i, n in enumerate(order) if n in saved["state"]}
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    for p, kept in optimiser.state.items():  # fused kernels walk state and weights together: same strides, or wrong
        for name, t in kept.items():
            if isinstance(t, Tensor) and t.shape == p.shape and t.stride() != p.stride():
                kept[name] = torch.empty_like(p, dtype=t.dtype).copy_(t)
