"""Several perceptrons of one shape side by side, each layer of all of them one batched product: twin critics."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError
from .mlp import MLP


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
        layers = list(zip(*([net.first, *net.hidden, net.last] for net in nets), strict=True))
        self.members, self.inputs, self.outputs, self.activation = members, inputs, outputs, nets[0].activation
        self.weights = nn.ParameterList(torch.stack([one.weight.detach().T for one in layer]) for layer in layers)
        self.biases = nn.ParameterList(torch.stack([one.bias.detach() for one in layer])[:, None] for layer in layers)

    def forward(self, x: Float[Tensor, "b {self.inputs}"]) -> Float[Tensor, "{self.members} b {self.outputs}"]:
        h = x.expand(self.members, *x.shape)  # (members, B, inputs)
        weights, biases = list(self.weights), list(self.biases)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = self.activation(torch.baddbmm(bias, h, weight))
        return torch.baddbmm(biases[-1], h, weights[-1])
