"""What a codec makes of data: decode(encode(x)), and by how much it errs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..errors import UserError
from .vectors import Cond, codec_of, conditional


class Rebuilt(NamedTuple):
    """made: (N, *shape), of each x. error: (N,) the mean squared error of each, float64."""

    made: Tensor
    error: Tensor


@torch.no_grad()
def reconstruct(codec: Any, x: Shaped[Tensor, " n *shape"], cond: Cond | None = None) -> Rebuilt:
    """Encode and decode x, all at once. cond: conditions, for a codec that takes them.

    Raises UserError where the model is no codec, or gives back another shape than x has.
    """
    told = (cond,) if conditional(codec_of(codec)) else ()
    made: Tensor = codec.decode(codec.encode(x, *told), *told)
    if made.shape != x.shape:
        raise UserError(
            f"{type(codec).__name__} makes {tuple(made.shape)} of data {tuple(x.shape)}: a codec gives back the shape"
            " that it was given."
        )
    return Rebuilt(made, (made.double() - x.double()).square().flatten(1).mean(1))
