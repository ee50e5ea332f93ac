"""Thickness and slant: of planted shapes, and of real digits that were made thicker or sheared."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from morphogen.data.digits import Digits
from morphogen.metrics.rank import spearman
from morphogen.metrics.strokes import brightness, distance, slant, thickness


@pytest.mark.parametrize("shape", [(9, 13), (1, 1), (1, 8), (17, 4), (40, 60)])
def test_distance_is_scipys(shape: tuple[int, int]) -> None:
    ink = torch.rand(5, *shape, generator=torch.Generator().manual_seed(sum(shape))) < 0.8
    ink[0], ink[1] = True, False
    ink[2] |= torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.95  # wide ink
    for found, one in zip(distance(ink), ink, strict=True):
        expected = ndimage.distance_transform_edt(np.pad(one.numpy(), 1))[1:-1, 1:-1]
        assert np.allclose(found, expected, atol=1e-5)


def bars(widths: list[float], side: int = 40, angle: float = 0.0, shear: float = 0.0) -> Tensor:
    """Straight bars with soft borders, one a picture, drawn as they should be read; of length 28."""
    fine = 8
    axis = (torch.arange(side * fine, dtype=torch.float64) + 0.5) / fine - side / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x = x + shear * y
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    made = torch.stack([((u.abs() < w / 2) & (v.abs() < 14)).double() for w in widths])
    return 2 * torch.nn.functional.avg_pool2d(made[:, None], fine) - 1


@pytest.mark.parametrize("angle", [0.0, math.pi / 2])
def test_a_bar_is_as_thick_as_it_was_drawn(angle: float) -> None:
    """Of width w and length L the mean distance is w/4 − w²/(12 L): its ends taper."""
    widths = [2.0, 4.0, 6.0]
    for w, t in zip(widths, thickness(bars(widths, angle=angle)).tolist(), strict=True):
        assert t == pytest.approx(w - w * w / (3 * 28), abs=0.02)


@pytest.mark.parametrize("angle", [0.2, 0.4, math.pi / 4, 1.3])
def test_a_slanted_bar_is_nearly_so(angle: float) -> None:
    """A border pixel's centre is 0 to ½ a fine pixel from the border, and ½ is taken off: 4 · ½ / 2 at most."""
    widths = [2.0, 2.5, 3.0, 4.0, 5.0, 6.0]
    found = thickness(bars(widths, angle=angle))
    assert (found.diff() > 0.3 * torch.tensor(widths).diff()).all()
    for w, t in zip(widths, found.tolist(), strict=True):
        assert w - w * w / (3 * 28) - 1 < t < w - w * w / (3 * 28) + 0.2


@pytest.mark.parametrize("shear", [-0.7, -0.2, 0.0, 0.3, 1.0])
def test_a_sheared_bar_slants_as_it_was_sheared(shear: float) -> None:
    """Shear x → x − s y tilts to the right by atan s where the shape was upright."""
    found = slant(bars([3.0], shear=shear))
    assert found.item() == pytest.approx(math.degrees(math.atan(shear)), abs=0.15)
    assert slant(bars([3.0], shear=shear) * 5 + 3).item() == pytest.approx(found.item(), abs=1e-6)


def digits() -> Tensor:
    x: Tensor = Digits("test").take(torch.arange(0, 360, 9))["x"].double()
    return torch.nn.functional.interpolate(x, scale_factor=4, mode="bicubic").clamp(-1, 1)


def test_sheared_digits_slant_more() -> None:
    """Each digit, whatever it slants by itself, is read as sheared further by what it was sheared by."""
    x = digits()
    shears = torch.linspace(-0.5, 0.5, 7, dtype=torch.float64)
    read = []
    for s in shears:
        turn = torch.tensor([[1.0, float(s), 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64).expand(len(x), -1, -1)
        at = torch.nn.functional.affine_grid(turn, list(x.shape), align_corners=False)
        read.append(slant(torch.nn.functional.grid_sample(x + 1, at, align_corners=False) - 1))
    measured = torch.stack(read, 1)  # (B, 7)
    assert (spearman(measured, shears.expand_as(measured)) > 0.99).all()
    slopes = measured.deg2rad().tan()
    assert (slopes.diff(dim=1) - shears.diff()).abs().median() < 0.03


def test_dilated_digits_are_thicker() -> None:
    x = digits()
    grown = [x]
    for _ in range(4):
        grown.append(torch.nn.functional.max_pool2d(grown[-1], 3, 1, 1))
    measured = torch.stack([thickness(g) for g in grown], 1)
    steps = torch.arange(5.0).expand_as(measured)
    assert (spearman(measured, steps) > 0.89).all()  # loops that close may stop one step short
    assert spearman(measured, steps).mean() > 0.99
    grew = measured.diff(dim=1)[:, 0]  # by a pixel on either side, where no loop closes
    assert 1.8 < grew.median() < 2.4


def test_odd_pictures() -> None:
    empty = torch.full((3, 3, 5, 9), -1.0)
    assert thickness(empty).tolist() == slant(empty).tolist() == [0.0] * 3
    assert thickness(empty[:0]).shape == slant(empty[:0]).shape == (0,)
    one = empty.clone()
    one[..., 2, 4] = 1.0
    assert (thickness(one) > 0).all()
    assert slant(one).tolist() == [0.0] * 3
    grey = bars([2.0, 5.0])
    assert torch.allclose(thickness(grey.expand(-1, 3, -1, -1)), thickness(grey))
    assert torch.allclose(thickness(grey.float()), thickness(grey))
    assert torch.equal(brightness(grey), grey.mean((1, 2, 3)))
