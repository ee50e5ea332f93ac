"""Charts of points and curves as pictures, drawn by Pillow, like the pictures beside them."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from .space import Picture

_PAPER, _INK, _LINE = (250, 250, 248), (40, 40, 48), (205, 205, 200)
_COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (110, 110, 110), (170, 170, 20), (23, 190, 207),
)  # fmt: skip
_FINE = 2  # drawn at this times the size and reduced, which makes borders smooth


def colour(k: int, of: int) -> tuple[int, int, int]:
    """A colour of class k of `of`, unlike those of the others."""
    if of <= len(_COLOURS):
        return _COLOURS[k % len(_COLOURS)]
    red, green, blue = colorsys.hsv_to_rgb(k / of, 0.55 + 0.3 * (k % 2), 0.75 + 0.15 * (k % 3 == 0))
    return round(255 * red), round(255 * green), round(255 * blue)


def scatter(
    points: NDArray[Any], label: Sequence[int] | None = None, names: Sequence[str] = (), size: int = 640
) -> Picture:
    """Points (N, 2) of the plane, one scale for both axes, coloured by label, with a legend of the names.

    Raises UserError where there is no point, or one is not finite.
    """
    if len(points) == 0 or not np.isfinite(points).all():
        raise UserError(
            f"{len(points)} points that are not all finite cannot be drawn: give finite ones, at least one."
        )
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-12)
    legend = 110 if names else 0
    sheet = Image.new("RGB", ((size + legend) * _FINE, size * _FINE), _PAPER)
    pen = ImageDraw.Draw(sheet)
    at = (points - middle) / half * (0.47 * size * _FINE)
    radius = _FINE * max(1.3, min(3.5, 80 / len(points) ** 0.5))
    kinds = len(names) or (max(label, default=0) + 1 if label is not None else 1)
    order = np.random.default_rng(0).permutation(len(points))  # no class lies on top of all others
    for i in order:
        x, y = size * _FINE / 2 + at[i, 0], size * _FINE / 2 - at[i, 1]
        ink = colour(label[i], kinds) if label is not None else _COLOURS[0]
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    font = ImageFont.load_default(12 * _FINE)
    for k, name in enumerate(names):
        y = (12 + 20 * k) * _FINE
        pen.ellipse(((size + 6) * _FINE, y, (size + 16) * _FINE, y + 10 * _FINE), fill=colour(k, kinds))
        pen.text(((size + 22) * _FINE, y - 2 * _FINE), name[:14], _INK, font)
    return sheet.resize((size + legend, size), Image.Resampling.LANCZOS)


def named(points: NDArray[Any], names: Sequence[str], size: int = 900) -> Picture:
    """Points (N, 2) of the plane, each with its name where there is room for it: the first come first.

    Raises UserError where there is no point, or one is not finite.
    """
    if len(points) == 0 or len(points) != len(names) or not np.isfinite(points).all():
        raise UserError(f"{len(points)} points and {len(names)} names cannot be drawn: give finite ones, each a name.")
    low, high = np.quantile(points, 0.01, 0), np.quantile(points, 0.99, 0)  # the few that lie far off are at the edge
    half = max(float((high - low).max()) / 2, 1e-12)
    at = ((points - (low + high) / 2) / half * 0.46 * size).clip(-size / 2 + 4, size / 2 - 4)
    sheet = Image.new("RGB", (size, size), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    taken: list[tuple[float, float, float, float]] = []
    for (dx, dy), name in zip(at, names, strict=True):
        x, y = size / 2 + dx, size / 2 - dy
        box = pen.textbbox((x, y), name, font, anchor="mm")
        free = all(box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken)
        if free and box[0] >= 0 and box[2] <= size:
            pen.text((x, y), name, _INK, font, anchor="mm")
            taken.append(box)
        else:
            pen.ellipse((x - 1, y - 1, x + 1, y + 1), fill=_LINE)
    return sheet


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, size: int = 420) -> Picture:
    """Curves over the unit square, x to the right and y upwards, each named in a legend; beside the diagonal."""
    fine, edge = size * _FINE, 44 * _FINE
    inner = fine - 2 * edge
    sheet = Image.new("RGB", (fine, fine), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12 * _FINE)

    def spot(u: float, v: float) -> tuple[float, float]:
        return edge + u * inner, fine - edge - v * inner

    for k in range(6):
        tick = k / 5
        pen.line((*spot(tick, 0), *spot(tick, 1)), _LINE, _FINE)
        pen.line((*spot(0, tick), *spot(1, tick)), _LINE, _FINE)
        pen.text((spot(tick, 0)[0], fine - edge + 4 * _FINE), f"{tick:g}", _INK, font, anchor="ma")
        pen.text((edge - 6 * _FINE, spot(0, tick)[1]), f"{tick:g}", _INK, font, anchor="rm")
    pen.line((*spot(0, 0), *spot(1, 1)), _LINE, 2 * _FINE)
    for k, (name, (us, vs)) in enumerate(lines.items()):
        ink = colour(k, len(lines))
        pen.line([spot(u, v) for u, v in zip(us, vs, strict=True)], ink, 2 * _FINE, joint="curve")
        pen.text(spot(0.98, 0.03 + 0.055 * (len(lines) - 1 - k)), name, ink, font, anchor="rs")
    pen.text((fine / 2, fine - 6 * _FINE), x, _INK, font, anchor="ms")
    pen.text((edge, edge - 10 * _FINE), y, _INK, font, anchor="ls")
    return sheet.resize((size, size), Image.Resampling.LANCZOS)
