"""Parts of transformers, over sequences (B, N, D): attention within one, attention to another, a feed-forward net.

    Attention        y = W_o [softmax(q k' / sqrt(d)) v]_heads      q, k, v = W x, one product for the three; causal:
                     position i looks at i and before it. Rotary: q and k are turned by their positions (see `turned`)
    CrossAttention   the same with q from x and k, v from a context c of another length; a key that the mask
                     excludes has weight 0, whatever it holds
    FeedForward      y = W_2 gelu(W_1 x)                            gelu by its tanh form
    Block            h = x + attention(norm(x)),  y = h + feedforward(norm(h))

The parts norm nothing and add nothing to their input: a block does, each architecture in its own way.

Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762; Hendrycks & Gimpel 2016, "Gaussian error linear
units", arXiv:1606.08415; Su et al. 2021, "RoFormer", arXiv:2104.09864 (rotary positions; here of the two halves of a
head, as in GPT-NeoX: the paper's neighbours, with the columns of W in another order); Radford et al. 2019, "Language
models are unsupervised multitask learners" (the norm before each part).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError
from .attention import attend
from .embed import dense


class Memory:
    """Keys and values of the positions that a causal attention has seen, with room for `length` of them."""

    def __init__(self, length: int) -> None:
        self.length, self.used = length, 0
        self._room: Tensor | None = None  # (2, B, heads, length, d), made for the first

    def extend(self, k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"]) -> tuple[Tensor, Tensor]:
        """All keys and values (B, heads, M, d) there are, these n the last."""
        if self._room is None:
            self._room = k.new_empty(2, *k.shape[:2], self.length, k.shape[3])
        start, self.used = self.used, self.used + k.shape[2]
        self._room[0, :, :, start : self.used] = k
        self._room[1, :, :, start : self.used] = v
        k, v = self._room[:, :, :, : self.used]
        return k, v


def _heads(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise UserError(f"A width of {width} does not divide into {heads} attention heads: use a divisor.")
    return heads


class Attention(Net):
    """x (B, N, width) -> (B, N, width): every position looks at every other, or at those before it.

    heads:  must divide the width. causal: look at no later position.
    rotary: period of rotary positions, such as 10,000; None turns nothing. A head's width must then be even.
    gain:   on the initial weights of the last product.
    """

    def __init__(
        self, width: int, heads: int, *, causal: bool = False, rotary: float | None = None, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.rotary = _heads(width, heads), causal, rotary
        if rotary is not None and width // heads % 2:
            raise UserError(f"Rotary positions turn pairs, and a head is {width // heads} wide: make it even.")
        self.qkv = dense(width, 3 * width)
        self.out = dense(width, width, gain=gain)

    def forward(self, x: Float[Tensor, "b n w"], memory: Memory | None = None) -> Float[Tensor, "b n w"]:
        """memory: what a causal attention has seen before x, to which x is added; None begins with x."""
        b, n, w = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, w // self.heads).transpose(1, 3).unbind(2)  # (B, heads, N, d)
        if self.rotary is not None:
            start = 0 if memory is None else memory.used
            q, k = turned(q, start, self.rotary), turned(k, start, self.rotary)
        if memory is not None:
            k, v = memory.extend(k, v)
        y: Tensor = self.out(attend(q, k, v, self.causal).transpose(1, 2).reshape(b, n, w))
        return y


def turned(x: Float[Tensor, "b h n d"], start: int, period: float) -> Float[Tensor, "b h n d"]:
    """x with the pair (x_j, x_{j + d/2}) of position i turned by the angle (start + i) period^(−2j/d), j < d/2.

    The product of a turned query and key depends on their positions by the difference alone.
    """
    n, d = x.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)  # angles grow with the position: half precision would lose them
    at = torch.arange(start, start + n, dtype=wide, device=x.device)
    frequency = period ** (torch.arange(0, d, 2, dtype=wide, device=x.device) / -d)
    angle = at[:, None] * frequency  # (N, d / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


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
    """x (..., width) -> (..., outputs), by way of `hidden` units; outputs is the width by default.

    gain: on the initial weights of the last product.
    """

    def __init__(self, width: int, hidden: int, outputs: int | None = None, *, gain: float = 1.0) -> None:
        super().__init__()
        self.inner = dense(width, hidden)
        self.outer = dense(hidden, width if outputs is None else outputs, gain=gain)

    def forward(self, x: Float[Tensor, "*b _"]) -> Float[Tensor, "*b _"]:
        y: Tensor = self.outer(F.gelu(self.inner(x), approximate="tanh"))
        return y


class Block(Net):
    """x (B, N, width) -> (B, N, width): attention, then a feed-forward net, each normed before and added after.

    hidden: units of the feed-forward net. gain: on the initial weights of what each of the two adds. Others: see
    `Attention`.
    """

    recomputable: ClassVar[bool] = True  # holds most activations: worth recomputing in the backward pass

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        causal: bool = False,
        rotary: float | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal, rotary=rotary, gain=gain)
        self.mlp = FeedForward(width, hidden, gain=gain)

    def forward(self, x: Float[Tensor, "b n w"], memory: Memory | None = None) -> Float[Tensor, "b n w"]:
        x = x + self.attention(self.norm1(x), memory)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y
