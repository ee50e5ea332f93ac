"""k-means as an `Update`: weights that change by their own rule, no gradient (MacQueen 1967's online form)."""

from __future__ import annotations

import torch
from torch import Tensor

from morphogen import Data, Experiment, Loss, Model, Trainer, Update
from morphogen.core import everyone
from morphogen.data.densities import Fresh, eight_gaussians


class KMeans(Model):
    def __init__(self, k: int = 8) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(k, 2))
        self.register_buffer("seen", torch.ones(k))

    def phases(self) -> list[Update]:
        return [Update(self.assign)]

    def start(self, batch) -> None:
        self.centres.copy_(batch["x"][: len(self.centres)])

    def assign(self, batch) -> Loss:
        distance = torch.cdist(batch["x"], self.centres)  # (B, k)
        nearest = distance.argmin(1)
        counts = everyone.sum(torch.bincount(nearest, minlength=len(self.centres)).to(self.seen))
        sums = everyone.sum(torch.zeros_like(self.centres).index_add_(0, nearest, batch["x"]))
        self.seen += counts
        self.centres += (sums - counts[:, None] * self.centres) / self.seen[:, None]
        return Loss(distance.amin(1).square().mean(), seen={"cluster": nearest})

    def encode(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres).argmin(1)

    def decode(self, z: Tensor) -> Tensor:
        return self.centres[z]


def experiment(steps: int = 40) -> Experiment:
    return Experiment(KMeans(), Data(Fresh(eight_gaussians(), batch=64)), Trainer(steps, save_every=7, log_every=10))
