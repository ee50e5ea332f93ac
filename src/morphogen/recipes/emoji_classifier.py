"""A classifier of emoji by category, whose features judge translations of them.

Recorded in docs/runs/emoji-classifier: 35 s on a busy core of an AMD EPYC, test accuracy 69.8 %.
"""

from __future__ import annotations

from typing import Literal

from ..experiment import Data, Experiment


def emoji_classifier(
    style: Literal["twitter", "google"] = "twitter",
    size: Literal[32, 64] = 32,
    width: int = 16,
    epochs: float = 20.0,
    batch: int = 64,
    lr: float = 0.005,
) -> Experiment:
    """A whitened convolutional net (`SpeedNet`) on 1,011 emoji of one style, of eight categories.

    style: google or twitter. size: pixels of an edge. width: channels of the first block; the others have two and four
    times as many. epochs: passes over the data. batch: pictures a step. lr: the largest learning rate.
    """
    from ..data.augment import Shift
    from ..data.emoji import CATEGORIES, Emoji, space
    from ..data.source import Shuffled, steps_of
    from ..heldout import HeldOut
    from ..nets.resnet import SpeedNet
    from ..optim import AdamW, Triangle
    from ..supervised import Classifier
    from ..train import Trainer

    net = SpeedNet(3, len(CATEGORIES), (width, 2 * width, 4 * width))
    model = Classifier(net, smoothing=0.1, augment=(Shift(4),))
    steps = steps_of(epochs, 1011, batch)
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.95), weight_decay=0.05, schedule=Triangle(peak=0.2)),
        dtype="bfloat16",
        heldout=HeldOut(every=max(1, steps // 4), metric="accuracy", better="max", batch=126),
        save_every=max(1, steps // 4),
    )
    train, test = (Emoji(part, style=style, size=size) for part in ("train", "test"))
    return Experiment(model, Data(Shuffled(train, batch), test, space(size)), trainer)
