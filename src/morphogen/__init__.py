"""Morphogen: generative AI on one set of small contracts.

The names below are found when first used, so that `import morphogen` costs next to nothing and imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.6.0"

_HOME = {
    "core": ("Act", "Items", "Loss", "Model", "Net", "Noise", "Phase", "Place", "Source", "Space", "Update", "can"),
    "spec": ("Asset", "Remembers"),
    "errors": ("UserError",),
    "experiment": ("Data", "Experiment", "Run", "draw", "frozen", "load", "with_weights"),
    "train": ("Trainer",),
    "heldout": ("HeldOut",),
    "hooks": ("SampleGrid",),
    "average": ("EMA", "PowerEMA"),
    "watch": ("Watch",),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
_MODULES = (
    "autoregressive",
    "core",
    "data",
    "diffusion",
    "flows",
    "metrics",
    "nets",
    "optim",
    "recipes",
    "spec",
    "supervised",
    "testing",
)

__all__ = [*_WHERE, *_MODULES]

if TYPE_CHECKING:
    from . import autoregressive, core, data, diffusion, flows, metrics, nets, optim, recipes, spec, supervised, testing
    from .average import EMA, PowerEMA
    from .core import Act, Items, Loss, Model, Net, Noise, Phase, Place, Source, Space, Update, can
    from .errors import UserError
    from .experiment import Data, Experiment, Run, draw, frozen, load, with_weights
    from .heldout import HeldOut
    from .hooks import SampleGrid
    from .spec import Asset, Remembers
    from .train import Trainer
    from .watch import Watch


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module("." + _WHERE[name], __name__), name)
    elif name in _MODULES:
        value = importlib.import_module("." + name, __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
