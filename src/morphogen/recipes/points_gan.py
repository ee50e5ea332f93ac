"""GANs on points of the plane: do they reach every mode of 8 or 25 Gaussians?"""

from __future__ import annotations

from typing import Literal

from ..experiment import Data, Experiment


def points_gan(
    density: Literal["8-gaussians", "25-gaussians"] = "8-gaussians",
    game: Literal["r3gan", "wgan-gp", "non-saturating"] = "r3gan",
    steps: int = 1500,
    width: int = 64,
    depth: int = 6,
    batch: int = 256,
    lr: float = 4e-3,
    latent: int = 2,
) -> Experiment:
    """A generator learns 8 or 25 Gaussians of the plane from a critic, which reads the points in Fourier features.

    density: what to learn. game: r3gan plays in relativistic pairs with R1 and R2 on the critic, wgan-gp for the
    Wasserstein distance with a gradient penalty and two turns of the critic for one of the generator. steps: training
    steps, each a turn of the critic. width: units of the hidden layers. depth: hidden layers of the generator. batch:
    points a step. lr: the generator's largest learning rate; the critic's is half of it. latent: numbers that a point
    is made of.
    """
    from ..adversarial.gan import GAN
    from ..adversarial.losses import NON_SATURATING, RELATIVISTIC, WASSERSTEIN, Game
    from ..adversarial.penalties import R1, R2, GradientPenalty, Penalty
    from ..average import EMA
    from ..data.densities import Fresh
    from ..data.table import open
    from ..heldout import HeldOut, Quality
    from ..hooks import SampleGrid
    from ..nets.critic import Critic
    from ..nets.fourier import FourierFeatures
    from ..nets.mlp import MLP
    from ..optim import AdamW, Cosine
    from ..train import Trainer
    from ..watch import Watch

    parts = open(density)
    powers = (-2, -1, 0, 1)
    body = FourierFeatures(MLP(2 * (1 + 2 * len(powers)), width, width, 2), powers)
    over = steps * 9 // 10  # modes are lost where the penalties fall faster
    r1, r2 = R1(1.0, final=0.03, over=over), R2(1.0, final=0.03, over=over)
    plays: dict[str, tuple[Game, tuple[Penalty, ...], int]] = {
        "r3gan": (RELATIVISTIC, (r1, r2), 1),
        "wgan-gp": (WASSERSTEIN, (GradientPenalty(0.3),), 2),
        "non-saturating": (NON_SATURATING, (r1,), 1),
    }
    rules, penalties, critic_steps = plays[game]
    model = GAN(
        MLP(latent, 2, width, depth),
        Critic(body, width, activation="silu"),
        latent,
        rules,
        penalties,
        critic_steps=critic_steps,
    )
    schedule = Cosine(warmup=50, floor=0.05)
    optim = {
        "generator": AdamW(lr, betas=(0.0, 0.9), schedule=schedule),
        "critic": AdamW(lr / 2, betas=(0.0, 0.9), schedule=schedule),
    }
    trainer = Trainer(
        steps,
        optim=optim,
        ema=EMA(0.99),
        heldout=HeldOut(max(1, steps // 4), "coverage", "max", batch=250, limit=1000, also=Quality()),
        hooks=(SampleGrid(every=max(1, steps // 4), n=2048), Watch(every=max(1, steps // 6))),
        save_every=max(1, steps // 4),
        log_every=50,
    )
    return Experiment(model, Data(Fresh(parts.density, batch), parts.test, parts.space), trainer)
