"""Critics: a score of features, told the class by projection, with what else is read off them; and one of patches.

`Critic`: with features h = φ(x), the class's row e(y) and a linear layer for each head,

    score = w · h + e(y) · h                      readings = V h + c

Miyato & Koyama 2018, "cGANs with projection discriminator", arXiv:1802.05637.

`PatchCritic`: one score for each overlapping patch of a picture.

    x -> conv 4, stride 2, leaky ReLU                                   width
      -> (conv 4, stride 2, norm, leaky ReLU), depth - 1 times          twice as many each time, at most 8 width
      -> conv 4, norm, leaky ReLU -> conv 4: scores

A score sees 9 2^depth - 2 pixels along each axis: 16, 34, 70, 142 for depth 1, 2, 3, 4.

Isola, Zhu, Zhou & Efros 2017, "Image-to-image translation with conditional adversarial networks", arXiv:1611.07004.
Departures: group norms by default, so that no sample sees another; with norm="batch" as in the paper. A projection has
a row for "no class" too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError, unknown
from .conv import group_norm
from .embed import ClassEmbedding, dense
from .mlp import ACTIVATIONS


def _grouped(channels: int) -> nn.Module:
    return group_norm(32, channels, 1e-5)


NORMS: Mapping[str, Callable[[int], nn.Module]] = {"group": _grouped, "batch": nn.BatchNorm2d}


class Critic(Net):
    """x (B, ...), conditions -> scores (B,), by way of features; `both` gives readings (B, readings) beside them.

    body:       `body(x)` -> features (B, features). classes: of `cond["label"]`, told by projection; 0 reads none.
    readings:   how many numbers the second head tells; 0 has none.
    activation: of the features, a name in `mlp.ACTIVATIONS`; None where the body ends in one.
    The score has no bias: a game that compares scores would not notice one.
    """

    def __init__(
        self,
        body: nn.Module,
        features: int,
        *,
        classes: int = 0,
        readings: int = 0,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        if features < 1 or readings < 0:
            raise UserError(f"A Critic of {features} features and {readings} readings: give 1 or more, and 0 or more.")
        self.body, self.features, self.readings = body, features, readings
        if activation is not None and activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.activation = None if activation is None else ACTIVATIONS[activation]
        self.score = nn.Parameter(torch.randn(features) * features**-0.5)
        self.classes = ClassEmbedding(classes, features, spread=features**-0.5) if classes else None
        self.reading = dense(features, readings) if readings else None

    def forward(self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, " b"]:
        return self._scored(self._features(x), cond)

    def both(
        self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b {self.readings}"]]:
        """The scores of x, and what is read off it."""
        h = self._features(x)
        return self._scored(h, cond), h.new_zeros(len(h), 0) if self.reading is None else self.reading(h)

    def _scored(self, h: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        w = self.score if self.classes is None else self.score + self.classes(cond, len(h))
        return (w * h).sum(1)

    def _features(self, x: Tensor) -> Tensor:
        h: Tensor = self.body(x)
        return h if self.activation is None else self.activation(h)


class PatchCritic(Net):
    """x (B, channels, H, W) -> scores (B, 1, h, w), each of a patch of `field` pixels along each axis.

    width: channels of the first layer. depth: halvings, 3 in the paper (patches of 70). norm: a name in NORMS.
    Raises UserError for an x that is too small for the depth.
    """

    def __init__(self, channels: int, width: int = 64, depth: int = 3, *, norm: str = "group") -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise UserError(f"A PatchCritic of width {width} and depth {depth} is empty: give 1 or more of each.")
        if norm not in NORMS:
            raise unknown("norm of a critic", norm, NORMS)
        self.depth, self.field = depth, 9 * 2**depth - 2
        widths = [width * min(2**k, 8) for k in range(depth + 1)]
        self.first = _convolution(channels, width, 2)
        self.convs = nn.ModuleList(
            _convolution(a, b, 2 if k < depth else 1, bias=False)
            for k, (a, b) in enumerate(itertools.pairwise(widths), 1)
        )
        self.norms = nn.ModuleList(NORMS[norm](b) for b in widths[1:])
        self.last = _convolution(widths[-1], 1, 1)

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b 1 i j"]:
        if min(x.shape[2:]) < 3 * 2**self.depth:
            raise UserError(
                f"x is {x.shape[2]} x {x.shape[3]}, and a PatchCritic of depth {self.depth} wants {3 * 2**self.depth}"
                " pixels or more along each axis: take a smaller depth."
            )
        h = F.leaky_relu(self.first(x), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), 0.2)
        scores: Tensor = self.last(h)
        return scores


def _convolution(inputs: int, outputs: int, stride: int, *, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 4, stride, 1, bias=bias)  # a norm behind it has the bias
    nn.init.normal_(conv.weight, std=0.02)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
