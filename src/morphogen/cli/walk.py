"""What only models that walk from noise to data can show: a film strip of the way, solvers side by side."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..core import Space
    from ..experiment import Run

FRAMES, ROWS = 10, 8  # of a film strip of pictures


_TAKES = {"--negative": "guidance", "--weak": "weak", "--solvers": "solver", "--film": "watch"}  # what sample must take


def needs_field(run: Run, *flags: str) -> None:
    """Raise UserError unless the run's model is a field whose sampling takes what these flags are for."""
    from ..diffusion import Field

    if not flags:
        return
    name = type(run.model).__name__
    them, need, are = ("them", "need", "are") if len(flags) > 1 else ("it", "needs", "is")
    if not isinstance(run.model, Field):
        raise UserError(
            f"{' and '.join(flags)} {need} a model that walks from noise to data, and {name} is none: leave {them} out."
        )
    model: Any = run.model
    known = inspect.signature(model.sample).parameters
    if missing := [flag for flag in flags if _TAKES[flag] not in known]:
        raise UserError(f"{' and '.join(missing)} {are} not for {name}, which cannot sample so: leave {them} out.")


def weaker(run: Run, weak: Run) -> Any:
    """The model of `weak`, to be guided away from. UserError unless it is a field on the same path and shape."""
    from ..diffusion import Field
    from ..diffusion.guide import same_path

    strong: Any = run.model
    model = weak.model
    if not isinstance(model, Field):
        raise UserError(
            f"--weak {str(weak.path)!r} is a {type(model).__name__}, which does not walk from noise to data: give a run"
            " of the same preset, smaller or trained less."
        )
    ours, theirs = (tuple(getattr(m, "shape", ())) for m in (strong, model))
    if ours != theirs:
        raise UserError(
            f"--weak {str(weak.path)!r} draws samples of shape {theirs} and this run {ours}: give a run of the same"
            " data."
        )
    same_path(strong.path, model.path)
    return model


class Film:
    """Keeps what a strip shows of the first chunk of samples, told state by state as `watch(t, x)`.

    A strip of points shows all of them, one of pictures ROWS at most.
    """

    def __init__(self, space: Space | None, n: int) -> None:
        from ..data.space import Points

        self.rows = n if isinstance(space, Points) else min(n, ROWS)
        self.states: list[tuple[float, Tensor]] = []
        self.over = False

    def watch(self, t: float, x: Tensor) -> None:
        """A state x (B, *shape) at time t; a second walk begins where time jumps back."""
        self.over = self.over or bool(self.states and t >= self.states[0][0])
        if not self.over:
            self.states.append((t, x[: self.rows].detach().clone()))

    def options(self, model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """The sampling options of a walk that is filmed, beside those given: a solver that chooses its own steps is
        told of so many that there is something to see.
        """
        from ..diffusion import Diffusion
        from ..diffusion.solvers import SOLVERS

        name = given.get("solver")
        own = model.sampler.solver if isinstance(model, Diffusion) else None
        solver = SOLVERS.get(name) if isinstance(name, str) else name or own
        adaptive = solver is not None and solver.intervals is not None and given.get("steps") is None
        return {"watch": self.watch, **({"steps": FRAMES - 1} if adaptive else {})}

    def strip(self, run: Run) -> Image:
        """At most FRAMES moments side by side, each state divided by √(α² + σ²)."""
        from ..data.space import grid

        space: Any = run.space
        last = len(self.states) - 1
        moments = sorted({round(i * last / (FRAMES - 1)) for i in range(FRAMES)})
        pictures, captions = [], []
        for t, x in (self.states[m] for m in moments):
            path: Any = run.model.path
            scale = math.hypot(path.alpha(t), path.sigma(t))
            pictures.append(space.show((x / scale).cpu(), 1))
            captions.append(f"t = {t:.3g}")
        return grid(pictures, len(pictures), captions)


def side_by_side(space: Space, drawn: Mapping[str, Tensor], columns: int | None) -> Image:
    """The samples of several solvers, one block under the other (of points: beside one another)."""
    from ..data.space import Points, grid

    pictures = [space.show(x, columns or min(len(x), 16)) for x in drawn.values()]
    return grid(pictures, None if isinstance(space, Points) else 1, list(drawn))


def known_solvers(names: Sequence[str]) -> None:
    """Raise UserError for a name that no solver has, or that is given twice."""
    from ..diffusion.solvers import SOLVERS

    for i, name in enumerate(names):
        if name not in SOLVERS:
            raise unknown("solver", name, SOLVERS)
        if name in names[:i]:
            raise UserError(f"--solvers names {name!r} twice, which would draw the same again: name it once.")


def with_each(solvers: Sequence[str], draw: Callable[[Mapping[str, Any]], Tensor]) -> dict[str, Tensor]:
    """What `draw` makes with each solver, by its name."""
    return {name: draw({"solver": name}) for name in solvers}
