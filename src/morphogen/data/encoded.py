"""Items as a codec says them: their latents, made once, kept on the disk, and read from memory ever after."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from ..core import Codec, Infers, Items, Model, Noise, can, each, keys, leaves
from ..errors import UserError
from ..spec import Json, assets, spec
from .items import Stored
from .listing import pace
from .roots import cache, keep

_PART = 2048  # items in a file of the cache: what a kill can cost
_DRAW = 0xC0DE  # sets the noise of the draws apart from what training draws for the same index


class Encoded(Stored):
    """Latents of `items`, for training a prior in the codec's space: batches of "latent" (B, draws, *latent_shape) and
    the items' conditions, and no x.

    codec: a trained one, such as `frozen(RUN)`; its integers are kept in as few bytes as hold them.
    draws: of the law of an item's latents, where the codec has one (a VAE); each step of training takes one of them.
    batch: items that the codec is given at once. sha256: of the codec, made when this is made.

    They are made on first use, with a bar of progress, and kept in the cache folder under the hash of the codec and of
    the data: a process that is killed goes on with what is there. Raises UserError, on first use, where the codec is
    no longer the one that `sha256` was made of.
    """

    pins = ("sha256",)

    def __init__(self, items: Items, codec: Model, *, draws: int = 1, batch: int = 256, sha256: str = "") -> None:
        if not can(codec, Codec):
            raise UserError(f"A {type(codec).__name__} is no codec: Encoded needs a model with encode and decode.")
        if draws < 1 or batch < 1:
            raise UserError(f"Encoded has draws={draws}, batch={batch}: give 1 or more of each.")
        if draws > 1 and not can(codec, Infers):
            raise UserError(
                f"A {type(codec).__name__} says one latent of each x, so {draws} draws would be alike: take draws=1."
            )
        self.items, self.codec, self.draws, self.batch = items, codec, draws, batch
        self.sha256 = sha256 or fingerprint(codec)

    def read(self) -> dict[str, Any]:
        """The latents of all the items, from the cache or from the codec."""
        if fingerprint(self.codec) != self.sha256:
            raise UserError(
                f"The {type(self.codec).__name__} is not the one that these latents were made with: its weights or"
                " settings have changed. Take the codec from its finished run, as frozen(RUN), or start a new run."
            )
        folder, count = self.folder(), len(self.items)
        parts = [(start, min(start + _PART, count)) for start in range(0, count, _PART)]
        there = {part: _read(folder / f"{part[0]:09d}.safetensors", part[1] - part[0]) for part in parts}
        if missing := [part for part in parts if there[part] is None]:
            there |= self._encode(folder, missing, count)
        whole = [part for part in there.values() if part is not None]
        if not whole:
            return {"latent": torch.zeros(0, self.draws)}
        cond = {name: torch.cat([p[name] for p in whole]) for name in whole[0] if name != "latent"}
        return {
            "latent": torch.cat([p["latent"] for p in whole]),
            "cond": {name.removeprefix("cond."): c for name, c in cond.items()},
        }

    def folder(self) -> Path:
        """Where they are kept."""
        mark = [self.sha256, _mark(self.items), self.draws]
        return cache() / "encoded" / hashlib.sha256(json.dumps(mark).encode()).hexdigest()[:32]

    def _encode(self, folder: Path, parts: list[tuple[int, int]], count: int) -> dict[tuple[int, int], Any]:
        """The parts (first, end) that are missing, made and written."""
        training, made = self.codec.training, {}
        done = count - sum(end - start for start, end in parts)
        bar = tqdm(None, "Encoding", count, unit=" items", initial=done, mininterval=pace())
        try:
            self.codec.eval()
            with bar, torch.no_grad():
                for start, end in parts:
                    pieces = []
                    for index in torch.arange(start, end).split(self.batch):
                        pieces.append(self._piece(index))
                        bar.update(len(index))
                    part = {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}
                    written = save(part)
                    keep(folder / f"{start:09d}.safetensors", functools.partial(_write, written))
                    made[start, end] = part
        finally:
            self.codec.train(training)
        return made

    def _piece(self, index: Tensor) -> dict[str, Tensor]:
        """Latents (b, draws, ...) and conditions of the items `index`."""
        device = next((t.device for t in self.codec.state_dict().values()), torch.device("cpu"))
        taken = each(self.items.take(index), lambda t: t.to(device))
        x, cond = taken["x"], taken.get("cond") or {}
        if can(self.codec, Infers):
            noises = [Noise(keys(index, _DRAW, draw).to(device)) for draw in range(self.draws)]
            z = torch.stack([self.codec.infer(x, cond, noise=noise)[0] for noise in noises], 1)  # type: ignore[operator]
        else:
            z = _told(self.codec, x, cond)[:, None]
        if not z.is_floating_point():
            z = z.to(_smallest(int(getattr(self.codec, "codes", 1 << 31))))
        return {"latent": z.cpu()} | {f"cond.{name}": c.cpu() for name, c in leaves(cond)}


def _write(written: bytes, file: IO[bytes]) -> None:
    file.write(written)


def _told(codec: Any, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    z: Tensor = codec.encode(x, cond) if "cond" in inspect.signature(codec.encode).parameters else codec.encode(x)
    return z


def _smallest(codes: int) -> torch.dtype:
    """The smallest type of integers 0 .. codes - 1."""
    return next(t for t in (torch.uint8, torch.int16, torch.int32, torch.int64) if codes - 1 <= torch.iinfo(t).max)


def _read(path: Path, count: int) -> dict[str, Tensor] | None:
    """A part of `count` items; None where it is not there, or is none."""
    try:
        part = load_file(path)
    except (OSError, SafetensorError):
        return None
    return part if "latent" in part and all(len(t) == count for t in part.values()) else None


def fingerprint(codec: Model) -> str:
    """SHA-256 of all that decides what a codec says: the calls that made it, and its weights."""
    graph = spec(codec)
    for asset in assets(graph):
        asset["path"] = ""  # wherever it lies: its hash counts
    return _hash(graph, codec.state_dict())


def _mark(items: Items) -> str:
    """SHA-256 of items: of their numbers where they are in memory, else of how they were made."""
    if isinstance(items, Stored):
        return _hash([type(items).__name__, items.levels], dict(leaves(items.all(torch.device("cpu")))))
    return _hash([spec(items), len(items)], {})


def _hash(about: Json, tensors: Mapping[str, Tensor]) -> str:
    h = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {list(t.shape)};".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
