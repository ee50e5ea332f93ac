"""Emoji in two styles: 1,263 pairs of pictures of 64x64 pixels, Google's (Noto) and Twitter's, of eight categories.

Files of the emoji-data project, about 2016: emoji.json (a list of objects with unified, category, sheet_x, sheet_y and
has_img_google, has_img_twitter) and two sheets of cells of 64 pixels, sheet_google_64.png and sheet_twitter_64.png,
with alpha, which are laid on white. Source: C. Henderson, "emoji-data".

The split is ours, by item: sorted by their code, of each ten the fifth is for validation and the tenth for the test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import UserError, unknown
from .items import Stored
from .roots import find
from .space import Pictures
from .table import describe

STYLES = ("google", "twitter")
CATEGORIES = describe("emoji").classes
_PARTS = {"train": (0, 1, 2, 3, 5, 6, 7, 8), "valid": (4,), "test": (9,)}
_CELL = 64


class Emoji(Stored):
    """`Items` of x (B, 3, size, size) in [-1, 1], and cond source, the same emoji in the other style, and label (B,).

    part: "train" (1,011 items), "valid" or "test" (126 each). style: of x, "google" or "twitter". size: 64, or a
    divisor of it, to which the cells are averaged. root: the only folder to look in.
    Raises UserError, on first use, where a file is missing or damaged.
    """

    levels, paired = 256, True

    def __init__(
        self, part: str = "train", *, style: str = "twitter", size: int = 64, root: str | Path | None = None
    ) -> None:
        if part not in _PARTS:
            raise unknown("part of the emoji", part, _PARTS)
        if style not in STYLES:
            raise unknown("style of emoji", style, STYLES)
        if size < 1 or _CELL % size:
            raise UserError(f"Emoji of {size} pixels: take 64, 32, 16 or 8.")
        self.part, self.style, self.size, self.root = part, style, size, root

    def where(self) -> tuple[str, Path]:
        """The form of the files ("sheets") and their folder. UserError where they are not found."""
        names = ["emoji.json", *(f"sheet_{style}_64.png" for style in STYLES)]
        return find("emoji", {"sheets": names}, root=self.root, advice="get them from the emoji-data project, or ")

    def read(self) -> dict[str, Any]:
        """The part's pixels in both styles, and categories."""
        folder = self.where()[1]
        entries = _entries(folder / "emoji.json")
        kept = [e for i, e in enumerate(entries) if i % 10 in _PARTS[self.part]]
        other = next(style for style in STYLES if style != self.style)
        x, source = (self._cells(folder / f"sheet_{style}_64.png", kept) for style in (self.style, other))
        label = torch.tensor([CATEGORIES.index(e["category"]) for e in kept])
        return {"x": x, "cond": {"source": source, "label": label}}

    def take(self, index: Tensor) -> dict[str, Any]:
        """The pairs of that index (B,)."""
        taken = super().take(index)
        half = (self.levels - 1) / 2
        taken["cond"]["source"] = taken["cond"]["source"].to(taken["x"].dtype).sub_(half).div_(half)
        return taken

    def _cells(self, path: Path, entries: list[dict[str, Any]]) -> Tensor:
        """The cells of a sheet (N, 3, size, size), bytes."""
        try:
            with Image.open(path) as file:
                sheet = file.convert("RGBA")
        except (OSError, ValueError) as error:
            raise UserError(f"{str(path)!r} is cut short or damaged ({error}): fetch it again.") from error
        white = Image.new("RGBA", sheet.size, "white")
        pixels: NDArray[np.uint8] = np.asarray(Image.alpha_composite(white, sheet).convert("RGB"))
        corners = [(_CELL * e["sheet_y"], _CELL * e["sheet_x"]) for e in entries]
        if any(y < 0 or x < 0 or y + _CELL > pixels.shape[0] or x + _CELL > pixels.shape[1] for y, x in corners):
            raise UserError(f"{str(path)!r} is too small for the cells that emoji.json names: fetch both again.")
        cells = np.stack([pixels[y : y + _CELL, x : x + _CELL] for y, x in corners])  # (N, 64, 64, 3)
        n, k = self.size, _CELL // self.size
        mean = cells.reshape(len(cells), n, k, n, k, 3).mean((2, 4)).round().astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(mean.transpose(0, 3, 1, 2)))


def _entries(path: Path) -> list[dict[str, Any]]:
    """The emoji that there are in both styles, sorted by their code; "Symbols" where no category is said."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        found = [e for e in table if all(e[f"has_img_{style}"] for style in STYLES)]
        chosen = [
            {
                "unified": str(e["unified"]),
                "category": e["category"] or "Symbols",
                "sheet_x": int(e["sheet_x"]),
                "sheet_y": int(e["sheet_y"]),
            }
            for e in found
        ]
        if not chosen or not all(e["category"] in CATEGORIES for e in chosen):
            raise ValueError("no emoji of known categories")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is not the table of emoji-data ({error}): fetch it again.") from error
    return sorted(chosen, key=lambda e: e["unified"])


def space(size: int = 64) -> Pictures:
    """The `Space` of the emoji."""
    return Pictures((3, size, size), CATEGORIES)
