"""A ladder variational autoencoder of MNIST, dynamically binarised: two layers of latents, or more.

Recorded in docs/runs/mnist-ladder: 741 s on one core of an AMD EPYC; 84.5 nats a test digit (1,000 of them, k = 5,000).
"""

from __future__ import annotations

from ..experiment import Data, Experiment


def mnist_ladder(
    steps: int = 8000,
    width: int = 512,
    depth: int = 2,
    latents: tuple[int, ...] = (40, 20),
    batch: int = 256,
    lr: float = 2e-3,
    warmup: float = 0.2,
) -> Experiment:
    """A ladder VAE learns MNIST's digits, binarised anew each time they come, by residual nets of `width` units.

    steps: training steps. width, depth: of the residual blocks nearest to the picture; those between latents are half
    as wide and one block deep. latents: dimensions of each layer, that nearest to the picture first. batch: digits a
    step. lr: the largest learning rate. warmup: share of the steps over which the factor on the KL rises from 0.
    """
    from ..average import EMA
    from ..data.augment import Augmented, AugmentedOnce, Binarise
    from ..data.mnist import MNIST, space
    from ..data.source import Shuffled
    from ..heldout import HeldOut
    from ..hooks import ActiveUnits, SampleGrid
    from ..latent.hierarchical import Ladder, Rung
    from ..latent.likelihood import Bernoulli
    from ..latent.objective import ELBO
    from ..latent.vae import VAE
    from ..nets.mlp import ResidualMLP
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    rungs = []
    for level, size in enumerate(latents):
        above = latents[level + 1] if level + 1 < len(latents) else 0
        up = ResidualMLP(width, width, width // 2, 1) if level else ResidualMLP(784, width, width, depth)
        down = ResidualMLP(above, 2 * size, width // 2, 1, last=0.1) if above else None
        rungs.append(Rung(up, width, size, down))
    decoder = ResidualMLP(latents[0], 784, width, depth)
    objective = ELBO(warmup=round(warmup * steps))
    now_and_then = max(1, steps // 5)
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), schedule=Cosine(warmup=steps // 20)),
        clip=50.0,
        dtype="bfloat16",
        ema=EMA(0.9995),
        heldout=HeldOut(every=now_and_then, metric="elbo", better="max", batch=500, limit=2000),
        hooks=(SampleGrid(every=now_and_then, n=40, options={"mean": True}, columns=10), ActiveUnits(now_and_then)),
        save_every=now_and_then,
        log_every=50,
    )
    source = Augmented(Shuffled(MNIST("train"), batch), (Binarise(),))
    data = Data(source, AugmentedOnce(MNIST("test"), (Binarise(),)), space())
    return Experiment(VAE(Ladder(*rungs), decoder, Bernoulli((1, 28, 28)), objective), data, trainer)
