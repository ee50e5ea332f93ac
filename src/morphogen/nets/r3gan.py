r"""R3GAN's nets: residual stages of grouped convolutions, alike in generator and critic, without any normalisation.

    block       x + W_3 a(W_2 * a(W_1 x))      W_1, W_3 1 x 1, W_2 a grouped 3 x 3;  a(h) = leaky ReLU_0.2(h + b)
    stage       generator: upsampled bilinearly, 1 x 1 where the channels change, `depth` blocks
                critic: `depth` blocks, 1 x 1 where the channels change, the mean of 2 x 2 neighbours
    generator   (z, e(y)) -> a learned basis of the coarsest map, weighted by a linear layer -> stages -> 1 x 1: x
    critic      x -> 1 x 1 -> stages -> a 1-channel-each convolution over the whole coarsest map -> linear: features

Fix-up initialisation: with L blocks W_1 and W_2 are He-normal times L^(-1/4), W_3 is zero, so that the net starts as
its skips (Zhang, Dauphin & Ma 2019, "Fixup initialization", arXiv:1901.09321).

Huang, Gokaslan, Kuleshov & Tompkin 2024, "The GAN is dead; long live the GAN! A modern baseline GAN", arXiv:2501.05441.
Departures: pixels are averaged where the paper filters by (1, 3, 3, 1) on the way down; the class is told to the critic
by `nets.Critic`, whose score has a part without it; with patch=2 the finest stage sees 2 x 2 pixels as one of four
channels, which costs a quarter; any picture whose size is a multiple of patch 2^(stages - 1) is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from .conv import halved
from .embed import ClassEmbedding

_GAIN = (2 / (1 + 0.2**2)) ** 0.5  # He's, of a leaky ReLU of slope 0.2


def _he(layer: nn.Conv2d | nn.Linear, gain: float) -> nn.Conv2d | nn.Linear:
    """The layer with normal weights of variance gain² / fan-in."""
    nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _point(inputs: int, outputs: int, gain: float = 1.0, *, bias: bool = False) -> nn.Module:
    return _he(nn.Conv2d(inputs, outputs, 1, bias=bias), gain)


class Activation(Net):
    """Leaky ReLU of h + b, a bias for each channel of h (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        return F.leaky_relu(h + self.bias[:, None, None], 0.2)


class FixupBlock(Net):
    """x (B, C, H, W) -> the same, as in the module's head. group: channels of a group. blocks: L, in the whole net."""

    def __init__(self, channels: int, group: int, blocks: int, expansion: int = 2) -> None:
        super().__init__()
        inner = channels * expansion
        if inner % group:
            raise UserError(
                f"{inner} channels ({expansion} x {channels}) do not divide into groups of {group}: give others."
            )
        gain = _GAIN * blocks**-0.25
        self.into, self.act1 = _point(channels, inner, gain), Activation(inner)
        self.grouped, self.act2 = nn.Conv2d(inner, inner, 3, 1, 1, groups=inner // group, bias=False), Activation(inner)
        self.out = _point(inner, channels, 0.0)
        _he(self.grouped, gain)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        out: Tensor = x + self.out(self.act2(self.grouped(self.act1(self.into(x)))))
        return out


def _sized(size: int, widths: Sequence[int], depth: int, patch: int) -> int:
    """The size of the coarsest map. Raises UserError."""
    if not widths or depth < 1 or patch < 1:
        raise UserError(f"An R3GAN net of {len(widths)} stages of {depth} blocks is empty: give 1 or more of each.")
    unit = patch << (len(widths) - 1)
    if size < 1 or size % unit:
        raise UserError(
            f"An R3GAN net of {len(widths)} stages and patches of {patch} wants pictures whose size is a multiple of"
            f" {unit}, not {size} pixels: take fewer stages, or pad the pictures."
        )
    return size // unit


class R3GANGenerator(Net):
    """z (B, latent), conditions -> x (B, channels, size, size).

    bounded: end in a hyperbolic tangent, for pictures in [-1, 1] with much of black and white.
    widths: channels of the stages, coarse to fine. depth: blocks of each. group: channels of a group. expansion: of
    the channels inside a block. patch: edge of what the finest stage sees as one. classes: of `cond["label"]`, or 0.
    """

    def __init__(
        self,
        latent: int,
        channels: int,
        size: int,
        widths: Sequence[int] = (128, 64, 32),
        depth: int = 1,
        *,
        group: int = 16,
        expansion: int = 2,
        patch: int = 1,
        classes: int = 0,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        coarsest, blocks = _sized(size, widths, depth, patch), depth * len(widths)
        self.classes = ClassEmbedding(classes, latent) if classes else None
        self.basis = nn.Parameter(torch.randn(widths[0], coarsest, coarsest))
        self.weigh = _he(nn.Linear(latent * (2 if classes else 1), widths[0], bias=False), 1.0)
        self.changes = nn.ModuleList(
            nn.Identity() if a == b else _point(a, b) for a, b in itertools.pairwise((widths[0], *widths))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(FixupBlock(w, group, blocks, expansion) for _ in range(depth))) for w in widths
        )
        self.patch, self.bounded = patch, bounded
        self.last = _point(widths[-1], channels * patch**2, bias=True)

    def forward(
        self, z: Float[Tensor, "b latent"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, "b channels h w"]:
        if self.classes is not None:
            z = torch.cat((z, self.classes(cond, len(z))), 1)
        h = self.weigh(z)[:, :, None, None] * self.basis  # (B, C, s, s)
        for k, (change, stage) in enumerate(zip(self.changes, self.stages, strict=True)):
            if k:  # the channels first, which is the same and less
                h = F.interpolate(change(h), scale_factor=2.0, mode="bilinear")
            h = stage(h)
        x = F.pixel_shuffle(self.last(h), self.patch)
        return x.tanh() if self.bounded else x


class R3GANBody(Net):
    """x (B, channels, size, size) -> features (B, features), for a `nets.Critic`.

    widths: channels of the stages, fine to coarse. Others as the generator's.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        widths: Sequence[int] = (32, 64, 128),
        depth: int = 1,
        *,
        group: int = 16,
        expansion: int = 2,
        patch: int = 1,
        features: int = 128,
    ) -> None:
        super().__init__()
        coarsest, blocks = _sized(size, widths, depth, patch), depth * len(widths)
        self.features, self.patch = features, patch
        self.first = _point(channels * patch**2, widths[0], bias=True)
        self.stages = nn.ModuleList(
            nn.Sequential(*(FixupBlock(w, group, blocks, expansion) for _ in range(depth))) for w in widths
        )
        self.changes = nn.ModuleList(nn.Identity() if a == b else _point(a, b) for a, b in itertools.pairwise(widths))
        self.whole = nn.Conv2d(widths[-1], widths[-1], coarsest, groups=widths[-1], bias=False)
        _he(self.whole, 1.0)
        self.head = _he(nn.Linear(widths[-1], features, bias=False), 1.0)

    def forward(self, x: Float[Tensor, "b channels h w"]) -> Float[Tensor, "b {self.features}"]:
        h = self.first(F.pixel_unshuffle(x, self.patch))
        for k, stage in enumerate(self.stages):
            if k:
                h = self.changes[k - 1](halved(h))
            h = stage(h)
        out: Tensor = self.head(self.whole(h).flatten(1))
        return out
