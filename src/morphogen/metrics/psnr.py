"""How far pictures are from what they should be: squared error and PSNR.

    MSE = mean_d (x − y)²,     PSNR = 10 log10(span² / MSE) dB,     span = highest − lowest value that a pixel can have

PSNR of equal pictures is infinite. A picture of L levels is known to half a level alone, and what was rounded so errs
by cell² / 12 on average, cell = span / (L − 1): given a `cell`, no error counts as smaller, so that means are finite
(58.9 dB at 256 levels). Source: Huynh-Thu & Ghanbari 2008, "Scope of validity of PSNR in image/video quality
assessment", eqs. 1 and 2.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def squared_error(x: Float[Tensor, " b *shape"], y: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
    """The mean squared error (B,) of each item, float64."""
    return (x.double() - y.double()).square().flatten(1).mean(1)


def psnr(
    x: Float[Tensor, " b *shape"], y: Float[Tensor, " b *shape"], *, span: float = 2.0, cell: float = 0.0
) -> Float[Tensor, " b"]:
    """PSNR (B,) of each item, dB, float64. span: of a pixel's values, 2 on [-1, 1]. cell: of its levels, 0 for none."""
    return 10 * (span**2 / squared_error(x, y).clamp(min=cell**2 / 12)).log10()
