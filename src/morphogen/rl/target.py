"""Target networks: copies that follow a net, whose weights are state and are not trained.

θ' ← τ θ + (1 − τ) θ'      τ = 1: a copy (Mnih et al. 2015); τ small: Polyak averaging (Lillicrap et al. 2016)
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Target(nn.Module):
    """A copy of a net, called like it. Its weights are buffers: saved with the model, and no optimiser sees them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        for module in self.net.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, p.detach().clone())

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.net(*inputs)
        return out

    @torch.no_grad()
    def follow(self, net: nn.Module, tau: float) -> None:
        """Go the share `tau` of the way to the net that this is a copy of."""
        there = net.state_dict(keep_vars=True)
        here = self.net.state_dict(keep_vars=True)
        moving = [n for n, t in here.items() if t.is_floating_point()]
        torch._foreach_lerp_([here[n] for n in moving], [there[n] for n in moving], tau)
