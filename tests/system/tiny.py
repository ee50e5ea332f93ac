"""A recipe so small that a test can train it: blurred digits by label, a classifier of them, and things that break."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen.adversarial.stylegan import StyleGAN2
from morphogen.data import Digits, Only, Pictures, Shuffled
from morphogen.heldout import HeldOut
from morphogen.hooks import SampleGrid
from morphogen.nets.style import StyleCritic, StyleGenerator
from morphogen.optim import AdamW


class Blurs(mg.Model):
    """x = mean of its class + noise of a learned width: a generator with one honest dial."""

    def __init__(self, scale: float = 1.0, poison: int = 0, slow: float = 0.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(10, 1, 8, 8) + 0.01 * torch.randn(10, 1, 8, 8))
        self.log_width = nn.Parameter(torch.zeros(()))
        self.scale, self.poison, self.slow = scale, poison, slow

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        if self.slow:
            import time

            time.sleep(self.slow)
        z = (batch["x"] - self.mean[batch["cond"]["label"]]) / self.log_width.exp()
        value = 0.5 * z.square().mean() + self.log_width
        if self.poison and self.training and self.step + 1 >= self.poison:
            value = value / 0.0
        return mg.Loss(value, {"width": self.log_width.detach().exp()})

    def sample(
        self,
        n: int,
        cond: Mapping[str, Tensor] | None = None,
        *,
        noise: mg.Noise | None = None,
        guidance: float = 1.0,
        kind: Literal["soft", "sharp"] = "soft",
    ) -> Tensor:
        """Blurred digits.

        guidance: how far from the mean of all classes. kind: soft or sharp edges.
        """
        noise = noise or mg.Noise(torch.randint(1 << 62, (n,)))
        label = cond["label"] if cond else noise.integers(10)
        x = self.mean.mean(0) + guidance * (self.mean[label] - self.mean.mean(0))
        x = x.sign() if kind == "sharp" else x
        return (x + 0.1 * self.scale * noise.normal(1, 8, 8)).clamp(-1, 1)

    def log_prob(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        assert cond is not None
        z = (x - self.mean[cond["label"]]) / self.log_width.exp()
        return (-0.5 * z.square() - self.log_width - 0.9189385332046727).flatten(1).sum(1)


def blurs(
    steps: int = 8,
    lr: float = 0.05,
    batch: int = 16,
    widths: tuple[int, ...] = (1, 2),
    kind: Literal["plain", "fancy"] = "plain",
    pictures: bool = True,
    note: str | None = None,
    poison: int = 0,
    slow: float = 0.0,
) -> mg.Experiment:
    """Blurred digits, in no time.

    steps: how many steps. lr: learning rate. batch: digits a step. widths: nothing, twice. kind: plain or fancy.
    pictures: whether to draw on the way. note: anything. poison: step from which the loss is infinite (0: never).
    slow: seconds that a step takes longer.
    """
    data = mg.Data(Shuffled(Digits("train"), batch), Digits("test"), Pictures((1, 8, 8), tuple("0123456789"), 17))
    hooks = (SampleGrid(every=4, n=10, wishes={"label": list(range(10))}, options={"guidance": 1.5}),)
    trainer = mg.Trainer(
        steps,
        optim=AdamW(lr),
        heldout=HeldOut(every=4, batch=360),
        hooks=hooks if pictures else (),
        save_every=4,
        log_every=2,
    )
    return mg.Experiment(Blurs(poison=poison, slow=slow), data, trainer)


def refuses(steps: int = 3) -> mg.Experiment:
    """Raises while it is built."""
    raise ValueError("cats are not dogs")


def returns_nothing() -> mg.Experiment:
    """Returns something else."""
    return {"model": 1}  # type: ignore[return-value]


def needs(width: int, steps: int = 1) -> mg.Experiment:
    """Has an argument without a default."""
    return blurs(steps=steps)


def collides(seed: int = 1) -> mg.Experiment:
    """Has an argument that `train` has too."""
    return blurs()


class Plane(mg.Model):
    """A linear autoencoder of digits, on the plane of their first principal components, found in one look."""

    def __init__(self, rank: int = 12, told: bool = False) -> None:
        super().__init__()
        self.rank, self.told = rank, told
        self.mean = nn.Parameter(torch.zeros(10, 64))
        self.axes = nn.Parameter(torch.zeros(rank, 64))

    def start(self, batch: mg.core.Batch) -> None:
        whole = Digits("train").take(torch.arange(1437))
        x, label = whole["x"].flatten(1), whole["cond"]["label"]
        with torch.no_grad():
            for k in range(10):
                self.mean[k] = x[label == k].mean(0) if self.told else x.mean(0)
            self.axes.copy_(torch.linalg.svd(x - self.mean[label], full_matrices=False).Vh[: self.rank])

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        return mg.Loss((self.decode(self.encode(batch["x"])) - batch["x"]).square().mean())

    def encode(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return (x.flatten(1) - self._mean(len(x), cond)) @ self.axes.T

    def decode(self, z: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return (z @ self.axes + self._mean(len(z), cond)).reshape(-1, 1, 8, 8)

    def _mean(self, n: int, cond: Mapping[str, Tensor] | None) -> Tensor:
        label = cond["label"] if cond and self.told else torch.zeros(n, dtype=torch.long)
        return self.mean[label]


def plane(told: bool = False, normal: int = -1, steps: int = 1) -> mg.Experiment:
    """A linear autoencoder of digits.

    told: whether it is told the class. normal: the only class that it sees (-1: all). steps: of training.
    """
    train = Digits("train") if normal < 0 else Only(Digits("train"), (normal,))
    data = mg.Data(Shuffled(train, 16), Digits("test"), Pictures((1, 8, 8), tuple("0123456789"), 17))
    return mg.Experiment(Plane(told=told), data, mg.Trainer(steps, optim=AdamW(1e-9), save_every=steps))


def style(steps: int = 2) -> mg.Experiment:
    """A StyleGAN2 of digits that has hardly begun.

    steps: of training.
    """
    nets = (
        StyleGenerator((1, 8, 8), (6, 4), latent=5, width=6, depth=1, classes=10),
        StyleCritic((1, 8, 8), (6, 4), classes=10),
    )
    data = mg.Data(Shuffled(Digits("train"), 8), Digits("test"), Pictures((1, 8, 8), tuple("0123456789"), 17))
    return mg.Experiment(StyleGAN2(*nets), data, mg.Trainer(steps, optim=AdamW(1e-3), save_every=steps))
