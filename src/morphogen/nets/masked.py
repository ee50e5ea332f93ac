"""MADE: a multilayer perceptron whose output i reads only the inputs before i, in an order of choice.

Every unit has a degree. Input i has the degree order(i) = 1 .. D, a hidden unit any degree; weights are kept where

    hidden from input or hidden    degree(out) ≥ degree(in)
    output i from hidden           order(i)    > degree(in)

so that the Jacobian is strictly triangular in that order and one pass gives all the conditionals.

Germain, Gregor, Murray & Larochelle 2015, "MADE: masked autoencoder for distribution estimation", arXiv:1502.03509.
Departures: hidden degrees go round in turn (paper: drawn, and drawn anew while training); no direct weights from inputs
to outputs. Conditions may be read by all, so a conditional net also has hidden units of degree 0, which read nothing
else: without them the first output would read no conditions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError, unknown
from .embed import ClassEmbedding
from .mlp import ACTIVATIONS


class Masked(Net):
    """A linear layer (B, inputs) -> (B, outputs) whose weight from i to o is kept where `keep` (outputs, inputs) is.

    gain: factor on the initial weights, which give every unit the variance 1 however many it reads; 0 starts as zero.
    """

    keep: Tensor

    def __init__(self, keep: Tensor, *, gain: float = 1.0) -> None:
        super().__init__()
        keep = keep.to(torch.get_default_dtype())
        self.register_buffer("keep", keep, persistent=False)  # a function of the constructor's arguments
        reads = keep.sum(1, keepdim=True).clamp(min=1)
        self.weight = nn.Parameter(torch.randn(keep.shape) * keep * (gain * reads**-0.5))
        self.bias = nn.Parameter(torch.zeros(len(keep)))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        y: Tensor = F.linear(x, self.weight * self.keep, self.bias)
        return y


class MADE(Net):
    """x (B, features) -> (B, features, outputs); row i of it reads x_j only where x_j comes before x_i.

    outputs:    numbers for each feature: 2 for a mean and a scale, K for the logits of K values. Integers may be given
                as x; they are read as numbers.
    widths:     of the hidden layers, one or more.
    order:      order[i] is the place of x_i, 0 first; by default as they stand.
    classes:    number of classes of `cond["label"]`; 0 reads none. `cond["null"]` as in `ClassEmbedding`.
    context:    width of `cond["context"]` (B, context), a vector that every output may read; 0 reads none.
    activation: a name in ACTIVATIONS.
    last:       factor on the last layer's initial weights; 0 makes the net start as zero.
    Raises UserError where order is no permutation, or an argument is out of range.
    """

    def __init__(
        self,
        features: int,
        outputs: int = 2,
        widths: tuple[int, ...] = (64, 64),
        *,
        order: tuple[int, ...] | None = None,
        classes: int = 0,
        context: int = 0,
        activation: str = "relu",
        last: float = 1.0,
    ) -> None:
        super().__init__()
        if features < 1 or outputs < 1 or not widths or min(widths) < 1:
            raise UserError("A MADE's features, outputs and widths must each be at least 1, with one width or more.")
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.features, self.outputs, self.activation = features, outputs, ACTIVATIONS[activation]
        self.order = permutation(order, features)
        places = torch.tensor(self.order) + 1  # (D,), degrees 1 .. D
        lowest = 0 if classes or context or features == 1 else 1
        layers, degrees = [], places
        for width in widths:
            own = lowest + torch.arange(width) % (features - lowest)
            layers.append(Masked(own[:, None] >= degrees))
            degrees = own
        self.hidden = nn.ModuleList(layers)
        self.last = Masked((places[:, None] > degrees).repeat_interleave(outputs, 0), gain=last)
        self.classes = ClassEmbedding(classes, widths[0]) if classes else None
        self.context = nn.Linear(context, widths[0], bias=False) if context else None

    def forward(
        self, x: Shaped[Tensor, "b {self.features}"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, "b {self.features} {self.outputs}"]:
        h = self.hidden[0](x.to(self.last.weight.dtype))  # (B, width)
        if self.classes is not None:
            h = h + self.classes(cond, len(x))
        if self.context is not None:
            h = h + self.context(_context(cond))
        for layer in self.hidden[1:]:
            h = layer(self.activation(h))
        out: Tensor = self.last(self.activation(h))
        return out.view(len(x), self.features, self.outputs)


def _context(cond: Mapping[str, Tensor]) -> Tensor:
    if "context" not in cond:
        given = ", ".join(repr(k) for k in cond) or "none"
        raise UserError(f"This net reads the condition 'context', but the conditions given are {given}: add it.")
    return cond["context"]


def permutation(order: tuple[int, ...] | None, features: int) -> tuple[int, ...]:
    """`order` as a tuple, by default 0 .. features - 1. Raises UserError where it is no permutation of these."""
    order = tuple(range(features)) if order is None else tuple(order)
    if sorted(order) != list(range(features)):
        shown = f"{order}" if len(order) < 12 else f"one of {len(order)} numbers"
        raise UserError(f"The order {shown} is no permutation of 0 to {features - 1}: name each place once.")
    return order
