"""Nets that make a picture of a picture: pix2pix's U-Net and CycleGAN's residual net.

    U-Net    down: conv 4, stride 2; then (leaky ReLU - conv 4, stride 2 - norm), the innermost without norm
             up:   (ReLU - transposed conv 4, stride 2 - norm - dropout in the innermost few), each output beside the
                   input of the same size on the way down; the last is tanh(transposed conv)
    ResNet   conv 7 - norm - ReLU; (conv 3, stride 2 - norm - ReLU) twice; blocks
                   h + norm(conv 3(dropout(ReLU(norm(conv 3(h))))))
             (transposed conv 3, stride 2 - norm - ReLU) twice; tanh(conv 7); all but those in between pad by reflection

A norm is over one picture's channel alone (instance norm), so that no sample sees another. Dropout is the nets' only
noise, and is drawn from the `Noise` they are given: the same in training and afterwards. Without it nothing is dropped.

Isola, Zhu, Zhou & Efros 2017, "Image-to-image translation with conditional adversarial networks", arXiv:1611.07004;
Zhu, Park, Isola & Efros 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks",
arXiv:1703.10593; Ulyanov, Vedaldi & Lempitsky 2016, "Instance normalization", arXiv:1607.08022.
Departures: instance norms in the U-Net too (paper: batch norms, which over its batches of one are these); any size is
taken that the halvings leave something of: a doubling ends at the size that was halved.
"""

from __future__ import annotations

import itertools
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net, Noise
from ..errors import UserError

Started = TypeVar("Started", nn.Conv2d, nn.ConvTranspose2d)


class TranslationUNet(Net):
    """x (B, channels, H, W) -> (B, outputs, H, W) in [-1, 1], through `depth` halvings.

    width: channels after the first halving, doubled by each further one up to 8 times. dropout: of the `dropped`
    innermost levels on the way up, where noise is given. Raises UserError for an x smaller than 2^depth pixels.
    """

    def __init__(
        self, channels: int, outputs: int, width: int = 64, depth: int = 8, *, dropout: float = 0.5, dropped: int = 3
    ) -> None:
        super().__init__()
        if width < 1 or depth < 2:
            raise UserError(f"A TranslationUNet of width {width} and depth {depth}: give 1 or more, and 2 or more.")
        _probable(dropout)
        self.depth, self.share, self.dropped = depth, dropout, dropped
        widths = [width * min(2**k, 8) for k in range(depth)]
        self.down = nn.ModuleList(
            _started(nn.Conv2d(a, b, 4, 2, 1, bias=not _normed(k, depth)))
            for k, (a, b) in enumerate(itertools.pairwise([channels, *widths]))
        )
        self.down_norms = nn.ModuleList(_norm(b) if _normed(k, depth) else nn.Identity() for k, b in enumerate(widths))
        inner = [widths[-1], *(2 * w for w in reversed(widths[:-1]))]
        outer = [*reversed(widths[:-1]), outputs]
        self.up = nn.ModuleList(
            _started(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=k == depth - 1))
            for k, (a, b) in enumerate(zip(inner, outer, strict=True))
        )
        self.up_norms = nn.ModuleList(_norm(b) for b in outer[:-1])

    def forward(self, x: Float[Tensor, "b _ h w"], noise: Noise | None = None) -> Float[Tensor, "b _ h w"]:
        _large_enough(x, 2**self.depth, f"a TranslationUNet of depth {self.depth}", "take a smaller depth")
        sizes, skips, h = [], [], x
        for k, (conv, norm) in enumerate(zip(self.down, self.down_norms, strict=True)):
            sizes.append(h.shape[2:])
            h = norm(conv(F.leaky_relu(h, 0.2) if k else h))
            skips.append(h)
        skips.pop()
        for k, (conv, norm) in enumerate(zip(self.up, self.up_norms, strict=False)):
            h = norm(conv(F.relu(h), output_size=sizes.pop()))
            if k < self.dropped:
                h = dropped(h, self.share, noise)
            h = torch.cat((h, skips.pop()), 1)
        return torch.tanh(self.up[-1](F.relu(h), output_size=sizes.pop()))


class TranslationResNet(Net):
    """x (B, channels, H, W) -> (B, outputs, H, W) in [-1, 1], through `blocks` residual blocks at a quarter of that.

    width: channels at full size; the blocks have 4 width. blocks: 6 in the paper for 128 pixels, 9 for 256.
    dropout: within the blocks, where noise is given. Raises UserError for an x below 8 pixels.
    """

    def __init__(self, channels: int, outputs: int, width: int = 64, blocks: int = 9, *, dropout: float = 0.0) -> None:
        super().__init__()
        if width < 1 or blocks < 0:
            raise UserError(f"A TranslationResNet of width {width} and {blocks} blocks: give 1 or more, and 0 or more.")
        _probable(dropout)
        self.first = _started(nn.Conv2d(channels, width, 7, padding=3, padding_mode="reflect", bias=False))
        self.first_norm = _norm(width)
        self.down = nn.ModuleList(_started(nn.Conv2d(k * width, 2 * k * width, 3, 2, 1, bias=False)) for k in (1, 2))
        self.down_norms = nn.ModuleList(_norm(2 * k * width) for k in (1, 2))
        self.blocks = nn.ModuleList(TranslationBlock(4 * width, dropout) for _ in range(blocks))
        self.up = nn.ModuleList(
            _started(nn.ConvTranspose2d(2 * k * width, k * width, 3, 2, 1, bias=False)) for k in (2, 1)
        )
        self.up_norms = nn.ModuleList(_norm(k * width) for k in (2, 1))
        self.last = _started(nn.Conv2d(width, outputs, 7, padding=3, padding_mode="reflect"))

    def forward(self, x: Float[Tensor, "b _ h w"], noise: Noise | None = None) -> Float[Tensor, "b _ h w"]:
        _large_enough(x, 8, "a TranslationResNet", "enlarge the pictures")
        h, sizes = F.relu(self.first_norm(self.first(x))), []
        for conv, norm in zip(self.down, self.down_norms, strict=True):
            sizes.append(h.shape[2:])
            h = F.relu(norm(conv(h)))
        for block in self.blocks:
            h = block(h, noise)
        for conv, norm in zip(self.up, self.up_norms, strict=True):
            h = F.relu(norm(conv(h, output_size=sizes.pop())))
        return torch.tanh(self.last(h))


class TranslationBlock(Net):
    """h + norm(conv(dropout(ReLU(norm(conv(h)))))), the size kept."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.share = dropout
        self.convs = nn.ModuleList(
            _started(nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False)) for _ in range(2)
        )
        self.norms = nn.ModuleList(_norm(channels) for _ in range(2))

    def forward(self, h: Float[Tensor, "b c h w"], noise: Noise | None = None) -> Float[Tensor, "b c h w"]:
        r = dropped(F.relu(self.norms[0](self.convs[0](h))), self.share, noise)
        out: Tensor = h + self.norms[1](self.convs[1](r))
        return out


def dropped(h: Float[Tensor, " b *shape"], rate: float, noise: Noise | None) -> Float[Tensor, " b *shape"]:
    """h with a share `rate` of its numbers set to 0 by `noise`, and the others made larger by 1 / (1 - rate)."""
    if not rate or noise is None:
        return h
    kept = noise.uniform(*h.shape[1:], dtype=torch.float32) >= rate
    return h * (kept.to(h.dtype) / (1 - rate))


def _normed(level: int, depth: int) -> bool:
    """Whether a level on the way down has a norm: not the first, and not the innermost, which may be one pixel."""
    return 0 < level < depth - 1


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def _started(conv: Started) -> Started:
    nn.init.normal_(conv.weight, std=0.02)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _probable(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise UserError(f"A dropout of {dropout} leaves nothing or is no probability: use 0 to below 1.")


def _large_enough(x: Tensor, least: int, net: str, advice: str) -> None:
    if min(x.shape[2:]) < least:
        raise UserError(
            f"x is {x.shape[2]} x {x.shape[3]}, and {net} wants {least} pixels or more along each axis: {advice}."
        )
