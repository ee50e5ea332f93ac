"""`trap.c` compiled and loaded: every system call on the files of one folder seen, recorded, refused or interrupted."""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("trap.c")
_RECORD = struct.Struct("=4i6q")


class How(IntEnum):
    """What becomes of the call that the fault falls on: refused; refused with all later ones that allocate; half
    written, and then the disk is full; interrupted once, or twice; the process killed.
    """

    ONCE, ON, SHORT, INTERRUPT, INTERRUPT_TWICE, KILL = range(6)


class Call(NamedTuple):
    """A system call as it was made. args: numbers. paths: strings, "" for none. at: where in the file data went."""

    name: str
    args: tuple[int, int, int, int]
    paths: tuple[str, str]
    result: int
    at: int
    data: bytes


def missing() -> str:
    """Why there is no trap here, or ""."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "system calls are trapped on Linux on x86-64 only"
    if shutil.which("cc") is None:
        return "no C compiler (cc) was found"
    return ""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled trap."""
    with tempfile.TemporaryDirectory(prefix="morphogen-trap-") as folder:
        made = Path(folder) / "trap.so"
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", str(SOURCE), "-o", str(made)], check=True)
        lib = ctypes.CDLL(str(made))
    lib.trap_name.restype = ctypes.c_char_p
    lib.trap_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, *[ctypes.c_long] * 3]
    return lib


class Counters:
    """Numbers that a forked child shares: calls seen, the call that the fault fell on, and how often it fell."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.clear()

    def clear(self) -> None:
        struct.pack_into("=3q", self._memory, 0, 0, -1, 0)

    @property
    def calls(self) -> int:
        return int(struct.unpack_from("=q", self._memory, 0)[0])

    @property
    def call(self) -> str:
        """The name of the call that the fault fell on."""
        name: bytes = library().trap_name(struct.unpack_from("=q", self._memory, 8)[0])
        return name.decode()

    @property
    def fell(self) -> int:
        return int(struct.unpack_from("=q", self._memory, 16)[0])


def arm(
    folder: Path, *, trace: int = -1, counters: Counters, at: int = -1, error: int = 0, how: How = How.ONCE
) -> None:
    """Trap the calls of this process, for good: to be called in a forked child. Paths are absolute."""
    lib = library()
    lib.trap_arm(str(folder).encode(), trace, counters.address, at, error, int(how))
    if lib.trap_install():
        raise OSError("the system lets no filter be installed")


def recorded(raw: bytes) -> Iterator[Call]:
    """The calls of a trace."""
    lib, at = library(), 0
    while at < len(raw):
        call, first, second, size, a, b, c, d, result, where = _RECORD.unpack_from(raw, at)
        at += _RECORD.size
        paths = raw[at : at + first].decode(), raw[at + first : at + first + second].decode()
        at += first + second
        yield Call(lib.trap_name(call).decode(), (a, b, c, d), paths, result, where, raw[at : at + size])
        at += size
