"""Diffusion on points of the plane whose density is known: every preset against the exact answer, in minutes.

Recorded in docs/runs/points-*, 55 to 134 s on one core of an AMD EPYC: the distance from the truth (KL) is 0.006 to
0.035 nats on 8 and 25 Gaussians, and 0.081 on the checkerboard, whose edges no such net follows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..experiment import Data, Experiment


def points_diffusion(
    density: Literal["8-gaussians", "25-gaussians", "checkerboard", "moons", "rings", "pinwheel"] = "8-gaussians",
    preset: Literal[
        "flow_matching",
        "edm",
        "rectified_flow",
        "stochastic_interpolant",
        "vdm",
        "ddpm",
        "score_sde_vp",
        "score_sde_subvp",
        "score_sde_ve",
    ] = "flow_matching",
    steps: int = 10_000,
    width: int = 256,
    depth: int = 4,
    batch: int = 512,
    lr: float = 2e-3,
    coupling: Literal["independent", "optimal"] = "independent",
    pairs: Path | None = None,
) -> Experiment:
    """A multilayer perceptron learns a density of the plane from endless points of it.

    density: what to learn. preset: which diffusion. steps: training steps. width, depth: units and number of the hidden
    layers. batch: points a step. lr: the largest learning rate. coupling: of data and noise; optimal pairs each batch
    by exact optimal transport (flow_matching, rectified_flow, stochastic_interpolant). pairs: a file of `morphogen
    reflow` to learn from instead: the next round of rectified flow, which needs fewer steps to sample.
    """
    if coupling == "optimal" and preset not in ("flow_matching", "rectified_flow", "stochastic_interpolant"):
        raise UserError(
            f"After optimal transport x and z are no longer independent, so that only samplers of the ODE keep the law,"
            f" and the preset {preset!r} is not one of a flow: take --preset flow_matching, or --coupling independent."
        )
    if pairs is not None and preset != "rectified_flow":
        raise UserError(f"Pairs straighten a flow, and the preset {preset!r} is none: take --preset rectified_flow.")
    if pairs is not None and coupling != "independent":
        raise UserError("Pairs are a coupling already: take --coupling independent with --pairs.")
    from ..average import EMA
    from ..core import Source
    from ..data.densities import Fresh
    from ..data.items import Pairs
    from ..data.source import Shuffled
    from ..data.table import open
    from ..diffusion.coupling import OptimalTransport
    from ..diffusion.presets import PRESETS
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.mlp import MLP
    from ..optim import AdamW, Cosine
    from ..spec import Asset
    from ..train import Trainer

    parts = open(density)
    std = round(float(parts.test.read()["x"].std()), 2)
    own = {"edm": {"sigma_data": std}, "score_sde_ve": {"sigma_data": std}}
    net = MLP(2, 2, width, depth, scalars=("t",), sinusoid=64)
    model = PRESETS[preset](net, (2,), drop=0.0, **own.get(preset, {}))
    source: Source = Fresh(parts.density, batch) if pairs is None else Shuffled(Pairs(Asset(pairs)), batch)
    if coupling == "optimal":
        source = OptimalTransport(source, within=())  # the net is told no label
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), weight_decay=0.0, schedule=Cosine(warmup=steps // 20)),
        clip=1.0,
        ema=EMA(0.999),
        heldout=HeldOut(every=max(1, steps // 4), batch=10_000) if pairs is None else None,  # real points have no z
        hooks=(SampleGrid(every=max(1, steps // 4), n=2048, options={"solver": "dpmpp-2m", "steps": 25}),),
        save_every=max(1, steps // 4),
        log_every=50,
    )
    return Experiment(model, Data(source, parts.test, parts.space), trainer)
