"""What happens now and then beside training, and how a run speaks.

A hook is called every so many steps with the model in evaluation mode and averaged weights; each step reseeds, so
no hook can change training. A voice is how progress is told: a bar, plain lines, JSON lines, or nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

from .disk import make, write
from .errors import UserError
from .experiment import draw
from .spec import Remembers

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from .train import Training


@runtime_checkable
class Hook(Protocol):
    """Called every `every` steps and after the last one, on rank 0; on all ranks where weights are in pieces."""

    every: int

    def __call__(self, training: Training) -> None: ...


class SampleGrid(Remembers):
    """Draw `n` samples into `samples/STEP.png`, always of the same noise.

    wishes: conditions in the user's words, for `Space.cond` ({"label": [0, 1, 2]}). options: the model's own
    sampling keywords ({"guidance": 2.0}).
    """

    def __init__(
        self,
        every: int = 500,
        n: int = 64,
        wishes: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        columns: int | None = None,
    ) -> None:
        self.every, self.n, self.wishes, self.options, self.columns = every, n, wishes, options, columns

    def __call__(self, training: Training) -> None:
        space = training.data.space
        if space is None:
            return
        cond = space.cond(self.n, **self.wishes) if self.wishes else None
        x = draw(training.model, self.n, cond, seed=training.seed, options=self.options)
        if training.rank == 0:  # weights in pieces: all ranks draw, one writes
            _picture(training, space.show(x.cpu(), self.columns))


def _picture(training: Training, drawn: Image) -> None:
    """Write a picture of this step, and tell the log and the user where it is."""
    folder = training.run / "samples"
    make(folder)
    path, png = folder / f"{training.step:08d}.png", io.BytesIO()
    drawn.save(png, "PNG")
    write(path, png.getvalue())
    at = round(training.log.seconds, 3)
    training.log.write({"step": training.step, "picture": f"{folder.name}/{path.name}", "at_seconds": at})
    training.voice.picture(training.step, str(path))


class Translations(Remembers):
    """Translate the first `n` held-out sources into `samples/STEP.png`: sources, what is made of them, the truth.

    What the test items have as x is called the truth; of items that are no pairs it is left out.
    """

    def __init__(self, every: int = 500, n: int = 10) -> None:
        self.every, self.n = every, n

    def __call__(self, training: Training) -> None:
        import torch

        from .data.space import stacked
        from .metrics.translation import is_paired, translated

        test = training.data.test
        if test is None or not len(test):
            return
        batch = test.take(torch.arange(min(self.n, len(test))))
        source = (batch.get("cond") or {}).get("source", batch["x"])
        rows = {"source": source, "translated": translated(training.model, source)}
        if is_paired(test):
            rows["truth"] = batch["x"]
        if training.rank == 0:
            _picture(training, stacked(rows))


@runtime_checkable
class Pictured(Protocol):
    """A model that can be drawn itself, such as the values of a small world."""

    def picture(self) -> Any:
        """A picture (`PIL.Image.Image`) of what it knows."""
        ...


class Portrait(Remembers):
    """Draw the model itself into `samples/STEP.png`. Raises UserError for one that has no `picture()`."""

    def __init__(self, every: int = 500) -> None:
        self.every = every

    def __call__(self, training: Training) -> None:
        if not isinstance(training.model, Pictured):
            raise UserError(f"{type(training.model).__name__} has no picture of itself: leave Portrait out.")
        if not training.rank:
            _picture(training, training.model.picture())


@runtime_checkable
class HasUnits(Protocol):
    """A model with latent dimensions that may say something of x, or nothing."""

    def units(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """The posterior's mean of each dimension for x (B, ...): (B, D)."""
        ...


class ActiveUnits(Remembers):
    """Look at posterior collapse: which latent dimensions are active, that is say something of held-out data.

    A dimension is active where its posterior mean has a variance above `threshold` over the first `items` held-out
    items (Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, section 5). The log is told how many are, "active", and
    which are not, "collapsed" (numbered from 0).
    Raises UserError for a model without latent dimensions.
    """

    def __init__(self, every: int = 500, items: int = 1000, threshold: float = 0.01) -> None:
        self.every, self.items, self.threshold = every, items, threshold

    def __call__(self, training: Training) -> None:
        import torch

        from .core import each
        from .latent.bound import active

        model, test = training.model, training.data.test
        if not isinstance(model, HasUnits):
            raise UserError(f"{type(model).__name__} has no latent dimensions to look at: leave ActiveUnits out.")
        if test is None or len(test) < 2:
            return
        means = []
        with torch.no_grad():
            for index in torch.arange(min(self.items, len(test))).split(256):
                batch = each(test.take(index), lambda t: t.to(training.device))
                means.append(model.units(batch["x"], batch.get("cond")))
        alive = active(torch.cat(means), self.threshold)
        dead = [int(i) for i in (~alive).nonzero()]
        training.log.write({"step": training.step, "active": len(alive) - len(dead), "collapsed": dead})
        if dead:
            training.voice.say(
                f"step {training.step}: {len(dead)} of {len(alive)} latent dimensions have collapsed and say nothing of"
                f" the data: {', '.join(map(str, dead))}"
            )


# ---- voices --------------------------------------------------------------------------------------------------------


class Voice:
    """Says nothing; the base of the others."""

    def say(self, text: str) -> None:
        """One sentence for the user."""

    @contextlib.contextmanager
    def steps(self, start: int, steps: int) -> Iterator[None]:
        """Around the loop of a run of `steps`, of which `start` are done."""
        yield

    def advance(self, step: int) -> None:
        """A step is done."""

    def report(self, step: int, line: Mapping[str, Any]) -> None:
        """A line of the log."""

    def heldout(self, step: int, measured: Mapping[str, float], metric: str) -> None:
        """A measurement on held-out data."""

    def picture(self, step: int, path: str) -> None:
        """A picture was written."""

    def alarm(self, step: int, fields: Mapping[str, str], text: str) -> None:
        """A watch has seen something that is wrong."""
        self.say(f"step {step}: {text}")


class Bar(Voice):
    """A progress bar with loss, speed and time left, for people at a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._bar: Any = None

    def say(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self.stream, flush=True)
        else:
            self._bar.write(text, file=self.stream)

    @contextlib.contextmanager
    def steps(self, start: int, steps: int) -> Iterator[None]:
        from tqdm import tqdm

        with tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, file=self.stream) as self._bar:
            yield
        self._bar = None

    def advance(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def report(self, step: int, line: Mapping[str, Any]) -> None:
        self._bar.set_postfix_str(_brief(line), refresh=False)

    def heldout(self, step: int, measured: Mapping[str, float], metric: str) -> None:
        self.say(f"step {step}: held-out {_brief({metric: measured[metric], **measured})}")

    def picture(self, step: int, path: str) -> None:
        self.say(f"step {step}: samples drawn to {path}")


class Lines(Voice):
    """Plain lines, for logs and pipes: at most one progress line in `seconds`."""

    def __init__(self, stream: TextIO | None = None, seconds: float = 5.0) -> None:
        self.stream, self.seconds = stream or sys.stderr, seconds
        self._last, self._total = -seconds, 0

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    @contextlib.contextmanager
    def steps(self, start: int, steps: int) -> Iterator[None]:
        self._total = steps
        yield

    def report(self, step: int, line: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        if now - self._last < self.seconds and step != self._total:
            return
        self._last = now
        rate = line["steps_per_s"]
        left = f", {(self._total - step) / rate:.0f} s left" if rate else ""
        self.say(f"step {step}/{self._total}: {_brief(line)}, {rate:.4g} steps/s{left}")

    heldout = Bar.heldout
    picture = Bar.picture


class JsonLines(Voice):
    """One JSON object a line on stdout, for machines."""

    def _emit(self, **event: Any) -> None:
        print(json.dumps(event), flush=True)

    def say(self, text: str) -> None:
        self._emit(event="say", text=text)

    def report(self, step: int, line: Mapping[str, Any]) -> None:
        self._emit(event="train", **line)

    def heldout(self, step: int, measured: Mapping[str, float], metric: str) -> None:
        self._emit(event="heldout", step=step, metric=metric, **measured)

    def picture(self, step: int, path: str) -> None:
        self._emit(event="picture", step=step, path=path)

    def alarm(self, step: int, fields: Mapping[str, str], text: str) -> None:
        self._emit(event="alarm", step=step, **fields)


def voice_for(json_lines: bool = False) -> Voice:
    """The voice that suits where we are: a bar at a terminal, plain lines elsewhere, JSON where asked for."""
    if json_lines:
        return JsonLines()
    return Bar() if sys.stderr.isatty() else Lines()


def _brief(line: Mapping[str, Any]) -> str:
    told = {k: v for k, v in line.items() if k not in ("step", "seconds", "steps_per_s", "grad_norm")}
    return ", ".join(f"{k} {v:.4g}" for k, v in list(told.items())[:4])
