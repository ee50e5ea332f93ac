"""JSON schemas as regular expressions, for constrained decoding.

A schema that does not refer to itself allows a regular language once its properties have an order. What this module
cannot follow it says; it never allows more than the schema does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..errors import UserError, unknown

_CHAR = r'([^"\\\u0000-\u001f]|\\["\\/bfnrt])'
_INTEGER = r"(-?(0|[1-9]\d*))"
_NUMBER = _INTEGER + r"(\.\d+)?([eE][+\-]?\d+)?"


def json_schema(schema: Mapping[str, Any], *, space: str = " ?") -> str:
    """The expression of the JSON texts that a schema allows, with properties in their order.

    space: the expression of what stands after a comma and a colon. Known are type (all seven, or several), properties,
    required, items, minItems, maxItems, minLength, maxLength, pattern, enum, const, anyOf, oneOf and $ref into $defs.
    Raises UserError for any other keyword that would change what is allowed, and for a schema that refers to itself.
    """
    return _json(schema, schema, space, ())


_IGNORED = {
    "title",
    "description",
    "default",
    "examples",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "format",
}
_READ = {
    "type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "minLength", "maxLength",
    "pattern", "enum", "const", "anyOf", "oneOf", "$ref",
}  # fmt: skip


def _json(schema: Mapping[str, Any], root: Mapping[str, Any], space: str, inside: tuple[str, ...]) -> str:
    if not isinstance(schema, Mapping):
        raise UserError(f"A JSON schema is an object, not {schema!r}.")
    for key in schema:
        if key not in _READ | _IGNORED:
            raise unknown("keyword of a JSON schema that decoding can follow:", key, _READ)
    if schema.get("additionalProperties"):
        raise UserError("A schema with additionalProperties allows any name: list the properties.")
    if "$ref" in schema:
        path = str(schema["$ref"])
        if path in inside:
            raise UserError(f"The schema refers to itself by {path!r}, so it is no regular expression: write it out.")
        found: Any = root
        for part in path.removeprefix("#/").split("/"):
            if not isinstance(found, Mapping) or part not in found:
                raise UserError(f"The schema refers to {path!r}, which is not in it.")
            found = found[part]
        return _json(found, root, space, (*inside, path))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return "(" + "|".join(_json(s, root, space, inside) for s in schema[key]) + ")"
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return "(" + "|".join(_literal(json.dumps(v, ensure_ascii=False)) for v in values) + ")"
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        return "(" + "|".join(_json({**schema, "type": k}, root, space, inside) for k in kind) + ")"
    if kind == "object":
        return _object(schema, root, space, inside)
    if kind == "array":
        item = _json(schema.get("items", {"type": "string"}), root, space, inside)
        low, high = int(schema.get("minItems", 0)), schema.get("maxItems")
        if high == 0:
            return r"\[\]"
        more = f"(,{space}{item}){{{max(0, low - 1)},{'' if high is None else int(high) - 1}}}"
        return rf"\[{item}{more}\]" if low else rf"\[({item}{more})?\]"
    if kind == "string":
        if "pattern" in schema:
            return '"(' + str(schema["pattern"]).removeprefix("^").removesuffix("$") + ')"'
        return f'"{_CHAR}{{{schema.get("minLength", 0)},{schema.get("maxLength", "")}}}"'
    known = {"integer": _INTEGER, "number": _NUMBER, "boolean": "(true|false)", "null": "null"}
    if kind not in known:
        raise unknown("type in a JSON schema", str(kind), [*known, "object", "array", "string"])
    return known[kind]


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], space: str, inside: tuple[str, ...]) -> str:
    """Properties in their order; those that are not required may each be left out."""
    wanted = set(schema.get("required", ()))
    parts = [
        (name in wanted, _literal(json.dumps(name, ensure_ascii=False)) + f":{space}" + _json(s, root, space, inside))
        for name, s in schema.get("properties", {}).items()
    ]
    if missing := wanted - set(schema.get("properties", {})):
        raise UserError(f"The schema requires {sorted(missing)[0]!r}, which is none of its properties.")

    def rest(i: int, first: bool) -> str:
        """The properties from the i-th on; `first`: none stands before."""
        if i == len(parts):
            return ""
        needed, text = parts[i]
        with_it = ("" if first else f",{space}") + text + rest(i + 1, False)
        if needed:
            return with_it
        return f"({with_it}|{rest(i + 1, True)})" if first else f"(,{space}{text})?" + rest(i + 1, False)

    return r"\{" + rest(0, True) + r"\}"


@lru_cache(maxsize=1024)
def _literal(text: str) -> str:
    return "".join("\\" + c if c in r"\.[](){}|*+?^$-" else c for c in text)
