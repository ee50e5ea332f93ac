"""Any codec as one whose latents are vectors that can be mixed: what the tools of the latent space stand on.

Latents may have any shape, or be a tuple of tensors (a hierarchy): here they are flattened into one vector (B, d).
Indices of a code book are names and no numbers, so that halfway between code 3 and code 5 is not code 4: of such a
codec the vectors are those that the codes stand for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..core import Codec, can, each
from ..errors import UserError
from .latent import Latent
from .vqgan import VQGAN

Cond = Mapping[str, Tensor]


@runtime_checkable
class CodeBook(Protocol):
    """A codec whose latents are indices into a code book."""

    codes: int

    def quantised(self, z: Tensor) -> Tensor:
        """The vectors (B, ...) that indices stand for."""
        ...

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Data (B, ...) of such vectors, which need not be in the code book."""
        ...


def codec_of(model: Any) -> Any:
    """The model, which must be a codec: a UserError in one sentence where it is none."""
    if not can(model, Codec):
        raise UserError(
            f"{type(model).__name__} has no latent space, for it has no encode(x) and decode(z): give an autoencoder,"
            " a VAE or another codec."
        )
    return model


def conditional(codec: Any) -> bool:
    """Whether the codec takes conditions beside x and z."""
    return all("cond" in inspect.signature(f).parameters for f in (codec.encode, codec.decode))


class Vectors:
    """A codec whose latents are vectors (B, d), made of another codec.

    codec: what encodes and decodes; its conditions are given beside x and z where it takes any. chunk: items at a time.
    of_codes: whether its latents are indices, whose vectors are taken.
    Differentiable where gradients are on. The codec is put into evaluation mode, for good.
    Raises UserError where it is no codec; `encode` where its latents are indices that stand for no vectors.
    """

    def __init__(self, codec: Any, *, chunk: int = 250) -> None:
        while isinstance(codec, VQGAN) or (isinstance(codec, Latent) and codec.discrete_latents):
            codec = codec.codec  # neither a critic nor a prior of the codes is a part of the way to them
        self.codec, self.chunk, self.conditional = codec_of(codec), chunk, conditional(codec)
        self.of_codes = isinstance(codec, CodeBook)
        self._shapes: list[tuple[int, ...]] = []  # of the tensors that make up one latent
        self._tuple = False
        anchor: Tensor | None = None
        if isinstance(codec, nn.Module):
            codec.eval()
            anchor = next((t for t in codec.state_dict().values() if t.is_floating_point()), None)
        self.device = torch.device("cpu") if anchor is None else anchor.device

    def encode(self, x: Shaped[Tensor, " b *shape"], cond: Cond | None = None) -> Float[Tensor, "b d"]:
        """Latents (B, d) of x, on x's device."""
        if len(x) == 0:
            raise UserError("There is nothing to encode: give at least one item.")
        return torch.cat([self._encode(part, c) for part, c in self._pieces(x, cond)]).to(x.device)

    def decode(self, z: Float[Tensor, "b d"], cond: Cond | None = None) -> Tensor:
        """Data (B, ...) of latents, on z's device. Raises UserError before anything was encoded."""
        if not self._shapes:
            raise UserError("How latents are laid out is not known yet: encode something first.")
        return torch.cat([self._decode(part, c) for part, c in self._pieces(z, cond)]).to(z.device)

    def _pieces(self, x: Tensor, cond: Cond | None) -> list[tuple[Tensor, Cond | None]]:
        found: list[tuple[Tensor, Cond | None]] = []
        for begin in range(0, len(x), self.chunk):
            rows = slice(begin, begin + self.chunk)
            piece = each(cond, lambda t: t[rows].to(self.device)) if cond and self.conditional else None  # noqa: B023
            found.append((x[rows].to(self.device), piece))
        return found

    def _encode(self, x: Tensor, cond: Cond | None) -> Tensor:
        z = self.codec.encode(x, cond) if self.conditional else self.codec.encode(x)
        return self.flattened(self.codec.quantised(z) if self.of_codes else z)

    def flattened(self, z: Any) -> Float[Tensor, "b d"]:
        """The vectors (B, d) of the codec's own continuous latents."""
        self._tuple = isinstance(z, tuple)
        parts = z if isinstance(z, tuple) else (z,)
        if not all(p.is_floating_point() for p in parts):
            raise UserError(
                f"The latents of {type(self.codec).__name__} are indices, and those cannot be mixed: give a codec with"
                " quantised(z) and decode_vectors(vectors), or a continuous one."
            )
        self._shapes = [tuple(p.shape[1:]) for p in parts]
        return torch.cat([p.flatten(1) if p.ndim > 1 else p[:, None] for p in parts], 1)

    def _decode(self, z: Tensor, cond: Cond | None) -> Tensor:
        parts = tuple(
            p.reshape(len(z), *shape)
            for p, shape in zip(z.split([math.prod(s) for s in self._shapes], 1), self._shapes, strict=True)
        )
        latents = parts if self._tuple else parts[0]
        if self.of_codes:
            vectors: Tensor = self.codec.decode_vectors(parts[0])
            return vectors
        made: Tensor = self.codec.decode(latents, cond) if self.conditional else self.codec.decode(latents)
        return made


def vectors(codec: Any) -> Vectors:
    """`codec` as one of vectors; itself where it is one already."""
    return codec if isinstance(codec, Vectors) else Vectors(codec)
