"""Class-conditional EDM on CIFAR-10, for one GPU.

Not run at its size: no GPU has come yet.
"""

from __future__ import annotations

from ..experiment import Data, Experiment


def cifar_edm(
    steps: int = 50_000, width: int = 128, batch: int = 256, lr: float = 5e-4, dropout: float = 0.13
) -> Experiment:
    """A U-Net under EDM learns to draw the ten classes of CIFAR-10. It resumes from where it was stopped.

    The net has the levels and the attention of DDPM's, but time and class scale and shift each block's features, as in
    ADM, where DDPM's adds them.

    steps: training steps. width: channels of the U-Net's first level. batch: pictures a step. lr: the largest learning
    rate. dropout: in the U-Net.
    """
    from ..average import EMA
    from ..data.augment import Augmented, Flip
    from ..data.cifar10 import CIFAR10, space
    from ..data.source import Shuffled
    from ..diffusion import edm
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.unet import UNet
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    widths = (width, 2 * width, 2 * width, 2 * width)
    net = UNet(3, widths=widths, attention=(1,), classes=10, dropout=dropout, groups=32, modulation="scale-shift")
    model = edm(net, (3, 32, 32))
    grid = SampleGrid(every=max(500, steps // 20), n=40, wishes={"label": [*range(10)] * 4}, columns=10)
    source = Augmented(Shuffled(CIFAR10("train"), batch), (Flip(),))
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), weight_decay=0.0, schedule=Cosine(warmup=min(1000, steps // 10))),
        clip=1.0,
        dtype="bfloat16",
        ema=EMA(0.9998),
        heldout=HeldOut(every=max(500, steps // 20), batch=500, limit=2000),
        hooks=(grid,),
        save_every=500,
        log_every=20,
    )
    return Experiment(model, Data(source, CIFAR10("test"), space()), trainer)
