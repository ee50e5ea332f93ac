"""The diffusion transformer, for signals, images and volumes: DiT with adaLN-Zero, and with cross-attention to text.

x is cut into patches, tokens h; the conditions make one vector e (times and class, summed). A block is

    (b1, s1, g1, b2, s2, g2) = W silu(e) + b                      starts at zero: each block starts as the identity
    h = h + g1 attention((1 + s1) norm(h) + b1)
    h = h + cross(h, text)                                        where there is text; W_o starts at zero
    h = h + g2 feedforward((1 + s2) norm(h) + b2)

with layer norms that have no weights of their own; the last layer is W ((1 + s) norm(h) + b), W zero at the start.

Peebles & Xie 2023, "Scalable diffusion models with transformers", arXiv:2212.09748; the cross-attention (its place, no
norm before it, the token projection) from Chen et al. 2023, "PixArt-α", arXiv:2310.00426. DiT-XL/2 has 675,129,632
parameters in the authors' code, which counts the fixed table of 256 x 1152 positions; here positions are computed, and
the 674,834,720 others are the same. Diffusers' class has 749,826,464: every block embeds time and class anew.

Departures: sines before cosines in the time's sinusoid (columns swapped); any size and number of axes: sizes that the
patch does not divide are padded with zeros at the end and cropped. Text: modulations from a layer per block as in
DiT (PixArt-α: one for all, and a bias per block); a dropped, missing or empty text is one learned token (there:
120 fixed random ones).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError, unknown
from .embed import ClassEmbedding, Sinusoidal, TimeEmbedding, dense
from .mlp import scalar
from .transformer import Attention, CrossAttention, FeedForward

SIZES: Mapping[str, tuple[int, int, int]] = {  # width, depth, heads
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
PATCHES = (2, 4, 8)


def modulated(
    h: Float[Tensor, "b n w"], shift: Float[Tensor, "b 1 w"], scale: Float[Tensor, "b 1 w"]
) -> Float[Tensor, "b n w"]:
    """The layer norm of h, without weights, times 1 + scale, plus shift."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)


class DiTBlock(Net):
    """h (B, N, width), e (B, width) after its activation -> (B, N, width). See the module's head for the formula.

    hidden: units of the feed-forward net. text: whether it attends to a context (B, M, width) with a mask (B, M).
    """

    recomputable: ClassVar[bool] = True  # holds most activations: worth recomputing in the backward pass

    def __init__(self, width: int, heads: int, hidden: int, *, text: bool = False) -> None:
        super().__init__()
        self.modulation = dense(width, 6 * width, gain=0.0)
        self.attention = Attention(width, heads)
        self.cross = CrossAttention(width, width, heads, gain=0.0) if text else None
        self.mlp = FeedForward(width, hidden)

    def forward(
        self,
        h: Float[Tensor, "b n w"],
        e: Float[Tensor, "b w"],
        context: Float[Tensor, "b m w"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(e)[:, None].chunk(6, 2)  # (B, 1, width) each
        h = torch.addcmul(h, gate1, self.attention(modulated(h, shift1, scale1)))
        if self.cross is not None:
            h = h + self.cross(h, context, mask)
        return torch.addcmul(h, gate2, self.mlp(modulated(h, shift2, scale2)))


class DiT(Net):
    """x (B, channels, *size), conditions -> (B, outputs, *size), for sizes of any parity; starts as zero.

    channels: of x. outputs: of the result; as many as x has by default, twice as many where a variance is learned too.
    width, depth, heads: of the transformer. ratio: units of the feed-forward nets, as a multiple of the width.
    patch:    edge of a patch, in pixels along each axis.
    classes:  number of classes of `cond["label"]`; 0 reads none. `cond["null"]` as in `ClassEmbedding`.
    text:     width of the tokens `cond["text"]` (B, T, text); 0 reads none, and has no cross-attention. `"text_mask"`
              (B, T) is True at real tokens; what padding holds is not read. Samples that `cond["null"]` marks, a text
              without real tokens and a missing text are one and the same learned "no text".
    scalars:  names of the scalar conditions (B,) it must be given, such as ("t",) or ("t", "r"); () for none.
    sinusoid: width of the sinusoid that each scalar becomes.
    spread:   standard deviation of the class vectors at the start: the authors' 0.02 is for long runs; with 1 a net
              that trains for minutes learns its classes many times sooner.
    dims:     1, 2 or 3 axes.
    """

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: float = 4.0,
        patch: int = 2,
        classes: int = 0,
        text: int = 0,
        scalars: tuple[str, ...] = ("t",),
        sinusoid: int = 256,
        spread: float = 0.02,
        dims: int = 2,
    ) -> None:
        super().__init__()
        if not 1 <= dims <= 3:
            raise UserError(f"A DiT over {dims} axes is not known here: use dims=1, 2 or 3.")
        if width < 4 * dims:
            raise UserError(
                f"A DiT of width {width} has no room for positions on {dims} axes: use at least {4 * dims}."
            )
        if depth < 1 or patch < 1:
            raise UserError(f"A DiT of depth {depth} with patches of {patch} is empty: use at least 1 of each.")
        self.outputs, self.width, self.patch, self.dims = outputs or channels, width, patch, dims
        self.scalars = scalars
        self.times = nn.ModuleList(TimeEmbedding(sinusoid, width, shift=0.0) for _ in scalars)
        self.classes = ClassEmbedding(classes, width, spread) if classes else None
        self.text = Text(text, width) if text else None
        self.positions = Positions(width, dims)
        self.first = dense(channels * patch**dims, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads, int(width * ratio), text=text > 0) for _ in range(depth))
        self.modulation = dense(width, 2 * width, gain=0.0)
        self.last = dense(width, self.outputs * patch**dims, gain=0.0)
        for time in self.times:
            _small(time)

    @classmethod
    def named(
        cls, name: str, channels: int = 4, *, outputs: int | None = None, classes: int = 1000, text: int = 0
    ) -> DiT:
        """The paper's nets "S/2" to "XL/8": a size of SIZES and a patch. `cond["t"]` counts steps, 0 to 999.

        The authors' have outputs=8, noise and variance of latents (4, 32, 32). Raises UserError for other names.
        """
        known = {f"{size}/{patch}": (*SIZES[size], patch) for size in SIZES for patch in PATCHES}
        name = name.removeprefix("DiT-")
        if name not in known:
            raise unknown("DiT", name, known)
        width, depth, heads, patch = known[name]
        return cls(
            channels, outputs=outputs, width=width, depth=depth, heads=heads, patch=patch, classes=classes, text=text
        )

    def forward(self, x: Float[Tensor, "b _ *size"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b _ *size"]:
        parts = [time(scalar(cond, name)) for name, time in zip(self.scalars, self.times, strict=True)]
        if self.classes is not None:
            parts.append(self.classes(cond, len(x)))
        e = F.silu(sum(parts[1:], parts[0])) if parts else x.new_zeros(len(x), self.width)
        context, mask = (None, None) if self.text is None else self.text(cond, len(x))
        counts = tuple(-(-n // self.patch) for n in x.shape[2:])  # of patches along each axis
        h = self.first(self._patches(x, counts))  # (B, N, width)
        h = h + self.positions(counts, h)
        for block in self.blocks:
            h = block(h, e, context, mask)
        shift, scale = self.modulation(e)[:, None].chunk(2, 2)
        y = self.last(modulated(h, shift, scale))  # (B, N, outputs * patch^dims)
        inside: tuple[Any, ...] = (..., *map(slice, x.shape[2:]))
        return self._picture(y, counts)[inside]

    def _patches(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        """x (B, C, *size) -> (B, N, C * patch^dims), channels first within a patch."""
        p = self.patch
        missing = [-n % p for n in x.shape[2:]]
        if any(missing):
            x = F.pad(x, [a for m in reversed(missing) for a in (0, m)])
        axes = range(self.dims)
        x = x.reshape(*x.shape[:2], *(a for n in counts for a in (n, p)))  # (B, C, n, p, n, p, ..)
        x = x.permute(0, *(2 + 2 * i for i in axes), 1, *(3 + 2 * i for i in axes))  # (B, n, n, .., C, p, p, ..)
        return x.flatten(1 + self.dims).flatten(1, self.dims)

    def _picture(self, y: Tensor, counts: tuple[int, ...]) -> Tensor:
        """y (B, N, patch^dims * outputs), channels last within a patch -> (B, outputs, *(counts * patch))."""
        d, p = self.dims, self.patch
        y = y.view(len(y), *counts, *(p,) * d, self.outputs)  # (B, n, n, .., p, p, .., C)
        y = y.permute(0, 1 + 2 * d, *(a for i in range(d) for a in (1 + i, 1 + d + i)))  # (B, C, n, p, n, p, ..)
        return y.reshape(len(y), self.outputs, *(n * p for n in counts))


class Positions(Net):
    """Fixed sinusoids of the places (N, width) of a grid of patches, counted from 0 along each axis.

    The last axis has the first columns, each axis an even share of them; what the division leaves is zero.
    """

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.share = width // (2 * dims) * 2
        self.rest = width - dims * self.share
        self.sinusoid = Sinusoidal(self.share, shift=0.0)

    def forward(self, counts: tuple[int, ...], like: Tensor) -> Float[Tensor, "n w"]:
        columns = []
        for axis, n in reversed(list(enumerate(counts))):
            e = self.sinusoid(torch.arange(n, dtype=like.dtype, device=like.device))  # (n, share)
            e = e.view(*(n if i == axis else 1 for i in range(len(counts))), self.share)
            columns.append(e.expand(*counts, self.share))
        return F.pad(torch.cat(columns, -1).flatten(0, -2), (0, self.rest)).to(like.dtype)


class Text(Net):
    """`cond["text"]` (B, T, inputs) and `cond["text_mask"]` (B, T) -> tokens (B, 1 + T, width) and their mask.

    Token 0 is the learned "no text", which only those samples see that have no other (see `DiT`).
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.null = nn.Parameter(torch.randn(inputs) * inputs**-0.5)
        self.project = FeedForward(inputs, width, width)
        _small(self.project)

    def forward(self, cond: Mapping[str, Tensor], n: int) -> tuple[Float[Tensor, "b m w"], Bool[Tensor, "b m"] | None]:
        null = self.null.expand(n, 1, self.inputs)
        if (text := cond.get("text")) is None:
            return self.project(null), None
        if text.ndim != 3 or text.shape[2] != self.inputs:
            raise UserError(
                f'cond["text"] has shape {tuple(text.shape)}, but this net reads tokens of width {self.inputs}: give'
                f" (batch, tokens, {self.inputs})."
            )
        mask = cond.get("text_mask")
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        if (dropped := cond.get("null")) is not None:
            mask = mask & ~dropped[:, None]
        text = text.masked_fill(~mask[..., None], 0.0)  # weight 0 is not enough where padding holds NaN or infinity
        mask = torch.cat((~mask.any(1, keepdim=True), mask), 1)  # (B, 1 + T)
        return self.project(torch.cat((null, text), 1)), mask


def _small(net: nn.Module) -> None:
    """Weights from N(0, 0.02²), as both papers' embeddings start."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
