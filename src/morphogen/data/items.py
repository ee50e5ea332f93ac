"""Recorded data in memory: read on first use, kept as small as it came, turned into floats batch by batch."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core import each, leaves, size
from ..errors import UserError, unknown
from ..spec import Asset, Remembers


class Stored(Remembers):
    """Base of the `Items` whose tensors fit in memory. A subclass says in `read` where they come from.

    levels: None where x is given to the model as it is; else x holds the integers 0 .. levels - 1 and is mapped
    linearly onto [-1, 1]: level k becomes (2 k / (levels - 1)) - 1, exact at both ends.
    """

    levels: int | None = None
    _held: dict[torch.device, dict[str, Any]] | None = None

    @abstractmethod
    def read(self) -> dict[str, Any]:
        """Read all of the data: {"x": (N, ...), "cond": {name: (N, ...)}}, and further tensors (N, ...) by name where a
        loss takes them, or those alone. Called once, on first use.
        """

    def all(self, device: torch.device) -> dict[str, Any]:
        """The tensors as they are kept, on `device` (made once for each device)."""
        with _reading:
            if self._held is None:
                self._held = {torch.device("cpu"): _checked(self.read(), type(self).__name__)}
            if device not in self._held:
                self._held[device] = each(self._held[torch.device("cpu")], lambda t: t.to(device))
            return self._held[device]

    def __len__(self) -> int:
        return size(self.all(torch.device("cpu")))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the tensors need."""
        return sum(t.nbytes for _, t in leaves(self.all(torch.device("cpu"))))

    def take(self, index: Tensor) -> dict[str, Any]:
        """Items `index` (B,), on the index's device: {"x": (B, ...), "cond": {...: (B, ...)}} and what else is read."""
        held = (self._held or {}).get(index.device) or self.all(index.device)
        taken = each(held, lambda t: t.index_select(0, index))
        if self.levels is not None:
            half = (self.levels - 1) / 2
            taken["x"] = taken["x"].to(torch.get_default_dtype()).sub_(half).div_(half)
        return taken


_reading = threading.RLock()  # worker threads must not read the same file twice; reentrant, as items may wrap items


def _checked(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    whole = {**data, "cond": dict(data.get("cond") or {})}
    first = next(k for k, _ in leaves(whole))  # x, where it is there
    if whole[first].ndim == 0:
        raise UserError(f"The data of {name} is a single number: give {first} of shape (N, ...), N items.")
    counts = {k: t.shape[0] if t.ndim else 0 for k, t in leaves(whole)}
    for k, n in counts.items():
        if n != counts[first]:
            raise UserError(
                f"{name} has {counts[first]} items in {first} but {n} in {k}: give one entry for each item."
            )
    return whole


def part_named(part: str) -> str:
    """The name of a part of a data set. Raises UserError where it is neither "train" nor "test"."""
    if part not in ("train", "test"):
        raise unknown("part of a data set", part, ("train", "test"))
    return part


class Tensors(Stored):
    """The user's own arrays as `Items`.

    x: (N, ...), one item a row. cond: names to (N, ...), such as {"label": (N,) int64}. Each is a tensor, or an
    `Asset` of a .npy or .safetensors file (then the tensor named as the argument: "x", "label", ...), which a run
    can write down, as it cannot with a bare tensor. The floats of a .npy become torch's default dtype, because numpy
    makes float64 where nobody chose it; a tensor, given or in a .safetensors file, stays as it is.
    levels: given where x is integers 0 .. levels - 1 that the model shall see in [-1, 1] (256 for ordinary pictures).
    Raises UserError, on first use, where the lengths differ or a file is not what it should be.
    """

    def __init__(
        self,
        x: Tensor | Asset,
        cond: Mapping[str, Tensor | Asset] | None = None,
        *,
        levels: int | None = None,
    ) -> None:
        if levels is not None and levels < 2:
            raise UserError(f"Tensors has levels={levels}: give the number of values of x, at least 2, or None.")
        self._x, self._cond, self.levels = x, dict(cond or {}), levels

    def read(self) -> dict[str, Any]:
        """The arrays, files read."""
        x = _tensor(self._x, "x")
        if self.levels is not None and x.numel():
            low, high = x.min().item(), x.max().item()
            if x.is_floating_point() or low < 0 or high >= self.levels:
                raise UserError(
                    f"Tensors was given levels={self.levels} but x of {x.dtype} from {low} to {high}:"
                    f" give integers 0 to {self.levels - 1}, or levels=None for values used as they are."
                )
        return {"x": x, "cond": {k: _tensor(v, k) for k, v in self._cond.items()}}


class Pairs(Stored):
    """Recorded pairs of noise and data as `Items`: batches bring "z" (B, ...) beside x, which `Diffusion` learns from.

    file: a .safetensors file with x (N, ...), z (N, ...) and the conditions as "cond.label" …, such as `morphogen
    reflow` writes: with the samples that a run's model makes of each z, the second round of rectified flow (Liu et al.
    2022, arXiv 2209.03003). Raises UserError, on first use, where the file is not that, or x and z differ in shape.
    """

    def __init__(self, file: Asset) -> None:
        self.file = file

    def read(self) -> dict[str, Any]:
        """The tensors of the file."""
        path = self.file.path
        try:
            with safe_open(path, "pt") as file:
                held: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"The file {str(path)!r} holds no pairs: make it with `morphogen reflow RUN`.") from error
        cond = {name.removeprefix("cond."): t for name, t in held.items() if name.startswith("cond.")}
        if "x" not in held or "z" not in held or len(held) != 2 + len(cond):
            there = ", ".join(sorted(held)) or "nothing"
            raise UserError(f"The file {str(path)!r} holds {there}, and pairs are x, z and cond.…: `morphogen reflow`.")
        x, z = held["x"], held["z"]
        if x.shape != z.shape or x.dtype != z.dtype or not x.is_floating_point():
            raise UserError(
                f"The pairs in {str(path)!r} do not match: x is {x.dtype} {tuple(x.shape)},"
                f" z {z.dtype} {tuple(z.shape)}; make them again with `morphogen reflow RUN`."
            )
        return {"x": x, "z": z, "cond": cond}


def _tensor(given: Tensor | Asset, name: str) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach()
    if not isinstance(given, Asset):
        how = "Asset(path)" if isinstance(given, str | Path) else "a tensor: torch.as_tensor(…), torch.from_numpy(…)"
        raise UserError(f"Tensors was given a {type(given).__name__} as {name}: give {how}.")
    try:
        if given.path.suffix == ".npy":
            array = torch.from_numpy(np.load(given.path))
            return array.to(torch.get_default_dtype()) if array.is_floating_point() else array
        if given.path.suffix == ".safetensors":
            return _from_safetensors(given.path, name)
    except UserError:
        raise
    except Exception as error:  # of a damaged file numpy raises whatever it meets
        how = "numpy.save(file, array)" if given.path.suffix == ".npy" else "safetensors"
        raise UserError(
            f"The file {str(given.path)!r} cannot be read as an array of numbers: write it again with {how}."
        ) from error
    raise UserError(f"The file {str(given.path)!r} is of no known kind: save the array as .npy or .safetensors.")


def _from_safetensors(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        if name not in names:
            raise UserError(f"The file {str(path)!r} holds no tensor {name!r}, but {', '.join(names) or 'nothing'}.")
        tensor: Tensor = file.get_tensor(name)
        return tensor
