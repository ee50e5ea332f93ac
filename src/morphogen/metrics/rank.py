r"""What the order of numbers says: Spearman's correlation, the ROC curve and the area under it.

With mid-ranks R (ties share the mean of their ranks), m scores a of positives and n scores b of negatives,

    AUROC = P(a > b) + ½ P(a = b) = (Σ R(a) − m (m + 1) / 2) / (m n).

Its variance is that of the two means it is made of (DeLong): each positive's share of negatives below it, V(a), and
each negative's share of positives above it, V(b): Var = Var V(a) / m + Var V(b) / n. So every item has an influence on
the area, (V(a) − AUROC) / (m − 1)^½ m^½ or the like of b, whose squares add up to the variance; influences of several
areas over the same items add, so the interval of their mean knows that they share their items.

Where the scores part the two kinds without a mistake, that variance is 0, which few items cannot say. Of q items of the
rarer kind, each beside another of the other kind, all are in order with a probability of A^q: A ≥ 0.025^(1/q) is left.

Sources: Spearman 1904, "The proof and measurement of association between two things"; Hanley & McNeil 1982, "The
meaning and use of the area under a ROC curve"; DeLong, DeLong & Clarke-Pearson 1988, "Comparing the areas under two or
more correlated ROC curves"; Sun & Xu 2014 (by mid-ranks). Departures: the interval ends at 0 and 1, and has a width
where all are parted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ..errors import UserError
from .measure import Z95, Measure


def ranks(x: Shaped[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """Mid-ranks of the last axis, from 1, float64: equal numbers share the mean of their ranks."""
    ordered = x.sort(-1).values.contiguous()
    x = x.contiguous()
    below = torch.searchsorted(ordered, x)  # numbers smaller than each
    upto = torch.searchsorted(ordered, x, right=True)
    return (below + upto + 1).double() / 2


def spearman(x: Shaped[Tensor, "*b n"], y: Shaped[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """Spearman's rank correlation along the last axis, float64; 0 where either side is constant.

    Raises UserError for fewer than two numbers.
    """
    if x.shape[-1] < 2:
        raise UserError("A rank correlation needs two numbers or more on either side.")
    a, b = (r - r.mean(-1, keepdim=True) for r in (ranks(x), ranks(y)))
    scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(-1) / scale.clamp(min=1e-300), 0.0)


class Roc(NamedTuple):
    """A curve: the share of negatives (false) and of positives (true) whose score is at least each threshold.

    All are (T,) float64, thresholds falling from infinity, so that the curve begins at (0, 0) and ends at (1, 1).
    """

    false: Tensor
    true: Tensor
    threshold: Tensor


def roc(score: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> Roc:
    """The ROC curve of scores that shall be high for the positives. Raises UserError unless there are both kinds."""
    _both(score, positive)
    order = score.argsort(descending=True, stable=True)
    sorted_score, hit = score[order].double(), positive[order]
    last = torch.cat((sorted_score.diff() != 0, torch.ones(1, dtype=torch.bool)))  # of each run of equal scores
    true, false = hit.cumsum(0)[last].double(), (~hit).cumsum(0)[last].double()
    zero = torch.zeros(1, dtype=torch.float64)
    return Roc(
        torch.cat((zero, false / false[-1])),
        torch.cat((zero, true / true[-1])),
        torch.cat((zero + math.inf, sorted_score[last])),
    )


class Area(NamedTuple):
    """An area under a ROC curve, and each item's influence (N,) on it: the squares add up to its variance.

    parted: how many items the rarer kind has, where the scores part the two without a mistake; else 0.
    """

    value: float
    influence: Tensor
    parted: int = 0


def area(score: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> Area:
    """The AUROC of scores that shall be high for the positives. Raises UserError unless there are both kinds."""
    _both(score, positive)
    score = score.double()
    a, b = score[positive], score[~positive]
    m, n = len(a), len(b)
    whole = ranks(score)
    above = (whole[positive] - ranks(a)) / n  # share of negatives below each positive, ties by half: (m,)
    below = 1 - (whole[~positive] - ranks(b)) / m  # share of positives above each negative: (n,)
    value = float(above.mean())
    influence = torch.zeros_like(score)
    influence[positive] = (above - value) / math.sqrt(m * max(m - 1, 1))
    influence[~positive] = (below - value) / math.sqrt(n * max(n - 1, 1))
    return Area(value, influence, min(m, n) if value in (0.0, 1.0) else 0)


def apart(a: Area, b: Area) -> Area:
    """By how much one area is above another over the same items."""
    return Area(a.value - b.value, a.influence - b.influence)


def auroc(score: Float[Tensor, " n"], positive: Bool[Tensor, " n"], how: str = "area under the ROC curve") -> Measure:
    """The AUROC with DeLong's 95 % interval. Raises UserError unless there are positives and negatives."""
    return mean_area([area(score, positive)], f"{how}, {int(positive.sum())} positives, DeLong's interval")


def mean_area(areas: Sequence[Area], how: str, low: float = 0.0) -> Measure:
    """The mean of areas over the same items, with DeLong's 95 % interval. Raises UserError where there is none.

    low: the lowest value that can be, -1 where the areas are `apart`.
    """
    if not areas:
        raise UserError("There is no area to take the mean of: give at least one.")
    value = sum(a.value for a in areas) / len(areas)
    influence = torch.stack([a.influence for a in areas]).mean(0)
    half = Z95 * float(influence.square().sum().sqrt())
    if all(a.parted for a in areas):
        half = 1 - 0.025 ** (1 / min(a.parted for a in areas))
    return Measure(value, max(low, value - half), min(1.0, value + half), len(influence), how)


def _both(score: Tensor, positive: Tensor) -> None:
    hits = int(positive.sum())
    if not 0 < hits < len(score):
        raise UserError(
            f"A ROC curve needs items of both kinds, and {hits} of {len(score)} are positive: give some of the other."
        )
    if bool(score.isnan().any()):
        raise UserError(f"{int(score.isnan().sum())} of {len(score)} scores are not numbers: they have no order.")
