r"""How unlike its training data an item is, by a model of these: three scores, the higher the stranger.

    error      mean_d (x − decode(encode(x)))²      of a codec: what it never saw, it cannot rebuild
    elbo       −elbo(x)                             nats, of a model with a lower bound of its likelihood
    log_prob   −log p(x)                            nats, of a model with a likelihood

An exact likelihood need not rank strange items as strange: log p of much simpler pictures is often higher than that
of the training data, and so is their reconstruction's quality.
Sources: Hawkins, He, Williams & Baxter 2002, "Outlier detection using replicator neural networks" (error); An & Cho
2015, "Variational autoencoder based anomaly detection using reconstruction probability"; Nalisnick, Matsukawa, Teh,
Gorur & Lakshminarayanan 2019, "Do deep generative models know what they don't know?", arXiv:1810.09136 (the warning).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..core import Bounds, Codec, LogProb, can, each
from ..errors import UserError
from .reconstruct import reconstruct
from .vectors import Cond

SCORES: dict[str, type] = {"error": Codec, "elbo": Bounds, "log_prob": LogProb}  # what a model must be for each


def served(model: Any) -> list[str]:
    """The scores that a model can give, the first the one to take where nobody says which."""
    return [name for name, protocol in SCORES.items() if can(model, protocol)]


@torch.no_grad()
def strangeness(
    model: Any,
    x: Shaped[Tensor, " n *shape"],
    cond: Cond | None = None,
    *,
    by: str = "error",
    chunk: int = 250,
    progress: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, " n"]:
    """The score (N,) of every x, float64, the higher the stranger.

    by: "error", "elbo" or "log_prob". progress: told how many are done. Raises UserError where the model lacks it.
    """
    if by not in served(model):
        has = served(model)
        raise UserError(
            f"{type(model).__name__} gives no score by {by!r}: "
            + (f"it can by {' or '.join(map(repr, has))}." if has else "it is neither a codec nor has it a likelihood.")
        )
    found = []
    for begin in range(0, len(x), chunk):
        part = x[begin : begin + chunk]
        told = each(cond, lambda c: c[begin : begin + chunk]) if cond else None  # noqa: B023
        if by == "error":
            found.append(reconstruct(model, part, told).error)
        else:
            found.append(-getattr(model, by)(part, told).double())
        progress(begin + len(part))
    return torch.cat(found) if found else x.new_zeros(0).double()
