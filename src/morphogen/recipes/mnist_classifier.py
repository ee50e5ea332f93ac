"""A classifier of MNIST's digits that learns in a minute.

Recorded in docs/runs/mnist-classifier: `morphogen train mnist-classifier` on two cores of an AMD EPYC, 62 s,
test accuracy 99.60 %.
"""

from __future__ import annotations

from ..experiment import Data, Experiment


def mnist_classifier(width: int = 24, epochs: float = 4.0, batch: int = 512, lr: float = 0.01) -> Experiment:
    """A whitened convolutional net (`SpeedNet`) on MNIST's 60,000 training digits, shifted by up to 2 pixels.

    width: channels of the first block; the others have two and four times as many. epochs: passes over the data.
    batch: images a step. lr: the largest learning rate.
    """
    from ..data.augment import Shift
    from ..data.mnist import MNIST, space
    from ..data.source import Shuffled, steps_of
    from ..heldout import HeldOut
    from ..nets.resnet import SpeedNet
    from ..optim import AdamW, Triangle
    from ..supervised import Classifier
    from ..train import Trainer

    net = SpeedNet(1, 10, (width, 2 * width, 4 * width))
    model = Classifier(net, smoothing=0.1, augment=(Shift(2),))
    steps = steps_of(epochs, 60_000, batch)
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.95), weight_decay=0.05, schedule=Triangle(peak=0.2)),
        dtype="bfloat16",
        heldout=HeldOut(every=max(1, steps // 4), metric="accuracy", better="max", batch=500),
        save_every=max(1, steps // 4),
    )
    return Experiment(model, Data(Shuffled(MNIST("train"), batch), MNIST("test"), space()), trainer)
