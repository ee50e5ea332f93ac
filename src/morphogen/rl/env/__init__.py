"""Environments: many at once as tensors, on the device, their state saved; those of others behind the same protocol."""

from __future__ import annotations

from .classic import CartPole, Pendulum
from .env import Box, Choice, Env, Pictured, Rated, Simulated, Step, Task, Transition
from .games import Catch, LinearQuadratic, PointMass, PointMaze
from .others import Gymnasium, Simulator

__all__ = [
    "Box",
    "CartPole",
    "Catch",
    "Choice",
    "Env",
    "Gymnasium",
    "LinearQuadratic",
    "Pendulum",
    "Pictured",
    "PointMass",
    "PointMaze",
    "Rated",
    "Simulated",
    "Simulator",
    "Step",
    "Task",
    "Transition",
]
