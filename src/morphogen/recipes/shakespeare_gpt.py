"""A transformer that writes like Shakespeare, or like your own texts, character by character."""

from __future__ import annotations

from pathlib import Path

from ..experiment import Data, Experiment


def shakespeare_gpt(
    data: Path | None = None,
    steps: int = 700,
    width: int = 256,
    depth: int = 6,
    heads: int = 4,
    context: int = 256,
    batch: int = 32,
    lr: float = 3e-3,
    dropout: float = 0.1,
) -> Experiment:
    """A causal transformer learns tiny Shakespeare, or your own text files, character by character.

    data: a text file of yours, or a folder of them. steps: training steps. width, depth, heads: of the transformer.
    context: characters that it reads. batch: pieces of text a step. lr: the largest learning rate. dropout: in
    training.
    """
    from ..average import EMA
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.causal import CausalTransformer
    from ..nets.transformer import Design
    from ..optim import Linear, MuonAdamW
    from ..train import Trainer
    from ._running import running

    text = running(data, context, batch)
    design = Design(bias=False, dropout=dropout)
    net = CausalTransformer(
        text.codes, (context,), width=width, depth=depth, heads=heads, rotary=10_000.0, design=design
    )
    trainer = Trainer(
        steps,
        optim=MuonAdamW(
            lr, weight_decay=0.1, outside=("embed", "last", "start"), schedule=Linear(flat=0.4, floor=0.02)
        ),
        clip=1.0,
        dtype="bfloat16",
        ema=EMA(0.99),
        heldout=HeldOut(every=max(1, steps // 8), batch=64),
        hooks=(SampleGrid(every=max(1, steps // 4), n=4, columns=2),),
        save_every=max(1, steps // 8),
        log_every=10,
    )
    return Experiment(text.model(net), Data(text.train, text.test, text.space), trainer)
