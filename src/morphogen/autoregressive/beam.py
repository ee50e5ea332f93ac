"""Beam search: the likeliest sequences found by keeping the `beams` best beginnings of each length.

    score(x) = log p(x) / |x|^penalty,    |x| the symbols that came after the prompt, the end included

A sequence is over after its end symbol, or at the last step; one that ends counts only if it is among the best `beams`
continuations of its step. With groups, each of beams / groups, those chosen before in the same step make a symbol
`diversity` less likely for each time that it was chosen.

Vijayakumar et al. 2016, "Diverse beam search", arXiv:1610.02424 (groups); Wu et al. 2016, arXiv:1609.08144 (a length
penalty; here the plain power of the length, as in transformers, whose way of ending this is too).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..core import NONE, each
from ..errors import UserError
from .decode import Rules, Seen
from .generate import Cond, Steps, prefill, rows_of, started


class Beams(NamedTuple):
    """Sequences, best first, the prompt in front; how many symbols each has; their scores.

    Where fewer than `beams` were found, the rest are the prompt alone, at a score of −inf.
    """

    tokens: Int[Tensor, "b beams t"]
    lengths: Int[Tensor, "b beams"]
    scores: Float[Tensor, "b beams"]


class _Group:
    """The running and the finished sequences of one group."""

    def __init__(self, b: int, w: int, steps: int, like: Tensor) -> None:
        self.w = w
        self.made = torch.zeros(b, w, steps, dtype=torch.long, device=like.device)
        self.score = torch.full((b, w), -torch.inf, device=like.device, dtype=like.dtype)
        self.score[:, 0] = 0.0  # all beams begin alike: one of them is enough
        self.done = self.made.clone()
        self.done_score = torch.full_like(self.score, -torch.inf)
        self.done_length = torch.zeros(b, w, dtype=torch.long, device=like.device)
        self.open = torch.ones(b, 1, dtype=torch.bool, device=like.device)  # may it still find a better one

    def advance(self, logp: Float[Tensor, "b w v"], i: int, last: bool, end: int | None, penalty: float) -> Tensor:
        """Choose the i-th symbols; the beams (B, w) that the running ones come from."""
        v = logp.shape[2]
        total = (self.score[..., None] + logp).flatten(1)
        top, index = total.topk(min(2 * self.w, total.shape[1]))
        parent, symbol = index // v, index % v
        candidates = self.made.gather(1, parent[..., None].expand(-1, -1, self.made.shape[2])).clone()
        candidates[:, :, i] = symbol
        ended = torch.zeros_like(symbol, dtype=torch.bool) if end is None else symbol == end
        counts = (ended | last) & (torch.arange(top.shape[1], device=top.device) < self.w) & self.open
        score = torch.where(counts, top / (i + 1) ** penalty, -torch.inf)
        length = torch.where(counts & top.isfinite(), i + 1, 0)
        best = torch.cat((self.done_score, score), 1).topk(self.w)
        self.done = _taken(torch.cat((self.done, candidates), 1), best.indices)
        self.done_length = torch.cat((self.done_length, length), 1).gather(1, best.indices)
        self.done_score = best.values
        score, index = top.masked_fill(ended, -torch.inf).topk(min(self.w, top.shape[1]))
        first = torch.where(score[:, :1].isfinite(), index[:, :1], 0)  # an ended one where none goes on
        lack = (0, self.w - index.shape[1])  # fewer continuations than beams
        self.score, index = F.pad(score, lack, value=-torch.inf), F.pad(index, lack)
        index = torch.where(self.score.isfinite(), index, first)  # what no rule allows is never gone on from
        self.made = _taken(candidates, index)
        return parent.gather(1, index)

    def judge(self, longest: int, penalty: float, early: bool | None) -> None:
        """Close the rows that cannot, or need not, find a better sequence."""
        worst = self.done_score.amin(1, keepdim=True)  # −inf while fewer than `w` are finished
        best = self.score[:, :1] / longest**penalty
        self.open = self.open & (best > worst)
        if early:
            self.open = self.open & worst.isinf()


def beam_search(
    net: Steps,
    prompt: Int[Tensor, "b p"],
    lengths: Int[Tensor, " b"] | None = None,
    cond: Cond = NONE,
    *,
    beams: int,
    steps: int,
    codes: int,
    end: int | None = None,
    penalty: float = 1.0,
    early: bool | None = False,
    groups: int = 1,
    diversity: float = 0.0,
    rules: Rules = (),
    begin: bool = True,
    chunk: int | None = None,
) -> Beams:
    """The best sequences after each prompt, as many as beams.

    penalty: of the module's head: 0 prefers short sequences, above 1 long ones. early: True ends a row as soon as
    `beams` sequences have ended, False when the best running one, at its length, is worse than all these, None when it
    could not become better at any length. rules: on log-probabilities, such as `no_ngrams`. Others: see
    `generate.stream`. Raises UserError where the groups do not divide the beams.
    """
    if beams < 1 or groups < 1 or beams % groups or steps < 1:
        raise UserError(f"{beams} beams in {groups} groups over {steps} steps cannot be: use a divisor, and 1 or more.")
    tokens, own, ragged = started(prompt, lengths, steps, begin, codes, end)
    (b, p), w, device = prompt.shape, beams // groups, prompt.device
    logits, memory = prefill(
        net, tokens[:, :p], own if ragged else None, cond, net.memory(p + steps + begin - 1), begin=begin, chunk=chunk
    )
    first = torch.arange(b, device=device).repeat_interleave(beams)
    logits, memory, told = logits[first], rows_of(memory, first), each(cond, lambda c: c[first])
    group = [_Group(b, w, steps, logits) for _ in range(groups)]
    given = own.repeat_interleave(beams)
    for i in range(steps):
        logp = logits.log_softmax(-1)
        if rules:
            made = torch.stack([g.made for g in group], 1).flatten(0, 2)  # (B · beams, steps)
            seen = Seen(_placed(tokens[first], given, made)[:, : p + i], given + i, given, steps)
            for rule in rules:
                logp = rule(logp, seen)
        split = logp.view(b, groups, w, codes)
        chosen = torch.zeros(b, codes, device=device, dtype=logp.dtype)
        parents = []
        for j, one in enumerate(group):
            here = split[:, j] - diversity * chosen[:, None] if diversity else split[:, j]
            parents.append(one.advance(here, i, i + 1 == steps, end, penalty) + j * w)
            one.judge(steps if early is None and penalty > 0 else i + 1, penalty, early)
            if diversity:
                chosen.scatter_add_(1, one.made[:, :, i], one.score.isfinite().to(logp.dtype))
        if i + 1 == steps or not any(bool(g.open.any()) for g in group):
            break
        parent = torch.stack(parents, 1).view(b, beams) + beams * torch.arange(b, device=device)[:, None]
        memory = rows_of(memory, parent.flatten())
        symbols = torch.stack([g.made[:, :, i] for g in group], 1).view(b * beams, 1)
        logits, memory = net.step(symbols, told, memory, begin=False)
        logits = logits[:, -1]
    scores = torch.cat([g.done_score for g in group], 1)
    order = scores.sort(dim=1, descending=True, stable=True)
    done = _taken(torch.cat([g.done for g in group], 1), order.indices)
    length = torch.cat([g.done_length for g in group], 1).gather(1, order.indices)
    after = torch.arange(steps, device=device) < length[..., None]
    done = torch.where(after, done, 0 if end is None else end)
    whole = _placed(tokens[first], given, done.flatten(0, 1)).view(b, beams, tokens.shape[1])
    return Beams(whole, own[:, None] + length, order.values)


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, r) of x (B, R, n)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _placed(tokens: Tensor, own: Tensor, made: Tensor) -> Tensor:
    """The tokens (R, T) with what was made (R, steps) after the first `own` of each row."""
    place = own[:, None] + torch.arange(made.shape[1], device=made.device)
    return tokens.scatter(1, place, made)
