"""Cross entropy of a large alphabet without the logits of all symbols at once.

    loss = Σ_i w_i (log Σ_v exp(l_iv) − l_i,y_i),   l = h W' + b
    ∂l_iv = w_i (softmax(l_i)_v − [v = y_i]),       ∂h = ∂l W,   ∂W = Σ ∂l' h

The weights w are known before, so a piece of rows makes its logits, its share of the loss and of the gradients, and
forgets the logits: memory is that of one piece, and the backward pass has nothing left to do but scale. After Hsu et
al. 2024, "Liger Kernel", arXiv:2410.10989.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import NONE
from ..nets.attention import autocast_dtype

PIECE = 1 << 25  # logits at a time: fewer, and the table is read too often
FEW = 1 << 19  # of them that softmax takes at a time: what stays in the cache


@runtime_checkable
class Hidden(Protocol):
    """A net whose logits are `last` of vectors that it shows."""

    last: nn.Linear

    def hidden(self, x: Tensor, cond: Any = NONE) -> Tensor:
        """The vectors (B, T, width) that the logits of each symbol are made of."""
        ...


def weighted_nll(
    h: Float[Tensor, "n d"], last: nn.Linear, target: Int[Tensor, " n"], weight: Float[Tensor, " n"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " n"]]:
    """Σ w_i nll_i, differentiable once, and the nll_i, which are not. Under autocast, products are in its precision."""
    dtype = autocast_dtype(h.device) or h.dtype
    with torch.autocast(h.device.type, enabled=False):
        total, nll = _Weighted.apply(h, last.weight, last.bias, target, weight, dtype)
    return total, nll


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, w: Tensor, b: Tensor | None, target: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        wide, table, backward = torch.promote_types(dtype, torch.float32), w.to(dtype), any(ctx.needs_input_grad)
        nll = torch.empty(len(h), dtype=wide, device=h.device)
        dh = torch.empty_like(h) if backward else None
        dw = torch.zeros_like(w, dtype=wide) if backward else None
        db = torch.zeros_like(b, dtype=wide) if backward and b is not None else None
        rows = _even(len(h), PIECE // len(w))
        few = max(1, (FEW if h.is_cpu else PIECE // 4) // len(w))
        room = torch.empty(rows, len(w), dtype=dtype, device=h.device)
        for start in range(0, len(h), rows):
            piece = slice(start, start + rows)
            own, share = h[piece], weight[piece]
            logits = torch.mm(own.to(dtype), table.T, out=room[: len(own)])
            for i in range(0, len(own), few):
                part, of = slice(i, i + few), slice(start + i, min(start + i + few, start + rows))
                errors, nll[of] = _errors(logits[part], b, target[of], wide)
                if backward:
                    logits[part] = errors
                if db is not None:
                    db += share[part] @ errors
            if dh is not None and dw is not None:
                dh[piece] = (logits @ table).to(dh.dtype) * share[:, None]
                own = (own * share[:, None]).to(dtype)
                dw = dw.addmm_(logits.T, own) if dtype == wide else dw.add_(logits.T @ own)
        ctx.found = dh, dw, db
        ctx.mark_non_differentiable(nll)
        return (nll * weight).sum(), nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError("Trying to backward through the loss of a large alphabet a second time.")
        dh, dw, db = ctx.found
        ctx.found = None  # they are scaled where they are, and go to whoever sums them
        return dh.mul_(grad), dw.mul_(grad), None if db is None else db.mul_(grad), None, None, None


def _even(n: int, most: int) -> int:
    """Rows of a piece, of n in pieces of about the same size and of at most `most`; at least 1."""
    return -(-n // max(1, -(-n // max(1, most)))) or 1


def _errors(logits: Tensor, bias: Tensor | None, target: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """softmax(l) − [v = y] and the nll, of a few rows."""
    logits = logits.to(wide)
    said = torch.log_softmax(logits if bias is None else logits + bias, 1)
    at = target[:, None]
    nll = -said.gather(1, at)[:, 0]
    return said.exp_().scatter_add_(1, at, said.new_full(at.shape, -1.0)), nll
