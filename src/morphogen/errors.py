"""A user's mistake is one sentence: what is wrong, where, the nearest valid thing, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right. The command line prints it as one sentence and exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that does not exist: says the nearest one, else the known ones."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    meant = next((k for k in known if near and k.lower() == near[0]), None)
    if meant is None:
        shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
        answer = f"known are {shown}." if known else "none is known."
    else:
        answer = f"did you mean {meant!r}?"
    return UserError(f"There is no {kind} {name!r}: {answer}" + (f" {hint}" if hint else ""))
