r"""VQ-VAE: a picture as a grid of integers, and back.

    z_e = E(x),   z_q = the nearest code vectors,   x̂ = D(z_q)
    loss = mean |x̂ - x|² + what the quantiser adds (`quantise.py`: |sg(z_e) - e|² + β |z_e - sg(e)|² for a code book)

The gradient at z_q goes straight through to z_e. A prior over the integers makes a generator of it: `Latent`.

van den Oord, Vinyals & Kavukcuoglu 2017, "Neural discrete representation learning", arXiv:1711.00937; any other
quantiser (residual, FSQ, LFQ) takes the place of the code book.
Departures: those of `quantise.py`; the reconstruction is a mean over pixels, in the data's own units.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import NONE, Batch, Loss, Model, Noise, size
from ..errors import UserError
from .quantise import Quantiser, perplexity

Error = Callable[[Tensor, Tensor], Tensor]  # of x̂ and x (B, ...), a coordinate at a time


def squared(x_hat: Tensor, x: Tensor) -> Tensor:
    """(x̂ - x)²."""
    return (x_hat - x).square()


def absolute(x_hat: Tensor, x: Tensor) -> Tensor:
    """|x̂ - x|."""
    return (x_hat - x).abs()


class Recoded(NamedTuple):
    """What a codec in training makes of a batch: x̂ (B, ...), what its latents cost, and what `Loss` reports."""

    x: Tensor
    penalty: Tensor
    logs: dict[str, Tensor]
    seen: Mapping[str, Tensor] = NONE


@torch.no_grad()
def encoded_shape(encoder: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what an encoder makes of one x of `shape`, which is found by giving it zeros."""
    like, training = next(encoder.parameters(), torch.empty(())), encoder.training
    z: Tensor = encoder.eval()(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    encoder.train(training)
    return tuple(z.shape[1:])


def cropped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first corner of x (B, C, *size) that is of `shape` (C, *size). Raises UserError where x is smaller."""
    if x.shape[1] != shape[0] or any(a < b for a, b in zip(x.shape[2:], shape[1:], strict=True)):
        raise UserError(f"The decoder makes {tuple(x.shape[1:])} where x is {shape}: let its levels be the encoder's.")
    for axis, n in enumerate(shape[1:], 2):
        x = x.narrow(axis, 0, n)
    return x


class VQVAE(Model):
    """x (B, *shape) <-> codes (B, *size) int64, or (B, depth, *size) of a residual quantiser.

    encoder:   x to z_e (B, quantiser.dim, *size). decoder: z_q to x̂, at least of the size of x, and cropped to it.
    quantiser: z_e to codes.
    shape:     of one x.
    error:     of a reconstruction, a coordinate at a time: `squared` or `absolute`.
    Attribute: codes, the size of the alphabet.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantiser: Quantiser,
        shape: tuple[int, ...],
        *,
        error: Error = squared,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantiser = encoder, decoder, quantiser
        self.shape, self.error = tuple(shape), error
        self.codes = quantiser.codes

    @functools.cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one x's codes."""
        grid = encoded_shape(self.encoder, self.shape)[1:]
        return grid if self.quantiser.depth is None else (self.quantiser.depth, *grid)

    # ---- training

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The samples; a batch is never split where the quantiser looks at the whole of it."""
        return {} if self.quantiser.whole else {"": float(size(batch))}

    def start(self, batch: Batch) -> None:
        """Let the quantiser see the first batch's latents."""
        with torch.no_grad():
            self.quantiser.start(self.embed(batch["x"]), Noise(batch["key"]))

    def reconstruct(self, batch: Batch) -> Recoded:
        """x̂ of a batch, what its codes cost, and what `after_step` needs to see."""
        z = self.embed(batch["x"])
        said = self.quantiser(z)
        logs = {"quantiser": said.loss.detach(), "perplexity": perplexity(self.quantiser.usage()).mean()}
        seen = {"z": z.detach(), "codes": said.codes, "key": batch["key"]}
        return Recoded(self.decode_vectors(said.z), said.loss, logs, seen)

    def loss(self, batch: Batch) -> Loss:
        """Mean error of the reconstruction and what the quantiser adds."""
        said = self.reconstruct(batch)
        error = self.error(said.x, batch["x"]).mean()
        return Loss(error + said.penalty, {"reconstruction": error.detach(), **said.logs}, said.seen)

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """Move the code book."""
        self.quantiser.update(seen["z"], seen["codes"], Noise(seen["key"]))

    # ---- codec

    def embed(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, "b d *size"]:
        """z_e (B, dim, *size), before it is quantised."""
        z: Tensor = self.encoder(x)
        return z

    def encode(self, x: Float[Tensor, " b *shape"]) -> Int[Tensor, " b *size"]:
        """The codes of x."""
        codes: Tensor = self.quantiser(self.embed(x)).codes
        return codes

    def quantised(self, z: Int[Tensor, " b *size"]) -> Float[Tensor, "b d *_"]:
        """The code vectors z_q (B, dim, *size) of codes."""
        return self.quantiser.vectors(z)

    def decode(self, z: Int[Tensor, " b *size"]) -> Float[Tensor, " b *shape"]:
        """x̂ of codes."""
        return self.decode_vectors(self.quantised(z))

    def decode_vectors(self, z: Tensor) -> Tensor:
        """x̂ of vectors (B, dim, *size), which need not be of the code book."""
        return cropped(self.decoder(z), self.shape)
