"""Fourier features of x: a net that sees the last digits of a number.

    x (B, C, ...) -> net(cat(x, sin(2^n π x), cos(2^n π x) for n in powers)), C (1 + 2 · powers) channels

A likelihood of pixels is decided at noise far below the width of a grey level, where a net that is given x alone must
tell differences of a thousandth apart. Kingma, Salimans, Poole & Ho 2021, "Variational diffusion models",
arXiv:2107.00630, appendix C (there n = 7 and 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError


class FourierFeatures(Net):
    """`net` on x and the sines and cosines of 2^n π x: it must take C (1 + 2 · powers) channels.

    powers: the n, whole numbers. The features are made in x's precision, autocast or not.
    """

    def __init__(self, net: nn.Module, powers: tuple[int, ...] = (7, 8)) -> None:
        super().__init__()
        if not powers:
            raise UserError("Fourier features without powers are none: give one or more, such as (7, 8).")
        self.net, self.powers = net, powers

    def forward(self, x: Float[Tensor, "b _ *size"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b _ *size"]:
        angles = torch.cat([x * (2.0**n * math.pi) for n in self.powers], 1)
        out: Tensor = self.net(torch.cat((x, angles.sin(), angles.cos()), 1), cond)
        return out
