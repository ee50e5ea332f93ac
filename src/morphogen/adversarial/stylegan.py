r"""StyleGAN2: a generator of styles against a residual critic, with what keeps both smooth.

    critic      L_D(D(T x), D(T G(z))), and every 16 steps 16 times ½ γ E |∇D(T x)|²
    generator   L_G(D(T G(z))), and every 4 steps 4 times the path length's  λ E (|J_wᵀ y| - a)²,
                y ~ N(0, I / (H W)),  J_w = ∂x/∂w,  a the running mean of |J_wᵀ y|
    mixing      with probability 0.9 the layers from a random one on have the style of another z
    truncation  w̄ + ψ (w - w̄), w̄ the running mean of w: 1 changes nothing, 0 draws the mean picture alone

T augments, with a probability that training adapts (`ada.py`). G is averaged by the trainer.

Karras et al. 2019, "A style-based generator architecture for generative adversarial networks", arXiv:1812.04948
(mixing, truncation); Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", arXiv:1912.04958 (the
nets, lazy regularisation, path length); Karras et al. 2020, "Training generative adversarial networks with limited
data", arXiv:2006.06676 (T).
Departures: what is lazy is added to the loss of the steps in which it is due and has no optimiser step of its own, so
that Adam's constants need no correction; the gradient penalty is of the critic at T x, not through T; w̄ and a begin as
means of what was seen; the conditions of made pictures are those of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import labelled, learnable, one_for_each
from ..core import NONE, Batch, Loss, Model, Noise, Phase, each, everyone, keys
from ..errors import UserError
from ..nets.style import StyleCritic, StyleGenerator
from ..spec import Remembers
from .ada import Adaptive
from .losses import NON_SATURATING, Game
from .penalties import R1, Penalty, Play, due, penalised

Cond = Mapping[str, Tensor]
_CRITIC, _GENERATOR, _PATH = 0x57E1, 0x57E2, 0x57E3  # each turn draws pictures of its own


def path_lengths(
    x: Float[Tensor, "b c h w"], styles: Float[Tensor, "b l d"], y: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """|J_wᵀ y| / √(H W), as a root mean square over layers, of x made of these styles; y ~ N(0, I). Differentiable."""
    pixels = x.shape[2] * x.shape[3]
    (pulled,) = torch.autograd.grad((x * y).sum() / pixels**0.5, styles, create_graph=True)
    return pulled.square().sum(2).mean(1).sqrt()


class PathLength(Remembers):
    """λ E (|J_wᵀ y| - a)²: a step in w changes the picture by the same amount, wherever and in whichever direction.

    weight: λ. every: steps of which it is in one. decay: of the running mean a. among: samples of which one is taken.
    """

    def __init__(self, weight: float = 2.0, every: int = 4, *, decay: float = 0.01, among: int = 2) -> None:
        if weight < 0 or every < 1 or not 0 < decay <= 1 or among < 1:
            raise UserError(
                f"PathLength was given weight={weight}, every={every}, decay={decay}, among={among}: give a weight of 0"
                " or more, 1 step and 1 sample or more, and a decay above 0, up to 1."
            )
        self.weight, self.every, self.decay, self.among = weight, every, decay, among


class StyleGAN2(Model):
    """x (B, *shape) of z (B, latent), by way of w.

    generator, critic: nets of the same shape and classes. game: what both play for. penalties: on the critic.
    path: the generator's regulariser, or None. mixing: share of pictures with two styles. memory: of w̄, in steps.
    augment: what both real and made pictures are changed by before the critic sees them.
    Optimisers are two: {"generator": …, "critic": …}.
    """

    scaffold: ClassVar[tuple[str, ...]] = ("critic", "augment")
    whole: ClassVar[tuple[str, ...]] = ("critic", "generator")  # differentiated within a loss
    mean_w: Tensor
    mean_path: Tensor

    def __init__(
        self,
        generator: StyleGenerator,
        critic: StyleCritic,
        *,
        game: Game = NON_SATURATING,
        penalties: Sequence[Penalty] = (R1(10.0, 16),),
        path: PathLength | None = PathLength(),  # noqa: B008  (immutable)
        mixing: float = 0.9,
        memory: float = 500.0,
        augment: Adaptive | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= mixing <= 1 or memory < 1:
            raise UserError(
                f"A StyleGAN2 was given mixing={mixing}, memory={memory}: give a share from 0 to 1, and 1 step or more."
            )
        if generator.classes != critic.classes:
            raise UserError(
                f"The generator knows {generator.classes} classes and the critic {critic.classes}: give both the same."
            )
        self.generator, self.critic, self.augment = generator, critic, augment
        self.game, self.penalties, self.path = game, tuple(penalties), path
        self.mixing, self.memory, self.shape, self.latent_shape = mixing, memory, generator.shape, (generator.latent,)
        self.register_buffer("mean_w", torch.zeros(generator.width))
        self.register_buffer("mean_path", torch.zeros(()))

    # ---- training

    def phases(self) -> list[Phase]:
        """The critic's turn, then the generator's."""
        return [Phase(self.critic_loss, ("critic",)), Phase(self.generator_loss, ("generator",))]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """A batch is never split: samples are compared with their neighbours, path lengths with their mean."""
        return {}

    def critic_loss(self, batch: Batch) -> Loss:
        """The critic's side of the game and, where they are due, its penalties."""
        x, cond = batch["x"], batch.get("cond") or NONE
        learnable(x, self.shape, self.critic)
        noise = Noise(keys(batch["key"], _CRITIC))
        with torch.no_grad():
            fake = self.seen(self.generator.synthesise(self.styles(cond, noise), noise), noise)
        penalties = due(self.penalties, self.step) if self.training else []
        real, fake = (t.detach().requires_grad_(bool(penalties)) for t in (self.seen(x, noise), fake))
        said = Play(lambda t: self.critic(t, cond), real, fake, self.critic(real, cond), self.critic(fake, cond), noise)
        penalty, logs = penalised(penalties, said)
        logs |= self.game.said(said.real_scores, said.fake_scores)
        if self.augment is not None:
            logs["augment"] = self.augment.p.clone()
        value = self.game.critic(said.real_scores, said.fake_scores) + penalty
        return Loss(value, logs, {"real": said.real_scores.detach()})

    def generator_loss(self, batch: Batch) -> Loss:
        """The generator's side of the game and, where it is due, the path length."""
        cond = batch.get("cond") or NONE
        noise = Noise(keys(batch["key"], _GENERATOR))
        styles = self.styles(cond, noise)
        fake = self.critic(self.seen(self.generator.synthesise(styles, noise), noise), cond)
        real = self.critic(self.seen(batch["x"], noise), cond) if self.game.compares else fake.detach()
        value, logs, seen = self.game.generator(real, fake), {}, {"w": styles[:, 0].detach()}
        if self.path is not None and self.training and self.step % self.path.every == 0:
            penalty, lengths = self.path_penalty(batch, self.path)
            logs["path_length"] = lengths.mean()
            value = value + self.path.weight * self.path.every * penalty
            seen["length"] = lengths.mean().expand(len(fake))
        return Loss(value, logs, seen)

    def path_penalty(self, batch: Batch, path: PathLength) -> tuple[Tensor, Tensor]:
        """E (|J_wᵀ y| - a)² over one sample `among` as many, and the lengths (b,) that a is to take in."""
        cond = each(batch.get("cond") or NONE, lambda c: c[:: path.among])
        noise = Noise(keys(batch["key"][:: path.among], _PATH))
        styles = self.styles(cond, noise)
        x = self.generator.synthesise(styles, noise)
        lengths = path_lengths(x, styles, noise.normal(*x.shape[1:], dtype=x.dtype).to(x.device))
        mean = self._mean_path(everyone.mean(lengths.detach().mean()), path)
        return (lengths - mean).square().mean(), lengths.detach()

    def _mean_path(self, mean: Tensor, path: PathLength) -> Tensor:
        """a, with the mean length of one more batch in it."""
        return torch.lerp(self.mean_path, mean.to(self.mean_path), max(path.decay, 1 / (1 + self.step // path.every)))

    @torch.no_grad()
    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """Move w̄, a and the probability of augmenting."""
        if phase == "critic_loss" and self.augment is not None:
            self.augment.adjust(seen["real"])
        if phase == "generator_loss":
            mean = everyone.mean(seen["w"].mean(0)).to(self.mean_w)
            self.mean_w.lerp_(mean, max(1 / self.memory, 1 / (1 + self.step)))
            if self.path is not None and "length" in seen:
                self.mean_path.copy_(self._mean_path(everyone.mean(seen["length"].mean()), self.path))

    def seen(self, x: Float[Tensor, " b *shape"], noise: Noise) -> Float[Tensor, " b *shape"]:
        """x as the critic sees it."""
        return x if self.augment is None else self.augment(x, noise)

    def styles(self, cond: Cond, noise: Noise) -> Float[Tensor, "b l d"]:
        """Styles (B, layers, width) as in training: of one z or, from a random layer on, of another."""
        z, other = (noise.normal(self.generator.latent).to(self.mean_w) for _ in range(2))
        w: Tensor = self.generator.mapping(z, cond)[:, None].expand(-1, self.generator.layers, -1)
        if not self.mixing or self.generator.layers < 2:
            return w
        mixed, cut = noise.uniform().to(z.device) < self.mixing, 1 + noise.integers(self.generator.layers - 1)
        cut = torch.where(mixed, cut.to(z.device), self.generator.layers)
        later = torch.arange(self.generator.layers, device=z.device) >= cut[:, None]  # (B, layers)
        return torch.where(later[:, :, None], self.generator.mapping(other, cond)[:, None], w)

    # ---- pictures

    def sample(
        self, n: int, cond: Cond | None = None, *, noise: Noise | None = None, truncation: float = 1.0
    ) -> Float[Tensor, " n *shape"]:
        """n pictures. A net with classes draws one for each picture where `cond` names none.

        truncation: ψ: less makes pictures that are better and more alike, 0 the mean one alone.
        """
        one_for_each(n, cond or NONE, noise)
        if noise is None:
            noise = Noise.fresh(n, self.mean_w.device)
        z = self.draw_z(n, noise=noise)
        if self.generator.classes is not None and "label" not in (cond or NONE):
            cond = {**(cond or NONE), "label": noise.integers(self.generator.classes).to(z.device)}
        w = self.mapped(z, cond, truncation)
        if truncation == 0:  # nothing of the sample is left, and nothing of its noise
            noise = Noise(torch.zeros_like(noise.key))
        return self.generator.synthesise(w[:, None].expand(-1, self.generator.layers, -1), noise)

    def draw_z(self, n: int, *, noise: Noise) -> Float[Tensor, "n d"]:
        """n draws of z."""
        return noise.normal(self.generator.latent).to(self.mean_w)

    def mapped(
        self, z: Float[Tensor, "b d"], cond: Cond | None = None, truncation: float = 1.0
    ) -> Float[Tensor, "b w"]:
        """w of z, truncated. Raises UserError where the net knows classes and `cond` has no label."""
        if self.generator.classes is not None:
            labelled(cond)
        w: Tensor = self.generator.mapping(z, cond or NONE)
        return w if truncation == 1 else torch.lerp(self.mean_w, w, truncation)

    def decode(self, z: Float[Tensor, "b d"], cond: Cond | None = None) -> Float[Tensor, " b *shape"]:
        """The picture of z, its noise inputs always the same."""
        w = self.mapped(z, cond)
        return self.synthesise(w[:, None].expand(-1, self.generator.layers, -1))

    def synthesise(self, styles: Float[Tensor, "b l d"]) -> Float[Tensor, " b *shape"]:
        """The picture of styles (B, layers, width), its noise inputs always the same."""
        fixed = Noise(torch.zeros(len(styles), dtype=torch.int64, device=styles.device))
        return self.generator.synthesise(styles, fixed)
