"""Normalizing flows: densities that are exact, made of bijections."""

from .autoregressive import AffineAutoregressive
from .bijection import Bijection, Composition, Flatten, Inverse, Permutation
from .coupling import AffineCoupling
from .flow import Flow
from .presets import iaf, maf, realnvp

__all__ = [
    "AffineAutoregressive",
    "AffineCoupling",
    "Bijection",
    "Composition",
    "Flatten",
    "Flow",
    "Inverse",
    "Permutation",
    "iaf",
    "maf",
    "realnvp",
]
