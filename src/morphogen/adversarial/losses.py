r"""What a generator and its critic play for. Pure functions of the critic's scores D(x) and D(G(z)), any shape.

    non-saturating  critic: E softplus(-D(x)) + E softplus(D(G(z)))        generator: E softplus(-D(G(z)))
    hinge           critic: E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))     generator: -E D(G(z))

A score is a logit of "real". Each function gives the mean that is minimised.

Goodfellow et al. 2014, "Generative adversarial networks", arXiv:1406.2661; Lim & Ye 2017, "Geometric GAN",
arXiv:1705.02894.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..spec import Remembers


def non_saturating(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: cross entropy of "real" and "made"."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """The generator's loss: -log of the critic's probability of "real"."""
    return F.softplus(-fake).mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: scores that are right by more than 1 say nothing."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """The generator's loss: minus the score."""
    return -fake.mean()


class Game(Remembers):
    """The two sides of a game.

    critic: of the scores of real and of made x. generator: of the scores of made x.
    """

    def __init__(self, critic: Callable[[Tensor, Tensor], Tensor], generator: Callable[[Tensor], Tensor]) -> None:
        self.critic, self.generator = critic, generator


NON_SATURATING = Game(non_saturating, non_saturating_generator)
HINGE = Game(hinge, hinge_generator)
