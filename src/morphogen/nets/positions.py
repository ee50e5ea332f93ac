"""How a transformer knows where a symbol stands. Places are integers, 0 first; a scheme enters at one of three points.

    Sinusoids     h_i + (sin(i f_0), cos(i f_0), sin(i f_1), …),  f_j = period^(−2j / width)                 (added)
    Rotary        the pair (x_j, x_{j + d/2}) of a query or key turned by the angle i period^(−2j / d)        (turned)
    ALiBi         −m_h |i − j| on the scores of head h; m = 2^(−8/H), 2^(−16/H), …                            (bias)
    T5Relative    b_h[bucket(j − i)] on the scores: half the buckets exact, half logarithmic up to `furthest` (bias)

Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, "RoFormer", arXiv:2104.09864 (here of the two halves of a head,
as in GPT-NeoX and Llama: the paper's neighbours, with the columns of W in another order); Press, Smith & Lewis 2022,
"Train short, test long", arXiv:2108.12409; Raffel et al. 2020, "Exploring the limits of transfer learning",
arXiv:1910.10683; Chen et al. 2023, "Extending context window of large language models via positional interpolation",
arXiv:2306.15595 (`Rotary.factor`; by wavelength as in Llama 3.1, Grattafiori et al. 2024, arXiv:2407.21783).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError

At = Int[Tensor, "*b n"]  # places, alike for all rows (N,) or of each (B, N)
Turn = tuple[Tensor, Tensor]  # cos and sin (*b, N, d / 2)


class Positions(Net):
    """A scheme of positions: each method is nothing unless the scheme enters there."""

    def vectors(self, at: At, width: int) -> Tensor | None:
        """What is added to the vectors of the symbols, (*b, N, width)."""
        return None

    def turn(self, at: At, d: int) -> Turn | None:
        """cos and sin (*b, N, d / 2) of the angles that queries and keys of d numbers are turned by."""
        return None

    def bias(self, at: At, seen: Int[Tensor, "*b m"], heads: int) -> Tensor | None:
        """What is added to the scores (*b, heads, N, M) of queries at `at` (*b, N) and keys at `seen` (*b, M)."""
        return None


class Sinusoids(Positions):
    """Fixed sines and cosines, neighbours in a pair."""

    def __init__(self, period: float = 10_000.0) -> None:
        super().__init__()
        self.period = period

    def vectors(self, at: At, width: int) -> Tensor:
        """See `Positions.vectors`."""
        angle = _angles(at, width + width % 2, self.period)
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[..., :width]


class Rotary(Positions):
    """Rotary positions, exact for any length that was trained on and stretched beyond it by `factor`.

    period: of the slowest pair, nearly. factor: places are divided by so much. original: where it is given, the length
    that was trained on, and only pairs that turn less than `low` times in it are stretched whole, those that turn more
    than `high` times not at all, and between them smoothly (Llama 3.1).
    """

    def __init__(
        self,
        period: float = 10_000.0,
        *,
        factor: float = 1.0,
        original: int | None = None,
        low: float = 1.0,
        high: float = 4.0,
    ) -> None:
        super().__init__()
        if period <= 0 or factor <= 0 or (original is not None and not 0 < low < high):
            raise UserError("Rotary positions need a period and a factor above 0, and 0 < low < high.")
        self.period, self.factor, self.original, self.low, self.high = period, factor, original, low, high

    def turn(self, at: At, d: int) -> Turn:
        """See `Positions.turn`. Raises UserError for an odd d."""
        if d % 2:
            raise UserError(f"Rotary positions turn pairs, and a head is {d} wide: make it even.")
        f = frequencies(d, self.period, at.device)
        if self.original is None:
            f = f / self.factor
        else:
            turns = self.original * f / (2 * math.pi)
            keep = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
            f = keep * f + (1 - keep) * f / self.factor
        angle = at[..., None] * f
        return angle.cos(), angle.sin()


class ALiBi(Positions):
    """Attention with linear biases: the farther, the less, at a slope of each head's own."""

    def bias(self, at: At, seen: Int[Tensor, "*b m"], heads: int) -> Tensor:
        """See `Positions.bias`."""
        apart = (at[..., :, None] - seen[..., None, :]).abs()
        return -slopes(heads, at.device)[:, None, None] * apart.unsqueeze(-3)


class T5Relative(Positions):
    """A learned number for each head and each bucket of distances.

    both: whether later places have buckets of their own (an encoder), or are as distance 0 (a decoder). buckets: how
    many. furthest: distances from here on share the last.
    """

    def __init__(self, heads: int, *, buckets: int = 32, furthest: int = 128, both: bool = False) -> None:
        super().__init__()
        if heads < 1 or buckets < (4 if both else 2) or furthest <= buckets // (4 if both else 2):
            raise UserError(
                "T5's relative positions need heads, 4 buckets or more, and furthest beyond the exact ones."
            )
        self.buckets, self.furthest, self.both = buckets, furthest, both
        self.table = nn.Parameter(torch.randn(buckets, heads) * 0.02)

    def bias(self, at: At, seen: Int[Tensor, "*b m"], heads: int) -> Tensor:
        """See `Positions.bias`. Raises UserError for another number of heads."""
        if heads != self.table.shape[1]:
            raise UserError(f"These positions were built for {self.table.shape[1]} heads and the net has {heads}.")
        place = bucket(seen[..., None, :] - at[..., :, None], self.buckets, self.furthest, self.both)  # (*b, N, M)
        return self.table[place].movedim(-1, -3)


def bucket(distance: Int[Tensor, "*b"], buckets: int = 32, furthest: int = 128, both: bool = True) -> Int[Tensor, "*b"]:
    """T5's bucket of a distance (key minus query)."""
    later = torch.zeros_like(distance)
    if both:
        buckets //= 2
        later = (distance > 0) * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    ratio = (distance.clamp(min=1).float() / exact).log() / math.log(furthest / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return later + torch.where(distance < exact, distance, far)


def slopes(heads: int, device: torch.device | str = "cpu") -> Float[Tensor, " {heads}"]:
    """ALiBi's slopes: 2^(−8 i / H), i = 1 .. H; where H is no power of 2, those of the power below, then every other
    one of twice that power.
    """
    power = 1 << (heads.bit_length() - 1)
    own = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    more = [2 ** (-4 * i / power) for i in range(1, 2 * power + 1, 2)]
    return torch.tensor((own + more)[:heads], device=device)


def frequencies(d: int, period: float, device: torch.device | str = "cpu") -> Tensor:
    """period^(−2j / d), j < d / 2."""
    wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return period ** (torch.arange(0, d, 2, dtype=wide, device=device) / -d)


def _angles(at: At, width: int, period: float) -> Tensor:
    return at[..., None] * frequencies(width, period, at.device)


def turned(x: Float[Tensor, "b h n d"], turn: Turn) -> Float[Tensor, "b h n d"]:
    """x with the pair (x_j, x_{j + d/2}) of each place turned by its angle.

    The product of a turned query and key depends on their places by the difference alone.
    """
    cos, sin = (t.unsqueeze(-3).to(x.dtype) for t in turn)  # (*b, 1, N, d / 2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
