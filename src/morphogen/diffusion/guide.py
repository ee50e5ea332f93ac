"""Guidance: a field made of fields. The weight w = 1 means none, 0 forgets the condition, 2 doubles its pull.

    classifier-free   (1 − w) f(x, t) + w f(x, t, c)                      for every view f, affine in w
    classifier        ε̂(x, t) − w σ ∇ log p_t(c | x),   x̂(x, t) + w (σ²/α) ∇ log p_t(c | x)

Both are the field of p(x) p(c | x)^w at each noise level; with an exact classifier they are the same field, and at
w = 1 that of p(x | c). Ho & Salimans 2021 (arXiv 2207.12598, whose weight is w − 1), Dhariwal & Nichol 2021 (arXiv
2105.05233; their base model is conditional too, here it is not), Kynkäänniemi et al. 2024 (interval, arXiv 2404.07724).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import NONE, each, leaves
from ..errors import UserError
from .field import Cond, Field, affine, spread
from .path import Scalar, over

LogLabel = Callable[[Tensor, Scalar, Cond], Tensor]  # (x_t, t, cond) -> log p_t(cond | x_t) (B,), nats


def guided(field: Field, w: float | Tensor, *, interval: tuple[float, float] = (0.0, 1.0)) -> Field:
    """`field` under classifier-free guidance of weight w (a number or (B,)) at times in `interval`, none outside it.

    The field must know what `cond["null"]` means; both branches are one call of it on 2B samples. w = 1 gives `field`
    itself.
    """
    if not isinstance(w, Tensor) and not math.isfinite(w):
        raise UserError(f"Guidance {w} draws nothing: use a finite number; 1 is none, 2 doubles the condition's pull.")
    return field if not isinstance(w, Tensor) and w == 1 else ClassifierFree(field, w, interval)


class ClassifierFree(Field):
    """See `guided`."""

    def __init__(self, field: Field, w: float | Tensor, interval: tuple[float, float]) -> None:
        self.field, self.path, self.w, self.interval = field, field.path, w, interval

    def _weight(self, t: Scalar) -> Scalar:
        low, high = self.interval
        if isinstance(t, Tensor):
            return torch.where((t >= low) & (t <= high), torch.as_tensor(self.w).to(t), 1.0)
        return self.w if low <= t <= high else 1.0

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        if not any(name != "null" for name, _ in leaves(cond)):
            raise UserError("Guidance needs a condition to be guided by: pass cond, such as space.cond(n, label=3).")
        w = self._weight(t)
        if not isinstance(w, Tensor) and w == 1:
            return self.field.predict(x, t, p, q, cond)
        with_null = {"null": torch.zeros(len(x), dtype=torch.bool, device=x.device), **cond}
        both = each(with_null, lambda c: torch.cat((c, c)))
        both["null"] = torch.cat((torch.ones_like(with_null["null"]), with_null["null"]))
        out = self.field.predict(torch.cat((x, x)), _twice(t), _twice(p), _twice(q), both)
        without, given = out.chunk(2)
        return torch.lerp(without, given, spread(w.to(x) if isinstance(w, Tensor) else w, x))


def _twice(c: Scalar) -> Scalar:
    return torch.cat((c, c)) if isinstance(c, Tensor) and c.dim() else c


def classified(field: Field, log_label: LogLabel, w: float | Tensor = 1.0) -> Field:
    """`field` without its condition, guided by the gradient of a noise-aware classifier.

    log_label(x_t, t, cond) is log p_t(cond | x_t) (B,) in nats, differentiable in x_t.
    """
    return Classified(field, log_label, w)


class Classified(Field):
    """See `classified`."""

    def __init__(self, field: Field, log_label: LogLabel, w: float | Tensor) -> None:
        self.field, self.path, self.log_label, self.w = field, field.path, log_label, w

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        null = torch.ones(len(x), dtype=torch.bool, device=x.device)
        base = self.field.predict(x, t, p, q, {**cond, "null": null})
        with torch.enable_grad():
            again = x if x.requires_grad else x.detach().requires_grad_()
            logp = self.log_label(again, t, cond)
            (gradient,) = torch.autograd.grad(logp.sum(), again, create_graph=x.requires_grad)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        pull = self.w * sigma * (p * over(sigma, alpha) - q)  # where α = 0 x_t says nothing of c: no gradient
        out: Tensor = affine(1.0, base, spread(pull, x), gradient)
        return out
