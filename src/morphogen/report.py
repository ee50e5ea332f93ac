"""`report.html`: what a run is and what it came to, in one file that needs nothing else. Imports no torch.

Losses as a chart drawn here (SVG), samples as inlined pictures, measures as a table with interval and receipt, and what
to type next. No script, no network.
"""

from __future__ import annotations

import base64
import html
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import disk
from .alarms import told
from .experiment import read_spec
from .svg import chart
from .units import duration

_INLINE = 24 << 20  # bytes of pictures in one report
_STRIP = 8  # earlier pictures shown
AXES = {"step": "step", "env_steps": "environment steps"}
TITLES = {"score": "return (mean of the last hundred episodes)"}


def write(run: str | Path) -> Path:
    """Write the report of a run folder and return its path. Raises UserError where the folder is no run."""
    run = Path(run)
    page = read_spec(run)
    path = run / "report.html"
    disk.write(path, render(run, page))
    return path


def render(run: Path, page: Mapping[str, Any]) -> str:
    """The report's text."""
    recipe = page.get("recipe") or {}
    result, evaluation = _json(run / "result.json"), _json(run / "evaluation.json")
    lines = log_lines(run / "log.jsonl")
    title = str(recipe.get("name") or model_of(page))
    sections = [
        _alarms(lines),
        _samples(run),
        _measures(evaluation),
        _averages(_json(run / "averages.json").get("averages") or []),
        _charts(lines),
        _facts(run, page, recipe, result, lines),
        _next(run, title, evaluation, bool(list((run / "samples").glob("*.png")))),
    ]
    body = "\n".join(s for s in sections if s)
    foot = f"morphogen {page.get('morphogen', '')}, run {run.name}"
    return page_of(title, run.name, _lead(page, result, lines), body, foot)


def page_of(title: str, name: str, lead: str, body: str, foot: str) -> str:
    """The HTML of a report: `lead` and `body` are HTML, the rest is text."""
    head = f"<h1>{escaped(title)}</h1>\n<p class='lead'>{lead}</p>"
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{escaped(title)} — {escaped(name)}</title>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<style>{_STYLE}</style></head>\n<body><main>\n<header>{head}</header>\n{body}\n"
        f"<footer>{escaped(foot)}</footer>\n</main></body></html>\n"
    )


def escaped(text: object) -> str:
    """A text as HTML."""
    return html.escape(str(text))


def _json(path: Path) -> dict[str, Any]:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return page if isinstance(page, dict) else {}


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, up to the first that is torn."""
    found = []
    for raw in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(raw))
        except ValueError:
            break
    return found


def _args(node: Any, *names: str) -> Any:
    for name in names:
        node = ((node or {}).get("args") or {}).get(name)
    return node


def _said(node: Any) -> str:
    """A part of a spec as a user would write it."""
    if isinstance(node, dict) and "class" in node:
        args = ", ".join(f"{k}={_said(v)}" for k, v in node["args"].items())
        return f"{str(node['class']).rpartition(':')[2]}({args})"
    if isinstance(node, dict) and "tuple" in node:
        node = node["tuple"]
    return f"({', '.join(map(_said, node))})" if isinstance(node, list) else "" if node is None else str(node)


def model_of(page: Mapping[str, Any]) -> str:
    """The class of a run's model."""
    node = _args(page.get("experiment"), "model") or {}
    return str(node.get("class", "a run")).rpartition(":")[2]


def _lead(page: Mapping[str, Any], result: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: what was trained, on what, how far and how long."""
    test = _args(page.get("experiment"), "data", "test") or {}
    data = str(test.get("class", "")).rpartition(":")[2]
    steps = _args(page.get("experiment"), "trainer", "steps")
    step = max((int(line.get("step", 0)) for line in lines), default=0)
    told = f"<b>{escaped(model_of(page))}</b>" + (f" on <b>{escaped(data)}</b>" if data else "")
    told += f", {step:,} of {steps:,} steps" if isinstance(steps, int) else f", {step:,} steps"
    seconds = result.get("seconds") or max((float(line.get("seconds", 0)) for line in lines), default=0.0)
    if seconds:
        told += f" in {duration(seconds)}"
    best = result.get("best")
    if best:
        told += f"; best held-out {escaped(best['metric'])} <b>{best['value']:.4g}</b> at step {best['step']:,}"
    return told + "."


# ---- sections ------------------------------------------------------------------------------------------------------


def _alarms(lines: Sequence[Mapping[str, Any]]) -> str:
    """What a watch has told: seen what, why, what to change."""
    rows = "".join(
        f"<tr><th>{escaped(t.alarm.sign)}</th><td class='n'>{t.step:,}{f' … {t.over:,}' if t.over else ''}</td>"
        + "".join(f"<td>{escaped(text)}</td>" for text in t.alarm[1:])
        + "</tr>"
        for t in told(lines)
    )
    names = ("sign", "step", "what was seen", "likely cause", "what to change")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    return f"<section><h2>Alarms</h2>{table}</section>" if rows else ""


def _samples(run: Path) -> str:
    pictures = sorted(p for p in (run / "samples").glob("*.png") if p.stem.isdigit())
    if not pictures:
        return ""
    *earlier, newest = pictures
    if len(earlier) > _STRIP:  # evenly, the first and the last among them
        earlier = [earlier[round(i * (len(earlier) - 1) / (_STRIP - 1))] for i in range(_STRIP)]
    room = _INLINE - newest.stat().st_size
    strip = []
    for p in earlier:
        room -= p.stat().st_size
        if room > 0:
            strip.append(f"<figure>{_picture(p)}<figcaption>step {int(p.stem):,}</figcaption></figure>")
    row = f"<div class='strip'>{''.join(strip)}</div>" if strip else ""
    caption = f"<figcaption>Samples at step {int(newest.stem):,}, always of the same noise</figcaption>"
    return f"<section><h2>Samples</h2><figure class='newest'>{_picture(newest)}{caption}</figure>{row}</section>"


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"<img alt='samples at step {int(path.stem)}' src='data:image/png;base64,{data}'>"


def _measures(page: Mapping[str, Any]) -> str:
    if not page:
        return ""
    rows = "".join(
        f"<tr><th>{escaped(name)}</th><td class='n'>{m['value']:.4f}</td>"
        f"<td class='n'>{m['low']:.4f} … {m['high']:.4f}</td>"
        f"<td class='n'>{m['n']:,}</td><td class='how'>{escaped(m['how'])}</td></tr>"
        for name, m in page.get("measures", {}).items()
    )
    head = "<tr><th>measure</th><th>value</th><th>95 % interval</th><th>N</th><th>what it is</th></tr>"
    table = f"<div class='wide'><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>" if rows else ""
    options = "".join(f", {k} {v}" for k, v in (page.get("options") or {}).items())
    drawn = f"{page['n']:,} samples, seed {page['seed']}{options}; " if "n" in page else ""
    if "episodes" in page:
        drawn = f"{page['episodes']:,} episodes of {page['environment']}, {page['acting']}, seed {page['seed']}; "
    judge = f"; judge: {page['judge']['run']}" if page.get("judge") else ""
    heldout = ", ".join(f"{k} {v:.4g}" for k, v in (page.get("heldout") or {}).items())
    held = f"<p>Held-out: {escaped(heldout)}</p>" if heldout else ""
    rated = ", ".join(f"{k} {v:.4g}" for k, v in (page.get("rated") or {}).items())
    held += f"<p>Known returns: {escaped(rated)}</p>" if rated else ""
    average = f", average {page['ema']}" if page.get("ema", "live") != "live" else ""
    told = f"{drawn}weights of step {page.get('step')}{average}{judge}"
    receipt = f"<p class='receipt'>{escaped(told)}</p>"
    return f"<section><h2>Evaluation</h2>{table}{held}{receipt}</section>"


def _averages(pages: Sequence[Mapping[str, Any]]) -> str:
    """Quality against the average of the weights: a table, and charts over their decays or lengths."""
    if not pages:
        return ""
    values = [
        {k: m["value"] for k, m in p["measures"].items()} | {f"held-out {k}": v for k, v in p["heldout"].items()}
        for p in pages
    ]
    names = [k for k in dict.fromkeys(k for row in values for k in row) if len({row.get(k) for row in values}) > 1]
    cells = "".join(
        f"<tr><th>{escaped(p['ema'])}</th>"
        + "".join(f"<td class='n'>{row[k]:.4f}</td>" if k in row else "<td></td>" for k in names)
        + "</tr>"
        for p, row in zip(pages, values, strict=True)
    )
    head = "".join(f"<th>{escaped(k)}</th>" for k in ("average", *names))
    table = f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>"
    charts = []
    for name in names[:6]:
        points = sorted(
            (float(p["ema"]), row[name])
            for p, row in zip(pages, values, strict=True)
            if p["ema"] != "live" and _number(row.get(name))
        )
        if len(points) > 1:
            drawn = chart({name: points}, "decay or length of the average")
            charts.append(f"<figure class='chart'><h3>{escaped(name)}</h3>{drawn}</figure>")
    receipt = f"<p class='receipt'>weights of step {escaped(pages[0].get('step'))}, everything else alike</p>"
    return f"<section><h2>Averages</h2>{table}<div class='charts'>{''.join(charts)}</div>{receipt}</section>"


def _charts(lines: Sequence[Mapping[str, Any]]) -> str:
    """The loss, and every other quantity that was also held out; of training, of held-out data."""
    trained = [line for line in lines if "heldout" not in line]
    measured = [line for line in lines if "heldout" in line]
    names = ["loss", *(k for line in measured for k in line["heldout"])]
    if not any("loss" in line for line in [*trained, *(m["heldout"] for m in measured)]):
        names += [k for line in trained for k in line if k == "loss" or k.endswith(".loss")]
    charts = []
    for name in list(dict.fromkeys(names))[:6]:
        series = {
            "training": [(line["step"], line[name]) for line in trained if _number(line.get(name))],
            "held-out": [(m["step"], m["heldout"][name]) for m in measured if _number(m["heldout"].get(name))],
        }
        if sum(len(points) for points in series.values()) > 1:
            charts.append(f"<figure class='chart'><h3>{escaped(name)}</h3>{chart(series)}</figure>")
    charts[:0] = _scores(trained)
    note = "<p class='receipt'>A point of training is the mean since the point before it.</p>"
    return f"<section><h2>Training</h2><div class='charts'>{''.join(charts)}</div>{note}</section>" if charts else ""


def _scores(trained: Sequence[Mapping[str, Any]]) -> list[str]:
    """What an agent has earned, over the steps that it has lived."""
    found = []
    for name in [k for k in dict.fromkeys(k for line in trained for k in line) if k.rpartition(".")[2] == "score"]:
        points = [
            (line["env_steps"], line[name]) for line in trained if "env_steps" in line and _number(line.get(name))
        ]
        if len(points) > 1:
            drawn = chart({"training": points}, AXES["env_steps"])
            found.append(f"<figure class='chart'><h3>{TITLES['score']}</h3>{drawn}</figure>")
    return found


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _facts(
    run: Path,
    page: Mapping[str, Any],
    recipe: Mapping[str, Any],
    result: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
) -> str:
    machine = result.get("machine") or {}
    arguments = recipe.get("arguments") or {}
    here = "{cpu}, {cores} cores, {threads} threads, {device}".format_map(machine) if "cpu" in machine else None
    versions = f"morphogen {page.get('morphogen')}" + (
        f", torch {machine['torch']}, Python {machine['python']}, {machine['system']}" if "torch" in machine else ""
    )
    facts = {
        "recipe": recipe.get("name"),
        "arguments": " ".join(f"{k}={v}" for k, v in arguments.items()),
        "seed": page.get("seed"),
        "averages": _said(_args(page.get("experiment"), "trainer", "ema")),
        "parameters": f"{result['parameters']:,}" if "parameters" in result else None,
        "speed": f"{result['steps_per_s']:.4g} steps/s" if result.get("steps_per_s") else None,
        "machine": here,
        "versions": versions,
        "command": result.get("command"),
        "ended": result.get("ended"),
        "folder": run,
    }
    rows = "".join(f"<dt>{k}</dt><dd>{escaped(v)}</dd>" for k, v in facts.items() if v not in (None, ""))
    return f"<section><h2>Receipt</h2><dl>{rows}</dl></section>"


def _next(run: Path, recipe: str, evaluation: Mapping[str, Any], draws: bool) -> str:
    path = shlex.quote(str(run))
    own = " --with FILE.py" if ".py:" in recipe else ""
    commands = [f"morphogen sample {path} --n 64 --out samples.png{own}"] if draws else []
    if not evaluation:
        commands.append(f"morphogen evaluate {path}{own}")
    commands.append(f"morphogen runs show {path}")
    if ".py:" not in recipe:
        commands.append(f"morphogen train --like {path} --seed 1")
    return f"<section><h2>Next</h2><pre>{escaped(chr(10).join(commands))}</pre></section>"


_STYLE = """
:root { --paper: #fdfdfb; --ink: #1d2129; --soft: #6a7080; --rule: #e3e3df; --card: #ffffff;
  --a: #2563a8; --b: #d9622b; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161b; --ink: #e8e8e4; --soft: #9aa0ae; --rule: #2c3038;
  --card: #1b1e25; --a: #6fb1f2; --b: #f2955f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 32px; }
h1 { font-size: 30px; letter-spacing: -0.01em; margin: 0 0 4px; }
h2 { font-size: 13px; letter-spacing: 0.08em; text-transform: uppercase; color: var(--soft); font-weight: 600;
  margin: 0 0 14px; }
h3 { font-size: 15px; margin: 0 0 6px; font-weight: 600; }
.lead { font-size: 18px; margin: 0; }
section { border-top: 1px solid var(--rule); margin-top: 30px; padding-top: 22px; }
figure { margin: 0; }
figcaption, .receipt, footer { color: var(--soft); font-size: 13px; margin-top: 6px; }
img { display: block; max-width: 100%; border-radius: 6px; border: 1px solid var(--rule); }
.newest img { width: min(100%, 640px); image-rendering: pixelated; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 12px; margin-top: 18px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 22px; }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px 10px;
  max-width: 660px; }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--soft); }
svg line, svg polyline { fill: none; stroke-width: 1; }
.grid { stroke: var(--rule); } .axis, .tick { stroke: var(--soft); }
polyline.s0, line.s0 { stroke: var(--a); stroke-width: 1.8; } circle.s0 { fill: var(--a); }
polyline.s1, line.s1 { stroke: var(--b); stroke-width: 1.8; } circle.s1 { fill: var(--b); }
polyline.s2, line.s2 { stroke: #2f8f5b; stroke-width: 1.8; } circle.s2 { fill: #2f8f5b; }
polyline.s3, line.s3 { stroke: #8a5bb5; stroke-width: 1.8; } circle.s3 { fill: #8a5bb5; }
polyline.s4, line.s4 { stroke: #b8963e; stroke-width: 1.8; } circle.s4 { fill: #b8963e; }
polyline.s5, line.s5 { stroke: #3a9aa8; stroke-width: 1.8; } circle.s5 { fill: #3a9aa8; }
polyline.s6, line.s6 { stroke: #b5527a; stroke-width: 1.8; } circle.s6 { fill: #b5527a; }
polyline.s7, line.s7 { stroke: #8a8a8a; stroke-width: 1.8; } circle.s7 { fill: #8a8a8a; }
polygon.b0 { fill: var(--a); fill-opacity: 0.18; stroke: none; }
svg polyline.faint { stroke: var(--soft); stroke-opacity: 0.45; stroke-width: 0.8; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: left; padding: 7px 18px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: baseline; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; }
tbody th { font-weight: 600; white-space: nowrap; }
.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.how { color: var(--soft); font-size: 13.5px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 22px; margin: 0; font-size: 15px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; overflow-x: auto;
  font: 14px/1.6 ui-monospace, "DejaVu Sans Mono", monospace; margin: 0; }
"""
