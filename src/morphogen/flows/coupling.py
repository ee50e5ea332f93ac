"""The affine coupling: part of x stays, and says how the rest is scaled and shifted. One pass both ways.

    y_a = x_a,    y_b = x_b exp(s) + m,    (m, s) a function of x_a and the conditions,    log |det| = Σ s

Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP", arXiv:1605.08803. Departures: s = c tanh(s'/c)
(paper: a learned factor on tanh); no batch normalisation between layers; each layer starts as the identity.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE
from ..errors import UserError
from .bijection import Bijection, Cond, Mapped


class AffineCoupling(Bijection):
    """See the module's head.

    net:   of the features that stay, (B, a), to shift and scale of those that move, (B, 2 b): `net(x_a, cond)`.
    stays: for each of the D features whether it stays; some must and some must not.
    bound: c, on the log-scales.
    """

    a: Tensor  # which features stay
    b: Tensor  # which move

    def __init__(self, net: nn.Module, stays: tuple[bool, ...], *, bound: float = 5.0) -> None:
        super().__init__()
        if all(stays) or not any(stays):
            raise UserError("A coupling needs features that stay and features that move: give `stays` both kinds.")
        if not bound > 0:
            raise UserError(f"Log-scales within ±{bound} leave no room: give a bound above 0, such as 5.")
        self.net, self.bound = net, bound
        a = [i for i, stay in enumerate(stays) if stay]
        b = [i for i, stay in enumerate(stays) if not stay]
        self.register_buffer("a", torch.tensor(a), persistent=False)
        self.register_buffer("b", torch.tensor(b), persistent=False)

    def forward(self, x: Float[Tensor, "n d"], cond: Cond = NONE) -> Mapped:
        m, s = self._affine(x, cond)
        return x.index_copy(1, self.b, x[:, self.b] * s.exp() + m), s.sum(1)

    def inverse(self, y: Float[Tensor, "n d"], cond: Cond = NONE) -> Mapped:
        m, s = self._affine(y, cond)
        return y.index_copy(1, self.b, (y[:, self.b] - m) * (-s).exp()), -s.sum(1)

    def _affine(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        m, s = self.net(x[:, self.a], cond).chunk(2, 1)  # (B, b) each
        return m, self.bound * torch.tanh(s / self.bound)
