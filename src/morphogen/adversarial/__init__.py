"""Models that learn from an opponent."""

from __future__ import annotations

from .gan import GAN
from .losses import GAMES, Game
from .penalties import R1, R2, Consistency, GradientPenalty
from .readings import Auxiliary, Categorical, Continuous

__all__ = [
    "GAMES",
    "GAN",
    "R1",
    "R2",
    "Auxiliary",
    "Categorical",
    "Consistency",
    "Continuous",
    "Game",
    "GradientPenalty",
]
