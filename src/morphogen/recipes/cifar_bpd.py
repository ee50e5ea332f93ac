"""A likelihood of CIFAR-10: diffusion trained on its variational bound, for one GPU; the goal is 3.1 bits/dim.

Not run at its size: no GPU has come yet.
"""

from __future__ import annotations

from ..experiment import Data, Experiment


def cifar_bpd(
    steps: int = 50_000, width: int = 128, depth: int = 3, batch: int = 128, lr: float = 3e-4, dropout: float = 0.1
) -> Experiment:
    """A U-Net learns the density of CIFAR-10's dequantised pixels by the weights of the variational bound.

    steps: training steps. width: channels of every level of the U-Net, which halves the pictures twice. depth: blocks
    a level. batch: pictures a step. lr: the largest learning rate. dropout: in the U-Net.
    """
    from ..average import EMA
    from ..data.augment import Augmented, Dequantise
    from ..data.cifar10 import CIFAR10, space
    from ..data.source import Shuffled
    from ..diffusion import vdm
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.fourier import FourierFeatures
    from ..nets.unet import UNet
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    powers = tuple(range(1, 9))
    net = UNet(
        3 * (1 + 2 * len(powers)),
        outputs=3,
        widths=(width, 2 * width, 2 * width),
        depth=depth,
        attention=(1, 2),
        dropout=dropout,
        groups=32,
        modulation="scale-shift",
    )
    model = vdm(FourierFeatures(net, powers), (3, 32, 32))
    source = Augmented(Shuffled(CIFAR10("train"), batch), (Dequantise(),))
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), schedule=Cosine(warmup=min(1000, steps // 10))),
        clip=1.0,
        dtype="bfloat16",
        ema=EMA(0.9998),
        heldout=HeldOut(every=max(500, steps // 20), batch=500, limit=2000),
        hooks=(SampleGrid(every=max(500, steps // 20), n=40, columns=10),),
        save_every=500,
        log_every=20,
    )
    return Experiment(model, Data(source, CIFAR10("test"), space()), trainer)
