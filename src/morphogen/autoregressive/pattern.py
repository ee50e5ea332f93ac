"""A JSON schema's pattern, which is of a string's characters, as an expression of the text that spells the string.

In JSON text a quote, a backslash and the characters below U+0020 of a string are written with a backslash, all others
as they are; here each in one way, so a text may be lost and none is let through that does not match.

A pattern is searched for (ECMA-262), and what is made here matches the whole of it: fewer texts, all of them right.
`^` at its beginning and `$` at its end say what holds anyway; elsewhere they are refused, as is what the two ways of
reading expressions read differently.
"""

from __future__ import annotations

from itertools import groupby

from .expression import Chars, Reader

_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_SPELLED = {c: "\\" + _SHORT[c] if c in _SHORT else f"\\u{ord(c):04x}" for c in (*map(chr, range(32)), '"', "\\")}
_LINES = frozenset("\n\r\u2028\u2029")  # what ECMA-262's "." is not


class _Spelling(Reader):
    """Goes through a pattern once, and writes each of its parts as JSON text has it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.at = int(text.startswith("^"))
        if text.endswith("$") and (len(text) - len(text[:-1].rstrip("\\"))) % 2:
            self.text = text[:-1]
        self.depth = 0
        made: list[str] = []
        while self.peek():
            made.append(self._part())
        if self.depth:
            raise self.wrong("a '(' is not closed")
        self.made = "".join(made)

    def _part(self) -> str:
        char = self.next()
        if char == "|":
            return char
        if char == "(":
            self.at += 2 * self.text.startswith("?:", self.at)
            self.depth += 1
            return char
        if char == "[" and (self.peek() == "]" or self.text.startswith("^]", self.at)):
            raise self.wrong("']' at the beginning of a class is read in two ways")
        if char == ")":
            self.depth -= 1
            if self.depth < 0:
                raise self.wrong("')' closes nothing")
        part = char if char == ")" else spelled(Chars(_LINES, True) if char == "." else self.chars(char))
        before = self.at
        self.times()
        return part + self.text[before : self.at]


def spelled(chars: Chars) -> str:
    """The expression of one character of a string as JSON text has it."""
    others, inside = chars.others, chars.chars
    ways = [_written(text) for c, text in _SPELLED.items() if chars.has(c)]
    if others:
        ways.append(f"[^{_ranges(inside | set(_SPELLED))}]")
    elif plain := inside - set(_SPELLED):
        ways.append(f"[{_ranges(plain)}]")
    return f"({'|'.join(ways)})"


def _written(text: str) -> str:
    return "".join("\\" + c if c in '\\"' else c for c in text)


def _ranges(chars: frozenset[str] | set[str]) -> str:
    """What stands in a class for these characters."""
    points = sorted(map(ord, chars))
    runs = [[p for _, p in run] for _, run in groupby(enumerate(points), lambda at: at[1] - at[0])]
    return "".join(_one(r[0]) if len(r) == 1 else f"{_one(r[0])}-{_one(r[-1])}" for r in runs)


def _one(point: int) -> str:
    return chr(point) if chr(point).isalnum() or point > 0xFFFF else f"\\u{point:04x}"


def in_json(pattern: str) -> str:
    """The expression of the JSON texts, quotes included, of strings that are a match of a pattern as a whole.

    Raises UserError for a pattern that cannot be followed.
    """
    return f'"({_Spelling(pattern).made})"'
