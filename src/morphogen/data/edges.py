"""The edges of pictures, one pixel wide.

    g = Sobel's gradient of the mean over channels, divided by 8: |g| = 1 at a straight edge from -1 to 1
    a pixel is an edge where |g| ≥ level, and where |g| is the largest along the nearest to g of the lines of 0°, 45°,
    90° and 135°: above the one neighbour's and not below the other's, so that of two alike one is an edge

Sobel & Feldman 1968, "A 3x3 isotropic gradient operator for image processing"; Canny 1986, "A computational approach
to edge detection" (thinning along the gradient). Departures from Canny: pictures here are small, so they are not
smoothed, and one level takes the place of two with hysteresis.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

LEVEL = 0.25
_AHEAD = ((0, 1), (1, 1), (1, 0), (1, -1))  # (down, right) of the neighbour ahead, by direction


def edges(x: Float[Tensor, "b c h w"], level: float = LEVEL) -> Bool[Tensor, "b h w"]:
    """Where pictures in [-1, 1] have an edge that is at least `level` of the steepest."""
    grey = F.pad(x.float().mean(1, keepdim=True), (1, 1, 1, 1), "replicate")
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    sobel = torch.stack((torch.outer(smooth, slope), torch.outer(slope, smooth)))[:, None].to(grey)  # (2, 1, 3, 3)
    across, down = F.conv2d(grey, sobel / 8).unbind(1)  # (B, H, W) each
    steep = torch.hypot(across, down)
    direction = (torch.atan2(down, across) * (4 / math.pi)).round().long()  # -4 .. 4, in steps of 45°
    around = F.pad(steep, (1, 1, 1, 1))
    edge = torch.zeros_like(steep, dtype=torch.bool)
    for k, (i, j) in enumerate(_AHEAD):
        ahead, behind = (_shifted(around, s * i, s * j) for s in (1, -1))
        edge |= (direction % 4 == k) & (steep >= ahead) & (steep > behind)
    return edge & (steep >= level)


def _shifted(around: Tensor, i: int, j: int) -> Tensor:
    """The values i rows below and j columns to the right of each pixel, of what is padded by one."""
    h, w = around.shape[1] - 2, around.shape[2] - 2
    return around[:, 1 + i : 1 + i + h, 1 + j : 1 + j + w]


def drawn_edges(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """The edges of pictures as pictures, bright lines on dark."""
    return edges(x)[:, None].to(x.dtype) * 2 - 1


def coarse_edges(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """The edges of pictures at half their size, drawn at full size: lines two pixels wide, that leave much open."""
    small = drawn_edges(F.avg_pool2d(x, 2, ceil_mode=True))
    return F.interpolate(small, scale_factor=2.0, mode="nearest")[:, :, : x.shape[2], : x.shape[3]]


def thick_grey(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Bright strokes on dark made a pixel thicker on every side, and all of half the contrast."""
    return F.max_pool2d(x, 3, 1, 1) / 2


def thick_negative(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Bright strokes on dark made a pixel thicker on every side, and dark on bright."""
    return -F.max_pool2d(x, 3, 1, 1)
