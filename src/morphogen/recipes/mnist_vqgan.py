"""MNIST by codecs that must pass a critic: VQGAN, and the autoencoder of latent diffusion.

Recorded with an extractor on a busy core of an AMD EPYC, in docs/runs/mnist-vqgan (16 codes of 128 a digit, 385 s) and
docs/runs/mnist-kl (64 numbers a digit, 251 s): mean absolute errors of 0.107 and 0.078 on 2,000 test digits with values
in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..experiment import Data, Experiment


def mnist_vqgan(
    codec: Literal["vq", "kl"] = "vq",
    extractor: Path | None = None,
    steps: int = 800,
    after: float = 0.25,
    width: int = 32,
    codes: int = 128,
    batch: int = 64,
    lr: float = 1e-3,
) -> Experiment:
    """VQGAN, or with --codec kl the KL autoencoder of latent diffusion, on MNIST: 4x4 codes, or 4x4 vectors of 4.

    codec: what the latents are. extractor: a finished run of mnist-classifier, whose eyes compare pictures; without one
    pixels alone are compared. steps: training steps. after: the share of them that is without a critic. width: channels
    of the encoder's first level. codes: size of the code book. batch: digits a step. lr: the largest learning rate.
    """
    from ..data.mnist import MNIST, space
    from ..data.source import Shuffled
    from ..experiment import frozen
    from ..heldout import HeldOut
    from ..latent.perceptual import Perceptual
    from ..latent.quantise import EMACodeBook
    from ..latent.vq import VQVAE, absolute
    from ..latent.vqgan import VQGAN, KLAutoencoder
    from ..nets.autoencoder import Decoder, Encoder
    from ..nets.critic import PatchCritic
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    widths, dim = (width, 2 * width, 2 * width), 16 if codec == "vq" else 4
    encoder = Encoder(1, dim if codec == "vq" else 2 * dim, widths=widths, depth=1, patch=2, groups=8)
    decoder = Decoder(1, dim, widths=widths, depth=1, patch=2, groups=8)
    made = (
        VQVAE(encoder, decoder, EMACodeBook(codes, dim), (1, 28, 28), error=absolute)
        if codec == "vq"
        else KLAutoencoder(encoder, decoder, dim, (1, 28, 28))
    )
    model = VQGAN(
        made,
        PatchCritic(1, width, 2),
        None if extractor is None else Perceptual(frozen(extractor)),
        weight=0.5,
        after=round(after * steps),
    )
    optim = {
        "codec": AdamW(lr, betas=(0.5, 0.9), schedule=Cosine(warmup=steps // 20)),
        "critic": AdamW(lr / 5, betas=(0.5, 0.9)),  # as fast as the codec it would win within a hundred steps
    }
    trainer = Trainer(
        steps,
        optim=optim,
        dtype="bfloat16",
        heldout=HeldOut(every=max(1, steps // 4), metric="autoencoder_loss.loss", batch=500, limit=2000),
        save_every=max(1, steps // 4),
        log_every=10,
    )
    return Experiment(model, Data(Shuffled(MNIST("train"), batch), MNIST("test"), space()), trainer)
