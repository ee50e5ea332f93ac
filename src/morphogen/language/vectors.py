"""What word vectors say: nearest words, analogies, and how well they agree with people.

    nearest        the largest cosines
    analogy        a : b = c : ?      arg max cos(w, b − a + c) over all words but these three
    similarity     Spearman's rank correlation of the cosines with people's scores

Mikolov, Yih & Zweig 2013, "Linguistic regularities in continuous space word representations" (analogies). Pairs and
questions with a word that has no vector are left out, and how many is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError, unknown


class Agreement(NamedTuple):
    """How vectors do on a list. value: of those that were asked. asked, of: so many of how many."""

    value: float
    asked: int
    of: int


class Vectors:
    """Words and their vectors (V, d)."""

    def __init__(self, words: Sequence[str], vectors: Float[Tensor, "v d"]) -> None:
        if len(words) != len(vectors) or len(set(words)) != len(words):
            raise UserError(
                f"{len(words)} words and {len(vectors)} vectors do not belong together: one a word, each once."
            )
        self.words, self.vectors = tuple(words), vectors.detach().cpu().float()
        self._number = {w: i for i, w in enumerate(self.words)}
        self._unit = torch.nn.functional.normalize(self.vectors, dim=1)

    def __contains__(self, word: str) -> bool:
        return word in self._number

    def __getitem__(self, word: str) -> Float[Tensor, " d"]:
        """The vector of a word. Raises UserError naming the nearest spelling where it has none."""
        return self.vectors[self.number(word)]

    def number(self, word: str) -> int:
        """Which of the words it is."""
        if word not in self._number:
            raise unknown("word with a vector", word, self.words)
        return self._number[word]

    def cosine(self, a: str, b: str) -> float:
        """Of the vectors of two words."""
        return float(self._unit[self.number(a)] @ self._unit[self.number(b)])

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]:
        """The n nearest words to a word, with their cosines, itself left out."""
        i = self.number(word)
        return self._best(self._unit[i], n, (i,))

    def analogy(self, a: str, b: str, c: str, n: int = 1) -> list[tuple[str, float]]:
        """The n words that are to c as b is to a, the likeliest first."""
        i, j, k = map(self.number, (a, b, c))
        return self._best(self._unit[j] - self._unit[i] + self._unit[k], n, (i, j, k))

    def _best(self, at: Tensor, n: int, but: Sequence[int]) -> list[tuple[str, float]]:
        if not 1 <= n <= len(self.words) - len(set(but)):
            raise UserError(f"{n} words were asked for, and there are {len(self.words) - len(set(but))} others.")
        score = self._unit @ torch.nn.functional.normalize(at, dim=0)
        score[list(but)] = -torch.inf
        value, index = score.topk(n)
        return [(self.words[i], v) for i, v in zip(index.tolist(), value.tolist(), strict=True)]

    def analogies(self, questions: Iterable[Sequence[str]], batch: int = 1024) -> Agreement:
        """The share of questions (a, b, c, d) that are answered d. Raises UserError for one that is not four words."""
        every = [(q,) if isinstance(q, str) else tuple(q) for q in questions]
        if wrong := [q for q in every if len(q) != 4]:
            raise UserError(f"A question is four words (a, b, c, d), and {str(wrong[0])[:60]} is none.")
        asked = [[self._number[w] for w in q] for q in every if all(w in self._number for w in q)]
        right = 0
        for part in torch.tensor(asked, dtype=torch.long).view(-1, 4).split(batch):
            a, b, c = (self._unit[part[:, i]] for i in range(3))
            score = (b - a + c) @ self._unit.T
            score.scatter_(1, part[:, :3], -torch.inf)
            right += int((score.argmax(1) == part[:, 3]).sum())
        return Agreement(right / len(asked) if asked else float("nan"), len(asked), len(every))

    def similarity(self, pairs: Iterable[tuple[str, str, float]]) -> Agreement:
        """Spearman's ρ of the cosines with the scores of pairs (word, word, score). UserError for what is none."""
        every = list(pairs)
        if wrong := [p for p in every if len(p) != 3 or not math.isfinite(p[2])]:
            raise UserError(f"A pair is (word, word, score), the score a number, and {str(wrong[0])[:60]} is none.")
        known = [(self.cosine(a, b), s) for a, b, s in every if a in self and b in self]
        value = spearman(*map(torch.tensor, zip(*known, strict=True))) if len(known) > 1 else float("nan")
        return Agreement(value, len(known), len(every))


def spearman(a: Tensor, b: Tensor) -> float:
    """The rank correlation of a (n,) and b (n,); those that are equal share the mean of their ranks."""
    x, y = (_ranks(t.double()) for t in (a, b))
    return float(torch.corrcoef(torch.stack((x, y)))[0, 1])


def _ranks(x: Tensor) -> Tensor:
    value, back, n = x.unique(return_inverse=True, return_counts=True)
    last = n.cumsum(0).double()
    return (last - (n - 1) / 2)[back] if len(value) else x


def read_pairs(file: str | Path) -> list[tuple[str, str, float]]:
    """Pairs of words with scores, one a line: word, word, score. Raises UserError for a file of anything else."""
    found = []
    for i, words in _rows(file):
        try:
            a, b, said = words
            score = float(said)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"Line {i} of {str(file)!r} is no pair of words: a line is word, word, score.")
        found.append((a, b, score))
    return found


def read_questions(file: str | Path) -> dict[str, list[tuple[str, ...]]]:
    """Analogies by section, as in Google's questions-words.txt: ": section", then four words a line.

    Raises UserError for a file of anything else.
    """
    found: dict[str, list[tuple[str, ...]]] = {}
    section = ""
    for i, words in _rows(file, lower=False):
        if words[0].startswith(":"):
            section = " ".join(words)[1:].strip()
        elif len(words) == 4:
            found.setdefault(section, []).append(tuple(w.lower() for w in words))
        else:
            raise UserError(f"Line {i} of {str(file)!r} is no analogy: it has {len(words)} words, not 4.")
    return found


def _rows(file: str | Path, lower: bool = True) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers, as words."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{str(file)!r} is no text in UTF-8 (byte {error.start}): convert it.") from None
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be read ({error.strerror}): give the path of a list of words.") from None
    lines = enumerate((text.lower() if lower else text).splitlines(), 1)
    return [(i, line.split()) for i, line in lines if line.strip()]
