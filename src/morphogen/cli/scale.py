"""`morphogen scale`: a scaling law of a recipe, from a grid of its runs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError, unknown
from ..units import duration
from .context import Context, data_root
from .law import conclude
from .line import convert
from .recipe import Recipe, load_files
from .train import noted, resolve

if TYPE_CHECKING:
    from ..experiment import Experiment, Run
    from ..scaling import Point

_root = data_root


class Cell(NamedTuple):
    """A run of the grid: which size, how many steps, where it branches from the trunk (0: it does not), its folder."""

    size: dict[str, Any]
    name: str
    budget: Any
    steps: int
    begins: int
    path: Path


class Row(NamedTuple):
    """A size of the grid: its trunk's folder, where it has one, and its runs, the shortest first."""

    trunk: Path | None
    cells: list[Cell]
    parameters: int
    step: float
    unit: str
    distinct: float | None
    flops: float | None


def scale(
    context: Context,
    recipe: str,
    *,
    sizes: tuple[str, ...] = (),
    budgets: tuple[str, ...] = (),
    cool: float = 0.2,
    metric: str | None = None,
    compute: float | None = None,
    run: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
    draws: int = 200,
) -> None:
    """Train a recipe at several sizes and lengths, and fit the law by which its held-out loss falls.

    Runs that are finished are not run again, so the same command goes on where it was stopped, and ends in law.json
    (for `morphogen plan --law`) and law.html.

    recipe: a shipped recipe, or FILE.py:FUNCTION for your own. sizes: the argument that scales the model, and its
    values, as in --sizes width 32 64 128; several together are joined by commas, --sizes width,depth 32,2 64,4 128,6.
    budgets: the argument that says how long to train, and its values, as in --budgets steps 250 500 1000. cool: the
    lengths of a size share one trunk at a constant rate, and each cools down over this last part of its steps; 0 trains
    every run alone, by the recipe's own schedule. metric: what falls, of what is measured on held-out data (default:
    what the recipe measures, where less is better; else loss). compute: floating-point operations to say the best size
    for (default: ten times the largest run's). run: the folder of all (default: runs/scale-RECIPE-SEED). seed: of every
    run. device: cpu, cuda, … (default: the fastest that is here). data_root: the folder that holds the data sets.
    with_: files that define classes of yours which the recipe uses. draws: resamples that intervals are made of.
    """
    if not 0 <= cool < 1:
        raise UserError(f"--cool {cool:g} is no part of a run: give one from 0 (none) to below 1, such as --cool 0.2.")
    if draws < 20:
        raise UserError(f"--draws {draws} make no interval: give 20 or more, better 200.")
    if compute is not None and not 0 < compute < math.inf:
        raise UserError(f"--compute {compute:g} buys nothing: give operations, such as --compute 1e15.")
    if not sizes or not budgets:
        missing = "--budgets steps 250 500 1000" if sizes else "--sizes width 32 64 128"
        raise UserError(f"{missing.partition(' ')[0]} is missing: say what varies and its values, such as {missing}.")
    load_files(with_)
    found, arguments = resolve(context, recipe, None)
    given = context.options(found.flags, found.name)
    try:
        with _root(data_root):
            made = found.build(arguments)
    except UserError:  # where its own settings will not do, the grid's may
        pass
    else:
        _held_out(found, made)
    names, points = _values(found, "--sizes", sizes)
    amounts, lengths = _values(found, "--budgets", budgets)
    if len(amounts) != 1 or amounts[0] in names:
        raise UserError(f"--budgets {budgets[0]} is not one argument beside those of --sizes: name one, such as steps.")
    if twice := [n for n in (*names, *amounts) if n in given]:
        raise UserError(
            f"--{twice[0].replace('_', '-')} is given beside --sizes and --budgets, which vary it: leave it out."
        )
    if len(points) < 3 or len(lengths) < 3:
        raise UserError(
            f"{len(points)} sizes and {len(lengths)} budgets cannot tell a law: give at least 3 of each, better 4 or 5."
        )
    folder = run or Path("runs") / f"scale-{found.short}-{seed}"
    from ..device import choose_device
    from ..experiment import check_seed
    from ..scaling import fit

    check_seed(seed)
    where = str(choose_device(device))
    with _root(data_root):
        grid = _Grid(context, found, arguments, names, points, amounts[0], lengths, cool, metric, folder, seed, where)
        rows = grid.rows()
        _tell_grid(context, grid, rows)
        grid.train(rows)
        measured = list(grid.measured(rows))
    k = _operations(rows)
    about = {
        "recipe": found.name,
        "arguments": noted(found, arguments),
        "size": list(names),
        "budget": amounts[0],
        "metric": grid.metric,
        "unit": rows[0].unit,
        "distinct": rows[0].distinct,
        "cool": cool,
        "seed": seed,
        "flops": k,
    }

    law = fit(measured, draws=draws, seed=seed, about=about)
    conclude(context, law, folder, compute)


def _values(found: Recipe, flag: str, words: Sequence[str]) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The arguments that a grid varies, and their values: `width,depth 32,2 64,4`."""
    flags = {f.key.replace("_", "-"): f for f in found.flags}
    keys = [w.lstrip("-").replace("_", "-") for w in words[0].split(",")]
    for key in keys:
        if key not in flags:
            such = {"--sizes": "width 32 64 128"}.get(flag, "steps 250 500 1000")
            hint = f"{flag} begins with a name, such as {flag} {such}."
            raise unknown(f"argument of {found.name}", key, flags, hint)
    points = []
    for word in words[1:]:
        values = word.split(",")
        if len(values) != len(keys):
            held = f"{len(values)} value{'s' * (len(values) != 1)}"
            raise UserError(f"{flag} varies {', '.join(keys)}, but {word!r} has {held}: join one of each by commas.")
        points.append(
            {flags[k].name: convert(flags[k], [v], "morphogen scale") for k, v in zip(keys, values, strict=True)}
        )
    if any(a == b for a, b in itertools.combinations(points, 2)):
        raise UserError(f"{flag} names a value twice: give each once.")
    return tuple(flags[k].name for k in keys), points


def _held_out(found: Recipe, made: Experiment) -> None:
    """Raise UserError for an experiment without a held-out loss, which a law would be of."""
    from ..core import Phase

    why = ""
    if made.data.test is None:
        why = "holds no data out, and returns of agents follow no such law"
    elif not any(isinstance(turn, Phase) for turn in made.model.phases()):
        why = "learns by a rule of its own and has no loss on held-out data, which a law would be of"
    if why:
        raise UserError(f"{found.name} {why}: `morphogen plan {found.name}` says what a run takes.")


class _Grid:
    """The runs of a recipe at several sizes and lengths, in one folder."""

    def __init__(
        self,
        context: Context,
        found: Recipe,
        arguments: Mapping[str, Any],
        names: Sequence[str],
        points: Sequence[dict[str, Any]],
        amount: str,
        lengths: Sequence[dict[str, Any]],
        cool: float,
        metric: str | None,
        folder: Path,
        seed: int,
        device: str,
    ) -> None:
        self.context, self.found, self.arguments, self.folder = context, found, arguments, folder
        self.names, self.points, self.amount, self.lengths = names, points, amount, lengths
        self.cool, self.wish, self.seed, self.device = cool, metric, seed, device
        self.metric, self.warmup = metric or "loss", 0
        self.spent: dict[int, tuple[float, int]] = {}  # seconds and steps, by the parameters of a size

    # ---- what there is to do

    def made(self, size: Mapping[str, Any], budget: Any) -> Experiment:
        """The recipe's own experiment."""
        return self.found.build({**self.arguments, **size, self.amount: budget})

    def rows(self) -> list[Row]:
        """Every size with its runs. Raises UserError where there is nothing to measure, or lengths are no lengths."""
        import torch

        from ..core import Place
        from ..core import size as count
        from ..rehearsal import BATCHES, amount, distinct, flops_of, size_of
        from ..trunk import check_alike, warmup_of

        grid = [[self.made(size, length[self.amount]) for length in self.lengths] for size in self.points]
        for tried in grid:
            self._check(tried)
        if self.cool:
            self.warmup = min(warmup_of(e.trainer.optim) for tried in grid for e in tried)
        rows = []
        for size, tried in zip(self.points, grid, strict=True):
            order = sorted(range(len(tried)), key=lambda i: tried[i].trainer.steps)
            if self.cool:
                for other in tried[1:]:
                    check_alike(tried[0], other)
            first = tried[order[0]]
            source = first.data.train
            source.start(Place(device=torch.device("cpu"), seed=self.seed))
            batches = [source.next(first.model, {}) for _ in range(BATCHES)]
            per_step, unit = amount(first.model, source, batches, BATCHES)
            name = "-".join(f"{k.replace('_', '-')}-{v}" for k, v in size.items())
            cells = [self._cell(size, name, self.lengths[i][self.amount], tried[i].trainer.steps) for i in order]
            rows.append(
                Row(
                    self.folder / f"trunk-{name}" if self.cool else None,
                    cells,
                    size_of(first.model),
                    per_step,
                    unit,
                    distinct(source, per_step / max(1, count(batches[0]))),
                    flops_of(first.model, batches[0]),
                )
            )
        if len({row.parameters for row in rows}) < len(rows):
            raise UserError(
                f"--sizes {','.join(self.names)} leaves the number of parameters as it is: vary what scales it."
            )
        return sorted(rows, key=lambda row: row.parameters)

    def _cell(self, size: dict[str, Any], name: str, budget: Any, steps: int) -> Cell:
        from ..optim import CoolDown

        begins = CoolDown(self.warmup, self.cool).begins(steps) if self.cool else 0
        if self.cool and not self.warmup < begins < steps:
            raise UserError(
                f"{steps} steps are too few for a warm-up of {self.warmup} and to cool down over their last"
                f" {self.cool:.3g}: give larger --budgets, or --cool 0."
            )
        return Cell(size, name, budget, steps, begins, self.folder / f"{name}-{self.amount}-{budget}")

    def _check(self, tried: Sequence[Experiment]) -> None:
        for made in tried:
            _held_out(self.found, made)
        steps = [e.trainer.steps for e in tried]
        if len(set(steps)) < len(steps):
            raise UserError(
                f"--budgets {self.amount} leaves the number of steps as it is ({steps[0]}): name what sets it."
            )
        own = tried[0].trainer.heldout
        if own is not None and own.direction == "min":
            self.metric = self.wish or own.metric
        elif own is not None and own.metric == self.wish:
            raise UserError(
                f"A law is of what falls, and {self.wish} is better where it is larger: leave --metric out."
            )
        if own is None or own.metric != self.metric:
            self._known(tried[0])

    def _known(self, made: Experiment) -> None:
        """Raise UserError where the metric is none that is measured on held-out data: a batch of it tells."""
        import torch

        from ..heldout import HeldOut
        from ..spec import arguments, call

        own, test = made.trainer.heldout, made.data.test
        assert test is not None
        place = torch.device("cpu")
        found: dict[str, float] = {}
        for also in (None, own.also) if own is not None and own.also is not None else (None,):
            dials = {} if own is None else arguments(own)
            one = call(HeldOut, {**dials, "metric": self.metric, "limit": 1, "also": also})
            found |= one.measure(made.model, test, self.seed, place)
            if self.metric in found:
                return
        raise unknown("held-out metric", self.metric, found)

    def experiment(self, cell: Cell, trunk: bool = False) -> Experiment:
        """The run of a cell, or the trunk of its size, as it is trained."""
        from ..spec import build, modules_of, spec
        from ..trunk import cooled, measured_once, trunk_of

        made = self.made(cell.size, cell.budget)
        if trunk:
            made = trunk_of(made, self.warmup)
        else:
            made = cooled(made, self.warmup, self.cool, self.metric) if self.cool else measured_once(made, self.metric)
        return build(spec(made), modules=modules_of(made), seed=self.seed)  # type: ignore[no-any-return]

    # ---- doing it

    def train(self, rows: Sequence[Row]) -> None:
        """Train what is not finished."""
        total = sum(self._left(row)[0] for row in rows)
        began, done = time.perf_counter(), 0
        for row in rows:
            for cell in row.cells:
                for what, steps, act in self._tasks(row, cell):
                    left = self._estimate(rows)
                    gone = duration(time.perf_counter() - began)
                    self.context.tell.note(
                        f"{what}: {steps:,} steps; {done:,} of {total:,} steps done, {gone} gone{left}"
                    )
                    start = time.perf_counter()
                    act()
                    seconds, before = self.spent.get(row.parameters, (0.0, 0))
                    self.spent[row.parameters] = seconds + time.perf_counter() - start, before + steps
                    done += steps

    def _tasks(self, row: Row, cell: Cell) -> Iterator[tuple[str, int, Callable[[], object]]]:
        """What a cell still needs: its name, steps, and the doing. Generated one after the other, as each is done."""
        if _finished(cell.path):
            self.experiment_held(cell)
            return
        if row.trunk is not None and (at := _step(cell.path)) < cell.begins:
            trunk, last = row.trunk, row.cells[-1]
            if (there := _step(trunk)) < cell.begins:
                yield (
                    trunk.name,
                    cell.begins - max(0, there),
                    lambda: self._run(self.experiment(last, trunk=True), trunk, last, until=cell.begins),
                )
            from ..trunk import branch

            self._write(cell.path, self.experiment(cell), cell)
            branch(trunk, cell.begins, cell.path)
        at = max(0, _step(cell.path))
        yield cell.path.name, cell.steps - at, lambda: self._run(self.experiment(cell), cell.path, cell)

    def experiment_held(self, cell: Cell) -> None:
        """Hold a finished run against what this command asks for. Raises UserError naming the difference."""
        self._write(cell.path, self.experiment(cell), cell)

    def _write(self, path: Path, experiment: Experiment, cell: Cell) -> None:
        from ..experiment import write_spec

        write_spec(
            path, experiment, self.seed, self._note(cell), instead="Name another folder for this grid (--run FOLDER)."
        )

    def _run(self, experiment: Experiment, path: Path, cell: Cell, until: int | None = None) -> Run:
        from ..hooks import Voice
        from .receipts import begin, conclude

        self._write(path, experiment, cell)
        begin(path, self.context.typed, self.device)
        recipe = self._note(cell)
        run = experiment.train(path, seed=self.seed, device=self.device, voice=Voice(), recipe=recipe, until=until)
        conclude(run)
        return run

    def _note(self, cell: Cell) -> dict[str, Any]:
        arguments = {**self.arguments, **cell.size, self.amount: cell.budget}
        return {"name": self.found.name, "arguments": noted(self.found, arguments)}

    def _left(self, row: Row) -> tuple[int, int]:
        """Steps that a size still needs, and those of all."""
        trunk = 0 if row.trunk is None else max(0, _step(row.trunk))
        left = whole = 0
        for cell in row.cells:
            whole += cell.steps - cell.begins
            if not _finished(cell.path):
                at = max(cell.begins, _step(cell.path))
                left += cell.steps - at
                if _step(cell.path) < cell.begins:
                    left += max(0, cell.begins - trunk)
                    trunk = max(trunk, cell.begins)
        return left, whole + (row.cells[-1].begins if row.trunk is not None else 0)

    def _estimate(self, rows: Sequence[Row]) -> str:
        """About how long the rest takes: by the seconds of a step at each size, or of the nearest by its parameters."""
        known = {n: seconds / steps for n, (seconds, steps) in self.spent.items() if steps}
        if not known:
            return ""
        seconds = 0.0
        for row in rows:
            near = min(known, key=lambda n: abs(math.log(n / row.parameters)))
            seconds += self._left(row)[0] * known[near] * max(1.0, row.parameters / near)
        return f", about {duration(seconds)} left"

    def measured(self, rows: Sequence[Row]) -> Iterator[Point]:
        """The held-out loss of every run."""
        from ..scaling import Point
        from .receipts import read_json

        for row in rows:
            for cell in row.cells:
                heldout = read_json(cell.path / "result.json").get("heldout") or {}
                if self.metric not in heldout:
                    raise unknown("held-out metric", self.metric, heldout, f"(of {str(cell.path)!r})")
                yield Point(row.parameters, row.step * cell.steps, float(heldout[self.metric]), cell.path.name)


def _step(path: Path) -> int:
    """The newest checkpoint of a run; -1 where there is none."""
    from ..checkpoint import Checkpoints

    return max(Checkpoints(path).steps(), default=-1)


def _finished(path: Path) -> bool:
    from .receipts import read_json

    return read_json(path / "result.json").get("state") == "finished"


def _operations(rows: Sequence[Row]) -> float | None:
    """k in C = k N D, the geometric mean over sizes; None where no operations were counted."""
    logs = [math.log(row.flops / (row.parameters * row.step)) for row in rows if row.flops]
    return math.exp(sum(logs) / len(logs)) if logs else None


# ---- telling it ----------------------------------------------------------------------------------------------------


def _tell_grid(context: Context, grid: _Grid, rows: Sequence[Row]) -> None:
    first, last = rows[0], rows[-1]
    runs = sum(len(row.cells) for row in rows)
    least, most = (first.step * cell.steps for cell in (first.cells[0], first.cells[-1]))
    told = (
        f"{runs} runs of {grid.found.name} into {grid.folder}: {first.parameters:,} to {last.parameters:,} parameters,"
        f" {least:,.0f} to {most:,.0f} {first.unit}."
    )
    if grid.cool:
        told += (
            f" The lengths of a size share a trunk at a constant rate (warm-up: {grid.warmup} steps) and cool down over"
            f" their last {grid.cool:.0%}; the recipe's own schedule is not used."
        )
    if first.distinct and most > first.distinct:
        told += (
            f" Data repeats: there are {first.distinct:,.0f} {first.unit}, so the longest runs see each"
            f" {most / first.distinct:.2g} times, and a law of fresh data would be another."
        )
    context.tell.note(told)
