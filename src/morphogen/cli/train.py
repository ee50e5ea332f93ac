"""`morphogen train`: from a recipe and its flags to a run folder."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..data.roots import cache
from ..errors import UserError, unknown
from . import recipe as recipes
from .context import Context, data_root
from .flags import Flag, plain, restored, summary
from .map import of_words
from .play import is_agent
from .recipe import Recipe
from .tell import Silent

if TYPE_CHECKING:
    from ..experiment import Experiment, Run

_root = data_root


def own_flags(given: Mapping[str, Any]) -> tuple[str, list[Flag]]:
    """A recipe's own flags, for --help."""
    recipe = recipes.find(given["recipe"])
    return f"{summary(recipe.make)}\n\nflags of {given['recipe']}:", recipe.flags


def train(
    context: Context,
    recipe: str = "",
    *,
    run: Path | None = None,
    seed: int | None = None,
    device: str | None = None,
    devices: int = 1,
    on: str | None = None,
    shard: bool = False,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
    like: Path | None = None,
    check: bool = False,
) -> int | None:
    """Train a recipe into a run folder, or continue the run that is there.

    recipe: a shipped recipe (`morphogen --help` lists them), or FILE.py:FUNCTION for your own. Without one, the
    recipe of --like, or of the run that --run names. run: the folder of the run (default: runs/RECIPE-SEED).
    seed: decides all that is random (default: 0). device: cpu, cuda, … (default: the fastest that is here).
    devices: train on so many at once, a process for each (GPUs, or processes of a CPU): the losses of one process, the
    batch shared out among them. on: a Ray cluster to train on, ray://HOST:PORT, or `ray` for one of this machine alone.
    shard: give each device a piece of the weights only (FSDP): for a model that is too large for one, as it is slower
    where all fits.
    data_root: the folder that holds the data sets (default: $MORPHOGEN_DATA).
    with_: files that define classes of yours which the recipe uses. like: start from the recipe arguments of that run;
    flags given here override them. check: one step of everything (train, save, resume, sample, draw, evaluate) in a
    temporary folder, to see that it works.
    """
    if "WORLD_SIZE" in os.environ:
        context = _one_voice(context)
    modules = recipes.load_files(with_)
    if not recipe and like is None and run is not None and (run / "spec.json").is_file():
        if not context.rest and seed is None and not check:
            if (ended := _elsewhere(context, devices, device, on, run, with_)) is None:
                _continue(context, run, modules, device, data_root, with_, shard)
            return ended
        like, seed = run, _page(run)["seed"] if seed is None else seed
    found, arguments = resolve(context, recipe, like)
    seed = 0 if seed is None else seed
    from ..device import choose_device
    from ..experiment import check_seed
    from ..parallel import join
    from ..spec import build, modules_of, spec

    check_seed(seed)
    path = run or Path("runs") / f"{found.short}-{seed}"
    own = (*with_, *([found.file] if ".py:" in found.name else []))
    if check and on is not None:
        raise UserError("--check tries a recipe on this machine: leave --on out.")
    if (ended := _elsewhere(context, devices, device, on, path, own)) is not None:
        return ended
    where = choose_device(device)
    with _root(data_root):
        made = found.build(arguments)
        # what is trained is what spec.json builds: weights are a function of the spec and the seed alone
        experiment = build(spec(made), modules=modules_of(made), seed=seed)
        del made
        if check:
            from .check import check_everything

            check_everything(context, experiment, seed, str(where), found)
            return None
        note = {"name": found.name, "arguments": noted(found, arguments)}
        done = fit(context, experiment, path, seed, str(where), note, found.file, shard)
    join().once(lambda: _conclude(context, done, own))
    return None


def _one_voice(context: Context) -> Context:
    """Join the other processes where there are any; the first of them answers for all."""
    from ..parallel import join

    return context._replace(tell=Silent(context.tell.machine, context.tell.words)) if join().rank else context


def _continue(
    context: Context,
    run: Path,
    modules: list[ModuleType],
    device: str | None,
    data_root: Path | None,
    files: tuple[Path, ...],
    shard: bool,
) -> None:
    """Continue a run as its spec.json says: what its recipe read (another run, a file of pairs) may be gone by now."""
    from ..device import choose_device
    from ..parallel import join
    from ..spec import build

    page = _page(run)
    where, seed = str(choose_device(device)), int(page["seed"])
    with _root(data_root):
        experiment = build(page["experiment"], modules=modules, assets=run / "assets", seed=seed)
        done = fit(context, experiment, run, seed, where, page["recipe"], run / "recipe.py", shard)
    join().once(lambda: _conclude(context, done, files))


def _elsewhere(
    context: Context, devices: int, device: str | None, on: str | None, path: Path, files: tuple[Path, ...]
) -> int | None:
    """Start this very command once for each of several devices, or on a cluster, unless it was; the exit code.

    None where it is to go on here. files: the user's own, which a cluster is sent.
    """
    from ..device import choose_device
    from ..parallel import joins
    from ..parallel.launch import launch

    if on is not None:
        return _on(context, on, devices, device, path, files)
    if devices == 1 or joins():
        return None
    import torch

    there, kind = torch.cuda.device_count(), choose_device(device).type
    if devices < 1 or (kind == "cuda" and devices > there):
        most = f"1 to {there}, the GPUs of this machine" if kind == "cuda" else "1 or more"
        raise UserError(f"--devices {devices} cannot be had: give {most}.")
    return launch(devices, ["-m", "morphogen", *context.typed, *context.tell.words])


def _on(context: Context, on: str, workers: int, device: str | None, path: Path, files: tuple[Path, ...]) -> int:
    """Let the workers of a cluster do what was typed, into the same folder; what the first says is said here."""
    from .. import cluster
    from .rank import order

    words = [*_without(_without(context.typed, "--on"), "--run"), "--run", str(path.absolute()), *context.tell.words]
    command = ["-m", f"{__package__}.rank"]
    gpu = None if device is None else device.startswith("cuda")
    ordered = cluster.Order(command, order(words, files, context.typed), os.getcwd(), path.absolute(), gpu)
    out = sys.stdout

    def hear(rank: int, loud: bool, line: str) -> None:
        if rank == 0:
            print(line, file=sys.stderr if loud else out, flush=True)

    def say(text: str) -> None:
        with contextlib.redirect_stdout(out):
            context.tell.note(text)

    with contextlib.redirect_stdout(sys.stderr):  # where Ray may say what it likes
        return cluster.train(on, workers, ordered, hear, say)


def _without(words: Sequence[str], flag: str) -> list[str]:
    """The words of a command line less a flag and its value."""
    found = list(words)
    while flag in found:
        at = found.index(flag)
        del found[at : at + 2]
    return [word for word in found if not word.startswith(f"{flag}=")]


def fit(
    context: Context,
    experiment: Experiment,
    path: Path,
    seed: int,
    device: str,
    note: dict[str, Any],
    file: Path,
    shard: bool = False,
) -> Run:
    """Train with receipts: the recipe's source, and the machine and command that the run was begun with."""
    from ..disk import copy
    from ..experiment import write_spec
    from ..parallel import join
    from .receipts import begin

    if shard and join().alone:
        raise UserError("--shard shares the weights out among several devices: say how many, --devices 2.")

    def prepare() -> None:
        write_spec(path, experiment, seed, note)
        if file.is_file() and not (path / "recipe.py").exists():
            copy(file, path / "recipe.py")
        begin(path, context.typed, device)

    join().once(prepare)
    voice = context.tell.voice()
    return experiment.train(path, seed=seed, device=device, recipe=note, voice=voice, shard=shard)


def _page(run: Path) -> dict[str, Any]:
    from ..experiment import read_spec

    return read_spec(run)


def resolve(context: Context, name: str, like: Path | None) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, and all its arguments: the flags, over those of `like`, over its defaults."""
    note: dict[str, Any] = {}
    if like is not None:
        note = _page(like).get("recipe") or {}
        if not note:
            raise UserError(f"The run {str(like)!r} was not made by a recipe: give one and its flags, without --like.")
        mine = ".py:" in note["name"]
        if not name and mine:
            raise UserError(f"The run {str(like)!r} was made by {note['name']}: give that file's path as RECIPE too.")
        name = name or note["name"]
    if not name:
        from ..recipes import names

        known = ", ".join(names())
        raise UserError(f"RECIPE is missing: `morphogen train RECIPE`, one of {known}, or your own FILE.py:FUNCTION.")
    found = recipes.find(name)
    if note and found.name != note["name"]:
        raise UserError(f"The run {str(like)!r} was made by {note['name']!r}, not {found.name!r}: leave --like out.")
    flags = {f.name: f for f in found.flags}
    for own in [*(f.key for f in context.flags if not f.positional), "json", "debug", "help"]:
        if own in flags:
            raise UserError(
                f"{found.name} has an argument {own!r}, which `{context.command}` has too: rename the recipe's."
            )
    before = note.get("arguments", {})
    for argument in before:
        if argument not in flags:
            raise unknown(f"argument of {found.name} (the run {str(like)!r} has it)", argument, flags)
    given = {k: restored(flags[k], v) for k, v in before.items()} | context.options(found.flags, found.name)
    return found, found.arguments(given)


def noted(found: Recipe, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe as a run notes them."""
    return {f.name: plain(arguments[f.name]) for f in found.flags}


def _conclude(context: Context, run: Run, files: tuple[Path, ...]) -> None:
    from ..report import write
    from .receipts import conclude

    result = conclude(run)
    report = write(run.path)
    pictures = sorted((run.path / "samples").glob("*.png"))
    following = next_commands(run, list(files))
    places = {"run": str(run.path), "picture": str(pictures[-1]) if pictures else None, "report": str(report)}
    lines = [
        _story(result),
        *(f"  {k:<8} {v}" for k, v in places.items() if v),
        "Next:",
        *(f"  {c}" for c in following),
    ]
    context.tell.answer("trained", {**places, "next": following, "result": result}, "\n".join(lines))


def _story(result: dict[str, Any]) -> str:
    told = f"{result['state'].capitalize()} after {result['step']} of {result['steps']} steps"
    if result["seconds"]:
        told += f" in {result['seconds']:.1f} s ({result['steps_per_s']:.4g} steps/s)"
    if result["best"]:
        best = result["best"]
        told += f"; best held-out {best['metric']} {best['value']:.4g} at step {best['step']}"
    return told + "."


def next_commands(run: Run, files: list[Path]) -> list[str]:
    """What to type next, ready to copy."""
    import shlex

    from ..core import Samples, can
    from ..metrics.translation import Translates

    tail = (" --with " + shlex.join(map(str, files))) if files else ""
    path = shlex.quote(str(run.path))
    following = ["morphogen runs"] if run.data.test is None else [f"morphogen evaluate {path}{tail}"]
    if of_words(run.page):
        return [f"morphogen map {path}{tail}"]
    if is_agent(run):
        return [f"morphogen play {path} --film play.gif{tail}", f"morphogen evaluate {path}{tail}"]
    if isinstance(run.model, Translates):
        following.insert(0, f"morphogen translate {path} --out translated.png{tail}")
    elif can(run.model, Samples):
        classes = getattr(run.space, "classes", ())
        label = f" --label {shlex.quote(str(classes[len(classes) // 2]))}" if classes else ""
        kind = "npy" if run.space is None else "png"  # without a space there is no picture to make
        following.insert(0, f"morphogen sample {path} --n 64{label} --out samples.{kind}{tail}")
    return following


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder for trials, in the cache; where that cannot be written, among the system's temporary ones."""
    folder = cache() / "trials"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="morphogen-", dir=folder)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="morphogen-")
