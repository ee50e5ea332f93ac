"""Multilayer perceptrons with conditions, for points, rows and small states; pictures are read as rows.

`MLP` is the plain one. `ResidualMLP` adds to a stream of `width` units, block by block (He et al. 2016,
arXiv:1603.05027, in the form of the transformer's feed-forward part):

    h = W x + e,    h = h + W_2 silu(W_1 norm(h)) …,    y = W silu(norm(h)),    norm a layer norm, W_2 = 0 at the start

Scalar conditions are columns beside x, raw or as sinusoids; the class is a learned vector added before the first
activation, which is the same as a one-hot column block with a row for "no label".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError, unknown
from .embed import ClassEmbedding, Sinusoidal, dense

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "selu": F.selu,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


class MLP(Net):
    """x (B, ...) of `inputs` numbers, conditions -> (B, outputs), through `depth` hidden layers of `width` units.

    scalars:    names of the scalar conditions (B,) it reads, such as ("t",) or ("t", "r"); () for none. They must be
                there at each call.
    sinusoid:   width of the sinusoid that each scalar becomes; 0 puts the bare number beside x (of order 1, then).
    classes:    number of classes of `cond["label"]`; 0 reads none. `cond["null"]` as in `ClassEmbedding`.
    activation: a name in ACTIVATIONS.
    last:       factor on the last layer's initial weights; 0 makes the net start as zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 256,
        depth: int = 3,
        *,
        scalars: tuple[str, ...] = (),
        sinusoid: int = 0,
        classes: int = 0,
        activation: str = "silu",
        last: float = 1.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"An MLP with {depth} hidden layers is no MLP: use a depth of at least 1.")
        if width < 1:
            raise UserError(f"An MLP of width {width} has no units: use 1 or more.")
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.inputs, self.outputs, self.scalars = inputs, outputs, scalars
        self.activation = ACTIVATIONS[activation]
        self.sinusoid = Sinusoidal(sinusoid) if sinusoid else None
        self.classes = ClassEmbedding(classes, width) if classes else None
        told = len(scalars) * (sinusoid or 1)
        self.first = dense(inputs + told, width)
        # x by itself and the conditions by themselves begin at unit variance: one law for all the columns would hide a
        # point of the plane behind the 64 of its time.
        for columns in self.first.weight.split((inputs, told), 1):
            nn.init.normal_(columns, std=max(1, columns.shape[1]) ** -0.5)
        self.hidden = nn.ModuleList(dense(width, width) for _ in range(depth - 1))
        self.last = dense(width, outputs, gain=last)

    def forward(
        self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, "b {self.outputs}"]:
        x = x.flatten(1)
        if self.scalars:
            x = torch.cat((x, *(self._column(name, cond, x) for name in self.scalars)), 1)
        h = self.first(x)  # (B, width)
        if self.classes is not None:
            h = h + self.classes(cond, h.shape[0])
        h = self.activation(h)
        for layer in self.hidden:
            h = self.activation(layer(h))
        out: Tensor = self.last(h)
        return out

    def _column(self, name: str, cond: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The condition `name` as columns (B, sinusoid or 1)."""
        value = scalar(cond, name)
        column = value[:, None] if self.sinusoid is None else self.sinusoid(value)
        return column.to(x.dtype)


class ResidualBlock(Net):
    """h + W_2 silu(W_1 norm(h)) of h (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), dense(width, width), dense(width, width, gain=0.0)

    def forward(self, h: Float[Tensor, "b w"]) -> Float[Tensor, "b w"]:
        out: Tensor = h + self.outer(F.silu(self.inner(self.norm(h))))
        return out


class ResidualMLP(Net):
    """x (B, ...) of `inputs` numbers, conditions -> (B, outputs), through `depth` residual blocks of `width` units.

    classes: number of classes of `cond["label"]`; 0 reads none. last: factor on the last layer's initial weights.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int = 512, depth: int = 2, *, classes: int = 0, last: float = 1.0
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1:
            raise UserError(f"A ResidualMLP of depth {depth} and width {width} is empty: use at least 1 of each.")
        self.outputs = outputs
        self.first = dense(inputs, width)
        self.classes = ClassEmbedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = dense(width, outputs, gain=last)

    def forward(
        self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, "b {self.outputs}"]:
        h = self.first(x.flatten(1))  # (B, width)
        if self.classes is not None:
            h = h + self.classes(cond, len(h))
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.last(F.silu(self.norm(h)))
        return out


def scalar(cond: Mapping[str, Tensor], name: str) -> Shaped[Tensor, " b"]:
    """The scalar condition `name` (B,). Raises UserError where it is missing."""
    try:
        return cond[name]
    except KeyError:
        given = ", ".join(repr(k) for k in cond) or "none"
        raise UserError(
            f"This net reads the condition {name!r}, but the conditions given are {given}: add it."
        ) from None
