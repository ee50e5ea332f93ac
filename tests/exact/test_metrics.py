"""Metrics against closed forms, hand-made cases and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from morphogen.core import keys
from morphogen.errors import UserError
from morphogen.metrics.classification import accuracy, confusion, macro, micro, per_class, weighted
from morphogen.metrics.frechet import Moments, frechet, frechet_distance, moments
from morphogen.metrics.judge import agreement, evaluate_samples, read, useful
from morphogen.metrics.measure import share
from morphogen.metrics.memorisation import memorised, nearest


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- a share and its interval


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753279), (1, 10, 0.01787621, 0.40415003), (10, 10, 0.72246721, 1.0), (1, 1, 0.20654931, 1.0),
    ],
)  # fmt: skip
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    found = share(hits, n, "hits")
    assert (found.value, found.n) == (hits / n, n)
    assert found.low == pytest.approx(low, abs=1e-7)
    assert found.high == pytest.approx(high, abs=1e-7)
    # Wilson's bounds are the p at which the observed share is 1.96 standard errors away
    for p in (found.low, found.high):
        if 0 < p < 1:
            assert abs(hits / n - p) / math.sqrt(p * (1 - p) / n) == pytest.approx(1.959963985, abs=1e-6)


def test_receipt_is_one_line() -> None:
    line = share(973, 1000, "samples read as asked").receipt
    assert line == "0.9730 [0.9610, 0.9814], N = 1000: samples read as asked"


def test_a_share_of_nothing() -> None:
    with pytest.raises(UserError, match="at least one"):
        share(0, 0, "hits")


# ---- classification


def test_scores_by_hand() -> None:
    true = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    seen = torch.tensor([0, 0, 1, 2, 1, 0, 1])
    cells = confusion(seen, true, 4)
    assert cells.tolist() == [[2, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    found = per_class(cells)
    assert found.precision.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert found.recall.tolist() == pytest.approx([1 / 2, 1 / 2, 0, 0])
    assert found.f1.tolist() == pytest.approx([4 / 7, 2 / 5, 0, 0])
    assert found.support.tolist() == [4, 2, 1, 0]
    assert macro(cells).precision.value == pytest.approx((2 / 3 + 1 / 3) / 4)
    assert macro(cells, absent=math.nan).precision.value == pytest.approx((2 / 3 + 1 / 3) / 3)  # class 3 left out
    assert weighted(cells).f1.value == pytest.approx((4 * 4 / 7 + 2 * 2 / 5) / 7)
    assert micro(cells).f1.value == accuracy(seen, true).value == pytest.approx(3 / 7)


def test_bootstrap_interval_covers() -> None:
    """Over many draws from a known law the 95 % interval of macro recall holds the law's own in about 95 %."""
    law = torch.tensor([[0.4, 0.1], [0.05, 0.45]], dtype=torch.float64)
    truth = (0.4 / 0.5 + 0.45 / 0.5) / 2
    draws = np.random.default_rng(1).multinomial(300, law.flatten().numpy(), size=200)
    inside = 0
    for draw in draws:
        found = macro(torch.from_numpy(draw).view(2, 2)).recall
        inside += found.low <= truth <= found.high
        assert found.low <= found.value <= found.high
    assert 180 <= inside <= 199  # binomial(200, .95): 180 … 199 has 99.8 %


def test_labels_out_of_range_or_missing() -> None:
    with pytest.raises(UserError, match="is 3, but there are 3 classes"):
        confusion(torch.tensor([3]), torch.tensor([0]), 3)
    with pytest.raises(UserError, match="true label is -1"):
        confusion(torch.tensor([0]), torch.tensor([-1]), 3)
    with pytest.raises(UserError, match="at least one"):
        confusion(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 3)
    with pytest.raises(UserError, match="at least one"):
        accuracy(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


# ---- Fréchet distance


def test_frechet_oracle() -> None:
    real = torch.float64
    a = Moments(torch.tensor([1, 0], dtype=real), torch.tensor([[2, 0.5], [0.5, 1]], dtype=real))
    b = Moments(torch.tensor([0, 2], dtype=real), torch.tensor([[1, -0.3], [-0.3, 2]], dtype=real))
    assert float(frechet(a, b)) == pytest.approx(5.5754258933, abs=1e-9)
    assert float(frechet(b, a)) == pytest.approx(5.5754258933, abs=1e-9)


def test_frechet_in_one_dimension_and_commuting() -> None:
    """Diagonal covariances: |m - n|² + Σ (s - t)²."""
    m, n, s, t = normal(1, 4, 5).unbind(0)
    found = frechet(Moments(m, torch.diag(s.square())), Moments(n, torch.diag(t.square())))
    expected = (m - n).square().sum() + (s.abs() - t.abs()).square().sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    one = frechet_distance(normal(2, 9, 1), 3 + 2 * normal(3, 7, 1))
    x, y = normal(2, 9, 1), 3 + 2 * normal(3, 7, 1)
    assert one.value == pytest.approx(float((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2), rel=1e-12)


def test_frechet_of_itself_and_singular() -> None:
    for n, d in ((500, 7), (5, 40), (2, 3), (30, 30)):  # fewer items than dimensions too
        x = 10 * normal(n, n, d)
        assert frechet_distance(x, x).value < 1e-8
        # ranks r and 1 along the same direction: the distance of the one-dimensional laws
        far = frechet_distance(x, x + 5)
        assert far.value == pytest.approx(25 * d, rel=1e-9)
    # two orthogonal lines: nothing in common, so d² is the sum of the traces
    a, b = torch.diag(torch.tensor([4.0, 0, 0]).double()), torch.diag(torch.tensor([0, 9.0, 0]).double())
    zero = torch.zeros(3).double()
    assert float(frechet(Moments(zero, a), Moments(zero, b))) == pytest.approx(13, abs=1e-9)
    assert math.isfinite(frechet_distance(torch.ones(4, 3), torch.ones(4, 3)).value)  # no spread at all


def test_frechet_is_invariant_and_scales() -> None:
    x, y = normal(4, 60, 6), normal(5, 50, 6) * 2 + 1
    q = torch.linalg.qr(normal(6, 6, 6)).Q
    value = frechet_distance(x, y).value
    assert frechet_distance(x @ q, y @ q).value == pytest.approx(value, rel=1e-10)
    assert frechet_distance(3 * x + 7, 3 * y + 7).value == pytest.approx(9 * value, rel=1e-10)
    assert frechet_distance(x.float(), y.float()).value == pytest.approx(value, rel=1e-5)


def test_frechet_bias_is_stated() -> None:
    """From N(0, I) the bias of one side is d/N + d(d+1)/(4N) (oracle A9); the jackknife sees that of both sides."""
    d, n = 16, 1000
    stated, values = [], []
    for seed in range(6):
        found = frechet_distance(normal(2 * seed, n, d), normal(2 * seed + 1, n, d))
        values.append(found.value)
        stated.append(float(found.how.split("about ")[1].split()[0]))
    expected = 2 * (d / n + d * (d + 1) / (4 * n))
    assert np.mean(values) == pytest.approx(expected, rel=0.06)
    assert np.mean(stated) == pytest.approx(expected, rel=0.15)
    one_sided = [float(frechet(moments(normal(s, n, d)), Moments(torch.zeros(d), torch.eye(d)))) for s in range(12)]
    assert np.mean(one_sided) == pytest.approx(expected / 2, rel=0.06)


def test_frechet_interval_covers() -> None:
    """The 95 % interval holds the estimator's own expectation (at this N) in about 95 of 100 repetitions."""
    found = [frechet_distance(normal(1000 + i, 150, 3), 0.7 * normal(3000 + i, 120, 3) + 0.5) for i in range(150)]
    expectation = np.mean([f.value for f in found])
    inside = sum(f.low <= expectation <= f.high for f in found)
    assert 134 <= inside <= 150
    spread = np.std([f.value for f in found], ddof=1)
    half = np.mean([(f.high - f.low) / 2 for f in found]) / 1.96
    assert half == pytest.approx(spread, rel=0.25)


def test_frechet_interval_of_items_in_order() -> None:
    """Items sorted by class, or with the classes in turn, have the interval of the same items shuffled."""
    far = torch.arange(400).remainder(10)[:, None] * torch.tensor([[3.0, -2.0]])
    x, y = far + normal(1, 400, 2), 0.5 * far + normal(2, 400, 2)
    turn = frechet_distance(x, y)
    by_class = frechet_distance(x[far[:, 0].argsort(stable=True)], y[far[:, 0].argsort(stable=True)])
    mixed = frechet_distance(x[normal(3, 400).argsort()], y[normal(4, 400).argsort()])
    assert turn.value == pytest.approx(mixed.value, rel=1e-9)
    for found in (turn, by_class):
        assert found.high - found.low == pytest.approx(mixed.high - mixed.low, rel=0.5)


def test_frechet_asks_for_two_items_of_one_width() -> None:
    with pytest.raises(UserError, match="at least two"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(UserError, match="3 features"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(5, 2))


# ---- copies of the training data


def test_nearest_is_brute_force() -> None:
    x, to = normal(1, 37, 2, 3, 3), normal(2, 23, 2, 3, 3)
    to[5] = x[11]
    all_pairs = (x[:, None] - to[None]).flatten(2).square().sum(2).sqrt()
    distance, index = nearest(x, to, chunk=10)
    assert torch.equal(index, all_pairs.argmin(1))
    assert torch.allclose(distance, all_pairs.min(1).values, rtol=1e-12)
    assert float(distance[11]) == 0


def test_nearest_far_from_the_origin() -> None:
    """A copy is at distance 0, and a near miss is not, where squares would cancel."""
    to = normal(3, 50, 8) + 1e4
    distance, index = nearest(to[7:9] + torch.tensor([[0.0], [1e-6]]).double(), to)
    assert index.tolist() == [7, 8]
    assert distance.tolist() == pytest.approx([0, 1e-6 * math.sqrt(8)], abs=1e-11)


def test_memorised() -> None:
    train, test, fresh = (normal(s, 2000, 2) for s in (1, 2, 3))
    honest = memorised(fresh, train, test)
    assert honest.low <= 0.02
    assert honest.value < 0.03  # samples of the true law score about the quantile
    copies = torch.cat((fresh[:700], train[:300]))
    assert memorised(copies, train, test).value == pytest.approx(0.3 + 0.7 * 0.01, abs=0.02)
    assert memorised(fresh + 100, train, test).value == 0
    # by hand: test items at 1 and 3, the median of their distances is 2
    line = memorised(
        torch.tensor([[1.9], [2.0], [-1.0]]), torch.zeros(1, 1), torch.tensor([[1.0], [3.0]]), quantile=0.5
    )
    assert (line.value, line.n) == (pytest.approx(2 / 3), 3)
    with pytest.raises(UserError, match="0 samples"):
        memorised(fresh[:0], train, test)
    with pytest.raises(UserError, match="near to"):
        memorised(fresh, train[:0], test)


# ---- what a judge says


class BySign(nn.Module):
    """Reads label 1 where the mean is positive; its feature is the mean and the first value."""

    def predict(self, x: Tensor) -> Tensor:
        p = x.flatten(1).mean(1).sigmoid()
        return torch.stack((1 - p, p), 1)

    def features(self, x: Tensor) -> Tensor:
        return torch.stack((x.flatten(1).mean(1), x.flatten(1)[:, 0]), 1)


class Points:
    def __init__(self, seed: int, n: int) -> None:
        self.label = keys(torch.arange(n), seed) % 2
        self.x = normal(seed, n, 1, 3, 5).float() * 0.3 + (2 * self.label - 1)[:, None, None, None]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> dict[str, object]:
        return {"x": self.x[index], "cond": {"label": self.label[index]}}


def test_read_and_agreement() -> None:
    judge, items = BySign().train(), Points(1, 101)
    found = read(judge, items.x, chunk=7)
    assert torch.equal(found.label, items.label.abs())
    assert found.features.shape == (101, 2)
    assert judge.training  # as it was
    wrong = items.label.clone()
    wrong[:20] = 1 - wrong[:20]
    measure = agreement(judge, items.x, wrong)
    assert (measure.value, measure.n) == (81 / 101, 101)
    assert measure == agreement(judge, items.x, wrong)
    with pytest.raises(UserError, match="nothing for the judge"):
        read(judge, items.x[:0])


def test_useful_trains_on_samples_alone() -> None:
    test = Points(2, 60)
    given: list[Tensor] = []

    def fit(x: Tensor, label: Tensor) -> BySign:
        given.extend((x, label))
        return BySign()

    samples = Points(3, 40)
    found = useful(fit, samples.x, samples.label, test.x, test.label)
    assert given[0] is samples.x
    assert given[1] is samples.label
    assert (found.value, found.n) == (1.0, 60)


def test_evaluate_samples() -> None:
    train, test, samples = Points(1, 300), Points(2, 90), Points(3, 120)
    common = {"train": train, "test": test, "judge": BySign()}
    found = evaluate_samples(samples.x, samples.label, **common, fit=lambda x, label: BySign())
    assert list(found) == ["judge", "agreement", "useful", "memorised", "frechet", "floor"]
    assert found["agreement"].value == found["judge"].value == found["useful"].value == 1.0
    assert found["agreement"].n == 120
    assert found["judge"].n == 90
    assert found["memorised"].value < 0.1
    assert found["frechet"].n == found["floor"].n == 90
    assert "120 and 90 items" in found["frechet"].how  # samples and as many training items, against the test items
    assert "120 and 90 items" in found["floor"].how
    assert found["frechet"].value < found["floor"].high + (found["frechet"].high - found["frechet"].low)
    # samples of one class only, copied from the training data: asked for evenly
    collapsed = train.x[train.label == 1][:100]
    asked = torch.arange(100) % 2
    worse = evaluate_samples(collapsed, asked, **common)
    assert list(worse) == ["judge", "agreement", "memorised", "frechet", "floor"]
    assert worse["agreement"].value == 0.5
    assert worse["memorised"].value == 1.0
    assert worse["frechet"].low > worse["floor"].high


def test_evaluate_more_samples_than_training_items() -> None:
    """Both distances use as many items as the smaller set has."""
    samples = Points(3, 200)
    found = evaluate_samples(samples.x, samples.label, train=Points(1, 50), test=Points(2, 90), judge=BySign())
    assert "50 and 90 items" in found["frechet"].how
    assert "50 and 90 items" in found["floor"].how


def test_evaluate_samples_of_another_shape() -> None:
    common = {"train": Points(1, 30), "test": Points(2, 9), "judge": BySign()}
    with pytest.raises(UserError, match="evaluate against the data"):
        evaluate_samples(torch.zeros(4, 1, 3, 4), torch.zeros(4, dtype=torch.int64), **common)
    with pytest.raises(UserError, match="one a sample"):
        evaluate_samples(torch.zeros(4, 1, 3, 5), torch.zeros(3, dtype=torch.int64), **common)
