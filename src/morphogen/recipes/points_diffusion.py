"""Diffusion on points of the plane whose density is known: every preset against the exact answer, in minutes."""

from __future__ import annotations

from typing import Literal

from ..experiment import Data, Experiment


def points_diffusion(
    density: Literal["8-gaussians", "25-gaussians", "checkerboard", "moons", "rings", "pinwheel"] = "8-gaussians",
    preset: Literal[
        "flow_matching",
        "edm",
        "rectified_flow",
        "stochastic_interpolant",
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
) -> Experiment:
    """A multilayer perceptron learns a density of the plane from endless points of it.

    density: what to learn. preset: which diffusion. steps: training steps. width, depth: units and number of the hidden
    layers. batch: points a step. lr: the largest learning rate. coupling: of data and noise; optimal pairs each batch
    by exact optimal transport (flow_matching, rectified_flow).
    """
    from ..average import EMA
    from ..core import Source
    from ..data.densities import Fresh
    from ..data.table import open
    from ..diffusion.coupling import OptimalTransport
    from ..diffusion.presets import PRESETS
    from ..heldout import HeldOut
    from ..hooks import SampleGrid
    from ..nets.mlp import MLP
    from ..optim import AdamW, Cosine
    from ..train import Trainer

    parts = open(density)
    std = round(float(parts.test.read()["x"].std()), 2)
    own = {"edm": {"sigma_data": std}, "score_sde_ve": {"sigma_data": std}}
    net = MLP(2, 2, width, depth, scalars=("t",), sinusoid=64)
    model = PRESETS[preset](net, (2,), drop=0.0, **own.get(preset, {}))
    source: Source = Fresh(parts.density, batch)
    if coupling == "optimal":
        source = OptimalTransport(source, within=())  # the net is told no label
    trainer = Trainer(
        steps,
        optim=AdamW(lr, betas=(0.9, 0.99), weight_decay=0.0, schedule=Cosine(warmup=steps // 20)),
        clip=1.0,
        ema=EMA(0.999),
        heldout=HeldOut(every=max(1, steps // 4), batch=10_000),
        hooks=(SampleGrid(every=max(1, steps // 4), n=2048, options={"solver": "dpmpp-2m", "steps": 25}),),
        save_every=max(1, steps // 4),
        log_every=50,
    )
    return Experiment(model, Data(source, parts.test, parts.space), trainer)
