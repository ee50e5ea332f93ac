"""A variational autoencoder of MNIST, dynamically binarised, with one layer of latents.

Recorded in docs/runs/mnist-vae: 580 s on one core of an AMD EPYC; 86.6 nats a test digit (1,000 of them, k = 5,000).
"""

from __future__ import annotations

from ..errors import UserError
from ..experiment import Data, Experiment


def mnist_vae(
    steps: int = 9000,
    width: int = 512,
    depth: int = 2,
    latent: int = 40,
    batch: int = 256,
    lr: float = 2e-3,
    beta: float = 1.0,
    warmup: float = 0.0,
    free: float = 0.0,
    k: int = 1,
    flow: int = 0,
) -> Experiment:
    """A VAE learns MNIST's digits, binarised anew each time they come, by residual nets of `width` units.

    steps: training steps. width, depth: of the encoder's and the decoder's residual blocks. latent: dimensions of z.
    batch: digits a step. lr: the largest learning rate. beta: factor on the KL (1 is the bound itself). warmup: share
    of the steps over which that factor rises from 0. free: nats that each dimension may say for nothing. k: importance
    samples of the IWAE's bound, which has no such factor; 1 trains by the bound of one. flow: layers of an inverse
    autoregressive flow behind the posterior; 0 leaves it Gaussian.
    """
    if k > 1 and (beta != 1 or warmup or free):
        raise UserError(f"The bound of k={k} importance samples has no KL to scale: leave beta, warmup and free out.")
    from ..average import EMA
    from ..data.augment import Augmented, AugmentedOnce, Binarise
    from ..data.mnist import MNIST, space
    from ..data.source import Shuffled
    from ..flows import iaf
    from ..heldout import HeldOut
    from ..hooks import ActiveUnits, SampleGrid
    from ..latent.likelihood import Bernoulli
    from ..latent.objective import ELBO, IWAE
    from ..latent.posterior import Diagonal, Flowed
    from ..latent.vae import VAE
    from ..nets.mlp import ResidualMLP
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    context = 2 * latent if flow else 0  # of what the encoder tells the flow
    encoder = ResidualMLP(784, 2 * latent + context, width, depth, last=0.1)
    decoder = ResidualMLP(latent, 784, width, depth)
    bijection = iaf(latent, flow, (width // 2,), context=context)
    posterior = Flowed(encoder, bijection, latent, context) if flow else Diagonal(encoder, latent)
    objective = IWAE(k, doubly=not flow) if k > 1 else ELBO(beta, warmup=round(warmup * steps), free=free)
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
    return Experiment(VAE(posterior, decoder, Bernoulli((1, 28, 28)), objective), data, trainer)
