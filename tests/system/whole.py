"""A recipe in no time whose run leaves all that a run can: an asset, frozen weights, snapshots, pictures, measures.

`python -m tests.system.syscalls` and its siblings break its runs; the asset is a file beside this one, or beside the
copy of this file that they train.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen.data import Digits, Pictures, Shuffled
from morphogen.optim import AdamW


class Whole(mg.Model):
    """Class means, scaled by a file's word and by weights that nothing trains."""

    def __init__(self, words: mg.Asset) -> None:
        super().__init__()
        self.words = words.path.read_text(encoding="utf-8")
        self.mean = nn.Parameter(0.01 * torch.randn(10, 1, 8, 8))
        self.scale = nn.Parameter(torch.full((8,), float(len(self.words))), requires_grad=False)

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        z = batch["x"] - self.mean[batch["cond"]["label"]] * self.scale
        return mg.Loss(z.square().mean(), {"width": self.mean.detach().square().mean()})

    def sample(self, n: int, cond: Mapping[str, Tensor] | None = None, *, noise: mg.Noise | None = None) -> Tensor:
        noise = noise or mg.Noise.seeded(0, n)
        return (self.mean[noise.integers(10)] * self.scale + 0.1 * noise.normal(1, 8, 8)).clamp(-1, 1)


def whole(steps: int = 4, save_every: int = 2, keep: int = 1) -> mg.Experiment:
    """Class means of the digits.

    steps: how many. save_every, keep: checkpoints.
    """
    data = mg.Data(Shuffled(Digits("train"), 16), Digits("test"), Pictures((1, 8, 8), tuple("0123456789"), 17))
    trainer = mg.Trainer(
        steps,
        optim=AdamW(0.05),
        ema=[mg.EMA(0.9), mg.PowerEMA((0.1,), snapshots=1)],
        heldout=mg.HeldOut(every=2, batch=360),
        hooks=(mg.SampleGrid(every=2, n=4),),
        save_every=save_every,
        keep=keep,
        log_every=1,
    )
    return mg.Experiment(Whole(mg.Asset(Path(__file__).with_name("words.txt"))), data, trainer)
