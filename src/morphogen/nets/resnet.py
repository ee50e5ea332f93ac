"""Nets that read images: a residual net for any use, and a fast plain one for short budgets.

Both are `Reader`s: features (B, D) first, class scores from them by one linear layer. The features are those that
metrics compare samples on.

`ResNet`: He, Zhang, Ren & Sun 2016, "Identity mappings in deep residual networks", arXiv:1603.05027, with the blocks
of `nets.conv` (group norms, so no sample sees another; each block starts as its skip) and, for noisy images, the time
as condition of every block, as in Dhariwal & Nichol 2021, "Diffusion models beat GANs", arXiv:2105.05233.

`SpeedNet`: K. Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv:2404.00498 (after tysam-code 2023,
hlb-CIFAR10, and Page 2018, "How to train your ResNet"): patches whitened by a fixed first convolution, then blocks of

    conv - max pool 2 - norm - GELU - conv - norm - GELU,

batch norms with a learned shift but no gain, convolutions that start as the identity on the channels that they have
room for, a global maximum, and scores divided by 9. Departures: the pooling never goes below one pixel, so any size
from that of a patch on is taken; no bias-only learning rate, no test-time augmentation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from .conv import Downsample, ResidualBlock, convolution, group_norm
from .embed import TimeEmbedding, dense
from .mlp import scalar


class Reader(Net):
    """Base of the nets that read: x (B, ...), cond -> class scores (B, classes) by way of features (B, D)."""

    @abstractmethod
    def maps(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> list[Tensor]:
        """What the net sees on its way (B, C, *size), of each level its last, fine to coarse."""

    @abstractmethod
    def features(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        """The penultimate layer (B, D)."""

    @abstractmethod
    def scores(self, features: Tensor) -> Tensor:
        """Unnormalised log-probabilities (B, classes) from the features (B, D)."""

    def start(self, x: Tensor) -> None:
        """Called once before training with some data x (B, ...): data-dependent initialisation."""

    def forward(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        return self.scores(self.features(x, cond))


class ResNet(Reader):
    """x (B, channels, *size), of any size -> (B, classes), through `depth` residual blocks a level.

    width:       channels of level 0, at full resolution. multipliers: of the width, one a level, each at half the
                 resolution of the one before (rounded up).
    scalars:     names of the scalar conditions (B,) it must be given: ("t",) for a net that reads noisy images.
    dropout:     of the features, in training. groups: of the group norms. dims: 1, 2 or 3 axes.
    The features are the last level's channels (B, width * multipliers[-1]), averaged over all positions.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int = 32,
        *,
        multipliers: tuple[int, ...] = (1, 2, 4),
        depth: int = 1,
        scalars: tuple[str, ...] = (),
        dropout: float = 0.0,
        groups: int = 8,
        dims: int = 2,
    ) -> None:
        super().__init__()
        if not multipliers or depth < 1:
            raise UserError(
                f"A ResNet of depth {depth} with {len(multipliers)} levels is empty: use at least 1 of each."
            )
        if not 0 <= dropout <= 1:
            raise UserError(f"A ResNet's dropout is {dropout}, which is no probability: use 0 to 1.")
        self.scalars, self.dropout = scalars, dropout
        embedding = 4 * width if scalars else 0
        self.times = nn.ModuleList(TimeEmbedding(width, embedding) for _ in scalars)
        self.first = convolution(dims, channels, width)
        self.parts = nn.ModuleList()
        now = width
        for level, multiplier in enumerate(multipliers):
            if level:
                self.parts.append(Downsample(now, dims=dims))
            for _ in range(depth):
                self.parts.append(ResidualBlock(now, width * multiplier, embedding, dims=dims, groups=groups))
                now = width * multiplier
        self.norm = group_norm(groups, now, 1e-6)
        self.head = dense(now, classes)

    def maps(self, x: Float[Tensor, "b channels *size"], cond: Mapping[str, Tensor] = NONE) -> list[Tensor]:
        e = None
        for name, time in zip(self.scalars, self.times, strict=True):
            one = time(scalar(cond, name))
            e = one if e is None else e + one
        e = None if e is None else F.silu(e)  # (B, 4 width)
        h, levels = self.first(x), []
        for part in self.parts:
            if isinstance(part, Downsample):
                levels.append(h)
                h = part(h)
            else:
                h = part(h, e)
        return [*levels, h]

    def features(
        self, x: Float[Tensor, "b channels *size"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, "b features"]:
        h = self.maps(x, cond)[-1]
        return F.silu(self.norm(h)).flatten(2).mean(2)  # (B, C, *size) -> (B, C)

    def scores(self, features: Float[Tensor, "b features"]) -> Float[Tensor, "b classes"]:
        scores: Tensor = self.head(F.dropout(features, self.dropout, self.training))
        return scores


class Whitening(Net):
    """x (B, C, H, W) -> (B, 2 C k², H - k + 1, W - k + 1): whitened k x k patches and their negatives, plus a bias.

    The filters are the eigenvectors of the patches' second moments, each divided by the root of its eigenvalue; they
    are set once by `start` and not trained. eps: a floor under the eigenvalues, as a share of their mean.
    """

    filters: Tensor

    def __init__(self, channels: int, kernel: int = 2, eps: float = 5e-4) -> None:
        super().__init__()
        self.kernel, self.eps = kernel, eps
        n = channels * kernel**2
        half = torch.eye(n).view(n, channels, kernel, kernel)
        self.register_buffer("filters", torch.cat((half, -half)))
        self.bias = nn.Parameter(torch.zeros(2 * n))

    @torch.no_grad()
    def start(self, x: Float[Tensor, "b c h w"]) -> None:
        """Set the filters from the patches of x."""
        patches = F.unfold(x.double(), self.kernel).transpose(1, 2).flatten(0, 1)  # (B L, C k²)
        value, vector = torch.linalg.eigh(patches.T @ patches / len(patches))
        half = (vector / (value.clamp(min=0) + self.eps * value.mean()).sqrt()).T.reshape(-1, *self.filters.shape[1:])
        self.filters.copy_(torch.cat((half, -half)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return F.conv2d(x, self.filters, self.bias)


class SpeedBlock(Net):
    """x (B, inputs, H, W) -> (B, outputs, H // 2, W // 2), but never less than one pixel."""

    def __init__(self, inputs: int, outputs: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, momentum=momentum)
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            nn.init.dirac_(conv.weight[: conv.in_channels])
            norm.weight.requires_grad_(False)  # a gain before GELU and the next norm gives nothing that training keeps

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        x = F.gelu(self.norm1(_halve(self.conv1(x))))
        return F.gelu(self.norm2(self.conv2(x)))


class SpeedNet(Reader):
    """x (B, channels, H, W), H and W at least `kernel` -> (B, classes): learns in few passes over the data.

    widths: channels of each block. kernel: of the whitening. momentum: of the batch norms (of the newest batch).
    Its batch norms make a sample's loss depend on its batch. The features are the last block's channels
    (B, widths[-1]), their maximum over all positions.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: tuple[int, ...] = (64, 256, 256),
        *,
        kernel: int = 2,
        momentum: float = 0.4,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.whitening = Whitening(channels, kernel)
        inputs = (2 * channels * kernel**2, *widths)
        self.blocks = nn.ModuleList(SpeedBlock(a, b, momentum) for a, b in zip(inputs, widths, strict=False))
        self.head = nn.Linear(inputs[-1], classes, bias=False)

    def start(self, x: Float[Tensor, "b channels h w"]) -> None:
        """Set the whitening from x."""
        self.whitening.start(x)

    def maps(self, x: Float[Tensor, "b channels h w"], cond: Mapping[str, Tensor] = NONE) -> list[Tensor]:
        if min(x.shape[2:]) < self.kernel:
            raise UserError(
                f"This SpeedNet whitens patches of {self.kernel} x {self.kernel}, and x is only {x.shape[2]} x"
                f" {x.shape[3]}: give larger images or a smaller kernel."
            )
        # Channels last is 1.6 times as fast on a CPU. Asked for here, where there are several channels: with one, the
        # two layouts are the same and the next layers would fall back to the other. The weights stay as they are.
        x, levels = F.gelu(self.whitening(x).contiguous(memory_format=torch.channels_last)), []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        return levels

    def features(
        self, x: Float[Tensor, "b channels h w"], cond: Mapping[str, Tensor] = NONE
    ) -> Float[Tensor, "b features"]:
        return self.maps(x, cond)[-1].amax((2, 3))

    def scores(self, features: Float[Tensor, "b features"]) -> Float[Tensor, "b classes"]:
        scores: Tensor = self.head(features)
        return scores / 9


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))
