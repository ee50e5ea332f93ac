"""MuJoCo's bodies drawn by Pillow, where there is no OpenGL: its geometries from the side, or from above.

Planar: a capsule or cylinder is a thick line, a sphere or ellipsoid a disc, a box the hull of its corners, a plane the
ground. From above where gravity does not matter (a model of a flat world), from the side else, following the bodies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .env import Picture

_PAPER, _INK, _GROUND = (250, 250, 248), (40, 40, 48), (205, 205, 200)
_GROUNDS, _LINES, _BOX = (0, 1), (3, 5), 6  # of mjtGeom: plane and field of heights; capsule and cylinder
_SLIDE, _HINGE = 2, 3  # of mjtJoint
_SIZE, _FINE = (320, 240), 2  # pixels; drawn at twice the size and reduced


def drawn(model: Any, data: Any) -> Picture:
    """A picture of an MjModel in the state of its MjData."""
    kinds = [int(k) for k in model.geom_type]
    solid = [g for g, kind in enumerate(kinds) if kind not in _GROUNDS and model.geom_rgba[g][3]]
    moving = [g for g in solid if model.geom_bodyid[g] > 0] or solid
    centre, flat = data.geom_xpos[moving].mean(0), _flat(model)
    across, up = (0, 1) if flat else (0, 2)
    width, height = (n * _FINE for n in _SIZE)
    scale = height / (2.6 * _reach(model, moving))
    middle = float(centre[0]), float(centre[1]) if flat else 0.38 * height / scale

    def at(point: Any) -> tuple[float, float]:
        return width / 2 + (point[across] - middle[0]) * scale, height / 2 - (point[up] - middle[1]) * scale

    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if not flat and _GROUNDS[0] in kinds:
        floor = at((middle[0], 0, 0))[1]
        pen.rectangle((0, floor, width, height), fill=_GROUND)
        for k in range(-20, 21):  # marks a unit apart show that it moves
            x = at((round(middle[0]) + k, 0, 0))[0]
            pen.line((x, floor, x, floor + 8 * _FINE), _INK, _FINE)
    for g in sorted(solid, key=lambda g: -data.geom_xpos[g][1] if not flat else data.geom_xpos[g][2]):
        ink = tuple(round(255 * float(c)) for c in model.geom_rgba[g][:3])
        size, place, turn = model.geom_size[g], data.geom_xpos[g], data.geom_xmat[g].reshape(3, 3)
        if kinds[g] in _LINES:
            ends, r = [at(place + s * size[1] * turn[:, 2]) for s in (-1, 1)], max(1.0, size[0] * scale)
            pen.line([*ends[0], *ends[1]], ink, round(2 * r))
            for x, y in ends:
                pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        elif kinds[g] == _BOX:
            signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, 8)
            pen.polygon(_hull([at(place + turn @ (s * size)) for s in signs.T]), fill=ink)
        else:
            (x, y), r = at(place), max(1.0, float(size[0]) * scale)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    return sheet.resize(_SIZE, Image.Resampling.LANCZOS)


def _flat(model: Any) -> bool:
    """Whether nothing can leave its height: hinges are upright, and what slides slides level."""
    upright = np.abs(model.jnt_axis[:, 2]) > 0.99
    level = np.abs(model.jnt_axis[:, 2]) < 0.01
    return bool((((model.jnt_type == _HINGE) & upright) | ((model.jnt_type == _SLIDE) & level)).all())


def _reach(model: Any, moving: list[int]) -> float:
    """How far the outermost part can be from the body that it hangs on by others: the size of it all, in any pose."""
    far = np.zeros(model.nbody)
    for b in range(1, model.nbody):
        parent = int(model.body_parentid[b])
        far[b] = far[parent] + (np.linalg.norm(model.body_pos[b]) if parent else 0.0)
    return float(max(far[model.geom_bodyid[g]] + model.geom_size[g].max() for g in moving))


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The convex hull of points, in order (Andrew's monotone chain)."""

    def half(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for p in ordered:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], p) <= 0:
                kept.pop()
            kept.append(p)
        return kept[:-1]

    ordered = sorted(points)
    return half(ordered) + half(ordered[::-1])


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
