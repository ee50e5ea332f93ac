"""Diffusion, score models and flow matching: path ∘ parametrisation ∘ solver (see each file's head)."""

from __future__ import annotations

from .chain import LearnedVariance, improved_ddpm
from .coupling import OptimalTransport
from .diffusion import Diffusion, Sampler
from .field import Field, Mixture, convert, gaussian, viewed
from .guide import autoguided, classified, guided, rescaled, thresholded
from .matching import ScoreModel
from .presets import (
    ddpm,
    edm,
    flow_matching,
    rectified_flow,
    score_sde_subvp,
    score_sde_ve,
    score_sde_vp,
    stochastic_interpolant,
    vdm,
)

__all__ = [
    "Diffusion",
    "Field",
    "LearnedVariance",
    "Mixture",
    "OptimalTransport",
    "Sampler",
    "ScoreModel",
    "autoguided",
    "classified",
    "convert",
    "ddpm",
    "edm",
    "flow_matching",
    "gaussian",
    "guided",
    "improved_ddpm",
    "rectified_flow",
    "rescaled",
    "score_sde_subvp",
    "score_sde_ve",
    "score_sde_vp",
    "stochastic_interpolant",
    "thresholded",
    "vdm",
    "viewed",
]
