"""What a watch has told, as the lines of a log have it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Alarm(NamedTuple):
    """Something that goes wrong: the sign's name, what was seen with its numbers, the likely cause, what to change."""

    sign: str
    evidence: str
    cause: str
    change: str

    def __str__(self) -> str:
        return f"{self.sign}: {self.evidence}. Likely cause: {self.cause}. What to change: {self.change}."


class Told(NamedTuple):
    """An alarm, the step at which it was told, and the one at which it was over (None where it stands)."""

    step: int
    alarm: Alarm
    over: int | None = None


def told(lines: Iterable[Mapping[str, Any]]) -> list[Told]:
    """The alarms in the lines of a log, in their order. One that is told again with another cause ends the first."""
    found: list[Told] = []
    for line in lines:
        said, step = line.get("alarm"), line.get("step", 0)
        alarm = Alarm(**said) if isinstance(said, Mapping) and set(said) == set(Alarm._fields) else None
        sign = line.get("over") if alarm is None else alarm.sign
        found = [t._replace(over=step) if t.alarm.sign == sign and t.over is None else t for t in found]
        if alarm is not None:
            found.append(Told(step, alarm))
    return found
