r"""Orthogonal beginnings: every weight a scaled orthogonal matrix, every bias zero, as agents usually begin.

Saxe, McClelland & Ganguli 2014, arXiv:1312.6120; with the gains √2 inside, 0.01 for a policy's last layer and 1 for a
critic's it is the beginning of PPO's first implementation, which its paper does not mention.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from ..core import Net
from ..errors import UserError
from ..spec import remembered
from .recurrent import Recurrence

N = TypeVar("N", bound=Net)


@remembered
def orthogonal(net: N, last: float = 1.0, gain: float = 2**0.5) -> N:
    """`net` with orthogonal weights times `gain`, its last layer's times `last`, a recurrence's times 1; biases 0.

    Raises UserError for a net without a linear layer, convolution or recurrence.
    """
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Recurrence))]
    if not layers:
        raise UserError(f"{type(net).__name__} has no layer to begin orthogonally.")
    with torch.no_grad():
        for i, layer in enumerate(layers):
            times = 1.0 if isinstance(layer, Recurrence) else last if i == len(layers) - 1 else gain
            for p in layer.parameters(recurse=False):
                if p.ndim > 1:
                    nn.init.orthogonal_(p, times)
                else:
                    p.zero_()
    return net
