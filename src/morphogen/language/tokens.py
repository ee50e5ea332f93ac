"""Tokens: the ways between text and the integers that a language model reads.

    Characters   a symbol for each character of an alphabet          Bytes   one for each byte of UTF-8, 256 in all
    Words        one for each word of a vocabulary, the rest unknown
    Subwords     pieces of words, learned by `byte_bpe`, `unigram` or `wordpiece` (see `subwords`)

All have the same face. Special tokens (what ends a text, who speaks) have the integers after those of text, or those
that their file gives them. They are asked for by name and never read out of a text, so that nobody who writes one can
end a turn with it: `encode("<|end|>")` is seven characters, `special("<|end|>")` is the token.

`exact` says whether `decode(encode(text))` is the text, byte by byte, whatever it is.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import END as END
from ..disk import write
from ..errors import UserError, unknown
from ..spec import Asset, Remembers

Ids = NDArray[np.int32]
_SAMPLE = 24  # characters of the user's that a message repeats


class Vocabulary(Remembers):
    """Base of the ways between text and tokens.

    size: how many tokens there are, the special ones among them. specials: their names. exact: whether a text comes
    back as it was.
    """

    size: int
    specials: tuple[str, ...]
    exact: bool = False

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The tokens (n,) of a text; special ones never. Raises UserError for what they cannot say."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | NDArray[Any], *, specials: bool = False) -> str:
        """The text of tokens; special ones are left out, or written by name. Raises UserError for what is no token."""

    def special(self, name: str) -> int:
        """The integer of a special token. Raises UserError naming the nearest."""
        if name not in self.specials:
            raise unknown("special token", name, self.specials)
        return self.size - len(self.specials) + self.specials.index(name)

    def _checked(self, ids: Sequence[int] | NDArray[Any]) -> Ids:
        found = np.asarray(ids, np.int64)
        if found.ndim != 1:
            raise UserError(f"Tokens of shape {found.shape} are no text: give one row (n,).")
        if found.size and not 0 <= found.min() <= found.max() < self.size:
            raise UserError(
                f"These tokens run from {found.min()} to {found.max()}, and there are 0 to {self.size - 1}."
            )
        return found.astype(np.int32)

    def _split(self, ids: Sequence[int] | NDArray[Any], specials: bool) -> list[Ids | str]:
        """Runs of ordinary tokens, and between them the names of the special ones where they are wanted."""
        found, first = self._checked(ids), self.size - len(self.specials)
        if not specials:
            return [found[found < first]]
        parts: list[Ids | str] = []
        cuts = np.flatnonzero(found >= first)
        for run in np.split(found, cuts):
            if len(run) and run[0] >= first:
                parts.append(self.specials[run[0] - first])
                run = run[1:]
            parts.append(run)
        return parts


def _named(specials: Sequence[str]) -> tuple[str, ...]:
    if len(set(specials)) != len(specials) or not all(specials):
        raise UserError(f"Special tokens need names of their own, and these are {list(specials)}.")
    return tuple(specials)


class Characters(Vocabulary):
    """A token for each character of an alphabet.

    alphabet: all that can be said, in the order of the tokens, such as `alphabet_of(text)`. unknown: a character of it
    that stands for all others; None refuses them. specials: names of special tokens.
    """

    def __init__(self, alphabet: str, *, unknown: str | None = None, specials: Sequence[str] = ()) -> None:
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise UserError("An alphabet has one character or more, and each once: give alphabet_of(text).")
        if unknown is not None and (len(unknown) != 1 or unknown not in alphabet):
            raise UserError(f"What stands for unknown characters is one of the alphabet, and {unknown!r} is not.")
        self.alphabet, self.unknown, self.specials = alphabet, unknown, _named(specials)
        self.size = len(alphabet) + len(self.specials)
        points = np.array([ord(c) for c in alphabet])
        self._order = points.argsort()
        self._points = points[self._order]  # ascending, to be searched

    def encode(self, text: str) -> Ids:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)  # (n,)
        at = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
        strange = self._points[at] != points
        if strange.any():
            if self.unknown is None:
                i = int(strange.argmax())
                raise UserError(
                    f"The alphabet of {len(self.alphabet)} characters has no {text[i]!r} (character {i + 1} of"
                    f" {text[:_SAMPLE]!r}{'…' if len(text) > _SAMPLE else ''}): leave it out, or take tokens of bytes."
                )
            at[strange] = np.searchsorted(self._points, ord(self.unknown))
        ids: Ids = self._order[at].astype(np.int32)
        return ids

    def decode(self, ids: Sequence[int] | NDArray[Any], *, specials: bool = False) -> str:
        parts = self._split(ids, specials)
        return "".join(p if isinstance(p, str) else "".join([self.alphabet[i] for i in p.tolist()]) for p in parts)


def alphabet_of(texts: str | Iterable[str]) -> str:
    """The characters of a text, or of several, sorted."""
    found: set[str] = set()
    for text in [texts] if isinstance(texts, str) else texts:
        found.update(text)
    return "".join(sorted(found))


class Bytes(Vocabulary):
    """A token for each byte of a text in UTF-8: 256, and the special ones. What is no UTF-8 has tokens too."""

    exact = True

    def __init__(self, *, specials: Sequence[str] = ()) -> None:
        self.specials = _named(specials)
        self.size = 256 + len(self.specials)

    def encode(self, text: str) -> Ids:
        return self.encode_bytes(text.encode("utf-8", "surrogatepass"))

    def encode_bytes(self, data: bytes) -> Ids:
        """The tokens (n,) of any bytes."""
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | NDArray[Any], *, specials: bool = False) -> str:
        parts = self._split(ids, specials)
        return "".join(p if isinstance(p, str) else _text(p.astype(np.uint8).tobytes()) for p in parts)

    def decode_bytes(self, ids: Sequence[int] | NDArray[Any]) -> bytes:
        """The bytes of tokens, special ones left out."""
        (found,) = self._split(ids, False)
        assert not isinstance(found, str)
        return found.astype(np.uint8).tobytes()


def _text(data: bytes) -> str:
    """UTF-8 as text; what a cut has left of a character, or a model has made up, as the sign of replacement."""
    return data.decode("utf-8", "replace")


class Words(Vocabulary):
    """A token for each word of a vocabulary; others are unknown. Spaces are not kept: words come back one space apart.

    file: the words, one a line, the commonest first, such as `learn_words` writes. lower: read text in lower case.
    unknown: the word of the vocabulary that stands for all others. pattern: what a word is, a regular expression.
    """

    def __init__(
        self,
        file: Asset,
        *,
        lower: bool = False,
        unknown: str = "<unk>",
        pattern: str = r"\S+",
        specials: Sequence[str] = (),
    ) -> None:
        self.file, self.lower, self.unknown, self.specials = file, lower, unknown, _named(specials)
        self.words = tuple(_lines(file.path))
        if len(set(self.words)) != len(self.words) or unknown not in self.words:
            raise UserError(
                f"{str(file.path)!r} is no vocabulary: it has a word twice, or none {unknown!r}; write it with"
                " learn_words."
            )
        self._number = {w: i for i, w in enumerate(self.words)}
        self._pattern = _compiled(pattern)
        self.size = len(self.words) + len(self.specials)

    def encode(self, text: str) -> Ids:
        other = self._number[self.unknown]
        words = self._pattern.findall(text.lower() if self.lower else text)
        return np.array([self._number.get(w, other) for w in words], np.int32)

    def decode(self, ids: Sequence[int] | NDArray[Any], *, specials: bool = False) -> str:
        parts = self._split(ids, specials)
        return " ".join(w for p in parts for w in ([p] if isinstance(p, str) else [self.words[i] for i in p.tolist()]))


def learn_words(
    texts: Iterable[str],
    file: str | Path,
    *,
    least: int = 1,
    most: int | None = None,
    lower: bool = False,
    pattern: str = r"\S+",
    unknown: str = "<unk>",
) -> Asset:
    """Count words, and write a vocabulary: `unknown`, then the words that come `least` times or more, `most` of them at
    the most, the commonest first and equally common ones in the order of their letters.
    """
    found, counts = _compiled(pattern), Counter[str]()
    for text in texts:
        counts.update(found.findall(text.lower() if lower else text))
    counts.pop(unknown, None)
    kept = sorted((w for w, n in counts.items() if n >= least), key=lambda w: (-counts[w], w))[:most]
    if not kept:
        raise UserError(
            f"No word comes {least} times or more in these texts, so there is no vocabulary: give more text, or take"
            " rarer words too (least=1, --least 1)."
        )
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, "".join(f"{w}\n" for w in (unknown, *kept)).encode("utf-8", "surrogatepass"))
    return Asset(path)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression ({error}): what is a word? Such as r'\\w+'.") from None
    if found.groups:
        raise UserError(f"{pattern!r} has groups, and the whole of what it finds is a word: write (?:…).")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", "surrogatepass").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{str(path)!r} is no text in UTF-8, and a vocabulary is words, one a line.") from None
