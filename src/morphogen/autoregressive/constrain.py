"""Constrained decoding: only symbols after which the text can still become a whole match of a regular expression.

    expression -> automaton over characters -> for each of its states, the state after each symbol of the alphabet
    a symbol may come     where the state after it can still reach acceptance, within the symbols that are left
    the end may come      in a state that accepts

Willard & Louf 2023, "Efficient guided generation for large language models", arXiv:2307.09702. A symbol whose text is
no whole characters (a piece of one, in a byte-level vocabulary) never comes. For JSON see `schema.json_schema`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import UserError
from .decode import Logits, Seen
from .expression import automaton

_FAR = 1 << 30  # farther than any text is long
_ROOM = 1 << 27  # places of the table of a state and a symbol: half a gigabyte


class _Walk(NamedTuple):
    """What a row said (n,), and the states before, between and after its symbols (n + 1,)."""

    said: Any
    states: Any


_BEGUN = _Walk(np.zeros(0, np.int64), np.zeros(1, np.int32))


class Constraint:
    """A rule of decoding (see `decode`): what comes after the prompt matches an expression as a whole, then ends.

    expression: see the module's head; `json_schema` makes one. vocabulary: the text of each symbol; "" or None for one
    that has none, such as the end itself. end: the symbol that ends a sequence.
    A step costs a row as much as its alphabet is large, and each symbol is walked over once: where a row goes on from
    any of the last step's rows, as in a beam, or back, as after a draft, its walk is taken up from there.
    Raises UserError for an expression that it cannot read, that no symbols can spell, or whose table is too large.
    """

    def __init__(self, expression: str, vocabulary: Sequence[str | None], end: int) -> None:
        if not 0 <= end < len(vocabulary):
            raise UserError(f"The end {end} is none of the {len(vocabulary)} symbols: give the one that ends a text.")
        self.end = end
        texts = ["" if i == end or t is None else t for i, t in enumerate(vocabulary)]
        machine = automaton(expression, {c for t in texts for c in t})
        dead, unknown_kind = len(machine.after) - 1, machine.after.shape[1] - 1
        if (dead + 1) * len(texts) > _ROOM:
            raise UserError(
                f"The automaton of this expression has {dead:,} states, and with {len(texts):,} symbols its table would"
                " not fit into memory: repeat less of it."
            )
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # those that go on stand at the front
        now = np.repeat(np.arange(dead + 1, dtype=np.int32)[:, None], len(texts), 1)  # (S + 1, codes)
        for i in range(len(texts[order[0]])):
            kind = np.array([machine.kinds.get(texts[k][i], unknown_kind) for k in order if i < len(texts[k])])
            now[:, : len(kind)] = machine.after[now[:, : len(kind)], kind]
        self.after = np.empty_like(now)
        self.after[:, order] = now
        self.after[:, [not t for t in texts]] = dead
        self.accepts = machine.accepts
        self.far = self._distances()
        if self.far[0] == _FAR:
            raise UserError("No text of this vocabulary matches the expression: it lacks characters that are needed.")
        self._walks: list[_Walk] = []  # of the rows of the last step

    def _distances(self) -> Any:
        """Symbols from each state to one that accepts (S + 1,), by breadth first from those that do."""
        before: list[list[int]] = [[] for _ in self.accepts]
        for state, row in enumerate(self.after):
            reached = np.zeros(len(self.accepts), bool)
            reached[row] = True
            for to in np.flatnonzero(reached).tolist():
                before[to].append(state)
        far = np.where(self.accepts, 0, _FAR).astype(np.int32)
        todo = deque(np.flatnonzero(self.accepts).tolist())
        while todo:
            to = todo.popleft()
            for state in before[to]:
                if far[state] == _FAR:
                    far[state] = far[to] + 1
                    todo.append(state)
        return far

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        """The logits of the symbols that may come.

        Raises UserError where a match no longer fits into what is left, and for logits of another alphabet.
        """
        if logits.shape[-1] != self.after.shape[1]:
            raise UserError(
                f"This constraint is over {self.after.shape[1]} symbols, and the logits are of {logits.shape[-1]}: give"
                " the text of each symbol of the model's."
            )
        tokens, numbers = seen.tokens.cpu().numpy(), torch.stack((seen.given, seen.lengths)).cpu().numpy()
        allowed, walks = np.zeros(tuple(logits.shape), dtype=bool), []
        for i, (given, n) in enumerate(numbers.T.tolist()):
            walk, left = self._walked(i, tokens[i, given:n]), given + seen.steps - n
            walks.append(walk)
            state = walk.states[-1]
            if self.end in walk.said:
                allowed[i, self.end] = True
                continue
            allowed[i] = self.far[self.after[state]] + 2 <= left  # it, the rest, and the end
            allowed[i, self.end] = self.accepts[state]
            if not allowed[i].any():
                raise UserError(
                    f"{left} symbols are left, and a match needs {self.far[state] + 1} more: allow more steps."
                )
        self._walks = walks
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def _walked(self, i: int, said: Any) -> _Walk:
        """The walk over what row i said, taken up from the last step's walk that has most of it."""
        best, most = _BEGUN, 0
        for walk in (*self._walks[i : i + 1], *self._walks):
            n = min(len(walk.said), len(said))
            other = walk.said[:n] != said[:n]
            n = int(other.argmax()) if other.any() else n
            if n > most:
                best, most = walk, n
            if most >= len(said) - 1:
                break
        states = best.states[: most + 1].tolist()[-1:]
        for x in said[most:].tolist():
            states.append(self.after[states[-1], x])
        return _Walk(said.copy(), np.concatenate((best.states[:most], np.array(states, np.int32))))
