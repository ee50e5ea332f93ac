"""Precision, recall, density and coverage against loops over the definitions, and the law of coverage."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from morphogen.errors import UserError
from morphogen.metrics.coverage import Coverage, Principal, coverage, expected


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(found: Coverage) -> list[float]:
    return [m.value for m in found]


def test_by_hand() -> None:
    found = coverage(torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.5], [2.5], [10]]), k=1)
    assert values(found) == pytest.approx([2 / 3, 1, 4 / 3, 1])


def by_loops(real: list[list[float]], fake: list[list[float]], k: int) -> list[float]:
    def radius(of: list[list[float]], i: int) -> float:
        return sorted(math.dist(of[i], of[j]) for j in range(len(of)) if j != i)[k - 1]

    def inside(x: list[float], of: list[list[float]], j: int) -> bool:
        return math.dist(x, of[j]) <= radius(of, j)

    m, n = len(real), len(fake)
    precision = sum(any(inside(x, real, j) for j in range(m)) for x in fake) / n
    recall = sum(any(inside(y, fake, i) for i in range(n)) for y in real) / m
    density = sum(inside(x, real, j) for x in fake for j in range(m)) / (k * n)
    covered = sum(any(inside(x, real, j) for x in fake) for j in range(m)) / m
    return [precision, recall, density, covered]


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(("m", "n", "d"), [(7, 13, 1), (13, 7, 3), (20, 6, 2)])
def test_by_the_definitions(m: int, n: int, d: int, k: int) -> None:
    real, fake = normal(m, m, d), 0.7 * normal(n + 50, n, d) + 0.3
    assert values(coverage(real, fake, k=k)) == pytest.approx(by_loops(real.tolist(), fake.tolist(), k))
    shuffled = coverage(real.flip(0), fake.roll(2, 0), k=k)
    assert values(shuffled) == values(coverage(real, fake, k=k))
    assert values(coverage(4 * real - 1, 4 * fake - 1, k=k)) == values(shuffled)


def test_a_copy_of_the_items_has_all_and_a_constant_nothing() -> None:
    real = normal(0, 50, 2)
    assert values(coverage(real, real))[:2] == [1, 1]
    assert coverage(real, real).coverage.value == 1
    constant = real[:1].repeat(50, 1)
    found = coverage(real, constant)
    assert found.precision.value == 1
    assert found.recall.value == pytest.approx(1 / 50)  # the item itself: the balls have no size
    assert found.coverage.value < 0.3
    far = coverage(real, constant + 1e6)
    assert values(far) == [0, 0, 0, 0]


@pytest.mark.parametrize(("m", "n", "k"), [(60, 60, 5), (40, 80, 3), (90, 30, 2)])
def test_two_draws_of_one_law_cover_what_the_formula_says(m: int, n: int, k: int) -> None:
    """By exchangeability, whatever the law: here a normal one and one with a heavy tail, 200 times each."""
    for warp in (lambda x: x, lambda x: x**5):
        drawn = [
            coverage(warp(normal(2 * i, m, 2)), warp(normal(2 * i + 1, n, 2)), k=k).coverage.value for i in range(200)
        ]
        mean, error = torch.tensor(drawn).mean().item(), torch.tensor(drawn).std().item() / 200**0.5
        assert abs(mean - expected(m, n, k)) < 4 * error


def test_density_of_the_truth_is_one() -> None:
    found = [coverage(normal(3 * i, 100, 2), normal(3 * i + 1, 100, 2)).density.value for i in range(100)]
    mean, error = sum(found) / 100, torch.tensor(found).std().item() / 10
    assert abs(mean - 1) < 4 * error  # a ball of k of m - 1 others holds one more with probability k / m


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="2 features an item and the other 3"):
        coverage(normal(0, 9, 2), normal(1, 9, 3))
    with pytest.raises(UserError, match="none has a neighbour number 5"):
        coverage(normal(0, 5, 2), normal(1, 9, 2), k=5)


def test_principal_components_keep_distances_within_their_span() -> None:
    basis = torch.linalg.qr(normal(0, 30, 3))[0]
    real, other = normal(1, 40, 3) @ basis.T + 2, normal(2, 10, 3) @ basis.T + 2
    principal = Principal(real.view(40, 1, 5, 6), most=3)
    a, b = principal.features(real.view(40, 1, 5, 6)), principal.features(other.view(10, 1, 5, 6))
    assert a.shape == (40, 3)
    assert torch.allclose(torch.cdist(a, b), torch.cdist(real, other))
    assert Principal(normal(3, 4, 9)).features(normal(4, 2, 9)).shape == (2, 4)  # no more than there are items
    spread = a.std(0)
    assert (spread.diff() < 0).all()
