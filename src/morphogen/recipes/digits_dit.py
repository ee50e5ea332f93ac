"""Class-conditional diffusion on the digits with a small diffusion transformer, in three minutes.

Recorded in docs/runs/digits-dit: one core of an AMD EPYC, 173 s; 99.5 % of 1,000 samples are read as asked.
"""

from __future__ import annotations

from typing import Literal

from ..experiment import Data, Experiment


def digits_dit(
    preset: Literal["rectified_flow", "flow_matching", "edm"] = "rectified_flow",
    steps: int = 1200,
    width: int = 96,
    depth: int = 4,
    batch: int = 128,
    lr: float = 4e-3,
    guidance: float = 1.5,
) -> Experiment:
    """A DiT with patches of 2x2 learns to draw the digits 0 to 9 as asked, from 1,437 real 8x8 ones.

    preset: which diffusion. steps: training steps. width, depth: of the transformer. batch: digits a step. lr: the
    largest learning rate. guidance: of the pictures drawn on the way; 1 is none.
    """
    from ..average import EMA
    from ..data.digits import Digits, space
    from ..data.source import Shuffled
    from ..diffusion.presets import PRESETS
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.dit import DiT
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    net = DiT(1, width=width, depth=depth, heads=max(1, width // 24), patch=2, classes=10, spread=1.0)
    model = PRESETS[preset](net, (1, 8, 8))
    wishes, options = {"label": [i % 10 for i in range(60)]}, {"guidance": guidance}
    grid = SampleGrid(every=max(1, steps // 4), n=60, wishes=wishes, options=options, columns=10)
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), schedule=Cosine(warmup=steps // 20)),
        clip=1.0,
        ema=EMA(0.995),
        heldout=HeldOut(every=max(1, steps // 4), batch=360),
        hooks=(grid,),
        save_every=max(1, steps // 4),
        log_every=10,
    )
    return Experiment(model, Data(Shuffled(Digits("train"), batch), Digits("test"), space()), trainer)
