"""Convolutional encoder and decoder of pictures, signals and volumes: what VQGAN and latent diffusion compress with.

Levels l = 0, 1, .. work at 1, 1/2, 1/4, .. of the resolution with widths[l] channels. The encoder has `depth` residual
blocks a level and halvings between them, then a middle of block, attention, block, then norm, SiLU, convolution. The
decoder is its mirror image, with the middle first, `depth + 1` blocks a level and doublings between them. Neither reads
conditions.

Esser, Rombach & Ommer 2021, "Taming transformers for high-resolution image synthesis", arXiv:2012.09841; in latent
diffusion Rombach et al. 2022, arXiv:2112.10752. With widths (128, 256, 512, 512) these are Stable Diffusion's.

Departures: any size is taken (a halving rounds up; who decodes crops); the last convolution of a residual block and the
product behind an attention start at zero, so that each block starts as its skip; with `patch` the finest level works on
patches as channels (`nets.patch`), which costs patch^d times less, for small pictures on small machines.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from .attention import SelfAttention
from .conv import Downsample, ResidualBlock, Upsample, convolution, group_norm
from .patch import fold, unfold


class _Codec(Net):
    """What encoder and decoder share: the checks, and the way of making a stage."""

    def _plan(
        self,
        widths: tuple[int, ...],
        depth: int,
        attention: tuple[int, ...],
        patch: int,
        groups: int,
        dropout: float,
        dims: int,
    ) -> None:
        name = type(self).__name__
        if not widths or depth < 1 or patch < 1:
            raise UserError(
                f"An {name} with {len(widths)} widths, depth {depth} and patch {patch} is empty: give at least one"
                " width, and 1 or more of the others."
            )
        for level in attention:
            if not 0 <= level < len(widths):
                raise UserError(
                    f"attention={attention} names level {level}, but {len(widths)} widths make the levels"
                    f" 0 to {len(widths) - 1}: choose among them."
                )
        self.groups, self.dropout, self.dims, self.patch = groups, dropout, dims, patch

    def _residual(self, inputs: int, outputs: int) -> ResidualBlock:
        return ResidualBlock(inputs, outputs, groups=self.groups, dropout=self.dropout, dims=self.dims)

    def _attend(self, channels: int) -> SelfAttention:
        return SelfAttention(channels, groups=self.groups, dims=self.dims)

    def _level(self, inputs: int, outputs: int, depth: int, attentive: bool) -> list[nn.Module]:
        """`depth` residual blocks, each followed by attention where `attentive`."""
        parts: list[nn.Module] = []
        for k in range(depth):
            parts.append(self._residual(inputs if k == 0 else outputs, outputs))
            if attentive:
                parts.append(self._attend(outputs))
        return parts

    def _middle(self, channels: int, attentive: bool) -> list[nn.Module]:
        between = [self._attend(channels)] if attentive else []
        return [self._residual(channels, channels), *between, self._residual(channels, channels)]


class Encoder(_Codec):
    """x (B, channels, *size) -> (B, outputs, *ceil(size / (patch 2^(levels - 1)))).

    channels:  of x. outputs: of the result.
    widths:    channels of each level. depth: residual blocks a level.
    attention: the levels with self-attention (0 is the finest). middle: whether the middle has it.
    patch:     edge of the patches that become channels before the finest level; 1 keeps every pixel.
    dropout:   in the residual blocks. groups: of the group norms. dims: 1, 2 or 3 axes.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        widths: tuple[int, ...] = (64, 128, 128),
        depth: int = 2,
        attention: tuple[int, ...] = (),
        middle: bool = True,
        patch: int = 1,
        dropout: float = 0.0,
        groups: int = 32,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self._plan(widths, depth, attention, patch, groups, dropout, dims)
        self.first = convolution(dims, channels * patch**dims, widths[0])
        parts: list[nn.Module] = []
        now = widths[0]
        for level, wide in enumerate(widths):
            if level:
                parts.append(Downsample(now, dims=dims))
            parts += self._level(now, wide, depth, level in attention)
            now = wide
        self.parts = nn.ModuleList([*parts, *self._middle(now, middle)])
        self.norm = group_norm(groups, now, 1e-6)
        self.last = convolution(dims, now, outputs)

    def forward(self, x: Float[Tensor, "b _ *size"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b _ *small"]:
        if self.patch > 1:
            x = fold(F.pad(x, [p for n in reversed(x.shape[2:]) for p in (0, -n % self.patch)]), self.patch)
        h = self.first(x)
        for part in self.parts:
            h = part(h)
        out: Tensor = self.last(F.silu(self.norm(h)))
        return out


class Decoder(_Codec):
    """z (B, inputs, *size) -> (B, channels, *(size patch 2^(levels - 1))).

    Its arguments are those of the `Encoder` that it answers: level 0 of the widths is the finest here too. `last` is
    the last layer, whose gradients VQGAN weighs its losses by.
    """

    def __init__(
        self,
        channels: int,
        inputs: int,
        *,
        widths: tuple[int, ...] = (64, 128, 128),
        depth: int = 2,
        attention: tuple[int, ...] = (),
        middle: bool = True,
        patch: int = 1,
        dropout: float = 0.0,
        groups: int = 32,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self._plan(widths, depth, attention, patch, groups, dropout, dims)
        now = widths[-1]
        self.first = convolution(dims, inputs, now)
        parts = self._middle(now, middle)
        for level, wide in reversed(list(enumerate(widths))):
            parts += self._level(now, wide, depth + 1, level in attention)
            now = wide
            if level:
                parts.append(Upsample(now, dims=dims))
        self.parts = nn.ModuleList(parts)
        self.norm = group_norm(groups, now, 1e-6)
        self.last = convolution(dims, now, channels * patch**dims)

    def forward(self, z: Float[Tensor, "b _ *small"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b _ *size"]:
        h = self.first(z)
        for part in self.parts:
            h = part(h)
        y: Tensor = self.last(F.silu(self.norm(h)))
        return unfold(y, self.patch) if self.patch > 1 else y
