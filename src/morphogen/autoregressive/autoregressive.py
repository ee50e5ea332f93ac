"""Autoregressive models: any causal net, any alphabet, any shape.

    log p(x | c) = Σ_i log p(x_i | x_1 .. x_{i-1}, c),    each term a softmax over the alphabet

in raster order. A causal net is `net(x, cond)` -> logits (B, *shape, codes), those of x_i a function of x_1 .. x_{i-1}
alone: a transformer, a masked perceptron, a masked convolution, a recurrence. One that can also go on from what it has
seen (`Steps`) samples each symbol once, others by a whole pass for each.

Conditions are dropped with probability `drop` (Ho & Salimans 2021, arXiv:2207.12598) so that guidance on the logits has
its unconditional half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ..checks import guidable, one_for_each
from ..core import NONE, Batch, Loss, Model, Noise, each
from ..errors import UserError
from ..nets.embed import drop as drop_conditions
from . import decode

Cond = Mapping[str, Any]


@runtime_checkable
class Steps(Protocol):
    """A causal net that can go on from what it has seen."""

    def step(self, x: Tensor, cond: Any = NONE, memory: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, n, codes) of what follows each of the symbols x (B, k), and the memory of all so far; without a
        memory the first row is of the first symbol, before any of x.
        """
        ...


class Autoregressive(Model):
    """A law of x (B, *shape), integers 0 .. codes - 1, symbol by symbol.

    net:   a causal net (see the module's head).
    shape: of one sample.
    codes: size of the alphabet.
    drop:  probability of dropping a training sample's conditions.
    Raises UserError in `loss` and `log_prob` for data of another shape, or that is no integers of the alphabet.
    """

    discrete = True

    def __init__(self, net: nn.Module, shape: tuple[int, ...], codes: int, *, drop: float = 0.1) -> None:
        super().__init__()
        if codes < 1 or not shape:
            raise UserError("An autoregressive model needs an alphabet of 1 symbol or more and the shape of a sample.")
        if not 0 <= drop <= 1:
            raise UserError(f"`drop` is the share of conditions that it trains without, not {drop}: use 0 to 1.")
        self.net, self.shape, self.codes, self.drop = net, tuple(shape), codes, drop

    def loss(self, batch: Batch) -> Loss:
        """Mean of −log p(x_i | x_<i) over samples and symbols, nats; `seen["nll"]` (B,) is each sample's sum."""
        x, cond = batch["x"], batch.get("cond") or NONE
        terms = self._terms(x, drop_conditions(cond, self.drop, Noise(batch["key"])) if cond else cond)
        return Loss(-terms.mean(), seen={"nll": -terms.detach().sum(1)})

    def log_prob(self, x: Shaped[Tensor, " b *shape"], cond: Cond | None = None) -> Float[Tensor, " b"]:
        """The exact log-probability (B,), nats."""
        one_for_each(len(x), cond or NONE, None)
        return self._terms(x, cond or NONE).sum(1)

    def _terms(self, x: Tensor, cond: Cond) -> Tensor:
        """log p(x_i | x_<i) (B, T)."""
        if x.shape[1:] != self.shape or x.is_floating_point():
            raise UserError(
                f"x is {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape[1:])} a sample, and this model is"
                f" over integers of shape {self.shape}: give codes, such as a discrete codec's."
            )
        if x.is_cpu and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.codes:
            raise UserError(
                f"x holds {int(x.min())} to {int(x.max())}, and this model's alphabet is 0 to {self.codes - 1}: build"
                " it with codes for all."
            )
        x = x.long()
        logits = self.net(x, cond)  # (B, *shape, codes)
        nll = F.cross_entropy(logits.flatten(0, -2), x.flatten(), reduction="none")
        return -nll.view_as(x).flatten(1)

    def sample(
        self,
        n: int,
        cond: Cond | None = None,
        *,
        noise: Noise | None = None,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Int[Tensor, " n *shape"]:
        """Samples (n, *shape), integers.

        cond: conditions (n, ...), such as {"label": (n,)}.
        noise: keyed noise of n samples; without it keys come from torch's default generator.
        guidance: weight of the pull towards the conditions, and away from their absence; 1 is none.
        temperature: below 1 makes likely symbols likelier; 0 takes the likeliest.
        top_k: draw among so many of the likeliest symbols only.
        Raises UserError for conditions of another number, guidance that was not trained for, and values out of range.
        """
        cond = cond or NONE
        one_for_each(n, cond, noise)
        guidable(guidance, self.drop)
        if guidance != 1 and not cond:
            raise UserError("Guidance needs a condition to be guided by: pass cond, such as space.cond(n, label=3).")
        device = next(self.net.parameters(), torch.empty(())).device
        if noise is None:
            noise = Noise(torch.randint(-(2**63), 2**63 - 1, (n,), device=device))
        if n and guidance != 1:
            cond = _both(cond, n, device)
        x, memory = torch.zeros(n, 0, dtype=torch.long, device=device), None
        for _ in range(math.prod(self.shape) if n else 0):
            known = x if guidance == 1 else torch.cat((x, x))
            logits, memory = self._next(known, cond, memory)
            if guidance != 1:
                without, given = logits.chunk(2)
                logits = decode.guided(without, given, guidance)
            if temperature != 1:
                logits = decode.temperature(logits, temperature)
            if top_k is not None:
                logits = decode.top_k(logits, top_k)
            x = torch.cat((x, noise.categorical(logits)[:, None]), 1)
        return x.view(n, *self.shape)

    def _next(self, known: Tensor, cond: Cond, memory: Any) -> tuple[Tensor, Any]:
        """Logits (B, codes) of the symbol after those known (B, i), and the memory, of all but the last known."""
        if isinstance(self.net, Steps):
            logits, memory = self.net.step(known if memory is None else known[:, -1:], cond, memory)
            return logits[:, -1], memory
        i = known.shape[1]
        whole = F.pad(known, (0, math.prod(self.shape) - i))  # what is not known yet is not read
        return self.net(whole.view(-1, *self.shape), cond).flatten(1, -2)[:, i], None


def _both(cond: Cond, n: int, device: torch.device) -> Cond:
    """The conditions of 2n samples: first n without, then n with them."""
    null = torch.arange(2 * n, device=device) < n
    twice = each(cond, lambda c: torch.cat((c, c)))
    return {**twice, "null": null | twice["null"] if "null" in cond else null}
