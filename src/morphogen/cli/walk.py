"""What only models that walk from noise to data can show: a film strip of the way, solvers side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..core import Space
    from ..experiment import Run

FRAMES, ROWS = 10, 8  # of a film strip of pictures


def needs_field(run: Run, *flags: str) -> None:
    """Raise UserError unless the run's model is a field, which these flags are for."""
    from ..diffusion import Field

    if flags and not isinstance(run.model, Field):
        raise UserError(
            f"{' and '.join(flags)} need a model that walks from noise to data, and {type(run.model).__name__} is none:"
            " leave them out."
        )


class Film:
    """Keeps the states of the first chunk of samples, told one by one as `watch(t, x)`."""

    def __init__(self) -> None:
        self.states: list[tuple[float, Tensor]] = []
        self.over = False

    def watch(self, t: float, x: Tensor) -> None:
        """A state x (B, *shape) at time t; a second walk begins where time jumps back."""
        self.over = self.over or bool(self.states and t >= self.states[0][0])
        if not self.over:
            self.states.append((t, x.detach().clone()))

    def strip(self, run: Run, n: int) -> Image:
        """At most FRAMES moments side by side, each state divided by √(α² + σ²)."""
        from ..data.space import Points, grid

        space: Any = run.space
        last = len(self.states) - 1
        moments = sorted({round(i * last / (FRAMES - 1)) for i in range(FRAMES)})
        rows = n if isinstance(space, Points) else min(n, ROWS)
        pictures, captions = [], []
        for t, x in (self.states[m] for m in moments):
            path: Any = run.model.path
            scale = math.hypot(path.alpha(t), path.sigma(t))
            pictures.append(space.show((x[:rows] / scale).cpu(), 1))
            captions.append(f"t = {t:.3g}")
        return grid(pictures, len(pictures), captions)


def side_by_side(space: Space, drawn: Mapping[str, Tensor], columns: int | None) -> Image:
    """The samples of several solvers, one block under the other (of points: beside one another)."""
    from ..data.space import Points, grid

    pictures = [space.show(x, columns or min(len(x), 16)) for x in drawn.values()]
    return grid(pictures, None if isinstance(space, Points) else 1, list(drawn))


def with_each(solvers: Sequence[str], draw: Callable[[Mapping[str, Any]], Tensor]) -> dict[str, Tensor]:
    """What `draw` makes with each solver, by its name."""
    from ..diffusion.solvers import SOLVERS
    from ..errors import unknown

    for name in solvers:
        if name not in SOLVERS:
            raise unknown("solver", name, SOLVERS)
    return {name: draw({"solver": name}) for name in solvers}
