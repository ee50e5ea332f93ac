r"""What keeps a critic smooth: penalties on its gradient, and on how it changes under augmentation.

    R1                 ½ γ E |∇D(x)|²       x real                                      (Mescheder et al. 2018)
    R2                 ½ γ E |∇D(x̂)|²       x̂ made
    gradient penalty   λ E (|∇D(x̃)| - c)²,   x̃ = u x + (1 - u) x̂,  u ~ U(0, 1)          (Gulrajani et al. 2017)
    consistency        λ E (D(x) - D(T(x)))² + λ' E (D(x̂) - D(T(x̂)))²     (Zhang et al. 2020; of both: Zhao et al. 2021)

A weight may fall along half a cosine over the first steps of a training, as γ does in R3GAN (Huang et al. 2024).
Lazy, of every k-th step and times k, a penalty has the same gradient in the mean (Karras et al. 2020, StyleGAN2). With
R1 or the penalty centred at c = 0 the Dirac-GAN converges, where without it turns in circles.

Mescheder, Geiger & Nowozin 2018, "Which training methods for GANs do actually converge?", arXiv:1801.04406; Gulrajani
et al. 2017, "Improved training of Wasserstein GANs", arXiv:1704.00028; Zhang et al. 2020, "Consistency regularization
for GANs", arXiv:1910.12027; Zhao et al. 2021, "Improved consistency regularization for GANs", arXiv:2002.04724; Karras
et al. 2020, "Analyzing and improving the image quality of StyleGAN", arXiv:1912.04958; Huang et al. 2024, "The GAN is
dead; long live the GAN!", arXiv:2501.05441.
Departures: a lazy penalty is added to the loss of the steps in which it is due, and has no step of its own; where a
critic gives several scores of one x, the gradient is that of their mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Noise
from ..errors import UserError
from ..spec import Remembers

Critic = Callable[[Tensor], Tensor]  # x (B, *shape) to scores (B, ...), the conditions already in hand
Augment = Callable[[Tensor, Noise], Tensor]  # x (B, *shape) changed by keyed noise


class Play(NamedTuple):
    """What a critic's turn has at hand.

    real, fake: x (B, *shape), leaves that want a gradient. real_scores, fake_scores: the critic's (B, ...) of them.
    noise: of the batch's keys.
    """

    critic: Critic
    real: Tensor
    fake: Tensor
    real_scores: Tensor
    fake_scores: Tensor
    noise: Noise


def gradient(x: Float[Tensor, " b *shape"], scores: Float[Tensor, " b *scores"]) -> Float[Tensor, "b d"]:
    """∇D(x) of each row (B, D), differentiable; the scores are of x, row by row."""
    (g,) = torch.autograd.grad(scores.reshape(len(x), -1).mean(1).sum(), x, create_graph=True)
    return g.flatten(1)


def zero_centred(x: Float[Tensor, " b *shape"], scores: Float[Tensor, " b *scores"]) -> Tensor:
    """½ E |∇D(x)|²."""
    return 0.5 * gradient(x, scores).square().sum(1).mean()


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, noise: Noise, centre: float = 1.0) -> Tensor:
    """E (|∇D(x̃)| - centre)² at points x̃ (B, *shape) between real and made x, drawn by the keys of `noise`."""
    u = noise.uniform(dtype=real.dtype).view(-1, *(1,) * (real.ndim - 1))
    between = torch.lerp(fake.detach(), real.detach(), u).requires_grad_()
    norm: Tensor = torch.linalg.vector_norm(gradient(between, critic(between)), dim=1)
    return (norm - centre).square().mean()


def consistency(critic: Critic, x: Tensor, scores: Tensor, augment: Augment, noise: Noise) -> Tensor:
    """E (D(x) - D(T(x)))²; scores are D(x)."""
    return (scores - critic(augment(x.detach(), noise))).square().mean()


# ---- as parts of a model -------------------------------------------------------------------------------------------


class Penalty(Remembers, ABC):
    """A term of the critic's loss with its weight. every: it is in the loss of one step in so many, that many times."""

    name: ClassVar[str]

    def __init__(self, weight: float, every: int = 1) -> None:
        if weight < 0 or every < 1:
            raise UserError(
                f"{type(self).__name__} was given weight={weight}, every={every}: give a weight of 0 or more, and 1"
                " step or more."
            )
        self.weight, self.every = weight, every

    def factor(self, step: int) -> float:
        """What the penalty counts in the loss after `step` finished steps: 0 where it is not due."""
        return self.weight * self.every if step % self.every == 0 else 0.0

    @abstractmethod
    def __call__(self, play: Play) -> Tensor:
        """The penalty of a batch, a mean over samples, without its weight."""


class ZeroCentred(Penalty):
    """Base of R1 and R2. weight: γ, or where it begins; final: where it ends after `over` steps, by half a cosine."""

    def __init__(self, weight: float = 1.0, every: int = 1, *, final: float | None = None, over: int = 0) -> None:
        super().__init__(weight, every)
        if (final is not None and final < 0) or over < 0:
            raise UserError(f"{type(self).__name__} was given final={final}, over={over}: give 0 or more of each.")
        self.final, self.over = weight if final is None else final, over

    def factor(self, step: int) -> float:
        left = 0.5 * (1 + math.cos(math.pi * step / self.over)) if step < self.over else 0.0
        weight = self.final + (self.weight - self.final) * left
        return weight * self.every if step % self.every == 0 else 0.0


class R1(ZeroCentred):
    """½ γ E |∇D(x)|² over real x."""

    name = "r1"

    def __call__(self, play: Play) -> Tensor:
        return zero_centred(play.real, play.real_scores)


class R2(ZeroCentred):
    """½ γ E |∇D(x̂)|² over made x."""

    name = "r2"

    def __call__(self, play: Play) -> Tensor:
        return zero_centred(play.fake, play.fake_scores)


class GradientPenalty(Penalty):
    """λ E (|∇D| - c)² between real and made x. weight: λ. centre: c, 1 for a Wasserstein critic."""

    name = "gradient_penalty"

    def __init__(self, weight: float = 10.0, every: int = 1, *, centre: float = 1.0) -> None:
        super().__init__(weight, every)
        self.centre = centre

    def __call__(self, play: Play) -> Tensor:
        return gradient_penalty(play.critic, play.real, play.fake, play.noise, self.centre)


class Consistency(Penalty):
    """λ E (D(x) - D(T(x)))² over real x, and with the weight `made` over made ones. augment: T, such as `Shift(4)`."""

    name = "consistency"

    def __init__(self, augment: Augment, weight: float = 10.0, every: int = 1, *, made: float = 0.0) -> None:
        super().__init__(weight, every)
        if made < 0:
            raise UserError(f"Consistency's weight of made samples is {made}: give 0 or more, as a share of `weight`.")
        self.augment, self.made = augment, made

    def __call__(self, play: Play) -> Tensor:
        of_real = consistency(play.critic, play.real, play.real_scores, self.augment, play.noise)
        if not self.made:
            return of_real
        of_fake = consistency(play.critic, play.fake, play.fake_scores, self.augment, play.noise)
        return of_real + self.made * of_fake


def due(penalties: Sequence[Penalty], step: int) -> list[tuple[Penalty, float]]:
    """Those that are in the loss after `step` finished steps, each with its factor."""
    return [(p, factor) for p in penalties if (factor := p.factor(step))]


def penalised(terms: Sequence[tuple[Penalty, float]], play: Play) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the penalties that are due, each times its factor; and what to log of them."""
    total, logs = play.real_scores.new_zeros(()), {}
    for penalty, factor in terms:
        value = penalty(play)
        logs[penalty.name] = value.detach()
        total = total + factor * value
    return total, logs
