"""A watch over a training, for any family: signs that something goes wrong, told in words."""

from ..alarms import Alarm, Told, told
from .look import Look
from .signs import SIGNS, Collapse, Dead, Leak, Memorisation, Oscillation, Sign, StrongCritic, Unheard, WeakCritic
from .watch import Watch

__all__ = [
    "SIGNS",
    "Alarm",
    "Collapse",
    "Dead",
    "Leak",
    "Look",
    "Memorisation",
    "Oscillation",
    "Sign",
    "StrongCritic",
    "Told",
    "Unheard",
    "Watch",
    "WeakCritic",
    "told",
]
