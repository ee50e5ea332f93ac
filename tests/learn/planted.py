"""Six trainings with a failure planted in each, and six healthy ones: what the watch is tried on.

Each is a function of nothing but its net's first weights (torch's generator) and the seed that it is trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen.adversarial.gan import GAN
from morphogen.adversarial.losses import MINIMAX, NON_SATURATING, RELATIVISTIC, WASSERSTEIN, Game
from morphogen.adversarial.penalties import R1, R2, GradientPenalty
from morphogen.core import Net, Noise, Phase
from morphogen.data.densities import Drawn, Fresh, Gaussians, eight_gaussians
from morphogen.data.digits import Digits
from morphogen.data.items import Stored
from morphogen.data.source import Shuffled
from morphogen.diffusion.presets import flow_matching
from morphogen.latent.likelihood import Gaussian
from morphogen.latent.posterior import Diagonal
from morphogen.latent.vae import VAE
from morphogen.nets.critic import Critic
from morphogen.nets.dcgan import DCGANBody, DCGANGenerator
from morphogen.nets.mlp import MLP
from morphogen.optim import SGD, AdamW
from morphogen.watch import Watch

LATENT = 8


def betas(lr: float) -> AdamW:
    return AdamW(lr, betas=(0.5, 0.99))


def trainer(
    steps: int, optim, *, looks: int = 5, log_every: int = 10, ema: float | None = None, options=None
) -> mg.Trainer:
    return mg.Trainer(
        steps,
        optim=optim,
        ema=None if ema is None else mg.EMA(ema),
        hooks=(Watch(every=steps // looks, options=options),),
        save_every=steps,
        log_every=log_every,
    )


def ring(batch: int = 128) -> mg.Data:
    density = eight_gaussians()
    return mg.Data(Fresh(density, batch), Drawn(density, 2000))


def nets(width: int = 64, depth: int = 2, activation: str = "silu") -> tuple[Net, Net]:
    return MLP(LATENT, 2, width, depth, activation=activation), MLP(2, 1, width, depth, activation=activation)


# ---- planted -------------------------------------------------------------------------------------------------------


def fast_critic(steps: int = 400, times: float = 20.0, game: Game = MINIMAX) -> mg.Experiment:
    """The critic's learning rate times 20, in the first of all games. In 16 dimensions it can be sure."""
    corners = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).sign()
    density = Gaussians(corners.tolist(), 0.3)
    model = GAN(MLP(LATENT, 16, 64, 2), MLP(16, 1, 64, 2), LATENT, game)
    data = mg.Data(Fresh(density, 128), Drawn(density, 2000))
    optim = {"generator": betas(5e-4), "critic": betas(5e-4 * times)}
    return mg.Experiment(model, data, trainer(steps, optim))


def even_critic(steps: int = 400) -> mg.Experiment:
    """The same with one learning rate."""
    return fast_critic(steps, 1.0)


class Untrained(GAN):
    """Its critic has no turn."""

    def phases(self) -> list[Phase]:
        return [Phase(self.generator_loss, ("generator",))]


def still_critic(steps: int = 200) -> mg.Experiment:
    """No update of the critic."""
    generator, critic = nets()
    return mg.Experiment(Untrained(generator, critic, LATENT, NON_SATURATING), ring(), trainer(steps, betas(1e-3)))


def zero_critic(steps: int = 200) -> mg.Experiment:
    """The critic's learning rate is 0."""
    generator, critic = nets()
    optim = {"generator": betas(1e-3), "critic": betas(0.0)}
    return mg.Experiment(GAN(generator, critic, LATENT, NON_SATURATING), ring(), trainer(steps, optim))


def one_mode(steps: int = 200) -> mg.Experiment:
    """Data of one mode of the eight that held-out data have."""
    whole = eight_gaussians()
    generator, critic = nets()
    model = GAN(generator, critic, LATENT, RELATIVISTIC, (R1(0.1), R2(0.1)))
    data = mg.Data(Fresh(Gaussians(whole.means[:1], whole.std), 128), Drawn(whole, 2000))
    return mg.Experiment(model, data, trainer(steps, betas(1e-3)))


class Deaf(Net):
    """A generator whose units are all switched off: what comes out is its last bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(LATENT, 64), nn.Linear(64, 2)
        nn.init.constant_(self.first.bias, -100.0)

    def forward(self, z: Tensor, cond) -> Tensor:
        return self.last(self.first(z).relu())


def dead_generator(steps: int = 200) -> mg.Experiment:
    """A generator that cannot hear its noise."""
    model = GAN(Deaf(), nets()[1], LATENT, RELATIVISTIC, (R1(0.1), R2(0.1)))
    return mg.Experiment(model, ring(), trainer(steps, betas(1e-3)))


class Numbered(Stored):
    """Points of a density whose label is which item this is, or of those held out, any number."""

    def __init__(self, n: int, seed: int, shuffled: bool) -> None:
        self.n, self.seed, self.shuffled = n, seed, shuffled

    def read(self):
        x = eight_gaussians().sample(self.n, noise=Noise.seeded(self.seed, self.n))
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed))
        return {"x": x, "cond": {"label": order if self.shuffled else torch.arange(self.n)}}


def leaky(steps: int = 300, items: int = 256) -> mg.Experiment:
    """The condition is the number of the item: it says which point is meant, of those in training alone."""
    generator = MLP(LATENT, 2, 64, 2, classes=items)
    critic = Critic(MLP(2, 64, 64, 2), 64, classes=items)
    model = GAN(generator, critic, LATENT, RELATIVISTIC, (R1(0.01), R2(0.01)))
    data = mg.Data(Shuffled(Numbered(items, 1, False), 128), Numbered(items, 2, True))
    return mg.Experiment(model, data, trainer(steps, betas(2e-3)))


class Moved(Net):
    """z and a place that is learned."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.place, self.std = nn.Parameter(torch.randn(2)), std

    def forward(self, z: Tensor, cond) -> Tensor:
        return self.place + self.std * z[:, :2]


class Slope(Net):
    """A critic that is a plane."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor, cond) -> Tensor:
        return x @ self.slope


def bilinear(steps: int = 400) -> mg.Experiment:
    """The game θ·ψ, in which gradient descent goes round and round."""
    model = GAN(Moved(1.0), Slope(), LATENT, WASSERSTEIN)
    density = Gaussians([(0.0, 0.0)], 1.0)
    data = mg.Data(Fresh(density, 512), Drawn(density, 2000))
    return mg.Experiment(model, data, trainer(steps, SGD(0.05, momentum=0.0), log_every=5))


PLANTED = {
    "critic too strong": fast_critic,
    "critic does not learn": still_critic,
    "mode collapse of the data": one_mode,
    "dead gradients": dead_generator,
    "label leak": leaky,
    "oscillation": bilinear,
}

# ---- healthy -------------------------------------------------------------------------------------------------------


def r3_points(steps: int = 300) -> mg.Experiment:
    generator, critic = nets()
    model = GAN(generator, critic, LATENT, RELATIVISTIC, (R1(0.1), R2(0.1)))
    return mg.Experiment(model, ring(), trainer(steps, betas(1e-3), ema=0.99))


def wgan_points(steps: int = 300) -> mg.Experiment:
    generator, critic = nets()
    model = GAN(generator, critic, LATENT, WASSERSTEIN, (GradientPenalty(1.0),), critic_steps=2)
    return mg.Experiment(model, ring(), trainer(steps, betas(1e-3)))


def labelled_points(steps: int = 300) -> mg.Experiment:
    generator = MLP(LATENT, 2, 64, 2, classes=8)
    critic = Critic(MLP(2, 64, 64, 2), 64, classes=8)
    model = GAN(generator, critic, LATENT, RELATIVISTIC, (R1(0.1), R2(0.1)))
    return mg.Experiment(model, ring(), trainer(steps, betas(1e-3), ema=0.99))


def dcgan_digits(steps: int = 200) -> mg.Experiment:
    generator, body = DCGANGenerator(LATENT, 1, 8, 16, 2), DCGANBody(1, 8, 16, 2)
    model = GAN(generator, Critic(body, body.features), LATENT, NON_SATURATING, (R1(1.0),))
    data = mg.Data(Shuffled(Digits("train"), 64), Digits("test"))
    return mg.Experiment(model, data, trainer(steps, betas(1e-3), ema=0.99))


def vae_digits(steps: int = 300) -> mg.Experiment:
    model = VAE(Diagonal(MLP(64, 32, 128, 2), 16), MLP(16, 64, 128, 2), Gaussian((1, 8, 8), 0.4, learned=True))
    data = mg.Data(Shuffled(Digits("train"), 64), Digits("test"))
    return mg.Experiment(model, data, trainer(steps, AdamW(2e-3), ema=0.99))


def diffusion_points(steps: int = 300) -> mg.Experiment:
    model = flow_matching(MLP(2, 2, 64, 3, scalars=("t",), sinusoid=32), (2,), drop=0.0)
    return mg.Experiment(
        model, ring(), trainer(steps, AdamW(2e-3), ema=0.99, options={"solver": "dpmpp-2m", "steps": 10})
    )


HEALTHY = {
    "points by R3GAN": r3_points,
    "points by WGAN-GP": wgan_points,
    "labelled points": labelled_points,
    "digits by DCGAN": dcgan_digits,
    "digits by a VAE": vae_digits,
    "points by flow matching": diffusion_points,
}
