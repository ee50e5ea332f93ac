"""What every model asks of what it is given. Each raises a UserError of one sentence, or returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from .core import Noise, leaves
from .errors import UserError, unknown

T = TypeVar("T")


def learnable(x: Tensor, shape: tuple[int, ...], net: nn.Module) -> None:
    """Training data x (B, ...) must be floats of `shape` a sample, of the precision of the net's weights."""
    if x.shape[1:] != shape or not x.is_floating_point():
        raise UserError(
            f"The data's x is {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape[1:])} a sample, and"
            f" this model learns floats of shape {shape}: build it for that shape, or give Tensors(levels=…)."
        )
    weight = next(net.parameters(), x)
    if weight.dtype != x.dtype:
        here, there = (str(t.dtype).removeprefix("torch.") for t in (x, weight))
        raise UserError(f"The data's x is {here} and the net's weights are {there}: give x.to(torch.{there}).")


def buildable(net: nn.Module, shape: tuple[int, ...], drop: float) -> None:
    """What every diffusion is built of: a net, the shape of a sample, and the share of conditions to drop."""
    if not isinstance(net, nn.Module):
        raise UserError(
            f"A diffusion's net is a torch.nn.Module, not a {type(net).__name__}: give one such as UNet(…)."
        )
    if not isinstance(shape, tuple | list):
        raise UserError(
            f"A diffusion's shape is that of one sample, not {shape!r}: give a tuple such as (1, 8, 8) or (2,)."
        )
    if not 0 <= drop <= 1:
        raise UserError(
            f"A diffusion's drop is the share of conditions that it trains without, not {drop}: use 0 to 1."
        )


def one_for_each(n: int, cond: Mapping[str, Any], noise: Noise | None) -> None:
    """Conditions and keys must be as many as the samples, n."""
    for name, c in leaves(cond):
        if len(c) != n:
            raise UserError(f"cond[{name!r}] holds {len(c)} conditions for {n} samples: give one for each.")
    if noise is not None and len(noise) != n:
        raise UserError(f"The noise has {len(noise)} keys for {n} samples: give one for each.")


def labelled(cond: Mapping[str, Any] | None) -> None:
    """A generator that draws the class it is told must be told one."""
    cond = cond or {}
    if "label" not in cond or ("null" in cond and bool(cond["null"].any())):
        raise UserError(
            'This generator draws the class that it is told: give --label, or cond={"label": …}, one for each sample.'
        )


def guidable(guidance: float, drop: float) -> None:
    """Guidance against dropped conditions needs a model that was trained with some dropped."""
    if guidance != 1 and drop == 0:
        raise UserError(
            f"This model was trained with drop=0, so it has no unconditional half for guidance {guidance:g}:"
            " use guidance 1, or train it with drop=0.1."
        )


def named(kind: str, wish: T | str | None, known: Mapping[str, T], own: T) -> T:
    """What was wished for: an object, a name in `known`, or `own` for None."""
    if isinstance(wish, str):
        if wish not in known:
            raise unknown(kind, wish, known)
        return known[wish]
    return own if wish is None else wish
