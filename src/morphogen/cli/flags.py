"""Flags from signatures: a typed function is a command, and so are a recipe and a model's `sample`.

    def cats(width: int = 64, kind: Literal["ddpm", "edm"] = "edm", sizes: tuple[int, ...] = (1, 2), flip: bool = False)

takes `--width 64 --kind edm --sizes 1 2 --flip` (or `--no-flip`, `--width=64`). The arguments of a verb that are not
keyword-only are given by place. The docstring explains them: "width: channels of the net. sizes: ...".
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

REQUIRED: Any = inspect.Parameter.empty


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
        if self.positional:
            return f"[{self.name.upper()} …]" if self.many else self.name.upper()
        return "--" + self.key.replace("_", "-")

    @property
    def key(self) -> str:
        """Its name without the underscore that keeps it apart from a Python keyword."""
        return self.name.rstrip("_")

    @property
    def switches(self) -> str:
        """How a switch is turned on and off."""
        return f"{self.spelled} or --no-{self.key.replace('_', '-')}"

    @property
    def many(self) -> bool:
        """Whether it takes several values."""
        return any(get_origin(h) in (tuple, list) for h in choices(self.hint))

    @property
    def switch(self) -> bool:
        """Whether it is on or off, without a value."""
        return self.hint is bool


def flags_of(f: Callable[..., Any], skip: Iterable[str] = (), *, positional: bool = False) -> list[Flag]:
    """The flags of a function, leaving out `skip` and what a command line cannot say (tensors, objects).

    positional: whether arguments that are not keyword-only are given by place.
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
        by_place = positional and p.kind is p.POSITIONAL_OR_KEYWORD
        hint = _sayable(hint)
        if hint is not None:
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
    # "width, depth: ..." at the beginning of a line or of a sentence; lines may end between names and before the text
    head, *rest = re.split(rf"(?:^|(?<=[.;:)])[ ]|\n)[ \-*]*`?((?:{names})(?:`?,\s+`?(?:{names}))*)`?:\s+", doc)
    texts: dict[str, str] = {}
    for heads, body in zip(rest[::2], rest[1::2], strict=True):
        text = " ".join(re.split(r"\n\s*\n|\n(?=Raises |Returns )", body)[0].split()).rstrip(".;")
        texts |= dict.fromkeys(re.split(r"`?,\s+`?", heads), text)
    return head.strip(), texts


def _hint(annotation: Any, names: Mapping[str, Any]) -> Any:
    if annotation is REQUIRED:
        return REQUIRED
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"x": annotation}), {**names})["x"]
    except (NameError, TypeError, AttributeError):  # named for type checkers only: not a thing that a shell can say
        return object


_PLAIN = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "", type(None): "none"}


def choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def items(hint: Any) -> Any:
    """The type of the items of a tuple or list."""
    return next((a for a in get_args(hint) if a is not Ellipsis), str)


def _sayable(hint: Any) -> Any:
    """What of a type can be said in words: of `Solver | str | None`, `str | None`. None where nothing can."""
    kept = [h for h in choices(hint) if _word(h)]
    return Union[tuple(kept)] if any(h is not type(None) for h in kept) else None  # noqa: UP007  (made at run time)


def _word(hint: Any) -> bool:
    if get_origin(hint) in (tuple, list):
        return all(_word(a) for a in get_args(hint) if a is not Ellipsis) and bool(get_args(hint))
    return get_origin(hint) is Literal or hint in _PLAIN


# ---- from JSON, and to it ------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A flag's value as JSON can hold it."""
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def restored(flag: Flag, value: Any) -> Any:
    """The value of a flag from its JSON."""
    if isinstance(value, list):
        return tuple(value) if any(get_origin(h) is tuple for h in choices(flag.hint)) else value
    return Path(value) if isinstance(value, str) and Path in choices(flag.hint) else value


# ---- help ----------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as the user would type it."""
    if isinstance(value, tuple | list):
        return " ".join(map(shown, value))
    return str(value)


def _kind(hint: Any) -> str:
    said = []
    for h in choices(hint):
        if get_origin(h) is tuple and Ellipsis not in get_args(h):
            said.append(" ".join(_kind(a) for a in get_args(h)))
        elif get_origin(h) in (tuple, list):
            said.append(f"{_kind(items(h))} …")
        elif get_origin(h) is Literal:
            said.append("|".join(map(str, get_args(h))))
        elif h is not type(None):
            said.append(_PLAIN[h])
    text = "|".join(dict.fromkeys(filter(None, said)))
    return f"[{text}]" if text and bool in choices(hint) else text  # a switch that may be given a value


def table(rows: Iterable[tuple[str, str]], indent: int = 2, column: int = 28) -> str:
    """Two columns, the second wrapped to the terminal."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
    lines = []
    for left, right in rows:
        pad = " " * indent + left
        body = textwrap.wrap(right, width - column, break_on_hyphens=False) or [""]
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
        left = f.switches if f.switch and f.default is True else f"{f.spelled} {kind}".rstrip()
        ending = ""
        if f.default is REQUIRED and not f.positional:
            ending = " (required)"
        elif f.default not in (REQUIRED, None, (), "") and f.default is not False:
            ending = f" (default: {'on' if f.default is True else shown(f.default)})"
        rows.append((left, (f.text + ending).strip()))
    return table(rows)
