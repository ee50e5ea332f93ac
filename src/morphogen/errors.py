"""A user's mistake is one sentence: what is wrong, where, the nearest valid thing, and what to do next."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right. The command line prints it as one sentence and exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that does not exist: says the nearest one, else the known ones."""
    known = sorted(set(known))
    meant = nearest(name, known)
    if meant is None:
        shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
        answer = f"known are {shown}." if known else "none is known."
    else:
        answer = f"did you mean {meant!r}?"
    return UserError(f"There is no {kind} {name!r}: {answer}" + (f" {hint}" if hint else ""))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, or the same words in another order; None where none is like it.

    A folder or file that all share says nothing of which is meant, so it is not compared.
    """
    known = sorted(set(known))
    shared = os.path.commonprefix([name, *known])  # noqa: RUF071  (by characters is what is meant)
    cut = max(shared.rfind("/"), shared.rfind(":")) + 1
    asked, spelled = name[cut:].lower(), {k[cut:].lower(): k for k in reversed(known)}
    for k, original in spelled.items():
        if sorted(re.split(r"[-_. ]+", k)) == sorted(re.split(r"[-_. ]+", asked)):
            return original
    near = difflib.get_close_matches(asked, spelled, n=1, cutoff=0.5)
    return spelled[near[0]] if near else None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of an accelerator."""
    text = str(error)
    said = any(words in text for words in ("not enough memory", "can't allocate memory", "out of memory"))
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or said
