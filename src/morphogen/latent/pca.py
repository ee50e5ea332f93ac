r"""Principal components: the plane that shows most of a cloud of latents, and the linear codec that nothing beats.

With mean m and the eigenvectors U (r, d) of the largest eigenvalues λ of the sample covariance,

    encode(x) = U (x − m),      decode(z) = m + Uᵀ z.

As a density it is the probabilistic PCA's, whose maximum likelihood has noise variance σ² = mean of the left-over λ:

    log p(x) = −½ [ d log 2π + Σ_{i≤r} (log λ_i + z_i² / λ_i) + (d − r) log σ² + |x − decode(encode(x))|² / σ² ].

Sources: Pearson 1901; Tipping & Bishop 1999, "Probabilistic principal component analysis", eqs. 4 and 8. The sign of
each component is chosen so that its largest entry is positive.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from .vectors import Cond


class Components(NamedTuple):
    """Principal components of x (N, *shape): a codec, and a density.

    mean: (*shape). axes: (r, d), orthonormal rows, the most telling first. variance: (r,) along each axis. rest: the
    mean variance σ² of the directions left out. All float64.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor
    rest: float

    def encode(self, x: Tensor) -> Float[Tensor, "b r"]:
        """Coordinates (B, r) of x (B, *shape)."""
        return ((x - self.mean.to(x)).flatten(1) @ self.axes.to(x).T).to(x.dtype)

    def decode(self, z: Float[Tensor, "b r"]) -> Tensor:
        """The point (B, *shape) of the plane with these coordinates."""
        return (z @ self.axes.to(z)).reshape(len(z), *self.mean.shape) + self.mean.to(z)

    def log_prob(self, x: Tensor, cond: Cond | None = None) -> Float[Tensor, " b"]:
        """Log-density (B,) of probabilistic PCA, nats, whatever the conditions.

        Raises UserError where nothing is left out of the plane.
        """
        d, r = self.axes.shape[1], len(self.axes)
        if not self.rest > 0:
            raise UserError("These components leave no variance out, so they are no density: take fewer.")
        x = x.double()
        z = self.encode(x)
        within = (self.variance.log() + z.square() / self.variance).sum(1)
        beyond = (x - self.decode(z)).flatten(1).square().sum(1) / self.rest + (d - r) * math.log(self.rest)
        return -0.5 * (d * math.log(2 * math.pi) + within + beyond)


def principal(x: Float[Tensor, " n *shape"], rank: int) -> Components:
    """The first `rank` principal components of x. Raises UserError where x has no so many."""
    n, d = len(x), math.prod(x.shape[1:])
    if not 1 <= rank <= min(n - 1, d):
        raise UserError(f"{rank} components of {n} items of {d} numbers were asked for: take 1 to {min(n - 1, d)}.")
    mean = x.double().mean(0)
    flat = (x.double() - mean).flatten(1)
    if d <= n:
        value, vector = torch.linalg.eigh(flat.T @ flat / (n - 1))
        value, axes = value.flip(0).clamp(min=0), vector.T.flip(0)
    else:
        _, singular, axes = torch.linalg.svd(flat, full_matrices=False)
        value = singular.square() / (n - 1)
    axes = axes[:rank]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    rest = float(value[rank:].sum()) / (d - rank) if d > rank else 0.0
    return Components(mean, axes * largest.sign(), value[:rank], rest)


def explaining(x: Float[Tensor, " n *shape"], kept: float = 0.9) -> Components:
    """As few principal components of x as keep a share `kept` of its variance, but one at least.

    Raises UserError for a share beyond 0 to 1, and for fewer than two items.
    """
    if not 0 < kept <= 1:
        raise UserError(f"Components cannot keep {kept} of the variance: give a share above 0, up to 1.")
    whole = principal(x, min(len(x) - 1, math.prod(x.shape[1:])))
    rank = int((share(whole).cumsum(0) < kept).sum()) + 1
    return principal(x, min(rank, len(whole.axes)))


def share(components: Components) -> Float[Tensor, " r"]:
    """The share of all variance along each axis."""
    left = components.rest * (components.axes.shape[1] - len(components.axes))
    return components.variance / (components.variance.sum() + left)
