"""Codecs of the digits that a test can train, and recipes of a prior in their space."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen.autoregressive import Autoregressive
from morphogen.core import Noise
from morphogen.data import Digits, Encoded, Pictures, Shuffled
from morphogen.diffusion import rectified_flow
from morphogen.experiment import Experiment, frozen
from morphogen.latent import Latent
from morphogen.nets.causal import CausalTransformer
from morphogen.nets.mlp import MLP
from morphogen.optim import AdamW


class Halves(mg.Model):
    """A trained codec: x (B, 1, 8, 8) to rows and back. wide: a factor on the latents."""

    def __init__(self, dim: int = 6, wide: float = 1.0) -> None:
        super().__init__()
        self.latent_shape, self.wide = (dim,), wide
        self.down, self.up = nn.Linear(64, dim), nn.Linear(dim, 64)
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        return mg.Loss((self.decode(self.encode(batch["x"])) - batch["x"]).square().mean())

    def encode(self, x: Tensor) -> Tensor:
        return self.wide * self.down(x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z / self.wide).view(-1, 1, 8, 8).clamp(-1, 1)


class Drawing(Halves):
    """The same, with a law of its latents."""

    def infer(self, x: Tensor, cond: object = None, *, noise: Noise) -> tuple[Tensor, Tensor]:
        eps = noise.normal(*self.latent_shape, dtype=x.dtype)
        return self.encode(x) + 0.1 * eps, -0.5 * eps.square().sum(1)

    def log_likelihood(self, x: Tensor, z: Tensor, cond: object = None) -> Tensor:
        return -(self.decode(z) - x).square().flatten(1).sum(1)


class Signs(Halves):
    """The same, in three integers of an alphabet of four."""

    def __init__(self) -> None:
        super().__init__(6)
        self.codes, self.latent_shape = 4, (3,)

    def encode(self, x: Tensor) -> Tensor:
        bits = (self.down(x.flatten(1)) > 0).long().view(-1, 3, 2)
        return bits @ torch.tensor([2, 1])

    def decode(self, z: Tensor) -> Tensor:
        bits = torch.stack((z // 2, z % 2), -1).flatten(1)
        return super().decode(2.0 * bits - 1)

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        return mg.Loss(self.up.weight.square().mean() + self.down.weight.square().mean())


def of_codec(codec: mg.Model, steps: int = 12) -> Experiment:
    data = mg.Data(Shuffled(Digits("train"), 32), Digits("test"), Pictures((1, 8, 8), list("0123456789"), 17))
    return Experiment(codec, data, mg.Trainer(steps, optim=AdamW(3e-3), ema=mg.EMA(0.9)))


def prior(codec: mg.Model) -> mg.Model:
    if hasattr(codec, "codes"):
        net: nn.Module = CausalTransformer(4, (3,), width=16, depth=1, heads=2, classes=10)
        return Autoregressive(net, (3,), 4)
    net = MLP(6, 6, 16, 1, scalars=("t",), sinusoid=8, classes=10)
    return rectified_flow(net, (6,))


def experiment(codec: mg.Model, encoded: bool = True, draws: int = 1, steps: int = 6) -> Experiment:
    items = Encoded(Digits("train"), codec, draws=draws) if encoded else Digits("train")
    data = mg.Data(Shuffled(items, 16), Digits("test"), Pictures((1, 8, 8), list("0123456789"), 17))
    trainer = mg.Trainer(steps, optim=AdamW(1e-3), save_every=3, heldout=mg.HeldOut(every=6, batch=100, limit=100))
    return Experiment(Latent(codec, prior(codec)), data, trainer)


def files(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.glob("checkpoints/*6/*.safetensors")}


def codec(steps: int = 12) -> Experiment:
    """A codec of the digits."""
    return of_codec(Halves(), steps)


def prior_of(codec: Path) -> Experiment:
    """A prior in the space of a codec's run.

    codec: the run.
    """
    return experiment(frozen(codec, modules=[sys.modules[__name__]]))
