"""Schemes of positions against numbers computed by hand and by others (oracles A7)."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen.errors import UserError
from morphogen.nets.positions import ALiBi, Rotary, Sinusoids, T5Relative, bucket, slopes, turned


def test_sinusoids_by_hand() -> None:
    at = torch.tensor([0, 1])
    expected = [0.8414709848, 0.5403023059, 0.0099998333, 0.9999500004]
    torch.testing.assert_close(Sinusoids().vectors(at, 4)[1], torch.tensor(expected))
    assert Sinusoids().vectors(at, 5).shape == (2, 5)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        q, k = torch.randn(2, 1, 1, 1, 8)

        def product(i: int, j: int) -> float:
            return float((turned(q, at(i)) * turned(k, at(j))).sum())

        def at(i: int, period: float = 10_000.0, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
            return Rotary(period).turn(torch.tensor([i]), d)

        assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-9)
        assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)
        assert torch.equal(turned(q, at(0)), q)
        assert turned(q, at(5)).norm() == pytest.approx(float(q.norm()), abs=1e-12)
        one = turned(torch.ones(1, 1, 1, 2), at(1, 50.0, 2))[0, 0, 0]  # one pair, the angle 1
        torch.testing.assert_close(one, torch.tensor([math.cos(1) - math.sin(1), math.cos(1) + math.sin(1)]))
    finally:
        torch.set_default_dtype(torch.float32)


def test_stretched_rotary_positions() -> None:
    """By 4: place 8 is where 2 was. By wavelength: fast pairs stay, slow ones are stretched whole."""
    eight, two = (Rotary(factor=f).turn(torch.tensor([i]), 6) for f, i in ((4.0, 8), (1.0, 2)))
    torch.testing.assert_close(eight, two)
    plain = Rotary(1e6).turn(torch.tensor([3]), 16)[1].asin()
    kept = Rotary(1e6, factor=8.0, original=512, low=1.0, high=4.0).turn(torch.tensor([3]), 16)[1].asin()
    torch.testing.assert_close(kept[:, 1], plain[:, 1])
    torch.testing.assert_close(kept[:, -1], plain[:, -1] / 8)


def test_alibis_slopes_are_published() -> None:
    powers = [2.0**-i for i in range(1, 9)]
    torch.testing.assert_close(slopes(8), torch.tensor(powers))
    torch.testing.assert_close(slopes(12), torch.tensor([*powers, 0.707107, 0.353553, 0.176777, 0.088388]))
    bias = ALiBi().bias(torch.tensor([5, 6]), torch.arange(7), 8)
    assert bias.shape == (8, 2, 7)
    assert float(bias[2, 1, 4]) == -2 * 2.0**-3


def test_t5s_buckets_are_published() -> None:
    distances = torch.tensor([-200, -128, -64, -20, -16, -8, -7, 0, 7, 8, 15, 16, 20, 64, 128])
    expected = [15, 15, 14, 10, 10, 8, 7, 0, 23, 24, 25, 26, 26, 30, 31]
    assert bucket(distances, 32, 128).tolist() == expected
    assert bucket(torch.tensor([3, 0, -1, -15, -16, -1000]), 32, 128, both=False).tolist() == [0, 0, 1, 15, 16, 31]


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="make it even"):
        Rotary().turn(torch.arange(3), 5)
    with pytest.raises(UserError, match="built for 4 heads"):
        T5Relative(4).bias(torch.arange(2), torch.arange(2), 2)
    with pytest.raises(UserError, match="furthest beyond"):
        T5Relative(4, buckets=32, furthest=8)
    with pytest.raises(UserError, match="above 0"):
        Rotary(0.0)
