"""Compare every solver on one trained net, and write the page: quality against evaluations.

    python tools/solvers.py runs/points docs/solvers.md

RUN is a run of `points-diffusion` (its density is known, so quality is a distance to the truth). For each budget of
evaluations a solver makes as many steps as the budget pays for, from the same noise. Two distances are given: `W1`,
sliced (the mean over 16 directions) between 4,096 samples and the density's quantiles, beside what 4,096 draws of the
density itself score; and `off`, the root mean square distance of a solver without noise from where the
probability-flow ODE ends (a Runge-Kutta method of 500 steps). The picture beside the page shows the samples.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from morphogen import Noise, UserError, load
from morphogen.cli.receipts import machine
from morphogen.data.space import grid as sheet
from morphogen.diffusion.field import Field
from morphogen.diffusion.solve import Step, rk4, solve
from morphogen.diffusion.solvers import SOLVERS

BUDGETS, SAMPLES, DIRECTIONS, SEED = (10, 20, 40, 100, 200), 4096, 16, 0


class Told(Field):
    """A field that counts the samples that it is asked about, in units of SAMPLES: its evaluations."""

    def __init__(self, field: Any) -> None:
        self.field, self.path, self.asked = field, field.path, 0

    def predict(self, x: Tensor, t: Any, p: Any, q: Any, cond: Any = None) -> Tensor:
        """The field's own."""
        self.asked += 1
        out: Tensor = self.field.predict(x, t, p, q)
        return out


class Score(NamedTuple):
    """What a solver is worth at a budget."""

    steps: int
    asked: int
    w1: float
    off: float | None
    samples: Tensor


def sliced(x: Tensor, truth: Tensor) -> float:
    """The mean over directions of W1 between the samples x (N, 2) and many draws of the truth (M, 2)."""
    angle = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    directions = torch.stack((angle.cos(), angle.sin()))  # (2, directions)
    q = (torch.arange(len(x)) + 0.5) / len(x)
    found = (x @ directions).sort(0).values
    wanted = (truth @ directions).sort(0).values[(q * len(truth)).long()]
    return float((found - wanted).abs().mean())


def cost(step: Step, model: Any) -> int:
    """Evaluations of one step in the middle of a walk."""
    told, noise = Told(model), Noise.seeded(SEED, 2)
    times = model.sampler.grid(model.path, 8)[:4]
    states = solve(told, noise.normal(2) * model.path.sigma(float(times[0])), times[:3], step=step, noise=noise)
    before = told.asked
    solve(told, states, times[2:], step=step, noise=noise)
    return told.asked - before


def scored(step: Step, model: Any, budget: int, truth: Tensor, end: Tensor) -> Score:
    """One solver at one budget."""
    steps = step.intervals or max(1, budget // cost(step, model))
    told, noise = Told(model), Noise.seeded(SEED, SAMPLES)
    times = model.sampler.grid(model.path, steps)
    x = solve(told, noise.normal(2) * model.path.sigma(float(times[0])), times, step=step, noise=noise)
    off = float((x - end).square().sum(1).mean().sqrt()) if silent(step, model) else None
    return Score(steps, told.asked, sliced(x, truth), off, x)


def silent(step: Step, model: Any) -> bool:
    """Whether a solver draws no noise."""
    try:
        solve(model, torch.zeros(1, 2), model.sampler.grid(model.path, 8), step=step)
    except UserError:
        return False
    return True


@torch.no_grad()
def main(folder: str, page: str) -> None:
    """Write the page and its picture."""
    began = time.perf_counter()
    run = load(folder)
    model: Any = run.model
    space: Any = run.space
    density = run.data.test.density  # type: ignore[union-attr]
    truth = density.sample(200_000, noise=Noise.seeded(7, 200_000))
    z = Noise.seeded(SEED, SAMPLES).normal(2)
    fine = model.sampler.grid(model.path, 500)
    end = solve(model, z * model.path.sigma(float(fine[0])), fine, step=rk4)
    floor = sliced(density.sample(SAMPLES, noise=Noise.seeded(8, SAMPLES)), truth)
    ode = sliced(end, truth)
    lines, pictures, captions = [], [], []
    for name, step in SOLVERS.items():
        cells = []
        for budget in BUDGETS if step.intervals is None else BUDGETS[-1:]:
            score = scored(step, model, budget, truth, end)
            cells.append(f"{score.w1:.3f}" + ("" if score.off is None else f" ({score.off:.3f})"))
            if budget in (20, 200):
                pictures.append(space.show(score.samples, size=128))
                captions.append(f"{name}, {score.asked}")
        if step.intervals is not None:
            cells = ["–"] * (len(BUDGETS) - 1) + [f"{cells[0]} at {score.asked}"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    target = Path(page)
    picture = target.with_suffix(".png")
    sheet(pictures, 8, captions).save(picture)
    computer = machine(str(next(model.parameters()).device))
    recipe = run.page.get("recipe") or {}
    target.write_text(
        f"""# Solvers on one trained net

Made by `python tools/solvers.py {folder} {page}` (seed {SEED}, {time.perf_counter() - began:.0f} s,
{computer["cpu"]}, {torch.get_num_threads()} thread) on a run of `{recipe.get("name")}`
({", ".join(f"{k} {v}" for k, v in recipe.get("arguments", {}).items() if k in ("density", "preset", "steps"))}).

Each cell is the sliced W1 distance of {SAMPLES:,} samples from the known density, and in brackets, for solvers without
noise, the root mean square distance from where the net's own probability-flow ODE ends. As many draws of the density
itself score {floor:.3f}, the ODE's own end {ode:.3f}: below that a solver cannot be told from the net. A solver makes
as many steps as the column's evaluations of the net pay for, on the preset's own grid.

| solver | {" | ".join(str(b) for b in BUDGETS)} evaluations |
|---|{"---|" * len(BUDGETS)}
{chr(10).join(lines)}

The samples, after about 20 and 200 evaluations:

![samples of every solver]({picture.name})
"""
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
