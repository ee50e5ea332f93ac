"""A multilayer perceptron with conditions, for points, rows and small states.

Scalar conditions are columns beside x, raw or as sinusoids; the class is a learned vector added before the first
activation, which is the same as a one-hot column block with a row for "no label".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    "relu": F.relu,
    "selu": F.selu,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


class MLP(Net):
    """x (B, inputs), conditions -> (B, outputs), through `depth` hidden layers of `width` units.

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
        self, x: Float[Tensor, "b {self.inputs}"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, "b {self.outputs}"]:
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


def scalar(cond: Mapping[str, Tensor], name: str) -> Shaped[Tensor, " b"]:
    """The scalar condition `name` (B,). Raises UserError where it is missing."""
    try:
        return cond[name]
    except KeyError:
        given = ", ".join(repr(k) for k in cond) or "none"
        raise UserError(
            f"This net reads the condition {name!r}, but the conditions given are {given}: add it."
        ) from None
