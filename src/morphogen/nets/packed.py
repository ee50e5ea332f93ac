"""Linear layers laid out for the products of few rows on a CPU: what makes decoding quicker.

oneDNN multiplies from weights in blocks of its own, which a few rows do not repay; a net that is asked hundreds of
times can have them laid out once. The numbers are those of `torch.nn.Linear` but for the order of sums.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


class Packed(nn.Module):
    """A linear layer for about so many rows, not differentiable."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.bias, self.in_features, self.out_features = linear.bias, linear.in_features, linear.out_features
        self.weight = linear.weight
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


def packable(net: nn.Module) -> bool:
    """Whether packing can help: weights in single precision on a CPU, and oneDNN there."""
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Linear)]
    right = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
    return bool(weights) and right and torch.backends.mkldnn.is_available()


def packed(net: N, rows: int) -> N:
    """A copy of a net that shares its weights, with every linear layer packed for about so many rows."""
    shared: dict[int, object] = {id(t): t for t in (*net.parameters(), *net.buffers())}
    quick = copy.deepcopy(net, shared)
    for module in list(quick.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Packed(child, rows))
    return quick
