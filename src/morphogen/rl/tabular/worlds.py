"""Small worlds whose optimum is known: grids, the tables of gymnasium, the ski resort, and random ones.

Each is a function that an experiment remembers, so that a run can write it down. Actions on grids are 0 left, 1 down,
2 right, 3 up, as FrozenLake has them; CliffWalking and Taxi keep gymnasium's own numbers.

Sutton & Barto 2018 (4×4: example 4.1; 5×5: example 3.5; walk: example 6.2); Towers et al. 2024, Gymnasium,
arXiv:2407.17032; Archibald, McKinnon & Thomas 1995 (random MDPs with few branches, "Garnet").
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ...core import Noise
from ...errors import UserError, unknown
from ...spec import remembered
from ..env.others import gymnasium
from .mdp import MDP, table

LEFT, DOWN, RIGHT, UP = range(4)
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (right, down)


def _moved(s: int, a: int, side: int) -> int | None:
    """The state that a move leads to on a square grid; None is off it."""
    right, down = s % side + MOVES[a][0], s // side + MOVES[a][1]
    return down * side + right if 0 <= right < side and 0 <= down < side else None


@remembered
def grid4(limit: int | None = None) -> MDP:
    """Sutton & Barto's 4×4 grid: a move costs 1, two opposite corners end an episode, off the grid one stays."""
    ends = (0, 15)
    rows = [
        [[(1.0, s, 0.0, True)] if s in ends else [(1.0, to, -1.0, to in ends)] for to in _neighbours(s, 4)]
        for s in range(16)
    ]
    return table(rows, [s not in ends for s in range(16)], limit=limit, columns=4)


def _neighbours(s: int, side: int) -> list[int]:
    found = [_moved(s, a, side) for a in range(4)]
    return [s if to is None else to for to in found]


@remembered
def grid5(limit: int | None = None) -> MDP:
    """Sutton & Barto's 5×5 grid, which never ends: from A to A' pays 10, from B to B' 5, and off the grid costs 1."""
    jumps = {1: (21, 10.0), 3: (13, 5.0)}
    rows: list[Any] = []
    for s in range(25):
        if s in jumps:
            rows.append([[(1.0, *jumps[s], False)]] * 4)
        else:
            found = [_moved(s, a, 5) for a in range(4)]
            rows.append([[(1.0, s, -1.0, False) if to is None else (1.0, to, 0.0, False)] for to in found])
    return table(rows, torch.ones(25), limit=limit, columns=5)


@remembered
def walk(states: int = 5) -> MDP:
    """The random walk: one action, a step left or right with even odds; leaving on the right pays 1. V = i / (S + 1).

    An episode begins in the middle. Raises UserError where there is no state.
    """
    if states < 1:
        raise UserError("A walk of no states has no middle: give 1 or more.")
    rows = [
        [[(0.5, max(s - 1, 0), 0.0, s == 0), (0.5, min(s + 1, states - 1), float(s == states - 1), s == states - 1)]]
        for s in range(states)
    ]
    return table(rows, [s == states // 2 for s in range(states)])


@remembered
def ski_resort(queue: float = 0.2, tired: float = 0.1, limit: int | None = None) -> MDP:
    """A hotel (state 0) and four areas above it; in each one skis (action 0) or takes the lift (action 1).

    The lift costs 1 and leads to the next area up, or, with probability `queue`, nowhere; from area 4 it leads nowhere
    else. Skiing area i is worth 2i and leads to the area below, or, with probability `tired`, at once to the hotel. In
    the hotel there is nothing to ski. It goes on for ever. Raises UserError where a probability is none.
    """
    if not (0 <= queue < 1 and 0 <= tired <= 1):
        raise UserError(f"The probabilities queue = {queue} and tired = {tired} must lie in [0, 1), and [0, 1].")
    rows = []
    for area in range(5):
        up = min(area + 1, 4)
        down = [(1 - tired, max(area - 1, 0), 2.0 * area, False), (tired, 0, 2.0 * area, False)]
        rows.append([down, [(1 - queue, up, -1.0, False), (queue, area, -1.0, False)]])
    return table(rows, [1.0, 0, 0, 0, 0], limit=limit)


@remembered
def random_mdp(
    states: int = 10, actions: int = 3, branches: int = 3, *, ends: float = 0.0, seed: int = 0, limit: int | None = None
) -> MDP:
    """Each action leads to `branches` random states with random probabilities and normal rewards.

    ends: probability of an outcome to end the episode. Raises UserError where a count is less than 1.
    """
    if min(states, actions, branches) < 1:
        raise UserError(f"A random MDP of {states} states, {actions} actions and {branches} branches is empty.")
    shape, noise = (actions, branches), Noise.seeded(seed, states)
    prob = -noise.uniform(*shape, dtype=torch.float64).clamp(min=2.0**-24).log()  # exponentials: evenly on the simplex
    prob = prob / prob.sum(2, keepdim=True)
    over = noise.uniform(*shape) < ends
    start = torch.full((states,), 1 / states, dtype=torch.float64)
    reward = noise.normal(*shape, dtype=torch.float64)
    return MDP(prob, noise.integers(states, *shape), reward, over, start, limit=limit)


@remembered
def frozen_lake(map: str = "4x4", *, slippery: bool = True, limit: int | None = 100) -> MDP:
    """Gymnasium's FrozenLake: from S to G, not into a hole; on ice a third of moves goes to either side.

    map: "4x4" or "8x8". Raises UserError where gymnasium is not installed, or there is no such map.
    """
    if map not in ("4x4", "8x8"):
        raise unknown("map of FrozenLake", map, ("4x4", "8x8"))
    columns = int(map[0])
    return _of("FrozenLakeEnv", limit, columns, {"map_name": map, "is_slippery": slippery})


@remembered
def cliff_walking(*, slippery: bool = False, limit: int | None = None) -> MDP:
    """Gymnasium's CliffWalking: every move costs 1, the cliff 100 and leads back to the start.

    Actions: 0 up, 1 right, 2 down, 3 left. Raises UserError where gymnasium is not installed.
    """
    return _of("CliffWalkingEnv", limit, 12, {"is_slippery": slippery})


@remembered
def taxi(limit: int | None = 200) -> MDP:
    """Gymnasium's Taxi: fetch a passenger and bring her to where she wants. 500 states, 6 actions.

    Raises UserError where gymnasium is not installed.
    """
    return _of("TaxiEnv", limit, 20, {})


def _of(name: str, limit: int | None, columns: int, options: dict[str, Any]) -> MDP:
    gymnasium()  # or a sentence
    env: Any = vars(importlib.import_module("gymnasium.envs.toy_text"))[name](**options)
    rows = [[env.P[s][a] for a in range(int(env.action_space.n))] for s in range(int(env.observation_space.n))]
    return table(rows, env.initial_state_distrib, limit=limit, columns=columns)
