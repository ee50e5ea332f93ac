"""Flags from signatures: a typed function is a command, and so are a recipe and a model's `sample`.

    def cats(width: int = 64, kind: Literal["ddpm", "edm"] = "edm", sizes: tuple[int, ...] = (1, 2), flip: bool = False)

takes `--width 64 --kind edm --sizes 1 2 --flip` (or `--no-flip`, `--width=64`). Arguments that are not keyword-only and
have no default are positional in a verb. The docstring explains them: "width: channels of the net. sizes: ...".

A scan takes what it knows and keeps the rest, because whose flag it is may be known only once the run that is named
on the same line has been read.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from ..errors import UserError, unknown

REQUIRED: Any = inspect.Parameter.empty
Given = list[tuple[str, list[str]]]  # flags as they were written, in order, with their values


class Flag(NamedTuple):
    """One argument of a command. name: as in Python; hint: its type; default: REQUIRED where there is none."""

    name: str
    hint: Any
    default: Any
    text: str
    positional: bool = False

    @property
    def spelled(self) -> str:
        """As the user types it."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    @property
    def many(self) -> bool:
        """Whether it takes several values."""
        return any(get_origin(h) in (tuple, list) for h in _choices(self.hint))

    @property
    def switch(self) -> bool:
        """Whether it is on or off, without a value."""
        return self.hint is bool


def flags_of(f: Callable[..., Any], skip: Iterable[str] = (), *, positional: bool = False) -> list[Flag]:
    """The flags of a function, leaving out `skip` and what a command line cannot say (tensors, objects).

    positional: whether arguments without a default that are not keyword-only are given by place.
    """
    plain = inspect.unwrap(f)
    texts = explained(f)
    found = []
    for p in inspect.signature(f).parameters.values():
        if p.name in skip or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        hint = _hint(p.annotation, getattr(plain, "__globals__", {}))
        if hint is REQUIRED and p.default is not REQUIRED and p.default is not None:
            hint = type(p.default)
        by_place = positional and p.kind is p.POSITIONAL_OR_KEYWORD and p.default is REQUIRED
        if _sayable(hint):
            found.append(Flag(p.name, hint, p.default, texts.get(p.name, ""), by_place))
    return found


def summary(f: Callable[..., Any]) -> str:
    """The docstring of f up to where it explains its arguments."""
    return _parts(f)[0]


def explained(f: Callable[..., Any]) -> dict[str, str]:
    """What the docstring of f says of each argument."""
    return _parts(f)[1]


def _parts(f: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    doc = inspect.getdoc(f) or ""
    names = "|".join(map(re.escape, inspect.signature(f).parameters))
    if not names:
        return doc.strip(), {}
    # "width, depth: ..." at the beginning of a line or of a sentence
    head, *rest = re.split(rf"(?:^|(?<=[.;:)])[ ]|\n)[ \-*]*`?((?:{names})(?:`?, `?(?:{names}))*)`?: ", doc)
    texts: dict[str, str] = {}
    for heads, body in zip(rest[::2], rest[1::2], strict=True):
        text = " ".join(re.split(r"\n\s*\n", body)[0].split()).rstrip(".;")
        texts |= dict.fromkeys(re.split(r"`?, `?", heads), text)
    return head.strip(), texts


def _hint(annotation: Any, names: Mapping[str, Any]) -> Any:
    if annotation is REQUIRED:
        return REQUIRED
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"x": annotation}), {**names})["x"]
    except (NameError, TypeError, AttributeError):  # named for type checkers only: not a thing that a shell can say
        return object


_PLAIN = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "", type(None): "none"}


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _items(hint: Any) -> Any:
    """The type of the items of a tuple or list of one type."""
    return next((a for a in get_args(hint) if a is not Ellipsis), str)


def _sayable(hint: Any) -> bool:
    for h in _choices(hint):
        if get_origin(h) in (tuple, list):
            if not _sayable(_items(h)):
                return False
        elif get_origin(h) is not Literal and h not in _PLAIN:
            return False
    return True


# ---- reading a line ------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A command line taken apart. values: of the flags that are known, by name. rest: the flags that are not."""

    values: dict[str, Any]
    rest: Given


def scan(tokens: Sequence[str], flags: Sequence[Flag], command: str, alias: Mapping[str, str] | None = None) -> Line:
    """Take a command line apart. alias: other spellings of flags ({"class": "label"}).

    A flag that is not known keeps every bare word up to the next flag. Raises UserError.
    """
    known = {f.name: f for f in flags if not f.positional}
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
            _once(switched, values, spelled)
            values[switched] = False
        elif flag is None:
            rest.append((spelled, [value] if equals else _bare(words)))
        else:
            room = 0 if flag.switch or equals else None if flag.many else 1
            _once(flag.name, values, spelled)
            values[flag.name] = convert(flag, [value] if equals else _bare(words, room), command)
    for place in places:
        if not bare:
            raise UserError(f"{place.name.upper()} is missing: put it first, as in `{command} {place.name.upper()} …`.")
        values[place.name] = convert(place, [bare.pop(0)], command)
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
        raise UserError(f"{flag.spelled} is on or off and takes no value {words[0]!r}: write {_switches(flag)}.")
    if not words:
        raise UserError(f"{flag.spelled} needs a value, {_wanted(flag.hint)}: `{command} --help` explains it.")
    if len(words) > 1 and not flag.many:
        raise UserError(f"{flag.spelled} takes one value, but was given {len(words)}: {' '.join(words)}.")
    return _value(flag, flag.hint, words)


def _value(flag: Flag, hint: Any, words: Sequence[str]) -> Any:
    fixed = next((get_args(h) for h in _choices(hint) if get_origin(h) is tuple and Ellipsis not in get_args(h)), None)
    if fixed is not None and len(words) != len(fixed):
        raise UserError(f"{flag.spelled} takes {len(fixed)} values, but was given {len(words)}: {' '.join(words)}.")
    wrong = None
    for h in _choices(hint):
        try:
            if get_origin(h) is tuple:
                kinds = fixed or (_items(h),) * len(words)
                return tuple(_one(k, w) for k, w in zip(kinds, words, strict=True))
            if get_origin(h) is list:
                return [_one(_items(h), w) for w in words]
            return _one(h, words[0])
        except ValueError as error:
            wrong = wrong or error
    named = [str(v) for h in _choices(hint) for v in get_args(h) if get_origin(h) is Literal]
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
    return Path(word).expanduser() if hint is Path else word


def _wanted(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a word", Path: "a path", bool: "true or false"}
    said = []
    for h in _choices(hint):
        if get_origin(h) is tuple and Ellipsis not in get_args(h):
            said.append(f"{len(get_args(h))} values")
        elif get_origin(h) in (tuple, list):
            plural = {int: "whole numbers", float: "numbers", str: "words", Path: "paths"}
            said.append(plural.get(_items(h), "values"))
        elif get_origin(h) is Literal:
            said.append("one of " + ", ".join(map(str, get_args(h))))
        elif h is not type(None):
            said.append(words[h])
    return " or ".join(said)


def _such(flag: Flag) -> str:
    if flag.default not in (REQUIRED, None, (), []):
        return shown(flag.default)
    kinds = {get_origin(h) or h for h in _choices(flag.hint)}
    return "0.5" if float in kinds else "64"


def _switches(flag: Flag) -> str:
    return f"{flag.spelled} or --no-{flag.spelled[2:]}"


# ---- from JSON, and to it ------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A flag's value as JSON can hold it."""
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def restored(flag: Flag, value: Any) -> Any:
    """The value of a flag from its JSON."""
    if isinstance(value, list):
        return tuple(value) if any(get_origin(h) is tuple for h in _choices(flag.hint)) else value
    return Path(value) if isinstance(value, str) and Path in _choices(flag.hint) else value


# ---- help ----------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as the user would type it."""
    if isinstance(value, tuple | list):
        return " ".join(map(shown, value))
    return str(value)


def _kind(hint: Any) -> str:
    said = []
    for h in _choices(hint):
        if get_origin(h) is tuple and Ellipsis not in get_args(h):
            said.append(" ".join(_kind(a) for a in get_args(h)))
        elif get_origin(h) in (tuple, list):
            said.append(f"{_kind(_items(h))} …")
        elif get_origin(h) is Literal:
            said.append("|".join(map(str, get_args(h))))
        elif h is not type(None):
            said.append(_PLAIN[h])
    return "|".join(dict.fromkeys(said))


def table(rows: Iterable[tuple[str, str]], indent: int = 2, column: int = 28) -> str:
    """Two columns, the second wrapped to the terminal."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
    lines = []
    for left, right in rows:
        pad = " " * indent + left
        body = textwrap.wrap(right, width - column) or [""]
        if len(pad) > column - 2:
            lines.append(pad)
        else:
            lines.append(f"{pad:<{column}}{body.pop(0)}".rstrip())
        lines += [" " * column + b for b in body if b]
    return "\n".join(lines)


def described(flags: Iterable[Flag]) -> str:
    """The flags with types, meaning and defaults, for --help."""
    rows = []
    for f in flags:
        kind = "" if f.positional else _kind(f.hint)
        left = _switches(f) if f.switch and f.default is True else f"{f.spelled} {kind}".rstrip()
        ending = ""
        if f.default is REQUIRED and not f.positional:
            ending = " (required)"
        elif f.default not in (REQUIRED, None, (), "", False):
            ending = f" (default: {'on' if f.default is True else shown(f.default)})"
        rows.append((left, (f.text + ending).strip()))
    return table(rows)
