"""Byte-pair encoding, written out: what `byte_bpe` learns and does by a library, small enough to be read.

    learn     from single bytes on: merge the two neighbours that come oftenest into a new token, until there are enough
    encode    each word: merge the neighbours that were learned first, the leftmost first, until none are left

Neighbours are counted within words, and never across: a word takes the space before it along (`words`). Of equally
common neighbours those with the smaller numbers go first, so that the same text always gives the same tokens.

Sennrich, Haddow & Birch 2016, arXiv:1508.07909; Radford et al. 2019 (bytes, and what a word is). For the library's very
merges, three details of its own: bytes are numbered by the signs that stand for them in its files (`BYTES`); a merge
that spells a token which is there already makes no new one; and the count of neighbours that were merged is never set
back, which shows where they are made anew by such another way. Departure: counts never overflow.
"""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ..errors import UserError

Pair = tuple[int, int]


def _signs() -> list[str]:
    """A sign for each byte that shows and is no space: its own Latin-1 character, else one from 256 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(b if b in shown else next(others)) for b in range(256)]


BYTES = _signs()  # of each byte, the sign that stands for it
SIGNS = {sign: byte for byte, sign in enumerate(BYTES)}
_SHORT = ("'ll", "'ve", "'re", "'s", "'d", "'m", "'t")


def words(text: str) -> list[str]:
    """The words of a text as GPT-2 cuts it: 's and its like; letters, numbers, or other signs, each with one space
    before it; and space, all but the last before a word. Put together they are the text.
    """
    found, i = [], 0
    while i < len(text):
        start = i
        short = next((s for s in _SHORT if text.startswith(s, i)), None)
        if short is not None:
            i += len(short)
        else:
            if text[i] == " " and i + 1 < len(text) and _kind(text[i + 1]) != " ":
                i += 1
            kind = _kind(text[i])
            while i < len(text) and _kind(text[i]) == kind:
                i += 1
            if kind == " " and i < len(text) and i - start > 1:
                i -= 1  # the last goes with what follows
        found.append(text[start:i])
    return found


def _kind(c: str) -> str:
    """L for letters, N for numbers, " " for space, and . for all else."""
    if c.isspace() and not "\x1c" <= c <= "\x1f":
        return " "
    kind = unicodedata.category(c)[0]
    return kind if kind in "LN" else "."


class BPE:
    """Byte-pair encoding. merges: what was learned, in its order: pairs of tokens. first: number of the first byte's
    token, after the special ones.
    """

    def __init__(self, merges: Sequence[Pair], first: int = 0) -> None:
        order = sorted(range(256), key=lambda b: BYTES[b])
        self.first, self.merges = first, list(merges)
        self.number = {bytes([b]): first + i for i, b in enumerate(order)}  # of what a token spells
        self.spelled = {i: s for s, i in self.number.items()}
        self.rank: dict[Pair, int] = {}
        for rank, (a, b) in enumerate(merges):
            spelled = self.spelled[a] + self.spelled[b]
            i = self.number.setdefault(spelled, first + len(self.number))
            self.spelled[i] = spelled
            self.rank[a, b] = rank

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [i for word in words(text) for i in self.encode_word(word.encode())]

    def encode_word(self, word: bytes) -> list[int]:
        """The tokens of a word."""
        ids = [self.number[bytes([b])] for b in word]
        while len(ids) > 1:
            rank, i = min((self.rank.get(pair, len(self.merges)), i) for i, pair in enumerate(zip(ids, ids[1:])))  # noqa: B905, RUF007
            if rank == len(self.merges):
                break
            ids[i : i + 2] = [self.number[self.spelled[ids[i]] + self.spelled[ids[i + 1]]]]
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of tokens."""
        return b"".join(self.spelled[i] for i in ids)


def learn(counts: Mapping[str, int], size: int, *, first: int = 0, least: int = 2) -> BPE:
    """Learn from the words of a text, with how often each comes. size: tokens in all, `first` of them special.

    least: neighbours that come more seldom are not merged. Raises UserError for a size without room for all bytes.
    """
    if size < first + 256:
        raise UserError(f"{size} tokens have no room for all bytes: give a size of {first + 256} or more.")
    made = BPE((), first)
    split = [[made.number[bytes([b])] for b in word.encode()] for word in counts]
    often = list(counts.values())
    count, where = Counter[Pair](), defaultdict[Pair, set[int]](set)
    for w, ids in enumerate(split):
        for pair in zip(ids, ids[1:]):  # noqa: B905, RUF007
            count[pair] += often[w]
            where[pair].add(w)
    heap = [(-count[pair], pair, sorted(at)) for pair, at in where.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while first + len(made.number) < size and heap:
        said, pair, at = heapq.heappop(heap)
        if -said != count[pair]:  # an old count: back in line
            heapq.heappush(heap, (-count[pair], pair, at))
            continue
        if count[pair] < max(1, least):
            break
        spelled = made.spelled[pair[0]] + made.spelled[pair[1]]
        new = made.number.setdefault(spelled, first + len(made.number))
        made.spelled[new] = spelled
        merges.append(pair)
        grown = defaultdict[Pair, set[int]](set)
        for w in at:
            for neighbours, change in _merge(split[w], pair, new):
                count[neighbours] += change * often[w]
                if change > 0:
                    grown[neighbours].add(w)
        for neighbours, words_ in grown.items():
            if count[neighbours] > 0:
                heapq.heappush(heap, (-count[neighbours], neighbours, sorted(words_)))
    return BPE(merges, first)


def _merge(ids: list[int], pair: Pair, new: int) -> list[tuple[Pair, int]]:
    """Merge a pair in a word wherever it stands, and say which neighbours come oftener and seldomer than before."""
    changes, i = [], 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            if i:
                changes += [((ids[i - 1], pair[0]), -1), ((ids[i - 1], new), 1)]
            ids[i : i + 2] = [new]
            if i < len(ids) - 1:
                changes += [((pair[1], ids[i + 1]), -1), ((new, ids[i + 1]), 1)]
        i += 1
    return changes
