"""A GAN in forty lines: two phases with their own optimisers (Goodfellow et al. 2014, non-saturating)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from morphogen import EMA, Data, Experiment, Loss, Model, Noise, Phase, Trainer
from morphogen.data.densities import Fresh, eight_gaussians
from morphogen.optim import AdamW


class GAN(Model):
    scaffold = ("critic",)

    def __init__(self, latent: int = 4, width: int = 64) -> None:
        super().__init__()
        self.latent = latent
        self.generator = nn.Sequential(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 1))

    def phases(self) -> list[Phase]:
        return [Phase(self.critic_loss, ("critic",)), Phase(self.generator_loss, ("generator",))]

    def critic_loss(self, batch) -> Loss:
        fake = self.sample(len(batch["x"]), noise=Noise(batch["key"])).detach()
        return Loss(F.softplus(-self.critic(batch["x"])).mean() + F.softplus(self.critic(fake)).mean())

    def generator_loss(self, batch) -> Loss:
        fake = self.sample(len(batch["x"]), noise=Noise(batch["key"]))
        return Loss(F.softplus(-self.critic(fake)).mean())

    def sample(self, n: int, cond=None, *, noise: Noise | None = None) -> Tensor:
        return self.generator((noise or Noise.seeded(0, n)).normal(self.latent))


def experiment(steps: int = 40) -> Experiment:
    optim = {"critic": AdamW(2e-3, betas=(0.5, 0.99)), "generator": AdamW(1e-3, betas=(0.5, 0.99))}
    trainer = Trainer(steps, optim=optim, ema=EMA(0.99), save_every=7, log_every=10)
    return Experiment(GAN(), Data(Fresh(eight_gaussians(), batch=32)), trainer)
