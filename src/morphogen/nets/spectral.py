r"""Spectral normalisation: every weight of a net divided by its largest singular value.

    W -> W / σ(W),   σ(W) ≈ uᵀ W v,   v ← Wᵀu / |Wᵀu|,   u ← W v / |W v|     (a convolution's W: outputs x all else)

Miyato, Kataoka, Koyama & Yoshida 2018, "Spectral normalization for generative adversarial networks", arXiv:1802.05957.
Departure: the power iteration is taken between steps (`iterate`), so that a loss is a function of weights and batch; u
and v are saved with the weights.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core import Net
from ..errors import UserError
from ..spec import remembered

N = TypeVar("N", bound=Net)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Spectral(nn.Module):
    """The weight (outputs, ...) divided by its largest singular value, as u and v tell it."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", torch.randn(matrix.shape[0]).to(matrix))
        self.register_buffer("v", torch.randn(matrix.shape[1]).to(matrix))
        self.iterate(matrix, 15)

    @torch.no_grad()
    def iterate(self, weight: Tensor, times: int = 1) -> None:
        """Power iterations on the weight as it is."""
        matrix = weight.detach().flatten(1)
        for _ in range(times):
            self.v.copy_(nn.functional.normalize(matrix.T @ self.u, dim=0, eps=1e-12))
            self.u.copy_(nn.functional.normalize(matrix @ self.v, dim=0, eps=1e-12))

    def sigma(self, weight: Tensor) -> Tensor:
        """uᵀ W v."""
        # copies: `iterate` writes to u and v while graphs of the loss may still be alive
        said: Tensor = self.u.clone() @ (weight.flatten(1) @ self.v.clone())
        return said

    def forward(self, weight: Tensor) -> Tensor:
        return weight / self.sigma(weight)


@remembered
def spectrally_normalised(net: N) -> N:
    """`net` with every linear layer and convolution normalised. Raises UserError for a net without any."""
    layers = {name: m for name, m in net.named_modules() if isinstance(m, LAYERS)}
    if not layers:
        raise UserError(f"{type(net).__name__} has no linear layer and no convolution to normalise.")
    if zero := [name for name, layer in layers.items() if not layer.weight.any()]:
        raise UserError(f"The layer {zero[0]!r} of this {type(net).__name__} starts at zero, which cannot be divided.")
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", Spectral(layer.weight), unsafe=True)
    return net


def iterate(net: nn.Module) -> None:
    """One power iteration for each normalised weight of the net, after its step."""
    for module in net.modules():
        if parametrize.is_parametrized(module, "weight"):
            kept: Any = module.parametrizations["weight"]  # type: ignore[index]
            for change in kept:
                if isinstance(change, Spectral):
                    change.iterate(kept.original)
