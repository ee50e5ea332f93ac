"""A variational autoencoder of MNIST, dynamically binarised, with one layer of latents."""

from __future__ import annotations

from ..experiment import Data, Experiment


def mnist_vae(
    steps: int = 9000,
    width: int = 512,
    depth: int = 2,
    latent: int = 40,
    batch: int = 256,
    lr: float = 2e-3,
    beta: float = 1.0,
    k: int = 1,
) -> Experiment:
    """A VAE learns MNIST's digits, binarised anew each time they come, by residual nets of `width` units.

    steps: training steps. width, depth: of the encoder's and the decoder's residual blocks. latent: dimensions of z.
    batch: digits a step. lr: the largest learning rate. beta: factor on the KL (1 is the bound itself). k: importance
    samples of the IWAE's bound, with doubly reparameterised gradients; 1 trains by the bound of one.
    """
    from ..average import EMA
    from ..data.augment import Augmented, AugmentedOnce, Binarise
    from ..data.mnist import MNIST, space
    from ..data.source import Shuffled
    from ..heldout import HeldOut
    from ..hooks import ActiveUnits, SampleGrid
    from ..latent.likelihood import Bernoulli
    from ..latent.objective import ELBO, IWAE
    from ..latent.posterior import Diagonal
    from ..latent.vae import VAE
    from ..nets.mlp import ResidualMLP
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    encoder = ResidualMLP(784, 2 * latent, width, depth, last=0.1)
    decoder = ResidualMLP(latent, 784, width, depth)
    objective = ELBO(beta) if k == 1 else IWAE(k)
    model = VAE(Diagonal(encoder, latent), decoder, Bernoulli((1, 28, 28)), objective)
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
    return Experiment(model, Data(source, AugmentedOnce(MNIST("test"), (Binarise(),)), space()), trainer)
