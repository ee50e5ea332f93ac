"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong run.

A checkpoint is a folder `checkpoints/00000500/`: each part's tensors in `PART.safetensors`, everything else in
`state.json`, and `manifest.json`, which lists every file's size and SHA-256 and ends with the hash of itself. It is
written to a temporary folder, synced, and renamed in one step; tensors that training does not change are written
once, to `frozen/HASH.safetensors`. On loading, the newest checkpoint whose hashes all hold is taken.

Nothing here is unpickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .core import State
from .disk import make, settle, sync, write
from .errors import UserError
from .parallel import ALONE, Ranks

MANIFEST, STATE = "manifest.json", "state.json"
_MISTAKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # JSON that is not what was written


class Damaged(Exception):
    """A checkpoint that is not what was written; says which file and how."""


# ---- a state is JSON with tensors taken out ------------------------------------------------------------------------


class Piece(NamedTuple):
    """The rows of a tensor that this rank holds; what the ranks hold, one below the other, is the whole."""

    rows: Tensor


def pack(state: Any, tensors: dict[str, Tensor], name: str = "", seen: dict[Any, str] | None = None) -> Any:
    """The JSON skeleton of a state; its tensors go into `tensors` by dotted name, one that is used twice once."""
    seen = {} if seen is None else seen

    def inner(key: str, value: Any) -> Any:
        return pack(value, tensors, f"{name}.{key}" if name else key, seen)

    if isinstance(state, Tensor | Piece):
        kind, t = ("tensor", state) if isinstance(state, Tensor) else ("piece", state.rows)
        same = (t.data_ptr(), t.shape, t.stride(), t.dtype, t.device)
        if t.numel() == 0 or same not in seen:
            while name in tensors or name == "__metadata__":  # {"a": {"b": …}, "a.b": …}; a word of the file format
                name += "'"
            seen[same] = name
            tensors[name] = t.detach()
        return {kind: name if t.numel() == 0 else seen[same]}
    if isinstance(state, Mapping):
        if not all(isinstance(k, str) for k in state):
            raise TypeError(f"the state {name or 'itself'} has keys that are not strings")
        return {"map": {k: inner(k, v) for k, v in state.items()}}
    if isinstance(state, list | tuple):
        return [inner(str(i), v) for i, v in enumerate(state)]
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"the state {name} is a {type(state).__name__}: give tensors, numbers, strings, lists and mappings")


def unpack(skeleton: Any, tensors: Mapping[str, Tensor], others: Sequence[Mapping[str, Tensor]] = ()) -> Any:
    """The state that `pack` took apart. others: the `pieces` of the other ranks, in their order."""
    if isinstance(skeleton, dict):
        if "tensor" in skeleton:
            return tensors[skeleton["tensor"]]
        if "piece" in skeleton:
            return torch.cat([held[skeleton["piece"]] for held in (tensors, *others)])
        return {k: unpack(v, tensors, others) for k, v in skeleton["map"].items()}
    if isinstance(skeleton, list):
        return [unpack(v, tensors, others) for v in skeleton]
    return skeleton


def pieces(state: Any) -> dict[str, Tensor]:
    """The pieces in a state, by the names that `pack` gives them."""
    tensors: dict[str, Tensor] = {}

    def named(skeleton: Any) -> Iterator[str]:
        if isinstance(skeleton, dict) and "map" in skeleton:
            yield from (n for v in skeleton["map"].values() for n in named(v))
        elif isinstance(skeleton, dict) and "piece" in skeleton:
            yield skeleton["piece"]
        elif isinstance(skeleton, list):
            yield from (n for v in skeleton for n in named(v))

    return {name: tensors[name] for name in dict.fromkeys(named(pack(state, tensors)))}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in name order."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {list(t.shape)};".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


# ---- files ---------------------------------------------------------------------------------------------------------


def save_tensors(tensors: Mapping[str, Tensor], path: Path, note: dict[str, str] | None = None) -> None:
    """Write contiguous tensors that share no memory to a safetensors file, and flush it to the disk.

    Raises OSError where the system refuses: of that, safetensors' own error has but the number within its text.
    """
    try:
        save_file(dict(tensors), path, note)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    sync(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `Damaged` where there are none to be had."""
    try:
        return load_file(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch, which maps the file, has its own
        raise Damaged(f"{path.name} cannot be read ({error})") from error


def claim(run: Path) -> IO[str]:
    """Hold the run folder for this process until the file returned is closed; the system lets go of it on a kill.

    Raises UserError where another process holds it. Where the system has no such locks nothing is held.
    """
    held = open(run / ".lock", "w", encoding="utf-8")  # noqa: SIM115  (its closing is the letting go)
    try:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:
        pass
    except BlockingIOError:
        held.close()
        raise UserError(
            f"Another process is training into {str(run)!r}: wait for it, or name another folder (--run FOLDER)."
        ) from None
    return held


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors wants them."""
    owners: set[int] = set()
    out = {}
    for name, t in tensors.items():
        t = t.contiguous()
        storage = t.untyped_storage().data_ptr()
        alone = storage not in owners and t.untyped_storage().nbytes() == t.nbytes
        out[name] = t if alone else t.clone()
        owners.add(storage)
    return out


def _holds(path: Path, name: str) -> bool:
    """Whether the file is there and holds the tensors whose digest is `name`, undamaged."""
    try:
        return path.exists() and digest(load_tensors(path)) == name
    except Damaged:
        return False


def of_rank(rank: int) -> str:
    """The part of a checkpoint that is the own of a rank, which is not the first."""
    return f"rank-{rank}"


def _ranks(part: str) -> int:
    """The rank whose own part it is; 0 where it is that of all."""
    return int(part.removeprefix("rank-")) if part.startswith("rank-") else 0


class Checkpoints:
    """The checkpoints of one run folder.

    keep: how many of the newest to keep; `save(..., best=STEP)` keeps that one too.
    """

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.run, self.folder, self.frozen, self.keep = run, run / "checkpoints", run / "frozen", keep
        self._damaged: set[int] = set()  # steps that `newest` has skipped

    def steps(self) -> list[int]:
        """The steps with a checkpoint folder, whole or not, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal())

    def path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    # -- saving

    def save(
        self,
        step: int,
        parts: Mapping[str, State],
        frozen: Mapping[str, Tensor],
        best: int | None = None,
        ranks: Ranks = ALONE,
    ) -> Path:
        """Write the checkpoint of `step`: parts by name, and the model's tensors that training leaves alone.

        Of several ranks each writes its own parts, into a folder that all of them see; it is whole or absent.
        """
        partial, final = self.folder / f".partial-{step:08d}", self.path(step)
        ranks.once(lambda: self._room(partial))
        with ranks.together():
            skeleton: dict[str, Any] = {}
            for name, state in parts.items():
                tensors: dict[str, Tensor] = {}
                skeleton[name] = pack(state, tensors)
                if tensors:
                    save_tensors(_separate(tensors), partial / f"{name}.safetensors")
            state_file = f"{of_rank(ranks.rank)}.json" if ranks.rank else STATE
            write(partial / state_file, json.dumps({"step": step, "parts": skeleton}))
        ranks.once(lambda: self._finish(step, partial, final, frozen, best))
        return final

    def _room(self, partial: Path) -> None:
        make(self.folder)
        for left in self.folder.glob(".*"):  # by a kill or a full disk
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()

    def _finish(self, step: int, partial: Path, final: Path, frozen: Mapping[str, Tensor], best: int | None) -> None:
        files = {p.name: p for p in partial.iterdir()}
        if frozen:
            files["frozen"] = self._freeze(frozen)
        listed = {k: {"file": p.name, "size": p.stat().st_size, "sha256": hash_file(p)} for k, p in files.items()}
        body = json.dumps({"step": step, "files": listed}, indent=1, sort_keys=True)
        write(partial / MANIFEST, f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")
        sync(partial)
        if final.exists():  # a damaged one of the same step, skipped when the run was resumed
            self._remove(final)
        os.rename(partial, final)
        sync(self.folder)
        self._prune(step, best)

    def _freeze(self, tensors: Mapping[str, Tensor]) -> Path:
        name = digest(tensors)
        path = self.frozen / f"{name}.safetensors"
        if not _holds(path, name):
            make(self.frozen)
            partial = path.with_suffix(".partial")
            save_tensors(_separate(tensors), partial)
            settle(partial, path)
        return path

    def _prune(self, newest: int, best: int | None) -> None:
        kept = {s for s in self.steps() if s <= newest}
        self._damaged.discard(newest)
        sound = sorted(kept - self._damaged)
        for step in kept - {*sound[-self.keep :], best}:
            self._remove(self.path(step))
            kept.discard(step)
        with contextlib.suppress(Damaged):  # what a checkpoint needs that cannot be read is not known: all stays
            used = {self._manifest(step)["files"].get("frozen", {}).get("file") for step in kept}
            for path in self.frozen.iterdir() if self.frozen.is_dir() else ():
                if path.name not in used:
                    path.unlink()

    def _remove(self, path: Path) -> None:
        stale = path.with_name(f".stale-{path.name}")
        shutil.rmtree(stale, ignore_errors=True)
        os.rename(path, stale)  # first out of sight: a kill during the removal leaves no half checkpoint
        shutil.rmtree(stale)

    # -- loading

    def _manifest(self, step: int) -> dict[str, Any]:
        path = self.path(step) / MANIFEST
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise Damaged(f"{MANIFEST} cannot be read ({error.strerror})") from error
        body, _, end = raw[:-1].rpartition(b"\n")
        if raw[-1:] != b"\n" or hashlib.sha256(body).hexdigest().encode() != end:
            raise Damaged(f"{MANIFEST} does not match its own hash")
        try:
            manifest: dict[str, Any] = json.loads(body)
            manifest["files"][STATE]  # without which it holds nothing
            for entry in manifest["files"].values():
                if Path(entry["file"]).name != entry["file"]:  # never outside the run's own folders
                    raise ValueError
                entry["size"], entry["sha256"]
        except _MISTAKEN:
            raise Damaged(f"{MANIFEST} is no list of files") from None
        return manifest

    def _files(self, step: int) -> Iterator[tuple[str, Path, dict[str, Any]]]:
        for name, entry in self._manifest(step)["files"].items():
            folder = self.frozen if name == "frozen" else self.path(step)
            yield name, folder / entry["file"], entry

    def verify(self, step: int) -> None:
        """Raise `Damaged` unless every byte of the checkpoint is the one that was written."""
        for name, path, entry in self._files(step):
            try:
                if not path.is_file():
                    raise Damaged(f"{name} is missing")
                if path.stat().st_size != entry["size"]:
                    raise Damaged(f"{name} has {path.stat().st_size} bytes where {entry['size']} were written")
                sound = hash_file(path) == entry["sha256"]
            except OSError as error:
                raise Damaged(f"{name} cannot be read ({error.strerror})") from error
            if not sound:
                raise Damaged(f"{name} does not match its hash")

    def load(self, step: int) -> dict[str, Any]:
        """The parts of a checkpoint by name, tensors on the CPU, and the frozen tensors as the part "frozen"."""
        self.verify(step)
        files = {n: p for n, p, _ in self._files(step)}
        tensors = {n: load_tensors(p) for n, p in files.items() if p.suffix == ".safetensors"}
        skeleton: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        others: list[dict[str, dict[str, Tensor]]] = []  # of each rank but the first: its pieces by part
        try:
            for path in (p for p in files.values() if p.suffix == ".json"):  # one of each rank
                skeleton |= json.loads(path.read_bytes())["parts"]
            for name in sorted(skeleton, key=lambda name: (not _ranks(name), _ranks(name))):
                held = tensors.get(f"{name}.safetensors", {})
                parts[name] = unpack(skeleton[name], held, [o.get(name, {}) for o in others])
                if _ranks(name):
                    others.append(parts[name].pop("pieces"))
        except (OSError, *_MISTAKEN) as error:
            raise Damaged(f"{STATE} holds no state ({type(error).__name__})") from error
        return parts | {"frozen": tensors.get("frozen", {})}

    def newest(self, say: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
        """The newest sound checkpoint (step, parts); says which were skipped and why. None where there is none.

        Raises UserError where checkpoints exist and not one of them is sound.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.load(step)
            except Damaged as damage:
                self._damaged.add(step)
                say(f"Skipped the damaged checkpoint of step {step}: {damage}.")
        if steps:
            raise UserError(
                f"Every checkpoint in {str(self.folder)!r} is damaged: restore the folder from a copy, or start anew"
                " with another --run folder."
            )
        return None
