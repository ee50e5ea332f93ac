"""Digits drawn from their edges, or edges from digits: pix2pix on pairs made of MNIST.

Recorded on a busy core of an AMD EPYC in docs/runs/mnist-edges, 92 s: mean absolute error 0.0498 and Fréchet distance
0.78 on 2,000 test digits; the control in docs/runs/mnist-edges-unet, 58 s: 0.0488 and 0.76. The two are as good as one
another: edges at full size leave little open, and at half of it (`--coarse`) the critic has not paid either
(docs/log.md).
"""

from __future__ import annotations

from typing import Literal

from ..experiment import Data, Experiment


def mnist_edges(
    to: Literal["digits", "edges"] = "digits",
    coarse: bool = False,
    critic: bool = True,
    steps: int = 1500,
    width: int = 16,
    batch: int = 16,
    lr: float = 1e-3,
    halvings: int = 1,
    l1: float = 20.0,
    after: float = 0.5,
) -> Experiment:
    """Pix2pix on MNIST's digits and their edges: a U-Net and a critic of patches.

    to: what is to be made of the other. coarse: edges found at half the size, which leave more open. critic: without
    one the same U-Net learns by the absolute error alone, as the control. steps: training steps. width: channels of the
    U-Net's first level. batch: pairs a step. lr: the learning rate, which falls to 0 in the second half. halvings: of
    the critic, whose patches are of 16 or, with 2, of 34 pixels. l1: weight of the absolute error. after: the share of
    the steps that is without a critic.
    """
    from ..adversarial.translate import Pix2Pix
    from ..average import EMA
    from ..data.edges import coarse_edges, drawn_edges
    from ..data.mnist import MNIST, space
    from ..data.paired import Derived
    from ..data.source import Shuffled
    from ..heldout import HeldOut
    from ..hooks import Translations
    from ..nets.critic import PatchCritic
    from ..nets.translate import TranslationUNet
    from ..optim import AdamW, Linear
    from ..train import Trainer

    change = coarse_edges if coarse else drawn_edges
    train, test = (Derived(MNIST(part), change, reverse=to == "edges") for part in ("train", "test"))
    net = TranslationUNet(1, 1, width, 4, dropped=1)
    model = Pix2Pix(
        net,
        PatchCritic(2, width, halvings) if critic else None,
        (1, 28, 28),
        (1, 28, 28),
        l1=l1,
        after=round(after * steps),
    )
    optim = AdamW(lr, betas=(0.5, 0.99), schedule=Linear())
    trainer = Trainer(
        steps,
        optim={"generator": optim, "critic": optim},
        dtype="bfloat16",
        ema=EMA(0.99),
        heldout=HeldOut(every=max(1, steps // 4), metric="generator_loss.l1", batch=500, limit=2000),
        hooks=(Translations(every=max(1, steps // 4), n=12),),
        save_every=max(1, steps // 4),
        log_every=10,
    )
    return Experiment(model, Data(Shuffled(train, batch), test, space()), trainer)
