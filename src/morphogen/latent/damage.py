"""What happens to pictures, to be undone by `restore`: pixels lost, scratches, blur, noise.

Each takes x (B, C, H, W) and keyed noise, and gives `Damaged`: the picture, the part of the damage that is known as a
function (linear in x where nothing is filled in, affine else), and where it left x as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Noise
from ..errors import UserError

Pictures = Float[Tensor, "b c h w"]


class Damaged(NamedTuple):
    """y: the damaged pictures (B, C, H, W). forward: what makes of undamaged pictures ones that y can be held against.
    intact: (B, 1, H, W), 1 where y is x; None where it is nowhere for certain.
    """

    y: Tensor
    forward: Callable[[Tensor], Tensor]
    intact: Tensor | None = None


def masked(x: Pictures, intact: Float[Tensor, "b 1 h w"], value: float = 0.0) -> Damaged:
    """Pictures whose pixels are `value` wherever `intact` is 0: linear in x for value 0."""

    def forward(x: Tensor) -> Tensor:
        return torch.where(intact > 0, x, value)

    return Damaged(forward(x), forward, intact)


def missing(x: Pictures, noise: Noise, *, share: float = 0.5, value: float = 0.0) -> Damaged:
    """A share of all pixels lost, each for itself, all colours of it together. value: what stands in their place."""
    if not 0 <= share <= 1:
        raise UserError(f"A share of {share} of the pixels cannot be missing: take 0 to 1.")
    return masked(x, (noise.uniform(1, *x.shape[2:]).to(x.device) >= share).to(x.dtype), value)


def scratches(x: Pictures, noise: Noise, *, count: int = 3, width: float = 1.5, value: float = 1.0) -> Damaged:
    """Straight scratches across the picture, between two of its sides. width: pixels. value: their brightness."""
    if count < 0 or width <= 0:
        raise UserError(f"{count} scratches of width {width} cannot be drawn: take 0 or more, wider than 0.")
    _, _, height, wide = x.shape
    rows = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    columns = torch.arange(wide, dtype=torch.float64) - (wide - 1) / 2
    intact = torch.ones(len(x), height, wide, dtype=torch.bool)
    for _ in range(count):
        u = noise.uniform(2, dtype=torch.float64).cpu()  # of each: the direction, and how far from the centre
        angle = u[:, 0, None, None] * math.pi
        off = (u[:, 1, None, None] - 0.5) * 0.7 * min(height, wide)
        away = (rows * angle.cos() + columns * angle.sin() - off).abs()  # (B, H, W) from the line
        intact &= away > width / 2
    return masked(x, intact[:, None].to(x), value)


def blur(x: Pictures, noise: Noise, *, sigma: float = 1.5) -> Damaged:
    """A Gaussian blur of deviation `sigma` pixels, borders continued by their own pixels: linear in x, and no noise."""
    if sigma < 0:
        raise UserError(f"A blur of {sigma} pixels was asked for: take 0 or more.")
    reach = math.ceil(3 * sigma)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (line / sigma).square()) if sigma > 0 else torch.ones_like(line)
    kernel = (kernel / kernel.sum()).to(x)

    def forward(x: Tensor) -> Tensor:
        c = x.shape[1]
        padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
        down = F.conv2d(padded, kernel.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)
        return F.conv2d(down, kernel.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)

    return Damaged(forward(x), forward)


def grain(x: Pictures, noise: Noise, *, sigma: float = 0.5) -> Damaged:
    """White noise of deviation `sigma` on every pixel; nothing of it is known."""
    if sigma < 0:
        raise UserError(f"Noise of deviation {sigma} was asked for: take 0 or more.")
    return Damaged(x + sigma * noise.normal(*x.shape[1:], dtype=x.dtype).to(x.device), _as_is)


def _as_is(x: Tensor) -> Tensor:
    return x


DAMAGES: dict[str, Callable[..., Damaged]] = {
    "scratches": scratches,
    "missing": missing,
    "blur": blur,
    "noise": grain,
}
STRENGTHS = {"scratches": "count", "missing": "share", "blur": "sigma", "noise": "sigma"}  # how much, by which argument
