"""Recurrent nets over sequences of vectors: the plain one, LSTM and GRU.

    RNN     h' = tanh(a),                                          a = W x + b + U h + c
    LSTM    i, f, g, o of a:    s' = σ(f) s + σ(i) tanh(g),        h' = σ(o) tanh(s')
    GRU     r, z of σ(a):       n = tanh(W_n x + b_n + r (U_n h + c_n)),   h' = (1 − z) n + z h

Elman 1990, "Finding structure in time"; Hochreiter & Schmidhuber 1997, "Long short-term memory", with the forget gate
of Gers, Schmidhuber & Cummins 2000; Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder",
arXiv:1406.1078. Departures: the GRU's reset gate acts on U_n h + c_n and not on h, and there are two biases, both as in
cuDNN and torch.nn, whose names and order of the weights these are too.

A memory is one tensor (B, size), and zeros are the beginning: cutting it off (`detach`) truncates back-propagation. A
whole sequence without lengths or beginnings inside goes through torch's fused kernels, anything else through the
formulas above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError
from .attention import autocast_dtype

States = tuple[Tensor, ...]  # h (B, width) first, then what else a layer remembers


class Recurrence(Net, ABC):
    """x (B, T, inputs) -> y (B, T, width) and the memory (B, size) after it, layer on layer.

    inputs, width: of a vector in and out. depth: layers. dropout: of what goes from one layer to the next, in training.
    """

    gates: ClassVar[int]  # vectors of `width` in W x
    states: ClassVar[int] = 1  # vectors of `width` that a layer remembers
    kernel: ClassVar[Callable[..., tuple[Tensor, ...]]]

    def __init__(self, inputs: int, width: int, depth: int = 1, *, dropout: float = 0.0) -> None:
        super().__init__()
        if min(inputs, width, depth) < 1:
            raise UserError("A recurrence's inputs, width and depth must each be at least 1.")
        if not 0 <= dropout < 1:
            raise UserError(f"A dropout of {dropout} leaves nothing or makes no sense: use 0 up to, not including, 1.")
        self.inputs, self.width, self.depth, self.dropout = inputs, width, depth, dropout
        for k in range(depth):
            for name, *shape in (
                ("weight_ih", inputs if k == 0 else width),
                ("weight_hh", width),
                ("bias_ih",),
                ("bias_hh",),
            ):
                weight = torch.empty(self.gates * width, *shape).uniform_(-(width**-0.5), width**-0.5)
                self.register_parameter(f"{name}_l{k}", nn.Parameter(weight))

    @property
    def size(self) -> int:
        """Numbers in a memory."""
        return self.depth * self.states * self.width

    @abstractmethod
    def next(self, a: Tensor, states: States, u: Tensor, c: Tensor) -> States:
        """The states after one more input, whose part of the gates is a = W x + b (B, gates · width)."""

    def forward(
        self,
        x: Float[Tensor, "b t {self.inputs}"],
        memory: Float[Tensor, "b {self.size}"] | None = None,
        *,
        lengths: Int[Tensor, " b"] | None = None,
        begins: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t {self.width}"], Float[Tensor, "b {self.size}"]]:
        """memory: of what came before x; None is zeros, the beginning. lengths: only the first so many of a row are
        there, and the memory is that after them. begins: places before which all is forgotten (an episode begins).
        """
        if memory is None:
            memory = x.new_zeros(len(x), self.size)
        before = memory.view(len(x), self.depth, self.states, self.width).unbind(1)
        after: list[Tensor] = []
        for k in range(self.depth):
            if k and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            x, states = self._layer(k, x, before[k].unbind(1), lengths, begins)
            after += states
        return x, torch.stack(after, 1).flatten(1)

    def step(
        self, x: Float[Tensor, "b {self.inputs}"], memory: Float[Tensor, "b {self.size}"] | None = None
    ) -> tuple[Float[Tensor, "b {self.width}"], Float[Tensor, "b {self.size}"]]:
        """One more input, and the memory with it: what a policy calls."""
        y, memory = self(x[:, None], memory)
        return y[:, 0], memory

    def _layer(
        self, k: int, x: Tensor, states: States, lengths: Tensor | None, begins: Tensor | None
    ) -> tuple[Tensor, States]:
        weights = [self.get_parameter(f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        if x.shape[1] > 1 and lengths is None and begins is None and not autocast_dtype(x.device):
            first = tuple(s[None].contiguous() for s in states)
            hx = first if self.states > 1 else first[0]
            y, *last = type(self).kernel(x, hx, weights, True, 1, 0.0, self.training, False, True)
            return y, tuple(s[0] for s in last)
        w, u, b, c = weights
        a, outputs = F.linear(x, w, b), []
        for t in range(x.shape[1]):
            if begins is not None:
                states = tuple(s.masked_fill(begins[:, t, None], 0.0) for s in states)
            after = self.next(a[:, t], states, u, c)
            if lengths is not None:
                there = (t < lengths)[:, None]
                after = tuple(torch.where(there, new, old) for new, old in zip(after, states, strict=True))
            states = after
            outputs.append(states[0])
        return torch.stack(outputs, 1) if outputs else x.new_zeros(len(x), 0, self.width), states


class RNN(Recurrence):
    """The plain recurrence with tanh: see `Recurrence` and the module's head."""

    gates = 1
    kernel = torch.rnn_tanh

    def next(self, a: Tensor, states: States, u: Tensor, c: Tensor) -> States:
        """h' = tanh(a + U h + c)."""
        return (torch.tanh(a + F.linear(states[0], u, c)),)


class LSTM(Recurrence):
    """Long short-term memory: see `Recurrence` and the module's head."""

    gates, states = 4, 2
    kernel = torch.lstm

    def next(self, a: Tensor, states: States, u: Tensor, c: Tensor) -> States:
        """s' = σ(f) s + σ(i) tanh(g), h' = σ(o) tanh(s')."""
        h, s = states
        i, f, g, o = (a + F.linear(h, u, c)).chunk(4, -1)
        s = f.sigmoid() * s + i.sigmoid() * g.tanh()
        return o.sigmoid() * s.tanh(), s


class GRU(Recurrence):
    """Gated recurrent units: see `Recurrence` and the module's head."""

    gates = 3
    kernel = torch.gru

    def next(self, a: Tensor, states: States, u: Tensor, c: Tensor) -> States:
        """n = tanh(a_n + r (U_n h + c_n)), h' = (1 − z) n + z h."""
        (h,) = states
        (r, z, n), (ur, uz, un) = a.chunk(3, -1), F.linear(h, u, c).chunk(3, -1)
        r, z = (r + ur).sigmoid(), (z + uz).sigmoid()
        n = torch.tanh(n + r * un)
        return (n + z * (h - n),)


class Bidirectional(Net):
    """x (B, T, inputs) -> (B, T, width of both): one recurrence from the left beside one from the right.

    Schuster & Paliwal 1997, "Bidirectional recurrent neural networks". Several layers are several of these in a row.
    """

    def __init__(self, left: Recurrence, right: Recurrence) -> None:
        super().__init__()
        if left.inputs != right.inputs:
            raise UserError(f"The two directions read {left.inputs} and {right.inputs} numbers: let both read as many.")
        self.left, self.right, self.inputs, self.width = left, right, left.inputs, left.width + right.width

    def forward(
        self, x: Float[Tensor, "b t {self.inputs}"], *, lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b t {self.width}"]:
        """lengths: of rows that are padded at the right; what stands there is not read."""
        back = reversal(x.shape[1], lengths, x.device) if lengths is not None else None
        turned = x.flip(1) if back is None else x.gather(1, back[..., None].expand_as(x))
        left, right = self.left(x)[0], self.right(turned)[0]
        right = right.flip(1) if back is None else right.gather(1, back[..., None].expand_as(right))
        return torch.cat((left, right), -1)


def reversal(t: int, lengths: Int[Tensor, " b"], device: torch.device) -> Int[Tensor, "b {t}"]:
    """Places that turn each row's first `lengths` round and leave the rest where they are; its own inverse."""
    place = torch.arange(t, device=device)
    turned = lengths[:, None] - 1 - place
    return torch.where(turned >= 0, turned, place)
