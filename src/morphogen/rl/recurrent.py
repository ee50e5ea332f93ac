r"""Memories of policies: what is seen goes through a recurrent cell, h_t = cell(x_t, h_{t−1}), h = 0 at a beginning.

    GRU     z = σ(W x + U h),  r = σ(…),  h ← (1 − z) tanh(W x + r U h) + z h         Cho et al. 2014, arXiv:1406.1078
    LSTM    c ← f c + i tanh(…),  h ← o tanh(c)                             Hochreiter & Schmidhuber 1997

A stretch is replayed from the memory that it began with, which is forgotten within it where an episode begins; so the
gradient goes back to the beginning of the stretch, and no further (Mnih et al. 2016, arXiv:1602.01783).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core import Net
from .rollouts import forgotten


@runtime_checkable
class Core(Protocol):
    """What a policy remembers of x (B, T, ...): h (B, T, width), and its memory afterwards.

    memory: a tensor (B, ...) or a mapping of them, zeros at the beginning of an episode (None: all are zeros). begins
    (B, T): where an episode begins; None: nowhere within.
    """

    width: int

    def __call__(self, x: Tensor, memory: Any = None, begins: Tensor | None = None) -> tuple[Tensor, Any]: ...


class GRU(Net):
    """Gated recurrent units: x (B, T, inputs) -> h (B, T, width). The memory is h (B, width)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width, self.cell = width, nn.GRUCell(inputs, width)

    def forward(self, x: Tensor, memory: Any = None, begins: Tensor | None = None) -> tuple[Tensor, Any]:
        h = x.new_zeros(len(x), self.width) if memory is None else memory
        said = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h if begins is None else forgotten(h, begins[:, t]))
            said.append(h)
        return torch.stack(said, 1), h


class LSTM(Net):
    """Long short-term memory: x (B, T, inputs) -> h (B, T, width). The memory is {"h": (B, width), "c": (B, width)}."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width, self.cell = width, nn.LSTMCell(inputs, width)

    def forward(self, x: Tensor, memory: Any = None, begins: Tensor | None = None) -> tuple[Tensor, Any]:
        zero = x.new_zeros(len(x), self.width)
        held = {"h": zero, "c": zero} if memory is None else memory
        said = []
        for t in range(x.shape[1]):
            held = held if begins is None else forgotten(held, begins[:, t])
            h, c = self.cell(x[:, t], (held["h"], held["c"]))
            held = {"h": h, "c": c}
            said.append(h)
        return torch.stack(said, 1), held
