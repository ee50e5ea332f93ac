"""The U-Net of diffusion models, for signals, images and volumes.

Levels l = 0, 1, .. work at 1, 1/2, 1/4, .. of the resolution with widths[l] channels. On the way down
each has `depth` blocks and a halving, on the way up `depth + 1` blocks and a doubling; every output on the way down
is put beside the input of one block on the way up. A block is a residual block and, at the levels in `attention`,
self-attention. Conditions enter every residual block through one embedding.

A skip s meets the way up h as cat(h, s) or, gated, as cat(h, a s) with one number per position
    a = sigmoid(w' relu(W_s s + W_h h + b) + c).

Ronneberger, Fischer & Brox 2015, "U-Net", arXiv:1505.04597; in this form Ho, Jain & Abbeel 2020, "Denoising diffusion
probabilistic models", arXiv:2006.11239 (`ddpm_cifar10`); with scale-shift conditioning and attention at several levels
Nichol & Dhariwal 2021, arXiv:2102.09672 (`improved_imagenet64`); with the resolution changed inside residual blocks
Dhariwal & Nichol 2021, "Diffusion models beat GANs", arXiv:2105.05233 (`adm_imagenet`). Gates: Oktay et al. 2018,
"Attention U-Net", arXiv:1804.03999.
Departures: any size is taken, not only multiples of 2^levels (a halving rounds up, the doubling that answers it is
cropped); dropped conditions have a learned embedding, one row more than the papers' class tables; sines before
cosines (a permutation of the next layer's columns); where h meets s it has s's resolution already, so gates resample
nothing (Oktay et al. gate with the coarser grid).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError, unknown
from .attention import SelfAttention
from .conv import CONVOLUTIONS, Downsample, ResidualBlock, Upsample, convolution, group_norm
from .embed import ClassEmbedding, TimeEmbedding
from .mlp import scalar


class Concatenate(Net):
    """cat(h, s): h (B, C, *size) and a skip s (B, S, *size) side by side."""

    def __init__(self, channels: int, skipped: int, *, dims: int = 2) -> None:
        super().__init__()

    def forward(self, h: Float[Tensor, "b _ *size"], s: Float[Tensor, "b _ *size"]) -> Float[Tensor, "b _ *size"]:
        return torch.cat((h, s), 1)


class Gate(Net):
    """cat(h, a s): a skip s (B, S, *size) through an additive attention gate opened by h (B, C, *size)."""

    def __init__(self, channels: int, skipped: int, *, dims: int = 2) -> None:
        super().__init__()
        inner = max(1, skipped // 2)
        self.skipped = convolution(dims, skipped, inner, 1)  # its bias and the next one's are one: b
        self.gating = CONVOLUTIONS[dims](channels, inner, 1, bias=False)
        self.open = convolution(dims, inner, 1, 1)
        nn.init.xavier_uniform_(self.gating.weight)

    def forward(self, h: Float[Tensor, "b _ *size"], s: Float[Tensor, "b _ *size"]) -> Float[Tensor, "b _ *size"]:
        a = torch.sigmoid(self.open(F.relu(self.skipped(s) + self.gating(h))))  # (B, 1, *size)
        return torch.cat((h, a * s), 1)


JOINS: Mapping[str, type[Concatenate | Gate]] = {"concatenate": Concatenate, "gate": Gate}


class Block(Net):
    """A residual block followed by attention where `attention` is given: x (B, inputs, *size), e (B, embedding).

    On the way up it begins by joining a skip (B, S, *size) to x; then inputs counts the channels of both.
    """

    recomputable: ClassVar[bool] = True  # holds most activations: worth recomputing in the backward pass

    def __init__(
        self, residual: ResidualBlock, attention: SelfAttention | None = None, join: Concatenate | Gate | None = None
    ) -> None:
        super().__init__()
        self.residual, self.attention, self.join = residual, attention, join

    def forward(self, x: Tensor, e: Tensor | None, skip: Tensor | None = None) -> Tensor:
        if self.join is not None:
            x = self.join(x, skip)
        h: Tensor = self.residual(x, e)
        return h if self.attention is None else self.attention(h)


# How the resolution changes between levels; None: within a residual block of its own.
RESAMPLINGS: Mapping[str, Mapping[str, type[Downsample | Upsample]] | None] = {
    "conv": {"half": Downsample, "double": Upsample},
    "residual": None,
}

# ADM's nets on ImageNet, by edge: channels, multiples of them by level, blocks, levels that attend, attention heads.
ADM: Mapping[int, tuple[int, tuple[int, ...], int, tuple[int, ...], Mapping[str, int]]] = {
    64: (192, (1, 2, 3, 4), 3, (1, 2, 3), {"head": 64}),
    128: (256, (1, 1, 2, 3, 4), 2, (2, 3, 4), {"heads": 4}),
    256: (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), {"head": 64}),
}


class UNet(Net):
    """x (B, channels, *size), conditions -> (B, outputs, *size), for sizes of any parity.

    channels:    of x. outputs: of the result; as many as x has by default.
    widths:      channels of each level.
    depth:       blocks per level on the way down.
    attention:   the levels with self-attention (0 is full resolution); the middle always has it.
    head:        channels of an attention head, at every level; 0 makes `heads` of them instead.
    heads:       number of attention heads at every level where `head` is 0.
    classes:     number of classes of `cond["label"]`; 0 reads none. `cond["null"]` as in `ClassEmbedding`.
    scalars:     names of the scalar conditions (B,) it must be given, such as ("t",) or ("t", "r"); () for none.
    dropout:     in the residual blocks. groups, eps: of the group norms.
    modulation:  how conditions enter the residual blocks, a name in `conv.MODULATIONS`.
    resampling:  how the resolution changes between levels, a name in RESAMPLINGS: "conv" (a convolution of its own) or
                 "residual" (within a residual block).
    join:        how a skip meets the way up, a name in JOINS: "concatenate" or "gate".
    shift:       of the sinusoids of the scalars, see `embed.Sinusoidal`: 1 in DDPM, 0 in ADM.
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
        heads: int = 1,
        classes: int = 0,
        scalars: tuple[str, ...] = ("t",),
        dropout: float = 0.0,
        groups: int = 8,
        eps: float = 1e-6,
        modulation: str = "shift",
        resampling: str = "conv",
        join: str = "concatenate",
        shift: float = 1.0,
        dims: int = 2,
    ) -> None:
        super().__init__()
        if resampling not in RESAMPLINGS:
            raise unknown("resampling", resampling, RESAMPLINGS)
        if join not in JOINS:
            raise unknown("join of skips", join, JOINS)
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
            return SelfAttention(wide, heads=wide // head if head else heads, groups=groups, eps=eps, dims=dims)

        def residual(inputs: int, outputs: int, change: str = "none") -> ResidualBlock:
            return ResidualBlock(
                inputs,
                outputs,
                embedding,
                dims=dims,
                groups=groups,
                eps=eps,
                dropout=dropout,
                modulation=modulation,
                change=change,
            )

        def block(inputs: int, outputs: int, attentive: bool, skipped: int = 0) -> Block:
            return Block(
                residual(inputs + skipped, outputs),
                attend(outputs) if attentive else None,
                JOINS[join](inputs, skipped, dims=dims) if skipped else None,
            )

        def resample(wide: int, change: str) -> Block | Downsample | Upsample:
            made = RESAMPLINGS[resampling]
            return Block(residual(wide, wide, change)) if made is None else made[change](wide, dims=dims)

        self.dims, self.scalars = dims, scalars
        self.times = nn.ModuleList(TimeEmbedding(widths[0], embedding, shift=shift) for _ in scalars)
        self.classes = ClassEmbedding(classes, embedding) if classes else None
        self.first = convolution(dims, channels, widths[0])

        self.down = nn.ModuleList()
        skips, now = [widths[0]], widths[0]
        for level, wide in enumerate(widths):
            for _ in range(depth):
                self.down.append(block(now, wide, level in attention))
                skips.append(now := wide)
            if level + 1 < len(widths):
                self.down.append(resample(now, "half"))
                skips.append(now)
        self.middle = nn.ModuleList((block(now, now, True), block(now, now, False)))
        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                self.up.append(block(now, wide, level in attention, skips.pop()))
                now = wide
            if level:
                self.up.append(resample(now, "double"))
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

    @classmethod
    def improved_imagenet64(cls, *, width: int = 128, classes: int = 0, outputs: int = 6, dropout: float = 0.0) -> UNet:
        """The ImageNet 64x64 net of Nichol & Dhariwal 2021; their widths 64, 96, 128 and 192 have 30, 68, 120 and 270
        million parameters. outputs: 6 where variances are learned too. `cond["t"]` counts steps.
        """
        return cls(
            3,
            outputs=outputs,
            widths=(width, 2 * width, 3 * width, 4 * width),
            depth=3,
            attention=(2, 3),
            heads=4,
            classes=classes,
            dropout=dropout,
            groups=32,
            eps=1e-5,
            modulation="scale-shift",
            shift=0.0,
        )

    @classmethod
    def adm_imagenet(
        cls, size: int = 64, *, classes: int = 1000, outputs: int = 6, dropout: float | None = None
    ) -> UNet:
        """ADM for ImageNet pictures of edge 64, 128 or 256: 296, 422 and 554 million parameters.

        outputs: 6 where variances are learned too. dropout: the paper's by default, 0.1 at edge 64 and none above.
        `cond["t"]` counts steps. The counts leave out our null row of the class table.
        """
        if size not in ADM:
            raise unknown("ADM net of edge", str(size), map(str, ADM))
        width, multiples, depth, attention, heads = ADM[size]
        return cls(
            3,
            outputs=outputs,
            widths=tuple(width * m for m in multiples),
            depth=depth,
            attention=attention,
            head=heads.get("head", 0),
            heads=heads.get("heads", 1),
            classes=classes,
            dropout=(0.1 if size == 64 else 0.0) if dropout is None else dropout,
            groups=32,
            eps=1e-5,
            modulation="scale-shift",
            resampling="residual",
            shift=0.0,
        )

    def forward(self, x: Float[Tensor, "b _ *size"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b _ *size"]:
        parts = [time(scalar(cond, name)) for name, time in zip(self.scalars, self.times, strict=True)]
        if self.classes is not None:
            parts.append(self.classes(cond, x.shape[0]))
        e = F.silu(sum(parts[1:], parts[0])) if parts else None  # (B, 4 widths[0])
        h = self.first(x)
        skips = [h]
        for part in self.down:
            h = part(h, e)
            skips.append(h)
        for part in self.middle:
            h = part(h, e)
        for part in self.up:
            if isinstance(part, Block) and part.join is not None:
                h = part(h, e, skips.pop())
            else:
                h = part(h, e)[(..., *map(slice, skips[-1].shape[2:]))]  # the size that was halved
        out: Tensor = self.last(F.silu(self.norm(h)))
        return out
