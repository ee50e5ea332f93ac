"""`morphogen train RECIPE --check`: one step of everything, in a temporary folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .context import Context
from .evaluate import held_out
from .play import home, is_agent
from .receipts import command
from .recipe import Recipe
from .train import temporary

if TYPE_CHECKING:
    from ..experiment import Experiment
    from ..train import Trainer

STEPS = 2


def check_everything(context: Context, experiment: Experiment, seed: int, device: str, found: Recipe) -> None:
    """Train a step, save, resume, train another, load, sample, draw, evaluate; say what passed.

    What fails raises as it would in earnest.
    """
    from ..core import Samples, can
    from ..experiment import Experiment, draw, load
    from ..hooks import Voice
    from ..metrics.translation import Translates
    from ..parallel import join
    from ..spec import build, modules_of, spec

    def passed(what: str, how: str) -> None:
        context.tell.answer("check", {"passed": what, "how": how}, f"  ok  {what:<9} {how}")

    context.tell.note(f"Checking {found.name} in a temporary folder …")
    short = Experiment(experiment.model, experiment.data, _short(experiment.trainer))
    modules = modules_of(short)
    ranks = join()
    with temporary() as own:
        folder = ranks.tell(own)[0]  # of several processes all use the first one's
        path = Path(folder) / "run"
        short.train(path, seed=seed, device=device, voice=Voice(), until=1)
        first = load(path, modules=modules, device=device)
        passed("train", f"one step on {device}")
        passed("save", f"checkpoint of step {first.step}")
        again = build(spec(short), modules=modules, seed=seed)
        run = again.train(path, seed=seed, device=device, voice=Voice())
        passed("resume", f"to step {run.step}")
        if is_agent(run):
            from ..rl.play import another, play

            played = play(run.model, another(home(run), 1, limit=10), 1, seed=seed, device=device)
            passed("play", f"{int(played.lengths)} steps, return {float(played.returns):.4g}")
        elif isinstance(run.model, Translates):
            passed("translate", "held-out pictures, drawn" if list((path / "samples").glob("*.png")) else "not tried")
        elif can(run.model, Samples):
            x = draw(run.model, 4, seed=seed, chunk=4)
            passed("sample", f"4 of {tuple(x.shape[1:])}")
            if run.space is not None:
                run.space.show(x.cpu()).save(Path(folder) / "samples.png")
                passed("draw", "a picture of them")
        from ..report import write

        size = ranks.once(lambda: write(path).stat().st_size)
        passed("report", f"{size or 0:,} bytes")
        if run.data.test is not None:
            measured = held_out(run, run.data.test, limit=64)
            passed("evaluate", "held-out " + ", ".join(f"{k} {v:.4g}" for k, v in measured.items()))
        ranks.tell(None)  # the folder is still in use until all are here
    typed = command([word for word in context.typed if word != "--check"])
    context.tell.answer("checked", {"recipe": found.name, "next": typed}, f"Everything works: {typed}")


def _short(trainer: Trainer) -> Trainer:
    """The trainer with so few steps and so small pictures that each thing happens at once."""
    from ..hooks import SampleGrid, Translations
    from ..spec import arguments, call

    def with_(obj: Any, **changes: Any) -> Any:
        return call(type(obj), {**arguments(obj), **changes})

    hooks = [with_(h, every=1, n=min(h.n, 4)) if isinstance(h, SampleGrid | Translations) else h for h in trainer.hooks]
    heldout = trainer.heldout
    if heldout is not None:
        heldout = with_(heldout, every=1, limit=heldout.batch)
    made: Trainer = with_(trainer, steps=STEPS, save_every=1, log_every=1, heldout=heldout, hooks=tuple(hooks))
    return made
