"""Parts of transformers, over sequences (B, N, D): attention within one, attention to another, a feed-forward net.

    Attention        y = W_o [softmax(q k' / sqrt(d) + bias) v]_heads     q, k, v = W x, one product for the three; as
                     the design says, turned by their positions, normed, and fewer heads of k and v than of q
    CrossAttention   the same with q from x and k, v from a context c of another length; a key that the mask
                     excludes has weight 0, whatever it holds
    FeedForward      y = W_2 a(W_1 x),  or gated  W_2 (a(W_1 x) · W_3 x)
    Block            h = x + attention(norm(x)),  y = h + feedforward(norm(h));  or norm(x + attention(x)) and so on

The parts norm nothing and add nothing to their input: a block does, each architecture in its own way.

Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762; Hendrycks & Gimpel 2016, "Gaussian error linear
units", arXiv:1606.08415; Shazeer 2020, "GLU variants improve transformer", arXiv:2002.05202; Zhang & Sennrich 2019,
"Root mean square layer normalization", arXiv:1910.07467; Ainslie et al. 2023, "GQA", arXiv:2305.13245; Henry et al.
2020, "Query-key normalization for transformers", arXiv:2010.04245 (here by a learned RMS norm of each head, as in OLMo
2 and Qwen 3); Beltagy, Peters & Cohan 2020, "Longformer", arXiv:2004.05150 (the sliding window); Radford et al. 2019,
"Language models are unsupervised multitask learners" (the norm before each part).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError, unknown
from ..spec import Remembers
from .attention import attend
from .embed import dense
from .memory import EVERYWHERE, Layer, Sight
from .mlp import ACTIVATIONS
from .positions import turned

NORMS: Mapping[str, Callable[[int, float, bool], nn.Module]] = {
    "layer": lambda width, eps, bias: nn.LayerNorm(width, eps=eps, bias=bias),
    "rms": lambda width, eps, bias: nn.RMSNorm(width, eps=eps),
}


class Design(Remembers):
    """How the blocks of a transformer are made. The default is GPT-2's, `LLAMA` Llama's.

    norm: a name in NORMS, eps: of it. after: norm after each part (Vaswani 2017) instead of before. activation: a name
    in ACTIVATIONS. gated: the feed-forward net has a gate (SwiGLU with "silu"). bias: of all linear layers and layer
    norms. kv_heads: heads of keys and values; as many as of queries if None. head: width of a head; width / heads if
    None. qk_norm: RMS norm of queries and keys. dropout: of what a part adds, in training. window: a position sees
    itself and the window − 1 before it (those as near on both sides, in an encoder).
    """

    def __init__(
        self,
        *,
        norm: str = "layer",
        eps: float = 1e-5,
        after: bool = False,
        activation: str = "gelu tanh",
        gated: bool = False,
        bias: bool = True,
        kv_heads: int | None = None,
        head: int | None = None,
        qk_norm: bool = False,
        dropout: float = 0.0,
        window: int | None = None,
    ) -> None:
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if not 0 <= dropout < 1 or (window is not None and window < 1):
            raise UserError("A design's dropout is at least 0 and below 1, and its window at least 1.")
        self.norm, self.eps, self.after, self.activation, self.gated = norm, eps, after, activation, gated
        self.bias, self.kv_heads, self.head, self.qk_norm = bias, kv_heads, head, qk_norm
        self.dropout, self.window = dropout, window

    def normed(self, width: int) -> nn.Module:
        """A norm of so many numbers."""
        return NORMS[self.norm](width, self.eps, self.bias)


GPT = Design()
LLAMA = Design(norm="rms", activation="silu", gated=True, bias=False)


def _heads(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise UserError(f"A width of {width} does not divide into {heads} attention heads: use a divisor.")
    return heads


class Attention(Net):
    """x (B, N, width) -> (B, N, width): every position looks at every other, or at what its `sight` shows.

    heads: must divide the width, unless the design says how wide a head is. gain: on the initial weights of the last
    product.
    """

    def __init__(self, width: int, heads: int, design: Design = GPT, *, gain: float = 1.0) -> None:
        super().__init__()
        self.heads = heads if design.head else _heads(width, heads)
        self.head = design.head or width // heads
        self.kv_heads = design.kv_heads or heads
        if heads % self.kv_heads:
            raise UserError(f"{heads} heads of queries do not share {self.kv_heads} of keys evenly: use a divisor.")
        self.qkv = dense(width, (heads + 2 * self.kv_heads) * self.head, bias=design.bias)
        self.out = dense(heads * self.head, width, gain=gain, bias=design.bias)
        self.q_norm = nn.RMSNorm(self.head, eps=design.eps) if design.qk_norm else None
        self.k_norm = nn.RMSNorm(self.head, eps=design.eps) if design.qk_norm else None

    def forward(
        self, x: Float[Tensor, "b n w"], sight: Sight = EVERYWHERE, cells: Layer | None = None
    ) -> Float[Tensor, "b n w"]:
        """cells: what has been seen before x, to which x is added; None begins with x."""
        b, n = x.shape[:2]
        whole = (
            self.qkv(x).view(b, n, self.heads + 2 * self.kv_heads, self.head).transpose(1, 2)
        )  # (B, heads of all three, N, d)
        q, k, v = whole.split_with_sizes((self.heads, self.kv_heads, self.kv_heads), 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if sight.turn is not None:
            q, k = turned(q, sight.turn), turned(k, sight.turn)
        if cells is not None:
            k, v = cells.extend(k, v)
        y: Tensor = self.out(
            attend(q, k, v, sight.causal, sight.bias).transpose(1, 2).reshape(b, n, self.heads * self.head)
        )
        return y


class CrossAttention(Net):
    """x (B, N, width), c (B, M, context), mask (B, M) -> (B, N, width): every position looks at the context.

    mask: True where c holds something; a position of a row without any would look at nothing, so give none such.
    gain: on the initial weights of the last product; 0 makes it start as zero.
    """

    def __init__(self, width: int, context: int, heads: int, design: Design = GPT, *, gain: float = 1.0) -> None:
        super().__init__()
        self.heads = _heads(width, heads)
        self.q = dense(width, width, bias=design.bias)
        self.kv = dense(context, 2 * width, bias=design.bias)
        self.out = dense(width, width, gain=gain, bias=design.bias)

    def forward(
        self, x: Float[Tensor, "b n w"], c: Float[Tensor, "b m _"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n w"]:
        return self.look(x, *self.keys(c), mask)

    def keys(self, c: Float[Tensor, "b m _"]) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, M, d) of a context, which many calls of `look` can share."""
        k, v = (
            self.kv(c)
            .view(len(c), c.shape[1], 2, self.heads, self.q.out_features // self.heads)
            .transpose(1, 3)
            .unbind(2)
        )
        return k, v

    def look(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The rest of `forward`."""
        b, n, w = x.shape
        q = self.q(x).view(b, n, self.heads, w // self.heads).transpose(1, 2)  # (B, heads, N, d)
        see = None if mask is None else mask[:, None, None]
        y = attend(q, k, v) if see is None else F.scaled_dot_product_attention(q, k, v, attn_mask=see)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, n, w))
        return out


class FeedForward(Net):
    """x (..., width) -> (..., outputs), by way of `hidden` units; outputs is the width by default.

    gain: on the initial weights of the last product.
    """

    def __init__(
        self, width: int, hidden: int, outputs: int | None = None, design: Design = GPT, *, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[design.activation], design.gated
        self.inner = dense(width, 2 * hidden if self.gated else hidden, bias=design.bias)
        self.outer = dense(hidden, width if outputs is None else outputs, gain=gain, bias=design.bias)

    def forward(self, x: Float[Tensor, "*b _"]) -> Float[Tensor, "*b _"]:
        if self.gated:
            gate, value = self.inner(x).chunk(2, -1)
            h = self.activation(gate) * value
        else:
            h = self.activation(self.inner(x))
        y: Tensor = self.outer(h)
        return y


class Block(Net):
    """x (B, N, width) -> (B, N, width): attention, then a feed-forward net, each normed and added.

    hidden: units of the feed-forward net. context: width of what is looked across to between the two; None: nothing.
    gain: on the initial weights of what each part adds.
    """

    recomputable: ClassVar[bool] = True  # holds most activations: worth recomputing in the backward pass

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        design: Design = GPT,
        *,
        context: int | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.after, self.dropout = design.after, design.dropout
        self.norm1, self.norm2 = design.normed(width), design.normed(width)
        self.attention = Attention(width, heads, design, gain=gain)
        self.mlp = FeedForward(width, hidden, design=design, gain=gain)
        self.norm3 = None if context is None else design.normed(width)
        self.cross = None if context is None else CrossAttention(width, context, heads, design, gain=gain)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        sight: Sight = EVERYWHERE,
        cells: Layer | None = None,
        context: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """context: keys and values of `cross`, of which the mask says what is there."""
        x = self._add(x, self.norm1, lambda h: self.attention(h, sight, cells))
        if self.cross is not None and self.norm3 is not None and context is not None:
            cross, (k, v) = self.cross, context
            x = self._add(x, self.norm3, lambda h: cross.look(h, k, v, mask))
        return self._add(x, self.norm2, self.mlp)

    def across(self, c: Float[Tensor, "b m _"]) -> tuple[Tensor, Tensor]:
        """Keys and values of a context, for `forward`."""
        assert self.cross is not None
        return self.cross.keys(c)

    def _add(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        y = part(x if self.after else norm(x))
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        added: Tensor = norm(x + y) if self.after else x + y
        return added
