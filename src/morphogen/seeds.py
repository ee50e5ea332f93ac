"""Several runs of one recipe as one: their learning curves with a band over seeds, and what they came to.

At each point of a curve the scores of all runs make one number (their interquartile mean) and its bootstrap interval:
what another seed would do, most likely. Runs that have logged at other places are read in between by straight lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import disk
from .errors import UserError
from .experiment import read_spec
from .report import AXES, TITLES, escaped, log_lines, model_of, page_of
from .spec import differences
from .svg import chart

Page = Mapping[str, Any]  # a run's spec.json
Statistic = Literal["iqm", "mean", "median"]
NAMED = {"iqm": "interquartile mean", "mean": "mean", "median": "median"}
_POINTS, _RESAMPLES = 120, 2000  # of a curve; of the bootstrap at each
_CURVES = 6  # in a report


class Curve(NamedTuple):
    """x: training steps, or what `axis` says; value, low, high: the statistic of all runs there, and its 95 % interval;
    each: the runs' own values, a list for each run.
    """

    axis: str
    x: list[float]
    value: list[float]
    low: list[float]
    high: list[float]
    each: list[list[float]]


def alike(runs: Sequence[tuple[Path, Page]]) -> None:
    """Raise UserError unless runs, each its folder and spec.json, differ in their seeds alone."""
    (first, page), seeds = runs[0], [int(p["seed"]) for _, p in runs]
    for path, other in runs[1:]:
        if found := differences(page["experiment"], other["experiment"]):
            raise UserError(
                f"The runs {str(first)!r} and {str(path)!r} are not seeds of one experiment ({found[0]}): take them one"
                " by one."
            )
    twice = next((s for s in seeds if seeds.count(s) > 1), None)
    if twice is not None:
        raise UserError(
            f"Two of the runs have the seed {twice}, which says nothing new: train one with another --seed."
        )


def statistic_of(name: Statistic) -> Callable[[Any], Any]:
    """The function of scores (..., n) by its name."""
    from .metrics import returns

    return {"iqm": returns.interquartile_mean, "mean": returns.mean, "median": returns.median}[name]


def curve(logs: Sequence[Sequence[Page]], name: str, statistic: Statistic = "iqm") -> Curve | None:
    """What all runs' logs say of `name`, over environment steps where they have them; None where one says nothing."""
    import numpy as np

    from .metrics.returns import stratified_bootstrap

    axis = "env_steps" if all("env_steps" in line for log in logs for line in log if name in line) else "step"
    lines = [[(float(v[axis]), float(v[name])) for v in log if name in v] for log in logs]
    if any(b < a for log in lines for (a, _), (b, _) in pairwise(log)):  # counted anew after a resume
        axis, lines = "step", [[(float(v["step"]), float(v[name])) for v in log if name in v] for log in logs]
    if not all(lines):
        return None
    lines = [_once(log) for log in lines]
    low, high = max(log[0][0] for log in lines), min(log[-1][0] for log in lines)
    own = sorted({x for x, _ in lines[0] if low <= x <= high} | {low, high})
    x = np.array(own if len(own) <= _POINTS else np.linspace(low, high, _POINTS))
    each = np.stack([np.interp(x, *np.array(log).T) for log in lines])  # (runs, points)
    does = statistic_of(statistic)
    bands = [stratified_bootstrap([scores], does, resamples=_RESAMPLES) for scores in each.T]
    value = does(each.T)
    return Curve(axis, x.tolist(), value.tolist(), [b[0] for b in bands], [b[1] for b in bands], each.tolist())


def _once(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of the same x, which lie beside one another, as their mean."""
    return [(x, sum(ys) / len(ys)) for x, points in groupby(line, lambda p: p[0]) for ys in [[y for _, y in points]]]


def named(logs: Sequence[Sequence[Page]]) -> list[str]:
    """The numbers that all logs have: scores first, then losses, then what else was logged."""
    shared = [{k for line in log for k, v in line.items() if isinstance(v, int | float)} for log in logs]
    clock = {"step", "env_steps", "seconds", "steps_per_s", "at_seconds"}
    names = sorted(set.intersection(*shared) - clock)
    rank = {"score": 0, "loss": 1}
    return sorted(names, key=lambda k: (rank.get(k.rpartition(".")[2], 2), k))


# ---- the report ----------------------------------------------------------------------------------------------------


def write(runs: Sequence[Path], path: Path, statistic: Statistic = "iqm") -> dict[str, Curve]:
    """Write the report of several runs of one experiment, and return their curves.

    Raises UserError where they differ in more than their seeds, or have logged nothing in common.
    """
    runs = [Path(run) for run in runs]
    pages = [read_spec(run) for run in runs]
    alike(list(zip(runs, pages, strict=True)))
    logs = [[line for line in log_lines(run / "log.jsonl") if "heldout" not in line] for run in runs]
    drawn = {name: c for name in named(logs)[:_CURVES] if (c := curve(logs, name, statistic)) is not None}
    if not drawn:
        raise UserError("These runs have logged nothing in common yet: let each train until it logs, then ask again.")
    title = str((pages[0].get("recipe") or {}).get("name") or model_of(pages[0]))
    charts = []
    for name, c in drawn.items():
        band = {NAMED[statistic]: list(zip(c.x, c.low, c.high, strict=True))}
        each = {f"seed {p['seed']}": list(zip(c.x, v, strict=True)) for p, v in zip(pages, c.each, strict=True)}
        line = chart({NAMED[statistic]: list(zip(c.x, c.value, strict=True))}, AXES[c.axis], bands=band, faint=each)
        charts.append(
            f"<figure class='chart'><h3>{escaped(TITLES.get(name.rpartition('.')[2], name))}</h3>{line}</figure>"
        )
    note = (
        f"The {NAMED[statistic]} of {len(runs)} runs, with its 95 % bootstrap interval over seeds; thin: each run."
        " A point is the mean since the point before it."
    )
    curves = (
        f"<section><h2>Training</h2><div class='charts'>{''.join(charts)}</div><p class='receipt'>{note}</p></section>"
    )
    evaluations = [_measures(run) for run in runs]
    names = list(dict.fromkeys(n for e in evaluations for n in e))
    rows = "".join(
        f"<tr><th>{escaped(run)}</th><td class='n'>{p['seed']}</td>"
        + "".join(f"<td class='n'>{e[n]['value']:.4f}</td>" if n in e else "<td></td>" for n in names)
        + "</tr>"
        for run, p, e in zip(runs, pages, evaluations, strict=True)
    )
    head = "".join(f"<th>{escaped(n)}</th>" for n in ("run", "seed", *names))
    table = f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    lead = f"<b>{escaped(model_of(pages[0]))}</b>, {len(runs)} seeds of one experiment."
    body = curves + f"<section><h2>Runs</h2>{table}</section>"
    disk.write(path, page_of(title, f"{len(runs)} seeds", lead, body, f"morphogen {pages[0].get('morphogen', '')}"))
    return drawn


def _measures(run: Path) -> dict[str, Any]:
    """What was measured of a run, if anything was."""
    try:
        return dict(json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["measures"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
