"""Self-attention over the positions of a grid.

    q, k, v = W_q n(x), W_k n(x), W_v n(x)        n: group norm; one product makes all three
    y = x + W_o softmax(q k' / sqrt(d)) v         d = channels / heads

Sources: Vaswani et al. 2017, arXiv:1706.03762; in U-Nets Ho, Jain & Abbeel 2020, arXiv:2006.11239.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from ..core import Net
from ..errors import UserError
from .conv import convolution, group_norm

# On a CPU, up to so many positions, products and softmax by torch's plain operators beat its fused kernel. Forward and
# backward, one thread, 32 samples: bf16, 256 positions 1.7 to 3.1 times, 1024 positions 1.6 times; fp32, 256
# positions 1.0 to 1.1 times. Beyond, and on a GPU, the fused kernel, which keeps no N x N weights.
PLAIN: Mapping[torch.dtype, int] = {torch.bfloat16: 1024, torch.float32: 256}
# The same where half is hidden, in blocks of queries (`_Back`): bf16 2.3 times at 256, 1.7 at 1024; fp32 1.2 times.
CAUSAL: Mapping[torch.dtype, int] = {torch.bfloat16: 1024, torch.float32: 512}
BLOCK = 64  # queries at a time
# A single query, as in decoding: bf16 2 to 4 times at any number of keys, fp32 0.6 to 1.1 times.
ONE: Mapping[torch.dtype, int] = {torch.bfloat16: sys.maxsize}
PIECE = 1 << 20  # weights made at a time: what stays in the cache and in the allocator's reach (1.2 to 2.2 times)


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    causal: bool = False,
    bias: Shaped[Tensor, "#b #h #n m"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """softmax(q k' / sqrt(d) + bias) v, each head by itself; fewer heads of keys are shared by neighbours of queries.

    causal: the queries are of the last n of the m positions, and each looks at its own and those before. bias: added to
    the scores, or booleans, True where a query sees a key; `causal` is then not read.
    """
    (h, n), (g, m) = q.shape[1:3], k.shape[1:3]
    causal = causal and n > 1 and bias is None  # a single query is of the last position, which sees all
    if g != h and n == 1:  # the queries that share a key are its rows
        if bias is not None and bias.shape[1] == h:
            bias = bias.view(-1, g, h // g, m)
        return attend(q.view(-1, g, h // g, q.shape[3]), k, v, False, bias).view_as(q)
    if g != h:
        k, v = k.repeat_interleave(h // g, 1), v.repeat_interleave(h // g, 1)
    if half := autocast_dtype(q.device):  # as torch's own kernels do
        q, k, v = (a.to(half) if a.dtype == torch.float32 else a for a in (q, k, v))
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(q.dtype)
    most = CAUSAL if causal else ONE if n == 1 else PLAIN
    if q.device.type != "cpu" or m > most.get(q.dtype, 0):
        q, k, v = (a if a.stride(-1) == 1 else a.contiguous() for a in (q, k, v))  # else the fused kernel declines
        if causal and n != m:
            bias = _past(n, m, q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal and bias is None)
    if causal and n == m and q.dtype == k.dtype == v.dtype:
        y: Tensor = _Back.apply(q, k, v)
        return y
    if causal:
        bias = _past(n, m, q.device)
    rows = max(1, PIECE // max(1, h * n * m))
    if rows >= q.shape[0]:
        return _plain(q, k, v, bias)
    pieces = zip(q.split(rows), k.split(rows), v.split(rows), _split(bias, rows, q.shape[0]), strict=True)
    return torch.cat([_plain(*piece) for piece in pieces])


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision of products on such a device where autocast is on."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def _split(bias: Tensor | None, rows: int, b: int) -> Sequence[Tensor | None]:
    """The bias of each piece of so many rows."""
    if bias is None or bias.ndim < 4 or len(bias) == 1:
        return [bias] * -(-b // rows)
    pieces: Sequence[Tensor] = bias.split(rows)
    return pieces


def _past(n: int, m: int, device: torch.device) -> Tensor:
    """(n, m): which of m positions the last n of them see."""
    return torch.ones(n, m, dtype=torch.bool, device=device).tril_(m - n)


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    q = q * q.shape[-1] ** -0.5
    scores = (k @ q.mT).mT if q.shape[2] == 1 else q @ k.mT  # (B, heads, N, M); of one row, keys are read as they lie
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    return torch.softmax(scores, -1) @ v


class _Back(torch.autograd.Function):
    """Attention of each position to itself and those before, a block of queries at a time, which sees no later key:
    three eighths of the products less at four blocks, and the weights of as many pairs never made.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, h, n, d = q.shape
        q = q.clone(memory_format=torch.contiguous_format).mul_(d**-0.5)
        k, v = k.contiguous(), v.contiguous()
        y = q.new_empty(b, n, h, d).transpose(1, 2)
        later = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=q.device).triu_(1)
        weights = []
        for start in range(0, n, BLOCK):
            end = min(start + BLOCK, n)
            scores = q[:, :, start:end] @ k[:, :, :end].mT
            scores[..., start:].masked_fill_(later[: end - start, : end - start], -torch.inf)
            w = torch.softmax(scores, -1)
            y[:, :, start:end] = w @ v[:, :, :end]
            weights.append(w)
        ctx.save_for_backward(q, k, v, *weights)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *weights = ctx.saved_tensors
        n, dy = q.shape[2], dy.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, w in zip(range(0, n, BLOCK), weights, strict=True):
            end = min(start + BLOCK, n)
            own = dy[:, :, start:end]
            dv[:, :, :end] += w.mT @ own
            scores = torch._softmax_backward_data(own @ v[:, :, :end].mT, w, -1, w.dtype)
            dq[:, :, start:end] = scores @ k[:, :, :end]
            dk[:, :, :end] += scores.mT @ q[:, :, start:end]
        return dq.mul_(q.shape[3] ** -0.5), dk, dv


class SelfAttention(Net):
    """x (B, C, *size) -> (B, C, *size): every position looks at every other; starts as the identity.

    heads: number of heads, which must divide the channels. groups, eps: of the norm (see `conv.group_norm`).
    dims:  the number of axes in size.
    """

    def __init__(self, channels: int, *, heads: int = 1, groups: int = 8, eps: float = 1e-6, dims: int = 2) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(f"{channels} channels do not divide into {heads} attention heads: use a divisor.")
        self.heads = heads
        self.norm = group_norm(groups, channels, eps)
        # Products over channels as convolutions of kernel 1: nothing is transposed, whatever the memory format.
        self.qkv = convolution(dims, channels, 3 * channels, 1, gain=2**0.5)  # Glorot's bound as for three products
        self.out = convolution(dims, channels, channels, 1, gain=0.0)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        b, c, n = x.shape[0], x.shape[1], x.shape[2:].numel()
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, n)
        q, k, v = qkv.mT.unbind(1)  # (B, heads, N, d)
        h = attend(q, k, v).mT.reshape(x.shape)  # (B, heads, d, N) -> (B, C, *size)
        y: Tensor = x + self.out(h)
        return y
