r"""Quantisers that look nothing up: each channel of z by itself, on a grid or by its sign.

    FSQ, levels L_i:   z_q = round(bounded(z_e)) / (L_i // 2),    ∏ L_i codes, and no loss
    LFQ, b bits:       z_q = sign(z_e),  2^b codes;    + w (E[H(q(k|z_e))] - H(E[q(k|z_e)])) + β |z_e - sg(z_q)|²

Codes are numbers in mixed radix, the first channel the lowest digit. The gradient goes straight through the rounding.

FSQ: Mentzer, Minnen, Agustsson & Tschannen 2023, "Finite scalar quantization: VQ-VAE made simple", arXiv:2309.15505.
LFQ: Yu et al. 2023, "Language model beats diffusion: tokenizer is key to visual generation", arXiv:2310.05737.
Departure: H(E[q]) is exact within groups of bits and summed over groups, an upper bound; exact where bits <= group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..core import everyone
from ..errors import UserError
from .quantise import Counted, Quantised, commitment, rows, straight_through


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """The entropy, nats, of a bit that is 1 with probability sigmoid(logits)."""
    return F.softplus(logits) - logits * logits.sigmoid()


def mixed(bits: Float[Tensor, "n g"]) -> Float[Tensor, " k"]:
    """E[q] (2^g,) of n codes whose g bits are 1 with the probabilities `bits`, the first bit the lowest."""
    law = bits.new_ones(len(bits), 1)
    for p in bits.unbind(1):
        law = torch.cat((law * (1 - p)[:, None], law * p[:, None]), 1)
    return law.mean(0)


class FSQ(Counted):
    """Finite scalar quantisation: channel i of z is rounded to one of levels[i] values in [-1, 1].

    levels: at least 2 each, better 5 or more; the paper's for 2^8 codes (8, 6, 5), 2^10 (8, 5, 5, 5), 2^12 (7, 5, 5, 5,
    5), 2^14 (8, 8, 8, 6, 5). decay: see `Counted`.
    """

    count: Tensor
    edge: Tensor
    offset: Tensor
    base: Tensor

    def __init__(self, levels: Sequence[int], *, decay: float = 0.99) -> None:
        if not levels or min(levels) < 2:
            raise UserError(f"FSQ with levels={levels} has nothing to choose: give 2 or more values a channel.")
        super().__init__(len(levels), math.prod(levels), decay)
        count = torch.tensor(levels)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("edge", 0.5 * (count - 1) * (1 + 1e-3), persistent=False)
        self.register_buffer("offset", 0.5 * (count % 2 == 0), persistent=False)  # even: one value more below zero
        self.register_buffer("base", torch.cat((count.new_ones(1), count.cumprod(0)[:-1])), persistent=False)

    def bounded(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Each channel between its outermost values, 0 near 0 (paper, appendix A.1)."""
        edge, offset = self.edge.to(z), self.offset.to(z)
        return (z + (offset / edge).tan()).tanh() * edge - offset

    def quantise(self, z: Float[Tensor, "b d *size"]) -> Quantised:
        bounded = self.bounded(z.movedim(1, -1))  # (B, *size, d)
        whole = bounded.round()
        half = self.count // 2
        codes = ((whole.long() + half) * self.base).sum(-1)
        z_q = straight_through(bounded, whole) / half
        return Quantised(z_q.movedim(-1, 1), codes, z.new_zeros(()))

    def vectors(self, codes: Int[Tensor, " b *size"]) -> Float[Tensor, "b d *size"]:
        digits = codes[..., None] // self.base % self.count  # (B, *size, d)
        half = self.count // 2
        return ((digits - half).to(self.edge) / half).movedim(-1, 1)


class LFQ(Counted):
    """Quantisation without looking up: each of `bits` channels of z becomes its sign, a bit.

    entropy:     weight of E[H(q)] - H(E[q]): every z sure of its code, all codes used. q is the softmax over codes
                 of -|z - c|² / temperature, in which bits are independent: q(bit = 1) = sigmoid(4 z / temperature).
    beta:        weight of the commitment. temperature: see above.
    group:       bits whose joint law H(E[q]) is exact of.
    """

    whole = True
    base: Tensor

    def __init__(
        self,
        bits: int,
        *,
        entropy: float = 0.1,
        beta: float = 0.25,
        temperature: float = 1.0,
        group: int = 10,
        decay: float = 0.99,
    ) -> None:
        if not 1 <= bits <= 20:
            raise UserError(f"An LFQ has {bits} bits: give 1 to 20.")
        if min(entropy, beta) < 0 or temperature <= 0 or not 1 <= group <= 16:
            raise UserError(
                f"LFQ was given entropy={entropy}, beta={beta}, temperature={temperature}, group={group}: give weights"
                " of 0 or more, a temperature above 0 and groups of 1 to 16 bits."
            )
        super().__init__(bits, 2**bits, decay)
        self.entropy, self.beta, self.temperature, self.group = entropy, beta, temperature, group
        self.register_buffer("base", 2 ** torch.arange(bits), persistent=False)

    def quantise(self, z: Float[Tensor, "b d *size"]) -> Quantised:
        one = z.movedim(1, -1) > 0  # (B, *size, bits)
        codes = (one * self.base).sum(-1)
        z_q = one.movedim(-1, 1).to(z) * 2 - 1
        loss = self.beta * commitment(z, z_q)
        if self.entropy:
            loss = loss + self.entropy * self.penalty(rows(z))
        return Quantised(straight_through(z, z_q), codes, loss)

    def penalty(self, z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """E[H(q(k|z))] - H(E[q(k|z)]), nats, over all ranks' vectors."""
        logits = 4 / self.temperature * z
        sure = bernoulli_entropy(logits).sum(1).mean()
        spread = z.new_zeros(())
        for bits in logits.sigmoid().split(self.group, 1):
            law = mixed(bits)
            law = law + (everyone.mean(law.detach()) - law.detach())  # ranks average gradients: each gives its own
            spread = spread + torch.special.entr(law.clamp(min=torch.finfo(law.dtype).tiny)).sum()
        return sure - spread

    def vectors(self, codes: Int[Tensor, " b *size"]) -> Float[Tensor, "b d *size"]:
        bits = codes[..., None] // self.base % 2
        return (bits.to(self.used) * 2 - 1).movedim(-1, 1)
