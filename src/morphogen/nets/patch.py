"""Patches as channels: a net that works at a fraction of the resolution.

    x (B, C, *size) -> (B, C p^d, *ceil(size / p)) -> net -> (B, C' p^d, ..) -> (B, C', *size)

Nothing is lost, and a convolution costs p^d times less; what a pixel's neighbour says within a patch is learned as
channels. Hoogeboom, Heek & Salimans 2023, "Simple diffusion", arXiv:2301.11093, section 3.4. Sizes that p does not
divide are padded with zeros at the end, and cropped again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError


class Patched(Net):
    """`net` on patches of edge `patch`: it must take channels · patch^d channels, d being the axes of size."""

    def __init__(self, net: nn.Module, patch: int = 2) -> None:
        super().__init__()
        if patch < 1:
            raise UserError(f"Patches of edge {patch} hold no pixel: use 1 or more.")
        self.net, self.patch = net, patch

    def forward(self, x: Float[Tensor, "b _ *size"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b _ *size"]:
        size = x.shape[2:]
        padded = F.pad(x, [p for n in reversed(size) for p in (0, -n % self.patch)])
        y: Tensor = unfold(self.net(fold(padded, self.patch), cond), self.patch)
        for axis, n in enumerate(size, 2):
            y = y.narrow(axis, 0, n)
        return y


def fold(x: Float[Tensor, "b c *size"], p: int) -> Float[Tensor, "b d *small"]:
    """Patches of edge p become channels, ordered (channel, place in the patch) as by `torch.pixel_unshuffle`."""
    b, c, *size = x.shape
    axes = len(size)
    x = x.reshape(b, c, *(k for n in size for k in (n // p, p)))  # (B, C, H/p, p, W/p, p)
    order = [0, 1, *range(3, 3 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2)]
    return x.permute(order).reshape(b, c * p**axes, *(n // p for n in size))


def unfold(x: Float[Tensor, "b d *small"], p: int) -> Float[Tensor, "b c *size"]:
    """The inverse of `fold`."""
    b, d, *small = x.shape
    axes = len(small)
    x = x.reshape(b, d // p**axes, *(p,) * axes, *small)  # (B, C, p, p, H/p, W/p)
    order = [0, 1, *(k for i in range(axes) for k in (2 + axes + i, 2 + i))]
    return x.permute(order).reshape(b, d // p**axes, *(n * p for n in small))
