"""Contrastive search, and speculative decoding with a draft.

    contrastive    x_t = argmax over the k likeliest v of  (1 − α) p(v) − α max_j cos(h_v, h_j)
                   h_v what the net would make of v, h_j of what is before

    speculative    the draft q proposes x_1 .. x_γ; each is accepted with probability min(1, p / q) in turn; after the
                   first that is not, one symbol comes from max(p − q, 0) / Σ, after all γ one from p: the law is p's

Su et al. 2022, "A contrastive framework for neural text generation", arXiv:2202.06417; Leviathan, Kalman & Matias 2023,
"Fast inference from transformers via speculative decoding", arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import NONE, Noise, each
from ..errors import UserError
from ..nets.causal import Causal
from ..nets.memory import Memory
from .decode import Rules, Seen, applied
from .generate import Cond, Generated, Steps, prefill, rows_of, started


@torch.no_grad()
def contrastive(
    net: Causal | nn.Module,
    prompt: Int[Tensor, "b p"],
    lengths: Int[Tensor, " b"] | None = None,
    cond: Cond = NONE,
    *,
    k: int,
    alpha: float,
    steps: int,
    codes: int,
    end: int | None = None,
    begin: bool = True,
) -> Generated:
    """Go on from prompts by contrastive search; α = 0 is greedy. See `generate.stream` for the rest.

    Raises UserError for a net that does not show its vectors, and for k or α out of range.
    """
    if not isinstance(net, Causal):
        raise UserError(f"A {type(net).__name__} shows no vectors to compare: use a transformer or a recurrence.")
    if not 1 <= k <= codes or not 0 <= alpha <= 1:
        raise UserError(f"Contrastive search takes k from 1 to {codes} and alpha from 0 to 1, not {k} and {alpha:g}.")
    tokens, own, _ = started(prompt, lengths, steps, begin, codes, end)
    b, p = prompt.shape
    row, device = torch.arange(b, device=prompt.device), prompt.device
    hidden, memory = net.advance(tokens[:, :p], cond, net.memory(p + steps + begin), lengths=own, begin=begin)
    used = own + begin  # vectors that there are
    before = F.pad(F.normalize(hidden, dim=-1), (0, 0, 0, steps))
    h = hidden[row, used - 1]
    live = torch.ones(b, dtype=torch.bool, device=device)
    many = row.repeat_interleave(k)
    told = each(cond, lambda c: c[many])
    for i in range(steps):
        probs = net.last(h).softmax(-1).topk(k)
        tried, wide = net.advance(probs.indices.view(-1, 1), told, rows_of(memory, many), begin=False)
        tried = tried.view(b, k, -1)
        there = torch.arange(before.shape[1], device=device) < used[:, None]
        cos = (F.normalize(tried, dim=-1) @ before.mT).masked_fill(~there[:, None], -torch.inf).amax(-1)  # (B, k)
        best = ((1 - alpha) * probs.values - alpha * cos).argmax(-1)
        x = probs.indices[row, best]
        if end is not None:
            x = torch.where(live, x, end)
        tokens[row, own], h = x, tried[row, best]
        before[row, used] = F.normalize(h, dim=-1)
        own, used, memory = own + live, used + 1, rows_of(wide, row * k + best)
        if end is not None:
            live = live & (x != end)
            if not bool(live.any()):
                break
        if i + 1 == steps:
            break
    return Generated(tokens, own)


class Speculated(NamedTuple):
    """As `Generated`; symbols that the draft offered and that were accepted; passes of the target."""

    tokens: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    offered: int
    accepted: int
    passes: int


def accept(
    p: Float[Tensor, "b n v"], q: Float[Tensor, "b m v"], x: Int[Tensor, "b m"], u: Float[Tensor, "b m"]
) -> tuple[Int[Tensor, " b"], Float[Tensor, "b v"]]:
    """How many of the m symbols x drawn from q are accepted, and the law of the one that follows them.

    p: of the target at these places and the one after, m + 1 in all. u: uniform numbers.
    """
    ratio = p[:, :-1].gather(2, x[..., None]) / q.gather(2, x[..., None])
    taken = (u < ratio[..., 0]).long().cumprod(1).sum(1)  # (B,)
    row = torch.arange(len(p), device=p.device)
    there = F.pad(q, (0, 0, 0, 1))[row, taken]  # after all m nothing is taken away
    rest = (p[row, taken] - there).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return taken, torch.where(total > 0, rest / total, p[row, taken])  # p = q: never asked for but by rounding


@torch.no_grad()
def speculative(
    net: Steps,
    draft: Steps,
    prompt: Int[Tensor, "b p"],
    lengths: Int[Tensor, " b"] | None = None,
    cond: Cond = NONE,
    *,
    steps: int,
    noise: Noise,
    codes: int,
    ahead: int = 4,
    rules: Rules = (),
    end: int | None = None,
    begin: bool = True,
    chunk: int | None = None,
) -> Speculated:
    """Draw from `net` in fewer passes: `draft`, a cheaper net over the same alphabet, proposes `ahead` symbols.

    rules: on the logits of both. See `generate.stream` for the rest; a row does not depend on the others here either.
    Raises UserError where a net's memory cannot go back, as a recurrence's cannot.
    """
    if ahead < 1:
        raise UserError(f"A draft of {ahead} symbols proposes nothing: use 1 or more.")
    tokens, own, ragged = started(prompt, lengths, steps, begin, codes, end)
    (b, p), device = prompt.shape, prompt.device
    given, row = own.clone(), torch.arange(b, device=device)
    tokens = F.pad(tokens, (0, ahead + 1))
    memories = []
    for one in (net, draft):
        memory = one.memory(p + steps + begin - 1, ahead + 1)
        if not isinstance(memory, Memory):
            raise UserError(f"The memory of a {type(one).__name__} cannot go back: speculate with transformers.")
        memories.append(memory)
    target, cheap = memories
    told = own if ragged else None
    logits, _ = prefill(net, tokens[:, :p], told, cond, target, begin=begin, chunk=chunk)
    prefill(draft, tokens[:, :p], told, cond, cheap, begin=begin, chunk=chunk)

    def law(logits: Tensor, more: int) -> Tensor:
        seen = Seen(tokens[:, : int(own.max()) + more], own + more, given, steps)
        return applied(logits, seen, rules).double().softmax(-1)

    live = torch.ones(b, dtype=torch.bool, device=device)
    offered = accepted = passes = 0
    pending = noise.categorical(law(logits, 0).log())  # the first symbol is the target's own
    tokens[row, own] = pending
    own, live = _grown(own, live, tokens, torch.ones_like(own), given, steps, end)
    while bool(live.any()):
        q, x, ask = [], [], pending
        for j in range(ahead):
            logits, _ = draft.step(ask[:, None], cond, cheap, begin=False)
            q.append(law(logits[:, -1], j))
            ask = noise.categorical(q[-1].log())
            x.append(ask)
            tokens[row, own + j] = ask
        draft.step(ask[:, None], cond, cheap, begin=False)
        proposed = torch.stack(x, 1)
        logits, _ = net.step(torch.cat((pending[:, None], proposed), 1), cond, target, begin=False)
        laws = torch.stack([law(logits[:, j], j) for j in range(ahead + 1)], 1)
        u = noise.uniform(ahead, dtype=torch.float64)
        taken, rest = accept(laws, torch.stack(q, 1), proposed, u)
        pending = noise.categorical(rest.log())
        tokens[row, own + taken] = pending
        offered, accepted = offered + ahead * int(live.sum()), accepted + int(taken[live].sum())
        passes += 1
        own, live = _grown(own, live, tokens, taken + 1, given, steps, end)
        for memory in memories:
            memory.back(own - 1 + begin)  # all but the last symbol, which both nets have yet to read
    tokens = tokens[:, : p + steps]
    there = torch.arange(p + steps, device=device) < own[:, None]
    return Speculated(torch.where(there, tokens, 0 if end is None else end), own, offered, accepted, passes)


def _grown(
    own: Tensor, live: Tensor, tokens: Tensor, more: Tensor, given: Tensor, steps: int, end: int | None
) -> tuple[Int[Tensor, " b"], Bool[Tensor, " b"]]:
    """Lengths with `more` symbols where a row is live, up to its end or its last step, and which rows go on."""
    most = torch.minimum(own + more, given + steps)
    if end is not None:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        found = (tokens == end) & (place >= own[:, None]) & (place < most[:, None])
        first = torch.where(found.any(1), found.long().argmax(1) + 1, most)
        grown, ended = torch.minimum(most, first), found.any(1)
    else:
        grown, ended = most, torch.zeros_like(live)
    after = torch.where(live, grown, own)
    return after, live & ~ended & (after < given + steps)
