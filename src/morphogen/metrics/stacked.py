r"""How many modes of stacked digits samples reach, as a judge reads them channel by channel.

    modes   those that some sample is read as
    KL      Σ_k q_k log(q_k / p_k),   q_k the share of mode k among samples, p_k what it should be, 1 / K

Metz et al. 2017, arXiv:1611.02163; Srivastava et al. 2017, arXiv:1705.07761. Of n samples that are right in law the
expected count is K (1 - (1 - 1/K)^n), and KL about (K - 1) / (2 n), not 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from .judge import Judge, read
from .measure import Measure, share


def channel_labels(judge: Judge, x: Float[Tensor, "n c h w"]) -> Int[Tensor, "n c"]:
    """What a judge of grey pictures reads in each channel."""
    return read(judge, x.flatten(0, 1)[:, None]).label.view(len(x), -1)


def stacked_modes(
    mode: Int[Tensor, " n"], modes: int, weights: Float[Tensor, " k"] | None = None
) -> dict[str, Measure]:
    """What modes samples are of. mode: of each sample, -1 for none. modes: how many there are, weights: their shares.

    Returns modes, a count; strays, the share of samples that are of none; KL, nats, of the others.
    Raises UserError where there is no sample.
    """
    if not len(mode):
        raise UserError("There are no samples to look for modes in: give at least one.")
    counts = torch.bincount(mode[mode >= 0], minlength=modes).double()
    reached, good = int((counts > 0).sum()), int(counts.sum())
    q = counts / max(good, 1)
    p = torch.full_like(q, 1 / modes) if weights is None else weights.double()
    kl = float(torch.where(q > 0, q * (q / p).log(), 0.0).sum()) if good else math.inf
    return {
        "modes": Measure(reached, reached, reached, len(mode), f"modes of {modes} that a sample is read as, a count"),
        "strays": share(len(mode) - good, len(mode), "samples that are read as no mode"),
        "KL": Measure(kl, kl, kl, good, f"nats from {modes} modes' own shares to the samples', no interval"),
    }
