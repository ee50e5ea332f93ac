"""A command line taken apart, and words turned into values of the right type.

A scan takes what it knows and keeps the rest, because whose flag it is may be known only once the recipe or run that is
named on the same line has been read.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from ..errors import UserError, unknown
from .flags import REQUIRED, Flag, choices, items, shown

Given = list[tuple[str, list[str]]]  # flags as they were written, in order, with their values


class Line(NamedTuple):
    """A command line taken apart. values: of the flags that are known, by name. rest: the flags that are not."""

    values: dict[str, Any]
    rest: Given


def scan(tokens: Sequence[str], flags: Sequence[Flag], command: str, alias: Mapping[str, str] | None = None) -> Line:
    """Take a command line apart. alias: other spellings of flags ({"class": "label"}).

    A flag that is not known keeps every bare word up to the next flag. Raises UserError.
    """
    known = {f.key: f for f in flags if not f.positional}
    places = [f for f in flags if f.positional]
    values: dict[str, Any] = {}
    bare: list[str] = []
    rest: Given = []
    words = list(tokens)
    while words:
        word = words.pop(0)
        if not is_flag(word):
            bare.append(word)
            continue
        spelled, equals, value = word.partition("=")
        name = spelled.lstrip("-").replace("-", "_")
        name = (alias or {}).get(name, name)
        switched = name.removeprefix("no_")
        flag = known.get(name) if word.startswith("--") else None
        if flag is None and word.startswith("--") and switched in known and known[switched].switch and not equals:
            _once(known[switched].name, values, spelled)
            values[known[switched].name] = False
        elif flag is None:
            rest.append((spelled, [value] if equals else _bare(words)))
        else:
            room = 0 if flag.switch or equals else None if flag.many else 1
            _once(flag.name, values, spelled)
            values[flag.name] = convert(flag, [value] if equals else _bare(words, room), command)
    for place in places:
        if bare:
            taken, bare = (bare, []) if place.many else (bare[:1], bare[1:])
            values[place.name] = convert(place, taken, command)
        elif place.default is REQUIRED:
            raise UserError(f"{place.spelled} is missing: put it first, as in `{command} {place.spelled} …`.")
    if bare:
        raise UserError(f"There is no place for {bare[0]!r} in `{command}`: `{command} --help` shows what it takes.")
    return Line(values, rest)


def finish(rest: Given, flags: Sequence[Flag], owner: str, command: str, others: Iterable[Flag] = ()) -> dict[str, Any]:
    """The values of flags that a scan did not know. Raises UserError naming the nearest of these and of `others`."""
    known = {f.spelled: f for f in flags}
    values: dict[str, Any] = {}
    for spelled, words in rest:
        wished = "--" + spelled.lstrip("-").replace("_", "-")
        positive = wished.replace("--no-", "--", 1)
        if wished in known and spelled.startswith("--"):
            flag = known[wished]
            _once(flag.name, values, spelled)
            values[flag.name] = convert(flag, words, command)
        elif positive in known and known[positive].switch and not words:
            _once(known[positive].name, values, spelled)
            values[known[positive].name] = False
        else:
            spellings = [*known, *(f.spelled for f in others if not f.positional)]
            raise unknown(f"flag of {owner}", spelled, spellings, f"`{command} --help` lists them all.")
    return values


def is_flag(word: str) -> bool:
    """Whether a word is a flag, and no negative number, path or name."""
    return re.match(r"--?[A-Za-z]", word) is not None


def _bare(words: list[str], room: int | None = None) -> list[str]:
    taken: list[str] = []
    while words and not is_flag(words[0]) and (room is None or len(taken) < room):
        taken.append(words.pop(0))
    return taken


def _once(name: str, values: Mapping[str, Any], spelled: str) -> None:
    if name in values:
        raise UserError(f"The flag {spelled} is given twice: give it once.")


def convert(flag: Flag, words: Sequence[str], command: str = "morphogen") -> Any:
    """The value of a flag from its words. Raises UserError saying what it takes."""
    if flag.switch:
        said = {(): True, ("true",): True, ("yes",): True, ("false",): False, ("no",): False}
        if (key := tuple(w.lower() for w in words)) in said:
            return said[key]
        raise UserError(f"{flag.spelled} is on or off and takes no value {words[0]!r}: write {flag.switches}.")
    if not words and bool in choices(flag.hint):  # on, and no value said
        return True
    if not words:
        raise UserError(f"{flag.spelled} needs a value, {_wanted(flag.hint)}: `{command} --help` explains it.")
    if len(words) > 1 and not flag.many:
        raise UserError(f"{flag.spelled} takes one value, but was given {len(words)}: {' '.join(words)}.")
    return _value(flag, flag.hint, words)


def _value(flag: Flag, hint: Any, words: Sequence[str]) -> Any:
    fixed = next((get_args(h) for h in choices(hint) if get_origin(h) is tuple and Ellipsis not in get_args(h)), None)
    if fixed is not None and len(words) != len(fixed):
        raise UserError(f"{flag.spelled} takes {len(fixed)} values, but was given {len(words)}: {' '.join(words)}.")
    wrong = None
    for h in sorted(
        choices(hint), key=lambda h: h is not type(None)
    ):  # "none" is no path and no word where it may be None
        try:
            if get_origin(h) is tuple:
                kinds = fixed or (items(h),) * len(words)
                return tuple(_one(k, w) for k, w in zip(kinds, words, strict=True))
            if get_origin(h) is list:
                return [_one(items(h), w) for w in words]
            return _one(h, words[0])
        except ValueError as error:
            wrong = wrong or error
    named = [str(v) for h in choices(hint) for v in get_args(h) if get_origin(h) is Literal]
    if named:
        raise unknown(f"value of {flag.spelled}", words[0], named)
    raise UserError(f"{flag.spelled} takes {_wanted(hint)}, not {' '.join(words)!r}: give one such as {_such(flag)}.")


def _one(hint: Any, word: str) -> Any:
    if hint is type(None):
        if word.lower() == "none":
            return None
        raise ValueError(word)
    if get_origin(hint) is Literal:
        for v in get_args(hint):
            if str(v) == word:
                return v
        raise ValueError(word)
    if hint is int:
        if re.fullmatch(r"[+-]?\d[\d_]*", word):
            return int(word)
        number = float(word)  # 1e4 is a whole number too
        if number.is_integer():
            return int(number)
        raise ValueError(word)
    if hint is float:
        number = float(word)
        if number != number:
            raise ValueError(word)
        return number
    if get_origin(hint) in (Union, types.UnionType):
        for h in get_args(hint):
            try:
                return _one(h, word)
            except ValueError:
                continue
        raise ValueError(word)
    if hint is bool:
        if word.lower() not in ("true", "false", "yes", "no"):
            raise ValueError(word)
        return word.lower() in ("true", "yes")
    if hint is Path and (not word or "\0" in word):
        raise ValueError(word)
    return Path(word).expanduser() if hint is Path else word


def _wanted(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a word", Path: "a path", bool: "true or false"}
    said = []
    for h in choices(hint):
        if get_origin(h) is tuple and Ellipsis not in get_args(h):
            said.append(f"{len(get_args(h))} values")
        elif get_origin(h) in (tuple, list):
            plural = {int: "whole numbers", float: "numbers", str: "words", Path: "paths"}
            said.append(plural.get(items(h), "values"))
        elif get_origin(h) is Literal:
            said.append("one of " + ", ".join(map(str, get_args(h))))
        elif h is not type(None):
            said.append(words[h])
    return " or ".join(said)


def _such(flag: Flag) -> str:
    if flag.default not in (REQUIRED, None, (), []):
        return shown(flag.default)
    kinds = {get_origin(h) or h for h in choices(flag.hint)}
    return "runs/first" if Path in kinds else "0.5" if float in kinds else "64"
