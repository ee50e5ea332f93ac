"""Autoregressive models: any causal net, any alphabet, any shape.

    log p(x | c) = Σ_i log p(x_i | x_1 .. x_{i-1}, c),    each term a softmax over the alphabet

in raster order. A causal net is `net(x, cond)` -> logits (B, *shape, codes), those of x_i a function of x_1 .. x_{i-1}
alone: a transformer, a masked perceptron, a masked convolution, a recurrence. One that can also go on from what it has
seen (`Steps`) samples each symbol once, others by a whole pass for each.

Sequences (T,) may be shorter than the shape. With an `end` the law is over sequences that end with this symbol, or are
cut at T; what follows an end counts for nothing. Where `lengths` (B,) says how many symbols of a row are there, all of
these count, ends among them: a row may be a window of documents that follow one another. In training `scored` (B, T)
says which of them the loss is over; its mean is over these symbols, however a batch is cut into pieces.

Conditions are dropped with probability `drop` (Ho & Salimans 2021, arXiv:2207.12598) so that guidance on the logits has
its unconditional half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from ..checks import guidable, one_for_each
from ..core import NONE, Batch, Loss, Model, Noise
from ..errors import UserError
from ..nets.embed import drop as drop_conditions
from . import decode
from .generate import Generated, Passes, Steps, generate
from .nll import Hidden, weighted_nll

LARGE = 4096  # symbols of an alphabet whose logits are not all made at once in training
Cond = Mapping[str, Any]


class Autoregressive(Model):
    """A law of x (B, *shape), integers 0 .. codes - 1, symbol by symbol.

    net:   a causal net (see the module's head).
    shape: of one sample; the longest, where it is (T,).
    codes: size of the alphabet.
    drop:  probability of dropping a training sample's conditions.
    end:   the symbol that ends a sequence; None: all have the length that they have.
    Raises UserError in `loss` and `log_prob` for data of another shape, or that is no integers of the alphabet, and for
    lengths that are none of it.
    """

    discrete = True

    def __init__(
        self, net: nn.Module, shape: tuple[int, ...], codes: int, *, drop: float = 0.1, end: int | None = None
    ) -> None:
        super().__init__()
        if codes < 1 or not shape:
            raise UserError("An autoregressive model needs an alphabet of 1 symbol or more and the shape of a sample.")
        if not 0 <= drop <= 1:
            raise UserError(f"`drop` is the share of conditions that it trains without, not {drop}: use 0 to 1.")
        if end is not None and (len(shape) != 1 or not 0 <= end < codes):
            raise UserError(f"The end {end} must be a symbol of the alphabet, 0 to {codes - 1}, of sequences (T,).")
        self.net, self.shape, self.codes, self.drop, self.end = net, tuple(shape), codes, drop, end

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The symbols that the loss is a mean over, where rows differ in them; else the samples."""
        x, there = self._read(batch)
        return {"": float(len(x) if there is None else there.sum())}

    def loss(self, batch: Batch) -> Loss:
        """Mean of −log p(x_i | x_<i) over the symbols of all samples, nats; `seen["nll"]` (B,) is each sample's sum."""
        (x, there), cond = self._read(batch), batch.get("cond") or NONE
        cond = drop_conditions(cond, self.drop, Noise(batch["key"])) if cond else cond
        if self.codes >= LARGE and isinstance(self.net, Hidden):
            return self._in_pieces(x, cond, there)
        terms = self._terms(x, cond)
        if there is None:
            return Loss(-terms.mean(), seen={"nll": -terms.detach().sum(1)})
        terms = torch.where(there, terms, 0.0)
        return Loss(-terms.sum() / there.sum().clamp(min=1), seen={"nll": -terms.detach().sum(1)})

    def _in_pieces(self, x: Tensor, cond: Cond, there: Tensor | None) -> Loss:
        """The loss of a large alphabet, whose logits are never all there."""
        x = x.flatten(1)
        share = torch.full(x.shape, 1 / max(1, x.numel()), device=x.device)
        if there is not None:
            share = there / there.sum().clamp(min=1)
        assert isinstance(self.net, Hidden)
        h = self.net.hidden(x, cond).flatten(0, 1)
        value, nll = weighted_nll(h, self.net.last, x.flatten(), share.to(h.dtype).flatten())
        nll = nll.view_as(x)
        return Loss(value, seen={"nll": (nll if there is None else torch.where(there, nll, 0.0)).sum(1)})

    def log_prob(
        self, x: Shaped[Tensor, " b *shape"], cond: Cond | None = None, lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, " b"]:
        """The exact log-probability (B,), nats, of each row up to its end, or of its first `lengths` symbols."""
        x, there = self._read({"x": x, "lengths": lengths})
        one_for_each(len(x), cond or NONE, None)
        terms = self._terms(x, cond or NONE)
        return (terms if there is None else torch.where(there, terms, 0.0)).sum(1)

    def lengths(self, x: Int[Tensor, "b t"]) -> Int[Tensor, " b"]:
        """How many symbols each row has, its end included; all of them where nothing ends."""
        if self.end is None:
            return torch.full((len(x),), x.shape[1], device=x.device)
        after = (x == self.end).cumsum(1) - (x == self.end).long() > 0  # an end stands before it
        return (~after).sum(1)

    def _read(self, batch: Batch) -> tuple[Tensor, Bool[Tensor, "b t"] | None]:
        """The data, checked, as int64, and which symbols of it count (B, T); None: all."""
        x, lengths, scored = self._checked(batch["x"]), batch.get("lengths"), batch.get("scored")
        if scored is not None and scored.shape != x.shape:
            raise UserError(
                f"`scored` is {tuple(scored.shape)} beside an x of {tuple(x.shape)}: say it of each symbol."
            )
        if lengths is not None:
            fits = x.ndim == 2 and lengths.shape == (len(x),) and not lengths.is_floating_point()
            if not fits or (x.is_cpu and len(x) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]):
                raise UserError(
                    f"`lengths` of shape {tuple(lengths.shape)} beside an x of {tuple(x.shape)} say nothing: give each"
                    " sequence (T,) one, a whole number from 0 to T."
                )
        elif self.end is not None:
            lengths = self.lengths(x)
        if lengths is None:
            return x, scored
        there: Tensor = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return x, there if scored is None else there & scored

    def _terms(self, x: Tensor, cond: Cond) -> Tensor:
        """log p(x_i | x_<i) (B, T)."""
        logits = self.net(x, cond)  # (B, *shape, codes)
        nll = F.cross_entropy(logits.flatten(0, -2), x.flatten(), reduction="none")
        return -nll.view_as(x).flatten(1)

    def _checked(self, x: Tensor) -> Tensor:
        """The data, as int64. Raises UserError for what is none of this model's."""
        fits = x.shape[1:] == self.shape or (len(self.shape) == 1 and x.ndim == 2 and x.shape[1] <= self.shape[0])
        if not fits or x.is_floating_point():
            raise UserError(
                f"x is {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape[1:])} a sample, and this model is"
                f" over integers of shape {self.shape}: give codes, such as a discrete codec's."
            )
        if x.is_cpu and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.codes:
            raise UserError(
                f"x holds {int(x.min())} to {int(x.max())}, and this model's alphabet is 0 to {self.codes - 1}: build"
                " it with codes for all."
            )
        return x.long()

    def sample(
        self,
        n: int,
        cond: Cond | None = None,
        *,
        noise: Noise | None = None,
        prompt: Int[Tensor, " p"] | None = None,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical: float | None = None,
        repetition: float = 1.0,
    ) -> Int[Tensor, " n *shape"]:
        """Samples (n, *shape), integers; after an end come ends, and `lengths` counts what is before.

        cond: conditions (n, ...), such as {"label": (n,)}.
        noise: keyed noise of n samples; without it keys come from torch's default generator.
        prompt: symbols that all begin with.
        guidance: weight of the pull towards the conditions, and away from their absence; 1 is none.
        temperature: below 1 makes likely symbols likelier; 0 takes the likeliest.
        top_k: draw among so many of the likeliest symbols only.
        top_p: draw among the likeliest symbols until their probabilities reach this.
        min_p: draw among symbols at least so many times as likely as the likeliest.
        typical: draw among the symbols nearest to the entropy until their probabilities reach this.
        repetition: above 1 makes symbols that were there less likely.
        Raises UserError for conditions of another number, guidance that was not trained for, values out of range, and a
        prompt that is longer than a sample.
        """
        size = math.prod(self.shape)
        device = next(self.net.parameters(), torch.empty(())).device
        begun = torch.zeros(0, dtype=torch.long) if prompt is None else prompt
        if n < 0 or begun.ndim != 1 or len(begun) > size:
            raise UserError(
                f"{n} samples of {size} symbols that begin with {tuple(begun.shape)} of them cannot be drawn: give 0 or"
                f" more samples, and a prompt (p,) of {size} at the most."
            )
        made = decode.rules(repetition_penalty=repetition, tau=temperature, k=top_k, p=top_p, m=min_p, mass=typical)
        drawn = self.generate(begun.to(device).expand(n, -1), cond=cond, rules=made, noise=noise, guidance=guidance)
        return drawn.tokens.view(n, *self.shape)

    def generate(
        self,
        prompt: Int[Tensor, "b p"],
        lengths: Int[Tensor, " b"] | None = None,
        cond: Cond | None = None,
        *,
        steps: int | None = None,
        rules: decode.Rules = (),
        noise: Noise | None = None,
        guidance: float = 1.0,
        begin: bool = True,
        chunk: int | None = None,
        hear: Callable[[Generated], None] | None = None,
    ) -> Generated:
        """Go on from prompts (B, P), of which the first `lengths` symbols of each row are there.

        steps: the most symbols that may come; as many as the shape has room for if None. rules: of `decode`. noise: of
        B keys; without it they come from torch's default generator. begin: whether what begins a sequence comes before
        the prompts. chunk: of reading them. hear: is told what there is after each symbol. Others: see `sample`. Raises
        UserError for conditions of another number and guidance that was not trained for.
        """
        cond, n = cond or NONE, len(prompt)
        one_for_each(n, cond, noise)
        guidable(guidance, self.drop)
        if guidance != 1 and not cond:
            raise UserError(
                "Guidance needs a class to be guided to, and none is asked for: give one (--label NAME, or"
                " cond=space.cond(n, label=3)), or leave the guidance at 1."
            )
        if noise is None:
            noise = Noise.fresh(n, prompt.device)
        most = max(0, math.prod(self.shape) - prompt.shape[-1]) if steps is None else steps
        return generate(
            self.steps,
            prompt,
            lengths,
            cond,
            steps=most,
            choose=noise.categorical,
            codes=self.codes,
            rules=rules,
            end=self.end,
            begin=begin,
            chunk=chunk,
            guidance=guidance,
            hear=hear,
        )

    @property
    def steps(self) -> Steps:
        """The net as one that goes on from what it has seen."""
        return self.net if isinstance(self.net, Steps) else Passes(self.net, self.shape)
