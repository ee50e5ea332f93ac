"""Patches as channels: torch's own order, an exact inverse in any dimension, sizes that do not divide."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from morphogen import UserError
from morphogen.nets.patch import Patched, fold, unfold


class Same(nn.Module):
    """Gives back what it was given, and remembers its shape."""

    def forward(self, x, cond):
        self.shape, self.cond = x.shape, cond
        return x


@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_order_is_that_of_pixel_unshuffle(p):
    x = torch.randn(2, 3, 6, 12)
    assert torch.equal(fold(x, p), torch.nn.functional.pixel_unshuffle(x, p))
    assert torch.equal(unfold(fold(x, p), p), x)


@pytest.mark.parametrize("size", [(8,), (4, 6), (2, 4, 6)])
def test_unfolding_is_the_inverse(size):
    x = torch.randn(3, 2, *size)
    folded = fold(x, 2)
    assert folded.shape == (3, 2 * 2 ** len(size), *(n // 2 for n in size))
    assert torch.equal(unfold(folded, 2), x)


@pytest.mark.parametrize("size", [(7,), (5, 8), (1, 1), (3, 5, 4)])
def test_any_size(size):
    net, x = Same(), torch.randn(1, 2, *size)
    cond = {"t": torch.zeros(1)}
    assert torch.equal(Patched(net, 2)(x, cond), x)
    assert net.shape[2:] == tuple(-(-n // 2) for n in size)
    assert net.cond is cond


def test_no_patch():
    with pytest.raises(UserError, match="1 or more"):
        Patched(Same(), 0)
