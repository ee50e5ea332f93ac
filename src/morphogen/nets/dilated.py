"""Causal convolutions over sequences of vectors: WaveNet and the temporal convolutional network.

    y_t = Σ_j W_j x_{t − j d} + b,  j = 0 .. k − 1            dilation d, kernel k; before the beginning are zeros

    WaveNet layer   z = tanh(V x) σ(G x),  x' = x + R z,  the skips Σ S z go through relu, 1×1, relu, 1×1
    TCN block       y = relu(x' + dropout(relu(conv(dropout(relu(conv(x)))))))      x' = x, or 1×1 where widths differ

van den Oord et al. 2016, "WaveNet", arXiv:1609.03499; Bai, Kolter & Koltun 2018, "An empirical evaluation of generic
convolutional and recurrent networks for sequence modeling", arXiv:1803.01271. Departures: no weight normalisation in
the TCN; the WaveNet's last 1×1 belongs to the net that has an alphabet (`nets.causal`).

A memory holds the last (k − 1) d inputs of each convolution, and zeros are the beginning, as in `nets.recurrent`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError

Past = dict[str, Any]  # names of convolutions to (B, C, reach)


class CausalConvolution(Net):
    """x (B, inputs, T) -> (B, outputs, T): y_t reads x_t and `kernel` − 1 before it, each `dilation` apart.

    gain: on the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 2, dilation: int = 1, *, gain: float = 1.0) -> None:
        super().__init__()
        if min(inputs, outputs, kernel, dilation) < 1:
            raise UserError("A causal convolution's inputs, outputs, kernel and dilation must each be at least 1.")
        self.reach, self.dilation = (kernel - 1) * dilation, dilation
        bound = gain * (3 / (inputs * kernel)) ** 0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self,
        x: Float[Tensor, "b i t"],
        past: Float[Tensor, "b i {self.reach}"] | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b o t"], Float[Tensor, "b i {self.reach}"]]:
        """past: the inputs before x, None for zeros. lengths: how many of x are there, for what is said to be past."""
        whole = F.pad(x, (self.reach, 0)) if past is None else torch.cat((past.to(x.dtype), x), 2)
        y = F.conv1d(whole, self.weight, self.bias, dilation=self.dilation)
        if lengths is None:
            return y, whole[..., x.shape[2] :]
        last = lengths[:, None] + torch.arange(self.reach, device=x.device)  # (B, reach)
        return y, whole.gather(2, last[:, None].expand(-1, x.shape[1], -1))


class Dilated(Net, ABC):
    """x (B, T, inputs) -> y (B, T, width) and the memory after it; y_t reads the last `field` inputs alone."""

    inputs: int
    width: int

    @property
    def convolutions(self) -> Mapping[str, CausalConvolution]:
        """Those whose reach adds up, by name."""
        return {n: m for n, m in self.named_modules() if isinstance(m, CausalConvolution) and m.reach}

    @property
    def field(self) -> int:
        """The receptive field: 1 + Σ (k − 1) d."""
        return 1 + sum(c.reach for c in self.convolutions.values())

    def forward(
        self,
        x: Float[Tensor, "b t {self.inputs}"],
        memory: Past | None = None,
        *,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b t {self.width}"], Past]:
        """memory: of what came before x; None, or zeros, is the beginning. lengths: only so many of a row are there."""
        after: Past = {}

        def convolve(name: str, h: Tensor) -> Tensor:
            y: Tensor
            y, after[name] = self.get_submodule(name)(h, None if memory is None else memory[name], lengths)
            return y

        y: Tensor = self.run(x.mT, convolve).mT
        return y, after

    @abstractmethod
    def run(self, x: Tensor, convolve: Any) -> Tensor:
        """(B, inputs, T) -> (B, width, T), each convolution through `convolve(name, h)`."""


class WaveNet(Dilated):
    """Gated dilated convolutions in `cycles` of dilations 1, 2, 4, … `largest`, their skips summed.

    inputs: of a vector. width: of the stream and of what comes out. skip: of the skips; the width by default.
    """

    def __init__(
        self, inputs: int, width: int, *, kernel: int = 2, largest: int = 512, cycles: int = 1, skip: int | None = None
    ) -> None:
        super().__init__()
        if largest < 1 or largest & (largest - 1) or cycles < 1 or kernel < 2:
            raise UserError("A WaveNet's dilations double: largest must be a power of 2, cycles ≥ 1 and kernel ≥ 2.")
        self.inputs, self.width = inputs, width
        dilations = [2**i for i in range(largest.bit_length())] * cycles
        skip = width if skip is None else skip
        self.first = nn.Conv1d(inputs, width, 1)
        self.gates = nn.ModuleList(CausalConvolution(width, 2 * width, kernel, d) for d in dilations)
        self.after = nn.ModuleList(nn.Conv1d(width, width + skip, 1) for _ in dilations)
        self.last = nn.Conv1d(skip, width, 1)
        self.split = (width, skip)

    def run(self, x: Tensor, convolve: Any) -> Tensor:
        """See `Dilated.run`."""
        h = self.first(x)
        skips: Tensor | float = 0.0
        for i, after in enumerate(self.after):
            value, gate = convolve(f"gates.{i}", h).chunk(2, 1)
            more, skip = after(value.tanh() * gate.sigmoid()).split(self.split, 1)
            h, skips = h + more, skips + skip
        assert isinstance(skips, Tensor)
        y: Tensor = self.last(F.relu(skips * len(self.after) ** -0.5))
        return F.relu(y)


class TCN(Dilated):
    """`depth` residual blocks of two convolutions each, of dilation 1, 2, 4, …

    inputs: of a vector. width: of the hidden ones and of what comes out. dropout: of whole channels, in training.
    """

    def __init__(self, inputs: int, width: int, *, depth: int = 4, kernel: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        if depth < 1 or kernel < 2:
            raise UserError("A TCN needs a depth of 1 or more and a kernel of 2 or more.")
        self.inputs, self.width, self.dropout = inputs, width, dropout
        self.one = nn.ModuleList(
            CausalConvolution(inputs if i == 0 else width, width, kernel, 2**i, gain=2**0.5) for i in range(depth)
        )
        self.two = nn.ModuleList(CausalConvolution(width, width, kernel, 2**i, gain=2**0.5) for i in range(depth))
        self.across = nn.Conv1d(inputs, width, 1) if inputs != width else None

    def run(self, x: Tensor, convolve: Any) -> Tensor:
        """See `Dilated.run`."""
        for i in range(len(self.one)):
            h = F.dropout1d(F.relu(convolve(f"one.{i}", x)), self.dropout, self.training)
            h = F.dropout1d(F.relu(convolve(f"two.{i}", h)), self.dropout, self.training)
            x = F.relu((self.across(x) if i == 0 and self.across is not None else x) + h)
        return x
