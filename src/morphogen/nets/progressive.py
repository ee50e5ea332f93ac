r"""A generator and a critic that grow: every size of picture has its own way in and out.

    generator   z -> 4 x 4 -> (double, conv, conv) -> …     at size k:  (1 - α) double(image_{k-1}) + α image_k
    critic      … -> (conv, conv, halve) -> 4 x 4 -> score  at size k:  (1 - α) in_{k-1}(half x) + α half(block(in_k x))

α goes from 0 to 1 while size k fades in: at 0 both nets are those of the size below, at 1 the old way in and out is no
longer used. Feature vectors of the generator are normed at each place, weights learn at equal rates, and the critic is
told how much the pictures of a group differ.

Karras, Aila, Laine & Lehtinen 2018, "Progressive growing of GANs for improved quality, stability, and variation",
arXiv:1710.10196, figure 2 and table 2. Departures: pictures that are no power of two are the middle of one, framed by
`fill`; a class is an embedding beside z, and one that the critic's features are projected on (arXiv:1802.05637).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from .conv import doubled, halved
from .embed import ClassEmbedding
from .equal import EqualConv, EqualLinear, pixel_norm, resolution, with_deviation

Cond = Mapping[str, Tensor]
_HE = math.sqrt(2)


class Stage(NamedTuple):
    """How far the nets have grown. level: pictures have 4 · 2^level pixels a side. alpha: share of the newest size."""

    level: int
    alpha: float = 1.0


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class _Twice(Net):
    """x (B, inputs, H, W) -> (B, outputs, H, W): two convolutions. norm: at each place behind both."""

    def __init__(self, inputs: int, middle: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = norm
        self.first = EqualConv(inputs, middle, gain=_HE)
        self.second = EqualConv(middle, outputs, gain=_HE)

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ h w"]:
        for conv in (self.first, self.second):
            x = _leaky(conv(x))
            x = pixel_norm(x) if self.norm else x
        return x


class GrowingGenerator(Net):
    """z (B, latent) -> pictures (B, C, e, e), e = 4 · 2^level, at a stage of growth.

    shape: (C, H, W) of the data, which fit into the last size. widths: channels at 4x4, 8x8, … up to there.
    classes: of `cond["label"]`; None for no conditions.
    """

    def __init__(
        self, shape: tuple[int, ...], widths: tuple[int, ...], *, latent: int = 512, classes: int | None = None
    ) -> None:
        super().__init__()
        self.edge = resolution(shape, widths)
        self.shape, self.latent, self.classes = tuple(shape), latent, classes
        self.embed = None if classes is None else ClassEmbedding(classes, latent)
        inputs = latent if classes is None else 2 * latent
        self.first = EqualLinear(inputs, 16 * widths[0], gain=_HE / 4)  # as a convolution that 4 x 4 values add up in
        self.second = EqualConv(widths[0], widths[0], gain=_HE)
        self.blocks = nn.ModuleList(_Twice(a, b, b, norm=True) for a, b in itertools.pairwise(widths))
        self.images = nn.ModuleList(EqualConv(c, shape[0], 1) for c in widths)

    def forward(self, z: Float[Tensor, "b _"], cond: Cond = NONE, *, stage: Stage) -> Float[Tensor, "b c e e"]:
        z = pixel_norm(z)
        if self.embed is not None:
            z = torch.cat((z, pixel_norm(self.embed(cond, len(z)))), 1)
        h = pixel_norm(_leaky(self.first(z).unflatten(1, (-1, 4, 4))))
        h = pixel_norm(_leaky(self.second(h)))
        before = h
        for block in self.blocks[: stage.level]:
            before = doubled(h)
            h = block(before)
        image: Tensor = self.images[stage.level](h)
        if stage.level and stage.alpha < 1:
            image = torch.lerp(self.images[stage.level - 1](before), image, stage.alpha)  # 1 x 1: doubled alike
        return image


class GrowingCritic(Net):
    """Pictures (B, C, e, e), e = 4 · 2^level, at a stage of growth -> scores (B,).

    group: samples whose deviation is told; 1 for none. Others: see `GrowingGenerator`.
    """

    def __init__(
        self, shape: tuple[int, ...], widths: tuple[int, ...], *, group: int = 4, classes: int | None = None
    ) -> None:
        super().__init__()
        self.edge = resolution(shape, widths)
        self.group, self.classes = group, classes
        self.images = nn.ModuleList(EqualConv(shape[0], c, 1, gain=_HE) for c in widths)
        self.blocks = nn.ModuleList(_Twice(b, b, a, norm=False) for a, b in itertools.pairwise(widths))
        self.last = EqualConv(widths[0] + (group > 1), widths[0], gain=_HE)
        self.hidden = EqualLinear(16 * widths[0], widths[0], gain=_HE)
        self.score = EqualLinear(widths[0], 1)
        self.embed = None if classes is None else ClassEmbedding(classes, widths[0])

    def forward(self, x: Float[Tensor, "b c e e"], cond: Cond = NONE, *, stage: Stage) -> Float[Tensor, " b"]:
        h = _leaky(self.images[stage.level](x))
        for k in range(stage.level, 0, -1):
            h = halved(self.blocks[k - 1](h))
            if k == stage.level and stage.alpha < 1:
                h = torch.lerp(_leaky(self.images[k - 1](halved(x))), h, stage.alpha)
        h = _leaky(self.last(with_deviation(h, self.group) if self.group > 1 else h))
        h = _leaky(self.hidden(h.flatten(1)))
        scores: Tensor = self.score(h)[:, 0]
        if self.embed is None:
            return scores
        about = pixel_norm(self.embed(cond, len(x)))
        return scores + (h * about).sum(1) / math.sqrt(about.shape[1])
