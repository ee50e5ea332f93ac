"""Going on from prompts, symbol by symbol: any causal net, rows of any lengths, any rules of decoding.

A prompt is read at once, or in chunks; then each symbol once, where the net can go on from what it has seen (`Steps`).
A row depends on its own prompt and key alone. It is over after its end symbol, or when there is no more room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import NONE, each
from ..errors import UserError
from ..nets.memory import Memory
from ..nets.packed import packable, packed
from .decode import Rules, Seen, applied, guided

PACK_FROM = 64  # steps that repay laying out a net's weights anew
Cond = Mapping[str, Any]
Choice = Callable[[Tensor], Tensor]  # logits (B, codes) to symbols (B,)


@runtime_checkable
class Steps(Protocol):
    """A causal net that can go on from what it has seen; `nets.causal.Causal.step` says what each means."""

    def step(
        self,
        x: Tensor,
        cond: Any = NONE,
        memory: Any = None,
        *,
        lengths: Tensor | None = None,
        begin: bool | None = None,
    ) -> tuple[Tensor, Any]:
        """Logits (B, n, codes) of what follows each of the symbols x (B, k), and the memory of all so far; without a
        memory the first row is of the first symbol, before any of x.
        """
        ...

    def memory(self, room: int | None = None, slack: int = 0) -> Any:
        """An empty memory for so many places, or None."""
        ...


class Passes:
    """`Steps` for a net that has none: a whole pass over `shape` for each symbol, whose memory is the symbols."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        self.net, self.shape, self.size = net, shape, int(torch.Size(shape).numel())

    def memory(self, room: int | None = None, slack: int = 0) -> None:
        """None: there is nothing to prepare."""

    def step(
        self,
        x: Tensor,
        cond: Any = NONE,
        memory: Any = None,
        *,
        lengths: Tensor | None = None,
        begin: bool | None = None,
    ) -> tuple[Tensor, Any]:
        """See `Steps.step`. What begins a sequence is no symbol here: it is there whether `begin` or not. Raises
        UserError where the next symbol has no place.
        """
        begun = memory is not None
        first = not begun and begin is not False
        known, used = (x[:, :0], torch.zeros(len(x), dtype=torch.long, device=x.device)) if not begun else memory
        more = torch.full_like(used, x.shape[1]) if lengths is None else lengths
        if len(x) and int((used + more).max()) >= self.size:
            raise UserError(f"A sample of this net has {self.size} symbols, and more were asked for: take fewer steps.")
        whole = F.pad(known, (0, x.shape[1]))
        place = used[:, None] + torch.arange(x.shape[1], device=x.device)  # a shorter row's pads are written over
        whole = whole.scatter(1, place, x)
        with torch.no_grad():
            read = F.pad(whole[:, : self.size], (0, max(0, self.size - whole.shape[1])))
            logits = self.net(read.reshape(-1, *self.shape), cond).flatten(1, -2)  # (B, size, codes)
        rows = torch.arange(x.shape[1] + first, device=x.device) + used[:, None] + (not first)
        wanted = rows.clamp(max=self.size - 1)[..., None].expand(-1, -1, logits.shape[-1])
        return logits.gather(1, wanted), (whole, used + more)


class Generated(NamedTuple):
    """tokens (B, T), the prompt first and the end symbol after the end; how many of each row there are."""

    tokens: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]


def greedy(logits: Float[Tensor, "b codes"]) -> Int[Tensor, " b"]:
    """The likeliest symbols."""
    return logits.argmax(-1)


def prefill(
    net: Steps,
    prompt: Int[Tensor, "b p"],
    lengths: Int[Tensor, " b"] | None,
    cond: Cond,
    memory: Any,
    *,
    begin: bool = True,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "b codes"], Any]:
    """Logits of what follows each prompt, and the memory of all. chunk: at most so many symbols are read at a time."""
    p = prompt.shape[1]
    if p == 0 and not begin:
        raise UserError("There is nothing to go on from: give a prompt, or let the sequence begin (begin=True).")
    size = max(1, p if chunk is None else chunk)
    last: Tensor | None = None
    for start in range(0, max(1, p), size):
        piece = prompt[:, start : start + size]
        first = start == 0 and begin
        if lengths is None:
            logits, memory = net.step(piece, cond, memory, begin=first)
            last = logits[:, -1]
            continue
        there = (lengths - start).clamp(0, piece.shape[1])
        logits, memory = net.step(piece, cond, memory, lengths=there, begin=first)
        row = there - 1 + first
        at = logits.gather(1, row.clamp(min=0)[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0]
        last = at if last is None else torch.where((row >= 0)[:, None], at, last)
    assert last is not None
    return last, memory


class Start(NamedTuple):
    """A prompt as all ways of decoding begin with it."""

    tokens: Int[Tensor, "b t"]  # room for the prompt and what may come
    lengths: Int[Tensor, " b"]
    ragged: bool


def started(prompt: Tensor, lengths: Tensor | None, steps: int, begin: bool, codes: int, end: int | None) -> Start:
    """The prompt (B, P), checked, with room for `steps` symbols. Raises UserError for what is no prompt."""
    if prompt.ndim != 2 or prompt.is_floating_point():
        kind = str(prompt.dtype).removeprefix("torch.")
        raise UserError(f"The prompt is {kind} of shape {tuple(prompt.shape)}: give rows of symbols, integers (B, P).")
    b, p = prompt.shape
    if steps < 0:
        raise UserError(f"There are no {steps} symbols to come: ask for 0 or more.")
    if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < codes:
        raise UserError(
            f"The prompt holds {int(prompt.max())} or {int(prompt.min())}: its alphabet is 0 to {codes - 1}."
        )
    if end is not None and not 0 <= end < codes:
        raise UserError(f"The end symbol {end} is none of the alphabet, 0 to {codes - 1}.")
    if lengths is not None and (lengths.shape != (b,) or lengths.is_floating_point()):
        raise UserError(f"There are {b} prompts, and their lengths are {tuple(lengths.shape)}: give each one, (B,).")
    if lengths is not None and b and not 0 <= int(lengths.min()) <= int(lengths.max()) <= p:
        raise UserError(f"The prompts' lengths must lie between 0 and {p}, the width of the prompts.")
    if lengths is not None and not begin and b and int(lengths.min()) == 0:
        raise UserError("A prompt is empty, and nothing begins the sequence: give each at least one symbol.")
    ragged = lengths is not None and b > 0 and bool((lengths != p).any())
    own = torch.full((b,), p, dtype=torch.long, device=prompt.device) if lengths is None else lengths.long()
    fill = 0 if end is None else end
    there = torch.arange(p, device=prompt.device) < own[:, None]
    return Start(F.pad(torch.where(there, prompt.long(), fill), (0, steps), value=fill), own, ragged)


def stream(
    net: Steps,
    prompt: Int[Tensor, "b p"],
    lengths: Int[Tensor, " b"] | None = None,
    cond: Cond = NONE,
    *,
    steps: int,
    choose: Choice,
    codes: int,
    rules: Rules = (),
    end: int | None = None,
    begin: bool = True,
    chunk: int | None = None,
    guidance: float = 1.0,
) -> Iterator[tuple[Int[Tensor, " b"], Bool[Tensor, " b"], Generated]]:
    """After each symbol: the symbols (B,), which rows they are of (those not over), and all so far.

    prompt: (B, P), of which the first `lengths` of each row are there. steps: the most symbols that may come. choose:
    draws from logits, such as `greedy` or `noise.categorical`. rules: from logits to logits. end: the symbol after
    which a row is over. begin: whether what begins a sequence comes before the prompt. chunk: of reading it. guidance:
    weight of the pull towards the conditions; what is generated is then read twice, with and without them.
    """
    tokens, own, ragged = started(prompt, lengths, steps, begin, codes, end)
    b, p = prompt.shape
    device = prompt.device
    given, left = own.clone(), steps
    twice = guidance != 1 and b > 0

    def doubled(x: Tensor) -> Tensor:
        return torch.cat((x, x)) if twice else x

    if b == 0 or steps == 0:
        return
    told = both(cond, b, device) if twice else cond
    memory = net.memory(p + steps + begin - 1)  # the last symbol is not read
    logits, memory = prefill(
        net, doubled(tokens[:, :p]), doubled(own) if ragged else None, told, memory, begin=begin, chunk=chunk
    )
    quick = net
    if steps >= PACK_FROM and isinstance(net, nn.Module) and packable(net):
        quick = packed(net, len(doubled(own)))
    row = torch.arange(b, device=device)
    live = torch.ones(b, dtype=torch.bool, device=device)
    most = p
    while True:
        if twice:
            without, told_of = logits.chunk(2)
            logits = guided(without, told_of, guidance)
        if rules:
            logits = applied(logits, Seen(tokens[:, :most], own, given, steps), rules)
        x = choose(logits)
        if end is not None:
            x = torch.where(live, x, end)
        if ragged:
            tokens[row, own] = x
            own, most = own + live, most + 1
        else:
            tokens[:, most] = x
            own, most = (own + 1 if end is None else own + live), most + 1
        left -= 1
        was, over = live, False
        if end is not None:
            live = live & (x != end)
            over = not bool(live.any())
        yield x, was, Generated(tokens, own)
        if over or left == 0:
            return
        with torch.inference_mode():
            step, memory = quick.step(doubled(x)[:, None], told, memory, begin=False)
        logits = step[:, -1].clone()  # a tensor like any other again: rules may differentiate


def generate(
    net: Steps,
    prompt: Int[Tensor, "b p"],
    lengths: Int[Tensor, " b"] | None = None,
    cond: Cond = NONE,
    *,
    steps: int,
    choose: Choice,
    codes: int,
    rules: Rules = (),
    end: int | None = None,
    begin: bool = True,
    chunk: int | None = None,
    guidance: float = 1.0,
    hear: Callable[[Generated], None] | None = None,
) -> Generated:
    """All that `stream` comes to. hear: is told what there is after each symbol."""
    last: Generated | None = None
    for _, _, last in stream(
        net, prompt, lengths, cond, steps=steps, choose=choose, codes=codes, rules=rules, end=end, begin=begin,
        chunk=chunk, guidance=guidance,
    ):  # fmt: skip
        if hear is not None:
            hear(last)
    return Generated(*started(prompt, lengths, steps, begin, codes, end)[:2]) if last is None else last


def both(cond: Cond, n: int, device: torch.device) -> Cond:
    """The conditions of 2n samples: first n without, then n with them."""
    null = torch.arange(2 * n, device=device) < n
    twice = each(cond, lambda c: torch.cat((c, c)))
    return {**twice, "null": null | twice["null"] if "null" in cond else null}


def rows_of(memory: Any, index: Int[Tensor, " r"]) -> Any:
    """These rows of a memory of any kind."""
    if isinstance(memory, Memory):
        return memory.rows(index)
    if isinstance(memory, Mapping):
        return each(memory, lambda t: t[index])
    if isinstance(memory, tuple):
        return tuple(rows_of(m, index) for m in memory)
    return memory if memory is None else memory[index]
