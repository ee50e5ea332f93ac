"""Fourier features against their formula, and for what they are there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from morphogen import UserError
from morphogen.nets.fourier import FourierFeatures
from morphogen.nets.mlp import MLP
from morphogen.nets.patch import Patched
from morphogen.nets.unet import UNet


class Sees(nn.Module):
    """Keeps what it is given."""

    def forward(self, x, cond):
        self.x, self.cond = x, cond
        return x[:, :1]


@pytest.mark.parametrize("shape", [(3, 2), (1, 1, 7), (2, 3, 5, 4), (0, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("powers", [(7, 8), (0,), (-1, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_features_by_their_formula(shape, powers, dtype):
    x, sees = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(5)), Sees()
    cond = {"t": torch.ones(shape[0])}
    FourierFeatures(sees, powers)(x, cond)
    c, k = shape[1], len(powers)
    assert sees.x.shape == (shape[0], c * (1 + 2 * k), *shape[2:])
    assert sees.x.dtype == dtype
    assert sees.cond is cond
    assert torch.equal(sees.x[:, :c], x)
    for i, n in enumerate(powers):
        for j in range(c):
            angle = math.pi * 2.0**n * x[:, j]
            at, to = c * (1 + i) + j, c * (1 + k + i) + j
            torch.testing.assert_close(
                sees.x[:, at], angle.sin(), atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=0
            )
            torch.testing.assert_close(
                sees.x[:, to], angle.cos(), atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=0
            )


def test_under_autocast_the_last_digits_are_still_seen():
    """A difference of a thousandth near -1, which bfloat16 cannot hold."""
    x, sees = torch.tensor([[-0.9960], [-0.9970]]), Sees()
    with torch.autocast("cpu", torch.bfloat16):
        FourierFeatures(sees, (7,))(x, {})
    assert torch.equal(x.bfloat16()[0], x.bfloat16()[1])
    assert float((sees.x[0] - sees.x[1])[1:].abs().max()) > 0.1


def test_it_wraps_nets_of_every_kind():
    x = torch.randn(3, 1, 7, 5)
    net = Patched(FourierFeatures(UNet(4 * 5, outputs=4, widths=(8,), attention=()), (3, 4)), 2)
    assert net(x, {"t": torch.ones(3)}).shape == x.shape
    points = torch.randn(3, 2)
    assert FourierFeatures(MLP(2 * 3, 2, 8, 1), (1,))(points).shape == points.shape


def test_no_powers_are_named():
    with pytest.raises(UserError, match=r"such as \(7, 8\)"):
        FourierFeatures(nn.Identity(), ())
