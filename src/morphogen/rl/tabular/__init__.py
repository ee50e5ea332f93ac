"""Finite problems: planning with known tables, learning from experience, bandits."""

from __future__ import annotations

from .mdp import MDP, Plan, backup, evaluate, occupancy, picture, policy_iteration, value_iteration
from .worlds import cliff_walking, frozen_lake, grid4, grid5, random_mdp, ski_resort, taxi, walk

__all__ = [
    "MDP",
    "Plan",
    "backup",
    "cliff_walking",
    "evaluate",
    "frozen_lake",
    "grid4",
    "grid5",
    "occupancy",
    "picture",
    "policy_iteration",
    "random_mdp",
    "ski_resort",
    "taxi",
    "value_iteration",
    "walk",
]
