"""How a fitted law of scaling is told: on the terminal, in law.json, and as a page with its charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .context import Context
from .tell import columns

if TYPE_CHECKING:
    from ..scaling import Best, Law, Told


def conclude(context: Context, law: Law, folder: Path, compute: float | None) -> None:
    """Keep the law in the folder and tell it, with the best use of `compute` operations (None: ten times the largest
    run's) where operations were counted.
    """
    from .receipts import write_json

    k = law.about["flops"]
    best: Best | None = None
    if k and not law.untold():
        compute = compute or 10 * k * max(p.n * p.d for p in law.points)
        best = law.best(compute, k)
    page = law.page() | {
        "optimum": best and {"compute": compute, "n": list(best.n), "d": list(best.d), "loss": list(best.loss)}
    }
    write_json(folder / "law.json", page)
    from ..disk import write

    write(folder / "law.html", _report(law, folder, compute, best))
    lines = [_table(law), "", _sentence(law), *_advice(law, compute, best)]
    following = f"morphogen plan {law.about['recipe']} --law {folder / 'law.json'}"
    lines += [f"  law      {folder / 'law.json'}", f"  picture  {folder / 'law.html'}", "Next:", f"  {following}"]
    told = {k: v for k, v in page.items() if k not in ("draws", "scatter")}
    context.tell.answer(
        "scaled",
        {**told, "file": str(folder / "law.json"), "picture": str(folder / "law.html"), "next": following},
        "\n".join(lines),
    )


def _table(law: Law) -> str:
    head = ("run", "parameters", law.about["unit"], law.about["metric"], "by the law")
    return columns([head, *_numbers(law)])


def _numbers(law: Law) -> list[tuple[str, ...]]:
    """Of each run its name, size, amount, loss, and the law's."""
    return [(p.run, f"{p.n:,.0f}", f"{p.d:,.0f}", f"{p.loss:.4f}", f"{float(law(p.n, p.d)):.4f}") for p in law.points]


def _sentence(law: Law) -> str:
    unit = law.about["unit"]
    said = {k: _with_interval(t) for k, t in law.intervals.items()}
    return (
        f"{law.about['metric']} = E + A / N^α + B / D^β, N parameters, D {unit}; {law.level:.0%} intervals:\n"
        + "\n".join(f"  {k:<6} {v}" for k, v in said.items())
    )


def _with_interval(told: Told) -> str:
    return f"{told.value:.4g}  ({told.low:.4g} … {told.high:.4g})"


def _advice(law: Law, compute: float | None, best: Best | None) -> list[str]:
    """Where a compute is best spent, or why that is not told."""
    if untold := law.untold():
        return [
            f"These runs do not tell how {law.about['metric']} falls with {' or with '.join(untold)}: vary that over"
            " more, or train longer. So no best size is told."
        ]
    if best is None or compute is None:
        return []
    beyond = law.beyond(best.n.value, best.d.value)
    doubt = f" That is {' and '.join(beyond)}: an extrapolation." if beyond else ""
    return [
        f"Of {compute:.3g} operations the best use is {best.n.value:,.0f} parameters ({best.n.low:,.0f} …"
        f" {best.n.high:,.0f}) on {best.d.value:,.0f} {law.about['unit']} ({best.d.low:,.0f} … {best.d.high:,.0f}), to"
        f" end at {best.loss.value:.4g} ({best.loss.low:.4g} … {best.loss.high:.4g}).{doubt}"
    ]


def _names(numbers: Sequence[float]) -> dict[float, str]:
    """Numbers in few letters, 50.3k and 1.05M, where that tells them apart."""
    short = {}
    for n in numbers:
        power, letter = next((p for p in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if n >= p[0]), (1.0, ""))
        short[n] = f"{n / power:.3g}{letter}"
    return short if len(set(short.values())) == len(short) else {n: f"{n:,.10g}" for n in short}


def _report(law: Law, folder: Path, compute: float | None, best: Best | None) -> str:
    """The law as a page: what was measured beside it, over amount and over size, and its numbers."""
    from .. import __version__
    from ..report import escaped, page_of
    from ..svg import chart

    unit, metric = law.about["unit"], law.about["metric"]
    names = _names(sorted({p.n for p in law.points}))
    lengths = _names(amounts := sorted({p.d for p in law.points}))

    def over(series: Mapping[str, Sequence[tuple[float, float]]], lines: Mapping[str, Any], label: str) -> str:
        drawn = chart(series, label, faint=lines, decades=True)
        return f"<figure class='chart'><h3>{escaped(metric)} over {escaped(label)}</h3>{drawn}</figure>"

    def spread(low: float, high: float) -> list[float]:
        return [low * (high / low) ** (i / 40) for i in range(41)]

    by_size = {names[n]: [(p.d, p.loss) for p in law.points if p.n == n] for n in names}
    curves = {names[n]: [(d, float(law(n, d))) for d in spread(amounts[0], amounts[-1] * 4)] for n in names}
    by_amount = {lengths[d]: [(p.n, p.loss) for p in law.points if p.d == d] for d in amounts}
    ns = list(names)
    across = {lengths[d]: [(n, float(law(n, d))) for n in spread(ns[0], ns[-1] * 4)] for d in amounts}
    charts = over(by_size, curves, unit) + over(by_amount, across, "parameters")
    rows = "".join(
        f"<tr><th>{k}</th><td class='n'>{t.value:.5g}</td><td class='n'>{t.low:.5g} … {t.high:.5g}</td></tr>"
        for k, t in law.intervals.items()
    )
    top = f"<tr><th></th><th>value</th><th>{law.level:.0%} interval</th></tr>"
    table = f"<table><thead>{top}</thead><tbody>{rows}</tbody></table>"
    runs = "".join(
        f"<tr><th>{escaped(name)}</th>" + "".join(f"<td class='n'>{v}</td>" for v in numbers) + "</tr>"
        for name, *numbers in _numbers(law)
    )
    head = "".join(f"<th>{escaped(h)}</th>" for h in ("run", "parameters", unit, metric, "by the law"))
    note = "<p class='receipt'>Points: runs. Thin lines: the law, fitted to all of them.</p>"
    body = (
        f"<section><h2>Law</h2><div class='charts'>{charts}</div>{note}{table}</section>"
        f"<section><h2>Runs</h2><div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{runs}</tbody></table>"
        "</div></section>"
    )
    lead = f"<b>{escaped(metric)}</b> = E + A / N<sup>α</sup> + B / D<sup>β</sup>."
    lead = " ".join([lead, *map(escaped, _advice(law, compute, best))])
    return page_of(
        f"Scaling of {law.about['recipe']}", folder.name, lead, body, f"morphogen {__version__}, {folder.name}"
    )
