"""Seconds of PPO on CartPole to a mean return of 475 over the last 20 episodes, one thread, a seed a round: ten rounds.

The same numbers as in rl.py, by ours on gymnasium's environment and on the same physics as tensors, stable-baselines3
and CleanRL; and ours on 64 cart-poles at once, which tensors allow, by numbers that suit so many. Rates and clips fall
towards 100,000 steps; a run that has not got there by then fails. What is timed begins with the making of agent and
environments.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from harness import Metric, Registry, Work, smoking
from rl import SPECS, TRACK, Solved, cleanrl, ours, sb3

CAP = 100_000
REG = Registry(
    "rl_solve",
    rounds=10,
    slice=0.1,
    budget=1500,
    needs={"": ("gymnasium",), "sb3": ("stable_baselines3",)},
    pairs=[
        ("morphogen/solve", "sb3/solve", 0.5),
        ("morphogen-tensor/solve", "sb3/solve", None),
        ("morphogen-many/solve", "sb3/solve", 1 / 3),
        ("morphogen/solve", "cleanrl/solve", None),
        ("morphogen-tensor/solve", "cleanrl/solve", None),
    ],
)


def solve(lib: str) -> Work:
    import torch

    torch.set_num_threads(1)
    spec, more = "ppo-cartpole", dict[str, Any]()
    if lib.startswith("morphogen"):
        run = ours(spec, tensors=lib != "morphogen", many=lib.endswith("many"))
    elif lib == "sb3":
        run = sb3(spec)
    else:
        run, more = cleanrl(spec)
    run(2048)
    took: list[tuple[int, float]] = []

    def once() -> None:
        TRACK.stops, began = not smoking(), time.perf_counter()
        try:
            run(512 if smoking() else CAP)
        except Solved:
            took.append((TRACK.steps, round(time.perf_counter() - began, 2)))
            print("solved", took, flush=True)  # to the harness' log
            return
        finally:
            TRACK.stops = False
        if not smoking():
            raise RuntimeError(f"not solved in {CAP} steps: the best mean of 20 episodes was {TRACK.best:.0f}")

    config = {**SPECS[spec]["config"], **more, "env": "CartPole-v1", "cap": CAP, "window": 20, "torch_threads": 1}
    versions = ("torch", "gymnasium", *(["stable-baselines3"] if lib == "sb3" else []))
    return Work({"to 475": Metric(once, "s", kind="time", once=True, warmup=0)}, config, versions)


for lib in ("morphogen", "morphogen-tensor", "morphogen-many", "sb3", "cleanrl"):
    REG.add(f"{lib}/solve", functools.partial(solve, lib), smoke=lib.startswith("morphogen"))
