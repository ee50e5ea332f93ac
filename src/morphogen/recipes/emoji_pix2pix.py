"""Emoji of one style drawn in the other: pix2pix on 1,011 pairs of Google's and Twitter's pictures.

Recorded on a busy core of an AMD EPYC in docs/runs/emoji-pix2pix, 198 s: mean absolute error 0.352, edge F1 0.578 and
Fréchet distance 54.4 on 126 test emoji; the control in docs/runs/emoji-unet, 135 s: 0.331, 0.481 and 62.5. Flags and
faces come out well, most of the rest does not.
"""

from __future__ import annotations

from typing import Literal

from ..experiment import Data, Experiment


def emoji_pix2pix(
    to: Literal["twitter", "google"] = "twitter",
    critic: bool = True,
    size: Literal[32, 64] = 32,
    held: Literal["test", "valid"] = "test",
    steps: int = 2400,
    width: int = 32,
    batch: int = 8,
    lr: float = 1e-3,
    halvings: int = 1,
    l1: float = 20.0,
    after: float = 0.4,
) -> Experiment:
    """Pix2pix between the two styles of emoji: a U-Net and a critic of patches.

    to: the style that is to be made of the other. critic: without one the same U-Net learns by the absolute error
    alone, as the control. size: pixels of an edge. held: the part to measure on: settings are best chosen on `valid`.
    steps: training steps. width: channels of the U-Net's first level. batch: pairs a step. lr: the learning rate, which
    falls to 0 in the second half. halvings: of the critic, whose patches are of 16 or, with 2, of 34 pixels.
    l1: weight of the absolute error. after: the share of the steps that is without a critic.
    """
    from ..adversarial.translate import Pix2Pix
    from ..average import EMA
    from ..data.emoji import Emoji, space
    from ..data.source import Shuffled
    from ..heldout import HeldOut
    from ..hooks import Translations
    from ..nets.critic import PatchCritic
    from ..nets.translate import TranslationUNet
    from ..optim import AdamW, Linear
    from ..train import Trainer

    train, test = (Emoji(part, style=to, size=size) for part in ("train", held))
    shape = (3, size, size)
    net = TranslationUNet(3, 3, width, 5 if size == 64 else 4, dropped=1)
    model = Pix2Pix(
        net, PatchCritic(6, width, halvings) if critic else None, shape, shape, l1=l1, after=round(after * steps)
    )
    optim = AdamW(lr, betas=(0.5, 0.99), schedule=Linear())
    trainer = Trainer(
        steps,
        optim={"generator": optim, "critic": optim},
        dtype="bfloat16",
        ema=EMA(0.99),
        heldout=HeldOut(every=max(1, steps // 4), metric="generator_loss.l1", batch=126),
        hooks=(Translations(every=max(1, steps // 4), n=12),),
        save_every=max(1, steps // 4),
        log_every=10,
    )
    return Experiment(model, Data(Shuffled(train, batch), test, space(size)), trainer)
