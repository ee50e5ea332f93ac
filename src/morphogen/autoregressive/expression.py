"""Regular expressions as automata over characters.

    literals, . [a-z] [^a-z] \\d \\w \\s \\n \\t \\r \\xXX \\uXXXX, ( ) (?: ) | * + ? {m} {m,} {m,n}, over the whole
    text

Thompson 1968, "Regular expression search algorithm"; Rabin & Scott 1959 (sets of its states are the states of the
automaton). Characters that no part of an expression tells apart are of one kind. \\d, \\w and \\s are of ASCII;
\\D, \\W, \\S, [^\\s] and so on leave out all that Unicode calls so: readers of expressions differ in this, and none
refuses what passes.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError

MOST, WORK = 10_000, 5_000_000  # states that an automaton may have, and parts of them that are looked at for it
_DIGITS = frozenset("0123456789")
_WORD = _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_SPACE = frozenset(" \t\n\r\f\v")
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_HEX = frozenset("0123456789abcdefABCDEF")


class Chars(NamedTuple):
    """Those characters, or all others."""

    chars: frozenset[str]
    others: bool = False

    def has(self, char: str) -> bool:
        """Whether a character is one of them."""
        return (char in self.chars) != self.others


class Reader:
    """What all that reads an expression shares: where it is, what a character of it stands for, how often it comes."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def wrong(self, why: str) -> UserError:
        """The error for what stands here."""
        said = self.text if len(self.text) <= 60 else f"{self.text[:60]}…"
        return UserError(f"The expression {said!r} is none that can be followed, at place {self.at}: {why}.")

    def peek(self) -> str:
        """The next character, "" at the end."""
        return self.text[self.at] if self.at < len(self.text) else ""

    def next(self) -> str:
        """The next character, taken."""
        char = self.peek()
        if not char:
            raise self.wrong("it stops too early")
        self.at += 1
        return char

    def times(self) -> tuple[int, int | None]:
        """How often what stands before here comes: at least, and at most if there is a most."""
        char = self.peek()
        if char in ("*", "+", "?"):
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        if char != "{":
            return 1, 1
        close = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : close].partition(",")
        if close < 0 or not _number(low) or (high and not _number(high)) or (high and int(high) < int(low)):
            raise self.wrong("{m}, {m,} or {m,n} was expected, of numbers up to 99999")
        self.at = close + 1
        return int(low), int(high) if high else None if comma else int(low)

    def chars(self, char: str) -> Chars:
        """What a character, just taken, stands for with what belongs to it."""
        if char in "*+?{":
            raise self.wrong(f"nothing stands before {char!r} to repeat")
        if char in "^$":
            raise self.wrong(f"the whole text is matched, so {char!r} has no place")
        return Chars(frozenset("\n"), True) if char == "." else self._class() if char == "[" else self._one(char)

    def _one(self, char: str, out: bool = False) -> Chars:
        """out: for what is left out."""
        if char != "\\":
            return Chars(frozenset(char))
        char = self.next()
        if char.lower() in _CLASSES:
            kind, left_out = char.lower(), char.isupper() or out
            return Chars(_everywhere(kind) if left_out else _CLASSES[kind], char.isupper())
        if char in ("u", "x"):
            digits = self.text[self.at : self.at + (4 if char == "u" else 2)]
            if len(digits) != (4 if char == "u" else 2) or not _HEX.issuperset(digits):
                raise self.wrong(f"\\{char} needs hexadecimal digits")
            self.at += len(digits)
            return Chars(frozenset(chr(int(digits, 16))))
        if char.isalnum() and char not in _ESCAPES:
            raise self.wrong(f"\\{char} is not known")
        return Chars(frozenset(_ESCAPES.get(char, char)))

    def _class(self) -> Chars:
        others = self.peek() == "^"
        self.at += others
        found: set[str] = set()
        first = True
        while first or self.peek() != "]":
            first = False
            one = self._one(self.next(), others)
            if one.others:
                raise self.wrong("a class within a class may not be one of all others")
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", "") and len(one.chars) == 1:
                self.at += 1
                last = self._one(self.next(), others)
                if last.others or len(last.chars) != 1 or min(last.chars) < min(one.chars):
                    raise self.wrong("a range goes from one character to a later one")
                found |= {chr(c) for c in range(ord(min(one.chars)), ord(min(last.chars)) + 1)}
            else:
                found |= one.chars
        self.at += 1
        return Chars(frozenset(found), others)


@lru_cache
def _everywhere(kind: str) -> frozenset[str]:
    """All that Unicode calls a digit, a part of a word or a space."""
    every = map(chr, range(sys.maxunicode + 1))
    if kind == "d":
        return frozenset(filter(str.isdecimal, every))
    return (
        frozenset(filter(str.isspace, every)) | {"\ufeff"}
        if kind == "s"
        else frozenset(filter(str.isalnum, every)) | {"_"}
    )


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5


class _Machine(Reader):
    """Thompson's automaton: states with steps over characters and steps over nothing, built while parsing."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.over: list[list[tuple[Chars, int]]] = []
        self.free: list[list[int]] = []
        try:
            self.start, self.end = self._either()
        except RecursionError:
            raise self.wrong("its groups are nested too deeply") from None
        if self.at < len(text):
            raise self.wrong("')' closes nothing")

    def _state(self) -> int:
        if len(self.over) >= 2 * MOST:
            raise self.wrong(f"it needs more than {2 * MOST:,} parts: repeat less of it")
        self.over.append([])
        self.free.append([])
        return len(self.over) - 1

    def _either(self) -> tuple[int, int]:
        start, end = self._sequence()
        while self.peek() == "|":
            self.at += 1
            one, two = self._sequence()
            a, b = self._state(), self._state()
            self.free[a] += [start, one]
            self.free[end].append(b)
            self.free[two].append(b)
            start, end = a, b
        return start, end

    def _sequence(self) -> tuple[int, int]:
        start = end = self._state()
        while self.peek() not in ("", "|", ")"):
            before = self.at
            one, two = self._atom()
            least, most = self.times()
            after = self.at
            stop: int | None = None  # where it goes on that may come no more
            for i in range(least if most is None else most):
                if i:
                    self.at = before  # a copy: the atom is read again
                    one, two = self._atom()
                    self.at = after
                if i >= least:
                    stop = self._state() if stop is None else stop
                    self.free[end].append(stop)
                self.free[end].append(one)
                end = two
            if stop is not None:
                self.free[end].append(stop)
                end = stop
            if most is None:  # and again, any number of times
                self.at = before
                one, two = self._atom()
                self.at = after
                loop = self._state()
                self.free[end].append(loop)
                self.free[loop].append(one)
                self.free[two].append(loop)
                end = loop
        return start, end

    def _atom(self) -> tuple[int, int]:
        char = self.next()
        if char == "(":
            if self.peek() == "?":
                if not self.text.startswith("?:", self.at):
                    raise self.wrong("only (?: groups are known")
                self.at += 2
            start, end = self._either()
            if self.peek() != ")":
                raise self.wrong("a '(' is not closed")
            self.at += 1
            return start, end
        chars = self.chars(char)
        start, end = self._state(), self._state()
        self.over[start].append((chars, end))
        return start, end

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """The states and all that are reached over nothing."""
        seen, todo = set(states), list(states)
        while todo:
            for s in self.free[todo.pop()]:
                if s not in seen:
                    seen.add(s)
                    todo.append(s)
        return frozenset(seen)


class Automaton(NamedTuple):
    """States 0 .. S − 1, 0 the first, S the dead one; the state after each kind of character; which accept."""

    after: Any  # (S + 1, kinds + 1): the last kind is of characters unknown, after which all is dead
    accepts: Any  # (S + 1,)
    kinds: Mapping[str, int]  # of each character


def automaton(expression: str, characters: Iterable[str]) -> Automaton:
    """The deterministic automaton of an expression over these characters.

    Raises UserError for one that it cannot read, and for one that needs more than MOST states.
    """
    machine = _Machine(expression)
    sets = list({chars for over in machine.over for chars, _ in over})
    signature: dict[tuple[bool, ...], int] = {}
    kinds = {c: signature.setdefault(tuple(s.has(c) for s in sets), len(signature)) for c in sorted(set(characters))}
    member = {kind: dict(zip(sets, key, strict=True)) for key, kind in signature.items()}
    states = {machine.closure([machine.start]): 0}
    todo, rows, work = deque(states), [], 0
    while todo:
        state = todo.popleft()
        work += len(state) * len(signature)
        row = []
        for kind in range(len(signature)):
            to = {t for s in state for chars, t in machine.over[s] if member[kind][chars]}
            if not to:
                row.append(-1)
                continue
            reached = machine.closure(to)
            if reached not in states:
                states[reached] = len(states)
                todo.append(reached)
                if len(states) > MOST or work > WORK:
                    raise machine.wrong(f"its automaton has more than {MOST:,} states: repeat less of it")
            row.append(states[reached])
        rows.append([*row, -1])
    dead = len(states)
    after = np.array([*rows, [-1] * (len(signature) + 1)], dtype=np.int32)
    after[after < 0] = dead
    accepts = np.array([machine.end in state for state in states] + [False])
    return Automaton(after, accepts, kinds)
