"""Metrics against scikit-learn and scipy, on random input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import sklearn.metrics
import torch

from morphogen.metrics.classification import accuracy, confusion, macro, micro, per_class, weighted
from morphogen.metrics.frechet import Moments, frechet, frechet_distance
from morphogen.metrics.memorisation import nearest

AVERAGES = {"macro": macro, "weighted": weighted}


@pytest.mark.parametrize("absent", [0.0, 1.0, math.nan])
@pytest.mark.parametrize(("classes", "n", "present"), [(2, 50, 2), (10, 400, 10), (7, 30, 4), (3, 1, 3), (5, 20, 1)])
def test_scores(classes: int, n: int, present: int, absent: float) -> None:
    """Absent classes, one item, few items: accuracy, confusion, precision, recall, F1 and their averages."""
    rng = np.random.default_rng(classes * n)
    true, seen = rng.integers(present, size=n), rng.integers(1, classes, size=n)
    labels = list(range(classes))
    cells = confusion(torch.from_numpy(seen), torch.from_numpy(true), classes)
    assert cells.tolist() == sklearn.metrics.confusion_matrix(true, seen, labels=labels).tolist()
    assert accuracy(torch.from_numpy(seen), torch.from_numpy(true)).value == sklearn.metrics.accuracy_score(true, seen)

    def theirs(average: str | None) -> tuple[np.ndarray, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sklearn.metrics.precision_recall_fscore_support(
                true, seen, labels=labels, average=average, zero_division=absent
            )

    found = per_class(cells, absent)
    for ours, other in zip(found, theirs(None), strict=True):
        np.testing.assert_allclose(ours.numpy(), other, rtol=1e-12)
    for name, average in AVERAGES.items():
        for ours, other in zip(average(cells, absent), theirs(name)[:3], strict=True):
            assert ours.n == n
            if math.isnan(ours.value):  # every class with items is left out: sklearn says 0, or nan for some versions
                assert math.isnan(absent)
                assert other == 0 or math.isnan(other)
                assert math.isnan(found.precision[found.support > 0].sum())
            else:
                np.testing.assert_allclose(ours.value, other, rtol=1e-12)
    for ours, other in zip(micro(cells), theirs("micro")[:3], strict=True):
        np.testing.assert_allclose(ours.value, other, rtol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 17, 64])
def test_frechet(d: int) -> None:
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(3 * d + 2, d)) @ rng.normal(size=(d, d)), rng.normal(size=(2 * d + 5, d)) + 0.3
    cx, cy = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    root = scipy.linalg.sqrtm(cx @ cy)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * np.real(root))
    found = frechet_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert found.value == pytest.approx(expected, rel=1e-8)
    assert found.low <= found.value <= found.high
    moments = (Moments(torch.from_numpy(v.mean(0)), torch.from_numpy(c)) for v, c in ((x, cx), (y, cy)))
    assert float(frechet(*moments)) == pytest.approx(expected, rel=1e-8)


def test_nearest() -> None:
    rng = np.random.default_rng(0)
    x, to = rng.normal(size=(200, 9)), rng.normal(size=(150, 9))
    distance, index = nearest(torch.from_numpy(x), torch.from_numpy(to))
    expected, at = scipy.spatial.cKDTree(to).query(x)
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-12)
    assert index.tolist() == at.tolist()
