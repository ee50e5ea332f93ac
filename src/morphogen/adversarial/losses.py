r"""What a generator and its critic play for. Pure functions of the critic's scores D(x) and D(G(z)), any shape.

    minimax         critic: E softplus(-D(x)) + E softplus(D(G(z)))      generator: -E softplus(D(G(z)))
    non-saturating                      the same                         generator: E softplus(-D(G(z)))
    least squares   critic: ½ E (D(x) - 1)² + ½ E (D(G(z)) + 1)²         generator: ½ E (D(G(z)) - 1)²
    chi square                          the same                         generator: ½ E D(G(z))²
    hinge           critic: E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))   generator: -E D(G(z))
    Wasserstein     critic: E D(G(z)) - E D(x), D Lipschitz              generator: -E D(G(z))
    relativistic    critic: E softplus(D(G(z)) - D(x)), in pairs         generator: E softplus(D(x) - D(G(z)))
    … average       each score against the mean of the other kind        the same with real and made exchanged
    f-GAN           critic: E f*(g(D(G(z)))) - E g(D(x))                 generator: -E f*(g(D(G(z))))

A score is a logit of "real"; each function gives the mean that is minimised.

Goodfellow et al. 2014, "Generative adversarial networks", arXiv:1406.2661; Mao et al. 2017, "Least squares GANs",
arXiv:1611.04076; Lim & Ye 2017, "Geometric GAN", arXiv:1705.02894; Arjovsky, Chintala & Bottou 2017, "Wasserstein GAN",
arXiv:1701.07875; Jolicoeur-Martineau 2018, "The relativistic discriminator", arXiv:1807.00734; Huang et al. 2024, "The
GAN is dead; long live the GAN!" (R3GAN), arXiv:2501.05441; Nowozin, Cseke & Tomioka 2016, "f-GAN", arXiv:1606.00709.
Departures: least squares aims at -1 and 1, not 0 and 1, and the KL's activation is 1 + v, so that 0 is the border of
real and made in every game that has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import everyone
from ..errors import unknown
from ..spec import Remembers

Side = Callable[[Tensor, Tensor], Tensor]  # of the scores of real and of made x


def non_saturating(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: cross entropy of "real" and "made"."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss: -log of the critic's probability of "real"."""
    return F.softplus(-fake).mean()


def minimax_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss: log of the critic's probability of "made", minus the critic's own loss of it."""
    return -F.softplus(fake).mean()


def least_squares(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: half the squared distance to 1 of real, to -1 of made."""
    return 0.5 * (real - 1).square().mean() + 0.5 * (fake + 1).square().mean()


def least_squares_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss: half the squared distance to what the critic wants of real."""
    return 0.5 * (fake - 1).square().mean()


def chi_square_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss: half the squared score, so that with ½ E D(x)² the game is ½ χ²(p + q ‖ 2q)."""
    return 0.5 * fake.square().mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: scores that are right by more than 1 say nothing."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss: minus the score. So it is in the Wasserstein game."""
    return -fake.mean()


def wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: minus the gap between real and made, which is W1 for the best 1-Lipschitz critic."""
    return fake.mean() - real.mean()


def relativistic(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: cross entropy of which one of a pair is real. As many made x as real ones."""
    return F.softplus(fake - real).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss: the same of the other one."""
    return F.softplus(real - fake).mean()


def relativistic_average(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: cross entropy of "more real than the mean made x", and the other way round."""
    above, below = (everyone.mean(scores.mean()) for scores in (fake, real))
    return F.softplus(above - real).mean() + F.softplus(fake - below).mean()


def relativistic_average_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss: the same with real and made exchanged."""
    return relativistic_average(fake, real)


# ---- the game ------------------------------------------------------------------------------------------------------


class Game(Remembers):
    """The two sides of a game, both of the scores of real and of made x.

    compares: whether the generator's side reads the real scores too; where it does not, they may be anything.
    border:   whether a score of 0 is the border of real and made; without, only differences of scores say something.
    mixes:    whether a sample's loss depends on its whole batch.
    """

    def __init__(
        self, critic: Side, generator: Side, *, compares: bool = False, border: bool = True, mixes: bool = False
    ) -> None:
        self.critic, self.generator = critic, generator
        self.compares, self.border, self.mixes = compares, border, mixes

    @torch.no_grad()
    def right(self, real: Tensor, fake: Tensor) -> Tensor:
        """The share of scores on their side of 0, or of pairs in the right order where there is no such border."""
        if not self.border:
            return (real > fake).to(real.dtype).mean()
        return 0.5 * ((real > 0).to(real.dtype).mean() + (fake < 0).to(fake.dtype).mean())

    def said(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """What every critic logs: both mean scores, and the share that is right."""
        return {"real": real.detach().mean(), "fake": fake.detach().mean(), "right": self.right(real, fake)}


NON_SATURATING = Game(non_saturating, non_saturating_generator)
MINIMAX = Game(non_saturating, minimax_generator)
LEAST_SQUARES = Game(least_squares, least_squares_generator)
CHI_SQUARE = Game(least_squares, chi_square_generator)
HINGE = Game(hinge, hinge_generator)
WASSERSTEIN = Game(wasserstein, hinge_generator, border=False)
RELATIVISTIC = Game(relativistic, relativistic_generator, compares=True, border=False)
RELATIVISTIC_AVERAGE = Game(
    relativistic_average, relativistic_average_generator, compares=True, border=False, mixes=True
)


# ---- f-GAN ---------------------------------------------------------------------------------------------------------


class Divergence(NamedTuple):
    """D_f(p ‖ q) = E_q f(p/q) = max over v of E_p g(v) - E_q f*(g(v)), its bound for any scores v.

    f: convex, f(1) = 0. activation: g, onto the domain of f*, with g(0) = f'(1). dual: f*(g(v)), f* the conjugate.
    """

    f: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    dual: Callable[[Tensor], Tensor]


DIVERGENCES: Mapping[str, Divergence] = {
    "kl": Divergence(lambda u: torch.xlogy(u, u), lambda v: 1 + v, torch.exp),
    "reverse-kl": Divergence(lambda u: -u.log(), lambda v: -(-v).exp(), lambda v: v - 1),
    "pearson": Divergence(lambda u: (u - 1) ** 2, lambda v: v, lambda v: v**2 / 4 + v),
    "hellinger": Divergence(lambda u: (u.sqrt() - 1) ** 2, lambda v: 1 - (-v).exp(), lambda v: v.exp() - 1),
    "js": Divergence(  # twice the Jensen-Shannon divergence
        lambda u: torch.xlogy(u, u) - (u + 1) * ((u + 1) / 2).log(),
        lambda v: math.log(2) - F.softplus(-v),
        lambda v: F.softplus(v) - math.log(2),
    ),
    "total-variation": Divergence(lambda u: 0.5 * (u - 1).abs(), lambda v: 0.5 * v.tanh(), lambda v: 0.5 * v.tanh()),
}


class FGame(Game):
    """The game of an f-divergence D_f(data ‖ made).

    divergence: a name in DIVERGENCES. saturating: the generator minimises the bound itself; otherwise -E g(D(G(z))),
    whose gradient is large where the critic is sure (Nowozin et al., section 3.2).
    """

    def __init__(self, divergence: str, *, saturating: bool = True) -> None:
        if divergence not in DIVERGENCES:
            raise unknown("divergence", divergence, DIVERGENCES)
        self.f = DIVERGENCES[divergence]
        super().__init__(self._critic, self._saturating if saturating else self._plain)

    def bound(self, real: Tensor, fake: Tensor) -> Tensor:
        """The lower bound of D_f(p ‖ q) by scores of x ~ p and of x ~ q."""
        return self.f.activation(real).mean() - self.f.dual(fake).mean()

    def _critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return -self.bound(real, fake)

    def _saturating(self, real: Tensor, fake: Tensor) -> Tensor:
        return -self.f.dual(fake).mean()

    def _plain(self, real: Tensor, fake: Tensor) -> Tensor:
        return -self.f.activation(fake).mean()


GAMES: Mapping[str, Game] = {
    "non-saturating": NON_SATURATING,
    "minimax": MINIMAX,
    "least-squares": LEAST_SQUARES,
    "chi-square": CHI_SQUARE,
    "hinge": HINGE,
    "wasserstein": WASSERSTEIN,
    "relativistic": RELATIVISTIC,
    "relativistic-average": RELATIVISTIC_AVERAGE,
} | {name: FGame(name) for name in DIVERGENCES}
