"""The causal transformer: logits of each symbol of a sequence, given those before it and the conditions.

    h_0 = c,  h_i = E[x_{i-1}]  (+ a position)        c: the class's vector, or the learned "no class"
    h   = block(… block(h)),  logits of x_i = W norm(h_i)

The shift is inside: what begins a sequence is a vector and no symbol, so that every symbol has a probability and the
alphabet needs no start. `step` gives the same numbers a few symbols at a time, each seen once.

Radford et al. 2019, "Language models are unsupervised multitask learners" (GPT-2: learned positions, the norm before
each part). Departures: Glorot's initial weights, those of what a block adds times (2 depth)^-1/2; input and output have
tables of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from .embed import ClassEmbedding, dense
from .transformer import Block, Memory


class CausalTransformer(Net):
    """Symbols x (B, *shape), integers 0 .. codes - 1, read in raster order -> logits (B, *shape, codes).

    shape:   the largest shape of x; a sequence (T,) may be shorter.
    codes:   size of the alphabet.
    width, depth, heads: of the transformer. ratio: units of the feed-forward nets, as a multiple of the width.
    classes: number of classes of `cond["label"]`; 0 reads none. `cond["null"]` as in `ClassEmbedding`.
    rotary:  period of rotary positions, such as 10,000, instead of a learned vector for each position.
    Raises UserError for symbols outside the alphabet and for sequences that are too long.
    """

    def __init__(
        self,
        codes: int,
        shape: tuple[int, ...],
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        ratio: float = 4.0,
        classes: int = 0,
        rotary: float | None = None,
    ) -> None:
        super().__init__()
        if codes < 1 or depth < 1 or not shape or min(shape) < 1:
            raise UserError("A causal transformer's codes, depth and shape must each be at least 1.")
        self.codes, self.length, self.width = codes, math.prod(shape), width
        self.classes = ClassEmbedding(classes, width) if classes else None
        self.start = nn.Parameter(torch.randn(width)) if self.classes is None else None
        self.embed = nn.Embedding(codes, width)
        self.positions = None if rotary is not None else nn.Parameter(torch.randn(self.length, width) * width**-0.5)
        gain = (2 * depth) ** -0.5
        hidden = int(ratio * width)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, causal=True, rotary=rotary, gain=gain) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.last = dense(width, codes)

    def forward(
        self, x: Int[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, " b *shape {self.codes}"]:
        flat = x.flatten(1)
        if flat.shape[1] > self.length:
            raise UserError(f"x is {tuple(x.shape[1:])} a sample, and this net reads at most {self.length} symbols.")
        logits = self._logits(self._inputs(flat[:, :-1], cond, 0), [None] * len(self.blocks))
        return logits.view(*x.shape, self.codes)

    def step(
        self, x: Int[Tensor, "b k"], cond: Mapping[str, Tensor] = NONE, memory: list[Memory] | None = None
    ) -> tuple[Float[Tensor, "b n {self.codes}"], list[Memory]]:
        """Logits of what follows each of the next k symbols of a sequence, and the memory with them in it.

        memory: of all symbols before x. None begins: then the first row, of k + 1, is of the first symbol of all, and x
        may be empty. Made for sampling: not differentiable.
        """
        with torch.no_grad():
            start = 0 if memory is None else memory[0].used
            memory = memory or [Memory(self.length) for _ in self.blocks]
            return self._logits(self._inputs(x, cond, start), memory), memory

    def _inputs(self, x: Tensor, cond: Mapping[str, Tensor], start: int) -> Tensor:
        """The vectors (B, N, width) at the places from `start`: what begins where that is 0, then the symbols."""
        try:
            h: Tensor = self.embed(x)
        except IndexError:
            raise UserError(
                f"x holds {int(x.max())} or {int(x.min())}, and this net's alphabet is 0 to {self.codes - 1}: build it"
                " with more codes."
            ) from None
        if start == 0:
            h = torch.cat((self._begin(cond, len(x))[:, None], h), 1)
        if self.positions is not None:
            h = h + self.positions[start : start + h.shape[1]]
        return h

    def _begin(self, cond: Mapping[str, Tensor], n: int) -> Tensor:
        """What begins n sequences (n, width)."""
        begin: Tensor
        if self.classes is not None:
            begin = self.classes(cond, n)
        else:
            assert self.start is not None
            begin = self.start.expand(n, self.width)
        return begin

    def _logits(self, h: Tensor, memory: list[Memory] | list[None]) -> Tensor:
        for block, seen in zip(self.blocks, memory, strict=True):
            h = block(h, seen)
        logits: Tensor = self.last(self.norm(h))
        return logits
