"""Class-conditional diffusion on real handwritten digits: the first thing to run.

Recorded in docs/runs/digits-diffusion: `make demo` on two cores of an AMD EPYC, 86 s of training. At guidance 1.5,
99.1 % of 1,000 samples read as asked, and a classifier that saw them alone reads 97.8 % of the real test digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..experiment import Data, Experiment


def digits_diffusion(
    preset: Literal["rectified_flow", "edm", "ddpm"] = "rectified_flow",
    steps: int = 500,
    width: int = 32,
    batch: int = 128,
    lr: float = 2e-3,
    dropout: float = 0.1,
    guidance: float = 1.5,
) -> Experiment:
    """A small U-Net learns to draw the digits 0 to 9 as asked, from 1,437 real 8x8 ones.

    preset: which diffusion. steps: training steps. width: channels of the U-Net's first level. batch: digits a step.
    lr: the largest learning rate. dropout: in the U-Net. guidance: of the pictures drawn on the way; 1 is none.
    """
    from ..average import EMA
    from ..data.digits import Digits, space
    from ..data.source import Shuffled
    from ..diffusion import Diffusion, ddpm, edm, rectified_flow
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.unet import UNet
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    net = UNet(1, widths=(width, 2 * width), attention=(1,), classes=10, dropout=dropout)
    presets: dict[str, Callable[[UNet, tuple[int, ...]], Diffusion]]
    presets = {"rectified_flow": rectified_flow, "edm": edm, "ddpm": ddpm}
    model = presets[preset](net, (1, 8, 8))
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
