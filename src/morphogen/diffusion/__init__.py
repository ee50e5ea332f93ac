"""Diffusion, score models and flow matching: path ∘ parametrisation ∘ solver (see each file's head)."""

from __future__ import annotations

from .diffusion import Diffusion, Sampler, ddpm, edm, rectified_flow
from .field import Field, Mixture, gaussian
from .guide import classified, guided

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
