"""The divergence of a field, exact or by random directions: tr A = E vᵀAv for E vvᵀ = 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Noise
from ..errors import UserError
from ..spec import Remembers

Directions = Callable[[Noise, tuple[int, ...], torch.dtype], Tensor]


def rademacher(noise: Noise, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Directions of ±1: vᵀAv has variance Σ_{i≠j} a_ij (a_ij + a_ji), the least of any law."""
    return noise.integers(2, *shape).to(dtype).mul_(2).sub_(1)


def gaussian(noise: Noise, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Standard normal directions: for a symmetric A, vᵀAv has variance 2 |A|²."""
    return noise.normal(*shape, dtype=dtype)


class Divergence(Remembers, ABC):
    """The trace of dv/dx, exact or estimated: Σ_k e_kᵀ (dv/dx) e_k over probes e_k with E Σ_k e_k e_kᵀ = 1."""

    @abstractmethod
    def probes(self, x: Float[Tensor, " b *shape"], noise: Noise) -> Float[Tensor, "k b *shape"]:
        """The directions e_k for each x, drawn once and kept along the way."""


class Exact(Divergence):
    """One backward pass for each coordinate."""

    def probes(self, x: Float[Tensor, " b *shape"], noise: Noise) -> Float[Tensor, "k b *shape"]:
        size = math.prod(x.shape[1:])
        one = torch.eye(size, dtype=x.dtype, device=x.device)
        return one.reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)


class Hutchinson(Divergence):
    """`passes` random directions of a law with E vvᵀ = 1 (Hutchinson 1990)."""

    def __init__(self, passes: int = 1, law: Directions = rademacher) -> None:
        if passes < 1:
            raise UserError(f"Hutchinson(passes={passes}) looks in no direction: use 1 or more.")
        self.passes, self.law = passes, law

    def probes(self, x: Float[Tensor, " b *shape"], noise: Noise) -> Float[Tensor, "k b *shape"]:
        draws = self.law(noise, (self.passes, *x.shape[1:]), x.dtype).to(x.device)
        return draws.transpose(0, 1).mul(self.passes**-0.5)


DIVERGENCES: Mapping[str, Divergence] = {
    "exact": Exact(),
    "gaussian": Hutchinson(law=gaussian),
    "hutchinson": Hutchinson(),
}


def divergence_for(size: int) -> Divergence:
    """The divergence that is used where none is named: exact up to 16 coordinates, then Hutchinson's."""
    return Exact() if size <= 16 else Hutchinson()


def trace(
    v: Float[Tensor, " b *shape"], x: Float[Tensor, " b *shape"], probes: Float[Tensor, "k b *shape"], graph: bool
) -> Float[Tensor, " b"]:
    """Σ_k e_kᵀ (dv/dx) e_k, differentiable where `graph`; v was made from x, which requires its gradient."""
    found = x.new_zeros(len(x))
    for k, e in enumerate(probes):
        keep = graph or k + 1 < len(probes)
        (g,) = torch.autograd.grad(v, x, e, retain_graph=keep, create_graph=graph, materialize_grads=True)
        found = found + (g * e).flatten(1).sum(1)
    return found
