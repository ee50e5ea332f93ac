"""The solvers by name: what `--solver` and `sample(solver=…)` take."""

from __future__ import annotations

from collections.abc import Mapping

from .adaptive import Dopri5
from .dpm import DPM2, DPMMultistep, DPMSinglestep, UniPC
from .multistep import LMS
from .solve import DDIM, Ancestral, Step, euler, heun, midpoint, rk4
from .stochastic import AnnealedLangevin, Churn, EulerMaruyama, PredictorCorrector, StochasticHeun

SOLVERS: Mapping[str, Step] = {
    "ancestral": Ancestral(),
    "ddim": DDIM(),
    "dopri5": Dopri5(),
    "dpm-2": DPM2(),
    "dpmpp-2m": DPMMultistep(2),
    "dpmpp-2m-sde": DPMMultistep(2, eta=1.0),
    "dpmpp-2s": DPMSinglestep(2),
    "dpmpp-3m": DPMMultistep(3),
    "dpmpp-3m-sde": DPMMultistep(3, eta=1.0),
    "dpmpp-3s": DPMSinglestep(3),
    "euler": euler,
    "euler-maruyama": EulerMaruyama(),
    "heun": heun,
    "heun-churn": Churn(),
    "heun-sde": StochasticHeun(),
    "langevin": AnnealedLangevin(),
    "lms": LMS(),
    "midpoint": midpoint,
    "predictor-corrector": PredictorCorrector(EulerMaruyama(), AnnealedLangevin(1, 0.0512)),
    "rk4": rk4,
    "unipc": UniPC(),
    "unipc-3": UniPC(3),
}
