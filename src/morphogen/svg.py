"""Charts as SVG, for reports. Imports nothing."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

Series = Mapping[str, Sequence[tuple[float, float]]]  # a line's name to its points
Band = Sequence[tuple[float, float, float]]  # x, low, high

STYLES = 8  # of lines, by the classes s0, s1, …
_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 300, 62, 14, 12, 40


def chart(
    series: Series,
    label: str = "step",
    *,
    bands: Mapping[str, Band] | None = None,
    faint: Series | None = None,
    decades: bool = False,
) -> str:
    """An SVG of lines over steps; logarithmic where positive values span more than a factor of twenty.

    bands: an area behind the line of that name. faint: thin lines behind all, without a name in the legend. decades:
    the steps, all above 0, on a logarithmic axis.
    """
    drawn = {name: _thinned(points) for name, points in series.items() if points}
    behind = [_thinned(points) for points in (faint or {}).values() if points]
    spots = [p for points in [*drawn.values(), *behind] for p in points]
    spots += [(x, y) for band in (bands or {}).values() for x, *ends in band for y in ends]
    xs, ys = [x for x, _ in spots], [y for _, y in spots]
    log = min(ys) > 0 and max(ys) / min(ys) > 20
    low, high = (math.log10(min(ys)), math.log10(max(ys))) if log else (min(ys), max(ys))
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    low, high = low - margin, high + margin
    left, right = min(0.0, min(xs)), max(xs) or 1.0
    if decades:
        left, right = math.log10(min(xs)) - 0.05, math.log10(max(xs)) + 0.05

    def at(x: float, y: float) -> tuple[float, float]:
        v = math.log10(y) if log else y
        return (
            _LEFT + ((math.log10(x) if decades else x) - left) / (right - left) * (_W - _LEFT - _RIGHT),
            _TOP + (high - v) / (high - low) * (_H - _TOP - _BOTTOM),
        )

    parts = []
    for value, text in _log_ticks(low, high) if log else _ticks(low, high):
        y = at(xs[0], value)[1]
        parts.append(f"<line class='grid' x1='{_LEFT}' x2='{_W - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{_LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>")
    for value, text in _log_ticks(left, right) if decades else _ticks(left, right, 5):
        x = at(value, 10**low if log else low)[0]
        parts.append(f"<line class='tick' x1='{x:.1f}' x2='{x:.1f}' y1='{_H - _BOTTOM}' y2='{_H - _BOTTOM + 5}'/>")
        parts.append(f"<text x='{x:.1f}' y='{_H - _BOTTOM + 18}' text-anchor='middle'>{text}</text>")
    parts.append(f"<line class='axis' x1='{_LEFT}' x2='{_W - _RIGHT}' y1='{_H - _BOTTOM}' y2='{_H - _BOTTOM}'/>")
    scale = ", logarithmic" if log else ""
    parts.append(
        f"<text class='name' x='{_W - _RIGHT}' y='{_H - 4}' text-anchor='end'>{html.escape(label)}{scale}</text>"
    )
    parts += [f"<polyline class='faint' points='{_path(at(*p) for p in points)}'/>" for points in behind]
    for name, band in (bands or {}).items():
        around = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
        kind = f"b{list(series).index(name) % STYLES}"
        parts.append(f"<polygon class='{kind}' points='{_path(at(*p) for p in around)}'/>")
    for i, (name, points) in enumerate(drawn.items()):
        kind = f"s{list(series).index(name) % STYLES}"
        parts.append(f"<polyline class='{kind}' points='{_path(at(*p) for p in points)}'/>")
        if len(points) <= 30:
            parts += [
                f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='2.6'/>" for x, y in (at(*p) for p in points)
            ]
        x = _LEFT + min(110, 380 // len(drawn)) * i
        parts.append(f"<line class='{kind}' x1='{x}' x2='{x + 18}' y1='{_H - 8}' y2='{_H - 8}'/>")
        parts.append(f"<text x='{x + 24}' y='{_H - 4}'>{html.escape(name)}</text>")
    return (
        f"<svg viewBox='0 0 {_W} {_H}' role='img' aria-label='{html.escape(', '.join(drawn))}'>{''.join(parts)}</svg>"
    )


def _path(spots: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)


def _thinned(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbours."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _ticks(low: float, high: float, about: int = 5) -> Iterator[tuple[float, str]]:
    """Round numbers between low and high."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    decimals = max(0, -math.floor(math.log10(step)))
    for k in range(math.ceil(low / step), math.floor(high / step) + 1):
        value = k * step
        big = abs(value) >= 1e5 or (value and decimals > 5)
        yield value, f"{value:.3g}" if big else f"{value:,.{decimals}f}"


def _log_ticks(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Powers of ten between 10^low and 10^high, and 2 and 5 times them where there are few."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    stride = max(1, round((high - low) / 6)) if factors == (1,) else 1
    for k in range(math.floor(low), math.ceil(high) + 1, stride):
        for f in factors:
            value = f * 10.0**k
            if low <= math.log10(value) <= high:
                yield value, f"{value:.{max(0, -k)}f}" if -4 <= k <= 4 else f"{value:.0e}"
