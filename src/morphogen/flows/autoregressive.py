"""The affine autoregressive bijection, in one pass forwards and D passes backwards.

    y_i = x_i exp(s_i) + m_i,    (m_i, s_i) a function of x_1 .. x_{i-1} and the conditions,    log |det| = Σ_i s_i

With x data and y noise it is a masked autoregressive flow (MAF: densities in one pass, samples in D); with x noise and
y data an inverse autoregressive flow (IAF: samples and their densities in one pass, as a posterior needs). They are the
same object, read as `f` or as `Inverse(f)`.

Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow", arXiv:1606.04934; Papamakarios,
Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation", arXiv:1705.07057. Departures: s = b tanh(s'
/ b) keeps scales within exp(±b) (papers: exp of the net's number, or its sigmoid); no batch normalisation between
layers; each layer starts as the identity.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import NONE
from ..errors import UserError
from ..nets.masked import MADE
from .bijection import Bijection, Cond, Mapped


class AffineAutoregressive(Bijection):
    """See the module's head. net: gives (m, s') of each of D features (B, D, 2). bound: b, on the log-scales."""

    def __init__(self, net: MADE, *, bound: float = 5.0) -> None:
        super().__init__()
        if net.outputs != 2:
            raise UserError(
                f"An affine bijection needs a shift and a scale, and this net gives {net.outputs}: build"
                " MADE(features, 2)."
            )
        if not bound > 0:
            raise UserError(f"Log-scales within ±{bound} leave no room: give a bound above 0, such as 5.")
        self.net, self.bound = net, bound

    def forward(self, x: Float[Tensor, "b d"], cond: Cond = NONE) -> Mapped:
        m, s = self._affine(x, cond)
        return x * s.exp() + m, s.sum(1)

    def inverse(self, y: Float[Tensor, "b d"], cond: Cond = NONE) -> Mapped:
        x, s = torch.zeros_like(y), torch.zeros_like(y)
        places = torch.tensor(self.net.order, device=y.device)
        for place in range(self.net.features):
            m, s = self._affine(x, cond)
            x = torch.where(places == place, (y - m) * (-s).exp(), x)
        return x, -s.sum(1)  # the last pass read all of x that any s reads

    def _affine(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        m, s = self.net(x, cond).unbind(2)  # (B, D) each
        return m, self.bound * torch.tanh(s / self.bound)
