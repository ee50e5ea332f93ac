r"""The nets of StyleGAN2: a mapping of noise to styles, a synthesis that styles modulate, a residual critic.

    mapping      w = f(z / |z|_rms, e(label) / |e|_rms),    f: `depth` linear layers that learn at λ = 0.01 of the rate
    synthesis    a constant 4 x 4; at each size: (double, modulated conv), modulated conv, and an RGB image that is
                 added to the doubled one of the size below
    modulation   y_o = d_o Σ_i w_oi ∗ (s_i x_i),   d_o = 1 / √(Σ_i,k (s_i w_oik)² + 1e-8),   s = A w
    noise        a value for each place, times a strength for each layer, before bias and leaky ReLU
    critic       at each size: (skip(half(x)) + half-conv(conv(x))) / √2; then the minibatch deviation and two layers
    doubling     by the filter (1, 3, 3, 1): bilinear, and so it keeps constants up to the border; halving likewise

Modulating x and demodulating y is the same as giving each sample filters of its own, the grouped convolution of the
paper, and one ordinary convolution.

Karras, Laine, Aittala, Hellsten, Lehtinen & Aila 2020, "Analyzing and improving the image quality of StyleGAN",
arXiv:1912.04958; conditions as in Karras et al. 2020, arXiv:2006.06676. Departures: images and skips repeat their
border when doubled or halved (there: zeros); pictures that are no power of two are the middle of one, framed by `fill`
for the critic; a score has a part without the class (there: all of it is projected on its embedding), for ten classes
learn slowly apart; a minibatch deviation over neighbours (`equal.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Net, Noise
from .embed import ClassEmbedding
from .equal import EqualConv, EqualLinear, framed, leaky, pixel_norm, resolution, unframed, with_deviation

Cond = Mapping[str, Tensor]
_TAPS = (1.0, 3.0, 3.0, 1.0)


def _filtered(x: Tensor, *, stride: int, gain: float) -> Tensor:
    """x filtered by (1, 3, 3, 1) along both axes, where all four taps meet it."""
    taps = torch.tensor(_TAPS, dtype=x.dtype, device=x.device)
    kernel = (taps[:, None] * taps) * (gain / 64)
    return F.conv2d(x, kernel.expand(x.shape[1], 1, 4, 4), stride=stride, groups=x.shape[1])


def fir_doubled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """x at twice the size: values between are 3 parts of the nearer and 1 of the farther neighbour, along each axis."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def fir_halved(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """x at half the size: each value (1, 3, 3, 1) / 8 of its four neighbours along each axis."""
    return _filtered(F.pad(x, (1, 1, 1, 1), "replicate"), stride=2, gain=1.0)


def demodulation(weight: Float[Tensor, "o i k k"], style: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
    """What scales each output so that its filter, modulated by the style, has unit norm."""
    return (style.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()


def modulated(
    x: Float[Tensor, "b i h w"],
    weight: Float[Tensor, "o i k k"],
    style: Float[Tensor, "b i"],
    *,
    demodulate: bool = True,
    double: bool = False,
) -> Float[Tensor, "b o m n"]:
    """x convolved with filters that a style (B, I) scales: of the same size, or doubled and smoothed."""
    x = x * style[:, :, None, None]
    if double:  # a transposed convolution puts zeros between the values, so that the filter's gain is 4
        y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        y = _filtered(F.pad(y, (1, 1, 1, 1)), stride=1, gain=4.0)
    else:
        y = F.conv2d(x, weight, padding=weight.shape[2] // 2)
    return y * demodulation(weight, style).to(y.dtype)[:, :, None, None] if demodulate else y


class StyledConv(Net):
    """x (B, inputs, H, W), w (B, width) -> (B, outputs, H, W) or twice the size: modulated, noise, bias, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, width: int, *, double: bool = False) -> None:
        super().__init__()
        self.doubles, self.scale = double, 1 / math.sqrt(9 * inputs)
        self.style = EqualLinear(width, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "b _ h w"], w: Float[Tensor, "b _"], noise: Noise) -> Float[Tensor, "b _ i j"]:
        y = modulated(x, self.weight * self.scale, self.style(w), double=self.doubles)
        z = noise.normal(1, *y.shape[2:], dtype=y.dtype).to(y.device)
        return leaky(y + self.strength * z + self.bias[:, None, None])


class ToImage(Net):
    """x (B, inputs, H, W), w (B, width) -> an image (B, channels, H, W): modulated, not demodulated."""

    def __init__(self, inputs: int, channels: int, width: int) -> None:
        super().__init__()
        self.style = EqualLinear(width, inputs, bias=1.0)
        self.scale = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b _ h w"], w: Float[Tensor, "b _"]) -> Float[Tensor, "b _ h w"]:
        y = modulated(x, self.weight, self.style(w) * self.scale, demodulate=False)
        return y + self.bias[:, None, None]


class StyleMapping(Net):
    """z (B, latent) and cond -> w (B, width). depth: layers. classes: of labels, or None. rate: of learning."""

    def __init__(self, latent: int, width: int, depth: int = 8, classes: int | None = None, rate: float = 0.01) -> None:
        super().__init__()
        self.classes = classes
        self.embed = None if classes is None else ClassEmbedding(classes, latent)
        first = latent if classes is None else 2 * latent
        sizes = [first, *(width for _ in range(depth))]
        self.layers = nn.ModuleList(EqualLinear(a, b, rate=rate) for a, b in itertools.pairwise(sizes))

    def forward(self, z: Float[Tensor, "b _"], cond: Cond = NONE) -> Float[Tensor, "b _"]:
        h = pixel_norm(z)
        if self.embed is not None:
            h = torch.cat((h, pixel_norm(self.embed(cond, len(z)))), 1)
        for layer in self.layers:
            h = leaky(layer(h))
        return h


class StyleGenerator(Net):
    """z (B, latent) -> x (B, *shape), by styles w (B, width) of which each layer is given one.

    shape:   (C, H, W); the nets work on the first power of two that holds it.
    widths:  channels at 4x4, 8x8, … up to there. latent, width: of z and w. depth, rate: layers of the mapping, and λ.
    classes: of `cond["label"]`; None for no conditions.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        latent: int = 512,
        width: int = 512,
        depth: int = 8,
        rate: float = 0.01,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.edge = resolution(shape, widths)
        self.shape, self.latent, self.width, self.classes = tuple(shape), latent, width, classes
        self.layers = 2 * len(widths)  # that take a style; an image shares the next layer's
        self.mapping = StyleMapping(latent, width, depth, classes, rate)
        self.constant = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.larger = nn.ModuleList(StyledConv(a, b, width, double=True) for a, b in itertools.pairwise(widths))
        self.keep = nn.ModuleList(StyledConv(c, c, width) for c in widths)
        self.image = nn.ModuleList(ToImage(c, shape[0], width) for c in widths)

    def synthesise(self, styles: Float[Tensor, "b l _"], noise: Noise) -> Float[Tensor, " b *shape"]:
        """x of the styles (B, layers, width) of all layers."""
        w = styles.unbind(1)
        h = self.keep[0](self.constant.expand(len(styles), -1, -1, -1), w[0], noise)
        image = self.image[0](h, w[1])
        for k, larger in enumerate(self.larger, 1):
            h = self.keep[k](larger(h, w[2 * k - 1], noise), w[2 * k], noise)
            image = fir_doubled(image) + self.image[k](h, w[2 * k + 1])
        return unframed(image, self.shape)

    def forward(self, z: Float[Tensor, "b _"], cond: Cond = NONE, *, noise: Noise) -> Float[Tensor, " b *shape"]:
        w = self.mapping(z, cond)
        return self.synthesise(w[:, None].expand(-1, self.layers, -1), noise)


class _Residual(Net):
    """x (B, inputs, H, W) -> (B, outputs, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualConv(inputs, inputs)
        self.second = EqualConv(inputs, outputs, stride=2, padding=0)
        self.skip = EqualConv(inputs, outputs, 1, bias=False)

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ i j"]:
        h = _filtered(F.pad(leaky(self.first(x)), (2, 2, 2, 2)), stride=1, gain=1.0)
        y: Tensor = leaky(self.second(h)) + self.skip(fir_halved(x))
        return y * math.sqrt(0.5)


class StyleCritic(Net):
    """x (B, *shape) -> scores (B,): logits of "real".

    widths:  channels at 4x4, 8x8, … as the generator's. group: samples whose deviation is told; 1 for none.
    classes: of `cond["label"]`, whose embedding the features are projected on; None for no conditions.
    fill:    what frames pictures that are no power of two.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        group: int = 4,
        classes: int | None = None,
        fill: float = -1.0,
    ) -> None:
        super().__init__()
        self.edge = resolution(shape, widths)
        self.group, self.classes, self.fill = group, classes, fill
        self.first = EqualConv(shape[0], widths[-1], 1)
        self.halves = nn.ModuleList(_Residual(a, b) for a, b in itertools.pairwise(reversed(widths)))
        self.last = EqualConv(widths[0] + (group > 1), widths[0])
        self.hidden = EqualLinear(16 * widths[0], widths[0])
        self.score = EqualLinear(widths[0], 1)
        self.embed = None if classes is None else ClassEmbedding(classes, widths[0])

    def forward(self, x: Float[Tensor, "b _ h w"], cond: Cond = NONE) -> Float[Tensor, " b"]:
        h = leaky(self.first(framed(x, self.edge, self.fill)))
        for half in self.halves:
            h = half(h)
        h = leaky(self.last(with_deviation(h, self.group) if self.group > 1 else h))
        h = leaky(self.hidden(h.flatten(1)))
        scores: Tensor = self.score(h)[:, 0]
        if self.embed is None:
            return scores
        about = pixel_norm(self.embed(cond, len(x)))
        return scores + (h * about).sum(1) / math.sqrt(about.shape[1])
