"""Decoding: functions from logits (B, codes) to logits, before one symbol is drawn. They compose.

    temperature   l / τ                         τ → 0 takes the likeliest
    top k         l where among the k largest, else −∞
    guided        l_∅ + w (l_c − l_∅)           up to a constant p(x | c)^w p(x)^(1 − w); w = 1 is none

Fan, Lewis & Dauphin 2018, "Hierarchical neural story generation", arXiv:1805.04833 (top k); Sanchez et al. 2023, "Stay
on topic with classifier-free guidance", arXiv:2306.17806.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError

Logits = Float[Tensor, "b codes"]


def temperature(logits: Logits, tau: float) -> Logits:
    """Logits at the temperature τ; 0 leaves only the likeliest symbol. Raises UserError for a negative one."""
    if not tau >= 0:
        raise UserError(
            f"A temperature of {tau} is none: use 1 for the model's own law, less to be surer, 0 for the best."
        )
    return top_k(logits, 1) if tau == 0 else logits / tau


def top_k(logits: Logits, k: int) -> Logits:
    """The k largest logits, and what is as large as the last of them. Raises UserError for k below 1."""
    if k < 1:
        raise UserError(f"Of the top {k} symbols none can be drawn: use 1 or more.")
    least = logits.topk(min(k, logits.shape[-1]), -1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def guided(without: Logits, given: Logits, w: float) -> Logits:
    """Classifier-free guidance of weight w on logits without and given the conditions."""
    return torch.lerp(without, given, w)
