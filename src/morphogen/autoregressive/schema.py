"""JSON schemas as regular expressions, for constrained decoding.

A schema that does not refer to itself allows a regular language once its properties have an order. What this module
cannot follow it says; it never allows more than the schema does, and at times less: the properties that are listed in
their order, a list without `items` of strings, patterns matched as a whole, integers without a point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..errors import UserError, unknown
from .pattern import in_json

_CHAR = r'([^"\\\u0000-\u001f]|\\["\\/bfnrt])'
_INTEGER = r"(-?(0|[1-9]\d*))"
_NUMBER = _INTEGER + r"(\.\d+)?([eE][+\-]?\d+)?"
_PLAIN = {"integer": _INTEGER, "number": _NUMBER, "boolean": "(true|false)", "null": "null"}
_TYPES = (*_PLAIN, "object", "array", "string")
_MOST, _LONGEST = 10_000, 1 << 22  # schemas within a schema, each time they are referred to; signs of an expression
_OF = {  # what says anything of values of one type alone
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
}
_CHOICES = ("$ref", "anyOf", "oneOf", "enum", "const")  # each says all, and stands alone
_READ = {"type", *_CHOICES, *(key for keys in _OF.values() for key in keys)}
_IGNORED = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
}


def json_schema(schema: Mapping[str, Any], *, space: str = " ?") -> str:
    """The expression of the JSON texts that a schema allows, with properties in their order.

    space: the expression of what stands after a comma and a colon. Known are type (all seven, or several), properties,
    required, items, minItems, maxItems, minLength, maxLength, pattern, enum and const (with a type, or alone), anyOf,
    oneOf (of different types or values) and $ref into $defs.
    Raises UserError for any other keyword that would change what is allowed, for a choice beside other keywords, for a
    value that is none of its keyword's, and for a schema that refers to itself.
    """
    try:
        return _Writer(schema, space).write(schema, ())
    except RecursionError:
        raise UserError("The schema is nested too deeply to be followed: write less of it within another.") from None


class _Writer:
    """A schema being written as an expression. root: where references point into."""

    def __init__(self, root: Any, space: str) -> None:
        self.root, self.space, self.count = root, f"(?:{space})", 0

    def write(self, schema: Any, inside: tuple[str, ...]) -> str:
        """The expression of a schema that stands within the references `inside`."""
        self.count += 1
        if self.count > _MOST:
            raise UserError(f"The schema holds more than {_MOST:,} schemas where its references are followed: cut it.")
        _known(schema)
        if choice := [key for key in _CHOICES if key in schema]:
            return self._choice(choice[0], schema, inside)
        kind = schema.get("type", "object" if "properties" in schema else None)
        if isinstance(kind, list):
            if not kind:
                raise UserError("The schema has an empty list of types, which allows nothing: name one.")
            return "(" + "|".join(self.write({**schema, "type": k}, inside) for k in kind) + ")"
        if kind is None:
            raise UserError(f'The schema {_short(schema)} says no type, so it allows anything: add "type".')
        if kind not in _TYPES:
            raise unknown("type in a JSON schema", str(kind), _TYPES)
        if kind == "object":
            return self._object(schema, inside)
        if kind == "array":
            return self._array(schema, inside)
        return _string(schema) if kind == "string" else _PLAIN[kind]

    def _choice(self, key: str, schema: Mapping[str, Any], inside: tuple[str, ...]) -> str:
        """What a reference, a list of schemas or a list of values allows."""
        values = key in ("enum", "const")
        if beside := sorted(k for k in schema if k in _READ and k != key and not (values and k == "type")):
            raise _both(key, beside[0])
        if key == "$ref":
            path, found = _found(schema["$ref"], self.root)
            if path in inside:
                raise UserError(
                    f"The schema refers to itself by {path!r}, so it is no regular expression: write it out."
                )
            return self.write(found, (*inside, path))
        if values:
            return "(" + "|".join(_literal(_json(v)) for v in _values(schema)) + ")"
        several = schema[key]
        if not isinstance(several, list) or not several:
            raise UserError(f"The schema has {key!r} of {_short(several)}: give a list of schemas.")
        if key == "oneOf":
            _apart([_kinds(s, self.root, ()) for s in several])
        return "(" + "|".join(self.write(s, inside) for s in several) + ")"

    def _array(self, schema: Mapping[str, Any], inside: tuple[str, ...]) -> str:
        low, high = _bounds(schema, "minItems", "maxItems")
        if high == 0:
            return r"\[\]"
        item = self.write(schema.get("items", {"type": "string"}), inside)
        more = f"(,{self.space}{item}){{{max(0, low - 1)},{'' if high is None else high - 1}}}"
        return rf"\[{item}{more}\]" if low else rf"\[({item}{more})?\]"

    def _object(self, schema: Mapping[str, Any], inside: tuple[str, ...]) -> str:
        """Properties in their order; those that are not required may each be left out."""
        listed, needed = schema.get("properties", {}), schema.get("required", ())
        if not isinstance(listed, Mapping) or not all(isinstance(name, str) for name in listed):
            raise UserError(f"The schema has 'properties' of {_short(listed)}: give an object of schemas by name.")
        if not isinstance(needed, list | tuple) or not all(isinstance(name, str) for name in needed):
            raise UserError(f"The schema has 'required' of {_short(needed)}: give a list of names.")
        if schema.get("additionalProperties"):
            raise UserError("A schema with additionalProperties allows any name: list the properties.")
        if missing := set(needed) - set(listed):
            raise UserError(f"The schema requires {sorted(missing)[0]!r}, which is none of its properties.")
        parts = [
            (n in needed, _literal(_json(n)) + f":{self.space}" + self.write(s, inside)) for n, s in listed.items()
        ]
        after, first = "", ""  # of the properties from the i-th on: after others, and where none stands before
        for wanted, text in reversed(parts):
            whole = text + after
            first = whole if wanted else f"({whole}|{first})"
            after = f",{self.space}{whole}" if wanted else f"(,{self.space}{text})?{after}"
            if len(first) > _LONGEST:
                raise UserError("The schema has too many properties that may be left out: require more of them.")
        return r"\{" + first + r"\}"


def _known(schema: Any) -> None:
    if not isinstance(schema, Mapping):
        raise UserError(f"A JSON schema is an object, not {_short(schema)}.")
    for key in schema:
        if key not in _READ | _IGNORED:
            raise unknown("keyword of a JSON schema that decoding can follow:", str(key), _READ)


def _found(path: Any, root: Any) -> tuple[str, Any]:
    """What a reference refers to."""
    found = root
    for part in str(path).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found[name] if isinstance(found, Mapping) and name in found else None
    if not str(path).startswith("#/") or found is None:
        raise UserError(f"The schema refers to {path!r}, which is not in it.")
    return str(path), found


def _values(schema: Mapping[str, Any]) -> list[Any]:
    """The values of an enum or a const, of those types that are allowed beside it."""
    given = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(given, list | tuple):
        raise UserError(f"The schema has 'enum' of {_short(given)}: give a list of values.")
    types = schema.get("type", _TYPES)
    types = types if isinstance(types, list | tuple) else [types]
    for kind in types:
        if kind not in _TYPES:
            raise unknown("type in a JSON schema", str(kind), _TYPES)
    kept = [v for v in given if _type(v) in types or (_type(v) == "integer" and "number" in types)]
    if not kept:
        raise UserError(f"The schema {_short(schema)} allows no value: give one of its type.")
    return kept


def _type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, float | int):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    return "string" if isinstance(value, str) else "object" if isinstance(value, Mapping) else "array"


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"The schema has the value {_short(value)}, which JSON has not ({error}).") from None


def _kinds(schema: Any, root: Any, inside: tuple[str, ...]) -> tuple[set[str], list[Any] | None]:
    """The types of a schema's values, and the values themselves where they are listed."""
    _known(schema)
    if "$ref" in schema:
        path, found = _found(schema["$ref"], root)
        return (set(_TYPES), None) if path in inside else _kinds(found, root, (*inside, path))
    if "enum" in schema or "const" in schema:
        values = _values(schema)
        return {_type(v) for v in values}, values
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return set().union(*(_kinds(s, root, inside)[0] for s in schema[key])), None
    said = schema.get("type", list(_TYPES))
    return set(map(str, said if isinstance(said, list) else [said])), None


def _apart(several: list[tuple[set[str], list[Any] | None]]) -> None:
    """Raise UserError where a value could be of two of these, as it may not be of a oneOf."""
    for i, (one, values) in enumerate(several):
        for other, others in several[:i]:
            if values is not None and others is not None:
                clash = any(
                    v == w and (_type(v) == "boolean") == (_type(w) == "boolean") for v in values for w in others
                )
            else:
                alike = [{"number" if k == "integer" else k for k in kinds} for kinds in (one, other)]
                clash = bool(alike[0] & alike[1])
            if clash:
                raise UserError(
                    "The schema has a oneOf, of which a value could be two at once: write anyOf, or give each another"
                    " type."
                )


def _bounds(schema: Mapping[str, Any], least: str, most: str) -> tuple[int, int | None]:
    found = []
    for key in (least, most):
        value = schema.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 99_999 and value == int(value)):
            raise UserError(f"The schema has {key!r} of {_short(value)}: give a whole number from 0 to 99999.")
        found.append(None if value is None else int(value))
    low, high = found[0] or 0, found[1]
    if high is not None and high < low:
        raise UserError(f"The schema has {least!r} {low} above {most!r} {high}, which allows nothing.")
    return low, high


def _string(schema: Mapping[str, Any]) -> str:
    if "pattern" not in schema:
        low, high = _bounds(schema, "minLength", "maxLength")
        return f'"{_CHAR}{{{low},{"" if high is None else high}}}"'
    if beside := [key for key in ("minLength", "maxLength") if key in schema]:
        raise _both("pattern", beside[0])
    if not isinstance(schema["pattern"], str):
        raise UserError(f"The schema has 'pattern' of {_short(schema['pattern'])}: give an expression, as a string.")
    return in_json(schema["pattern"])


def _both(key: str, other: str) -> UserError:
    return UserError(f"The schema has {key!r} beside {other!r}, and both would have to hold: write it as one.")


def _short(value: Any) -> str:
    said = str(value)
    return said if len(said) <= 60 else f"{said[:60]}…"


@lru_cache(maxsize=1024)
def _literal(text: str) -> str:
    return "".join("\\" + c if c in r"\.[](){}|*+?^$-" else c for c in text)
