"""A rehearsal in a process of its own, so that its memory is its own: `python -m morphogen.cli.rehearse ORDER`.

ORDER is a JSON file: the recipe, its arguments, and the folder that the answer goes to as `rehearsal.json`. The
experiment is built as `train` builds it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError

ANSWER, WORDS = "rehearsal.json", "rehearsal.txt"


def rehearsed(
    folder: Path,
    recipe: str,
    arguments: Mapping[str, Any],
    *,
    files: Sequence[Path],
    seed: int,
    device: str | None,
    seconds: float,
) -> dict[str, Any]:
    """What a rehearsal of the recipe says, which is held in the empty `folder`. arguments: as JSON can hold them.

    Raises UserError where the recipe or its training does, and where its process was killed.
    """
    order = {"recipe": recipe, "arguments": dict(arguments), "files": [str(f) for f in files], "seed": seed}
    path = folder / "order.json"
    path.write_text(json.dumps(order | {"device": device, "seconds": seconds, "began": time.time()}), encoding="utf-8")
    with open(folder / WORDS, "wb") as words:
        command = [sys.executable, "-m", __name__, str(path)]
        status = subprocess.run(command, stdout=words, stderr=words, check=False).returncode
    answer = folder / ANSWER
    page: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}
    if "error" in page:
        raise UserError(page["error"])
    if not page:
        said = (folder / WORDS).read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        why = "it was killed, as where memory runs out" if status == -9 else said or f"its process ended with {status}"
        raise UserError(f"The rehearsal of {recipe} failed ({why}): try `morphogen train {recipe} --check`.")
    return page


def main(path: Path) -> None:
    """Hold the rehearsal that an order asks for."""
    from ..experiment import check_seed
    from ..rehearsal import rehearse
    from ..spec import build, modules_of, spec
    from . import _judge, recipe
    from .flags import restored

    page, folder = json.loads(path.read_text(encoding="utf-8")), path.parent
    try:
        check_seed(page["seed"])
        recipe.load_files(Path(f) for f in page["files"])
        found = recipe.find(page["recipe"])
        flags = {f.name: f for f in found.flags}
        made = found.build({k: restored(flags[k], v) for k, v in page["arguments"].items()})
        experiment = build(spec(made), modules=modules_of(made), seed=page["seed"])
        del made
        said = rehearse(
            experiment,
            folder / "run",
            seed=page["seed"],
            device=page["device"],
            seconds=page["seconds"],
            began=page["began"],
        )
    except Exception as error:
        said = {"error": _judge(error, sys.argv)[0]}
        (folder / ANSWER).write_text(json.dumps(said), encoding="utf-8")
        raise
    (folder / ANSWER).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
