"""Texts as vectors, from a language model: what it holds of each token when it has read so far.

Peters et al. 2018, "Deep contextualized word representations", arXiv:1802.05365, read both ways; a causal net has seen
a token and what is before it alone. A text's own vector is the mean over its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Tokens
from ..errors import UserError


@runtime_checkable
class Reads(Protocol):
    """A causal net that says what it holds of what it has read; `nets.causal.Causal.advance`."""

    def advance(self, x: Tensor, cond: Any = ..., memory: Any = None, *, lengths: Tensor | None = None) -> Any:
        """Vectors (B, T + 1, d) after each of the symbols x (B, T), the first before any, and the memory."""
        ...


@torch.no_grad()
def read(net: Any, tokens: Tokens, texts: Sequence[str], *, batch: int = 32) -> list[Float[Tensor, "n d"]]:
    """The vectors (n, d) of each text's n tokens. batch: texts that are read at once.

    Raises UserError for a net that is not causal, and for a text that is longer than it reads.
    """
    if not isinstance(net, Reads):
        raise UserError(f"A {type(net).__name__} does not say what it holds: give a causal net, such as model.net.")
    device = next(net.parameters()).device  # type: ignore[attr-defined]
    ids = [torch.from_numpy(tokens.encode(text)).long() for text in texts]
    found: list[Tensor] = []
    training = net.training  # type: ignore[attr-defined]
    net.eval()  # type: ignore[attr-defined]
    try:
        for start in range(0, len(ids), batch):
            rows = ids[start : start + batch]
            lengths = torch.tensor([len(r) for r in rows], device=device)
            x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            longest = getattr(net, "length", None)
            if longest is not None and x.shape[1] >= longest:
                raise UserError(
                    f"A text of {x.shape[1]} tokens is more than the {longest - 1} that this net reads: cut it."
                )
            held = net.advance(x, lengths=lengths)[0]
            found += [h[1 : 1 + len(r)] for h, r in zip(held, rows, strict=True)]
    finally:
        net.train(training)  # type: ignore[attr-defined]
    return found


def encode(net: Any, tokens: Tokens, texts: Sequence[str], *, batch: int = 32) -> Float[Tensor, "b d"]:
    """One vector (B, d) of each text: the mean over its tokens. Raises UserError as `read` does, and for no token."""
    each = read(net, tokens, texts, batch=batch)
    for text, vectors in zip(texts, each, strict=True):
        if not len(vectors):
            raise UserError(f"The text {text!r} has no token, so it has no vector: leave it out.")
    return torch.stack([v.mean(0) for v in each]) if each else torch.zeros(0, 0)
