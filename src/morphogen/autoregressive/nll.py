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

PIECE = 1 << 23  # logits at a time


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
    kind = h.device.type
    wide = h.dtype
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else wide
    with torch.autocast(kind, enabled=False):
        total, nll = _Weighted.apply(h, last.weight, last.bias, target, weight, dtype)
    return total, nll


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, w: Tensor, b: Tensor | None, target: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        backward = any(ctx.needs_input_grad)
        table, rows = w.to(dtype), max(1, PIECE // len(w))
        nll = torch.empty(len(h), dtype=torch.promote_types(dtype, torch.float32), device=h.device)
        dh = torch.empty_like(h) if backward else None
        dw = torch.zeros_like(w, dtype=nll.dtype) if backward else None
        db = torch.zeros_like(b, dtype=nll.dtype) if backward and b is not None else None
        for start in range(0, len(h), rows):
            piece = slice(start, start + rows)
            own, y = h[piece].to(dtype), target[piece, None]
            logits = own @ table.T
            logits = logits.to(nll.dtype) if b is None else logits.to(nll.dtype).add_(b)
            said = logits.gather(1, y)
            total = logits.logsumexp(1, keepdim=True)
            nll[piece] = (total - said)[:, 0]
            if dh is None or dw is None:
                continue
            g = logits.sub_(total).exp_()  # softmax, where the logits were
            g.scatter_add_(1, y, torch.full_like(said, -1.0))
            g.mul_(weight[piece, None])
            if db is not None:
                db += g.sum(0)
            g = g.to(dtype)
            dh[piece] = (g @ table).to(dh.dtype)
            if dtype == dw.dtype:
                dw.addmm_(g.T, own)
            else:
                dw += g.T @ own
        ctx.save_for_backward(dh, dw, db)
        ctx.mark_non_differentiable(nll)
        return (nll * weight).sum(), nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw, db = ctx.saved_tensors
        return grad * dh, grad * dw, None if db is None else grad * db, None, None, None
