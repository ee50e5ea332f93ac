"""Files and folders that outlast a power cut: what has been written is on the disk, or not there under its name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make(folder: Path) -> None:
    """Make a folder, and those above it that are missing, whose entries are on the disk; one that is there is left."""
    if not folder.is_dir():
        make(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync_names(folder: Path) -> None:
    """Sync the names of a folder, of what lies in it and in its folders: a process that was killed between naming and
    syncing has left some that are in memory alone, and nobody else would sync them.
    """
    for place in (folder.parent, folder, *(p for p in folder.iterdir() if p.is_dir())):
        sync(place)


def write(path: Path, content: str | bytes) -> None:
    """Replace a file by `content` in one step: a reader sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())
    settle(partial, path)


def copy(source: Path, path: Path) -> None:
    """Copy a file to `path` in one step."""
    partial = path.with_name(path.name + ".partial")
    shutil.copyfile(source, partial)
    sync(partial)
    settle(partial, path)


def settle(partial: Path, path: Path) -> None:
    """Give a file that is on the disk its name, instead of what had it before."""
    os.replace(partial, path)
    sync(path.parent)
