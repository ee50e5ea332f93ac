"""Which words of a text are near one another, counted: what GloVe learns from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError
from .corpus import Corpus
from .items import Stored


class Cooccurrences(Stored):
    """`Items` of x (B, 2), words i and j, and count (B,) float32, X_ij: how often j is near i.

    corpus: the text. window, harmonic: as in `cooccurrences`. Counted on first use; documents are read as one text.
    """

    def __init__(self, corpus: Corpus, *, window: int = 10, harmonic: bool = True) -> None:
        self.corpus, self.window, self.harmonic = corpus, window, harmonic

    def read(self) -> dict[str, Any]:
        """The pairs that are met."""
        tokens, size = self.corpus.row().tokens, self.corpus.tokens.size
        i, j, value = cooccurrences(tokens, size, window=self.window, harmonic=self.harmonic)
        return {"x": torch.from_numpy(np.stack((i, j), 1)), "count": torch.from_numpy(value.astype(np.float32))}


def cooccurrences(
    tokens: NDArray[Any], size: int, *, window: int = 10, harmonic: bool = True, piece: int = 1 << 20
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(i, j, X_ij) of all pairs of words that are at most `window` apart in a text of tokens (n,), both ways round.

    size: of the vocabulary. harmonic: a pair at distance d counts 1/d, else 1. piece: tokens counted at a time.
    """
    if window < 1:
        raise UserError(f"A window of {window} words sees nothing: give 1 or more.")
    found: NDArray[Any] = np.zeros(0, np.int64)
    value: NDArray[Any] = np.zeros(0)
    for start in range(0, len(tokens), piece):
        text = tokens[max(0, start - window) : start + piece].astype(np.int64)
        begin = start - max(0, start - window)  # the words before it are only looked back at
        codes, each = [found], [value]
        for d in range(1, window + 1):
            first = max(0, begin - d)  # the earlier of the two
            b = text[first + d :]
            a = text[first : first + len(b)]
            codes += [a * size + b, b * size + a]
            each += [np.full(len(a), 1 / d if harmonic else 1.0)] * 2
        found, back = np.unique(np.concatenate(codes), return_inverse=True)
        value = np.bincount(back, np.concatenate(each), len(found))
    return found // size, found % size, value
