"""Record a finished run under docs/runs, for the promises that stand on it.

    python tools/record.py runs/demo docs/runs/digits-diffusion

copies spec.json and log.jsonl, and writes result.json: the run's own, with its evaluation (where there is one) under
"evaluation", those of several averages under "averages" by name, the pages of the verbs of the latent space under their
names, the seconds until the first picture, until the best held-out value, and from the beginning to the end of the
evaluation; and where averages are stored for later, how many megabytes that is. Folders of this machine are left out.
Raises an error where the run is not finished.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any


def bare(command: str) -> str:
    """A command, its absolute paths as if their folder were called runs."""
    return re.sub(r"(?<= )/\S*/", "runs/", command)


def record(run: Path, target: Path) -> None:
    """Copy what a promise needs of `run` to `target`."""
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    if result.get("state") != "finished":
        raise SystemExit(f"{run} is not finished, so there is nothing to record: continue its training first.")
    result.pop("run", None)
    result["command"] = bare(result["command"])
    if (run / "evaluation.json").is_file():
        evaluation = json.loads((run / "evaluation.json").read_text())
        for private in ("run", "judge", "machine"):
            evaluation.pop(private, None)
        evaluation["command"] = bare(evaluation["command"])
        result["evaluation"] = evaluation
        whole = datetime.fromisoformat(evaluation["at"]) - datetime.fromisoformat(result["began"])
        result["seconds_with_evaluation"] = whole.total_seconds()
    if (run / "averages.json").is_file():
        pages = json.loads((run / "averages.json").read_text())["averages"]
        result["averages"] = {str(p["ema"]): {"measures": p["measures"], "heldout": p["heldout"]} for p in pages}
    if stored := [path.stat().st_size for path in (run / "snapshots").glob("*.safetensors")]:
        result["snapshots"] = {"count": len(stored), "largest_mb": max(stored) / 1e6, "all_mb": sum(stored) / 1e6}
    for name in ("reconstruct", "directions", "anomaly", "restore"):
        if (run / f"{name}.json").is_file():
            page = json.loads((run / f"{name}.json").read_text())
            result[name] = {k: v for k, v in page.items() if k not in ("run", "runs", "files", "machine")}
            result[name]["command"] = bare(page["command"])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    if best := result.get("best"):  # when it was reached
        best["seconds"] = max(line["seconds"] for line in lines if "seconds" in line and line["step"] <= best["step"])
    if pictures := [line for line in lines if "picture" in line]:
        result["first_picture_seconds"] = pictures[0]["at_seconds"]
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "spec.json", target)
    shutil.copy(run / "log.jsonl", target)
    text = json.dumps(result, indent=1).replace(str(run), f"runs/{target.name}")
    (target / "result.json").write_text(text + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    record(Path(sys.argv[1]), Path(sys.argv[2]))
