"""Class-conditional flow matching on MNIST with a diffusion transformer, for one GPU.

Not run at its size: no GPU has come yet.
"""

from __future__ import annotations

from ..experiment import Data, Experiment


def mnist_dit(
    steps: int = 20_000, width: int = 384, depth: int = 12, batch: int = 256, lr: float = 3e-4, guidance: float = 1.5
) -> Experiment:
    """A DiT-S/2 learns to draw MNIST's digits as asked. It resumes from where it was stopped.

    steps: training steps. width, depth: of the transformer. batch: digits a step. lr: the largest learning rate.
    guidance: of the pictures drawn on the way; 1 is none.
    """
    from ..average import EMA
    from ..data.mnist import MNIST, space
    from ..data.source import Shuffled
    from ..diffusion import flow_matching
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.dit import DiT
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    net = DiT(1, width=width, depth=depth, heads=max(1, width // 64), patch=2, classes=10)
    model = flow_matching(net, (1, 28, 28))
    options = {"guidance": guidance, "solver": "dpmpp-2m", "steps": 25}
    grid = SampleGrid(
        every=max(500, steps // 20), n=40, wishes={"label": [*range(10)] * 4}, options=options, columns=10
    )
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), schedule=Cosine(warmup=min(1000, steps // 20))),
        clip=1.0,
        dtype="bfloat16",
        ema=EMA(0.9995),
        heldout=HeldOut(every=max(500, steps // 20), batch=500, limit=2000),
        hooks=(grid,),
        save_every=500,
        log_every=20,
    )
    return Experiment(model, Data(Shuffled(MNIST("train"), batch), MNIST("test"), space()), trainer)
