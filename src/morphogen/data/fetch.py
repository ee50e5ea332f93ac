"""Downloads of data sets, when they are asked for: `morphogen data get mnist`. Nothing else here uses a network.

A file comes under another name, `….partial`, is held to its SHA-256, and only then gets its own. What a cut connection
left is kept, and the next try asks the server for the rest alone (an HTTP range); what has another hash is deleted.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

from ..errors import UserError, unknown
from .roots import cache
from .table import describe, folder_of, names

_PIECE, _PATIENCE = 1 << 18, 30.0  # bytes read at once; seconds without any


class Remote(NamedTuple):
    """A file to fetch. size: in bytes."""

    url: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


def _idx(name: str, base: str, *sizes: int) -> tuple[Remote, ...]:
    known = describe(name).sha256.items()
    return tuple(Remote(base + file, sha256, size) for (file, sha256), size in zip(known, sizes, strict=True))


_CIFAR = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
SOURCES: dict[str, tuple[Remote, ...]] = {
    "mnist": _idx("mnist", "https://ossci-datasets.s3.amazonaws.com/mnist/", 9_912_422, 28_881, 1_648_877, 4_542),
    "fashion-mnist": _idx("fashion-mnist", _FASHION, 26_421_880, 29_515, 4_422_102, 5_148),
    "cifar10": (Remote("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", _CIFAR, 170_498_071),),
}


def get(name: str, root: Path | None = None, told: Callable[[int], None] = lambda done: None) -> Path:
    """Fetch the files of a data set that are not there yet; the folder they are in.

    root: the folder of data sets (default: the cache folder's). told: how many bytes of all are there.
    Raises UserError where the network fails (what has come is kept) or a file is not the right one (nothing is).
    """
    folder = (root or cache() / "data") / name
    before = 0
    for remote in sources(name):
        start = before
        _fetch(remote, folder, lambda done: told(start + done))  # noqa: B023  (called within the turn)
        before += remote.size
    return folder


def sources(name: str) -> tuple[Remote, ...]:
    """The files of a data set. Raises UserError for one that cannot be fetched, or does not exist."""
    if name in SOURCES:
        return SOURCES[name]
    if name == "pneumoniamnist":
        raise UserError(
            f"The data set {name!r} is not fetched from here: get {name}.npz from medmnist.com, and put it where"
            " MORPHOGEN_DATA says."
        )
    if name in names() and folder_of(name) is None:
        raise UserError(f"The data set {name!r} needs no files: it comes with this package.")
    if name in names():
        raise UserError(f"The data set {name!r} is not fetched from here; it is in {str(folder_of(name))!r} already.")
    raise unknown("data set to fetch", name, SOURCES)


def _fetch(remote: Remote, folder: Path, told: Callable[[int], None]) -> None:
    target = folder / remote.name
    if target.is_file() and _sha256(target) == remote.sha256:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    if partial.exists() and partial.stat().st_size >= remote.size:
        partial.unlink()  # whole, but not renamed: of unknown content
    try:
        with partial.open("ab") as file:
            _receive(remote, file, told)
            os.fsync(file.fileno())
    except (OSError, http.client.HTTPException) as error:
        there = partial.stat().st_size if partial.exists() else 0
        kept = f"{there:,} of {remote.size:,} bytes are kept, and the same command goes on from there"
        if not there:
            partial.unlink(missing_ok=True)
            kept = f"try again, or put the file into {str(folder)!r} yourself"
        host = urlsplit(remote.url).netloc
        raise UserError(f"{remote.name} could not be fetched from {host} ({_reason(error)}): {kept}.") from error
    if _sha256(partial) != remote.sha256:
        partial.unlink()
        raise UserError(
            f"What {remote.url} gave has another SHA-256 than {remote.name} must have: nothing of it was kept."
        )
    partial.replace(target)


def _receive(remote: Remote, file: BinaryIO, told: Callable[[int], None]) -> None:
    """The rest of the file, appended. Raises OSError or HTTPException where the connection fails."""
    there = file.tell()
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={there}-"} if there else {})
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
        begin = f"bytes {there}-" if answer.status == 206 else "none"
        if there and not answer.headers.get("Content-Range", "").startswith(begin):
            file.truncate(0)  # the server sends the whole of it again
            there = 0
        while there <= remote.size and (piece := answer.read(_PIECE)):
            there += file.write(piece)
            told(min(there, remote.size))
    if there < remote.size:
        raise OSError("the connection was cut")


def _reason(error: Exception) -> str:
    """What went wrong, in words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server said {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no network, or it cannot be reached: {error.reason}"
    return str(error) or type(error).__name__


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
