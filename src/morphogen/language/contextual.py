"""Texts as vectors, from a language model: what it holds of each token when it has read so far.

Peters et al. 2018, "Deep contextualized word representations", arXiv:1802.05365, read both ways; a causal net has seen
a token and what is before it alone. A text's own vector is the mean over its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Tokens
from ..errors import UserError
from ..nets.causal import Causal


@torch.no_grad()
def read(
    net: Any, tokens: Tokens, texts: Sequence[str], *, batch: int = 32, begin: bool = True
) -> list[Float[Tensor, "n d"]]:
    """The vectors (n, d) of each text's n tokens. batch: texts that are read at once. begin: whether what begins a
    sequence comes before each, as it does in training here; GPT-2's texts stand at the first place (False).

    Raises UserError for a net that is not causal, and for a text that is longer than it reads.
    """
    if not isinstance(net, Causal):
        raise UserError(f"A {type(net).__name__} does not say what it holds: give a causal net, such as model.net.")
    if isinstance(texts, str):
        raise UserError(f"{texts[:24]!r} is one text: give a list of them.")
    device = next(net.parameters()).device
    ids = [torch.from_numpy(tokens.encode(text)).long() for text in texts]
    found: list[Tensor] = []
    training = net.training
    net.eval()
    try:
        for start in range(0, len(ids), batch):
            rows = ids[start : start + batch]
            lengths = torch.tensor([len(r) for r in rows], device=device)
            x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            if net.length is not None and x.shape[1] + begin > net.length:
                raise UserError(
                    f"A text of {x.shape[1]} tokens is more than the {net.length - begin} that this net reads: cut it."
                )
            if x.shape[1] + begin == 0:  # there is nothing to read
                found += [torch.zeros(0, net.last.in_features, device=device) for _ in rows]
                continue
            held = net.advance(x, lengths=lengths, begin=begin)[0]
            found += [h[begin : begin + len(r)] for h, r in zip(held, rows, strict=True)]
    finally:
        net.train(training)
    return found


def encode(
    net: Any, tokens: Tokens, texts: Sequence[str], *, batch: int = 32, begin: bool = True
) -> Float[Tensor, "b d"]:
    """One vector (B, d) of each text: the mean over its tokens. Raises UserError as `read` does, and for no token."""
    each = read(net, tokens, texts, batch=batch, begin=begin)
    for text, vectors in zip(texts, each, strict=True):
        if not len(vectors):
            raise UserError(f"The text {text!r} has no token, so it has no vector: leave it out.")
    return torch.stack([v.mean(0) for v in each]) if each else torch.zeros(0, 0)
