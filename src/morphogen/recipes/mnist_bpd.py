"""A likelihood of MNIST: diffusion trained on its variational bound, measured in bits per dimension.

Recorded in docs/runs/mnist-bpd: 726 s on one core of an AMD EPYC, 454 s for 1,000 test digits: 1.36 ± 0.02 bits/dim by
the probability flow, 1.35 ± 0.02 by the bound.
"""

from __future__ import annotations

from ..experiment import Data, Experiment


def mnist_bpd(steps: int = 5000, width: int = 40, batch: int = 32, lr: float = 3e-3) -> Experiment:
    """A U-Net learns the density of MNIST's dequantised pixels by the weights of the variational bound.

    steps: training steps. width: channels of the U-Net's first level. batch: digits a step. lr: the largest learning
    rate.
    """
    from ..average import EMA
    from ..data.augment import Augmented, Dequantise
    from ..data.mnist import MNIST, space
    from ..data.source import Shuffled
    from ..diffusion import vdm
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.fourier import FourierFeatures
    from ..nets.patch import Patched
    from ..nets.unet import UNet
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    powers = tuple(range(1, 9))
    channels = 4 * (1 + 2 * len(powers))
    net = UNet(channels, outputs=4, widths=(width, 2 * width), depth=1, attention=(1,), modulation="scale-shift")
    model = vdm(Patched(FourierFeatures(net, powers), 2), (1, 28, 28))
    source = Augmented(Shuffled(MNIST("train"), batch), (Dequantise(),))
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), schedule=Cosine(warmup=steps // 20)),
        clip=1.0,
        dtype="bfloat16",
        ema=EMA(0.998),
        heldout=HeldOut(every=max(1, steps // 4), batch=500, limit=2000),
        hooks=(SampleGrid(every=max(1, steps // 4), n=40, columns=10),),
        save_every=max(1, steps // 10),
        log_every=10,
    )
    return Experiment(model, Data(source, MNIST("test"), space()), trainer)
