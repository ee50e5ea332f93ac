"""Models that learn from an opponent."""

from __future__ import annotations

from .ada import Adaptive
from .gan import GAN
from .invert import Inverse
from .losses import GAMES, Game
from .penalties import R1, R2, Consistency, GradientPenalty
from .progressive import Growth, ProgressiveGAN
from .readings import Auxiliary, Categorical, Continuous
from .stylegan import PathLength, StyleGAN2
from .translate import CycleGAN, Pix2Pix

__all__ = [
    "GAMES",
    "GAN",
    "R1",
    "R2",
    "Adaptive",
    "Auxiliary",
    "Categorical",
    "Consistency",
    "Continuous",
    "CycleGAN",
    "Game",
    "GradientPenalty",
    "Growth",
    "Inverse",
    "PathLength",
    "Pix2Pix",
    "ProgressiveGAN",
    "StyleGAN2",
]
