"""Parts of transformers, over sequences (B, N, D): attention within one, attention to another, a feed-forward net.

    Attention        y = W_o [softmax(q k' / sqrt(d)) v]_heads      q, k, v = W x, one product for the three
    CrossAttention   the same with q from x and k, v from a context c of another length; a key that the mask
                     excludes has weight 0, whatever it holds
    FeedForward      y = W_2 gelu(W_1 x)                            gelu by its tanh form

None of them norms its input or adds it to its output: a block does that, each architecture in its own way.

Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762; Hendrycks & Gimpel 2016, "Gaussian error linear
units", arXiv:1606.08415.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import Net
from ..errors import UserError
from .attention import attend
from .embed import dense


def _heads(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise UserError(f"A width of {width} does not divide into {heads} attention heads: use a divisor.")
    return heads


class Attention(Net):
    """x (B, N, width) -> (B, N, width): every position looks at every other. heads must divide the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = _heads(width, heads)
        self.qkv = dense(width, 3 * width)
        self.out = dense(width, width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        b, n, w = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, w // self.heads).transpose(1, 3).unbind(2)  # (B, heads, N, d)
        y: Tensor = self.out(attend(q, k, v).transpose(1, 2).reshape(b, n, w))
        return y


class CrossAttention(Net):
    """x (B, N, width), c (B, M, context), mask (B, M) -> (B, N, width): every position looks at the context.

    mask: True where c holds something; a position of a row without any would look at nothing, so give none such.
    gain: on the initial weights of the last product; 0 makes it start as zero.
    """

    def __init__(self, width: int, context: int, heads: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.heads = _heads(width, heads)
        self.q = dense(width, width)
        self.kv = dense(context, 2 * width)
        self.out = dense(width, width, gain=gain)

    def forward(
        self, x: Float[Tensor, "b n w"], c: Float[Tensor, "b m _"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n w"]:
        b, n, w = x.shape
        d = w // self.heads
        q = self.q(x).view(b, n, self.heads, d).transpose(1, 2)  # (B, heads, N, d)
        k, v = self.kv(c).view(b, c.shape[1], 2, self.heads, d).transpose(1, 3).unbind(2)  # (B, heads, M, d)
        see = None if mask is None else mask[:, None, None]
        y = attend(q, k, v) if see is None else F.scaled_dot_product_attention(q, k, v, attn_mask=see)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, n, w))
        return out


class FeedForward(Net):
    """x (..., width) -> (..., outputs), by way of `hidden` units; outputs is the width by default."""

    def __init__(self, width: int, hidden: int, outputs: int | None = None) -> None:
        super().__init__()
        self.inner = dense(width, hidden)
        self.outer = dense(hidden, width if outputs is None else outputs)

    def forward(self, x: Float[Tensor, "*b _"]) -> Float[Tensor, "*b _"]:
        y: Tensor = self.outer(F.gelu(self.inner(x), approximate="tanh"))
        return y
