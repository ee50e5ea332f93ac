"""`morphogen evaluate`: what a run is worth, each number with its interval and its receipt.

A classifier is held against its test items. A generator's samples are held against real data: by a judge (are they what
was asked for, can one learn from them, how far are the judge's features of them from those of real items), or by the
values themselves; translations of pictures also against the truth. A net that was told no classes is asked for none,
and only the distances are taken. Samples of a mixture of Gaussians are told by its modes, those of stacked digits by
theirs, and on request those that are drawn without a class by the classes that the judge reads. A law of text or music
is held to the test items alone, all of them. Whatever has a likelihood is measured by that too, and a codec that writes
integers by how many of them it uses.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..seen import Seen, seen_items
from . import recipe as recipes
from .context import Context, data_root
from .judge import JUDGES, checked_judge, judge_of, learned
from .map import of_words
from .play import agent_page, home, is_agent, manner, over_seeds, played
from .sample import knows_labels, load_run, options_of, plain_options
from .tell import columns, measured
from .translate import measured_translations

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Items
    from ..data.stacked import Stacked
    from ..experiment import Run
    from ..metrics.measure import Measure

_BITS = {"log_prob": "bits/dim", "elbo": "bits/dim (bound)", "importance": "bits/dim (importance)"}


def evaluate(
    context: Context,
    run: Path,
    others: tuple[Path, ...] = (),
    *,
    n: int | None = None,
    judge: Path | None = None,
    likelihood: int = 0,
    importance: int | None = None,
    classes: int = 0,
    greedy: bool = False,
    sample: bool = False,
    limit: int | None = None,
    seed: int = 0,
    checkpoint: str = "newest",
    ema: tuple[str, ...] = (),
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Measure a run: its classifier, its samples and likelihoods, or the returns of its agent, with intervals.

    Of several averages of the weights, each is measured in the same way with the same noise: quality against length.
    An agent plays fresh episodes; of several runs that differ in their seed alone, the mean return of each is a score.

    run: the folder of the run. others: of agents, more runs of the same recipe with other seeds. n: how many samples to
    draw (default: 1000); all at one and the same setting, that of the run's pictures unless flags say otherwise; 0 for
    the likelihood alone; of an agent, how many episodes to play (default: 100). judge: the run of a classifier that
    reads the samples (default: for the digits, one that is trained once and kept in the cache folder). likelihood: on
    how many test items it is measured, -1 for all (0: not at all, since a diffusion model's takes minutes). importance:
    how many draws of its latents weigh each of them, where a model has latents: the more, the tighter the bound
    (default: 1000; 0: a single one's bound alone). classes: how many more samples to draw without a class, for the
    judge to say of which one they are: the rarest and the commonest (0: none). greedy: let an agent act without chance.
    sample: let it draw its actions (default: as its paper judges it). limit: steps after which an agent's episode is
    cut off (default: the environment's own). seed: of the samples, or of the episodes. checkpoint: newest, best or a
    step. ema: which averaged weights, by decay or length, or live; several are compared (default: the run's first
    average). device: cpu, cuda, …. data_root: the folder that holds the data sets. with_: files that define classes of
    yours which the run uses.
    """
    if n is not None and n < 0:
        raise UserError(f"--n {n} is no number of samples or episodes: take 2 or more (0: the likelihood alone).")
    if importance is not None and importance < 0:
        raise UserError(f"--importance {importance} draws: take 1000, better 5000 (0: the bound of one draw alone).")
    if classes < 0 or (classes and judge is None):
        raise UserError(f"--classes {classes} draws samples for a judge to read: take 2000, and give --judge RUN.")
    if n == 0 and judge is not None:
        raise UserError("--n 0 draws no samples for the judge to read: take --n 1000, or leave --judge out.")
    acting = manner(greedy, sample, limit)
    measuring = {"--judge": judge, "--likelihood": likelihood, "--classes": classes}
    idle = [k for k, v in (measuring | {"--importance": importance is not None}).items() if v]
    with _root(data_root):
        modules = recipes.load_files(with_)
        if others:
            if len(ema) > 1:
                raise UserError("Several runs are compared at one average of their weights: give one with --ema.")
            from ..seeds import alike

            seeds = [load_run(context, r, checkpoint, device, modules, *ema) for r in (run, *others)]
            alike([(r.path, r.page) for r in seeds])
            pages = [agent_page(context, r, n, acting, seed, limit, idle) for r in seeds]
            for page in pages:
                _kept(Path(page["run"]), page)
            page = over_seeds(pages)
            context.tell.answer("evaluated", page, "\n\n".join(map(described, [*pages, page])))
            return
        for name in ema[1:]:
            load_run(context, run, checkpoint, device, modules, name)  # a wrong one is told before any is measured
        pages = []
        for wish in ema or (None,):
            loaded = load_run(context, run, checkpoint, device, modules, wish)
            if len(ema) > 1:
                context.tell.note(f"Average {loaded.average}:")
            if is_agent(loaded):
                pages.append(agent_page(context, loaded, n, acting, seed, limit, idle))
                continue
            if acting is not None or limit:
                home(loaded)  # says that it does not act
            if n == 1:
                raise UserError("--n 1 sample cannot be measured: take 2 or more, better 1000 (0: none).")
            options = options_of(context, loaded)
            reader = load_run(context, judge, "newest", device, modules) if judge is not None else None
            pages.append(
                measure_run(
                    context,
                    loaded,
                    n=1000 if n is None else n,
                    judge=reader,
                    seed=seed,
                    options=options,
                    likelihood=likelihood,
                    importance=1000 if importance is None else importance,
                    classes=classes,
                )
            )
    one = len(pages) == 1
    page = pages[0] if one else {"averages": pages}
    path, report = _kept(run, page, "evaluation.json" if one else "averages.json")
    told = described(page) if one else compared(pages)
    context.tell.answer("evaluated", page, f"{told}\n\n  evaluation  {path}\n  report      {report}")


def _kept(run: Path, page: dict[str, Any], name: str = "evaluation.json") -> tuple[Path, Path]:
    """Write a page into a run and its report again: their paths."""
    from ..report import write
    from .receipts import write_json

    write_json(run / name, page)
    return run / name, write(run)


_root = data_root


def measure_run(
    context: Context,
    run: Run,
    *,
    n: int,
    judge: Run | None,
    seed: int,
    options: dict[str, Any],
    likelihood: int = 0,
    importance: int = 1000,
    classes: int = 0,
) -> dict[str, Any]:
    """The page of `evaluation.json`. Raises UserError where the run has nothing that can be measured."""
    from .. import __version__
    from ..core import Samples, can
    from ..metrics.codes import Writes, code_use, written
    from ..metrics.judge import Judge
    from ..metrics.language import Counted, Sequential
    from ..metrics.translation import Translates
    from .receipts import command, machine, now

    began = time.perf_counter()
    measures: dict[str, Measure] = {}
    page: dict[str, Any] = {"run": str(run.path), "step": run.step, "ema": run.average, "seed": seed}
    test = run.data.test
    if test is None:
        raise UserError(f"The run {str(run.path)!r} has no held-out data: give its recipe Data(train, test=…).")
    if of_words(run.page):
        raise UserError(
            f"The run {str(run.path)!r} is of word vectors, which have no loss on held-out text: `morphogen map"
            f" {run.path}` draws them, and Vectors(words, model.inner) answers similarities and analogies in Python."
        )
    if can(run.model, Judge):
        measures |= _read_well(run, test)
    if isinstance(run.model, Writes) and run.model.codes:
        measures |= code_use(written(run.model, test, device=run.device), run.model.codes)
    if can(run.model, Samples) and not n and not likelihood:
        raise UserError("--n 0 without --likelihood leaves nothing to measure: take --n 1000, or --likelihood 1000.")
    if can(run.model, Translates) and n:
        found, page["judge"] = _translations(context, run, test, n, judge, seed)
        page["n"], measures = min(n, len(test)), measures | found
    elif isinstance(run.model, Sequential) and isinstance(run.space, Counted):
        found, page["likelihood_seconds"] = _sequences(context, run, test, likelihood)
        measures |= found
        likelihood = 0
    elif can(run.model, Samples) and n:
        page |= {"n": n, "options": plain_options(options)}
        found, page["judge"] = _samples(context, run, test, n, judge, seed, options)
        measures |= found
        if classes and judge is not None:
            measures |= _classes(context, run, classes, checked_judge(run, judge), seed, options)
    if likelihood:
        found, page["likelihood_seconds"] = _likelihoods(context, run, test, likelihood, importance, seed)
        measures |= found
    heldout = held_out(run, test)
    return page | {
        "measures": {k: m._asdict() for k, m in measures.items()},
        "heldout": heldout,
        "seconds": round(time.perf_counter() - began, 3),
        "machine": machine(str(run.device)),
        "command": command(context.typed),
        "morphogen": __version__,
        "at": now(),
    }


def _read_well(run: Run, test: Items) -> dict[str, Measure]:
    """How well a classifier reads the test items."""
    from ..metrics.classification import accuracy, confusion, macro
    from ..metrics.judge import everything, read

    x, label = everything(test)
    found = read(run.model, x.to(run.device)).label.cpu()  # type: ignore[arg-type]
    scores = macro(confusion(found, label, max(int(label.max()), int(found.max())) + 1))
    return {"accuracy": accuracy(found, label, "share of test items read right"), **scores._asdict()}


def held_out(run: Run, test: Items, limit: int | None = None) -> dict[str, float]:
    """The losses on the held-out items, or on about `limit` of them."""
    import torch

    from ..heldout import HeldOut

    batch = 256 if limit is None else min(limit, 256)
    with torch.no_grad():
        return HeldOut(batch=batch, limit=limit).measure(run.model, test, run.seed, run.device)


def _likelihoods(
    context: Context, run: Run, test: Items, n: int, draws: int, seed: int
) -> tuple[dict[str, Measure], dict[str, float]]:
    """Log-likelihood of n held-out items (nats), bits per dimension where x is quantised, and the distance from the
    truth where it is known; how long each took.
    """
    from ..core import can, each
    from ..data.densities import Drawn
    from ..metrics.likelihood import METHODS, SaysHow, likelihoods, mean_of

    if n < -1 or n == 1:
        raise UserError(f"--likelihood {n} has no interval: take 2 or more test items, or -1 for all of them.")
    options: dict[str, dict[str, int]] = {"importance": {"k": draws}}
    methods = [m for m, protocol in METHODS.items() if can(run.model, protocol) and (draws or m != "importance")]
    if not methods:
        raise UserError(
            f"The run {str(run.path)!r} is a {type(run.model).__name__}, which has no likelihood and no bound of one:"
            " leave --likelihood out."
        )
    volume = run.space.volume if run.space is not None else 0.0
    count = len(test) if n == -1 else min(n, len(test))
    found: dict[str, Measure] = {}
    seconds: dict[str, float] = {}
    for method in methods:
        how = f": {run.model.likelihood(method)}" if isinstance(run.model, SaysHow) else ""
        context.tell.note(f"The {method} of {count} test items{how} …")
        with context.tell.progress(method, count) as progress:
            said = likelihoods(
                run.model,
                test,
                volume=volume,
                method=method,
                n=count,
                seed=seed,
                device=run.device,
                progress=progress,
                options=options.get(method),
            )
        found[method], seconds[method] = said.nats, round(said.seconds, 3)
        if said.bits is not None:
            found[_BITS[method]] = said.bits
        if isinstance(test, Drawn) and method == "log_prob":
            batch = each(test.take(said.items), lambda t: t.double() if t.is_floating_point() else t)
            told = batch["cond"] if knows_labels(run.model) else None  # the density of what the model was told
            truth = test.density.log_prob(batch["x"], told)
            found["KL"] = mean_of(truth - said.each, "nats from the known density, normal interval")
    return found, seconds


def _sequences(context: Context, run: Run, test: Items, n: int) -> tuple[dict[str, Measure], dict[str, float]]:
    """What a law of sequences says of the held-out ones: of all, or of n of them; and how long it took."""
    from ..metrics.language import sequences

    count = len(test) if n in (0, -1) else min(n, len(test))
    if n < -1 or count < 2:
        raise UserError(f"--likelihood {n} has no interval: take 2 or more test items, or -1 for all of them.")
    began = time.perf_counter()
    context.tell.note(f"The log-probability of {count} test items …")
    with context.tell.progress("log_prob", count) as progress:
        found = sequences(run.model, test, run.space, n=count, device=run.device, progress=progress)
    return found, {"log_prob": round(time.perf_counter() - began, 3)}


# ---- samples -------------------------------------------------------------------------------------------------------


def _samples(
    context: Context, run: Run, test: Items, n: int, judge: Run | None, seed: int, options: dict[str, Any]
) -> tuple[dict[str, Measure], dict[str, Any] | None]:
    """What the samples are worth, and which judge said so."""
    import torch

    from ..data.stacked import Stacked
    from ..experiment import draw
    from ..metrics.judge import evaluate_samples

    seen = seen_items(run.data.train, test, f"the run {str(run.path)!r}")
    if isinstance(test, Stacked):
        return _stacked(context, run, test, n, judge, seed, options)
    one = test.take(torch.zeros(1, dtype=torch.long))
    labelled = (one.get("cond") or {}).get("label") is not None and bool(getattr(run.space, "classes", ()))
    kind = type(test).__name__
    judging = judge_of(context, run, judge, kind) if labelled else None
    if judge is not None and not labelled:
        raise UserError(f"The data of {str(run.path)!r} have no classes for a judge to read: leave --judge out.")
    asked = None
    if labelled and knows_labels(run.model):
        asked = torch.arange(n) % len(run.space.classes)  # type: ignore[union-attr]
    cond = run.space.cond(n, label=asked.tolist()) if asked is not None and run.space else None
    context.tell.note(f"Drawing {n} samples{''.join(f', {k} {v}' for k, v in options.items())} …")
    with context.tell.progress("sample", n) as progress:
        x = draw(run.model, n, cond, seed=seed, options=options, progress=progress).cpu()
    if not seen.recorded:
        context.tell.note("The data are endless draws of a density, so there is nothing to have memorised.")
    if judging is None:
        if labelled and seen.recorded:
            named = f"`morphogen train {JUDGES[kind]}`" if kind in JUDGES else "a classifier"
            context.tell.note(f"Without a judge only the values are compared: train {named} and give --judge RUN.")
        return _distances(x, seen, test, seed, None) | _modes(x, test), None
    device, judged = judging.device, {"run": str(judging.path), "step": judging.step}
    model = judging.model.cpu()
    if asked is None:
        context.tell.note(f"The net was told no classes: {judging.path} gives the features for distances, and no more.")
        return _distances(x, seen, test, seed, model), judged
    context.tell.note(f"Judged by {judging.path}; a second classifier learns from the samples alone …")
    found = evaluate_samples(
        x,
        asked,
        train=seen.items,
        test=test,
        judge=model,  # type: ignore[arg-type]
        fit=lambda samples, labels: learned(judging, samples, labels, seed, str(device)),
        seed=seed,
    )
    return {k: m for k, m in found.items() if seen.recorded or k != "memorised"}, judged


def _stacked(
    context: Context, run: Run, test: Stacked, n: int, judge: Run | None, seed: int, options: dict[str, Any]
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """How many modes of stacked digits the samples reach, as a judge of the single ones reads them; and what test items
    as many do.
    """
    import torch

    from ..core import can
    from ..data.stacked import mode_of
    from ..experiment import draw
    from ..metrics.judge import Judge
    from ..metrics.stacked import channel_labels, stacked_modes

    reads = None if judge is None or judge.space is None else tuple(judge.space.shape)
    if judge is None or not can(judge.model, Judge) or reads != (1, *test.take(torch.zeros(1).long())["x"].shape[2:]):
        raise UserError(
            "Modes of stacked digits are counted by a judge of single ones: give --judge RUN, a classifier's."
        )
    context.tell.note(f"Drawing {n} samples{''.join(f', {k} {v}' for k, v in options.items())} …")
    with context.tell.progress("sample", n) as progress:
        x = draw(run.model, n, seed=seed, options=options, progress=progress).cpu()
    model: Any = judge.model.cpu()
    real = test.take(torch.arange(n) % len(test))["x"]
    found, best = (stacked_modes(mode_of(channel_labels(model, y), test.classes), test.modes) for y in (x, real))
    told = found | {f"{name} of data": m for name, m in best.items()}
    kept = {name: m for name, m in told.items() if math.isfinite(m.value)}  # of no sample in any mode: no KL
    return kept, {"run": str(judge.path), "step": judge.step}


def _translations(
    context: Context, run: Run, test: Items, n: int, judge: Run | None, seed: int
) -> tuple[dict[str, Measure], dict[str, Any] | None]:
    """What the translations of test items are worth, and which judge said so."""
    judging = None if judge is None else checked_judge(run, judge)
    model = None if judging is None else judging.model.cpu()
    found = measured_translations(
        context, run, test, n, model, seen_items(run.data.train, test, f"the run {str(run.path)!r}").items, seed
    )
    return found, None if judging is None else {"run": str(judging.path), "step": judging.step}


def _classes(context: Context, run: Run, n: int, judge: Run, seed: int, options: dict[str, Any]) -> dict[str, Measure]:
    """Which classes are drawn where none is asked for."""
    from ..experiment import draw
    from ..metrics.judge import read
    from ..metrics.modes import class_shares

    context.tell.note(f"Drawing {n} samples without a class …")
    with context.tell.progress("sample", n) as progress:
        x = draw(run.model, n, seed=seed + 1, options=options, progress=progress).cpu()
    label = read(judge.model.cpu(), x).label  # type: ignore[arg-type]
    return class_shares(label, len(getattr(judge.space, "classes", ())) or int(label.max()) + 1)._asdict()


def _modes(x: Tensor, test: Items) -> dict[str, Measure]:
    """The modes that samples reach, where the data are drawn from a mixture of Gaussians."""
    import torch

    from ..data.densities import Drawn, Gaussians
    from ..metrics.modes import mode_coverage

    if not isinstance(test, Drawn) or not isinstance(mixture := test.density, Gaussians):
        return {}
    found = mode_coverage(x, torch.tensor(mixture.means), mixture.std, torch.tensor(mixture.weights))
    return {k: m for k, m in found._asdict().items() if math.isfinite(m.value)}  # of no sample in any mode: no KL


def _distances(x: Tensor, seen: Seen, test: Items, seed: int, judge: Any) -> dict[str, Measure]:
    """How far the samples are from test items, by the judge's features where there is one, else by the values; and how
    many are copies, where there is something to copy.
    """
    import torch

    from ..metrics.frechet import frechet_distance
    from ..metrics.judge import read
    from ..metrics.memorisation import memorised

    order = torch.Generator().manual_seed(seed)

    def some(items: Items, most: int) -> Tensor:
        picked = torch.randperm(len(items), generator=order)[:most]
        taken: Tensor = items.take(picked)["x"]
        return taken

    def features(x: Tensor) -> Tensor:
        return x.flatten(1) if judge is None else read(judge, x).features

    floor, real = some(seen.items, len(x)), some(test, 10_000)
    found = {"memorised": memorised(x, some(seen.items, 50_000), real)} if seen.recorded else {}
    away, least = (frechet_distance(features(y), features(real)) for y in (x, floor))
    return found | {
        "frechet": away._replace(how=f"samples from test items, {away.how}"),
        "floor": least._replace(how=f"training items from test items, {least.how}"),
    }


# ---- what is shown -------------------------------------------------------------------------------------------------


def compared(pages: list[dict[str, Any]]) -> str:
    """The measures of several averages of the weights, a row for each; the intervals are in the file."""
    values = [{k: m["value"] for k, m in p["measures"].items()} | _prefixed(p["heldout"]) for p in pages]
    names = list(dict.fromkeys(k for row in values for k in row))
    rows = [("average", *names)]
    for page, row in zip(pages, values, strict=True):
        rows.append((page["ema"], *(f"{row[k]:.4f}" if k in row else "" for k in names)))
    return f"{_setting(pages[0] | {'ema': None})}:\n\n{columns(rows)}"


def _prefixed(heldout: dict[str, float]) -> dict[str, float]:
    return {f"held-out {k}": v for k, v in heldout.items()}


def _setting(page: dict[str, Any]) -> str:
    if "episodes" in page:
        return played(page)
    options = "".join(f", {k} {v}" for k, v in (page.get("options") or {}).items())
    drawn = f", {page['n']} samples of seed {page['seed']}{options}" if "n" in page else ""
    average = f", average {page['ema']}" if page.get("ema") not in (None, "live") else ""
    return f"{page['run']}, step {page['step']}{average}{drawn}"


def described(page: dict[str, Any]) -> str:
    """The measures as a table for a terminal."""
    lines = [f"{_setting(page)}:", ""]
    if page["measures"]:
        lines.append(measured(page["measures"]))
    for name, said in (("known returns", page.get("rated")), ("held-out", page.get("heldout"))):
        if said:
            lines += ["", f"{name}: {', '.join(f'{k} {v:.4g}' for k, v in said.items())}"]
    return "\n".join(lines)
