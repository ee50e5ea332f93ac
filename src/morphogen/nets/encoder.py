"""Transformers that read a whole sequence of symbols at once, and with a causal one beside them: encoder and decoder.

    encoder           h = blocks(E[x] + positions),  every symbol looks at every other that is there
    encoder-decoder   the decoder's symbols look back, and across to the encoder's h

Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762; Raffel et al. 2020, arXiv:1910.10683. Departures:
the norm stands before each part unless the design says otherwise, and a last norm follows then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from .causal import CausalTransformer
from .memory import Memory, sight
from .positions import Positions
from .transformer import GPT, Block, Design


class TransformerEncoder(Net):
    """Symbols x (B, N), of which `there` (B, N) says which are no padding -> vectors (B, N, width).

    length: the most symbols. Others: see `CausalTransformer`; a window looks as far to both sides.
    Raises UserError for symbols outside the alphabet and for sequences that are too long.
    """

    def __init__(
        self,
        codes: int,
        length: int,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        positions: Positions | None = None,
        design: Design = GPT,
    ) -> None:
        super().__init__()
        if min(codes, length, width, depth) < 1:
            raise UserError("An encoder's codes, length, width and depth must each be at least 1.")
        self.codes, self.length, self.width, self.heads, self.design = codes, length, width, heads, design
        self.embed = nn.Embedding(codes, width)
        self.scheme = positions
        self.positions = nn.Parameter(torch.randn(length, width) * width**-0.5) if positions is None else None
        gain, hidden = (2 * depth) ** -0.5, 4 * width if hidden is None else hidden
        self.blocks = nn.ModuleList(Block(width, heads, hidden, design, gain=gain) for _ in range(depth))
        self.norm = nn.Identity() if design.after else design.normed(width)

    def forward(
        self, x: Int[Tensor, "b n"], there: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n {self.width}"]:
        n, window = x.shape[1], self.design.window
        if n > self.length:
            raise UserError(f"x holds {n} symbols a sample, and this encoder reads at most {self.length}.")
        try:
            h = self.embed(x)
        except IndexError:
            raise UserError(
                f"x holds {int(x.max())} or {int(x.min())}, not 0 to {self.codes - 1}: use more codes."
            ) from None
        at = torch.arange(n, device=x.device)
        if self.positions is not None:
            h = h + self.positions[:n]
        elif self.scheme is not None and (added := self.scheme.vectors(at, self.width)) is not None:
            h = h + added.to(h.dtype)
        visible = None if there is None else there[:, None, :].expand(-1, n, -1)
        if window is not None and n > window:
            near = (at[:, None] - at).abs() < window
            visible = near if visible is None else visible & near
            own = torch.eye(n, dtype=torch.bool, device=x.device)  # a pad whose neighbours are pads sees itself
            visible = visible | own
        d = self.design.head or self.width // self.heads
        seen = sight(at, at, self.scheme, self.heads, d, visible=visible)
        if self.design.dropout:
            h = F.dropout(h, self.design.dropout, self.training)
        for block in self.blocks:
            h = block(h, seen)
        out: Tensor = self.norm(h)
        return out


class EncoderDecoder(Net):
    """Symbols x (B, T) given a source `cond["source"]` (B, M) -> logits (B, T, codes): a causal net like any other.

    `cond["lengths"]` (B,) says how many symbols of each source are there; without it all are. decoder: one built with
    `source` of the encoder's width. tied: both read symbols by one table, the encoder's.
    """

    def __init__(self, encoder: TransformerEncoder, decoder: CausalTransformer, *, tied: bool = False) -> None:
        super().__init__()
        if not decoder.source:
            raise UserError("This decoder looks across to nothing: build it with source=, the encoder's width.")
        self.encoder, self.decoder = encoder, decoder
        self.codes, self.length = decoder.codes, decoder.length
        if tied:
            if encoder.embed.weight.shape != decoder.embed.weight.shape:
                raise UserError("A tied encoder and decoder need one alphabet and one width.")
            decoder.embed.weight = encoder.embed.weight

    def forward(self, x: Int[Tensor, "b t"], cond: Mapping[str, Any] = NONE) -> Float[Tensor, "b t {self.codes}"]:
        logits: Tensor = self.decoder(x, self._encoded(cond))
        return logits

    def hidden(self, x: Int[Tensor, "b t"], cond: Mapping[str, Any] = NONE) -> Float[Tensor, "b t _"]:
        """See `Causal.hidden`."""
        return self.decoder.hidden(x, self._encoded(cond))

    @property
    def last(self) -> nn.Linear:
        """The decoder's last layer."""
        return self.decoder.last

    def memory(self, room: int | None = None, slack: int = 0) -> Memory:
        """See `Causal.memory`."""
        return self.decoder.memory(room, slack)

    def step(
        self,
        x: Int[Tensor, "b k"],
        cond: Mapping[str, Any] = NONE,
        memory: Memory | None = None,
        *,
        lengths: Int[Tensor, " b"] | None = None,
        begin: bool | None = None,
    ) -> tuple[Float[Tensor, "b n {self.codes}"], Memory]:
        """See `Causal.step`; the source is read once."""
        with torch.no_grad():
            if memory is None or not memory.context:
                cond = self._encoded(cond)
            logits, after = self.decoder.step(x, cond, memory, lengths=lengths, begin=begin)
            assert isinstance(after, Memory)
            return logits, after

    def _encoded(self, cond: Mapping[str, Any]) -> dict[str, Tensor]:
        if "source" not in cond:
            raise UserError('An encoder-decoder reads cond["source"] (B, M), and none is given: add it.')
        source = cond["source"]
        there = None
        if "lengths" in cond:
            there = torch.arange(source.shape[1], device=source.device) < cond["lengths"][:, None]
        context = {"context": self.encoder(source, there)}
        return context if there is None else {**context, "there": there}
