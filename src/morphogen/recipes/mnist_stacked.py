"""Stacked MNIST: three digits as the colours of one picture, to count the modes that a GAN reaches."""

from __future__ import annotations

from typing import Literal

from ..experiment import Data, Experiment


def mnist_stacked(
    net: Literal["r3gan", "stylegan"] = "r3gan",
    digits: int = 10,
    steps: int = 1200,
    width: int = 64,
    batch: int = 64,
    lr: float = 1e-3,
    gamma: float = 1.0,
) -> Experiment:
    """A GAN that is told nothing learns to draw three MNIST digits at once: 1,000 modes, or digits³ with fewer.

    net: r3gan plays in relativistic pairs with R1 and R2; stylegan has the nets and the play of mnist-stylegan.
    digits: which are stacked, 0 to digits - 1. steps: training steps; a 1,000 modes want a GPU. width: channels of the
    finest maps; a quarter of it for stylegan. batch: pictures a step. lr: the largest learning rate. gamma: weight of
    the penalties. Measured by `morphogen evaluate RUN --judge RUN`, the judge being a run of mnist-classifier.
    """
    from ..adversarial.gan import GAN
    from ..adversarial.losses import RELATIVISTIC
    from ..adversarial.penalties import R1, R2
    from ..adversarial.stylegan import StyleGAN2
    from ..average import EMA
    from ..core import Model
    from ..data.mnist import MNIST
    from ..data.source import Shuffled
    from ..data.stacked import Stacked, space
    from ..heldout import HeldOut, Quality
    from ..hooks import SampleGrid
    from ..nets.critic import Critic
    from ..nets.r3gan import R3GANBody, R3GANGenerator
    from ..nets.style import StyleCritic, StyleGenerator
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    classes = tuple(range(digits))
    if net == "r3gan":
        wide = 2 * width
        model: Model = GAN(
            R3GANGenerator(64, 3, 28, (wide, width), patch=2),
            Critic(R3GANBody(3, 28, (width, wide), patch=2, features=wide), wide),
            64,
            RELATIVISTIC,
            (R1(gamma), R2(gamma)),
        )
    else:
        thin = max(1, width // 4)
        widths = (4 * thin, 4 * thin, 2 * thin, thin)
        generator = StyleGenerator((3, 28, 28), widths, latent=64, width=64, depth=2, rate=0.1)
        model = StyleGAN2(generator, StyleCritic((3, 28, 28), widths), penalties=(R1(gamma, 16),), mixing=0.5)
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.0, 0.99), schedule=Cosine(warmup=steps // 20, floor=0.1)),
        ema=EMA(0.99),
        heldout=HeldOut(every=max(1, steps // 6), metric="frechet", batch=250, limit=1000, also=Quality()),
        hooks=(SampleGrid(every=max(1, steps // 6), n=40, columns=10),),
        save_every=max(1, steps // 6),
        log_every=10,
    )
    train, test = Stacked(MNIST("train"), classes), Stacked(MNIST("test"), classes, count=10_000, seed=1)
    return Experiment(model, Data(Shuffled(train, batch), test, space()), trainer)
