"""Use of a code book: counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from morphogen.data.items import Tensors
from morphogen.metrics.codes import code_use, written


def test_what_is_written_is_counted() -> None:
    found = code_use(torch.tensor([[[0, 1], [1, 3]], [[3, 3], [3, 0]]]), 5)
    assert found["codes in use"].value == pytest.approx(3 / 5)
    law = [2 / 8, 2 / 8, 4 / 8]
    assert found["perplexity"].value == pytest.approx(math.exp(-sum(p * math.log(p) for p in law)))
    assert found["perplexity"].n == 2
    every = code_use(torch.arange(7).repeat(3, 1), 7)
    assert every["codes in use"].value == 1
    assert every["perplexity"].value == pytest.approx(7)
    assert code_use(torch.zeros(4, 9, dtype=torch.long), 7)["perplexity"].value == pytest.approx(1)


class Thresholds:
    """Writes whether each number is above 0."""

    codes = 2

    def encode(self, x: Tensor) -> Tensor:
        assert len(x) <= 3
        return (x > 0).long()


def test_all_items_are_written_in_order() -> None:
    x = torch.randn(7, 2, 2)
    assert torch.equal(written(Thresholds(), Tensors(x), batch=3), (x > 0).long())
