"""Guidance: a field made of fields. The weight w = 1 means none, 0 forgets the condition, 2 doubles its pull.

    weak + w (strong − weak)           for every view, affine in w, where strong is f(x, t, c) and weak is
        classifier-free                f(x, t) without the condition, or under a negative condition
        autoguidance                   a worse model's g(x, t, c)
    classifier                         ε̂(x, t) − w σ ∇ log p_t(c | x),   x̂(x, t) + w (σ²/α) ∇ log p_t(c | x)
    rescaled                           x̂ (φ std(x̂_strong) / std(x̂) + 1 − φ)
    thresholded                        clip(x̂, −s, s) b / s,   s = max(b, quantile of |x̂|)

Each wraps a field and is one, so they compose. Classifier-free and classifier guidance are the field of
p(x) p(c | x)^w at each noise level; with an exact classifier they are the same field, and at w = 1 that of p(x | c).

Ho & Salimans 2021 (arXiv 2207.12598, whose weight is w − 1), Dhariwal & Nichol 2021 (arXiv 2105.05233; their base
model is conditional too, here it is not), Kynkäänniemi et al. 2024 (interval, arXiv 2404.07724), Karras et al. 2024
(autoguidance, arXiv 2406.02507), Lin et al. 2024 (rescaling, arXiv 2305.08891, §3.4: of the net's output, here of x̂
whatever the net says), Saharia et al. 2022 (thresholds, arXiv 2205.11487, §2.3; there b = 1).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import NONE, leaves
from ..errors import UserError
from ..spec import arguments
from .field import Cond, Field, affine, spread
from .path import Path, Scalar, over

LogLabel = Callable[[Tensor, Scalar, Cond], Tensor]  # (x_t, t, cond) -> log p_t(cond | x_t) (B,), nats

# ---- one field pulled away from another ----------------------------------------------------------------------------


class Guided(Field):
    """The field weak + w (strong − weak) at times in `interval`, `strong` alone outside it."""

    def __init__(self, field: Field, w: float | Tensor, interval: tuple[float, float]) -> None:
        if not isinstance(w, Tensor) and not math.isfinite(w):
            raise UserError(
                f"Guidance {w} draws nothing: use a finite number; 1 is none, 2 doubles the condition's pull."
            )
        if not interval[0] < interval[1]:
            raise UserError(
                f"Guidance at times {interval[0]:g} to {interval[1]:g} pulls nowhere: give the earlier time first,"
                " as in (0.2, 0.8), with data at 0 and noise at 1."
            )
        self.field, self.path, self.w, self.interval = field, field.path, w, interval

    @abstractmethod
    def pair(self, x: Tensor, t: Scalar, p: Scalar, q: Scalar, cond: Cond) -> tuple[Tensor, Tensor]:
        """What the weak and the strong field predict."""

    def weight(self, t: Scalar) -> Scalar:
        """w at these times: 1 outside the interval."""
        low, high = self.interval
        if isinstance(t, Tensor):
            return torch.where((t >= low) & (t <= high), torch.as_tensor(self.w).to(t), 1.0)
        return self.w if low <= t <= high else 1.0

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        w = self.weight(t)
        if not isinstance(w, Tensor) and w == 1:
            return self.field.predict(x, t, p, q, cond)
        return _towards(*self.pair(x, t, p, q, cond), w)


def _towards(weak: Tensor, strong: Tensor, w: Scalar) -> Tensor:
    return torch.lerp(weak, strong, spread(w.to(weak) if isinstance(w, Tensor) else w, weak))


def guided(field: Field, w: float | Tensor, *, interval: tuple[float, float] = (0.0, 1.0)) -> Field:
    """`field` under classifier-free guidance of weight w (a number or (B,)) at times in `interval`, none outside it.

    `cond["negative"]`, conditions of the same names and shapes as the others, is what to be pulled away from; without
    it, it is their absence, and the field must know what `cond["null"]` means. Both branches are one call of the field
    on 2B samples. w = 1 gives `field` itself.
    """
    return field if not isinstance(w, Tensor) and w == 1 else ClassifierFree(field, w, interval)


class ClassifierFree(Guided):
    """See `guided`."""

    def pair(self, x: Tensor, t: Scalar, p: Scalar, q: Scalar, cond: Cond) -> tuple[Tensor, Tensor]:
        if not any(name != "null" for name, _ in leaves(cond)):
            raise UserError("Guidance needs a condition to be guided by: pass cond, such as space.cond(n, label=3).")
        none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        strong: dict[str, Any] = {"null": none, **cond}
        negative = strong.pop("negative", None)
        weak = {**strong, "null": ~none} if negative is None else {**strong, "null": none, **negative}
        out = self.field.predict(torch.cat((x, x)), _twice(t), _twice(p), _twice(q), _beside(weak, strong))
        without, given = out.chunk(2)
        return without, given


def _beside(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    """Two batches as one: first all of `weak`, then all of `strong`."""
    for name in weak:
        if name not in strong:
            raise UserError(f"The negative condition {name!r} is not among the conditions: give both the same names.")
    for (name, a), (_, b) in zip(leaves(weak), leaves(strong), strict=True):
        if a.shape != b.shape:
            raise UserError(
                f"The negative condition {name!r} is {tuple(a.shape)} and the condition {tuple(b.shape)}:"
                " give one a sample, of one shape."
            )
    return {
        k: _beside(weak[k], v) if isinstance(v, Mapping) else v if v is None else torch.cat((weak[k], v))
        for k, v in strong.items()
    }


def _twice(c: Scalar) -> Scalar:
    return torch.cat((c, c)) if isinstance(c, Tensor) and c.dim() else c


def autoguided(field: Field, weak: Field, w: float | Tensor, *, interval: tuple[float, float] = (0.0, 1.0)) -> Field:
    """`field` pulled away from `weak`, a worse model of the same data (smaller, or trained less), with weight w.

    Both are given the same conditions, or none. w = 1 gives `field` itself. Raises UserError where their paths differ.
    """
    same_path(field.path, weak.path)
    return field if not isinstance(w, Tensor) and w == 1 else Autoguided(field, weak, w, interval)


def same_path(path: Path, weak: Path) -> None:
    """Raise UserError, which says what differs, unless α and σ of both paths agree to 1e-4."""
    times = (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
    pairs = [(f(t), g(t)) for f, g in ((path.alpha, weak.alpha), (path.sigma, weak.sigma)) for t in times]
    if all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in pairs):
        return
    ours, theirs = type(path).__name__, type(weak).__name__
    told, differ = f"{theirs}, is not the field's, {ours}", ""
    if type(path) is type(weak):
        one, two = arguments(path), arguments(weak)
        differ = ", ".join(f"{k} {two[k]!r:.40} there and {one[k]!r:.40} here" for k in one if one[k] != two[k])
        told = f"{theirs}, has other settings than the field's" + (f", {differ}" if differ else "")
    raise UserError(f"The weak field's path, {told}: guide by a model of the same preset and settings.")


class Autoguided(Guided):
    """See `autoguided`."""

    def __init__(self, field: Field, weak: Field, w: float | Tensor, interval: tuple[float, float]) -> None:
        super().__init__(field, w, interval)
        self.weak = weak

    def pair(self, x: Tensor, t: Scalar, p: Scalar, q: Scalar, cond: Cond) -> tuple[Tensor, Tensor]:
        return self.weak.predict(x, t, p, q, cond), self.field.predict(x, t, p, q, cond)


# ---- a classifier's pull -------------------------------------------------------------------------------------------


def classified(field: Field, log_label: LogLabel, w: float | Tensor = 1.0) -> Field:
    """`field` without its condition, guided by the gradient of a noise-aware classifier.

    log_label(x_t, t, cond) is log p_t(cond | x_t) (B,) in nats, differentiable in x_t. Samples that `cond["null"]`
    marks are not pulled.
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
        if "null" in cond:
            gradient = gradient.masked_fill(spread(cond["null"], x), 0.0)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        pull = self.w * sigma * (p * over(sigma, alpha) - q)  # where α = 0 x_t says nothing of c: no gradient
        out: Tensor = affine(1.0, base, spread(pull, x), gradient)
        return out


# ---- the guess put right -------------------------------------------------------------------------------------------


class Corrected(Field):
    """A field whose guess x̂ is changed; ε̂ = (x_t − αx̂)/σ follows it. At σ = 0 nothing is left to guess: ε̂ = 0."""

    def __init__(self, field: Field) -> None:
        self.field, self.path = field, field.path

    @abstractmethod
    def clean(self, x: Tensor, t: Scalar, cond: Cond) -> Tensor:
        """The changed x̂ at x_t = x."""

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        per = over(q, sigma)
        out: Tensor = affine(spread(p - per * alpha, x), self.clean(x, t, cond), spread(per, x), x)
        return out


def rescaled(field: Field, phi: float = 0.7) -> Field:
    """A guided field whose x̂ is brought back, by the share φ, to the spread that it has without guidance.

    Strong guidance makes pictures too contrasty; the spread is each sample's standard deviation over its coordinates.
    φ = 0, or a field that is not guided (w = 1), is left as it is. Raises UserError for φ outside 0 to 1.
    """
    if not 0 <= phi <= 1:
        raise UserError(f"The share of rescaling is {phi}: use 0 (none) to 1 (all of it).")
    return Rescaled(field, phi) if phi and isinstance(field, Guided) else field


class Rescaled(Corrected):
    """See `rescaled`."""

    field: Guided

    def __init__(self, field: Guided, phi: float) -> None:
        super().__init__(field)
        self.phi = phi

    def clean(self, x: Tensor, t: Scalar, cond: Cond) -> Tensor:
        w = self.field.weight(t)
        if not isinstance(w, Tensor) and w == 1:
            return self.field.predict(x, t, 1.0, 0.0, cond)
        weak, strong = self.field.pair(x, t, 1.0, 0.0, cond)
        guess = _towards(weak, strong, w)
        ratio = over(_spread_of(strong), _spread_of(guess), 1.0)  # (B,)
        factor: Tensor = spread(self.phi * ratio + (1 - self.phi), x)
        return guess * factor


def _spread_of(x: Tensor) -> Tensor:
    return x.flatten(1).std(1, correction=0)  # (B,); one coordinate has none: 0


def thresholded(field: Field, quantile: float = 0.995, bound: float = 1.0) -> Field:
    """A field whose x̂ stays in [−bound, bound], the range of the data.

    Where the `quantile` of a sample's |x̂| lies above the bound, x̂ is clipped there and scaled down to the bound
    (dynamic thresholding). Raises UserError for a quantile outside 0 to 1 and for a bound that is not positive.
    """
    if not 0 <= quantile <= 1 or not 0 < bound < math.inf:
        raise UserError(
            f"A threshold at quantile {quantile} with bound {bound} is none: use a quantile of 0 to 1, such as 0.995,"
            " and the data's largest absolute value, such as 1."
        )
    return Thresholded(field, quantile, bound)


class Thresholded(Corrected):
    """See `thresholded`."""

    def __init__(self, field: Field, quantile: float, bound: float) -> None:
        super().__init__(field)
        self.quantile, self.bound = quantile, bound

    def clean(self, x: Tensor, t: Scalar, cond: Cond) -> Tensor:
        guess = self.field.predict(x, t, 1.0, 0.0, cond)
        size = guess.abs().flatten(1)
        wide = size if size.dtype in (torch.float32, torch.float64) else size.float()  # what torch.quantile takes
        s: Tensor = spread(wide.quantile(self.quantile, 1).clamp(min=self.bound).to(x), x)
        return guess.clamp(-s, s) * (self.bound / s)
