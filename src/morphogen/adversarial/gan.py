r"""Generative adversarial networks: a generator learns from a critic that learns to tell real from made.

    critic      min  L_D(D(x, y), D(G(z, y), y)) + Σ penalties + Σ what is misread of real and made x
    generator   min  L_G(D(x, y), D(G(z, y), y)) + Σ what is misread of made x,         z ~ N(0, I)

The game (L_D, L_G) is one of `losses.py`, the penalties are of `penalties.py`, what a critic reads beside its score of
`readings.py`. With them this one model is

    DCGAN       the nets of `nets/dcgan.py`, non-saturating
    WGAN-GP     Wasserstein, a gradient penalty, several turns of the critic for one of the generator
    R3GAN       relativistic pairs, R1 and R2, the nets of `nets/r3gan.py`
    cGAN        a generator that is told labels and a critic with a projection (`nets.Critic(classes=…)`)
    AC-GAN      … an `Auxiliary` reading;   InfoGAN   `Categorical` and `Continuous` ones

Goodfellow et al. 2014, "Generative adversarial networks", arXiv:1406.2661; Radford, Metz & Chintala 2016, "Unsupervised
representation learning with DCGANs", arXiv:1511.06434; Gulrajani et al. 2017, arXiv:1704.00028; Huang et al. 2024,
arXiv:2501.05441; Miyato & Koyama 2018, "cGANs with projection discriminator", arXiv:1802.05637; Mirza & Osindero 2014,
"Conditional generative adversarial nets", arXiv:1411.1784.
Departures: both turns of a step see one batch and one z; made x are asked for the labels of the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import labelled, one_for_each
from ..core import NONE, Batch, Loss, Model, Noise, Phase, size
from ..errors import UserError
from ..nets.embed import ClassEmbedding, drop
from ..nets.spectral import iterate
from .losses import NON_SATURATING, Game
from .penalties import Penalty, Play, due, penalised
from .readings import Reading

Cond = Mapping[str, Tensor]


@runtime_checkable
class Reads(Protocol):
    """A critic with a second head (`nets.Critic`)."""

    readings: int

    def both(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The scores of x (B, ...), and what is read off it (B, readings)."""
        ...


class Latents(NamedTuple):
    """z (B, latent), and beside it each reading's code (B, its inputs)."""

    z: Tensor
    codes: list[Tensor]


class GAN(Model):
    """A generator of x against a critic of x.

    generator:    z (B, latent), and the readings' codes behind it, and conditions to x: `generator(z, cond)`.
    critic:       x and conditions to scores, one or more a sample: `critic(x, cond)`. One with readings is a
                  `nets.Critic`, or has its `both`.
    latent:       how many numbers z has.
    game:         what both play for. penalties: terms of the critic's loss.
    readings:     what else the critic is made to tell.
    critic_steps: turns of the critic for one of the generator, each a step on a batch of its own.
    drop:         share of the conditions that are hidden from both, so that it can draw without. With 0 a sample that
                  is asked for no label is of one drawn evenly from those that the generator knows.
    Optimisers may be two: {"generator": …, "critic": …}. Held-out losses are without penalties.
    """

    scaffold: ClassVar[tuple[str, ...]] = ("critic",)
    whole: ClassVar[tuple[str, ...]] = ("critic",)  # penalties differentiate by x within a loss

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        latent: int,
        game: Game = NON_SATURATING,
        penalties: Sequence[Penalty] = (),
        *,
        readings: Sequence[Reading] = (),
        critic_steps: int = 1,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if latent < 1 or critic_steps < 1:
            raise UserError(f"A GAN was given latent={latent}, critic_steps={critic_steps}: give 1 or more of each.")
        if not 0 <= drop <= 1:
            raise UserError(f"A GAN's drop is the share of conditions that it trains without, not {drop}: use 0 to 1.")
        told = sum(r.outputs for r in readings)
        heads = critic.readings if isinstance(critic, Reads) else 0
        if heads != told:
            raise UserError(
                f"The readings of this GAN are of {told} numbers, and its critic tells {heads}: give"
                f" nets.Critic(…, readings={told})."
            )
        self.generator, self.critic, self.latent, self.game = generator, critic, latent, game
        self.penalties, self.readings = tuple(penalties), tuple(readings)
        self.critic_steps, self.drop = critic_steps, drop
        self.labels = max((m.classes for m in generator.modules() if isinstance(m, ClassEmbedding)), default=0)
        self._mixes = game.mixes or any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) or getattr(m, "mixes", False) for m in self.modules()
        )

    # ---- training

    def phases(self) -> list[Phase]:
        """The critic's turn, and in each `critic_steps`-th step the generator's."""
        return [
            Phase(self.critic_loss, ("critic",)),
            Phase(self.generator_loss, ("generator",), every=self.critic_steps),
        ]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The samples; a batch is never split where a sample sees others (batch norms, some games)."""
        return {} if self._mixes else {"": float(size(batch))}

    def critic_loss(self, batch: Batch) -> Loss:
        """The critic's side of the game; logs the mean scores and the share of them on the right side."""
        noise, cond = self._told(batch)
        latents = self.latents(noise, batch["x"].dtype)
        with torch.no_grad():
            made = self._make(latents, cond)
        terms = due(self.penalties, self.step) if self.training else []
        real, fake = (x.detach().requires_grad_(bool(terms)) for x in (batch["x"], made))
        real_scores, real_said = self._judge(real, cond)
        fake_scores, fake_said = self._judge(fake, cond)
        logs = self.game.said(real_scores, fake_scores)
        value = self.game.critic(real_scores, fake_scores)
        for reading, a, b, code in zip(self.readings, real_said, fake_said, latents.codes, strict=True):
            value = value + reading.weight * reading.of_made(b, code, cond).mean()
            if (of_real := reading.of_real(a, cond)) is not None:
                value = value + reading.weight * of_real.mean()
        play = Play(lambda x: self.critic(x, cond), real, fake, real_scores, fake_scores, noise)
        penalty, more = penalised(terms, play)
        return Loss(value + penalty, logs | more)

    def generator_loss(self, batch: Batch) -> Loss:
        """The generator's side of the game."""
        noise, cond = self._told(batch)
        latents = self.latents(noise, batch["x"].dtype)
        scores, said = self._judge(self._make(latents, cond), cond)
        real = self._judge(batch["x"], cond)[0] if self.game.compares else scores
        value, logs = self.game.generator(real, scores), dict[str, Tensor]()
        for i, (reading, told, code) in enumerate(zip(self.readings, said, latents.codes, strict=True)):
            cost = reading.of_made(told, code, cond).mean()
            value = value + reading.weight * cost
            before = sum(r.name == reading.name for r in self.readings[:i])
            logs[f"{reading.name}_{before + 1}" if before else reading.name] = reading.report(cost.detach())
        return Loss(value, logs)

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """Follow the singular values of weights that are normalised by them."""
        iterate(self.critic if phase == "critic_loss" else self.generator)

    def _told(self, batch: Batch) -> tuple[Noise, Cond]:
        """The noise of the batch's keys, and its conditions, some of them dropped."""
        noise = Noise(batch["key"])
        return noise, drop(batch.get("cond") or NONE, self.drop, noise)

    def _judge(self, x: Tensor, cond: Cond) -> tuple[Tensor, list[Tensor]]:
        """The scores of x, and what each reading is told."""
        if not self.readings:
            scores: Tensor = self.critic(x, cond)
            return scores, []
        assert isinstance(self.critic, Reads)
        scores, said = self.critic.both(x, cond)
        return scores, list(said.split([r.outputs for r in self.readings], 1))

    # ---- drawing

    def latents(self, noise: Noise, dtype: torch.dtype) -> Latents:
        """A z and codes for each key."""
        return Latents(noise.normal(self.latent, dtype=dtype), [r.code(noise, dtype) for r in self.readings])

    def draw_z(self, n: int, *, noise: Noise) -> Float[Tensor, "n d"]:
        """What the generator is given in place of conditions: n draws of z and codes, side by side."""
        z, codes = self.latents(noise, next(self.generator.parameters(), torch.empty(())).dtype)
        return torch.cat((z, *codes), 1)

    def decode(self, z: Float[Tensor, "b d"], cond: Cond | None = None) -> Float[Tensor, "b ..."]:
        """x of z and codes, side by side. Raises UserError where the nets were always told a class and now are not."""
        if self.labels and not self.drop:
            labelled(cond)
        x: Tensor = self.generator(z, cond or NONE)
        return x

    def _make(self, latents: Latents, cond: Cond) -> Tensor:
        x: Tensor = self.generator(torch.cat((latents.z, *latents.codes), 1) if latents.codes else latents.z, cond)
        return x

    def sample(
        self, n: int, cond: Cond | None = None, *, noise: Noise | None = None, truncation: float = math.inf
    ) -> Float[Tensor, "n ..."]:
        """n samples (n, ...).

        cond: conditions (n, ...) by name. noise: keyed noise of n samples; without it keys come from torch's default
        generator. truncation: the largest |z_i|, each one's law being the normal within (Brock, Donahue & Simonyan
        2019, arXiv:1809.11096): less variety, fewer strays.
        """
        cond = cond or NONE
        one_for_each(n, cond, noise)
        if not truncation > 0:
            raise UserError(f"The truncation of a GAN's z is the largest number in it, not {truncation}: give more.")
        like = next(self.generator.parameters(), torch.empty(()))
        if noise is None:
            noise = Noise.fresh(n, like.device)
        latents = self.latents(noise, like.dtype)
        if self.labels and not self.drop and "label" not in cond:
            cond = {**cond, "label": noise.integers(self.labels)}
        if truncation < math.inf:
            latents = latents._replace(z=truncated(latents.z, truncation))
        return self._make(latents, cond)


def truncated(z: Tensor, most: float) -> Tensor:
    """Standard normal z to the standard normal within [-most, most], by its distribution function."""
    tail = torch.special.ndtr(torch.tensor(-most, dtype=torch.float64))
    u = tail + (1 - 2 * tail) * torch.special.ndtr(z.double())
    inside: Tensor = torch.special.ndtri(u).clamp(-most, most).to(z.dtype)
    return inside
