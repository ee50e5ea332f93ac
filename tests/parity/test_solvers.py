"""Step by step against diffusers, on the grids where diffusers is right."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import nn

from morphogen.core import NONE, Noise
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion import weight as W
from morphogen.diffusion.diffusion import Diffusion, Sampler
from morphogen.diffusion.field import EDM, Eps, Field, V, X

diffusers = pytest.importorskip("diffusers")

T = 1000
KINDS = {"epsilon": Eps(), "sample": X(), "v_prediction": V()}
TABLES = {
    "linear": ({"beta_schedule": "linear"}, P.LinearBetas()),
    "squaredcos_cap_v2": ({"beta_schedule": "squaredcos_cap_v2"}, P.CosineBetas()),
    "scaled_linear": (
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        P.ScaledLinearBetas(),
    ),
}


class Wavy(nn.Module):
    """A net that is nothing in particular, and non-linear in x and t."""

    def forward(self, x, cond):
        return torch.tanh(1.3 * x) + 0.2 * torch.sin(cond["t"].reshape(-1, 1) / 100)


class Given(Noise):
    """Draws taken from a list."""

    def __init__(self, draws):
        super().__init__(torch.zeros(draws.shape[1], dtype=torch.int64))
        self.draws = iter(draws)

    def normal(self, *shape, dtype=None):
        return next(self.draws).clone().to(dtype)


def ours(path, kind):
    return Diffusion(Wavy(), (3,), path, kind, W.Uniform(), Sampler(S.euler, G.Uniform(), 1))


def start():
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def follow(scheduler, x, n, **each):
    """diffusers' states (before, after) along its own timesteps, each draw of noise given.

    diffusers keeps its table in float32, where 1 − ᾱ has lost four digits near data: it is given ours in float64, so
    that formulas are compared (`test_tables` compares the tables).
    """
    scheduler.set_timesteps(n)
    for i, t in enumerate(scheduler.timesteps):
        output = Wavy()(x, {"t": t.double().expand(len(x))})
        before, x = x, scheduler.step(output, t, x, **{k: f(i) for k, f in each.items()}).prev_sample
        yield before, x


def compare(field, step, grid, noise, states):
    """Each of our steps from diffusers' own state."""
    times = grid.tolist()
    for t, s, n, (before, after) in zip(times[:-1], times[1:], noise, states, strict=True):
        mine = step(field, before, t, s, {}, Given(n[None]))
        torch.testing.assert_close(mine, after, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "n"), [("leading", 20), ("leading", 13), ("trailing", 20)])
def test_ddim(table, kind, eta, spacing, n):
    config, path = TABLES[table]
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=T, clip_sample=False, prediction_type=kind, timestep_spacing=spacing, **config
    )
    grid = {"leading": G.Leading(), "trailing": G.Trailing()}[spacing](path, n)
    theirs.alphas_cumprod = path.abar
    noise = torch.randn(n, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    states = follow(theirs, start(), n, eta=lambda i: eta, variance_noise=lambda i: noise[i] if eta else None)
    compare(ours(path, KINDS[kind]), S.DDIM(eta), grid, noise, states)
    assert [round(path.index(t)) for t in grid[:-1].tolist()] == theirs.timesteps.tolist()


@pytest.mark.parametrize("table", ["linear", "scaled_linear"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("variance", "v"), [("fixed_small", 0.0), ("fixed_large", 1.0)])
@pytest.mark.parametrize(("spacing", "n"), [("leading", 20), ("trailing", 13), ("linspace", 30), ("leading", 250)])
def test_ddpm(table, kind, variance, v, spacing, n):
    config, path = TABLES[table]
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=T,
        clip_sample=False,
        prediction_type=kind,
        variance_type=variance,
        timestep_spacing=spacing,
        **config,
    )
    grid = {"leading": G.Leading(), "trailing": G.Trailing(), "linspace": G.Linspace()}[spacing](path, n)
    theirs.alphas_cumprod = path.abar
    # diffusers draws from a generator, in the order of its steps, for all but the last
    g = torch.Generator().manual_seed(1)
    noise = torch.stack([torch.randn(4, 3, dtype=torch.float64, generator=g) for _ in range(n)])
    g = torch.Generator().manual_seed(1)
    states = follow(theirs, start(), n, generator=lambda i: g)
    if spacing == "trailing" and v == 1:  # there diffusers adds noise on the last step, whose t is not 0
        grid, noise, states = grid[:-1], noise[:-1], islice(states, n - 1)
    compare(ours(path, KINDS[kind]), S.Ancestral(v), grid, noise, states)
    assert [round(path.index(t)) for t in grid[:-1].tolist()] == theirs.timesteps.tolist()[: len(noise)]


@pytest.mark.parametrize("n", [5, 18])
def test_edm_euler(n):
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    theirs.set_timesteps(n)
    path = P.Exploding(80.0)
    field, x = ours(path, EDM(0.5, scale=1.0)), start().float() * 80
    states = [x]
    for t in theirs.timesteps:
        given = theirs.scale_model_input(states[-1], t)
        states.append(theirs.step(Wavy()(given, {"t": t.expand(4)}), t, states[-1]).prev_sample)
    for (_, mine), other in zip(S.trajectory(field, x, G.Karras()(path, n)), states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


class FromEps(Field):
    """ε̂ = f(x / √(1 + σ²)): what diffusers' σ-space samplers make of a net that does not read t."""

    def __init__(self, path):
        self.path = path

    def predict(self, x, t, p, q, cond=NONE):
        sigma = self.path.sigma(t)
        eps = torch.tanh(1.3 * x / (1 + sigma**2) ** 0.5)
        return p * (x - sigma * eps) + q * eps


@pytest.mark.parametrize(
    ("scheduler", "step"),
    [("EulerDiscreteScheduler", S.euler), ("HeunDiscreteScheduler", S.heun)],
    ids=["euler", "heun"],
)
def test_euler_and_heun_in_sigma(scheduler, step):
    theirs = getattr(diffusers, scheduler)(num_train_timesteps=T, beta_schedule="linear", use_karras_sigmas=True)
    theirs.set_timesteps(9)
    high, low = theirs.sigmas[0].item(), theirs.sigmas[-2].item()
    path = P.Exploding(high)
    x, states = start().float() * high, []
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(1.3 * theirs.scale_model_input(x, t)), t, x).prev_sample
        states.append(x)
    if step is S.heun:  # their Heun says its predictor, then its result, then a last Euler step
        states = [*states[1::2], states[-1]]
    walk = S.trajectory(FromEps(path), start().float() * high, G.Karras(low, high)(path, 9), step=step)
    next(walk)
    for (_, mine), other in zip(walk, states, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5 * high)
    torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5)


def test_flow_matching_euler():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=T)
    times = G.Uniform()(P.Linear(), 7)
    theirs.set_timesteps(sigmas=times[:-1].tolist())
    from morphogen.diffusion.field import Velocity

    x, states = start().float(), [start().float()]
    for t in theirs.timesteps:
        x = theirs.step(Wavy()(x, {"t": t.expand(4)}), t, x).prev_sample
        states.append(x)
    for (_, mine), other in zip(
        S.trajectory(ours(P.Linear(), Velocity()), start().float(), times), states, strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("table", TABLES)
def test_tables(table):
    config, path = TABLES[table]
    theirs = diffusers.DDPMScheduler(num_train_timesteps=T, **config)
    torch.testing.assert_close(path.abar.float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-6)
    zero = diffusers.DDIMScheduler(num_train_timesteps=T, rescale_betas_zero_snr=True, **config).alphas_cumprod
    torch.testing.assert_close(P.ZeroTerminal(path).abar.float(), zero, rtol=1e-3, atol=1e-6)
