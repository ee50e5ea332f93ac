"""From a file's bytes to pixels of one size, by Pillow; the header is read, and its size refused, before anything else.

What comes: 8-bit grey or colour, first turned as its EXIF says; transparency lies on white; 16 bits become 8; CMYK and
palettes become RGB; of an animation the first picture is taken. Colour profiles are not applied.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # by which files of these are known
PIXELS = 64_000_000  # of the largest picture that is decoded, unless another number is asked for
_LANCZOS = Image.Resampling.LANCZOS
_WHITE = (255, 255, 255)
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class Bad(Exception):
    """Why a file cannot be used as a picture."""


def measure(data: bytes, pixels: int = PIXELS) -> tuple[int, int]:
    """Height and width of a picture as it is looked at, from its header. Raises Bad where it has more than `pixels`."""
    picture = _open(data, pixels)
    exif = Image.Exif()
    try:
        exif.load(picture.info.get("exif", b""))  # not getexif(), which would decode a PNG
        sideways = exif.get(ExifTags.Base.Orientation) in _SIDEWAYS
    except Exception as error:  # EXIF is read by hand, and damaged one raises whatever it meets
        raise Bad(f"its EXIF is damaged ({type(error).__name__})") from None
    width, height = picture.size
    return (width, height) if sideways else (height, width)


def decode(data: bytes, shape: tuple[int, int, int], fit: str = "crop", pixels: int = PIXELS) -> NDArray[np.uint8]:
    """The pixels (C, H, W) of a picture, C = 1 grey or 3 colours, made to fit by `FITS[fit]`.

    Raises Bad where it has more than `pixels`, or cannot be decoded.
    """
    channels, height, width = shape
    picture = _open(data, pixels)
    try:
        edge = 4 * max(height, width)
        picture.draft(None, (edge, edge))  # a JPEG far larger than wanted is decoded at a half, a quarter or an eighth
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    except Exception as error:  # of a damaged file Pillow's decoders raise whatever they meet
        raise Bad(f"it is damaged ({str(error) or type(error).__name__})") from None
    fitted = FITS[fit](_plain(upright), (width, height))
    array = np.asarray(fitted.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _open(data: bytes, pixels: int) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Bad(f"it has more than {pixels:,} pixels") from None
    except Exception as error:  # as above
        what = "empty" if not data else "no PNG, JPEG or WebP" if isinstance(error, OSError) else "damaged"
        raise Bad(f"it is {what}") from None
    if picture.width * picture.height > pixels:
        raise Bad(f"it has {picture.width:,} x {picture.height:,} pixels, more than {pixels:,}")
    return picture


def _plain(picture: Image.Image) -> Image.Image:
    """RGB or L of any mode that the three formats have."""
    if picture.mode.startswith("I"):  # 16 bits; Pillow's own conversion cuts them off at 255
        levels = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*_WHITE, 255)), layer).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


# ---- how a picture is made to fit (width, height) ------------------------------------------------------------------


def _crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(picture, size, _LANCZOS)


def _pad(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    scale = min(size[0] / picture.width, size[1] / picture.height)
    inner = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    sheet = Image.new("RGB", size, _WHITE)
    sheet.paste(picture.resize(inner, _LANCZOS), (round((size[0] - inner[0]) / 2), round((size[1] - inner[1]) / 2)))
    return sheet


def _stretch(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, _LANCZOS)


FITS: Mapping[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {
    "crop": _crop,  # covers the size, and what juts out is cut off evenly
    "pad": _pad,  # lies within the size, white around it
    "stretch": _stretch,
}
