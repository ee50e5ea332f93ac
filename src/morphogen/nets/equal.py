r"""Layers that learn at equal rates: what the growing and the style-based generators are made of.

    y = (g λ / √n) W x + λ b,     W ~ N(0, 1/λ²),   n inputs of an output,   b = 0 at first

Adam moves every number of W by about the same amount, whatever n is: with weights of unit size, scaled where they are
used, all layers learn at the same relative rate, λ times it ("equalised learning rate"). For inputs of unit variance
the output's is g² at the start. Further

    pixel norm              a / √(mean_c a² + 1e-8), at each place
    minibatch deviation     a map more: the mean over channels and places of the deviation of a over a group of samples

Karras, Aila, Laine & Lehtinen 2018, "Progressive growing of GANs for improved quality, stability, and variation",
arXiv:1710.10196, sections 3, 4.1 and 4.2; λ and groups as in Karras et al. 2020, arXiv:1912.04958.
Departure: a group is of samples that follow one another, so that ranks with multiples of `group` have those of one
process; the last one may be smaller.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError


class EqualLinear(Net):
    """x (B, inputs) -> (B, outputs). bias: its value at the start. rate: λ. gain: g."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0, gain: float = 1.0) -> None:
        super().__init__()
        self.rate, self.scale = rate, gain * rate / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))

    def forward(self, x: Float[Tensor, "b _"]) -> Float[Tensor, "b _"]:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv(Net):
    """x (B, inputs, H, W) -> (B, outputs, ...): a convolution of odd kernel that keeps the size unless told otherwise.

    padding: zeros on each side, by default kernel // 2. gain: g.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding
        self.scale = gain / math.sqrt(inputs * kernel * kernel)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ i j"]:
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


def leaky(x: Tensor) -> Tensor:
    """√2 times the leaky ReLU of slope 0.2: the variance stays about what it was."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def pixel_norm(x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
    """x scaled to a root mean square of one over the channels, at each place."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().mean(1, keepdim=True) + 1e-8).rsqrt()).to(x.dtype)


def with_deviation(x: Float[Tensor, "b c h w"], group: int = 4) -> Float[Tensor, "b d h w"]:
    """x with a further channel: how much the samples of a group differ, one number for each group (0 alone)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    whole = len(x) // group * group
    parts = [wide[:whole].unflatten(0, (-1, group))] if whole else []  # (groups, group, C, H, W)
    parts += [wide[whole:][None]] if whole < len(x) else []
    apart = [(p.var(1, correction=0) + 1e-8).sqrt().flatten(1).mean(1).repeat_interleave(p.shape[1]) for p in parts]
    told = torch.cat(apart).to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat((x, told), 1)


def resolution(shape: tuple[int, ...], widths: tuple[int, ...]) -> int:
    """The edge of the square that nets of these widths, 4 x 4 first, work on; x of `shape` must fit into it."""
    edge = 4 << (len(widths) - 1)
    if len(widths) < 2 or min(widths) < 1:
        raise UserError(f"The widths {widths} are of no net: give channels at 4x4, 8x8, and so on, two or more.")
    if len(shape) != 3 or not edge // 2 < max(shape[1:]) <= edge:
        raise UserError(
            f"{len(widths)} widths are for pictures of {edge // 2 + 1} to {edge} pixels, and x is {tuple(shape)}: give"
            " a width for 4x4, 8x8, and so on up to the first size that holds x (C, H, W)."
        )
    return edge


def framed(x: Float[Tensor, "b c h w"], edge: int, fill: float) -> Float[Tensor, "b c e e"]:
    """x in the middle of a square of that edge, `fill` around it."""
    height, width = x.shape[2:]
    if (height, width) == (edge, edge):
        return x
    top, left = (edge - height) // 2, (edge - width) // 2
    return F.pad(x, (left, edge - width - left, top, edge - height - top), value=fill)


def unframed(x: Float[Tensor, "b c e e"], shape: tuple[int, ...]) -> Float[Tensor, "b c h w"]:
    """The middle of a square: the inverse of `framed`."""
    (_, height, width), edge = shape, x.shape[2]
    top, left = (edge - height) // 2, (edge - width) // 2
    return x[:, :, top : top + height, left : left + width]
