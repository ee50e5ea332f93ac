"""Types and calls every row of a table of mistakes, and prints what came of each: a JSON object a line.

python wrong.py mistakes.jsonl '{"tmp": …, "own": …}'
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import morphogen as mg
from morphogen.cli import main
from morphogen.cli.recipe import load_file

_opened = open


def _refused(fault: str) -> Any:
    """The system refuses: the disk at the first sync, a folder at its making, a file at its opening."""

    def refuse(path: Any = None, *_args: Any, **_options: Any) -> Any:
        number = getattr(errno, fault)
        raise OSError(number, os.strerror(number), path if isinstance(path, str | Path) else None)

    def refuse_writing(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        return refuse(path) if set("wa+") & set(mode) else _opened(path, mode, *args, **options)

    if fault == "EMFILE":
        return mock.patch("builtins.open", refuse_writing)
    return mock.patch.object(os, "mkdir" if fault in ("EACCES", "EROFS") else "fsync", refuse)


def typed(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """What a command line comes to: the last line on stderr, and what is wrong with the answer."""
    words = [word.format_map(names) for word in shlex.split(row["typed"])]
    out, err = io.StringIO(), io.StringIO()
    env = {name: value.format_map(names) for name, value in row.get("env", {}).items()}
    fault = _refused(row["fault"]) if "fault" in row else contextlib.nullcontext()
    with mock.patch.dict(os.environ, env), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), fault:
        try:
            code = main(words)
        except BaseException as error:
            return {"said": "", "faults": [f"raised {type(error).__name__}: {error}"]}
    lines = err.getvalue().strip().splitlines() or [""]
    faults = [] if code == row.get("code", 2) else [f"exit status {code}"]
    faults += ["traceback"] if "Traceback" in out.getvalue() + err.getvalue() else []
    faults += [f"{len(lines)} lines on stderr"] if len(lines) > 1 and "beside" not in row else []
    return {"said": lines[-1], "faults": faults}


def called(row: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """What a call in Python comes to: the error as Python shows it, and what is wrong with it."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            exec(row["python"], dict(names))
    except Exception as error:
        kind = type(error).__name__
        with contextlib.redirect_stderr(shown):
            error.__context__ = error.__cause__ = None
            sys.__excepthook__(type(error), error.with_traceback(None), None)  # the interpreter's suggestions included
        said = shown.getvalue().strip().partition(": ")[2]
        faults = [] if kind == row.get("error", "UserError") else [f"raised {kind}"]
        return {"said": said, "faults": faults + (["more than a line"] if "\n" in said else [])}
    return {"said": "", "faults": ["raised nothing"]}


def answers(rows: list[dict[str, Any]], names: dict[str, str]) -> Iterator[dict[str, Any] | None]:
    """What each row comes to; None where the device that must be absent is here."""
    tmp = Path(names["tmp"])
    known: dict[str, Any] = {"mg": mg, "np": np, "torch": torch, "tmp": tmp, "space": mg.load(tmp / "digits").space}
    known |= {name: mg.load(tmp / name).model for name in ("flow", "reader")}
    known["experiment"] = load_file(Path(names["own"])).blurs()
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for row in rows:
        if here.get(row.get("absent", "")):
            yield None
        else:
            yield typed(row, names) if "typed" in row else called(row, known)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    for answer in answers(rows, json.loads(sys.argv[2])):
        print(json.dumps(answer), flush=True)
