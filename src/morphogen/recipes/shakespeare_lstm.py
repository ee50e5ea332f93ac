"""A recurrent net that writes like Shakespeare, or like your own texts, character by character."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..experiment import Data, Experiment


def shakespeare_lstm(
    data: Path | None = None,
    cell: Literal["lstm", "gru", "rnn"] = "lstm",
    steps: int = 2000,
    width: int = 320,
    depth: int = 2,
    context: int = 128,
    batch: int = 32,
    lr: float = 3e-3,
    dropout: float = 0.1,
) -> Experiment:
    """An LSTM, GRU or plain recurrent net learns tiny Shakespeare, or your own text files, character by character.

    data: a text file of yours, or a folder of them. cell: which recurrence. steps: training steps. width, depth: of the
    net. context: characters through which gradients flow. batch: pieces of text a step. lr: the largest learning rate.
    dropout: in training.
    """
    from ..average import EMA
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.causal import CausalSequence
    from ..nets.recurrent import GRU, LSTM, RNN
    from ..optim import AdamW, Cosine
    from ..train import Trainer
    from ._running import running

    text = running(data, context, batch)
    cells: dict[str, type[RNN] | type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
    body = cells[cell](width, width, depth, dropout=dropout)
    net = CausalSequence(text.codes, body, dropout=dropout)
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), weight_decay=0.01, schedule=Cosine(warmup=steps // 20)),
        clip=1.0,
        ema=EMA(0.995),
        heldout=HeldOut(every=max(1, steps // 8), batch=64),
        hooks=(SampleGrid(every=max(1, steps // 4), n=4, columns=2),),
        save_every=max(1, steps // 8),
        log_every=10,
    )
    return Experiment(text.model(net), Data(text.train, text.test, text.space), trainer)
