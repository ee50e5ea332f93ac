r"""Fréchet distance between two sets of features, with the error that its number carries.

Between Gaussians of means m₁, m₂ and covariances Σ₁, Σ₂ the squared Wasserstein-2 distance is

    d² = |m₁ - m₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½ ,

and the last trace is the sum of the singular values of Σ₁^½ Σ₂^½. That form needs no square root of a product, so
singular covariances (fewer items than dimensions too) cost no accuracy, and d(P, P) is 0 to rounding.

As a measure of generated images it is "FID" only on Inception-v3's pool features and N = 50,000; on other features
call it by theirs. Estimated from N items it is too large: for Gaussian features of dimension D with Σ = I, by about
D/N + D(D+1)/(4N) for each side that is estimated (second-order expansion). So a distance means something only beside
another at the same N: `frechet_distance` states the bias that its jackknife sees, and evaluations print the distance
of real training items from real test items at the same N beside it, the floor.

Sources: Dowson & Landau 1982 (the formula); Heusel et al. 2017, arXiv:1706.08500 (FID); Chong & Forsyth 2020,
arXiv:1911.07023 (its bias); Efron & Stein 1981, "The jackknife estimate of variance".
Departure: the covariance's divisor is N - 1, and nothing is added to its diagonal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from .measure import Z95, Measure


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    cov: Tensor


def moments(x: Float[Tensor, "n d"]) -> Moments:
    """Mean and unbiased covariance of N features, in float64 (the covariance of one item is 0)."""
    x = x.double()
    mean = x.mean(0)
    x = x - mean
    return Moments(mean, x.T @ x / max(len(x) - 1, 1))


def frechet(a: Moments, b: Moments) -> Float[Tensor, ""]:
    """The squared distance d² between Gaussians of the given moments, float64: the formula above."""
    return _distance(a, _root(a.cov), b, _root(b.cov))


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m _"], *, groups: int = 20) -> Measure:
    """d² between features x and y, with a 95 % interval of its expectation at these N, and its bias in `how`.

    Interval and bias come from the grouped jackknife: either set is cut into `groups` and the distance taken without
    each in turn. The items are dealt to the groups by a fixed permutation, so that their order is no matter.
    Raises UserError where either set has fewer than two items, or the widths differ.
    """
    if x.shape[1] != y.shape[1]:
        raise UserError(f"One set has {x.shape[1]} features an item and the other {y.shape[1]}: use one feature net.")
    if len(x) < 2 or len(y) < 2:
        raise UserError(f"A Fréchet distance needs at least two items a side: here are {len(x)} and {len(y)}.")
    x, y = x.double(), y.double()
    a, b = moments(x), moments(y)
    root_a, root_b = _root(a.cov), _root(b.cov)
    value = float(_distance(a, root_a, b, root_b))
    variance = bias = 0.0
    for items, other, root in ((x, b, root_b), (y, a, root_a)):
        g = min(groups, len(items))
        part = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)) % g
        left = torch.stack([_distance(m := moments(items[part != j]), _root(m.cov), other, root) for j in range(g)])
        variance += float((g - 1) / g * (left - left.mean()).square().sum())
        bias += float((g - 1) * (left.mean() - value))  # jackknife: θ(N - N/g) - θ(N) ≈ bias / (g - 1)
    half = Z95 * variance**0.5
    excess = max(0.0, min(bias, value))  # extrapolated, so at small N it can pass what there is
    how = f"Fréchet distance on {x.shape[1]} features of {len(x)} and {len(y)} items, about {excess:.4f} of it bias"
    return Measure(value, max(value - half, 0.0), value + half, min(len(x), len(y)), how + " (grouped jackknife)")


def _distance(a: Moments, root_a: Tensor, b: Moments, root_b: Tensor) -> Tensor:
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    square: Tensor = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    return square.clamp(min=0)


def _root(cov: Tensor) -> Tensor:
    """Σ^½, symmetric. Eigenvalues that are rounding alone count as 0: their roots (1e-8) would not be."""
    value, vector = torch.linalg.eigh(cov.double())
    value = torch.where(value > value.max() * len(value) * torch.finfo(value.dtype).eps, value, 0.0)
    root: Tensor = (vector * value.sqrt()) @ vector.T
    return root
