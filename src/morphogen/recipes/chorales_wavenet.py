"""A net of dilated causal convolutions that composes chorales, note by note, as MIDI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..experiment import Experiment

if TYPE_CHECKING:
    from ..nets.causal import Causal


def chorales_wavenet(
    data: Path | None = None,
    steps: int = 600,
    width: int = 96,
    cycles: int = 1,
    longest: int = 800,
    tokens: int = 5000,
    lr: float = 2e-3,
    dropout: float = 0.2,
) -> Experiment:
    """A WaveNet learns Bach's chorales, or your own MIDI files, as tokens, and writes MIDI.

    data: a MIDI file of yours, or a folder of them. steps: training steps. width: channels. cycles: of the dilations
    1, 2, 4 … 128. longest: tokens of a piece; what is longer is cut. tokens: of a step's pieces, which are of
    about one length. lr: the largest learning rate. dropout: in training.
    """
    from ..nets.causal import CausalSequence
    from ..nets.dilated import WaveNet
    from ..optim import AdamW, Cosine
    from ._chorales import chorales

    def net(codes: int, longest: int) -> Causal:
        return CausalSequence(codes, WaveNet(width, width, largest=128, cycles=cycles), dropout=dropout)

    optim = AdamW(lr, betas=(0.9, 0.99), weight_decay=0.01, schedule=Cosine(warmup=steps // 20))
    return chorales(data, net, longest, tokens, steps, optim)
