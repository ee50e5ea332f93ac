"""Stacked digits of 8 x 8 pixels: 1,000 modes that a core can learn to reach."""

from __future__ import annotations

from ..experiment import Data, Experiment


def digits_stacked(
    steps: int = 6000, width: int = 32, batch: int = 64, lr: float = 1e-3, gamma: float = 1.0, latent: int = 64
) -> Experiment:
    """R3GAN, told nothing, learns to draw three small digits at once, as red, green and blue: 1,000 modes.

    steps: training steps. width: channels of the finest maps, half of the coarsest. batch: pictures a step. lr: the
    largest learning rate. gamma: weight of the penalties at first, a tenth of it from the middle on. latent: numbers
    that a picture is made of. Measured by `morphogen evaluate RUN --judge RUN`, the judge being a run of
    digits-classifier.
    """
    from ..adversarial.gan import GAN
    from ..adversarial.losses import RELATIVISTIC
    from ..adversarial.penalties import R1, R2
    from ..average import EMA
    from ..data.digits import Digits
    from ..data.source import Shuffled
    from ..data.stacked import Stacked, space
    from ..heldout import HeldOut, Quality
    from ..hooks import SampleGrid
    from ..nets.critic import Critic
    from ..nets.r3gan import R3GANBody, R3GANGenerator
    from ..optim import AdamW, Cosine
    from ..train import Trainer
    from ..watch import Watch

    wide, half = 2 * width, max(1, steps // 2)
    model = GAN(
        R3GANGenerator(latent, 3, 8, (wide, width), patch=1),
        Critic(R3GANBody(3, 8, (width, wide), patch=1, features=wide), wide),
        latent,
        RELATIVISTIC,
        (R1(gamma, final=gamma / 10, over=half), R2(gamma, final=gamma / 10, over=half)),
    )
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.0, 0.99), schedule=Cosine(warmup=steps // 20, floor=0.1)),
        ema=EMA(0.99),
        heldout=HeldOut(every=max(1, steps // 6), metric="frechet", batch=250, limit=1000, also=Quality()),
        hooks=(SampleGrid(every=max(1, steps // 6), n=40, columns=10), Watch(every=max(1, steps // 6))),
        save_every=max(1, steps // 6),
        log_every=50,
    )
    train, test = Stacked(Digits("train")), Stacked(Digits("test"), count=10_000, seed=1)
    return Experiment(model, Data(Shuffled(train, batch), test, space(8)), trainer)
