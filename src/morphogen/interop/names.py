"""What the readers and writers of checkpoints share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import UserError, unknown

DEEPEST, WIDEST = 1000, 1 << 20  # layers and numbers of a vector that a net may have
_ABSENT: Any = object()


class Told:
    """A configuration of theirs, of which each value is asked for by its name and kind.

    Raises UserError that names the file and the key, for a value that is absent, of another kind or out of range.
    """

    def __init__(self, page: Mapping[str, Any], where: str = "config.json") -> None:
        self.page, self.where = page, where

    def whole(self, key: str, default: Any = _ABSENT, *, least: int = 1, most: int = 1 << 31) -> Any:
        """A whole number; the default where it is absent or null."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer() and abs(value) <= most:
            value = int(value)
        if value is not default and (type(value) is not int or not least <= value <= most):
            raise self._wrong(key, value, f"a whole number from {least} to {most:,}")
        return value

    def number(self, key: str, default: Any = _ABSENT) -> float:
        """A finite number, not below 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self._wrong(key, value, "a number of 0 or more")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def word(self, key: str, default: Any = _ABSENT) -> str:
        """A word."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a word")
        return value

    def part(self, key: str) -> Told:
        """What stands under a key; nothing where it is absent or null."""
        value = self._value(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Told(value, f"{key} of {self.where}")

    def symbol(self, key: str, codes: int) -> int | None:
        """A symbol of the alphabet; None where it is absent, or none of it."""
        value = self.whole(key, None, least=-(1 << 31))
        return value if value is not None and 0 <= value < codes else None

    def _value(self, key: str, default: Any) -> Any:
        value = self.page.get(key)
        if value is None and default is _ABSENT:
            raise UserError(f"{self.where} lacks {key!r}: fetch the file again.")
        return default if value is None else value

    def _wrong(self, key: str, value: Any, wanted: str) -> UserError:
        said = str(value)
        return UserError(
            f"{self.where} has {key!r} = {said if len(said) < 40 else said[:40] + '…'}, and {wanted} is needed: fetch"
            " the file again."
        )


def activation_of(name: str, known: Mapping[str, str]) -> str:
    """Our name of an activation of theirs. Raises UserError naming the nearest."""
    if name not in known:
        raise unknown("activation in this configuration that a net here has:", name, known)
    return known[name]


def lacking(lacks: bool, what: str) -> None:
    """Raise UserError for a net that cannot be written as theirs."""
    if lacks:
        raise UserError(f"This net cannot be written as theirs, which needs {what}.")


def whole(net: nn.Module) -> dict[str, Tensor]:
    """A net's weights, each once, where they lie."""
    return {name: p.detach() for name, p in net.named_parameters()}
