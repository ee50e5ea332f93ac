"""Causal nets over symbols: logits of each symbol of a sequence, given those before it and the conditions.

    h_0 = c,  h_i = E[x_{i-1}]                        c: the class's vector, the learned "no class", or a symbol's
    logits of x_i = W read(h_0 .. h_i)                read: a transformer, a recurrence, causal convolutions

The shift is inside: what begins a sequence is a vector and no symbol, so that every symbol has a probability and the
alphabet needs no start. (A net whose sequences do begin with one, such as GPT-2's <|endoftext|>, is told by `begin`.)
`step` gives the same numbers a few symbols at a time, each seen once, for rows of any lengths.

Radford et al. 2019, "Language models are unsupervised multitask learners" (GPT-2: learned positions, the norm before
each part); Press & Wolf 2017, "Using the output embedding to improve language models", arXiv:1608.05859 (tied weights).
Departures: Glorot's initial weights, those of what a block adds times (2 depth)^-1/2; input and output have tables of
their own unless `tied`, which then begin as GPT-2's do, with deviations of 0.02.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from .dilated import Dilated
from .embed import ClassEmbedding, dense
from .memory import Memory, past
from .positions import Positions, Rotary
from .recurrent import Recurrence
from .transformer import GPT, Block, Design

Cond = Mapping[str, Any]


class Causal(Net, ABC):
    """Symbols x (B, *shape), integers 0 .. codes - 1, read in raster order -> logits (B, *shape, codes).

    A subclass reads vectors (`read`) and ends with `self.last`. width: of a symbol's vector. spread: the standard
    deviation of the tables at the start. Others: see `CausalTransformer`.
    """

    last: nn.Linear
    length: int | None = None  # the most symbols that it reads, where there is a most

    def __init__(
        self, codes: int, width: int, *, classes: int = 0, begin: int | None = None, spread: float = 1.0
    ) -> None:
        super().__init__()
        if codes < 1 or width < 1:
            raise UserError("A causal net's codes and width must each be at least 1.")
        if begin is not None and (classes or not 0 <= begin < codes):
            raise UserError(f"A sequence begins with a symbol of the alphabet, without classes, and not with {begin}.")
        self.codes, self.width, self.begin = codes, width, begin
        self.classes = ClassEmbedding(classes, width) if classes else None
        learned = begin is None and self.classes is None
        self.start = nn.Parameter(torch.randn(width) * spread) if learned else None
        self.embed = nn.Embedding(codes, width)
        if spread != 1:
            with torch.no_grad():
                self.embed.weight.mul_(spread)

    def forward(self, x: Int[Tensor, " b *shape"], cond: Cond = NONE) -> Float[Tensor, " b *shape {self.codes}"]:
        logits: Tensor = self.last(self.hidden(x, cond))
        return logits.view(*x.shape, self.codes)

    def hidden(self, x: Int[Tensor, " b *shape"], cond: Cond = NONE) -> Float[Tensor, "b t _"]:
        """What the logits of each symbol are made of by `last`."""
        flat = x.flatten(1)
        if self.length is not None and flat.shape[1] > self.length:
            raise UserError(f"x is {tuple(x.shape[1:])} a sample, and this net reads at most {self.length} symbols.")
        return self.read(self._vectors(flat[:, :-1], cond, flat.shape[1] > 0), cond, None, None)[0]

    def step(
        self,
        x: Int[Tensor, "b k"],
        cond: Cond = NONE,
        memory: Any = None,
        *,
        lengths: Int[Tensor, " b"] | None = None,
        begin: bool | None = None,
    ) -> tuple[Float[Tensor, "b n {self.codes}"], Any]:
        """Logits of what follows each of the next k symbols of a sequence, and the memory with them in it.

        memory: of all symbols before x. None begins: then the first row, of k + 1, is of the first symbol of all, and x
        may be empty. lengths: only the first so many symbols of each row are there; the rows of logits beyond say
        nothing. begin: whether x stands at the beginning; False without a memory leaves out what begins a sequence.
        Made for sampling: not differentiable.
        """
        with torch.no_grad():
            hidden, memory = self.advance(x, cond, memory, lengths=lengths, begin=begin)
            logits: Tensor = self.last(hidden)
            return logits, memory

    def advance(
        self,
        x: Int[Tensor, "b k"],
        cond: Cond = NONE,
        memory: Any = None,
        *,
        lengths: Int[Tensor, " b"] | None = None,
        begin: bool | None = None,
    ) -> tuple[Float[Tensor, "b n _"], Any]:
        """`step` before the last layer."""
        begin = memory is None if begin is None else begin
        if lengths is not None and begin:
            lengths = lengths + 1
        return self.read(self._vectors(x, cond, begin), cond, self.memory() if memory is None else memory, lengths)

    def memory(self, room: int | None = None, slack: int = 0) -> Any:
        """An empty memory with room for so many symbols, which can go back by `slack` of them; None where a net needs
        none to begin with. Where a net reads fewer than `room` the pass that comes to one more raises UserError, or,
        with slack, this.
        """
        return None

    @abstractmethod
    def read(
        self, h: Float[Tensor, "b n {self.width}"], cond: Cond, memory: Any, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "b n _"], Any]:
        """What the logits are made of, and the memory with h in it; without a memory, of a whole sequence."""

    def _vectors(self, x: Tensor, cond: Cond, begin: bool) -> Tensor:
        """The vectors (B, N, width) of symbols, after what begins a sequence where they stand at its beginning."""
        try:
            h: Tensor = self.embed(x)
        except IndexError:
            raise UserError(
                f"x holds {int(x.max())} or {int(x.min())}, and this net's alphabet is 0 to {self.codes - 1}: build it"
                " with more codes."
            ) from None
        return torch.cat((self._begin(cond, len(x))[:, None], h), 1) if begin else h

    def _begin(self, cond: Cond, n: int) -> Tensor:
        """What begins n sequences (n, width)."""
        if self.classes is not None:
            begin: Tensor = self.classes(cond, n)
            return begin
        one = self.embed.weight[self.begin] if self.start is None else self.start
        return one.expand(n, self.width)

    def _tie(self, tied: bool, bias: bool, width: int) -> None:
        """Make the last layer, of the symbols' own vectors where it is `tied`."""
        if not tied:
            self.last = dense(width, self.codes, bias=bias)
            return
        if width != self.width:
            raise UserError(f"Tied tables need vectors of one width, and {self.width} go in and {width} come out.")
        self.last = nn.Linear(width, self.codes, bias=False)
        self.last.weight = self.embed.weight


class CausalTransformer(Causal):
    """Symbols x (B, *shape), integers 0 .. codes - 1, read in raster order -> logits (B, *shape, codes).

    shape:   the largest shape of x; a sequence (T,) may be shorter.
    codes:   size of the alphabet.
    width, depth, heads: of the transformer. ratio: units of the feed-forward nets, as a multiple of the width.
    classes: number of classes of `cond["label"]`; 0 reads none. `cond["null"]` as in `ClassEmbedding`.
    rotary:  period of rotary positions, such as 10,000, instead of a learned vector for each position.
    positions: any other scheme (see `nets.positions`).
    design:  how the blocks are made. hidden: units of the feed-forward nets, instead of `ratio`.
    tied:    the last layer's weights are the symbols' vectors.
    begin:   the symbol that begins every sequence, and is not part of x; a learned vector if None.
    source:  width of a context `cond["context"]` (B, M, source) that every block looks across to, of which
             `cond["there"]` (B, M) says what is there; 0 reads none.
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
        positions: Positions | None = None,
        design: Design = GPT,
        hidden: int | None = None,
        tied: bool = False,
        begin: int | None = None,
        source: int = 0,
    ) -> None:
        if codes < 1 or depth < 1 or not shape or min(shape) < 1:
            raise UserError("A causal transformer's codes, depth and shape must each be at least 1.")
        if rotary is not None and positions is not None:
            raise UserError("`rotary` is short for positions=Rotary(period): give one of the two.")
        spread = 0.02 if tied else 1.0
        super().__init__(codes, width, classes=classes, begin=begin, spread=spread)
        self.length: int = math.prod(shape)
        self.heads, self.design, self.source = heads, design, source
        self.scheme = positions if rotary is None else Rotary(rotary)
        learned = None if self.scheme is not None else torch.randn(self.length, width)
        self.positions = None if learned is None else nn.Parameter(learned * (0.02 if tied else width**-0.5))
        gain, hidden = (2 * depth) ** -0.5, int(ratio * width) if hidden is None else hidden
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, design, context=source or None, gain=gain) for _ in range(depth)
        )
        self.norm = nn.Identity() if design.after else design.normed(width)
        self._tie(tied, design.bias, width)

    @property
    def head(self) -> int:
        """Numbers in a head."""
        return self.design.head or self.width // self.heads

    def memory(self, room: int | None = None, slack: int = 0) -> Memory:
        """See `Causal.memory`."""
        room = self.length if room is None else room
        if slack and room > self.length:  # what is taken back has places of its own, so that none is missed
            raise UserError(
                f"This net reads at most {self.length} symbols, and would have to read {room}: ask for fewer, or give a"
                " shorter prompt."
            )
        return Memory(len(self.blocks), min(room, self.length) + slack, window=self.design.window, slack=slack)

    def read(
        self, h: Float[Tensor, "b n {self.width}"], cond: Cond, memory: Memory | None, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "b n {self.width}"], Memory | None]:
        """See `Causal.read`."""
        b, n = h.shape[:2]
        if memory is None:
            at = torch.arange(n, device=h.device)
            sight = past(n, self.scheme, self.heads, self.head, self.design.window, h.device)
        else:
            at, sight = memory.look(b, n, self.scheme, self.heads, self.head, h.device, lengths)
        if self.positions is not None:
            h = h + F.embedding(at.clamp(max=self.length - 1), self.positions)  # beyond are pads alone
        elif self.scheme is not None and (added := self.scheme.vectors(at, self.width)) is not None:
            h = h + added.to(h.dtype)
        if self.design.dropout:
            h = F.dropout(h, self.design.dropout, self.training)
        context, mask = self._across(cond, memory)
        for i, block in enumerate(self.blocks):
            h = block(h, sight, None if memory is None else memory.layers[i], context[i], mask)
        if memory is not None:
            memory.advance()
        return self.norm(h), memory

    def _across(self, cond: Cond, memory: Memory | None) -> tuple[list[Any], Tensor | None]:
        """Keys and values of the context for each block, made once for a memory, and which of them are there."""
        if not self.source:
            return [None] * len(self.blocks), None
        if memory is not None and memory.context:
            return memory.context, memory.across
        if "context" not in cond:
            raise UserError('This net looks across to a context, and none is given: add cond["context"].')
        made: list[Any] = [b.across(cond["context"]) for b in self.blocks if isinstance(b, Block)]
        if memory is not None:
            memory.context, memory.across = made, cond.get("there")
        return made, cond.get("there")


class CausalSequence(Causal):
    """Symbols x (B, *shape) -> logits (B, *shape, codes), through a recurrence or causal convolutions.

    body: reads vectors: an RNN, LSTM, GRU, WaveNet or TCN of `inputs` numbers. dropout: of the vectors in and out, in
    training. A class's vector is what begins a sequence, and is added to every symbol's too. Others: see
    `CausalTransformer`.
    """

    def __init__(
        self,
        codes: int,
        body: Recurrence | Dilated,
        *,
        classes: int = 0,
        dropout: float = 0.0,
        tied: bool = False,
        begin: int | None = None,
    ) -> None:
        super().__init__(codes, body.inputs, classes=classes, begin=begin, spread=0.02 if tied else 1.0)
        self.body, self.dropout = body, dropout
        self._tie(tied, True, body.width)

    def read(
        self, h: Float[Tensor, "b n {self.width}"], cond: Cond, memory: Any, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "b n _"], Any]:
        """See `Causal.read`."""
        if self.classes is not None:
            h = h + self.classes(cond, len(h))[:, None]
        h = F.dropout(h, self.dropout, self.training)
        y, memory = self.body(h, memory, lengths=lengths)
        return F.dropout(y, self.dropout, self.training), memory
