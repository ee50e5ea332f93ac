"""The embedded digits are scikit-learn's, and the split is what its description says."""

from __future__ import annotations

import numpy as np
import torch

from morphogen.data.digits import Digits


def everything(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    items = Digits(part)
    batch = items.take(torch.arange(len(items)))
    return batch["x"], batch["cond"]["label"]


def test_the_two_parts_together_are_the_digits_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    rank = np.empty(1797, int)  # the place of each item in an order by label, file order within
    counter = 0
    for digit in range(10):
        for i in np.flatnonzero(theirs.target == digit):
            rank[i] = counter
            counter += 1
    held_out = rank % 5 == 0
    for part, chosen in (("train", ~held_out), ("test", held_out)):
        x, label = everything(part)
        assert x.shape == (chosen.sum(), 1, 8, 8)
        np.testing.assert_array_equal(((x + 1) * 8).numpy()[:, 0], theirs.images[chosen])
        np.testing.assert_array_equal(label.numpy(), theirs.target[chosen])


def test_split_is_stratified_and_disjoint():
    (train, label), (test, test_label) = everything("train"), everything("test")
    assert (len(train), len(test)) == (1437, 360)
    share = torch.bincount(test_label) / (torch.bincount(label) + torch.bincount(test_label))
    assert (share - 0.2).abs().max() < 0.01
    assert torch.cdist(test.flatten(1), train.flatten(1)).min() > 0  # no picture is in both parts
    assert train.dtype == torch.float32
    assert label.dtype == torch.int64
    assert train.min() == -1
    assert train.max() == 1
