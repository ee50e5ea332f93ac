"""`morphogen plan`: what a training will take, before it is begun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..units import duration, storage
from .context import Context, data_root
from .receipts import command
from .recipe import Recipe
from .rehearse import rehearsed
from .tell import columns
from .train import noted, resolve, temporary

if TYPE_CHECKING:
    from ..scaling import Law

_root = data_root
_MOST = 6  # parts of a model that are told apart


def plan(
    context: Context,
    recipe: str,
    *,
    device: str | None = None,
    law: Path | None = None,
    run: Path | None = None,
    seed: int = 0,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
    seconds: float = 5.0,
) -> None:
    """Say what training a recipe will take before it is begun: parameters, memory, time, what is written, final loss.

    A rehearsal takes a few real steps in a process of its own, and measures, draws, saves and loads once: so it is
    right for the machine as busy as it is now. Nothing of it is kept.

    recipe: a shipped recipe, or FILE.py:FUNCTION for your own. device: cpu, cuda, … (default: the fastest that is
    here). law: a scaling law of this recipe (what `morphogen scale` writes), to say the final loss by. run: the folder
    that the run would go to (default: runs/RECIPE-SEED). seed: as of the training. data_root: the folder that holds
    the data sets. with_: files that define classes of yours which the recipe uses. seconds: to measure steps for; more
    where steps differ among themselves.
    """
    if not seconds > 0:
        raise UserError(f"--seconds {seconds:g} measures nothing: give a number above 0, such as --seconds 5.")
    from ..scaling import read_law

    found, arguments = resolve(context, recipe, None)

    known = None if law is None else read_law(law)
    if known is not None and known.about.get("recipe") != found.name:
        raise UserError(
            f"The law {str(law)!r} is of {known.about.get('recipe')}, not of {found.name}: fit one with `morphogen"
            f" scale {found.name}`, or leave --law out."
        )
    context.tell.note(f"Rehearsing {found.name} …")
    with temporary() as folder, _root(data_root):
        said = rehearsed(
            Path(folder), recipe, noted(found, arguments), files=with_, seed=seed, device=device, seconds=seconds
        )
    where = run or Path("runs") / f"{found.short}-{seed}"
    page: dict[str, Any] = {"recipe": found.name, "arguments": noted(found, arguments), "run": str(where), **said}
    page["loss"] = None if known is None else _foretold(known, page)
    typed = [w for w in context.typed[1:] if w]
    page["next"] = command(["train", *_without(typed, ("--law", "--seconds"))])
    context.tell.answer("plan", page, _shown(found, page, law))


def _without(words: list[str], flags: tuple[str, ...]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in flags:
            skip = True
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return kept


def _foretold(law: Law, page: Mapping[str, Any]) -> dict[str, Any]:
    """The final loss by a law, with its interval, and what speaks against it."""
    n, d = page["parameters"]["trained"], page["amount"]["total"]
    told = law.predict(n, d)
    doubts = law.beyond(n, d) + [f"the law's runs do not tell how the loss falls with {what}" for what in law.untold()]
    grid = {*law.about.get("size", ()), law.about.get("budget")}
    there = law.about.get("arguments", {})
    other = [
        f"--{k.replace('_', '-')} {v} (there {there[k]})"
        for k, v in page["arguments"].items()
        if k in there and k not in grid and there[k] != v
    ]
    if other:
        doubts.append(f"the law was fitted with other settings than {', '.join(other)}")
    if law.about.get("cool"):
        doubts.append("the law is of runs with a constant rate and a cool-down, not of the recipe's own schedule")
    return {**told._asdict(), "level": law.level, "metric": law.about.get("metric", "loss"), "doubts": doubts}


def _shown(found: Recipe, page: Mapping[str, Any], law: Path | None) -> str:
    memory, counts, amount, once = page["memory"], page["parameters"], page["amount"], page["once"]
    parts = sorted(counts["parts"].items(), key=lambda kv: -kv[1])
    listed = [f"{k} {n:,}" for k, n in parts[:_MOST]] + ([f"{len(parts) - _MOST} more"] if len(parts) > _MOST else [])
    frozen = counts["total"] - counts["trained"]
    rows = [("what", "", "how")]
    rows.append(
        ("parameters", f"{counts['total']:,}", (f"{frozen:,} of them frozen; " if frozen else "") + ", ".join(listed))
    )
    stands = {k: memory[k] for k in ("weights", "gradients", "optimiser", "averages")}
    rows.append(("standing", storage(sum(stands.values())), ", ".join(f"{k} {storage(v)}" for k, v in stands.items())))
    if "device" in memory:
        rows.append(("peak of the GPU", storage(memory["device"]), f"measured, of {storage(memory['device_total'])}"))
    rows.append(
        (
            "peak memory",
            storage(memory["process"]),
            f"measured, of the process; {storage(memory['before'])} before it began",
        )
    )
    rows.append(("time", duration(page["seconds"]), _sum(once, page["times"])))
    repeats = f", each {amount['total'] / amount['distinct']:.2g} times" if amount["distinct"] else ""
    rows.append(("learns from", f"{amount['total']:,.0f}", f"{amount['unit']}, {amount['step']:,.0f} a step{repeats}"))
    disk = page["disk"]
    rows.append(
        (
            "writes",
            storage(disk["checkpoints"]),
            f"{page['run']}: checkpoints of {storage(disk['checkpoint'])}, the newest kept; spec.json, log.jsonl,"
            " result.json, report.html, pictures",
        )
    )
    loss = page["loss"]
    if "held-out data" not in page["times"]:
        rows.append(("final loss", "unknown", "nothing is held out, which a law would be of"))
    elif loss is None:
        rows.append(
            ("final loss", "unknown", f"no law given: `morphogen scale {found.name}` fits one, --law FILE takes it")
        )
    else:
        rows.append(
            (
                f"final {loss['metric']}",
                f"{loss['value']:.4g}",
                f"{loss['level']:.0%} of such runs within {loss['low']:.4g} … {loss['high']:.4g}, by {law}",
            )
        )
    heading = (
        f"{found.name} on {page['device']}"
        + (f" ({page['threads']} thread{'s' * (page['threads'] > 1)})" if page["device"] == "cpu" else "")
        + f", {page['steps']:,} steps:"
    )
    doubts = [*page["said"], *(loss["doubts"] if loss else [])]
    if page["patience"]:
        doubts.append("it may stop earlier: early stopping is on")
    notes = [f"  ! {text[:1].upper()}{text[1:].rstrip('.')}." for text in doubts]
    return "\n".join([heading, columns(rows), *notes, "Next:", f"  {page['next']}"])


def _sum(once: Mapping[str, float], times: Mapping[str, int]) -> str:
    terms = []
    for name, n in times.items():
        each = duration(once[name])
        terms.append(f"{name} {each}" if n == 1 else f"{n:,} × {name} {each}")
    return " + ".join(terms)
