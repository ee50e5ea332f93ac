"""The U-Net of diffusion models, for signals, images and volumes.

Levels l = 0, 1, .. work at 1, 1/2, 1/4, .. of the resolution with widths[l] channels. On the way down
each has `depth` blocks and a halving, on the way up `depth + 1` blocks and a doubling; every output on the way down
is put beside the input of one block on the way up. A block is a residual block and, at the levels in `attention`,
self-attention. Conditions enter every residual block through one embedding.

Ronneberger, Fischer & Brox 2015, "U-Net", arXiv:1505.04597; in this form Ho, Jain & Abbeel 2020, "Denoising diffusion
probabilistic models", arXiv:2006.11239. `ddpm_cifar10()` is the latter's CIFAR-10 net, 35,746,307 parameters.
Departures: any size is taken, not only multiples of 2^levels (a halving rounds up, the doubling that answers it is
cropped); dropped conditions have a learned embedding; optional scale-shift conditioning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from .attention import SelfAttention
from .conv import Downsample, ResidualBlock, Upsample, convolution, group_norm
from .embed import ClassEmbedding, TimeEmbedding
from .mlp import scalar


class Block(Net):
    """A residual block followed by attention where `attention` is given: x (B, inputs, *size), e (B, embedding)."""

    recomputable: ClassVar[bool] = True  # holds most activations: worth recomputing in the backward pass

    def __init__(self, residual: ResidualBlock, attention: SelfAttention | None = None) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        h: Tensor = self.residual(x, e)
        return h if self.attention is None else self.attention(h)


class UNet(Net):
    """x (B, channels, *size), conditions -> (B, outputs, *size), for sizes of any parity.

    channels:    of x. outputs: of the result; as many as x has by default.
    widths:      channels of each level.
    depth:       blocks per level on the way down.
    attention:   the levels with self-attention (0 is full resolution); the middle always has it.
    head:        channels of an attention head; 0 is one head for all.
    classes:     number of classes of `cond["label"]`; 0 reads none. `cond["null"]` as in `ClassEmbedding`.
    scalars:     names of the scalar conditions (B,) it must be given, such as ("t",) or ("t", "r"); () for none.
    dropout:     in the residual blocks. groups, eps: of the group norms.
    modulation:  how conditions enter the residual blocks, a name in `conv.MODULATIONS`.
    dims:        1, 2 or 3 axes.
    """

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        widths: tuple[int, ...] = (64, 128, 128),
        depth: int = 2,
        attention: tuple[int, ...] = (1,),
        head: int = 0,
        classes: int = 0,
        scalars: tuple[str, ...] = ("t",),
        dropout: float = 0.0,
        groups: int = 8,
        eps: float = 1e-6,
        modulation: str = "shift",
        dims: int = 2,
    ) -> None:
        super().__init__()
        if not widths:
            raise UserError("A U-Net without widths has no levels: give the channels of at least one.")
        for level in attention:
            if not 0 <= level < len(widths):
                raise UserError(
                    f"attention={attention} names level {level}, but {len(widths)} widths make the levels"
                    f" 0 to {len(widths) - 1}: choose among them."
                )
        embedding = 4 * widths[0] if scalars or classes else 0

        def attend(wide: int) -> SelfAttention:
            if head and wide % head:
                raise UserError(f"Attention heads of {head} channels do not divide a level of {wide}: use a divisor.")
            return SelfAttention(wide, heads=wide // (head or wide), groups=groups, eps=eps, dims=dims)

        def block(inputs: int, outputs: int, attentive: bool) -> Block:
            return Block(
                ResidualBlock(
                    inputs,
                    outputs,
                    embedding,
                    dims=dims,
                    groups=groups,
                    eps=eps,
                    dropout=dropout,
                    modulation=modulation,
                ),
                attend(outputs) if attentive else None,
            )

        self.dims, self.scalars = dims, scalars
        self.times = nn.ModuleList(TimeEmbedding(widths[0], embedding) for _ in scalars)
        self.classes = ClassEmbedding(classes, embedding) if classes else None
        self.first = convolution(dims, channels, widths[0])

        self.down = nn.ModuleList()
        skips, now = [widths[0]], widths[0]
        for level, wide in enumerate(widths):
            for _ in range(depth):
                self.down.append(block(now, wide, level in attention))
                skips.append(now := wide)
            if level + 1 < len(widths):
                self.down.append(Downsample(now, dims=dims))
                skips.append(now)
        self.middle = nn.ModuleList((block(now, now, True), block(now, now, False)))
        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                self.up.append(block(now + skips.pop(), wide, level in attention))
                now = wide
            if level:
                self.up.append(Upsample(now, dims=dims))
        self.norm = group_norm(groups, now, eps)
        self.last = convolution(dims, now, channels if outputs is None else outputs, gain=0.0)

    @classmethod
    def ddpm_cifar10(cls, *, classes: int = 0, dropout: float = 0.1) -> UNet:
        """The CIFAR-10 net of Ho, Jain & Abbeel 2020: 35,746,307 parameters; `cond["t"]` counts steps, 0 to 999."""
        return cls(
            3,
            widths=(128, 256, 256, 256),
            depth=2,
            attention=(1,),
            classes=classes,
            dropout=dropout,
            groups=32,
        )

    def forward(self, x: Float[Tensor, "b _ *size"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b _ *size"]:
        parts = [time(scalar(cond, name)) for name, time in zip(self.scalars, self.times, strict=True)]
        if self.classes is not None:
            parts.append(self.classes(cond, x.shape[0]))
        e = F.silu(sum(parts[1:], parts[0])) if parts else None  # (B, 4 widths[0])
        h = self.first(x)
        skips = [h]
        for part in self.down:
            h = part(h) if isinstance(part, Downsample) else part(h, e)
            skips.append(h)
        for part in self.middle:
            h = part(h, e)
        for part in self.up:
            if isinstance(part, Upsample):
                h = part(h)[(..., *map(slice, skips[-1].shape[2:]))]  # the size that was halved
            else:
                h = part(torch.cat((h, skips.pop()), 1), e)
        out: Tensor = self.last(F.silu(self.norm(h)))
        return out
