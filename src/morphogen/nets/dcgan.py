r"""DCGAN's nets: strided convolutions down to features, transposed ones up to a picture, none of them pooled.

    generator  z, e(y) -> linear to (2^(depth-1) width, s, s), norm, ReLU
                 -> (transposed conv 4, stride 2, norm, ReLU), depth - 1 times, half as many channels each time
                 -> transposed conv 4, stride 2, tanh                                          size = 2^depth s
    body       x -> conv 4, stride 2, leaky ReLU 0.2
                 -> (conv 4, stride 2, norm, leaky ReLU), depth - 1 times, twice as many channels each time: features

Radford, Metz & Chintala 2016, "Unsupervised representation learning with deep convolutional generative adversarial
networks", arXiv:1511.06434.
Departures: norms as in `nets.critic`, of groups unless norm="batch"; the critic's features are the last map flattened
(`nets.Critic` scores them), which is the paper's last convolution; labels join z as learned rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError, unknown
from .critic import NORMS
from .embed import ClassEmbedding


def _checked(kind: str, size: int, width: int, depth: int, norm: str) -> int:
    """The size of the coarsest map. Raises UserError."""
    if width < 1 or depth < 1:
        raise UserError(f"A DCGAN {kind} of width {width} and depth {depth} is empty: give 1 or more of each.")
    if size < 1 or size % 2**depth:
        raise UserError(
            f"A DCGAN {kind} of depth {depth} doubles {depth} times, and {size} pixels are no multiple of {2**depth}:"
            " take another depth, or pad the pictures."
        )
    if norm not in NORMS:
        raise unknown("norm of a DCGAN", norm, NORMS)
    return size >> depth


def _started(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class DCGANGenerator(Net):
    """z (B, latent), conditions -> x (B, channels, size, size) in [-1, 1].

    width: channels of the finest map. depth: doublings. classes: of `cond["label"]`; 0 reads none. norm: a name in
    NORMS. Raises UserError where `size` is no multiple of 2^depth.
    """

    def __init__(
        self,
        latent: int,
        channels: int,
        size: int,
        width: int = 64,
        depth: int = 2,
        *,
        classes: int = 0,
        norm: str = "group",
    ) -> None:
        super().__init__()
        self.coarsest = _checked("generator", size, width, depth, norm)
        widths = [width * 2**k for k in reversed(range(depth))]
        self.classes = ClassEmbedding(classes, latent) if classes else None
        self.first = nn.Linear(latent * (2 if classes else 1), widths[0] * self.coarsest**2)
        self.norms = nn.ModuleList(NORMS[norm](w) for w in widths)
        self.convs = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in itertools.pairwise(widths))
        self.last = nn.ConvTranspose2d(width, channels, 4, 2, 1)
        for layer in (self.first, *self.convs, self.last):
            _started(layer)

    def forward(
        self, z: Float[Tensor, "b latent"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, "b channels h w"]:
        if self.classes is not None:
            z = torch.cat((z, self.classes(cond, len(z))), 1)
        h = self.first(z).unflatten(1, (-1, self.coarsest, self.coarsest))
        for norm, conv in zip(self.norms, (*self.convs, self.last), strict=True):
            h = conv(F.relu(norm(h)))
        x: Tensor = h.tanh()
        return x


class DCGANBody(Net):
    """x (B, channels, size, size) -> features (B, `features`), for a `nets.Critic`. Arguments as the generator's."""

    def __init__(self, channels: int, size: int, width: int = 64, depth: int = 2, *, norm: str = "group") -> None:
        super().__init__()
        coarsest = _checked("critic", size, width, depth, norm)
        widths = [width * 2**k for k in range(depth)]
        self.features = widths[-1] * coarsest**2
        self.first = nn.Conv2d(channels, width, 4, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1, bias=False) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(NORMS[norm](w) for w in widths[1:])
        for layer in (self.first, *self.convs):
            _started(layer)

    def forward(self, x: Float[Tensor, "b channels h w"]) -> Float[Tensor, "b {self.features}"]:
        h = F.leaky_relu(self.first(x), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), 0.2)
        out: Tensor = h.flatten(1)
        return out
