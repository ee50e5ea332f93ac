"""Regular expressions as automata over characters.

    literals, . [a-z] [^a-z] \\d \\w \\s \\n \\t \\r \\xXX \\uXXXX, ( ) (?: ) | * + ? {m} {m,} {m,n}, over the whole
    text

Thompson 1968, "Regular expression search algorithm"; Rabin & Scott 1959 (sets of its states are the states of the
automaton). Characters that no part of an expression tells apart are of one kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError

_DIGITS = frozenset("0123456789")
_WORD = _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_SPACE = frozenset(" \t\n\r\f\v")
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}


class Chars(NamedTuple):
    """Those characters, or all others."""

    chars: frozenset[str]
    others: bool = False

    def has(self, char: str) -> bool:
        """Whether a character is one of them."""
        return (char in self.chars) != self.others


class _Machine:
    """Thompson's automaton: states with steps over characters and steps over nothing, built while parsing."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.over: list[list[tuple[Chars, int]]] = []
        self.free: list[list[int]] = []
        self.start, self.end = self._either()
        if self.at < len(text):
            raise self._wrong("')' closes nothing")

    def _state(self) -> int:
        self.over.append([])
        self.free.append([])
        return len(self.over) - 1

    def _wrong(self, why: str) -> UserError:
        return UserError(f"The expression {self.text!r} is none that can be followed, at place {self.at}: {why}.")

    def _peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise self._wrong("it stops too early")
        self.at += 1
        return char

    def _either(self) -> tuple[int, int]:
        start, end = self._sequence()
        while self._peek() == "|":
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
        while self._peek() not in ("", "|", ")"):
            before = self.at
            one, two = self._atom()
            least, most = self._times()
            after = self.at
            for i in range(least if most is None else most):
                if i:
                    self.at = before  # a copy: the atom is read again
                    one, two = self._atom()
                    self.at = after
                self.free[end].append(one)
                if i >= least:  # it may stop here
                    skip = self._state()
                    self.free[end].append(skip)
                    self.free[two].append(skip)
                    two = skip
                end = two
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

    def _times(self) -> tuple[int, int | None]:
        char = self._peek()
        if char in ("*", "+", "?"):
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        if char != "{":
            return 1, 1
        close = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : close].partition(",")
        if close < 0 or not low.isdecimal() or (high and not high.isdecimal()) or (high and int(high) < int(low)):
            raise self._wrong("{m}, {m,} or {m,n} was expected")
        self.at = close + 1
        return int(low), int(high) if high else None if comma else int(low)

    def _atom(self) -> tuple[int, int]:
        char = self._next()
        if char == "(":
            if self._peek() == "?":
                if not self.text.startswith("?:", self.at):
                    raise self._wrong("only (?: groups are known")
                self.at += 2
            start, end = self._either()
            if self._peek() != ")":
                raise self._wrong("a '(' is not closed")
            self.at += 1
            return start, end
        if char in "*+?{":
            raise self._wrong(f"nothing stands before {char!r} to repeat")
        if char in "^$":
            raise self._wrong(f"the whole text is matched, so {char!r} has no place")
        chars = Chars(frozenset("\n"), True) if char == "." else self._class() if char == "[" else self._one(char)
        start, end = self._state(), self._state()
        self.over[start].append((chars, end))
        return start, end

    def _one(self, char: str) -> Chars:
        if char != "\\":
            return Chars(frozenset(char))
        char = self._next()
        if char.lower() in _CLASSES:
            return Chars(_CLASSES[char.lower()], char.isupper())
        if char in ("u", "x"):
            digits = self.text[self.at : self.at + (4 if char == "u" else 2)]
            self.at += len(digits)
            try:
                return Chars(frozenset(chr(int(digits, 16))))
            except ValueError:
                raise self._wrong(f"\\{char} needs hexadecimal digits") from None
        if char.isalnum() and char not in _ESCAPES:
            raise self._wrong(f"\\{char} is not known")
        return Chars(frozenset(_ESCAPES.get(char, char)))

    def _class(self) -> Chars:
        others = self._peek() == "^"
        self.at += others
        found: set[str] = set()
        first = True
        while first or self._peek() != "]":
            first = False
            one = self._one(self._next())
            if one.others:
                raise self._wrong("a class within a class may not be one of all others")
            if self._peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", "") and len(one.chars) == 1:
                self.at += 1
                last = self._one(self._next())
                (low,), (high,) = one.chars, last.chars
                found |= {chr(c) for c in range(ord(low), ord(high) + 1)}
            else:
                found |= one.chars
        self.at += 1
        return Chars(frozenset(found), others)

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
    """The deterministic automaton of an expression over these characters. Raises UserError for one it cannot read."""
    machine = _Machine(expression)
    sets = list({chars for over in machine.over for chars, _ in over})
    signature: dict[tuple[bool, ...], int] = {}
    kinds = {c: signature.setdefault(tuple(s.has(c) for s in sets), len(signature)) for c in sorted(set(characters))}
    member = {kind: dict(zip(sets, key, strict=True)) for key, kind in signature.items()}
    states = {machine.closure([machine.start]): 0}
    todo, rows = list(states), []
    while todo:
        state = todo.pop(0)
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
            row.append(states[reached])
        rows.append([*row, -1])
    dead = len(states)
    after = np.array([*rows, [-1] * (len(signature) + 1)], dtype=np.int64)
    after[after < 0] = dead
    accepts = np.array([machine.end in state for state in states] + [False])
    return Automaton(after, accepts, kinds)
