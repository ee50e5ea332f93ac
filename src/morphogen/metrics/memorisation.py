r"""Nearest-training-item distance: are the samples copies of what the model was trained on?

With d(x) = min_i |x - x_i| over training items, real items that the model never saw (a test set) tell how near is
ordinary. The share reported is that of samples with d(x) below the q-quantile of the test items' own d, q = 1 %: a
model that draws from the true law scores about q, one that copies scores 1. It is 0 for a model that samples far from
all data, so it says nothing of quality: read it beside a measure of that.

Sources: Meehan, Chaudhuri & Dasgupta 2020, "A non-parametric test to detect data-copying in generative models",
arXiv:2004.05675; Carlini et al. 2023, "Extracting training data from diffusion models", arXiv:2301.13188 (nearest
l2 neighbour of a sample).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from .measure import Measure, share


def nearest(
    x: Float[Tensor, " n *shape"], to: Float[Tensor, " m *shape"], *, chunk: int = 1024
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Euclidean distance (N,) of every x from its nearest item of `to`, float64, and that item's index (N,)."""
    if len(to) == 0:
        raise UserError("There is no item to be near to: give at least one.")
    to = to.flatten(1).double()
    square = to.square().sum(1)
    distance, index = [], []
    for part in x.flatten(1).double().split(chunk):
        at = (square - 2 * part @ to.T).argmin(1)  # the part's own square does not move the minimum
        index.append(at)
        distance.append((part - to[at]).norm(dim=1))  # from the difference, so that a copy is at 0 exactly
    return torch.cat(distance), torch.cat(index)


def memorised(
    samples: Float[Tensor, " n *shape"],
    train: Float[Tensor, " m *shape"],
    test: Float[Tensor, " k *shape"],
    *,
    quantile: float = 0.01,
) -> Measure:
    """The share of samples nearer to a training item than all but the `quantile` of test items. Wilson interval.

    Raises UserError where a set is empty.
    """
    if len(samples) == 0 or len(test) == 0:
        raise UserError(f"Copying cannot be judged with {len(samples)} samples and {len(test)} test items.")
    ordinary = nearest(test, train)[0].quantile(quantile)
    hits = int((nearest(samples, train)[0] < ordinary).sum())
    bound = f"the {quantile:.0%} quantile of {len(test)} test items ({float(ordinary):.4g})"
    return share(hits, len(samples), f"samples nearer to one of {len(train)} training items than {bound}")
