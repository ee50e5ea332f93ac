"""A measured number never travels alone: its interval, how many items it rests on and how it was got go with it."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import UserError

Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


class Measure(NamedTuple):
    """A number with its receipt.

    value: the estimate. low, high: its 95 % interval. n: the items it rests on. how: one clause that says what was
    measured and how the interval was made.
    """

    value: float
    low: float
    high: float
    n: int
    how: str

    @property
    def receipt(self) -> str:
        """One line: '0.9730 [0.9612, 0.9813], N = 1000: share of …'."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}], N = {self.n}: {self.how}"


def share(hits: int, n: int, how: str) -> Measure:
    """The share hits / n with Wilson's 95 % score interval, which stays inside [0, 1] and is honest at 0 and at n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", eq. 2.
    Raises UserError where n is 0.
    """
    if n < 1:
        raise UserError(f"There is nothing to measure the {how} on: give at least one item.")
    p, z2 = hits / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    # the interval ends exactly at 0 (at 1) where nothing (everything) hits, whatever the rounding
    low, high = 0.0 if hits == 0 else centre - half, 1.0 if hits == n else centre + half
    return Measure(p, low, high, n, how)
