r"""How thick and how slanted a stroke is, measured from its pixels.

thickness. D is the distance of an ink pixel from the nearest background; across a straight stroke of width w it runs
from 0 to w/2 and back, so its mean over the ink is w/4 and the thickness is

    4 mean_ink (D − ½)        pixels; the half is from a border pixel's centre to the edge of the ink.

slant. With intensities as weights, x growing to the right and y downwards, a shear x → x − s y moves the cross moment
by −s times the vertical one, so an upright shape (μ_xy = 0) sheared by s has

    s = −μ_xy / μ_yy,     slant = atan s        degrees; to the right is positive.

Ink is what is above half of the picture's own range, after enlarging by a whole factor, so that grey borders count.
Slanted borders read up to a pixel too thin (0.7 at 45°), and strokes below two pixels up to one too thick.
Sources: Castro, Tan, Kainz, Konukoglu & Glocker 2019, "Morpho-MNIST", arXiv:1809.10780 (the measures); Felzenszwalb &
Huttenlocher 2012, "Distance transforms of sampled functions" (the exact transform, an axis at a time). Departure: the
mean is over the ink, not over its skeleton, which is another algorithm with choices of its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

ENLARGED = 2  # times, before the ink is told from the background
_CHUNK = 256  # pictures at a time


def distance(ink: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Euclidean distance of every ink pixel from the nearest background pixel; what lies outside is background."""
    ink = F.pad(ink, (1, 1, 1, 1))
    g = torch.minimum(_ahead(ink), _ahead(ink.flip(2)).flip(2)).square()  # within a row
    found, step, rows = g.clone(), 1, g.shape[1]
    while step < rows and step * step < found.max():  # from other rows, as far as any may still be nearer
        found[:, step:] = torch.minimum(found[:, step:], g[:, :-step] + step * step)
        found[:, :-step] = torch.minimum(found[:, :-step], g[:, step:] + step * step)
        step += 1
    return found[:, 1:-1, 1:-1].sqrt()


def _ahead(ink: Tensor) -> Tensor:
    """How far along its row each pixel is from the last background pixel before it."""
    place = torch.arange(ink.shape[2], dtype=torch.float32, device=ink.device).expand_as(ink)
    return place - torch.where(ink, 0.0, place).cummax(2).values


def thickness(x: Float[Tensor, "b c h w"], *, enlarged: int = ENLARGED) -> Float[Tensor, " b"]:
    """Mean stroke width (B,), pixels, float64, of bright strokes on dark; 0 for an empty picture."""
    return torch.cat([_thickness(part, enlarged) for part in x.split(_CHUNK)]) if len(x) else x.new_zeros(0).double()


def _thickness(x: Tensor, enlarged: int) -> Tensor:
    x = F.interpolate(x.float().mean(1, keepdim=True), scale_factor=enlarged, mode="bilinear", align_corners=False)
    ink = (_scaled(x) > 0.5)[:, 0]
    count = ink.sum((1, 2))
    total = (distance(ink).double() - 0.5 * ink).sum((1, 2))
    return torch.where(count > 0, 4 * total / count.clamp(min=1), 0.0) / enlarged


def slant(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Angle (B,), degrees, float64, by which a bright shape on dark leans to the right; 0 for an empty picture."""
    p = _scaled(x.double().mean(1, keepdim=True))[:, 0]  # (B, H, W)
    p = p / p.sum((1, 2), keepdim=True).clamp(min=1e-12)
    rows = torch.arange(p.shape[1], dtype=p.dtype, device=p.device)[:, None]
    columns = torch.arange(p.shape[2], dtype=p.dtype, device=p.device)
    y = rows - (p * rows).sum((1, 2), keepdim=True)
    cross = (p * y * (columns - (p * columns).sum((1, 2), keepdim=True))).sum((1, 2))
    down = (p * y.square()).sum((1, 2))
    return torch.where(down > 0, torch.atan(-cross / down.clamp(min=1e-12)), 0.0) * (180 / math.pi)


def brightness(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Mean value (B,) of all pixels, float64."""
    return x.double().flatten(1).mean(1)


def _scaled(x: Tensor) -> Tensor:
    """Each picture (B, 1, H, W) on [0, 1] of its own range; an even one is all 0."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-12), 0.0)


MEASURES = {"thickness": thickness, "slant": slant, "brightness": brightness}
