"""What the recipes over chorales share: the pieces as tokens, the model over them, and the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..experiment import Data, Experiment

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..nets.causal import Causal
    from ..optim import Optim


def chorales(
    data: Path | None, net: Callable[[int, int], Causal], longest: int, tokens: int, steps: int, optim: Optim
) -> Experiment:
    """An experiment over Bach's chorales, or the user's MIDI files. net: made of the number of tokens and `longest`."""
    from ..autoregressive import Autoregressive
    from ..average import EMA
    from ..core import END
    from ..data.corpus import ByLength, Corpus, Sequences
    from ..data.documents import Texts
    from ..data.music import Chorales, MidiFiles, Music, Notes
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..train import Trainer

    pieces: Texts = Chorales() if data is None else MidiFiles(data)
    notes = Notes()
    train, test = (Corpus(pieces, notes, part, end=END) for part in ("train", "test"))
    model = Autoregressive(net(notes.size, longest), (longest,), notes.size, end=notes.special(END))
    trainer = Trainer(
        steps,
        optim=optim,
        clip=1.0,
        ema=EMA(0.99),
        heldout=HeldOut(every=max(1, steps // 10), batch=16),
        hooks=(SampleGrid(every=max(1, steps // 4), n=4, columns=1),),
        save_every=max(1, steps // 10),
        log_every=10,
    )
    space = Music(longest, steps=1 if data is None else 4)
    return Experiment(model, Data(ByLength(train, longest, tokens), Sequences(test, longest), space), trainer)
