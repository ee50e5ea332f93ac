"""Constrained decoding: only symbols after which the text can still become a whole match of a regular expression.

    expression -> automaton over characters -> for each of its states, the state after each symbol of the alphabet
    a symbol may come     where the state after it can still reach acceptance, within the symbols that are left
    the end may come      in a state that accepts

Willard & Louf 2023, "Efficient guided generation for large language models", arXiv:2307.09702. A symbol whose text is
no whole characters (a piece of one, in a byte-level vocabulary) never comes. For JSON see `schema.json_schema`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .decode import Logits, Seen
from .expression import automaton

_FAR = 1 << 40  # farther than any text is long


class Constraint:
    """A rule of decoding (see `decode`): what comes after the prompt matches an expression as a whole, then ends.

    expression: see the module's head; `json_schema` makes one. vocabulary: the text of each symbol; "" or None for one
    that has none, such as the end itself. end: the symbol that ends a sequence.
    Raises UserError for an expression that it cannot read, or that no symbols can spell.
    """

    def __init__(self, expression: str, vocabulary: Sequence[str | None], end: int) -> None:
        self.end = end
        texts = ["" if i == end or t is None else t for i, t in enumerate(vocabulary)]
        machine = automaton(expression, {c for t in texts for c in t})
        dead, unknown_kind = len(machine.after) - 1, machine.after.shape[1] - 1
        now = np.repeat(np.arange(dead + 1)[:, None], len(texts), 1)  # (S + 1, codes)
        for i in range(max(map(len, texts), default=0)):
            kind = np.array([machine.kinds.get(t[i], unknown_kind) if i < len(t) else -1 for t in texts])
            now = np.where(kind >= 0, machine.after[now, kind], now)
        now[:, [not t for t in texts]] = dead
        self.after, self.accepts = now, machine.accepts
        self.far = self._distances()
        if self.far[0] == _FAR:
            raise UserError("No text of this vocabulary matches the expression: it lacks characters that are needed.")
        self._known: dict[tuple[int, ...], int] = {(): 0}

    def _distances(self) -> Any:
        """Symbols from each state to one that accepts."""
        after = [np.unique(row) for row in self.after]
        far = np.where(self.accepts, 0, _FAR)
        while True:
            nearer = np.minimum(far, np.array([far[to].min() + 1 for to in after])).clip(max=_FAR)
            if (nearer == far).all():
                return far
            far = nearer

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        """The logits of the symbols that may come. Raises UserError where a match no longer fits into what is left."""
        allowed = np.zeros(tuple(logits.shape), dtype=bool)
        left = seen.left.tolist()
        for i, (row, n, g) in enumerate(
            zip(seen.tokens.tolist(), seen.lengths.tolist(), seen.given.tolist(), strict=True)
        ):
            said = tuple(row[g:n])
            if self.end in said:
                allowed[i, self.end] = True
                continue
            state = self._state(said)
            allowed[i] = self.far[self.after[state]] + 2 <= left[i]  # it, the rest, and the end
            allowed[i, self.end] = self.accepts[state]
            if not allowed[i].any():
                raise UserError(
                    f"{left[i]} symbols are left, and a match needs {self.far[state] + 1} more: allow more steps."
                )
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def _state(self, said: tuple[int, ...]) -> int:
        """The state after these symbols."""
        if said not in self._known:
            if len(self._known) > 1 << 16:
                self._known = {(): 0}
            state = 0
            for i in range(len(said), -1, -1):
                if said[:i] in self._known:
                    state = self._known[said[:i]]
                    break
            for x in said[i:]:
                state = int(self.after[state, x])
            self._known[said] = state
        return self._known[said]
