"""Convolutional parts in one, two and three dimensions: residual blocks, halving and doubling of the resolution.

Residual block (Ho, Jain & Abbeel 2020, arXiv:2006.11239; norms first, after Zagoruyko & Komodakis 2016):

    h = conv(silu(norm(x)))
    h = norm(h + W e)                       "shift" (DDPM)
    h = norm(h) * (1 + W_s e) + W_b e       "scale-shift" (Nichol & Dhariwal 2021, arXiv:2102.09672)
    y = skip(x) + conv(dropout(silu(h)))    skip: identity, or a 1x1 convolution where the channels change

e is the embedding of the conditions *after* its activation, which the caller applies once for all blocks. The last
convolution starts at zero, so that a block starts as its skip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError, unknown
from .embed import dense

CONVOLUTIONS: Mapping[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolution(
    dims: int,
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    gain: float = 1.0,
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution over `dims` axes with Glorot-uniform weights times `gain` and zero bias; same size by default."""
    if dims not in CONVOLUTIONS:
        raise UserError(f"There are no convolutions over {dims} axes here: use dims=1, 2 or 3.")
    conv = CONVOLUTIONS[dims](inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding)
    nn.init.xavier_uniform_(conv.weight)
    with torch.no_grad():
        conv.weight.mul_(gain)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with `groups` groups, or the largest divisor of it that divides `channels`."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps)


def _spread(e: Tensor, h: Tensor) -> Tensor:
    """E (B, C) with as many axes as h (B, C, ...)."""
    return e.reshape(*e.shape, *(1,) * (h.ndim - 2))


class Shift(Net):
    """norm(h + W e): the condition as a bias of each channel."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.linear = dense(embedding, channels)

    def forward(self, h: Tensor, e: Tensor, norm: nn.Module) -> Tensor:
        shifted: Tensor = norm(h + _spread(self.linear(e), h))
        return shifted


class ScaleShift(Net):
    """norm(h) * (1 + W_s e) + W_b e: the condition as gain and bias of each channel."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.linear = dense(embedding, 2 * channels)

    def forward(self, h: Tensor, e: Tensor, norm: nn.Module) -> Tensor:
        scale, shift = _spread(self.linear(e), h).chunk(2, 1)
        return torch.addcmul(shift, norm(h), 1 + scale)


MODULATIONS: Mapping[str, type[Shift | ScaleShift]] = {"shift": Shift, "scale-shift": ScaleShift}


class ResidualBlock(Net):
    """x (B, inputs, *size), e (B, embedding) -> (B, outputs, *size). See the module's head for the formula.

    embedding:  width of e; 0 makes a block without conditions (e is then None).
    groups:     of the norms (see `group_norm`), eps theirs too.
    modulation: how e enters, a name in MODULATIONS.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int = 0,
        *,
        dims: int = 2,
        groups: int = 8,
        eps: float = 1e-6,
        dropout: float = 0.0,
        modulation: str = "shift",
    ) -> None:
        super().__init__()
        if modulation not in MODULATIONS:
            raise unknown("modulation", modulation, MODULATIONS)
        self.dropout = dropout
        self.norm1 = group_norm(groups, inputs, eps)
        self.conv1 = convolution(dims, inputs, outputs)
        self.modulate = MODULATIONS[modulation](embedding, outputs) if embedding else None
        self.norm2 = group_norm(groups, outputs, eps)
        self.conv2 = convolution(dims, outputs, outputs, gain=0.0)
        self.skip = convolution(dims, inputs, outputs, 1) if inputs != outputs else None

    def forward(
        self, x: Float[Tensor, "b _ *size"], e: Float[Tensor, "b _"] | None = None
    ) -> Float[Tensor, "b _ *size"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) if self.modulate is None else self.modulate(h, e, self.norm2)
        h = F.silu(h)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        y: Tensor = self.conv2(h) + (x if self.skip is None else self.skip(x))
        return y


class Downsample(Net):
    """x (B, C, *size) -> (B, C, *ceil(size / 2)): a convolution of kernel 3 and stride 2.

    Padded with zeros as little as it takes, the odd one at the end ("same" padding, as in DDPM): even sizes get one
    row at the end, odd sizes one on each side.
    """

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.conv = convolution(dims, channels, channels, stride=2, padding=0)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *half"]:
        out: Tensor = self.conv(F.pad(x, [p for n in reversed(x.shape[2:]) for p in (n % 2, 1)]))
        return out


class Upsample(Net):
    """x (B, C, *size) -> (B, C, *(2 size)): each value repeated, then a convolution of kernel 3.

    Repeated neighbours meet sums of the kernel's taps: along each axis (w0, w1, w2) acts on x as the transposed
    convolution of stride 2 with (w2, w1 + w2, w0 + w1, w0). It multiplies (3 / 2)^dims times less; in 2-D, forward
    and backward on a CPU take 0.43 (fp32) and 0.54 (bf16) of the time of repeating and convolving.
    """

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.conv = convolution(dims, channels, channels)
        self.transposed = TRANSPOSED[dims]

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *double"]:
        w = self.conv.weight.transpose(0, 1)  # (in, out, 3, ..)
        for axis in range(2, w.ndim):
            w0, w1, w2 = w.unbind(axis)
            w = torch.stack((w2, w1 + w2, w0 + w1, w0), axis)  # (in, out, 4, ..)
        out: Tensor = self.transposed(x, w, self.conv.bias, 2, 1)
        return out
