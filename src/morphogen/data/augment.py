"""Augmentation as a function of each sample's key: the same for any batch size, order or rank.

Each is called with x (B, ...), images (B, C, H, W) where it moves pixels, and the batch's `Noise`, and returns x of the
same shape; row i depends on x[i] and key i alone. `fill` is the background's value, which comes in at the edges; None
mirrors the image there. `Augmented` applies them to what a source gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Batch, Items, Loss, Model, Noise, Place, Source, State, keys
from ..errors import UserError
from ..spec import Remembers

_AUGMENT = 0xA6E7  # keys of what is done here are not the losses' own


@runtime_checkable
class Augmentation(Protocol):
    """A change of x (B, ...) by keyed noise."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor: ...


class Shift(Remembers):
    """Moves each image by a whole number of pixels, uniform on -pixels … pixels, along either axis."""

    def __init__(self, pixels: int, fill: float | None = -1.0) -> None:
        if pixels < 0:
            raise UserError(f"Shift was given {pixels} pixels: give the largest shift, 0 or more.")
        self.pixels, self.fill = pixels, fill

    def __call__(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        b, _, h, w = x.shape
        p = self.pixels
        if self.fill is None and p >= min(h, w):
            raise UserError(f"Shift({p}) cannot mirror images of {h} x {w}: give fewer pixels, or a fill.")
        border = (p, p, p, p)
        x = F.pad(x, border, mode="reflect") if self.fill is None else F.pad(x, border, value=self.fill)
        start = noise.integers(2 * p + 1, 2)  # (B, 2)
        row = start[:, :1] + torch.arange(h, device=x.device)  # (B, H)
        column = start[:, 1:] + torch.arange(w, device=x.device)  # (B, W)
        sample = torch.arange(b, device=x.device)[:, None, None]
        return x[sample, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


class Flip(Remembers):
    """Mirrors each image left to right with probability p."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise UserError(f"Flip was given p={p}, which is no probability: use 0 to 1.")
        self.p = p

    def __call__(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        mirrored = noise.uniform(1, 1, 1, dtype=torch.float32) < self.p  # (B, 1, 1, 1)
        return torch.where(mirrored, x.flip(3), x)


class Crop(Remembers):
    """A window of size (H, W) of each image, where it lies uniform over all places; of items made a little larger."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = tuple(size)
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"Crop was given the size {size}: give (height, width), each 1 or more.")

    def __call__(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c i j"]:
        (b, _, h, w), (i, j) = x.shape, self.size
        if i > h or j > w:
            raise UserError(f"Crop({self.size}) is larger than the images of {h} x {w}: make the items larger.")
        row = noise.integers(h - i + 1, 1) + torch.arange(i, device=x.device)  # (B, i)
        column = noise.integers(w - j + 1, 1) + torch.arange(j, device=x.device)  # (B, j)
        sample = torch.arange(b, device=x.device)[:, None, None]
        return x[sample, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)  # (B, i, j, C) -> (B, C, i, j)


class Warp(Remembers):
    """Turns and scales each image about its centre and slants it, bilinearly; each change is uniform on its interval.

    degrees: largest turn, either way (positive is against the clock). scale: largest change of the scale, either way,
    as a share. shear: largest slant of the columns, as a slope.
    """

    def __init__(
        self, degrees: float = 10.0, scale: float = 0.1, shear: float = 0.0, fill: float | None = -1.0
    ) -> None:
        if not 0 <= scale < 1:
            raise UserError(
                f"Warp was given scale={scale}: give the largest share that images grow or shrink by, below 1."
            )
        self.degrees, self.scale, self.shear, self.fill = degrees, scale, shear, fill

    def __call__(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        h, w = x.shape[2:]
        turn, grow, slant = (2 * noise.uniform(3, dtype=x.dtype) - 1).unbind(1)  # (B,) each
        angle, size = turn * (self.degrees * torch.pi / 180), 1 + grow * self.scale
        cos, sin, slope = angle.cos() / size, angle.sin() / size, slant * self.shear
        zero = torch.zeros_like(cos)
        # Where each output pixel comes from, in units of half the image: the axes' lengths enter where it turns.
        first = torch.stack((cos, (slope * cos - sin) * (h / w), zero), 1)
        second = torch.stack((sin * (w / h), slope * sin + cos, zero), 1)
        grid = F.affine_grid(torch.stack((first, second), 1), list(x.shape), align_corners=False)  # (B, H, W, 2)
        if self.fill is None:
            return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
        return F.grid_sample(x - self.fill, grid, padding_mode="zeros", align_corners=False) + self.fill


class Dequantise(Remembers):
    """Spreads each value uniformly over its cell of side 2 / (levels - 1), so that levels on [-1, 1] have a density.

    The log-density of what comes out, averaged, is at most the log-probability of the levels less the log of the cell's
    volume (Theis, van den Oord & Bethge 2016, "A note on the evaluation of generative models", arXiv:1511.01844).
    """

    def __init__(self, levels: int = 256) -> None:
        if levels < 2:
            raise UserError(f"Dequantise was given {levels} levels: give the number of values of x, at least 2.")
        self.levels = levels

    def __call__(self, x: Float[Tensor, " b *shape"], noise: Noise) -> Float[Tensor, " b *shape"]:
        u = noise.uniform(*x.shape[1:], dtype=x.dtype)
        return x + (u - 0.5) * (2 / (self.levels - 1))


class WhiteNoise(Remembers):
    """Adds noise of deviation `std` to every value: what a denoising autoencoder is to take away again."""

    def __init__(self, std: float) -> None:
        if std < 0:
            raise UserError(f"WhiteNoise was given the deviation {std}: give 0 or more.")
        self.std = std

    def __call__(self, x: Float[Tensor, " b *shape"], noise: Noise) -> Float[Tensor, " b *shape"]:
        return x + self.std * noise.normal(*x.shape[1:], dtype=x.dtype).to(x.device)


class Binarise(Remembers):
    """Each value becomes `high` with the probability (x - low) / (high - low), else `low`: the dynamic binarisation of
    Salakhutdinov & Murray 2008, "On the quantitative analysis of deep belief networks", and Burda et al. 2016.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise UserError(f"Binarise was given low={low}, high={high}: give low < high.")
        self.low, self.high = low, high

    def __call__(self, x: Float[Tensor, " b *shape"], noise: Noise) -> Float[Tensor, " b *shape"]:
        u = noise.uniform(*x.shape[1:], dtype=x.dtype)  # a share of 1 is always on, of 0 never
        on = u < (x - self.low) / (self.high - self.low)
        return torch.where(on, self.high, self.low).to(x.dtype)


# ---- where they are applied ----------------------------------------------------------------------------------------


class Augmented(Remembers):
    """A source whose x are augmented, anew each time that an item comes; a `Source`."""

    def __init__(self, source: Source, augment: tuple[Augmentation, ...]) -> None:
        self.source, self.augment = source, tuple(augment)

    def start(self, place: Place) -> None:
        """Take one's place among the ranks, at the beginning of the stream."""
        self.source.start(place)

    def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
        """The source's next batch, augmented."""
        batch = self.source.next(actor, heard)
        x, noise = batch["x"], Noise(keys(batch["key"], _AUGMENT))
        for change in self.augment:
            x = change(x, noise)
        return {**batch, "x": x}

    def state(self) -> State:
        """The source's own: what is done to a sample follows from its key."""
        return self.source.state()

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self.source.restore(state)


class AugmentedOnce(Remembers):
    """Items whose x are augmented once and for all, item i by a key of (seed, i): held-out data that stay; `Items`."""

    def __init__(self, items: Items, augment: tuple[Augmentation, ...], seed: int = 0) -> None:
        self.items, self.augment, self.seed = items, tuple(augment), seed

    def __len__(self) -> int:
        return len(self.items)

    def take(self, index: Tensor) -> dict[str, Any]:
        """The items' own batch, augmented."""
        batch = self.items.take(index)
        x, noise = batch["x"], Noise(keys(index, self.seed, _AUGMENT))
        for change in self.augment:
            x = change(x, noise)
        return {**batch, "x": x}
