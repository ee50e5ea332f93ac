"""Several perceptrons of one shape side by side, each layer of all of them one batched product: twin critics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError
from .mlp import MLP


class Layer(Net):
    """h (members, B, inputs) -> (members, B, outputs): as many linear layers, which begin as those given."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([one.weight.detach().T for one in layers]))  # (members, inputs, outputs)
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in layers])[:, None])
        self.single = self.weight.shape[2] == 1

    def forward(self, h: Tensor) -> Tensor:
        if self.single:  # a batched product with one column takes ten times as long
            return (h * self.weight.transpose(1, 2)).sum(-1, keepdim=True) + self.bias
        return torch.baddbmm(self.bias, h, self.weight)


class Ensemble(Net):
    """x (B, inputs) -> (members, B, outputs): what `members` MLPs say of it, which begin as MLPs do.

    width, depth, activation, last: as of `MLP`. Raises UserError where members is less than 1.
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        outputs: int = 1,
        width: int = 256,
        depth: int = 2,
        *,
        activation: str = "relu",
        last: float = 1.0,
    ) -> None:
        super().__init__()
        if members < 1:
            raise UserError(f"An Ensemble of {members} says nothing: give 1 or more members.")
        nets = [MLP(inputs, outputs, width, depth, activation=activation, last=last) for _ in range(members)]
        self.members, self.inputs, self.outputs, self.activation = members, inputs, outputs, nets[0].activation
        hidden = zip(*([net.first, *net.hidden] for net in nets), strict=True)
        self.hidden = nn.ModuleList(Layer(layers) for layers in hidden)
        self.last = Layer([net.last for net in nets])

    def forward(self, x: Float[Tensor, "b {self.inputs}"]) -> Float[Tensor, "{self.members} b {self.outputs}"]:
        h = x.expand(self.members, *x.shape)  # (members, B, inputs)
        for layer in self.hidden:
            h = self.activation(layer(h))
        out: Tensor = self.last(h)
        return out
