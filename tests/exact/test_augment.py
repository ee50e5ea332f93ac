"""Augmented sources: by key, anew each time; and dequantisation as its theorem says."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen import UserError
from morphogen.core import Model, Noise, Place, Source, keys
from morphogen.data.augment import Augmented, Dequantise, Flip, Shift
from morphogen.data.items import Tensors
from morphogen.data.source import Shuffled
from morphogen.spec import build, spec

IDLE = Model()


def pictures(n: int = 7) -> Tensors:
    x = torch.randint(0, 256, (n, 1, 5, 4), generator=torch.Generator().manual_seed(0))
    return Tensors(x, {"label": torch.arange(n)}, levels=256)


def started(batch: int, seed: int = 3) -> Augmented:
    source = Augmented(Shuffled(pictures(), batch), (Shift(1), Flip(), Dequantise()))
    source.start(Place(seed=seed))
    return source


def test_they_are_what_they_say() -> None:
    assert isinstance(started(3), Source)
    made = Augmented(Shuffled(pictures(), 3), (Dequantise(16),))
    with pytest.raises(UserError):  # a bare tensor cannot be written down, and says so, from inside as well
        spec(made)
    assert build(spec(Dequantise(16))).levels == 16


def test_a_sample_depends_on_its_key_and_not_on_its_company() -> None:
    small, large = started(1), started(7)
    whole = large.next(IDLE, {})
    for i in range(7):
        assert torch.equal(small.next(IDLE, {})["x"][0], whole["x"][i])
    again = large.next(IDLE, {})  # the next epoch: the same items, changed anew
    first, second = whole["index"].argsort(), again["index"].argsort()
    assert not torch.equal(whole["x"][first], again["x"][second])


def test_noise_of_the_loss_is_not_that_of_the_augmentation() -> None:
    source = Augmented(Shuffled(pictures(), 7), (Dequantise(),))
    source.start(Place())
    batch = source.next(IDLE, {})
    plain = pictures().take(batch["index"])["x"]
    u = (batch["x"] - plain) * 127.5 + 0.5
    assert not torch.allclose(u, Noise(batch["key"]).uniform(1, 5, 4), atol=1e-3)
    assert u.min() > -1e-3
    assert u.max() < 1 + 1e-3


def test_resume() -> None:
    straight, stopped = started(3), started(3)
    for _ in range(4):
        straight.next(IDLE, {}), stopped.next(IDLE, {})
    later = started(3)
    later.restore(stopped.state())
    assert torch.equal(straight.next(IDLE, {})["x"], later.next(IDLE, {})["x"])


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_dequantised_values_fill_their_cells_evenly(levels: int) -> None:
    x = torch.arange(levels).repeat(4000 // levels + 1)[:, None].double() / (levels - 1) * 2 - 1
    y = Dequantise(levels)(x, Noise(keys(torch.arange(len(x)), 1)))
    away = (y - x) * (levels - 1) / 2
    assert away.abs().max() <= 0.5
    assert abs(float(away.mean())) < 4 / math.sqrt(12 * len(x))
    assert float(away.var()) == pytest.approx(1 / 12, rel=0.1)
    assert torch.equal(((y + 1) / 2 * (levels - 1)).round(), ((x + 1) / 2 * (levels - 1)).round())


def test_dequantisation_bounds_the_log_probability() -> None:
    """For a density p, E_u log p(x + u c) + log c <= log of the integral of p over the cell (Jensen)."""
    density = torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 0.4)
    cell, x = 2 / 7, torch.linspace(-1, 1, 8, dtype=torch.float64)
    exact = (density.cdf(x + cell / 2) - density.cdf(x - cell / 2)).log()
    y = Dequantise(8)(x.repeat(20_000)[:, None], Noise(keys(torch.arange(160_000), 2)))
    bound = density.log_prob(y).reshape(-1, 8).mean(0) + math.log(cell)
    assert (bound <= exact + 1e-3).all()
    slope = (x - 0.1) / 0.4**2  # to second order the gap is the variance of log p in the cell, halved: (slope c)² / 24
    assert (exact - bound <= 1.1 * (slope * cell).square() / 24 + 1e-3).all()


def test_fewer_than_two_levels_are_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        Dequantise(1)
