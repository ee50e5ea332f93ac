r"""Adaptive augmentation: the critic sees real and made pictures changed alike, as often as it takes not to overfit.

    each change is made with probability p, to each picture by itself; after every few batches

    r = E sign D(T x),     p <- clip(p ± samples / (1000 kimg)),  up where r is above its target 0.6, else down

A critic that has learned the training pictures by heart scores all of them as real (r -> 1). A change that is made
with probability p turns a law of pictures into (1 - p) I + p K of it, which can be inverted while p is below 1: where
the laws of augmented pictures are equal, those of the pictures are, and nothing leaks into what is drawn.

    moves    mirrored; turned by quarters; shifted by whole pixels; scaled; turned; stretched; shifted
    colours  brightness, contrast, luma flip, hue, saturation

All moves but the first two make one affine map, by which a picture is resampled once, mirrored at its border.

Karras, Aittala, Hellsten, Laine, Lehtinen & Aila 2020, "Training generative adversarial networks with limited data",
arXiv:2006.06676, section 2 and appendix B. Departures: bilinear resampling (there: a wavelet's low-pass filter); p ends
at 1; quarter turns only of squares; hue and saturation only of colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Net, Noise, everyone
from ..errors import UserError, unknown

Chance = Callable[[float], Tensor]  # of a share of p: which samples (B,) are changed


def _rotation(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, one), 1).view(-1, 3, 3)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack((x, y, torch.ones_like(x)), 1))


def _shift(x: Tensor, y: Tensor) -> Tensor:
    matrix = torch.eye(3, dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix


# ---- moves: homogeneous maps (B, 3, 3) of output to input places, in pixels from the centre ------------------------


def _whole_shift(u: Tensor, z: Tensor, size: tuple[int, int]) -> Tensor:
    h, w = size
    return _shift(((2 * u[:, 0] - 1) * w / 8).round(), ((2 * u[:, 1] - 1) * h / 8).round())


def _scale(u: Tensor, z: Tensor, size: tuple[int, int]) -> Tensor:
    s = (0.2 * z[:, 0]).exp2()
    return _scaling(s, s)


def _turn(u: Tensor, z: Tensor, size: tuple[int, int]) -> Tensor:
    return _rotation((2 * u[:, 0] - 1) * math.pi)


def _stretch(u: Tensor, z: Tensor, size: tuple[int, int]) -> Tensor:
    s = (0.2 * z[:, 0]).exp2()
    return _scaling(s, 1 / s)


def _any_shift(u: Tensor, z: Tensor, size: tuple[int, int]) -> Tensor:
    h, w = size
    return _shift(z[:, 0] * w / 8, z[:, 1] * h / 8)


Move = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]  # of uniforms, normals (B, 2) each, and (H, W)
MOVES: Mapping[str, Move] = {
    "shift": _whole_shift,
    "scale": _scale,
    "turn": _turn,
    "stretch": _stretch,
    "any-shift": _any_shift,
}

# ---- colours: homogeneous maps (B, 4, 4) of (r, g, b, 1), values in [-1, 1] ----------------------------------------

_GREY = 1 / math.sqrt(3)  # the axis of greys


def _colour(linear: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    matrix = torch.eye(4, dtype=linear.dtype, device=linear.device).repeat(len(linear), 1, 1)
    matrix[:, :3, :3] = linear
    matrix[:, :3, 3] = offset
    return matrix


def _eye(like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device).expand(len(like), 3, 3)


def _brightness(u: Tensor, z: Tensor) -> Tensor:
    return _colour(_eye(z), 0.2 * z[:, :1])


def _contrast(u: Tensor, z: Tensor) -> Tensor:
    return _colour(_eye(z) * (0.5 * z[:, 0]).exp2()[:, None, None])


def _luma_flip(u: Tensor, z: Tensor) -> Tensor:
    flipped = (u[:, 0] < 0.5).to(z.dtype)[:, None, None]
    return _colour(_eye(z) - 2 * _GREY**2 * flipped)  # the reflection that turns black to white


def _hue(u: Tensor, z: Tensor) -> Tensor:
    angle = ((2 * u[:, 0] - 1) * math.pi)[:, None, None]
    cross = _GREY * torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=z.dtype, device=z.device)
    return _colour(angle.cos() * _eye(z) + angle.sin() * cross + (1 - angle.cos()) * _GREY**2)


def _saturation(u: Tensor, z: Tensor) -> Tensor:
    much = z[:, 0].exp2()[:, None, None]
    return _colour(_GREY**2 + (_eye(z) - _GREY**2) * much)


Colour = Callable[[Tensor, Tensor], Tensor]
COLOURS: Mapping[str, Colour] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "luma-flip": _luma_flip,
    "hue": _hue,
    "saturation": _saturation,
}
CHANGES = ("mirror", "quarter", *MOVES, *COLOURS)
_COLOURED = ("hue", "saturation")


class Adaptive(Net):
    """x (B, C, H, W) in [-1, 1] -> the same, changed by keyed noise; C = 1 grey or 3 colours. Differentiable in x.

    changes: names in CHANGES, in that order; () is everything but "mirror" (which only some data allow).
    p:       at the start. target: of r. kimg: thousand pictures in which p could go from 0 to 1; 0 keeps p as it is.
    every:   batches between two adjustments.
    """

    p: Tensor
    signs: Tensor

    def __init__(
        self,
        changes: Sequence[str] = (),
        *,
        p: float = 0.0,
        target: float = 0.6,
        kimg: float = 500.0,
        every: int = 4,
    ) -> None:
        super().__init__()
        for name in changes:
            if name not in CHANGES:
                raise unknown("augmentation", name, CHANGES)
        if not 0 <= p <= 1 or not -1 <= target <= 1 or kimg < 0 or every < 1:
            raise UserError(
                f"Adaptive was given p={p}, target={target}, kimg={kimg}, every={every}: give a probability, a mean of"
                " signs from -1 to 1, 0 pictures or more, and 1 batch or more."
            )
        self.changes = tuple(changes) or CHANGES[1:]
        self.target, self.kimg, self.every = target, kimg, every
        self.register_buffer("p", torch.tensor(float(p)))
        self.register_buffer("signs", torch.zeros(3, dtype=torch.float64))  # their sum, samples, batches

    def forward(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        b, channels, height, width = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        place = torch.eye(3, dtype=dtype, device=x.device).repeat(b, 1, 1)
        colour = torch.eye(4, dtype=dtype, device=x.device).repeat(b, 1, 1)
        moved = coloured = torch.zeros(b, dtype=torch.bool, device=x.device)
        for name in self.changes:
            u = noise.uniform(3, dtype=dtype).to(x.device)
            z = noise.normal(2, dtype=dtype).to(x.device)
            hit, u = u[:, 0] < self.p.to(u), u[:, 1:]
            if name == "mirror":
                x = torch.where((hit & (u[:, 0] < 0.5))[:, None, None, None], x.flip(3), x)
            elif name == "quarter":
                x = self._quarters(x, hit, (4 * u[:, 0]).long())
            elif name in MOVES:
                place = torch.where(hit[:, None, None], place @ MOVES[name](u, z, (height, width)), place)
                moved = moved | hit
            elif channels not in (1, 3):
                raise UserError(f"{name!r} is of grey or RGB pictures, and here are {channels} channels: leave it out.")
            elif channels == 3 or name not in _COLOURED:
                colour = torch.where(hit[:, None, None], COLOURS[name](u, z) @ colour, colour)
                coloured = coloured | hit
        x = torch.where(moved[:, None, None, None], _resampled(x, place), x)
        return torch.where(coloured[:, None, None, None], _recoloured(x, colour), x)

    @staticmethod
    def _quarters(x: Tensor, hit: Tensor, turns: Tensor) -> Tensor:
        if x.shape[2] != x.shape[3]:
            return x
        turned = torch.stack([x.rot90(k, (2, 3)) for k in range(4)], 1)  # (B, 4, C, H, W)
        return turned[torch.arange(len(x), device=x.device), torch.where(hit, turns, 0)]

    @torch.no_grad()
    def adjust(self, scores: Float[Tensor, " b"]) -> None:
        """Take in the critic's scores (B,) of real pictures and, where it is time, move p."""
        if not self.kimg:
            return
        ones = torch.ones_like(scores)
        told = everyone.sum(torch.stack((scores.sign().sum(), ones.sum())).double().to(self.signs.device))
        self.signs += torch.cat((told, told.new_ones(1)))
        total, samples, batches = self.signs.unbind()
        move = (total / samples - self.target).sign() * samples / (1000 * self.kimg)
        due = batches >= self.every
        self.p.copy_(torch.where(due, (self.p + move.to(self.p)).clamp(0, 1), self.p))
        self.signs.copy_(torch.where(due, 0.0, self.signs))


def _resampled(x: Tensor, place: Tensor) -> Tensor:
    """x (B, C, H, W) read at the places that the maps (B, 3, 3), in pixels from the centre, lead to."""
    height, width = x.shape[2:]
    half = place.new_tensor([width / 2, height / 2, 1.0])
    theta = (place * half / half[:, None])[:, :2]  # from units of half the picture to the same
    grid = F.affine_grid(theta, list(x.shape), align_corners=False).to(x.dtype)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _recoloured(x: Tensor, colour: Tensor) -> Tensor:
    """x with its colours mapped; a grey picture has three equal ones, whose mean is taken."""
    linear, offset = colour[:, :3, :3].to(x.dtype), colour[:, :3, 3].to(x.dtype)
    if x.shape[1] == 1:
        linear, offset = linear.sum((1, 2), keepdim=True) / 3, offset.mean(1, keepdim=True)
    return torch.einsum("bij,bjhw->bihw", linear, x) + offset[:, :, None, None]
