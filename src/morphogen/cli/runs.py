"""`morphogen runs`: what runs there are, what one came to, and whether its record can be made again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from . import receipts
from . import recipe as recipes
from .context import Context, data_root
from .tell import columns
from .train import temporary

_TIMES = ("seconds", "steps_per_s", "at_seconds")  # of a log line: not a function of the spec


def list_(context: Context, folder: Path = Path("runs")) -> None:
    """List the runs in a folder.

    folder: where the runs are (default: runs).
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {str(folder)!r}: name the one that holds your runs, or train a recipe first."
        )
    paths = sorted(p.parent for p in folder.glob("*/spec.json"))
    rows = [("run", "recipe", "step", "best held-out", "size", "state")]
    for path in paths:
        about = look(path)
        if context.tell.machine:
            context.tell.answer("run", about, "")
        best = about["best"]
        shown = f"{best['metric']} {best['value']:.4g}" if best else ""
        size = f"{about['bytes'] / 1e6:.1f} MB"
        rows.append(
            (path.name, about["recipe"] or "", f"{about['step']}/{about['steps']}", shown, size, about["state"])
        )
    if context.tell.machine:
        return
    context.tell.say(columns(rows) if paths else f"No runs in {folder} yet: morphogen train RECIPE makes one.")


def look(path: Path) -> dict[str, Any]:
    """What can be said of a run without loading it. A damaged one says so in its state."""
    from ..experiment import read_spec
    from ..log import read

    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    about: dict[str, Any] = {"run": str(path), "recipe": None, "step": 0, "steps": 0, "best": None, "bytes": size}
    try:
        page = read_spec(path)
        trainer = page["experiment"]["args"]["trainer"]["args"]
    except (UserError, KeyError, TypeError):
        return about | {"state": "damaged"}
    heldout = (trainer.get("heldout") or {}).get("args") or {}
    measured = [line for line in read(path / "log.jsonl") if "heldout" in line]
    best = receipts.best(measured, heldout["metric"], heldout["better"]) if heldout else None
    saved = [int(p.name) for p in (path / "checkpoints").glob("*") if p.name.isdigit()]
    step, steps = max(saved, default=0), int(trainer["steps"])
    state = receipts.state(step, steps, best, heldout.get("every", 0), heldout.get("patience"))
    if not saved:
        state = "recorded" if (path / "result.json").is_file() and (path / "log.jsonl").is_file() else "no checkpoint"
    recipe = (page.get("recipe") or {}).get("name")
    return about | {"recipe": recipe, "step": step, "steps": steps, "best": best, "state": state, "seed": page["seed"]}


def show(context: Context, run: Path) -> None:
    """Show what a run is and what it came to.

    run: the folder of the run.
    """
    from ..alarms import told
    from ..experiment import read_spec
    from ..log import read

    page = read_spec(run)
    about, result = look(run), receipts.read_json(run / "result.json")
    alarms = told(read(run / "log.jsonl"))
    arguments = (page.get("recipe") or {}).get("arguments") or {}
    best = about["best"]
    facts = {
        "recipe": about["recipe"],
        "arguments": " ".join(f"{k}={v}" for k, v in arguments.items()),
        "seed": page["seed"],
        "state": f"{about['state']}, step {about['step']} of {about['steps']}",
        "best": f"{best['metric']} {best['value']:.6g} at step {best['step']}" if best else None,
        "parameters": f"{result['parameters']:,}" if "parameters" in result else None,
        "time": f"{result['seconds']:.1f} s, {result['steps_per_s']} steps/s" if result.get("seconds") else None,
        "machine": "{cpu}, {cores} cores, {threads} threads, {device}, torch {torch}".format_map(result["machine"])
        if "machine" in result
        else None,
        "command": result.get("command"),
        "size": f"{about['bytes'] / 1e6:.1f} MB",
    }
    text = "\n".join([str(run), *(f"  {k:<11} {v}" for k, v in facts.items() if v not in (None, ""))])
    evaluation = receipts.read_json(run / "evaluation.json")
    if evaluation:
        from .evaluate import described

        text += "\n\n" + described(evaluation)
    averages = receipts.read_json(run / "averages.json").get("averages")
    if averages:
        from .evaluate import compared

        text += "\n\n" + compared(averages)
    for t in alarms:
        text += f"\n\nstep {t.step}{f', over at step {t.over}' if t.over else ''}: {t.alarm}"
    about |= {"alarms": [{"step": t.step, "over": t.over, **t.alarm._asdict()} for t in alarms]}
    fields = {**about, "arguments": arguments, "result": result, "evaluation": evaluation, "averages": averages}
    context.tell.answer("run", fields, text)


def report(
    context: Context,
    run: Path,
    others: tuple[Path, ...] = (),
    *,
    out: Path | None = None,
    statistic: Literal["iqm", "mean", "median"] = "iqm",
) -> None:
    """Write a run's report.html again; or one of several runs that differ in their seed, with curves over seeds.

    run: the folder of the run. others: more runs of the same experiment with other seeds, whose learning curves are
    drawn as one with a band. out: of several runs, FILE.html (default: seeds.html beside the first). statistic: of the
    runs at each point: the interquartile mean, the mean or the median, each with its bootstrap interval.
    """
    from .. import seeds
    from ..report import AXES, write

    if not others:
        if out is not None:
            raise UserError("--out is for the report of several runs: name more of them, or leave it out.")
        path = write(run)
        context.tell.answer("report", {"report": str(path)}, f"Written: {path}")
        return
    path = out or run.parent / "seeds.html"
    if path.suffix != ".html":
        raise UserError(f"{str(path)!r} is no report's name: let it end in .html.")
    path.parent.mkdir(parents=True, exist_ok=True)
    curves = seeds.write([run, *others], path, statistic)
    lasts = [("number", "at the end", "95 % interval", "over")]
    for name, c in curves.items():
        last = (
            f"{c.value[-1]:.6g}",
            f"{c.low[-1]:.6g} … {c.high[-1]:.6g}",
            f"{c.x[-1]:,.0f} {AXES[c.axis]}",
        )
        lasts.append((name, *last))
    fields = {"report": str(path), "statistic": statistic, "curves": {k: c._asdict() for k, c in curves.items()}}
    context.tell.answer("report", fields, f"{columns(lasts)}\n\nWritten: {path}")


# ---- making the beginning of a record again ------------------------------------------------------------------------


def verify(
    context: Context,
    run: Path,
    *,
    steps: int = 50,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> int:
    """Replay the beginning of a recorded run, and say whether each loss is the recorded one.

    On the machine type, torch version and threads of the record every loss must be the same to the last bit; elsewhere
    to 1e-3. Exit code 1 if one is not.

    run: a folder with spec.json, log.jsonl and result.json (docs/runs/NAME). steps: how many steps to replay.
    device: cpu, cuda, …. data_root: the folder that holds the data sets. with_: files that define classes of yours
    which the run uses.
    """
    from ..experiment import read_spec
    from ..log import read

    page = read_spec(run)
    recorded = [line for line in read(run / "log.jsonl") if line.get("step", 0) <= steps]
    if not recorded:
        first = next((line["step"] for line in read(run / "log.jsonl")), None)
        then = f"its first is of step {first}: use --steps {first}" if first else "record the run again"
        raise UserError(f"The log of {str(run)!r} has no loss up to step {steps}; {then}.")
    result = receipts.read_json(run / "result.json")
    there = result.get("machine") or {}
    device = device or ("cpu" if there.get("device") == "cpu" else None)
    with _root(data_root), _threads(result):
        made, here = _replay(context, run, page, steps, device, with_)
    unlike = [k for k in receipts.SAME if there.get(k) != here.get(k)]
    exact = not unlike
    pairs = list(_pairs(recorded, made))
    wrong = [p for p in pairs if not _equal(p[2], p[3], exact)]
    how = "bit for bit" if exact else "to 1e-3"
    because = "" if exact else f" (recorded with another {', '.join(unlike)})"
    fields = {"run": str(run), "compared": len(pairs), "exact": exact, "unlike": unlike}
    if not wrong:
        worst = max((abs(a - b) / max(abs(a), 1e-12) for _, _, a, b in pairs), default=0.0)
        text = f"{run}: all {len(pairs)} numbers up to step {steps} equal the recorded ones {how}{because}"
        text += "." if exact else f"; the largest relative difference is {worst:.1e}."
        context.tell.answer("verified", {**fields, "equal": True, "worst": worst}, text)
        return 0
    shown = "; ".join(f"{name} of step {step}: {a!r} recorded, {b!r} here" for step, name, a, b in wrong[:3])
    text = (
        f"{run}: {len(wrong)} of {len(pairs)} numbers up to step {steps} do not equal the recorded ones {how}{because}:"
    )
    context.tell.answer("verified", {**fields, "equal": False, "wrong": len(wrong)}, f"{text} {shown}.")
    return 1


_root = data_root


def _replay(
    context: Context, run: Path, page: dict[str, Any], steps: int, device: str | None, with_: tuple[Path, ...]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The log of the first steps, made again in a temporary folder; and this machine."""
    from ..device import choose_device
    from ..hooks import Voice
    from ..log import read
    from ..spec import arguments, build, call

    class Steps(Voice):
        def __init__(self, told: Any) -> None:
            self.told = told

        def advance(self, step: int) -> None:
            self.told(step)

    modules = recipes.load_files(with_)
    experiment = build(page["experiment"], modules=modules, assets=run / "assets", seed=int(page["seed"]))
    # neither pictures nor checkpoints are part of the record, and neither can change it
    trainer = call(type(experiment.trainer), {**arguments(experiment.trainer), "hooks": (), "save_every": 1 << 60})
    where = choose_device(device)
    steps = min(steps, trainer.steps)
    with temporary() as folder, context.tell.progress("step", steps) as progress:
        path = Path(folder)
        trainer.fit(
            experiment.model, experiment.data, run=path, seed=int(page["seed"]), device=where, voice=Steps(progress),
            until=steps,
        )  # fmt: skip
        return read(path / "log.jsonl"), receipts.machine(str(where))


class _threads:
    """As many threads as the record was made with, where this machine has them."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.wished = int((result.get("machine") or {}).get("threads") or 0)

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_num_threads()
        if 0 < self.wished <= (os.cpu_count() or 1):
            torch.set_num_threads(self.wished)

    def __exit__(self, *error: object) -> None:
        import torch

        torch.set_num_threads(self.before)


def _pairs(recorded: list[dict[str, Any]], made: list[dict[str, Any]]) -> Iterator[tuple[int, str, float, float]]:
    """Step, name, recorded number and number made, of every number of the record."""
    again = {(line["step"], "heldout" in line): line for line in made}
    for line in recorded:
        step, held = line["step"], "heldout" in line
        other = again.get((step, held), {})
        for name, value in _numbers(line):
            yield step, name, value, dict(_numbers(other)).get(name, float("nan"))


def _numbers(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if name == "heldout":
            yield from (("held-out " + k, v) for k, v in value.items())
        elif name not in ("step", *_TIMES) and isinstance(value, int | float):
            yield name, value


def _equal(recorded: float, made: float, exact: bool) -> bool:
    return recorded == made if exact else abs(recorded - made) <= 1e-3 * max(abs(recorded), 1e-3)
