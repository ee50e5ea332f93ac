r"""Directions of a latent space along which an attribute changes.

With latents z (N, d) and an attribute v (N,) of the same items, the direction is the slope of z's regression on v,

    w = Cov(z, v) / Var(v)         latent per unit of v;    v of 0 and 1:  w = mean(z | v = 1) − mean(z | v = 0),

so that the difference of two classes' means is the case of an attribute that is there or not. `given` labels, latents
and attribute are first centred within each class: what differs between the classes (ones are thin) is then no part
of the direction, and walking along it need not leave the class.

Sources: Radford, Metz & Chintala 2016, "Unsupervised representation learning with deep convolutional generative
adversarial networks", arXiv:1511.06434 (arithmetic of class means); Frisch & Waugh 1933 (centring within classes).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..errors import UserError


def direction(
    z: Float[Tensor, "n d"], value: Shaped[Tensor, " n"], given: Int[Tensor, " n"] | None = None
) -> Float[Tensor, " d"]:
    """The change of z that goes with a change of the attribute by one.

    value: the attribute, a number or 0 and 1 (False and True) for "lacks it" and "has it". given: labels within whose
    classes the direction is taken. Raises UserError where the attribute is constant (within every class).
    """
    v, wide = value.double(), z.double()
    if given is None:
        given = torch.zeros(len(z), dtype=torch.long, device=z.device)
    v, wide = _centred(v[:, None], given)[:, 0], _centred(wide, given)
    spread = v.square().sum()
    if not spread > 1e-24 * max(1.0, float(value.double().square().sum())):
        raise UserError("This attribute is the same for all items, so no direction goes with it: give items that vary.")
    return (v @ wide / spread).to(z.dtype)


def spread(value: Shaped[Tensor, " n"], given: Int[Tensor, " n"] | None = None) -> float:
    """The standard deviation of an attribute, within classes where labels are given."""
    if given is None:
        given = torch.zeros(len(value), dtype=torch.long, device=value.device)
    return float(_centred(value.double()[:, None], given).square().mean().sqrt())


def _centred(x: Tensor, label: Tensor) -> Tensor:
    """x (N, d) without the means of its classes."""
    kinds, index = label.unique(return_inverse=True)
    total = x.new_zeros(len(kinds), x.shape[1]).index_add_(0, index, x)
    count = torch.bincount(index, minlength=len(kinds)).to(x.dtype)
    return x - (total / count[:, None])[index]


def walk(z: Float[Tensor, "b d"], along: Float[Tensor, " d"], amounts: Float[Tensor, " t"]) -> Float[Tensor, "b t d"]:
    """Every z moved by each of the amounts along a direction; 0 leaves it exactly where it is."""
    return z[:, None] + amounts.to(z)[None, :, None] * along
