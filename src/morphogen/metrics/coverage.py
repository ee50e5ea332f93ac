r"""Do samples look like real items, and do they cover them? Two questions, by nearest neighbours among features.

With B(y) the ball around an item y whose radius is the distance to its k-th nearest neighbour among its own kind,
real items y_1 … y_m and samples x_1 … x_n:

    precision   share of samples in the ball of some real item
    recall      share of real items in the ball of some sample
    density     1 / (k n) Σ_i |{j : x_i in B(y_j)}|: how many balls a sample lies in; about 1 for a sampler of the truth
    coverage    share of real items whose own ball holds a sample

Precision and density ask for quality, recall and coverage for variety. Density and coverage use the balls of real items
alone, so that one sample far off, whose ball is large, covers nothing. Where samples are as real items the expected
coverage is 1 - Π_{i = 1 … k} (m - i) / (n + m - i), whatever the law: about 1 - 2^-k for n = m, 0.97 for k = 5.

Sources: Kynkäänniemi, Karras, Laine, Lehtinen & Aila 2019, "Improved precision and recall metric for assessing
generative models", arXiv:1904.06991; Naeem, Oh, Uh, Choi & Yoo 2020, "Reliable fidelity and diversity metrics for
generative models", arXiv:2002.09797.
Departure: a ball holds its edge in all four, as in the first paper (the second one's does not).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from .likelihood import mean_of
from .measure import Measure, share


class Coverage(NamedTuple):
    """What samples are worth beside real items, each with its interval."""

    precision: Measure
    recall: Measure
    density: Measure
    coverage: Measure


def coverage(real: Float[Tensor, "m d"], fake: Float[Tensor, "n _"], *, k: int = 5) -> Coverage:
    """Precision, recall, density and coverage of the features of samples, `fake`, beside those of real items.

    Raises UserError where the widths differ, or either side has no more than k items.
    """
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"One set has {real.shape[1]} features an item and the other {fake.shape[1]}: use one net.")
    m, n = len(real), len(fake)
    if k < 1 or min(m, n) <= k:
        raise UserError(
            f"Of {m} real items and {n} samples none has a neighbour number {k}: give more, or a smaller k."
        )
    real, fake = real.double(), fake.double()
    between = _distances(fake, real)  # (n, m)
    in_real = between <= _radii(real, k)  # sample i in the ball of real item j
    in_fake = between <= _radii(fake, k)[:, None]
    how = f"of {n} samples and {m} real items, {k} neighbours"
    return Coverage(
        share(int(in_real.any(1).sum()), n, f"share of samples near to a real item, {how}"),
        share(int(in_fake.any(0).sum()), m, f"share of real items near to a sample, {how}"),
        mean_of(in_real.double().sum(1) / k, f"balls of real items that a sample lies in, over {k}, {how}"),
        share(int(in_real.any(0).sum()), m, f"share of real items with a sample among their neighbours, {how}"),
    )


def expected(m: int, n: int, k: int = 5) -> float:
    """The expected coverage of m real items by n samples of their law."""
    return 1 - math.prod((m - i) / (n + m - i) for i in range(1, k + 1))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # a copy is at 0 exactly


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance (n,) of each item from its k-th nearest other one."""
    return _distances(x, x).fill_diagonal_(0.0).kthvalue(k + 1, 1).values  # the nearest of all is the item itself


class Principal:
    """The leading principal components of real items (M, ...) as features of any others: what there is without a judge.

    At most `most` of them, and at most as many as the items have numbers or there are items.
    """

    def __init__(self, real: Float[Tensor, " m *shape"], most: int = 64) -> None:
        flat = real.flatten(1).double()
        self.mean = flat.mean(0)
        _, _, basis = torch.linalg.svd(flat - self.mean, full_matrices=False)
        self.basis = basis[:most].T  # (D, features)

    def features(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, "n d"]:
        """Features (N, d) of x (N, ...), float64."""
        out: Tensor = (x.flatten(1).double() - self.mean) @ self.basis
        return out
