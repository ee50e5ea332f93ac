"""Ranks, Spearman, ROC and DeLong's interval against scipy, scikit-learn, formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch import Tensor

from morphogen.errors import UserError
from morphogen.metrics.psnr import psnr, squared_error
from morphogen.metrics.rank import area, auroc, mean_area, ranks, roc, spearman


def drawn(seed: int, n: int, ties: bool) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    positive = torch.rand(n, generator=g) < 0.3
    positive[:2] = torch.tensor([True, False])
    score = torch.randn(n, generator=g, dtype=torch.float64) + positive
    return (score * 2).round() if ties else score, positive


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
def test_ranks_and_spearman_are_scipys(seed: int, ties: bool) -> None:
    x, _ = drawn(seed, 5 + 17 * seed, ties)
    y, _ = drawn(seed + 100, len(x), ties)
    assert np.allclose(ranks(x), stats.rankdata(x), rtol=0, atol=0)
    assert float(spearman(x, y)) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    both = spearman(torch.stack((x, y)), torch.stack((y, y)))
    assert both.tolist() == pytest.approx([float(spearman(x, y)), 1.0])
    assert float(spearman(x.int(), x.int() * 3)) == pytest.approx(1)


def test_a_constant_has_no_order() -> None:
    assert float(spearman(torch.ones(4), torch.arange(4.0))) == 0
    with pytest.raises(UserError, match="two numbers"):
        spearman(torch.ones(1), torch.ones(1))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
def test_the_area_is_scikit_learns(seed: int, ties: bool) -> None:
    score, positive = drawn(seed, 2 + 37 * seed, ties)
    if positive.all():
        positive[0] = False
    assert auroc(score, positive).value == pytest.approx(metrics.roc_auc_score(positive, score), abs=1e-12)
    curve = roc(score, positive)
    false, true, at = metrics.roc_curve(positive, score, drop_intermediate=False)
    for ours, theirs in zip(curve, (false, true, at), strict=True):
        assert np.allclose(ours, theirs)
    assert torch.trapezoid(curve.true, curve.false).item() == pytest.approx(auroc(score, positive).value, abs=1e-12)
    assert auroc(score.exp().float(), positive).value == pytest.approx(auroc(score, positive).value, abs=1e-3)
    assert auroc(-score, positive).value == pytest.approx(1 - auroc(score, positive).value, abs=1e-12)


def test_separable_scores_have_all_of_the_area() -> None:
    score, positive = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([False, False, True, True, True])
    found = auroc(score, positive)
    assert (found.value, found.high, found.n) == (1.0, 1.0, 5)
    assert found.low == pytest.approx(math.sqrt(0.025))  # two negatives beside two positives, both in order
    assert auroc(-score, positive)[:3] == pytest.approx((0.0, 0.0, 1 - math.sqrt(0.025)))
    many = auroc(torch.arange(400.0), torch.arange(400) >= 200)
    assert 0.98 < many.low < 1
    same = auroc(torch.zeros(5), positive)
    assert same.value == 0.5


def test_delong_is_its_formula() -> None:
    """The two variances of the placement values, computed pair by pair."""
    score, positive = drawn(3, 60, ties=True)
    a, b = score[positive], score[~positive]
    pair = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    expected = float(pair.mean(1).var() / len(a) + pair.mean(0).var() / len(b))
    found = area(score, positive)
    assert float(found.influence.square().sum()) == pytest.approx(expected, rel=1e-12)
    half = 1.959963984540054 * math.sqrt(expected)
    assert auroc(score, positive).low == pytest.approx(found.value - half, abs=1e-12)


@pytest.mark.parametrize("n", [80, 400])
def test_delong_agrees_with_the_bootstrap(n: int) -> None:
    score, positive = drawn(5, n, ties=False)
    g = np.random.default_rng(0)
    a, b = score[positive].numpy(), score[~positive].numpy()
    values = []
    for _ in range(1500):
        x, y = g.choice(a, len(a)), g.choice(b, len(b))
        values.append(stats.mannwhitneyu(x, y).statistic / (len(a) * len(b)))
    found = float(area(score, positive).influence.square().sum().sqrt())
    assert found == pytest.approx(np.std(values), rel=0.08)


def test_the_interval_of_a_mean_knows_that_its_areas_share_their_items() -> None:
    """Of two scores that are one the mean is that one; of independent ones its variance is half."""
    score, positive = drawn(1, 300, ties=False)
    other, _ = drawn(2, 300, ties=False)
    one = area(score, positive)
    twice = mean_area([one, one], "")
    assert twice[:3] == pytest.approx(auroc(score, positive)[:3])
    two = mean_area([one, area(other + positive, positive)], "")
    assert two.high - two.low < 0.85 * (twice.high - twice.low)
    g = torch.Generator().manual_seed(0)
    values, halves = [], []
    for _ in range(300):
        shared = torch.randn(2, 80, generator=g, dtype=torch.float64) + 0.7 * torch.randn(80, generator=g)
        hit = torch.arange(80) < 30
        found = mean_area([area(s + hit, hit) for s in shared], "")
        values.append(found.value)
        halves.append((found.high - found.low) / 2 / 1.959963984540054)
    assert np.mean(halves) == pytest.approx(np.std(values), rel=0.12)


def test_scores_that_make_no_curve() -> None:
    for positive in (
        torch.ones(3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(0, dtype=torch.bool),
    ):
        with pytest.raises(UserError, match="both kinds"):
            auroc(torch.arange(float(len(positive))), positive)
    with pytest.raises(UserError, match="1 of 2 scores are not numbers"):
        roc(torch.tensor([math.nan, 1.0]), torch.tensor([True, False]))
    with pytest.raises(UserError, match="at least one"):
        mean_area([], "")


def test_psnr_is_its_formula() -> None:
    x, y = torch.rand(2, 3, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mse = ((x - y) ** 2).mean((1, 2, 3))
    assert torch.allclose(squared_error(x, y).float(), mse)
    assert torch.allclose(psnr(x, y).float(), 10 * torch.log10(4 / mse))
    whole = psnr((x + 1) * 127.5, (y + 1) * 127.5, span=255.0)  # the unit of the pixels is no matter
    assert torch.allclose(whole, psnr(x, y), atol=1e-5)
    assert psnr(x, x).tolist() == [math.inf] * 3
    assert psnr(x, x, cell=2 / 255).tolist() == pytest.approx([10 * math.log10(12 * 255**2)] * 3)
    assert torch.equal(psnr(x, y, cell=2 / 255), psnr(x, y))
