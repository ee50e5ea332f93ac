"""Presets: the papers' choices of path, parametrisation, weight, density of t and sampler.

    ddpm            discrete chain, ε, steps uniform       Ho, Jain & Abbeel 2020, arXiv 2006.11239
    edm             α = 1, EDM's F, log σ normal           Karras et al. 2022, arXiv 2206.00364
    rectified_flow  straight path, velocity, t uniform     Liu et al. 2022, arXiv 2209.03003 (first round)

`scale` is 1000 for nets with sinusoids, which are made for step numbers; 1 for nets that read t bare.

Departures: a chain's process begins at σ_T z (DDPM: at z; σ_T = 0.99998). EDM's net is told 1000 log(σ)/4, so that a
sinusoidal embedding made for step numbers resolves it (paper: log(σ)/4). Rectified flow samples with 50 Euler steps
(paper: adaptive RK45).
"""

from __future__ import annotations

from torch import nn

from .diffusion import Diffusion, Sampler
from .field import EDM, Eps, Velocity
from .grid import Karras, Trailing, Uniform
from .path import Exploding, Linear, LinearBetas
from .solve import Ancestral, euler, heun
from .weight import LogNormal, Steps
from .weight import Uniform as UniformTime


def ddpm(
    net: nn.Module, shape: tuple[int, ...], *, steps: int = 1000, scale: float = 1000.0, drop: float = 0.1
) -> Diffusion:
    """DDPM: β from 1e-4 to 0.02, ε, the simple loss; samples by the whole chain with variance β̃.

    steps: of the chain; with another number than 1000 β is 1000 / steps times as large (at most 0.999), so that the
    chain ends in noise all the same (Nichol & Dhariwal 2021).
    `cond["t"]` is scale · i / steps, the step index i of a chain of 1000.
    """
    path = LinearBetas(0.1 / steps, min(20 / steps, 0.999), steps)
    sampler = Sampler(Ancestral(), Trailing(), steps)
    return Diffusion(net, shape, path, Eps(scale), Steps(steps), sampler, drop=drop)


def edm(
    net: nn.Module, shape: tuple[int, ...], *, sigma_data: float = 0.5, scale: float = 1000.0, drop: float = 0.1
) -> Diffusion:
    """EDM: σ from 0.002 to 80, log σ ~ N(−1.2, 1.2²) in training; samples by Heun on Karras' grid, 18 steps, 35
    evaluations. sigma_data is the data's standard deviation.

    `cond["t"]` is scale · log(σ) / 4.
    """
    parametrisation, sampler = EDM(sigma_data, scale), Sampler(heun, Karras(), 18)
    return Diffusion(net, shape, Exploding(), parametrisation, LogNormal(), sampler, drop=drop)


def rectified_flow(net: nn.Module, shape: tuple[int, ...], *, scale: float = 1000.0, drop: float = 0.1) -> Diffusion:
    """Rectified flow: straight path, velocity, t uniform; samples by 50 Euler steps. `cond["t"]` is scale · t."""
    return Diffusion(net, shape, Linear(), Velocity(scale), UniformTime(), Sampler(euler, Uniform(), 50), drop=drop)
