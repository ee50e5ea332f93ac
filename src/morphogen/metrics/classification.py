r"""What a classifier gets right: confusion matrix, accuracy, precision, recall, F1 and their averages.

With C[i, j] the number of items of class i that were read as class j, and for class k

    precision_k = C[k, k] / Σ_i C[i, k]       recall_k = C[k, k] / Σ_j C[k, j]
    F1_k        = 2 C[k, k] / (Σ_i C[i, k] + Σ_j C[k, j])

`macro` is the plain mean over classes, `weighted` the mean weighted by each class's number of items, and `micro` the
ratio of the sums over classes (with one label an item all three micro scores equal the accuracy).

Where a denominator is zero (a class that was never read, or never there) the score is `absent`: 0 unless said
otherwise; `absent=nan` leaves the class out of the averages. This is scikit-learn's `zero_division`, but the classes
averaged over are always 0 … K-1, also where some of them do not occur, and an average over no class at all is nan.

Intervals: Wilson's for the accuracy; for the averages the percentile bootstrap. Resampling n items with replacement
is the same as drawing the cells of C from a multinomial law, so that needs the matrix alone.

Sources: van Rijsbergen 1979, "Information Retrieval", ch. 7; Efron & Tibshirani 1993, "An Introduction to the
Bootstrap".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from .measure import Measure, share

RESAMPLES = 1000


class PerClass(NamedTuple):
    """Scores of every class, float64 (..., K); `support` is the number of items of each."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor


class Scores(NamedTuple):
    """One average over the classes of precision, recall and F1."""

    precision: Measure
    recall: Measure
    f1: Measure


def confusion(read: Int[Tensor, " n"], true: Int[Tensor, " n"], classes: int) -> Int[Tensor, "k k"]:
    """How many items of class i (row) were read as class j (column): (K, K) int64, K = classes.

    Raises UserError where there is no item or a label lies outside 0 … classes - 1.
    """
    if len(true) == 0:
        raise UserError("There is no item to compare labels of: give at least one.")
    for name, label in (("read", read), ("true", true)):
        if int(label.min()) < 0 or int(label.max()) >= classes:
            wrong = label[(label < 0) | (label >= classes)][0]
            raise UserError(
                f"A {name} label is {int(wrong)}, but there are {classes} classes: labels go from 0 to K - 1."
            )
    return torch.bincount(true * classes + read, minlength=classes * classes).view(classes, classes)


def accuracy(read: Int[Tensor, " n"], true: Int[Tensor, " n"], how: str = "share of items read right") -> Measure:
    """The share of items whose label was read right, with Wilson's interval. Raises UserError where there is none."""
    return share(int((read == true).sum()), len(true), how)


def per_class(cells: Tensor, absent: float = 0.0) -> PerClass:
    """Scores of every class from a confusion matrix (..., K, K); `absent` where nothing is there to divide by."""
    hits = cells.diagonal(dim1=-2, dim2=-1).double()  # (..., K)
    read, true = cells.double().sum(-2), cells.double().sum(-1)
    return PerClass(_ratio(hits, read, absent), _ratio(hits, true, absent), _ratio(2 * hits, read + true, absent), true)


def macro(cells: Int[Tensor, "k k"], absent: float = 0.0) -> Scores:
    """The mean over classes, each counted once."""
    return _averaged(cells, absent, torch.ones_like, "macro")


def weighted(cells: Int[Tensor, "k k"], absent: float = 0.0) -> Scores:
    """The mean over classes, each counted by its number of items."""
    return _averaged(cells, absent, lambda support: support, "weighted")


def micro(cells: Int[Tensor, "k k"]) -> Scores:
    """The scores of all classes' decisions taken together: with one label an item, the accuracy three times."""
    n, hits = int(cells.sum()), int(cells.diagonal().sum())
    names = ("precision", "recall", "F1")
    return Scores(*(share(hits, n, f"micro {name}, Wilson interval") for name in names))


def _averaged(cells: Tensor, absent: float, weight: Callable[[Tensor], Tensor], kind: str) -> Scores:
    n, k = int(cells.sum()), len(cells)
    law = cells.flatten().double().numpy()
    draws = np.random.default_rng(0).multinomial(n, law / law.sum(), size=RESAMPLES)  # (R, K * K)
    resampled = per_class(torch.from_numpy(draws).view(-1, k, k), absent)
    measured = per_class(cells, absent)
    found = []
    for name in ("precision", "recall", "f1"):
        value = _mean(getattr(measured, name), weight(measured.support))
        spread = _mean(getattr(resampled, name), weight(resampled.support))
        low, high = spread.nanquantile(torch.tensor((0.025, 0.975), dtype=torch.float64)).tolist()
        found.append(Measure(float(value), low, high, n, f"{kind} {name} over {k} classes, bootstrap interval"))
    return Scores(*found)


def _mean(score: Float[Tensor, "*r k"], weight: Float[Tensor, "*r k"]) -> Float[Tensor, "*r"]:
    weight = weight * ~score.isnan()
    return (score.nan_to_num() * weight).sum(-1) / weight.sum(-1)


def _ratio(a: Tensor, b: Tensor, absent: float) -> Tensor:
    return torch.where(b > 0, a / b.clamp(min=1), absent)
