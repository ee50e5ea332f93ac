"""Films of pictures: a GIF by Pillow, or an .mp4 by PyAV where that is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from .space import Picture, grid

_LOOKED_AT = 16  # frames that a GIF's colours are chosen from


def film_path(path: Path) -> None:
    """Raise UserError unless the path can be a film's, and what writes it is here."""
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UserError(f"{str(path)!r} is no film's name: let it end in .gif, or in .mp4.")
    if path.suffix.lower() == ".mp4":
        _av()


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise UserError(
            "A film in .mp4 needs PyAV, which is not installed: pip install 'morphogen[film]', or write a .gif."
        ) from error


def film(pictures: Sequence[Picture], path: str | Path, seconds: float = 0.12, *, back: bool = True) -> None:
    """Write pictures of one size as a film, `seconds` each, the last longer.

    back: whether it runs there and back for ever, its first frame longer too. path: in .gif or .mp4.
    Raises UserError where there is no picture, for another ending, and for .mp4 where PyAV is missing.
    """
    if not pictures:
        raise UserError("A film needs a picture: give at least one.")
    path = Path(path)
    film_path(path)
    turn = [*pictures, *pictures[-2:0:-1]] if back else list(pictures)
    longer = {0, len(pictures) - 1} if back else {len(pictures) - 1}
    times = [seconds * (4 if i in longer else 1) for i in range(len(turn))]
    (_gif if path.suffix.lower() == ".gif" else _mp4)(turn, times, path, seconds)


def _gif(pictures: Sequence[Picture], times: Sequence[float], path: Path, seconds: float) -> None:
    """All frames in the same 256 colours, so that nothing flickers and only what has moved is stored."""
    some = {round(i * (len(pictures) - 1) / (_LOOKED_AT - 1)) for i in range(_LOOKED_AT)}
    colours = grid([pictures[i].convert("RGB") for i in sorted(some)]).quantize(
        256, Image.Quantize.MAXCOVERAGE
    )  # a small red dot stays red
    plain = Image.Dither.NONE
    first, *rest = (p.convert("RGB").quantize(palette=colours, dither=plain) for p in pictures)
    hundredths = [max(2, round(100 * t)) for t in times]  # a GIF's clock; browsers slow down what is faster than 2
    lasts = [10 * t for t in hundredths]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=lasts, loop=0, disposal=1)


def _mp4(pictures: Sequence[Picture], times: Sequence[float], path: Path, seconds: float) -> None:
    """H.264 in the colours that every player knows; a frame that lasts longer is written several times."""
    width, height = (2 * (n // 2) for n in pictures[0].size)  # its colours are of two pixels by two
    av = _av()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1 / seconds).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_image(picture.convert("RGB").crop((0, 0, width, height)))
            for _ in range(round(time / seconds)):
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
