"""Measures with interval and receipt, of samples against real data and of classifiers."""

from .classification import accuracy, confusion, macro, micro, per_class, weighted
from .frechet import frechet_distance
from .judge import Judge, agreement, evaluate_samples, useful
from .measure import Measure
from .memorisation import memorised

__all__ = [
    "Judge",
    "Measure",
    "accuracy",
    "agreement",
    "confusion",
    "evaluate_samples",
    "frechet_distance",
    "macro",
    "memorised",
    "micro",
    "per_class",
    "useful",
    "weighted",
]
