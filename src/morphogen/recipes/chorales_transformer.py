"""A transformer that composes chorales, note by note, as MIDI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..experiment import Experiment

if TYPE_CHECKING:
    from ..nets.causal import Causal


def chorales_transformer(
    data: Path | None = None,
    steps: int = 600,
    width: int = 128,
    depth: int = 4,
    longest: int = 800,
    tokens: int = 5000,
    lr: float = 2e-3,
    dropout: float = 0.2,
) -> Experiment:
    """A causal transformer learns Bach's chorales, or your own MIDI files, as tokens, and writes MIDI.

    data: a MIDI file of yours, or a folder of them. steps: training steps. width, depth: of the net. longest: tokens of
    a piece; what is longer is cut. tokens: of a step's pieces, which are of about one
    length. lr: the largest learning rate. dropout: in training.
    """
    from ..nets.causal import CausalTransformer
    from ..nets.transformer import Design
    from ..optim import AdamW, Cosine
    from ._chorales import chorales

    def net(codes: int, longest: int) -> Causal:
        design = Design(dropout=dropout)
        return CausalTransformer(codes, (longest,), width=width, depth=depth, heads=4, rotary=10_000.0, design=design)

    optim = AdamW(lr, betas=(0.9, 0.99), weight_decay=0.1, schedule=Cosine(warmup=steps // 10))
    return chorales(data, net, longest, tokens, steps, optim)
