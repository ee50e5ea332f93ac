"""Class-conditional diffusion on MNIST with a U-Net, in about ten minutes on one core.

Recorded in docs/runs/mnist-flow and docs/runs/mnist-edm, on one core of an AMD EPYC. Of 2,000 samples at guidance 1.5
98.3 % are read as asked with `flow_matching` (491 s) and 95.1 % with `edm` (497 s).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..experiment import Data, Experiment


def mnist_diffusion(
    preset: Literal["edm", "flow_matching", "rectified_flow", "stochastic_interpolant", "ddpm", "score_sde_vp"] = "edm",
    steps: int = 1800,
    width: int = 40,
    batch: int = 64,
    lr: float = 2e-3,
    dropout: float = 0.1,
    guidance: float = 1.5,
    samples: int = 15,
    pairs: Path | None = None,
) -> Experiment:
    """A U-Net learns to draw the digits 0 to 9 as asked, from MNIST's 60,000 of 28x28 pixels.

    preset: which diffusion. steps: training steps. width: channels of the U-Net's first level. batch: digits a step.
    lr: the largest learning rate. dropout: in the U-Net. guidance: of the pictures drawn on the way; 1 is none.
    samples: steps of DPM-Solver++ by which they are drawn.
    pairs: a file of `morphogen reflow` to learn from instead: the next round of rectified flow, which needs fewer steps
    to sample (with guidance 1: the pairs are guided already).
    """
    if pairs is not None and preset != "rectified_flow":
        raise UserError(f"Pairs straighten a flow, and the preset {preset!r} is none: take --preset rectified_flow.")
    from ..average import EMA
    from ..data.items import Pairs
    from ..data.mnist import MNIST, space
    from ..data.source import Shuffled
    from ..diffusion.presets import PRESETS
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.patch import Patched
    from ..nets.unet import UNet
    from ..optim import AdamW, Cosine
    from ..spec import Asset
    from ..train import Trainer

    net = Patched(UNet(4, widths=(width, 2 * width), depth=1, attention=(1,), classes=10, dropout=dropout), 2)
    model = PRESETS[preset](net, (1, 28, 28))
    options = {"guidance": guidance, "solver": "dpmpp-2m", "steps": samples}
    grid = SampleGrid(every=max(1, steps // 4), n=40, wishes={"label": [*range(10)] * 4}, options=options, columns=10)
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), schedule=Cosine(warmup=steps // 20)),
        clip=1.0,
        dtype="bfloat16",
        ema=EMA(0.998),
        heldout=HeldOut(every=max(1, steps // 4), batch=500, limit=2000) if pairs is None else None,  # they have no z
        hooks=(grid,),
        save_every=max(1, steps // 10),
        log_every=10,
    )
    items = MNIST("train") if pairs is None else Pairs(Asset(pairs))
    return Experiment(model, Data(Shuffled(items, batch), MNIST("test"), space()), trainer)
