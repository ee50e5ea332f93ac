r"""Codecs whose pictures must pass a critic: VQGAN, and the first stage of latent diffusion.

    autoencoder   L = mean |x̂ - x| + p d(x̂, x) + what the codes cost + w λ L_G(D(x̂))
                  λ = |∂L_rec / ∂θ| / (|∂L_G / ∂θ| + 1e-4),   θ the decoder's last layer,  L_rec the first two terms
    critic        L_D(D(x), D(x̂))

d is a perceptual distance (`perceptual.py`), D a critic of patches. For `after` steps there is no critic. With a
`VQVAE` as codec this is VQGAN; with a `KLAutoencoder`, z ~ N(m, s²) told by E(x) and a small weight on its KL from
N(0, I), it is how the autoencoders of latent diffusion are trained.

Esser, Rombach & Ommer 2021, "Taming transformers for high-resolution image synthesis", arXiv:2012.09841; Rombach et al.
2022, "High-resolution image synthesis with latent diffusion models", arXiv:2112.10752.
Departures: λ is made of the gradients averaged over all ranks; losses are means over pixels, the KL is scaled so that
its weight is latent diffusion's; the variance of the reconstruction is not learned; the critic's loss is not halved.
Held-out losses are without the critic's part, which measures by a moving scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..adversarial.losses import HINGE, Game
from ..core import Batch, Loss, Model, Noise, Phase, everyone
from ..errors import UserError
from ..nets.conv import convolution
from .perceptual import Perceptual
from .vq import VQVAE, Error, Recoded, absolute, cropped, encoded_shape


def adaptive_weight(x_hat: Tensor, last: Tensor, rec: Tensor, play: Tensor) -> Tensor:
    """λ of the gradients `rec` and `play` of both losses at x̂ (B, ...), for the weight `last` that x̂ was made by."""
    norms = []
    for g in (rec, play):
        (pulled,) = torch.autograd.grad(x_hat, last, g, retain_graph=True)
        norms.append(everyone.mean(pulled).norm())
    weight: Tensor = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)
    return weight


def led(x: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
    """The number `value`, whose gradient for x is `gradient`: what is known at x̂ is not computed again."""
    pull = (x * gradient.detach()).sum()
    return value.detach() + (pull - pull.detach())


class KLAutoencoder(Model):
    """x (B, *shape) <-> z (B, channels, *size), near to standard normal: the autoencoder of latent diffusion.

    encoder:  x to (B, 2 channels, *size). decoder: z (B, channels, *size) to x̂, at least of the size of x.
    channels: of z. shape: of one x. kl: weight of the KL, as of losses that are summed over x and over z.
    error:    of a reconstruction, a coordinate at a time.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        channels: int,
        shape: tuple[int, ...],
        *,
        kl: float = 1e-6,
        error: Error = absolute,
    ) -> None:
        super().__init__()
        if kl < 0:
            raise UserError(f"The weight of the KL is {kl}: give 0 or more, such as 1e-6.")
        self.encoder, self.decoder, self.shape, self.kl, self.error = encoder, decoder, tuple(shape), kl, error
        dims = len(self.shape) - 1
        self.moments = convolution(dims, 2 * channels, 2 * channels, 1)
        self.latent = convolution(dims, channels, channels, 1)

    @functools.cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape (channels, *size) of one z."""
        double, *grid = encoded_shape(self.encoder, self.shape)
        return double // 2, *grid

    @classmethod
    def stable_diffusion(cls, size: int = 512, *, kl: float = 1e-6) -> KLAutoencoder:
        """Stable Diffusion's: RGB of edge `size` to 4 channels at an eighth of it; 83,653,863 parameters."""
        from ..nets.autoencoder import Decoder, Encoder

        widths = (128, 256, 512, 512)
        return cls(Encoder(3, 8, widths=widths), Decoder(3, 4, widths=widths), 4, (3, size, size), kl=kl)

    def posterior(self, x: Float[Tensor, " b *shape"]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, *latent_shape) of z given x."""
        h = self.encoder(x)
        if h.shape[1] != self.moments.in_channels:
            raise UserError(
                f"The encoder ends in {h.shape[1]} channels, and means and log-variances of {self.latent.in_channels}"
                f" are {self.moments.in_channels}: let it end in as many."
            )
        said = self.moments(h)
        mean, log_var = said.to(torch.promote_types(said.dtype, torch.float32)).chunk(2, 1)
        return mean, log_var.clamp(-30, 20)

    def reconstruct(self, batch: Batch) -> Recoded:
        """x̂ of a z drawn by the batch's keys, and the KL."""
        mean, log_var = self.posterior(batch["x"])
        z = mean + (0.5 * log_var).exp() * Noise(batch["key"]).normal(*mean.shape[1:], dtype=mean.dtype)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1).mean()  # nats
        penalty = self.kl / math.prod(self.shape) * kl
        return Recoded(self.decode(z), penalty, {"kl": kl.detach()})

    def loss(self, batch: Batch) -> Loss:
        """Mean error of the reconstruction and the KL."""
        said = self.reconstruct(batch)
        error = self.error(said.x, batch["x"]).mean()
        return Loss(error + said.penalty, {"reconstruction": error.detach(), **said.logs})

    def encode(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, "b c *size"]:
        """The posterior's mean."""
        return self.posterior(x)[0]

    def decode(self, z: Float[Tensor, "b c *size"]) -> Float[Tensor, " b *shape"]:
        """x̂ of z."""
        return cropped(self.decoder(self.latent(z)), self.shape)


class VQGAN(Model):
    """A codec trained against a critic; what is left of it afterwards is `codec`.

    codec:      a `VQVAE`, or a `KLAutoencoder`, whose decoder has a `last` layer (`nets.Decoder` has).
    critic:     x (B, *shape) to scores of any shape.
    perceptual: a distance of pictures, with the weight `likeness`; None compares pixels alone.
    weight:     of the critic's part, times λ. after: steps without it. game: what both play for.
    Optimisers are two: {"codec": …, "critic": …}.
    """

    scaffold: ClassVar[tuple[str, ...]] = ("critic", "perceptual")
    whole: ClassVar[tuple[str, ...]] = ("codec.decoder.last", "critic", "perceptual")  # differentiated within a loss

    def __init__(
        self,
        codec: VQVAE | KLAutoencoder,
        critic: nn.Module,
        perceptual: Perceptual | None = None,
        *,
        likeness: float = 1.0,
        weight: float = 1.0,
        after: int = 0,
        game: Game = HINGE,
    ) -> None:
        super().__init__()
        if min(likeness, weight, after) < 0:
            raise UserError(
                f"A VQGAN was given likeness={likeness}, weight={weight}, after={after}: give numbers of 0 or more."
            )
        if "last.weight" not in dict(codec.decoder.named_parameters()):
            raise UserError(
                f"The decoder {type(codec.decoder).__name__} has no layer `last`, by whose gradients the losses are"
                " weighed: name its last layer so."
            )
        self.codec, self.critic, self.perceptual = codec, critic, perceptual
        self.likeness, self.weight, self.after, self.game = likeness, weight, after, game
        self.shape, self.codes = codec.shape, codec.codes if isinstance(codec, VQVAE) else None

    @property
    def last(self) -> nn.Parameter:
        """The weight of the decoder's last layer."""
        return self.codec.decoder.get_parameter("last.weight")

    # ---- training

    def phases(self) -> list[Phase]:
        """The autoencoder's turn, then the critic's."""
        return [Phase(self.autoencoder_loss, ("codec",)), Phase(self.critic_loss, ("critic",))]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """A batch is never split: λ is of the whole of it."""
        return {}

    def start(self, batch: Batch) -> None:
        """Let the codec see the first batch."""
        self.codec.start(batch)

    def autoencoder_loss(self, batch: Batch) -> Loss:
        """Reconstruction, perceptual distance, the codes' cost and the critic's opinion."""
        made, x = self.codec.reconstruct(batch), batch["x"]
        if not self.training or self.step < self.after:
            rec, logs = self._distance(made.x, x)
            return Loss(rec + made.penalty, logs | made.logs, made.seen)
        x_hat = made.x.detach().requires_grad_()  # both losses are differentiated down to here, once each
        rec, logs = self._distance(x_hat, x)
        fake = self.critic(x_hat)
        play = self.game.generator(self.critic(x) if self.game.compares else fake, fake)
        (g_rec,), (g_play,) = torch.autograd.grad(rec, x_hat), torch.autograd.grad(play, x_hat)
        weight = self.weight * adaptive_weight(made.x, self.last, g_rec, g_play)
        value = led(made.x, g_rec + weight * g_play, rec + weight * play) + made.penalty
        logs |= {"adaptive": weight, "generator": play.detach()}
        return Loss(value, logs | made.logs, made.seen)

    def critic_loss(self, batch: Batch) -> Loss:
        """The critic's side of the game, on the autoencoder as it now is."""
        if self.step < self.after:
            return Loss(0.0 * torch.stack([p.sum() for p in self.critic.parameters()]).sum())
        with torch.no_grad():
            x_hat = self.codec.reconstruct(batch).x
        real, fake = self.critic(batch["x"]), self.critic(x_hat)
        return Loss(self.game.critic(real, fake), self.game.said(real, fake))

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """What the codec does after its own turn."""
        if phase == "autoencoder_loss":
            self.codec.after_step("loss", seen)

    def _distance(self, x_hat: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.codec.error(x_hat, x).mean()
        logs = {"reconstruction": error.detach()}
        if self.perceptual is None:
            return error, logs
        apart = self.perceptual(x_hat, x).mean()
        return error + self.likeness * apart, logs | {"perceptual": apart.detach()}

    # ---- codec

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one x's latents."""
        return self.codec.latent_shape

    def encode(self, x: Float[Tensor, " b *shape"]) -> Tensor:
        """The codec's latents of x."""
        return self.codec.encode(x)

    def decode(self, z: Tensor) -> Float[Tensor, " b *shape"]:
        """x̂ of the codec's latents."""
        return self.codec.decode(z)
