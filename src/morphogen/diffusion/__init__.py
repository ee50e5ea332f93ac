"""Diffusion, score models and flow matching: path ∘ parametrisation ∘ solver (see each file's head)."""

from __future__ import annotations

from .diffusion import Diffusion, Sampler
from .field import Field, Mixture, gaussian
from .guide import classified, guided
from .presets import ddpm, edm, rectified_flow

__all__ = [
    "Diffusion",
    "Field",
    "Mixture",
    "Sampler",
    "classified",
    "ddpm",
    "edm",
    "gaussian",
    "guided",
    "rectified_flow",
]
