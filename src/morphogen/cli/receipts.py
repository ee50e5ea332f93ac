"""What a result rests on: the machine, the versions, the command; and `result.json`, what a training came to."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__

if TYPE_CHECKING:
    from ..experiment import Run

SAME = ("cpu", "instructions", "device", "torch", "threads", "processes")  # what equal bits need to have in common


def machine(device: str) -> dict[str, Any]:
    """The machine as a receipt names it."""
    import torch

    from ..parallel import join

    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    several = {} if join().alone else {"processes": join().count}
    return several | {
        "cpu": cpu(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command(argv: list[str]) -> str:
    """What was typed."""
    return shlex.join(["morphogen", *argv])


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run; {} where it is not there or damaged. Raises OSError where it may or can not be read."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return page if isinstance(page, dict) else {}


def write_json(path: Path, page: dict[str, Any]) -> None:
    """Write a JSON file of a run in one step."""
    from ..disk import write

    write(path, json.dumps(page, indent=1) + "\n")


def begin(run: Path, argv: list[str], device: str) -> None:
    """Note in the run on which machine it was begun, by which command."""
    path, here = run / "result.json", machine(device)
    page = read_json(path)
    if not page:
        write_json(path, {"state": "unfinished", "command": command(argv), "machine": here, "began": now()})
    elif page.get("machine") != here:
        write_json(path, page | {"continued_on": here})


def conclude(run: Run) -> dict[str, Any]:
    """Write what the training came to into `result.json`, and return it."""
    from ..core import parameters

    lines = run.log()
    trained = [line for line in lines if "heldout" not in line and "seconds" in line]
    measured = [line for line in lines if "heldout" in line]
    last = trained[-1] if trained else {}
    seconds, heldout = float(last.get("seconds", 0.0)), run.trainer.heldout
    every, patience = (heldout.every, heldout.patience) if heldout else (0, None)
    found = best(measured, heldout.metric, heldout.direction) if heldout and measured else None
    page = read_json(run.path / "result.json")
    page |= {
        "state": state(run.step, run.trainer.steps, found, every, patience),
        "recipe": run.page.get("recipe"),
        "seed": run.seed,
        "steps": run.trainer.steps,
        "step": run.step,
        "parameters": sum(parameters(run.model).values()),
        "seconds": seconds,
        "steps_per_s": round(run.step / seconds, 3) if seconds else None,
        "final": {k: v for k, v in last.items() if k not in ("step", "seconds", "steps_per_s")},
        "heldout": measured[-1]["heldout"] if measured else None,
        "best": found,
        "morphogen": __version__,
        "ended": now(),
    }
    write_json(run.path / "result.json", page)
    return page


def best(measured: list[dict[str, Any]], metric: str, direction: str) -> dict[str, Any] | None:
    """The best held-out value among log lines, the earliest of equals: {"metric", "value", "step"}."""
    known = [(line["heldout"][metric], line["step"]) for line in measured if metric in line["heldout"]]
    if not known:
        return None
    value, step = min(known, key=lambda v: (v[0] if direction == "min" else -v[0], v[1]))
    return {"metric": metric, "value": value, "step": step}


def state(step: int, steps: int, best: dict[str, Any] | None, every: int, patience: int | None) -> str:
    """What has become of a run: "finished", "stopped early" (by its held-out data) or "unfinished"."""
    if step >= steps:
        return "finished"
    waited = (step - best["step"]) // every if best and every else 0
    return "stopped early" if patience is not None and waited >= patience else "unfinished"
