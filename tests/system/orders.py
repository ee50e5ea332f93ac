"""Which item comes when, with which key and pixels, over a million: for any number of workers, and after resuming.

    python -m tests.system.orders --n 1000000

Three streams: numbers in memory, shuffled; augmented digits; and an album of PNG files in buckets of two aspects,
augmented. Each is drawn with no worker and written down as one checksum a batch, over index, key, x and conditions.
It must come again from 1, 2 and 4 workers, and from sources that were restored at random places from their state
written as JSON, having been anywhere before.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from morphogen import data
from morphogen.core import Model, Place, Source, leaves
from morphogen.data.augment import Augmented, Flip, Shift

from .lives import asked, tell

WORKERS = (0, 1, 2, 4)
AFTER = 3  # batches that are compared after each resuming
MODEL = Model()


def numbers(workers: int) -> Source:
    """A prime number of rows, so that no epoch ends where a batch does."""
    x = torch.arange(99_991, dtype=torch.float32)[:, None]
    return data.Shuffled(data.Tensors(x, {"label": torch.arange(99_991) % 7}), 500, workers=workers)


def digits(workers: int) -> Source:
    """The 1,437 digits, moved and mirrored."""
    return Augmented(data.Shuffled(data.Digits(), 250, workers=workers), (Shift(1), Flip()))


def album(folder: Path) -> Callable[[int], Source]:
    """61 pictures of two aspects, mirrored."""
    rng = np.random.default_rng(0)
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(61):
        shape = (8, 16, 3) if i % 3 else (12, 8, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(pictures / f"{i:03d}.png")
    index, shapes = data.index(pictures), ((6, 12), (12, 8))

    def made(workers: int) -> Source:
        sources = [
            data.Shuffled(data.Album(pictures, index, size=s, among=shapes, workers=0), 100 + 50 * k, workers=workers)
            for k, s in enumerate(shapes)
        ]
        return Augmented(data.Buckets(sources), (Flip(),))

    return made


def started(source: Source) -> Source:
    source.start(Place(seed=11))
    return source


def sums(source: Source, n: int, *, batches: int | None = None) -> tuple[list[int], int, list[Any]]:
    """A checksum of each batch until `n` indices have come, how many came, and the state after each."""
    found: list[int] = []
    states: list[Any] = []
    count = 0
    while count < n and (batches is None or len(found) < batches):
        batch, total = source.next(MODEL, {}), 0
        for name, tensor in leaves(batch):
            total = zlib.crc32(tensor.contiguous().numpy().tobytes(), zlib.crc32(name.encode(), total))
        found.append(total)
        states.append(json.dumps(source.state()))
        count += len(batch["index"])
    return found, count, states


def campaign(n: int, folder: Path, resumes: int = 25, seed: int = 0) -> dict[str, int]:
    """Draw `n` indices of each stream in every way."""
    rng = random.Random(seed)
    found = {"indices": 0, "batches": 0, "resumes": 0, "different": 0}
    for make in (numbers, digits, album(folder)):
        expected, count, states = sums(started(make(0)), n)
        assert len(set(expected)) == len(expected)  # what never differs would hold nothing
        found["indices"] += count
        for workers in WORKERS:
            if workers:
                got, _, there = sums(started(make(workers)), n)
                found["batches"] += len(got)
                found["different"] += sum(a != b for a, b in zip(got, expected, strict=True)) + (there != states)
            source = started(make(workers))
            for _ in range(resumes):  # the same source, forth and back, and now and then a new one
                source = source if rng.random() < 0.8 else started(make(workers))
                at = rng.randrange(len(expected) - AFTER)
                source.restore(json.loads(states[at]))
                got, _, _ = sums(source, n, batches=AFTER)
                found["resumes"] += 1
                found["different"] += got != expected[at + 1 : at + 1 + AFTER]
    return found


if __name__ == "__main__":
    told = asked("orders", n=1_000_000)
    os.environ["MORPHOGEN_CACHE"] = told.folder + "/cache"
    tell(campaign(told.n, Path(told.folder)), told.record)
