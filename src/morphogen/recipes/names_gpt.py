"""A small transformer that makes up names, letter by letter; it needs no data but what this package brings."""

from __future__ import annotations

from pathlib import Path

from ..experiment import Data, Experiment


def names_gpt(
    data: Path | None = None,
    steps: int = 2000,
    width: int = 64,
    depth: int = 4,
    longest: int = 24,
    batch: int = 128,
    lr: float = 3e-3,
) -> Experiment:
    """A causal transformer learns 32,033 first names, or the lines of your own file, and makes up others.

    data: a text file of yours, a line each. steps: training steps. width, depth: of the transformer. longest: letters
    of a line, its end one of them; what is longer is cut. batch: lines a step. lr: the largest learning rate.
    """
    from ..autoregressive import Autoregressive
    from ..average import EMA
    from ..data.corpus import Corpus, Sequences
    from ..data.documents import Collection, TextFiles, Texts
    from ..data.source import Shuffled
    from ..data.text import Text
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..language.tokens import END, Characters, alphabet_of
    from ..nets.causal import CausalTransformer
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    texts: Texts = Collection("names") if data is None else TextFiles(data, between="\n")
    letters = "abcdefghijklmnopqrstuvwxyz"
    if data is not None:
        letters = alphabet_of(d for part in ("train", "test") for d in texts.documents(part))
    tokens = Characters(letters, specials=(END,))
    train, test = (Sequences(Corpus(texts, tokens, part, end=END), longest) for part in ("train", "test"))
    net = CausalTransformer(tokens.size, (longest,), width=width, depth=depth, heads=4)
    model = Autoregressive(net, (longest,), tokens.size, end=tokens.special(END))
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), weight_decay=0.1, schedule=Cosine(warmup=steps // 20)),
        clip=1.0,
        ema=EMA(0.995),
        heldout=HeldOut(every=max(1, steps // 5), batch=512),
        hooks=(SampleGrid(every=max(1, steps // 4), n=48),),
        save_every=max(1, steps // 4),
        log_every=20,
    )
    return Experiment(model, Data(Shuffled(train, batch), test, Text(tokens, longest, end=END)), trainer)
