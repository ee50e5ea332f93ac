"""It learns: a small net reaches the least error that any net could have on Gaussian data, within 3 %."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen.core import Noise, keys
from morphogen.diffusion import (
    ddpm,
    edm,
    flow_matching,
    rectified_flow,
    score_sde_subvp,
    score_sde_ve,
    score_sde_vp,
    stochastic_interpolant,
)
from morphogen.diffusion.path import At
from morphogen.nets.mlp import MLP

STD = 0.5


def floor(model, n=20_001):
    """The mean over times of the variance of F* = a x + b z given x_t, for x ~ N(0, s²): what no net can know.

    Var(ax + bz | αx + σz) = (aσ − bα)² s² / (α²s² + σ²): for ε that is ᾱs²/(ᾱs² + 1 − ᾱ).
    """
    t = model.density(Noise.seeded(77, n), model.path, torch.float64)
    at = At(model.path, t)
    a, b = model.parametrisation.target(at)
    return ((a * at.sigma - b * at.alpha) ** 2 * STD**2 / (at.alpha**2 * STD**2 + at.sigma**2)).mean().item()


PRESETS = [
    ddpm,
    edm,
    flow_matching,
    rectified_flow,
    score_sde_subvp,
    score_sde_ve,
    score_sde_vp,
    stochastic_interpolant,
]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.__name__)
def test_reaches_the_floor_and_samples_the_law(preset):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = preset(MLP(1, 1, 48, 2, scalars=("t",), sinusoid=32), (1,))
    steps, size = 1500, 512
    optim = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, 1e-2, steps)
    for step in range(steps):
        key = keys(torch.arange(size), 1, step)
        loss = model.loss({"x": STD * Noise(keys(torch.arange(size), 2, step)).normal(1), "key": key}).value
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
    n = 200_000
    with torch.no_grad():
        held = {"x": STD * Noise.seeded(3, n).normal(1), "key": keys(torch.arange(n), 4)}
        error = model.loss(held).value.item()
        least = floor(model)
        assert least * 0.98 < error < least * 1.03
        if preset is rectified_flow:
            assert least == pytest.approx(STD * math.pi / 2, rel=0.01)
        x = model.sample(20_000, noise=Noise.seeded(5, 20_000), solver="heun", steps=80)
    assert x.mean().item() == pytest.approx(0, abs=0.03)
    assert x.std().item() == pytest.approx(STD, rel=0.06)
