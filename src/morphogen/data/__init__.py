"""Where data comes from: recorded items and their order, data sets, exact densities, spaces. Names load when used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .album import Album as Album
    from .augment import Augmented as Augmented
    from .augment import Crop as Crop
    from .augment import Dequantise as Dequantise
    from .augment import Flip as Flip
    from .augment import Shift as Shift
    from .augment import Warp as Warp
    from .cifar10 import CIFAR10 as CIFAR10
    from .corpus import ByLength as ByLength
    from .corpus import Corpus as Corpus
    from .corpus import Sequences as Sequences
    from .corpus import Windows as Windows
    from .densities import Arcs as Arcs
    from .densities import Checkerboard as Checkerboard
    from .densities import Density as Density
    from .densities import Drawn as Drawn
    from .densities import Fresh as Fresh
    from .densities import Gaussians as Gaussians
    from .densities import Pinwheel as Pinwheel
    from .densities import bumps as bumps
    from .densities import eight_gaussians as eight_gaussians
    from .densities import gaussian_grid as gaussian_grid
    from .densities import moons as moons
    from .densities import rings as rings
    from .digits import Digits as Digits
    from .documents import Collection as Collection
    from .documents import TextFiles as TextFiles
    from .emoji import Emoji as Emoji
    from .encoded import Encoded as Encoded
    from .items import Pairs as Pairs
    from .items import Stored as Stored
    from .items import Tensors as Tensors
    from .listing import index as index
    from .medmnist import PneumoniaMNIST as PneumoniaMNIST
    from .mnist import MNIST as MNIST
    from .mnist import FashionMNIST as FashionMNIST
    from .mnist import read_idx as read_idx
    from .only import Only as Only
    from .paired import Derived as Derived
    from .paired import Every as Every
    from .paired import Matched as Matched
    from .paired import Together as Together
    from .paired import Unpaired as Unpaired
    from .roots import find as find
    from .source import Buckets as Buckets
    from .source import Shuffled as Shuffled
    from .source import in_order as in_order
    from .space import Pictures as Pictures
    from .space import Points as Points
    from .table import About as About
    from .table import Parts as Parts
    from .table import describe as describe
    from .table import names as names
    from .table import open as open
    from .table import show as show
    from .text import Text as Text

_HOMES = {
    "album": ("Album",),
    "augment": ("Augmented", "Crop", "Dequantise", "Flip", "Shift", "Warp"),
    "cifar10": ("CIFAR10",),
    "corpus": ("ByLength", "Corpus", "Sequences", "Windows"),
    "densities": (
        *("Arcs", "Checkerboard", "Density", "Drawn", "Fresh", "Gaussians", "Pinwheel"),
        *("bumps", "eight_gaussians", "gaussian_grid", "moons", "rings"),
    ),
    "digits": ("Digits",),
    "documents": ("Collection", "TextFiles"),
    "emoji": ("Emoji",),
    "encoded": ("Encoded",),
    "items": ("Pairs", "Stored", "Tensors"),
    "listing": ("index",),
    "medmnist": ("PneumoniaMNIST",),
    "mnist": ("MNIST", "FashionMNIST", "read_idx"),
    "only": ("Only",),
    "paired": ("Derived", "Every", "Matched", "Together", "Unpaired"),
    "roots": ("find",),
    "source": ("Buckets", "Shuffled", "in_order"),
    "space": ("Pictures", "Points"),
    "table": ("About", "Parts", "describe", "names", "open", "show"),
    "text": ("Text",),
}
_HOME = {name: module for module, held in _HOMES.items() for name in held}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
