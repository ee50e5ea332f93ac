"""Files in a folder, in a zip or in tar shards, read in one way. Nothing is unpacked, and no link to a folder followed.

The shards are WebDataset's (https://github.com/webdataset/webdataset): plain tar files, in which the files of a sample
share their name up to the suffix.
"""

from __future__ import annotations

import os
import stat
import tarfile
import time
import zipfile
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from ..errors import UserError
from .decode import SUFFIXES, Bad

LARGEST = 256 << 20  # bytes: no larger file is read
_HIDDEN = ("__MACOSX",)
_GONE = "it is no longer there"


@runtime_checkable
class Files(Protocol):
    """Files by name. path: where they are."""

    path: Path

    def names(self) -> dict[str, int]:
        """The size in bytes of every file, by its path, "/" between; hidden ones left out."""
        ...

    def read(self, name: str) -> bytes:
        """A file's content. Raises `Bad` where it cannot be read, or is larger than LARGEST."""
        ...

    def stamp(self, name: str) -> list[int] | None:
        """What changes whenever the file does; None where that is not certain."""
        ...


def opened(path: str | Path) -> Files:
    """The files of a folder, a .zip, a .tar, or a folder of .tar shards. Raises UserError on anything else."""
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if path.is_dir():
        shards = sorted(p for p in path.glob("*.tar") if p.is_file())
        return _Shards(path, shards) if shards else _Folder(path)
    if not path.exists():
        raise UserError(f"There is no folder {str(path)!r}: check the path of your pictures.")
    if path.is_file() and kind in (".zip", ".tar"):
        return _Zip(path) if kind == ".zip" else _Shards(path, [path])
    raise UserError(f"{str(path)!r} is neither a folder nor a .zip or plain .tar: give one of these.")


def of_one_kind(path: str | Path) -> None:
    """Raise UserError where a folder holds pictures beside its shards, as those would not be seen."""
    path = Path(path).expanduser()
    shard = min((p for p in path.glob("*.tar") if p.is_file()), default=None)
    names = _Folder(path).names() if shard else ()
    if shard and (loose := next((n for n in names if n.lower().endswith(SUFFIXES)), None)):
        raise UserError(
            f"{str(path)!r} holds the shard {shard.name!r} and pictures such as {loose!r} beside it: move one kind"
            " elsewhere."
        )


def _shown(name: str) -> bool:
    return not any(part.startswith(".") or part in _HIDDEN for part in name.split("/"))


def _safe(name: str, archive: Path) -> None:
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or (pure.parts and ":" in pure.parts[0]):
        raise UserError(f"The archive {str(archive)!r} holds {name!r}, a path that leads out of it: make it again.")


def _mark(path: str | Path) -> list[int] | None:
    """Of a file's state: its time of change, which nobody can set back, among it."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if time.time_ns() - found.st_ctime_ns < 2_000_000_000:  # it may change again within the same tick of the clock
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link that leads nowhere; `read` says so
        return 0


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> dict[str, int]:
        found: dict[str, int] = {}

        def stop(error: OSError) -> None:
            raise error

        for where, folders, files in os.walk(self.path, onerror=stop):
            below = Path(where).relative_to(self.path)
            folders[:] = sorted(f for f in folders if _shown(f))
            for folder in folders:
                if os.path.islink(Path(where, folder)):
                    raise UserError(
                        f"{str(Path(where, folder))!r} is a link to a folder, and those are not followed: copy the"
                        " pictures there, or remove the link."
                    )
            for file in files:
                if _shown(file):
                    found[(below / file).as_posix()] = _size(Path(where, file))
        return found

    def read(self, name: str) -> bytes:
        path = self.path / name
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                raise Bad("it is no regular file")
            if found.st_size > LARGEST:
                raise Bad(f"it is larger than {LARGEST >> 20} MiB")
            return path.read_bytes()
        except FileNotFoundError:
            raise Bad("it is a link that leads nowhere" if path.is_symlink() else _GONE) from None
        except OSError as error:
            raise Bad(f"it cannot be read ({error.strerror})") from None

    def stamp(self, name: str) -> list[int] | None:
        return _mark(self.path / name)


class _Zip:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # of a damaged archive zipfile raises whatever it meets
            raise UserError(f"{str(path)!r} is cut short or damaged ({error}): make or fetch it again.") from error

    def names(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for member in self._archive.infolist():
            _safe(member.filename, self.path)
            if not member.filename or member.is_dir() or not _shown(member.filename):  # nameless: damaged
                continue
            _once(member.filename, found, self.path)
            found[member.filename] = member.file_size
        return found

    def read(self, name: str) -> bytes:
        try:
            if self._archive.getinfo(name).file_size > LARGEST:
                raise Bad(f"it is larger than {LARGEST >> 20} MiB")
            return self._archive.read(name)
        except KeyError:
            raise Bad(_GONE) from None
        except Bad:
            raise
        except Exception as error:  # as above
            raise Bad(f"it cannot be unpacked ({error})") from None

    def stamp(self, name: str) -> list[int] | None:
        return _mark(self.path)


class _Shards:
    def __init__(self, path: Path, shards: list[Path]) -> None:
        self.path = path
        self._at: dict[str, tuple[Path, int, int]] = {}
        for shard in shards:
            self._list(shard)

    def names(self) -> dict[str, int]:
        return {name: size for name, (_, _, size) in self._at.items()}

    def _list(self, shard: Path) -> None:
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    _safe(member.name, shard)
                    name = f"{shard.name}/{member.name.removeprefix('./')}"
                    if member.isdir() or not _shown(name):
                        continue
                    if not member.isreg() or member.sparse is not None:
                        raise UserError(f"The shard {str(shard)!r} holds {member.name!r}, a link or no plain file.")
                    _once(name, self._at, shard)
                    self._at[name] = shard, member.offset_data, member.size
        except UserError:
            raise
        except Exception as error:  # of a damaged archive tarfile raises whatever it meets
            raise UserError(
                f"The shard {str(shard)!r} is cut short, damaged or compressed ({error}): make a plain tar of it again."
            ) from error

    def read(self, name: str) -> bytes:
        if name not in self._at:
            raise Bad(_GONE)
        shard, at, size = self._at[name]
        if size > LARGEST:
            raise Bad(f"it is larger than {LARGEST >> 20} MiB")
        try:
            with shard.open("rb") as file:
                file.seek(at)
                return file.read(size)
        except OSError as error:
            raise Bad(f"it cannot be read ({error.strerror})") from None

    def stamp(self, name: str) -> list[int] | None:
        return _mark(self._at[name][0])


def _once(name: str, found: Container[str], archive: Path) -> None:
    if name in found:
        raise UserError(f"The archive {str(archive)!r} holds {name!r} twice: make it again with one of them.")
