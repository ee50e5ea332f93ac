"""Weights in eight bits, for decoding: a fourth of the bytes that single precision reads for each symbol.

    W_ij ≈ s_i q_ij,    s_i = max_j |W_ij| / 127,    q_ij = round(W_ij / s_i),    so |W_ij − s_i q_ij| ≤ s_i / 2
    y = s ∘ (x q') + b

One scale for each output (a row of W), rounded to bfloat16 before q is made. What goes in and what comes out is rounded
to bfloat16 and sums are in single precision, whatever the net's own: it is the weights that a decoder waits for. After
Dettmers, Lewis, Belkada & Zettlemoyer 2022, "LLM.int8()", arXiv:2208.07339; here without their columns of outliers, and
of the weights alone.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Model, Net
from ..errors import UserError
from ..spec import remembered
from .packed import exchange

N = TypeVar("N", bound=Net | Model)
FEW = 32  # rows that torch's kernel of int8 weights is quicker for than a product of their numbers in bfloat16

GROUP = 16  # inputs that it reads at a time, also beyond the last: there must be zeros


class Int8(nn.Module):
    """What a linear layer computes, from weights in eight bits; not differentiable.

    Raises UserError for weights that are not finite.
    """

    q: Tensor  # (outputs, inputs and zeros), int8
    scale: Tensor  # (outputs,), bfloat16

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        w = linear.weight.detach()
        if not w.isfinite().all():
            raise UserError("A linear layer holds weights that are not finite, and they have no scale: train it anew.")
        self.in_features, self.out_features, self.dtype = linear.in_features, linear.out_features, w.dtype
        scale = (w.float().abs().amax(1) / 127).clamp(min=1e-30).bfloat16()
        self.register_buffer("scale", scale)
        q = (w.float() / scale.float()[:, None]).round().to(torch.int8)
        self.register_buffer("q", F.pad(q, (0, -self.in_features % GROUP)))
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weights that it multiplies by (outputs, inputs), in the precision of those that it was made of."""
        return (self.q[:, : self.in_features].float() * self.scale.float()[:, None]).to(self.dtype)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        rows, scale = x.reshape(-1, self.in_features).bfloat16(), self.scale.bfloat16()
        if zeros := self.q.shape[1] - self.in_features:
            rows = F.pad(rows, (0, zeros))
        if rows.is_cpu and len(rows) <= FEW:
            y = torch._weight_int8pack_mm(rows, self.q, scale)
        else:
            y = F.linear(rows, self.q.bfloat16()) * scale
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


@remembered
def int8(net: N) -> N:
    """`net`, changed: the weights of its linear layers in eight bits, frozen and in evaluation mode.

    Embeddings, norms, convolutions and recurrences stay as they are. The quickest decoding is that of a net whose other
    numbers are halved too: `int8(net.bfloat16())`. Raises UserError where there is no linear layer in it.
    """
    if not exchange(net, Int8):
        raise UserError(f"{type(net).__name__} has no linear layer inside whose weights could be in eight bits.")
    net.requires_grad_(False).eval()
    return net
