"""Run Python and record what it does to the world outside: what it sends, starts and writes.

    python fence.py '{"inside": ["/run", "/cache"], "steps": {"import": "import morphogen", …}}'

prints one JSON line: {"steps": {"import": {"did": [...], "raised": null}, …}, "kernel": true}. Two watchers: an audit
hook, which hears of everything that Python code does, before it is done; and, on a Linux that has it, Landlock, by
which the kernel refuses compiled code as well (safetensors writes its files from Rust) every write that is not `inside`
and every TCP connection. What is refused raises, and so is seen too.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WRITES = {  # audit event: the places of paths among its arguments, with the place of the folder they are relative to
    "os.mkdir": ((0, 2),), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.truncate": ((0, None),),
    "os.rename": ((0, 2), (1, 3)), "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),), "os.utime": ((0, 3),), "os.setxattr": ((0, None),), "os.removexattr": ((0, None),),
    "sqlite3.connect": ((0, None),),
}  # fmt: skip
SENDS = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "imaplib.", "poplib.", "telnetlib.", "webbrowser.")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.startfile", "pty.spawn")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NOWHERE = {"/dev/null", "/dev/tty"}


def whole(path: Any, folder: Any) -> str:
    """An event's path made absolute. A number is a file that is open already."""
    if isinstance(path, int) or path is None:
        return os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.getcwd()
    base = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else os.getcwd()
    return os.path.realpath(os.path.join(base, os.fsdecode(path)))


def written(event: str, args: tuple[Any, ...]) -> Iterator[str]:
    """The paths that an event writes to, makes, moves or removes."""
    if event == "open":
        path, mode, flags = args
        asked = bool(mode and set(mode) & set("wax+")) or bool(flags and flags & WRITING)
        if asked and not isinstance(path, int):  # one that is open was seen when it was opened
            yield whole(path, None)
    for at, folder in WRITES.get(event, ()):
        if args[at] != ":memory:":
            yield whole(args[at], None if folder is None else args[folder])


class Watch:
    """The audit hook. did: of the present step (kind, what), in order."""

    def __init__(self, inside: list[str]) -> None:
        self.inside, self.did = [os.path.realpath(i) for i in inside], []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(SENDS):
            self.did.append(f"sends: {event}{args!r}"[:200])
        elif event.startswith(STARTS):
            self.did.append(f"starts: {event}{args!r}"[:200])
        elif event == "open" or event in WRITES:
            for path in written(event, args):
                if path not in NOWHERE and not any(path == i or path.startswith(i + os.sep) for i in self.inside):
                    self.did.append(f"writes: {event} {path}")


def lock(inside: list[str]) -> bool:
    """Let the kernel refuse this process all writes that are not inside, and TCP; False where it cannot.

    Source: the kernel's documentation, userspace-api/landlock.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    create, add, restrict = 444, 445, 446  # system calls, the same on every machine since Linux 5.13
    version = libc.syscall(create, None, 0, 1) if sys.platform == "linux" else -1
    if version < 4:  # 4 knows of TCP
        return False
    write_file, the_rest = 1 << 1, sum(1 << bit for bit in (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
    rules = (ctypes.c_uint64 * 2)(write_file | the_rest, 0b11)  # files; binding and connecting
    ruleset = libc.syscall(create, rules, ctypes.sizeof(rules), 0)
    for path in [*inside, "/dev/null"]:
        folder = os.path.isdir(path)
        allowed = rules[0] if folder else write_file | 1 << 14
        handle = os.open(path, os.O_PATH)
        rule = ctypes.create_string_buffer(allowed.to_bytes(8, sys.byteorder) + handle.to_bytes(4, sys.byteorder), 12)
        if libc.syscall(add, ruleset, 1, rule, 0):
            return False
        os.close(handle)
    return not libc.prctl(38, 1, 0, 0, 0) and not libc.syscall(restrict, ruleset, 0)


def main(order: dict[str, Any]) -> None:
    """Take the steps, one name space for all; print what each did."""
    Path("/dev/null").write_text("")  # decided here, before anything of torch is there
    watch, names, found = Watch(order["inside"]), {}, {}
    kernel = lock(order["inside"])
    sys.addaudithook(watch)
    for name, code in order["steps"].items():
        watch.did, raised = [], None
        try:
            exec(compile(code, f"<{name}>", "exec"), names)
        except BaseException as error:
            raised = f"{type(error).__name__}: {error}"
        found[name] = {"did": watch.did, "raised": raised}
    print(json.dumps({"steps": found, "kernel": kernel}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
