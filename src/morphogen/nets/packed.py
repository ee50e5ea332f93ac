"""Linear layers laid out for the products of few rows on a CPU: what makes decoding quicker.

oneDNN multiplies from weights in blocks of its own, which a few rows do not repay; a net that is asked hundreds of
times can have them laid out once. The numbers are those of `torch.nn.Linear` but for the order of sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)
DTYPES = (torch.float32, torch.bfloat16)  # that oneDNN multiplies
LEAST = 16  # rows that single precision is laid out for: for fewer oneDNN leaves it as it is, and one row takes longer


class Packed(nn.Module):
    """A linear layer for about so many rows, not differentiable."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.bias, self.in_features, self.out_features = linear.bias, linear.in_features, linear.out_features
        self.weight = linear.weight
        rows = max(rows, LEAST) if linear.weight.dtype == torch.float32 else rows
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")
        return y


def packable(net: nn.Module) -> bool:
    """Whether packing can help: weights on a CPU, in single or half precision, and oneDNN there."""
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Linear)]
    right = all(w.device.type == "cpu" and w.dtype in DTYPES for w in weights)
    return bool(weights) and right and torch.backends.mkldnn.is_available()


def packed(net: N, rows: int) -> N:
    """A net that shares all of this one's weights, with every linear layer packed for about so many rows."""
    quick = _twin(net, {})
    exchange(quick, lambda linear: Packed(linear, rows))
    return quick


def _twin(module: N, made: dict[nn.Module, nn.Module]) -> N:
    """A module of its own in whose place another can be put, of the same weights and settings."""
    if module not in made:
        made[module] = twin = copy.copy(module)
        twin._modules = {name: None if m is None else _twin(m, made) for name, m in module._modules.items()}
    return cast("N", made[module])


def exchange(net: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> int:
    """Put what `make` makes of each linear layer inside a net in its place; how many there were.

    A layer that computes its weights (equalised, normalised) is another class, and left alone.
    """
    made: dict[nn.Module, nn.Module] = {}
    for module in list(net.modules()):
        for name, child in list(module._modules.items()):  # also what is there under two names
            if type(child) is nn.Linear:
                if child not in made:
                    made[child] = make(child)
                setattr(module, name, made[child])
    return len(made)
