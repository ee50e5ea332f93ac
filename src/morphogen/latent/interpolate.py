"""Between two things: points on the way from one latent to another, and what they decode to.

    linear      (1 − t) a + t b
    spherical   ((1 − t)|a| + t|b|) (cos(tΩ) u + sin(tΩ) v),    u = a / |a|,  v ⟂ u in the plane of a and b

Ω is the angle between a and b. Latents of a Gaussian prior in d dimensions have norms near √d, and the middle of two
is shorter by √2 than any of them: the great circle keeps their norm. Both end exactly at a and at b.

Sources: Shoemake 1985, "Animating rotation with quaternion curves" (slerp, of unit vectors); White 2016, "Sampling
generative networks", arXiv:1609.04468 (in latent spaces). Departure: ends of unequal norm have theirs interpolated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import each
from ..errors import UserError
from .vectors import Cond, Vectors, vectors

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def linear(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], t: Float[Tensor, " t"]) -> Float[Tensor, "b t d"]:
    """Points of the straight line from a (t = 0) to b (t = 1)."""
    return _ends(a, b, t, torch.lerp(a[:, None], b[:, None], t.to(a)[None, :, None]))


def spherical(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], t: Float[Tensor, " t"]) -> Float[Tensor, "b t d"]:
    """Points of the great circle from a (t = 0) to b (t = 1), the shorter way round; between opposite ends any one.

    In one dimension, and from or to the origin, where there is no circle, those of the straight line.
    """
    wide_a, wide_b = a.double(), b.double()
    long_a, long_b = (v.norm(dim=1, keepdim=True) for v in (wide_a, wide_b))  # (B, 1)
    u, w = wide_a / long_a.clamp(min=1e-300), wide_b / long_b.clamp(min=1e-300)
    along = (u * w).sum(1, keepdim=True)
    off = w - along * u
    across = off.norm(dim=1, keepdim=True)
    aside = _perpendicular(u)
    v = torch.where(across > 1e-12, off / across.clamp(min=1e-300), aside)
    angle = torch.atan2(torch.where(across > 1e-12, across, 0.0), along)  # Ω
    s = t.double().to(a.device)[None, :, None]
    norm = torch.lerp(long_a[:, None], long_b[:, None], s)
    turned = norm * ((s * angle[:, None]).cos() * u[:, None] + (s * angle[:, None]).sin() * v[:, None])
    straight = (long_a * long_b == 0) | torch.tensor(a.shape[1] == 1, device=a.device)
    points = torch.where(straight[:, None], torch.lerp(wide_a[:, None], wide_b[:, None], s), turned)
    return _ends(a, b, t, points.to(a.dtype))


def _perpendicular(u: Tensor) -> Tensor:
    """A unit vector perpendicular to each u (B, d)."""
    axis = torch.zeros_like(u).scatter_(1, u.abs().argmin(1, keepdim=True), 1.0)
    off = axis - (axis * u).sum(1, keepdim=True) * u
    return nn.functional.normalize(off, dim=1, eps=1e-300)


def _ends(a: Tensor, b: Tensor, t: Tensor, points: Tensor) -> Tensor:
    at = t.to(a.device)[None, :, None]
    return torch.where(at == 0, a[:, None], torch.where(at == 1, b[:, None], points))


WAYS: dict[str, Way] = {"linear": linear, "spherical": spherical}


@torch.no_grad()
def interpolate(
    codec: Any,
    a: Tensor,
    b: Tensor,
    steps: int = 9,
    *,
    way: Way = linear,
    cond_a: Cond | None = None,
    cond_b: Cond | None = None,
) -> Tensor:
    """Data (B, steps, ...) on the way from a (B, ...) to b (B, ...): both encoded, the way between them decoded.

    way: `linear` or `spherical`. cond_a, cond_b: conditions of the ends, for a codec that takes them; on the way those
    of the nearer end hold, a's in the middle. The first and the last are the reconstructions of a and of b.
    Raises UserError for fewer than two steps, or a codec whose latents cannot be mixed.
    """
    flat = vectors(codec)
    ends = flat.encode(a, cond_a), flat.encode(b, cond_b)
    return between(flat, *ends, steps, way=way, cond_a=cond_a, cond_b=cond_b)


@torch.no_grad()
def between(
    flat: Vectors,
    a: Float[Tensor, "b d"],
    b: Float[Tensor, "b d"],
    steps: int = 9,
    *,
    way: Way = linear,
    cond_a: Cond | None = None,
    cond_b: Cond | None = None,
) -> Tensor:
    """As `interpolate`, between latents."""
    if steps < 2:
        raise UserError(f"A way of {steps} steps has no two ends: take 2 or more.")
    t = torch.linspace(0, 1, steps, dtype=torch.float64)
    points = way(a, b, t)  # (B, T, d)
    cond = None
    if cond_a is not None and cond_b is not None:
        first = t <= 0.5
        cond = {k: torch.stack([(cond_a if f else cond_b)[k] for f in first], 1).flatten(0, 1) for k in cond_a}
    elif cond_a is not None:
        cond = each(cond_a, lambda c: c.repeat_interleave(steps, 0))
    made = flat.decode(points.flatten(0, 1), cond)
    return made.reshape(len(a), steps, *made.shape[1:])
