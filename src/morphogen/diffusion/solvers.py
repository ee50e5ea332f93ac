"""The solvers by name: what `--solver` and `sample(solver=…)` take."""

from __future__ import annotations

from collections.abc import Mapping

from .solve import DDIM, Ancestral, Step, euler, heun, midpoint, rk4

SOLVERS: Mapping[str, Step] = {
    "ancestral": Ancestral(),
    "ddim": DDIM(),
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "rk4": rk4,
}
