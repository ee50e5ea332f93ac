"""Embeddings of conditions: times, classes, and the learned "no condition".

Sinusoid of a time t (Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239, after
Vaswani et al. 2017, arXiv:1706.03762), with h = width // 2 frequencies:

    f_k = period ** (-k / (h - shift)),  k = 0 .. h - 1
    e(t) = (sin(t f_0), .., sin(t f_{h-1}), cos(t f_0), .., cos(t f_{h-1}))

All sines come first, then all cosines; an odd width ends in a zero. With shift = 1 the slowest frequency is exactly
1 / period (DDPM), with shift = 0 it is one step short of it (Transformer). Tables that put cosines first are these
with the columns of the next layer swapped. The fastest frequency is 1: t should reach some hundreds, as DDPM's step
numbers do; who tells a net the time (a parametrisation) scales it.

Dropped conditions (Ho & Salimans 2021, "Classifier-free diffusion guidance", arXiv:2207.12598): the null is a row of
its own in the class table, learned like the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..core import Net, Noise
from ..errors import UserError


def dense(inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot-uniform weights times `gain` (0 makes it start as zero) and zero bias, if any."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    with torch.no_grad():
        linear.weight.mul_(gain)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class Sinusoidal(Net):
    """t (B,) -> (B, width): sines, then cosines, of t at geometrically spaced frequencies (see the module's head).

    width:  size of the embedding, at least 4.
    shift:  1 ends at frequency 1 / period (DDPM), 0 one step short of it.
    period: ratio of the fastest to the slowest frequency.
    """

    def __init__(self, width: int, *, shift: float = 1.0, period: float = 10_000.0) -> None:
        super().__init__()
        if width < 4:
            raise UserError(f"A sinusoidal embedding of width {width} has no room for two frequencies: use at least 4.")
        self.width, self.shift, self.period = width, shift, period

    def forward(self, t: Shaped[Tensor, " b"]) -> Float[Tensor, "b {self.width}"]:
        # Angles reach 1000: half precision would lose them, so they are made in single or double.
        t = t if t.dtype in (torch.float32, torch.float64) else t.to(torch.float32)
        half = self.width // 2
        k = torch.arange(half, dtype=t.dtype, device=t.device)
        frequency = torch.exp(k * (-math.log(self.period) / (half - self.shift)))  # (half,)
        angle = t[:, None] * frequency  # (B, half)
        e = torch.cat((angle.sin(), angle.cos()), 1)
        return F.pad(e, (0, self.width % 2))  # (B, width)


class TimeEmbedding(Net):
    """t (B,) -> (B, outputs): a sinusoid, then linear, SiLU, linear.

    width: of the sinusoid. outputs: of the result (DDPM: four times `width`). Others: see `Sinusoidal`.
    """

    def __init__(self, width: int, outputs: int, *, shift: float = 1.0, period: float = 10_000.0) -> None:
        super().__init__()
        self.outputs = outputs
        self.sinusoid = Sinusoidal(width, shift=shift, period=period)
        self.inner = dense(width, outputs)
        self.outer = dense(outputs, outputs)

    def forward(self, t: Shaped[Tensor, " b"]) -> Float[Tensor, "b {self.outputs}"]:
        e = self.sinusoid(t).to(self.inner.weight.dtype)
        outer: Tensor = self.outer(F.silu(self.inner(e)))
        return outer


class ClassEmbedding(Net):
    """Labels and their absence -> (B, width): one row per class, and a last row for "no label".

    The null row is used for the samples that `cond["null"]` (B,) marks, whatever their label says, and for all where
    there is no `cond["label"]` (B,).

    spread: standard deviation of the rows at the start. With rows of 0.02, as transformers begin, a net that is trained
    for minutes learns its classes late: on the digits the held-out loss after 100 steps is 0.597, with 1 it is 0.545.
    """

    def __init__(self, classes: int, width: int, spread: float = 1.0) -> None:
        super().__init__()
        if classes < 1:
            raise UserError(f"A class embedding needs at least one class, not {classes}: give the number of classes.")
        self.classes, self.width = classes, width
        # One table, null included, so that every step gives it a gradient: no parameter is unused under data
        # parallelism, whether conditions are dropped or not.
        self.table = nn.Parameter(torch.randn(classes + 1, width) * spread)

    def forward(self, cond: Mapping[str, Tensor], n: int) -> Float[Tensor, "{n} {self.width}"]:
        """Embeddings (n, width) of the conditions of n samples.

        Raises UserError for a label outside 0 .. classes - 1. This is noticed by the look-up itself, so it costs
        nothing; a GPU looks things up asynchronously and stops with its own assertion instead.
        """
        label, null = cond.get("label"), cond.get("null")
        if label is None:
            return self.table[self.classes].expand(n, self.width)
        if label.is_floating_point():
            kind = str(label.dtype).removeprefix("torch.")
            raise UserError(f'cond["label"] holds {kind} numbers: give the classes as int64, such as label.long().')
        if null is not None:
            label = label.masked_fill(null, 0)  # what is dropped is not read
        try:
            e = F.embedding(label, self.table[: self.classes])  # the null row is out of a label's reach
        except IndexError:
            low, high = int(label.min()), int(label.max())
            raise UserError(
                f'cond["label"] holds {low if low < 0 else high}, but this net knows the classes'
                f" 0 to {self.classes - 1}: give labels in that range, or build the net with more classes."
            ) from None
        return e if null is None else torch.where(null[:, None], self.table[self.classes], e)


def drop(cond: Mapping[str, Tensor], p: float, noise: Noise) -> Mapping[str, Tensor]:
    """The conditions with `"null"` (B,) marking those to be dropped, each sample with probability p by its own key.

    p = 0 gives `cond` itself and draws nothing; samples that are already marked stay so. Call it once per batch.
    Raises UserError where p is no probability.
    """
    if not 0 <= p <= 1:
        raise UserError(f"The probability of dropping conditions is {p}, which is no probability: use 0 to 1.")
    if p == 0:
        return cond
    null = noise.uniform(dtype=torch.float32) < p  # (B,)
    return {**cond, "null": null | cond["null"] if "null" in cond else null}
