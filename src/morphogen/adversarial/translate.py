r"""Pictures from pictures: pix2pix where they come in pairs, CycleGAN where they do not.

    pix2pix    G: a -> x, noise by dropout     L_G = V_G(D(a, x), D(a, G(a))) + λ E|x - G(a)|,  λ = 100
               D: pairs                        L_D = V_D(D(a, x), D(a, G(a)))
    CycleGAN   G: a -> x, F: x -> a            L_G = V_G(D(x), D(G(a))) + V_G(D'(a), D'(F(x)))
                                                     + λ (E|F(G(a)) - a| + E|G(F(x)) - x|),  λ = 10
                                                     + λ ι (E|G(x) - x| + E|F(a) - a|),  ι = 0.5
               D: of x, D': of a               L_D = V_D(D(x), D(G̃)) + V_D(D'(a), D'(F̃))

V_D, V_G are the sides of a game (`losses.py`): non-saturating for pix2pix, least squares for CycleGAN. G̃ are made
pictures through a buffer of the last 50 (Shrivastava et al. 2017): while it fills, each is put in and shown; then, with
probability ½ each, one is shown as it is, or takes the place of one in the buffer, which is shown instead.

Isola, Zhu, Zhou & Efros 2017, "Image-to-image translation with conditional adversarial networks", arXiv:1611.07004;
Zhu, Park, Isola & Efros 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks",
arXiv:1703.10593; Shrivastava et al. 2017, "Learning from simulated and unsupervised images", arXiv:1612.07828.
Departures: a batch is held against the buffer as it was before it (the papers' batches are of one, where that is the
same), and the buffer is that of all ranks together; the critics' losses are not halved, which Adam would not see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Batch, Loss, Model, Noise, Phase, everyone, size
from ..errors import UserError
from .losses import LEAST_SQUARES, NON_SATURATING, Game


class Pix2Pix(Model):
    """cond source (B, *source_shape) -> x (B, *shape), both pictures of one height and width.

    generator: (source, noise) to x. critic: source and x, channel by channel in one, to scores of any shape; None for
    the regression alone (the control of the paper's table 1, "L1"). l1: weight λ of the absolute error. after: steps
    that are without the critic. game: what both play for. Optimisers: {"generator": …, "critic": …}.
    """

    scaffold: ClassVar[tuple[str, ...]] = ("critic",)

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module | None,
        source_shape: tuple[int, ...],
        shape: tuple[int, ...],
        *,
        l1: float = 100.0,
        after: int = 0,
        game: Game = NON_SATURATING,
    ) -> None:
        super().__init__()
        if min(l1, after) < 0 or (l1 == 0 and (critic is None or after)):
            raise UserError(
                f"A Pix2Pix was given l1={l1}, after={after}: give 0 or more, and l1 above 0 where there is no critic."
            )
        self.generator, self.critic, self.l1, self.after, self.game = generator, critic, l1, after, game
        self.source_shape, self.shape = tuple(source_shape), tuple(shape)
        if critic is not None and self.source_shape[1:] != self.shape[1:]:
            raise UserError(
                f"Sources of {self.source_shape} and pictures of {self.shape} cannot be shown to a critic as pairs:"
                " give them one height and width."
            )

    def phases(self) -> list[Phase]:
        """The critic's turn, where there is one, then the generator's."""
        generator = Phase(self.generator_loss, ("generator",))
        return [generator] if self.critic is None else [Phase(self.critic_loss, ("critic",)), generator]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The pairs; a batch is never split where the game or a batch norm mixes them."""
        return {} if self.game.mixes or _batch_normed(self) else {"": float(size(batch))}

    def critic_loss(self, batch: Batch) -> Loss:
        """The critic's side, on the generator as it now is."""
        source, x = _source(batch.get("cond")), batch["x"]
        if self.critic is not None and self.training and self.step < self.after:
            return Loss(0.0 * torch.stack([p.sum() for p in self.critic.parameters()]).sum())
        with torch.no_grad():
            made = self.translate(source, noise=Noise(batch["key"]))
        real, fake = self._scores(source, x), self._scores(source, made)
        return Loss(self.game.critic(real, fake), self.game.said(real, fake))

    def generator_loss(self, batch: Batch) -> Loss:
        """The generator's side, and the absolute error."""
        source, x = _source(batch.get("cond")), batch["x"]
        made = self.translate(source, noise=Noise(batch["key"]))
        error = F.l1_loss(made, x)
        if self.critic is None or (self.training and self.step < self.after):
            return Loss(self.l1 * error, {"l1": error.detach()})
        fake = self._scores(source, made)
        play = self.game.generator(self._scores(source, x) if self.game.compares else fake, fake)
        return Loss(play + self.l1 * error, {"l1": error.detach(), "play": play.detach()})

    def _scores(self, source: Tensor, x: Tensor) -> Tensor:
        assert self.critic is not None
        scores: Tensor = self.critic(torch.cat((source, x), 1))
        return scores

    def translate(
        self, source: Float[Tensor, " b *source_shape"], *, noise: Noise | None = None
    ) -> Float[Tensor, " b *shape"]:
        """x (B, *shape) of source pictures; the same of one source each time, where no noise is given."""
        made: Tensor = self.generator(source, noise or Noise.of(source))
        return made

    def sample(
        self, n: int, cond: Mapping[str, Tensor] | None = None, *, noise: Noise | None = None
    ) -> Float[Tensor, " n *shape"]:
        """x (n, *shape) of cond source (n, *source_shape)."""
        return self.translate(_source(cond), noise=noise)


class CycleGAN(Model):
    """Pictures of one kind, cond source (B, *source_shape), and of another, x (B, *shape), made from one another.

    generator: source to x. back: x to source. critic: x, critic_back: source, to scores of any shape.
    cycle: weight λ of what is lost there and back. identity: ι, how much a picture that is already of the wanted kind
    is to stay, as a share of λ; 0 where the two kinds have not one shape. pool: size of both buffers, 0 for none.
    Optimisers are two: {"generator+back": …, "critic+critic_back": …}.
    """

    scaffold: ClassVar[tuple[str, ...]] = ("critic", "critic_back")

    def __init__(
        self,
        generator: nn.Module,
        back: nn.Module,
        critic: nn.Module,
        critic_back: nn.Module,
        source_shape: tuple[int, ...],
        shape: tuple[int, ...],
        *,
        cycle: float = 10.0,
        identity: float = 0.5,
        pool: int = 50,
        game: Game = LEAST_SQUARES,
    ) -> None:
        super().__init__()
        if min(cycle, identity, pool) < 0:
            raise UserError(
                f"A CycleGAN was given cycle={cycle}, identity={identity}, pool={pool}: give numbers of 0 or more."
            )
        self.source_shape, self.shape = tuple(source_shape), tuple(shape)
        if identity and self.source_shape != self.shape:
            raise UserError(
                f"Sources of {self.source_shape} are not pictures of {self.shape}, so none can stay as it is: give"
                " identity=0."
            )
        self.generator, self.back, self.critic, self.critic_back = generator, back, critic, critic_back
        self.cycle, self.identity, self.game = cycle, identity, game
        self.pool, self.pool_back = Pool(pool, self.shape), Pool(pool, self.source_shape)

    def phases(self) -> list[Phase]:
        """The critics' turn, then the generators'."""
        return [
            Phase(self.critic_loss, ("critic", "critic_back")),
            Phase(self.generator_loss, ("generator", "back")),
        ]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The samples; a batch is never split where the game or a batch norm mixes them."""
        return {} if self.game.mixes or _batch_normed(self) else {"": float(size(batch))}

    def critic_loss(self, batch: Batch) -> Loss:
        """The critics' side, on made pictures through the buffers; while not training, on those made now."""
        source, x, noise = _source(batch.get("cond")), batch["x"], Noise(batch["key"])
        with torch.no_grad():
            made, made_back = self.generator(source), self.back(x)
        shown, slot = self.pool(made, noise)
        shown_back, slot_back = self.pool_back(made_back, noise)
        real, fake = self.critic(x), self.critic(shown)
        real_back, fake_back = self.critic_back(source), self.critic_back(shown_back)
        value = self.game.critic(real, fake) + self.game.critic(real_back, fake_back)
        there, back = self.game.said(real, fake), self.game.said(real_back, fake_back)
        seen = {"made": made, "slot": slot, "made_back": made_back, "slot_back": slot_back}
        return Loss(value, {k: (there[k] + back[k]) / 2 for k in there}, seen)

    def generator_loss(self, batch: Batch) -> Loss:
        """The generators' side, what is lost there and back, and what a picture of the wanted kind loses."""
        source, x = _source(batch.get("cond")), batch["x"]
        made, made_back = self.generator(source), self.back(x)
        fake, fake_back = self.critic(made), self.critic_back(made_back)
        real, real_back = (self.critic(x), self.critic_back(source)) if self.game.compares else (fake, fake_back)
        play = self.game.generator(real, fake) + self.game.generator(real_back, fake_back)
        cycle = F.l1_loss(self.back(made), source) + F.l1_loss(self.generator(made_back), x)
        value, logs = play + self.cycle * cycle, {"play": play.detach(), "cycle": cycle.detach()}
        if self.identity:
            same = F.l1_loss(self.generator(x), x) + F.l1_loss(self.back(source), source)
            value, logs["identity"] = value + self.cycle * self.identity * same, same.detach()
        return Loss(value, logs)

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """Put what was made into the buffers."""
        if phase == "critic_loss":
            self.pool.put(everyone.gather(seen["made"]), everyone.gather(seen["slot"]))
            self.pool_back.put(everyone.gather(seen["made_back"]), everyone.gather(seen["slot_back"]))

    def translate(
        self, source: Float[Tensor, " b *source_shape"], *, noise: Noise | None = None
    ) -> Float[Tensor, " b *shape"]:
        """x (B, *shape) of source pictures, without chance: `noise` is not read."""
        made: Tensor = self.generator(source)
        return made

    def translate_back(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *source_shape"]:
        """Source pictures of x (B, *shape)."""
        made: Tensor = self.back(x)
        return made


class Pool(nn.Module):
    """The last made pictures, `pictures` (size, *shape), of which `held` are there."""

    pictures: Tensor
    held: Tensor

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("pictures", torch.zeros(size, *shape))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    def forward(
        self, made: Float[Tensor, " b *shape"], noise: Noise
    ) -> tuple[Float[Tensor, " b *shape"], Int[Tensor, " b"]]:
        """What is shown instead of each of `made`, and which place this is to take, -1 for none. Changes nothing."""
        if not self.size or not self.training:
            return made, torch.full_like(noise.key, -1)
        swapped = (noise.uniform() < 0.5) & (self.held == self.size)  # (B,)
        slot = noise.integers(self.size)
        old = self.pictures[slot].to(made.dtype)
        shown = torch.where(swapped.view(-1, *(1,) * (made.ndim - 1)), old, made)
        return shown, torch.where(swapped, slot, -1)

    def put(self, made: Float[Tensor, " b *shape"], slot: Int[Tensor, " b"]) -> None:
        """Put each of `made` in its place, or in the next free one; of several in one place the last stays."""
        place = torch.arange(len(made), device=made.device)
        free = self.held + place
        slot = torch.where(free < self.size, free, slot)
        slot = torch.where(slot < 0, self.size, slot)  # beyond the end: nowhere
        last = place.new_full((self.size + 1,), -1).scatter_reduce(0, slot, place, "amax")[:-1]  # (size,)
        taken = (last >= 0).view(self.size, *(1,) * (made.ndim - 1))
        self.pictures.copy_(torch.where(taken, made[last.clamp(min=0)].to(self.pictures.dtype), self.pictures))
        self.held.copy_((self.held + len(made)).clamp(max=self.size))


def _source(cond: Mapping[str, Tensor] | None) -> Tensor:
    if cond is None or cond.get("source") is None:
        raise UserError(
            'Pictures are made of others here: give a cond with "source" (B, ...), or `morphogen translate RUN --from'
            " PICTURES`."
        )
    source: Tensor = cond["source"]
    return source


def _batch_normed(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
