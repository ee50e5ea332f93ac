"""Presets: the papers' choices of path, parametrisation, weight, density of t and sampler.

    ddpm                    discrete chain, ε, steps uniform       Ho, Jain & Abbeel 2020, arXiv 2006.11239
    score_sde_vp, _subvp    VP and sub-VP SDE, ε, t uniform        Song et al. 2021, arXiv 2011.13456
    score_sde_ve            VE SDE, ε, t uniform                   the same
    edm                     α = 1, EDM's F, log σ normal           Karras et al. 2022, arXiv 2206.00364
    flow_matching           straight path, velocity, t uniform     Lipman et al. 2023, arXiv 2210.02747
    rectified_flow          straight path, velocity, t uniform     Liu et al. 2022, arXiv 2209.03003 (first round)
    vdm                     VP, EDM's F, log-SNR uniform           Kingma et al. 2021, arXiv 2107.00630
    stochastic_interpolant  circle, velocity, t uniform            Albergo & Vanden-Eijnden 2023, arXiv 2209.15571

`scale` is 1000 for nets with sinusoids, which are made for step numbers; 1 for nets that read t bare.

Departures: data are at t = 0 throughout (the flow papers: at 1, so t → 1 − t and v → −v). A chain's process begins at
σ_T z (DDPM: at z; σ_T = 0.99998). EDM's net is told 1000 log(σ)/4, so that a sinusoidal embedding made for step numbers
resolves it (paper: log(σ)/4). VE's net is given x_t at unit variance and told t, in which log σ is straight (paper: x_t
and log σ), and its samples keep their last noise, σmin. VDM has EDM's input and output (paper: ε) and a fixed schedule;
its Fourier features belong to the net (`nets.fourier`). Rectified flow samples with 50 Euler steps (paper: adaptive
RK45).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from ..errors import UserError
from .adaptive import Dopri5
from .diffusion import Diffusion, Sampler
from .field import EDM, Eps, Velocity
from .grid import Karras, Trailing, Uniform
from .path import VE, VP, Cosine, Exploding, Linear, LinearBetas, Path, SubVP
from .solve import Ancestral, Step, euler, heun
from .stochastic import AnnealedLangevin, EulerMaruyama, PredictorCorrector
from .weight import Likelihood, LogNormal, LogSNR, Steps
from .weight import Uniform as UniformTime


def ddpm(
    net: nn.Module, shape: tuple[int, ...], *, steps: int = 1000, scale: float = 1000.0, drop: float = 0.1
) -> Diffusion:
    """DDPM: β from 1e-4 to 0.02, ε, the simple loss; samples by the whole chain with variance β̃.

    steps: of the chain; with another number than 1000 β is 1000 / steps times as large (at most 0.999), so that the
    chain ends in noise all the same (Nichol & Dhariwal 2021).
    `cond["t"]` is scale · i / steps, the step index i of a chain of 1000.
    """
    if steps < 1:
        raise UserError(f"A chain of {steps} steps goes nowhere: use 1 or more, better 1000.")
    path = LinearBetas(0.1 / steps, min(20 / steps, 0.999), steps)
    sampler = Sampler(Ancestral(), Trailing(), steps)
    return Diffusion(net, shape, path, Eps(scale), Steps(steps), sampler, drop=drop)


def score_sde_vp(
    net: nn.Module,
    shape: tuple[int, ...],
    *,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    scale: float = 1000.0,
    drop: float = 0.1,
) -> Diffusion:
    """The variance-preserving score SDE: β(t) from 0.1 to 20, ε (the score's error weighted by σ²), t uniform on
    [1e-5, 1]; samples by 1000 steps of Euler–Maruyama on the reverse SDE.

    `cond["t"]` is scale · t.
    """
    return _score_sde(net, shape, VP(beta_min, beta_max), Eps(scale), EulerMaruyama(), drop)


def score_sde_subvp(
    net: nn.Module,
    shape: tuple[int, ...],
    *,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    scale: float = 1000.0,
    drop: float = 0.1,
) -> Diffusion:
    """The sub-VP score SDE, whose variance is below VP's: else as `score_sde_vp`. `cond["t"]` is scale · t."""
    return _score_sde(net, shape, SubVP(beta_min, beta_max), Eps(scale), EulerMaruyama(), drop)


def score_sde_ve(
    net: nn.Module,
    shape: tuple[int, ...],
    *,
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
    sigma_data: float = 0.5,
    scale: float = 1000.0,
    drop: float = 0.1,
) -> Diffusion:
    """The variance-exploding score SDE: σ from 0.01 to 50, ε (the score's error weighted by σ²), t uniform on
    [1e-5, 1]; samples by 1000 steps of predictor (reverse diffusion, which is `Ancestral(1)` here) and corrector
    (Langevin at signal-to-noise ratio 0.16): 2000 evaluations.

    sigma_max: of the order of the largest distance between two samples (the paper's 50 is for CIFAR-10 in [0, 1]).
    sigma_data: the data's standard deviation, by which the net is given x_t at unit variance.
    `cond["t"]` is scale · t, and log σ is straight in t.
    """
    path, parametrisation = VE(sigma_min, sigma_max), Eps(scale, sigma_data)
    solver = PredictorCorrector(Ancestral(1.0), AnnealedLangevin(1, 2 * 0.16**2))
    return _score_sde(net, shape, path, parametrisation, solver, drop)


def _score_sde(
    net: nn.Module, shape: tuple[int, ...], path: Path, parametrisation: Eps, solver: Step, drop: float
) -> Diffusion:
    sampler = Sampler(solver, Uniform(), 1000)
    return Diffusion(net, shape, path, parametrisation, UniformTime(1e-5, 1.0), sampler, drop=drop)


def edm(
    net: nn.Module, shape: tuple[int, ...], *, sigma_data: float = 0.5, scale: float = 1000.0, drop: float = 0.1
) -> Diffusion:
    """EDM: σ from 0.002 to 80, log σ ~ N(−1.2, 1.2²) in training; samples by Heun on Karras' grid, 18 steps, 35
    evaluations.

    sigma_data: the data's standard deviation. The noise levels are the paper's whatever it is, and made for 0.5: data
        are best brought there.
    `cond["t"]` is scale · log(σ) / 4.
    """
    sampler = Sampler(heun, Karras(), 18)
    return Diffusion(net, shape, Exploding(), EDM(sigma_data, scale), LogNormal(), sampler, drop=drop)


def flow_matching(
    net: nn.Module, shape: tuple[int, ...], *, sigma_min: float = 1e-5, scale: float = 1000.0, drop: float = 0.1
) -> Diffusion:
    """Flow matching on the optimal-transport path: σ = σmin + (1 − σmin) t, velocity, t uniform; samples by adaptive
    Dormand–Prince at tolerances of 1e-5.

    sigma_min: the noise that data keep at t = 0 (paper: "sufficiently small").
    `cond["t"]` is scale · t.
    """
    sampler = Sampler(Dopri5(), Uniform(), 1)
    return Diffusion(net, shape, Linear(sigma_min), Velocity(scale), UniformTime(), sampler, drop=drop)


def rectified_flow(net: nn.Module, shape: tuple[int, ...], *, scale: float = 1000.0, drop: float = 0.1) -> Diffusion:
    """Rectified flow: straight path, velocity, t uniform; samples by 50 Euler steps. `cond["t"]` is scale · t."""
    return Diffusion(net, shape, Linear(), Velocity(scale), UniformTime(), Sampler(euler, Uniform(), 50), drop=drop)


def stochastic_interpolant(
    net: nn.Module, shape: tuple[int, ...], *, scale: float = 1000.0, drop: float = 0.1
) -> Diffusion:
    """The stochastic interpolant between data and a normal law: x_t = cos(πt/2) x + sin(πt/2) z, velocity, t uniform;
    samples by adaptive Dormand–Prince at tolerances of 1e-5. `cond["t"]` is scale · t.
    """
    sampler = Sampler(Dopri5(), Uniform(), 1)
    return Diffusion(net, shape, Cosine(), Velocity(scale), UniformTime(), sampler, drop=drop)


def vdm(
    net: nn.Module, shape: tuple[int, ...], *, sigma_data: float = 0.5, scale: float = 1000.0, drop: float = 0.0
) -> Diffusion:
    """Variational diffusion: trained on the bound of the likelihood itself, at noise levels σ/α from 0.001 to those of
    the VP path's end; samples by Heun on Karras' grid, 25 steps, 49 evaluations.

    sigma_data: the data's standard deviation. Pixels want to be dequantised for it (`data.Dequantise`), and a net that
        sees them through `nets.fourier.FourierFeatures`: without, their likelihood is learned very slowly.
    `cond["t"]` is scale · log(σ/α) / 4.
    """
    path = VP()
    density = LogSNR(float(path.time(1e-3)), 1.0)
    sampler = Sampler(heun, Karras(), 25)
    return Diffusion(net, shape, path, EDM(sigma_data, scale), density, sampler, Likelihood(density), drop)


PRESETS: Mapping[str, Callable[..., Diffusion]] = {  # each called with (net, shape) and its own settings
    "ddpm": ddpm,
    "edm": edm,
    "flow_matching": flow_matching,
    "rectified_flow": rectified_flow,
    "score_sde_subvp": score_sde_subvp,
    "score_sde_ve": score_sde_ve,
    "score_sde_vp": score_sde_vp,
    "stochastic_interpolant": stochastic_interpolant,
    "vdm": vdm,
}
