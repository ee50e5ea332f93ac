"""A denoising autoencoder of one class alone, so that it rebuilds nothing else well: see `morphogen anomaly`."""

from __future__ import annotations

from typing import Literal

from ..experiment import Data, Experiment


def one_class(
    data: Literal["mnist", "fashion-mnist", "pneumoniamnist"] = "mnist",
    normal: int = 0,
    steps: int = 1000,
    width: int = 512,
    depth: int = 1,
    latent: int = 12,
    noise: float = 1.0,
    batch: int = 128,
    lr: float = 2e-3,
) -> Experiment:
    """A denoising autoencoder learns the items of one class alone; those held out are of all classes.

    data: which data set. normal: the number of the class that it sees. steps: of training. width, depth: of the
    residual blocks of encoder and decoder. latent: numbers of the code. noise: deviation of what is added to its input,
    of pixels in [-1, 1]. batch: items a step. lr: the largest learning rate.
    """
    from ..data import table
    from ..data.augment import WhiteNoise
    from ..data.only import Only
    from ..data.source import Shuffled
    from ..latent.autoencoder import Autoencoder
    from ..latent.likelihood import Gaussian
    from ..nets.mlp import ResidualMLP
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    parts = table.open(data)
    size = parts.space.shape[-1] * parts.space.shape[-2]
    model = Autoencoder(
        ResidualMLP(size, latent, width, depth),
        ResidualMLP(latent, size, width, depth),
        Gaussian(parts.space.shape),
        latent,
        corrupt=(WhiteNoise(noise),) if noise else (),
    )
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), schedule=Cosine(warmup=steps // 20)),
        clip=50.0,
        save_every=steps,
        log_every=50,
    )
    source = Shuffled(Only(parts.train, (normal,)), batch)
    return Experiment(model, Data(source, parts.test, parts.space), trainer)
