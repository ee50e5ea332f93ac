"""A solver's step with a net that costs nothing: ours, and diffusers' `scheduler.step` on the same chain and grid.

The net answers with its input. Ours is a whole walk of 20 steps by `solve`, the model's own work around its net
included; of diffusers only its 20 steps are timed, without `set_timesteps` or anything around the net. Both end in the
same state before anything is timed. "step" is in microseconds; "walk" the same as a rate, for the ratios.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from harness import Check, Metric, Registry, Work

STEPS, BATCH = 20, 4
SHAPES = {"32x32": (3, 32, 32), "64x64 latent": (4, 64, 64)}
SOLVERS = {"ddim": "DDIMScheduler", "dpmpp-2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
BOUND = {"ddim": 0.5, "dpmpp-2m": 0.5, "unipc": None}
REG = Registry(
    "solver_step",
    rounds=9,
    slice=0.2,
    budget=40,
    rtol=2e-3,  # diffusers keeps its table in float32, where 1 - alpha_bar has lost four digits near data
    needs={"diffusers": ("diffusers",)},
    pairs=[(f"morphogen/{s}/{k}", f"diffusers/{s}/{k}", BOUND[s]) for s in SOLVERS for k in SHAPES],
)


def start(shape: tuple[int, ...]) -> Any:
    import torch

    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))


def ours(solver: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    from torch import nn

    from morphogen.diffusion import Diffusion, Sampler
    from morphogen.diffusion.field import Eps
    from morphogen.diffusion.grid import Trailing
    from morphogen.diffusion.path import LinearBetas
    from morphogen.diffusion.solve import solve
    from morphogen.diffusion.solvers import SOLVERS as KNOWN
    from morphogen.diffusion.weight import Uniform

    class Free(nn.Module):
        def forward(self, x: Any, cond: Any) -> Any:
            return x

    path, step = LinearBetas(), KNOWN[solver]
    model = Diffusion(Free(), shape, path, Eps(), Uniform(), Sampler(step, Trailing(), STEPS))
    times, z = Trailing()(path, STEPS), start(shape)
    return lambda: solve(model, z, times, step=step)


def theirs(solver: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    import diffusers

    more = {"ddim": {"clip_sample": False}, "dpmpp-2m": {"lower_order_final": False}}.get(solver, {})
    scheduler: Any = getattr(diffusers, SOLVERS[solver])(timestep_spacing="trailing", **more)
    scheduler.set_timesteps(STEPS)
    timesteps, z = scheduler.timesteps, start(shape)
    fresh = {k: v for k, v in vars(scheduler).items() if k in ("_step_index", "lower_order_nums", "last_sample")}
    answers = list(getattr(scheduler, "model_outputs", ()))

    def walk() -> Any:
        vars(scheduler).update(fresh)
        if answers:
            scheduler.model_outputs = list(answers)
        if solver == "unipc":
            scheduler.timestep_list = list(answers)
        x = z
        for t in timesteps:
            x = scheduler.step(x, t, x, return_dict=False)[0]
        return x

    return walk


def build(which: Callable[[str, tuple[int, ...]], Callable[[], Any]], solver: str, shape: tuple[int, ...]) -> Work:
    import torch

    torch.set_grad_enabled(False)
    walk = which(solver, shape)

    def micro() -> float:
        began = time.perf_counter()
        walk()
        return (time.perf_counter() - began) * 1e6 / STEPS

    def check() -> Check:
        end = walk()
        return {"end": [end.norm().item(), *end.flatten()[::97].tolist()]}

    metrics = {
        "walk": Metric(walk, "steps/s", STEPS, warmup=3),
        "step": Metric(micro, "µs", kind="value", warmup=3),
    }
    versions = ("torch", "diffusers" if which is theirs else "morphogen")
    return Work(metrics, {"batch": BATCH, "shape": shape, "steps": STEPS}, versions, check=check)


for solver in SOLVERS:
    for kind, shape in SHAPES.items():
        for name, which in (("morphogen", ours), ("diffusers", theirs)):
            side = f"{name}/{solver}/{kind}"
            REG.add(side, functools.partial(build, which, solver, shape), f"{solver} {kind}", smoke=kind == "32x32")
