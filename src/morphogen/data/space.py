"""The way between the user's objects and tensors: pictures, and points of the plane.

`volume` is the log of the volume of one quantisation cell, nats. A density p over R^D stands for probabilities of
discrete data by P(x) ≈ p(x) · cell, so bits/dim = -(log p(x) + volume) / (D ln 2). Pictures of L levels on [-1, 1]
have cells of side 2 / (L - 1): volume = D ln(2 / (L - 1)), which is D ln(2 / 255) for ordinary pictures.
"""

from __future__ import annotations

import csv
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..errors import UserError, unknown
from ..spec import Remembers

Picture = Image.Image
_PAPER, _INK = (250, 250, 248), (40, 40, 48)
_CELL = 64  # pixels: smaller pictures are shown enlarged by a whole factor, up to about this
_RAMP = ((13, 20, 45), (32, 94, 120), (86, 172, 120), (250, 231, 120))  # dark to light


class Pictures(Remembers):
    """The `Space` of pictures: x (C, H, W) in [-1, 1], C = 1 grey or 3 colours (RGB).

    shape: (C, H, W). classes: names of the labels. levels: values that a pixel can have (256 in ordinary pictures).
    Raises UserError where the shape is not that of a picture.
    """

    def __init__(self, shape: Sequence[int], classes: Sequence[str] = (), levels: int = 256) -> None:
        self.shape, self.classes, self.levels = tuple(shape), tuple(classes), levels
        if len(self.shape) != 3 or self.shape[0] not in (1, 3) or min(self.shape) < 1:
            raise UserError(f"Pictures of shape {self.shape} cannot be drawn: give (1, H, W) grey or (3, H, W) colour.")
        if levels < 2:
            raise UserError(f"Pictures of {levels} levels hold nothing: give levels=2 or more.")
        self.volume = math.prod(self.shape) * math.log(2 / (levels - 1))

    def encode(self, thing: Any) -> Tensor:
        """Give x (C, H, W) of a PIL image (0 to 255 mapped onto [-1, 1]) or of an array of levels (H, W) or (H, W, C).

        Raises UserError where the size is another, or the array does not hold integers 0 to levels - 1.
        """
        channels, height, width = self.shape
        if isinstance(thing, Image.Image):
            picture = ImageOps.exif_transpose(thing).convert("L" if channels == 1 else "RGB")
            pixels, top = np.asarray(picture), 255
        else:
            pixels, top = np.asarray(thing), self.levels - 1
            if not np.issubdtype(pixels.dtype, np.integer) or (
                pixels.size and not 0 <= pixels.min() <= pixels.max() <= top
            ):
                raise UserError(
                    f"This array of {pixels.dtype} is no picture: give integers 0 to {top}, or a PIL image."
                )
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.shape != (height, width, channels):
            found = "x".join(str(d) for d in pixels.shape)
            raise UserError(
                f"This picture is {found} (height x width x channels), not {height}x{width}x{channels}:"
                f" fit it first, with PIL.ImageOps.fit(picture, ({width}, {height})) or by adding or dropping channels."
            )
        x = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.int32)).to(torch.get_default_dtype())
        return (x - top / 2) / (top / 2)

    def decode(self, x: Tensor) -> list[Picture]:
        """PIL images of x (B, C, H, W); values beyond [-1, 1] are cut off, each pixel rounded to the nearest of 256."""
        return [Image.fromarray(p[:, :, 0] if p.shape[2] == 1 else p) for p in self._pixels(x)]

    def cond(self, n: int, **wishes: Any) -> dict[str, Tensor]:
        """Conditions of n samples: label= a class name, its number, or a sequence of these, repeated up to n.

        Without a label, none: {}. Raises UserError on an unknown name or wish, naming the nearest.
        """
        return labels(n, self.classes, wishes)

    def show(self, x: Tensor, columns: int | None = None, captions: Sequence[str] | None = None) -> Picture:
        """The pictures x (B, C, H, W) in one grid of `columns`, tiny ones enlarged; captions: a line under each."""
        pictures = self.decode(x)
        if not pictures:
            raise UserError("There is no picture to show: give at least one.")
        _, height, width = self.shape
        scale = max(1, _CELL // max(height, width))
        return grid(
            [p.resize((width * scale, height * scale), Image.Resampling.NEAREST) for p in pictures], columns, captions
        )

    def save(self, x: Tensor, folder: str | Path, names: Sequence[str] = ()) -> list[Path]:
        """Each of x (B, C, H, W) as a PNG, NAME.png of names (default: 00000 and so on), in `folder`; the paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.png" for name in names or [f"{i:05d}" for i in range(len(x))]]
        for path, picture in zip(paths, self.decode(x), strict=True):
            picture.save(path)
        return paths

    def _pixels(self, x: Tensor) -> NDArray[np.uint8]:
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"These samples are {tuple(x.shape)}, not (B, {', '.join(map(str, self.shape))}) pictures.")
        x = x.detach().float().nan_to_num(-1.0).clamp(-1, 1).add(1).mul(127.5).round()
        return x.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, C)


class Points(Remembers):
    """The `Space` of points of R^dims. low, high: the range of every coordinate that is drawn.

    classes: names of the labels (of a density's components). A point has no quantisation: volume = 0.
    """

    def __init__(self, low: float, high: float, dims: int = 2, classes: Sequence[str] = ()) -> None:
        if not low < high or dims < 1:
            raise UserError(f"Points from {low} to {high} in {dims} dimensions: give low < high and dims of 1 or more.")
        self.low, self.high, self.dims, self.classes = low, high, dims, tuple(classes)
        self.shape: tuple[int, ...] = (dims,)
        self.volume = 0.0

    def encode(self, thing: Any) -> Tensor:
        """Give x (dims,) of a sequence of numbers. Raises UserError where their count is another."""
        x = torch.as_tensor(thing, dtype=torch.get_default_dtype())
        if tuple(x.shape) != self.shape:
            raise UserError(f"This point has shape {tuple(x.shape)}: give {self.dims} numbers.")
        return x

    def decode(self, x: Tensor) -> list[tuple[float, ...]]:
        """The points of x (B, dims) as tuples of numbers."""
        return [tuple(row) for row in x.detach().cpu().tolist()]

    def cond(self, n: int, **wishes: Any) -> dict[str, Tensor]:
        """Conditions of n samples, as `Pictures.cond`."""
        return labels(n, self.classes, wishes)

    def show(self, x: Tensor, columns: int | None = None, *, size: int = 384) -> Picture:
        """How many points of x (B, dims) fall where: one picture of size x size pixels (`columns` says nothing here).

        In one dimension a histogram; of more than two, the first two coordinates.
        """
        points = x.detach().double().cpu().numpy()
        span = (self.low, self.high)
        if self.dims == 1:
            return _bars(np.histogram(points[:, 0], 64, span)[0], size)
        # cells of whole pixels, coarser for fewer points: enough in each that the picture shows the density, not chance
        cells = size // max(1, round(size / max(32, 0.4 * math.sqrt(len(points)))))
        counts = np.histogram2d(points[:, 1], points[:, 0], cells, (span, span))[0]  # rows are y
        return _heat(np.sqrt(counts), size)

    def chart(self, log_prob: Tensor, size: int = 384) -> Picture:
        """The density whose log (R * R,) is given at `nodes(R)`, drawn as `show` draws points; two dimensions."""
        side = math.isqrt(len(log_prob))
        p = log_prob.detach().double().exp().cpu().numpy().reshape(side, side)
        return _heat(np.sqrt(p), size)

    def nodes(self, side: int) -> Tensor:
        """(side * side, 2) centres of the cells of a grid over the square, rows of growing y, x fastest."""
        step = (self.high - self.low) / side
        line = self.low + step * (torch.arange(side, dtype=torch.float64) + 0.5)
        y, x = torch.meshgrid(line, line, indexing="ij")
        return torch.stack((x, y), -1).reshape(-1, 2)

    def save(self, x: Tensor, folder: str | Path) -> list[Path]:
        """All of x (B, dims) as points.csv in `folder`, a point a line; the one path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "points.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(self.decode(x))
        return [path]


# ---- labels --------------------------------------------------------------------------------------------------------


def labels(n: int, classes: Sequence[str], wishes: dict[str, Any]) -> dict[str, Tensor]:
    """{"label": (n,) int64} of the wish label=, or {} without one."""
    for name in wishes:
        if name != "label":
            raise unknown("condition", name, ["label"] if classes else [])
    wish = wishes.get("label")
    if wish is None:
        return {}
    if not classes:
        raise UserError("These data have no classes, so no label can be asked for: leave it out.")
    several = [wish] if isinstance(wish, str) or not isinstance(wish, Sequence | np.ndarray | Tensor) else list(wish)
    if not several:
        raise UserError("The list of labels is empty: give at least one, or none at all.")
    numbers = torch.tensor([number(w, classes) for w in several])
    return {"label": numbers.repeat(-(-n // len(numbers)))[:n]}


def number(wish: Any, classes: Sequence[str]) -> int:
    """The number of a class given by name or number. Raises UserError naming the nearest."""
    if isinstance(wish, str):
        if wish in classes:
            return list(classes).index(wish)
        if not wish.isdecimal():
            raise unknown("class", wish, classes)
        wish = int(wish)
    try:
        k = operator.index(wish)
    except TypeError:
        raise UserError(f"The label {wish!r} is neither a class's name nor its number.") from None
    if not 0 <= k < len(classes):
        raise UserError(f"There is no class {k}: the classes are numbered 0 to {len(classes) - 1}.")
    return k


# ---- drawing -------------------------------------------------------------------------------------------------------


def grid(pictures: Sequence[Picture], columns: int | None = None, captions: Sequence[str] | None = None) -> Picture:
    """Pictures of one size side by side, row by row; about square where `columns` is not given."""
    if columns is not None and columns < 1:
        raise UserError(f"A grid of {columns} columns shows nothing: take 1 or more.")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    gap, line = 4, 14 if captions is not None else 0
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + line + gap)), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, picture in enumerate(pictures):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + line + gap)
        sheet.paste(picture, (x, y))
        if captions is not None:
            text = captions[i]
            while text and font.getlength(text) > width:
                text = text[:-1]
            pen.text((x + width / 2, y + height + 1), text, _INK, font, anchor="ma")
    return sheet


def stacked(rows: Mapping[str, Tensor]) -> Picture:
    """Pictures (B, C, H, W) of several kinds, a named row of each below the other: a column is what one item became."""
    return grid([Pictures(tuple(x.shape[1:])).show(x, len(x)) for x in rows.values()], 1, list(rows))


def _heat(values: NDArray[Any], size: int) -> Picture:
    """Values (rows of growing y, columns) as colours, the brightest at the 99.5th percentile of those above zero."""
    above = values[values > 0]
    level = np.clip(values / (np.quantile(above, 0.995) if above.size else 1), 0, 1)[::-1]  # pictures grow downwards
    ramp = np.linspace(0, 1, len(_RAMP))
    colour = np.stack([np.interp(level, ramp, channel) for channel in np.array(_RAMP, float).T], -1)
    return Image.fromarray(colour.round().astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)


def _bars(counts: NDArray[Any], size: int) -> Picture:
    picture = Image.new("RGB", (size, size), _RAMP[0])
    pen, wide = ImageDraw.Draw(picture), size / len(counts)
    for i, h in enumerate(counts / max(1, counts.max()) * (size - 8)):
        if h >= 1:
            pen.rectangle((round(i * wide), size - round(h), round((i + 1) * wide) - 1, size - 1), fill=_RAMP[2])
    return picture
