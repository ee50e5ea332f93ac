r"""Whether samples reach every part of the data: modes of a known mixture, and classes as a judge reads them.

    a sample is of high quality  where it is within `reach` standard deviations of the nearest mode
    a mode is reached            where some sample of high quality is nearest to it
    reverse KL                   Σ_k q_k log(q_k / p_k),   q_k the share of samples of high quality nearest to mode k

Lin, Khetan, Fanti & Oh 2018, "PacGAN", arXiv:1712.04086 (modes and high quality, reach 3); Srivastava et al. 2017,
"VEEGAN", arXiv:1705.07761.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from .measure import Measure, share


class Modes(NamedTuple):
    """modes: how many are reached. high_quality: share of samples. reverse_kl: nats, of the samples of high quality."""

    modes: Measure
    high_quality: Measure
    reverse_kl: Measure


def nearest_mode(
    x: Float[Tensor, "n d"], means: Float[Tensor, "k d"], std: float, reach: float = 3.0
) -> Int[Tensor, " n"]:
    """The mode that each sample is nearest to, -1 where it is more than `reach` standard deviations away."""
    away, mode = torch.cdist(x.double(), means.double()).min(1)
    return torch.where(away <= reach * std, mode, -1)


def mode_coverage(
    x: Float[Tensor, "n d"],
    means: Float[Tensor, "k d"],
    std: float,
    weights: Float[Tensor, " k"] | None = None,
    reach: float = 3.0,
) -> Modes:
    """Samples x against a mixture of isotropic Gaussians. weights: of the modes; equal ones if None.

    Raises UserError where there is no sample.
    """
    if not len(x):
        raise UserError("There are no samples to look for modes in: give at least one.")
    found = nearest_mode(x, means, std, reach)
    counts = torch.bincount(found[found >= 0], minlength=len(means)).double()
    reached, good = int((counts > 0).sum()), int(counts.sum())
    within = f"within {reach:g} standard deviations of a mode"
    p = torch.full_like(counts, 1 / len(means)) if weights is None else weights.double()
    q = counts / max(good, 1)
    kl = float(torch.xlogy(q, q / p).sum()) if good else math.inf
    return Modes(
        Measure(reached, reached, reached, len(x), f"modes of {len(means)} with a sample {within}, a count"),
        share(good, len(x), f"samples {within}"),
        Measure(kl, kl, kl, good, "nats from the modes' own shares to the samples', no interval"),
    )


class Shares(NamedTuple):
    """rarest, commonest: shares of the class that is read least often, and most often."""

    rarest: Measure
    commonest: Measure


def class_shares(label: Int[Tensor, " n"], classes: int) -> Shares:
    """Shares of the classes among samples, by what a judge reads. Raises UserError where there is no sample."""
    counts = torch.bincount(label, minlength=classes)
    least, most = int(counts.argmin()), int(counts.argmax())
    kind = "samples drawn without a class that are read as the"
    return Shares(
        share(int(counts[least]), len(label), f"{kind} rarest one ({least})"),
        share(int(counts[most]), len(label), f"{kind} commonest one ({most})"),
    )
