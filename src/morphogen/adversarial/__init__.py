"""Models that learn from an opponent."""

from __future__ import annotations

from .gan import GAN
from .losses import GAMES, Game
from .penalties import R1, R2, Consistency, GradientPenalty
from .readings import Auxiliary, Categorical, Continuous
from .translate import CycleGAN, Pix2Pix

__all__ = [
    "GAMES",
    "GAN",
    "R1",
    "R2",
    "Auxiliary",
    "Categorical",
    "Consistency",
    "Continuous",
    "CycleGAN",
    "Game",
    "GradientPenalty",
    "Pix2Pix",
]
