r"""Progressive growing: a GAN that begins with pictures of 4 x 4 and doubles them as it learns.

    level k = 1, 2, …:   for `fade` steps α goes from 0 to 1, then for `stable` steps it stays   (level 0: `stable`)
    real pictures        x_k = the mean of patches of x;  while α < 1:  α x_k + (1 - α) double(half x_k)

Level and α are functions of the step alone, so that a run goes on exactly wherever it was cut. The game is that of
Wasserstein with a gradient penalty and a small cost of scores that drift from 0, E D(x)²; any other will do.

Karras, Aila, Laine & Lehtinen 2018, "Progressive growing of GANs for improved quality, stability, and variation",
arXiv:1710.10196, section 2 and appendix A. Departures: one batch size for all levels; the optimisers keep what they
know when the nets grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import labelled, learnable, one_for_each
from ..core import NONE, Batch, Loss, Model, Noise, Phase, keys, size
from ..errors import UserError
from ..nets.conv import doubled, halved
from ..nets.equal import framed, unframed
from ..nets.progressive import GrowingCritic, GrowingGenerator, Stage
from ..spec import Remembers
from .losses import WASSERSTEIN, Game
from .penalties import GradientPenalty, Penalty, Play, due, penalised

Cond = Mapping[str, Tensor]
_CRITIC, _GENERATOR = 0x9601, 0x9602  # each turn draws pictures of its own


class Growth(Remembers):
    """When nets grow. stable, fade: steps for which a level stays, and for which the next one comes in."""

    def __init__(self, stable: int, fade: int) -> None:
        if stable < 0 or fade < 0:
            raise UserError(f"Growth was given stable={stable}, fade={fade}: give 0 steps or more of each.")
        self.stable, self.fade = stable, fade

    def stage(self, step: int, levels: int) -> Stage:
        """The stage after `step` finished steps, of nets with so many levels; α is above 0 wherever it is below 1."""
        if step < self.stable or levels == 1:
            return Stage(0)
        period = self.fade + self.stable
        behind = step - self.stable
        if not period or behind >= period * (levels - 1):
            return Stage(levels - 1)
        level, into = divmod(behind, period)
        return Stage(level + 1, min(1.0, (into + 1) / (self.fade + 1)))


def shrunk(x: Float[Tensor, "b c e e"], stage: Stage) -> Float[Tensor, "b c s s"]:
    """Pictures of the full edge as the critic meets them at a stage: made smaller, and faded as the nets are."""
    while x.shape[2] > 4 << stage.level:
        x = halved(x)
    return torch.lerp(doubled(halved(x)), x, stage.alpha) if stage.level and stage.alpha < 1 else x


class ProgressiveGAN(Model):
    """x (B, *shape) of z (B, latent), by nets that grow.

    growth: when. game: what both play for. penalties: on the critic. drift: weight of E D(x)². fill: what frames
    pictures that are no power of two. Optimisers are two: {"generator": …, "critic": …}.
    """

    scaffold: ClassVar[tuple[str, ...]] = ("critic",)
    whole: ClassVar[tuple[str, ...]] = ("critic",)  # penalties differentiate by x within a loss

    def __init__(
        self,
        generator: GrowingGenerator,
        critic: GrowingCritic,
        growth: Growth,
        *,
        game: Game = WASSERSTEIN,
        penalties: Sequence[Penalty] = (GradientPenalty(10.0),),
        drift: float = 0.001,
        fill: float = -1.0,
    ) -> None:
        super().__init__()
        if (generator.edge, generator.classes) != (critic.edge, critic.classes):
            raise UserError(
                f"The generator draws {generator.edge} pixels and {generator.classes} classes, the critic reads"
                f" {critic.edge} and {critic.classes}: give both the same."
            )
        if drift < 0:
            raise UserError(f"A ProgressiveGAN's drift is {drift}: give a weight of 0 or more.")
        self.generator, self.critic, self.growth = generator, critic, growth
        self.game, self.penalties, self.drift, self.fill = game, tuple(penalties), drift, fill
        self.shape, self.latent_shape = generator.shape, (generator.latent,)

    @property
    def stage(self) -> Stage:
        """How far the nets have grown."""
        return self.growth.stage(self.step, len(self.generator.images))

    # ---- training

    def phases(self) -> list[Phase]:
        """The critic's turn, then the generator's."""
        return [Phase(self.critic_loss, ("critic",)), Phase(self.generator_loss, ("generator",))]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The samples; a batch is never split where they are compared with their neighbours."""
        return {} if self.critic.group > 1 or self.game.mixes else {"": float(size(batch))}

    def critic_loss(self, batch: Batch) -> Loss:
        """The critic's side of the game, on pictures of the present size."""
        cond, noise, stage = batch.get("cond") or NONE, Noise(keys(batch["key"], _CRITIC)), self.stage
        with torch.no_grad():
            fake = self.generator(self.draw_z(len(batch["key"]), noise=noise), cond, stage=stage)
        penalties = due(self.penalties, self.step) if self.training else []
        real, fake = (t.detach().requires_grad_(bool(penalties)) for t in (self._real(batch, stage), fake))

        def critic(x: Tensor) -> Tensor:
            scores: Tensor = self.critic(x, cond, stage=stage)
            return scores

        said = Play(critic, real, fake, critic(real), critic(fake), noise)
        penalty, logs = penalised(penalties, said)
        value = self.game.critic(said.real_scores, said.fake_scores) + penalty
        value = value + self.drift * said.real_scores.square().mean()
        logs |= self.game.said(said.real_scores, said.fake_scores)
        return Loss(value, logs | {"grown": said.real_scores.new_tensor(stage.level + stage.alpha)})

    def generator_loss(self, batch: Batch) -> Loss:
        """The generator's side of the game."""
        cond, noise, stage = batch.get("cond") or NONE, Noise(keys(batch["key"], _GENERATOR)), self.stage
        made = self.generator(self.draw_z(len(batch["key"]), noise=noise), cond, stage=stage)
        fake = self.critic(made, cond, stage=stage)
        real = self.critic(self._real(batch, stage), cond, stage=stage) if self.game.compares else fake
        return Loss(self.game.generator(real, fake))

    def _real(self, batch: Batch, stage: Stage) -> Tensor:
        learnable(batch["x"], self.shape, self.critic)
        return shrunk(framed(batch["x"], self.critic.edge, self.fill), stage)

    # ---- pictures

    def sample(self, n: int, cond: Cond | None = None, *, noise: Noise | None = None) -> Float[Tensor, " n *shape"]:
        """n pictures of the full size, those of nets that are not grown enlarged. Where `cond` names no class, a net
        with classes draws one for each.
        """
        one_for_each(n, cond or NONE, noise)
        weight = self.generator.second.weight
        if noise is None:
            noise = Noise.fresh(n, weight.device)
        z = self.draw_z(n, noise=noise)
        if self.generator.classes is not None and "label" not in (cond or NONE):
            cond = {**(cond or NONE), "label": noise.integers(self.generator.classes).to(z.device)}
        return self.decode(z, cond)

    def draw_z(self, n: int, *, noise: Noise) -> Float[Tensor, "n d"]:
        """n draws of z."""
        return noise.normal(self.generator.latent).to(self.generator.second.weight)

    def decode(self, z: Float[Tensor, "b d"], cond: Cond | None = None) -> Float[Tensor, " b *shape"]:
        """The pictures of z. Raises UserError where the nets know classes and `cond` has no label."""
        if self.generator.classes is not None:
            labelled(cond)
        x: Tensor = self.generator(z, cond or NONE, stage=self.stage)
        while x.shape[2] < self.generator.edge:
            x = doubled(x)
        return unframed(x, self.shape)
