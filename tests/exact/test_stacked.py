"""Stacked digits: what is in an item, and modes counted on data and on samplers with planted gaps."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from morphogen.core import Items
from morphogen.data.digits import Digits
from morphogen.data.items import Tensors
from morphogen.data.stacked import Stacked, mode_of
from morphogen.errors import UserError
from morphogen.metrics.measure import Measure
from morphogen.metrics.stacked import channel_labels, stacked_modes


def flat(classes: int = 10, each: int = 7) -> Tensors:
    """Pictures that say their class: all pixels are its number."""
    label = torch.arange(classes).repeat(each)
    return Tensors(label.float()[:, None, None, None].expand(-1, 1, 3, 3), {"label": label})


class Reads:
    """A judge of `flat`."""

    def predict(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x.flatten(1).mean(1).round().long().clamp(0, 9), 10).float()

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def coverage(x: Tensor, classes: tuple[int, ...]) -> dict[str, Measure]:
    return stacked_modes(mode_of(channel_labels(Reads(), x), classes), len(classes) ** 3)


def test_an_item_is_three_pictures_and_its_label_their_digits() -> None:
    items = Stacked(flat(), count=5000)
    batch = items.take(torch.arange(5000))
    digits = batch["x"][:, :, 0, 0].long()
    assert batch["x"].shape == (5000, 3, 3, 3)
    assert torch.equal(batch["cond"]["label"], 100 * digits[:, 0] + 10 * digits[:, 1] + digits[:, 2])
    assert isinstance(items, Items)
    assert (len(items), items.modes) == (5000, 1000)
    again = items.take(torch.tensor([17, 3]))
    assert torch.equal(again["x"], batch["x"][[17, 3]])
    assert not torch.equal(batch["x"], Stacked(flat(), count=5000, seed=1).take(torch.arange(5000))["x"])


def test_channels_are_independent_and_uniform() -> None:
    digits = Stacked(flat(), count=20_000).take(torch.arange(20_000))["x"][:, :, 0, 0].long()
    for c in range(3):
        assert torch.allclose(torch.bincount(digits[:, c]) / 20_000, torch.full((10,), 0.1), atol=0.01)
    assert float(torch.corrcoef(digits.T.double()).triu(1).abs().max()) < 0.03


def test_some_classes_make_fewer_modes() -> None:
    items = Stacked(flat(), (1, 4, 8), count=2000)
    batch = items.take(torch.arange(2000))
    assert set(batch["x"].unique().tolist()) == {1.0, 4.0, 8.0}
    assert items.modes == 27
    assert set(batch["cond"]["label"].tolist()) == set(range(27))
    assert mode_of(torch.tensor([[8, 1, 4], [1, 1, 2]]), (1, 4, 8)).tolist() == [2 * 9 + 0 + 1, -1]


@pytest.mark.parametrize("classes", [tuple(range(10)), (1, 4, 8)])
def test_modes_of_real_data_are_as_many_as_the_collector_of_coupons_expects(classes: tuple[int, ...]) -> None:
    n, k = 4000, len(classes) ** 3
    x = Stacked(flat(), classes, count=n).take(torch.arange(n))["x"]
    found = coverage(x, classes)
    assert found["modes"].value == pytest.approx(
        k * (1 - (1 - 1 / k) ** n), abs=4 * math.sqrt(k * math.exp(-n / k)) + 1e-9
    )
    assert found["strays"].value == 0
    assert found["KL"].value == pytest.approx((k - 1) / (2 * n), rel=0.35)


@pytest.mark.parametrize("missing", [1, 5, 20])
def test_planted_gaps_are_counted(missing: int) -> None:
    batch = Stacked(flat(), (0, 3, 9), count=6000).take(torch.arange(6000))
    kept = batch["cond"]["label"] >= missing
    found = coverage(batch["x"][kept], (0, 3, 9))
    assert found["modes"].value == 27 - missing
    assert found["KL"].value == pytest.approx(math.log(27 / (27 - missing)), abs=0.01)


def test_kl_in_closed_form_and_strays() -> None:
    mode = torch.tensor([0] * 6 + [1] * 3 + [2] + [-1] * 10)
    found = stacked_modes(mode, 4)
    assert found["modes"].value == 3
    assert found["strays"].value == 0.5
    wanted = sum(q * math.log(4 * q) for q in (0.6, 0.3, 0.1))
    assert found["KL"].value == pytest.approx(wanted)
    assert stacked_modes(mode, 4, torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64))["KL"].value == pytest.approx(
        0, abs=1e-12
    )
    assert stacked_modes(torch.tensor([-1]), 4)["KL"].value == math.inf
    with pytest.raises(UserError, match="no samples"):
        stacked_modes(torch.tensor([], dtype=torch.long), 4)
    assert channel_labels(Reads(), torch.full((2, 3, 2, 2), 4.0)).tolist() == [[4, 4, 4]] * 2
    stray = coverage(torch.full((2, 3, 2, 2), 4.0), (1, 2))
    assert stray["strays"].value == 1


def test_bad_items_are_told() -> None:
    with pytest.raises(UserError, match="give 0 or more"):
        Stacked(flat(), channels=0)
    coloured = Tensors(torch.zeros(4, 3, 2, 2), {"label": torch.zeros(4, dtype=torch.long)})
    with pytest.raises(UserError, match="grey pictures"):
        Stacked(coloured).take(torch.arange(2))
    assert Stacked(Digits("train"), count=3).take(torch.arange(3))["x"].shape == (3, 3, 8, 8)


@pytest.mark.skipif("MORPHOGEN_DATA" not in os.environ, reason="MORPHOGEN_DATA names no folder with MNIST")
def test_mnist_is_stacked() -> None:
    from morphogen.data.mnist import MNIST

    batch = Stacked(MNIST("test"), count=9).take(torch.arange(9))
    assert batch["x"].shape == (9, 3, 28, 28)
    assert float(batch["x"].min()) == -1
