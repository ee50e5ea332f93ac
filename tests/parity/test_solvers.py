"""Step by step against diffusers, on the grids where diffusers is right."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import nn

from morphogen.core import NONE, Noise
from morphogen.diffusion import dpm, multistep
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion import solve as S
from morphogen.diffusion import weight as W
from morphogen.diffusion.diffusion import Diffusion, Sampler
from morphogen.diffusion.field import EDM, Eps, Field, V, X, gaussian
from tests.exact import solver_checks as check
from tests.exact.test_diffusion_multistep import half_guess

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


def on_table(scheduler, path, times):
    """Give a σ-space scheduler of diffusers our σ/α at its own timesteps, in double precision: it interpolates a table
    that is in float32, and formulas are compared here (`test_tables` compares the tables).
    """
    scheduler.sigmas = torch.tensor([path.ratio(t) for t in times], dtype=torch.float64)
    scheduler.alphas_cumprod = path.abar


def chain_times(path, scheduler):
    """The times of a scheduler's timesteps, and 0."""
    return [*(path.at_index(float(i)) for i in scheduler.timesteps.tolist()), 0.0]


def walk_beside(theirs, step, field, times, x, draws=None, scale=1.0, **each):
    """The largest relative difference of all states of their walk and ours, each from its own last state.

    scale: of their state to ours at a time (1, or 1/α where theirs live in σ-space).
    """
    given = None if draws is None else Given(draws)
    mine = [y for _, y in S.trajectory(field, x, times, step=step, noise=given)]
    other, worst = x * scale(times[0]) if callable(scale) else x, 0.0
    for i, t in enumerate(theirs.timesteps):
        told = theirs.scale_model_input(other, t) if callable(scale) else other
        output = Wavy()(told, {"t": t.double().expand(len(x))})
        other = theirs.step(output, t, other, **{k: f(i) for k, f in each.items()}).prev_sample
        back = other / scale(times[i + 1]) if callable(scale) else other
        worst = max(worst, ((back - mine[i + 1]).abs().max() / mine[i + 1].abs().max()).item())
    return worst


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("order", "eta"), [(1, 0.0), (2, 0.0), (1, 1.0), (2, 1.0)])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [10, 23])
def test_dpmpp_multistep(table, kind, order, eta, spacing, n):
    config, path = TABLES[table]
    if table == "squaredcos_cap_v2" and kind == "epsilon":
        return  # x̂ from ε at ᾱ = 2e-9, in float32
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=T,
        solver_order=order,
        prediction_type=kind,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        timestep_spacing=spacing,
        lower_order_final=False,
        **config,
    )
    theirs.set_timesteps(n)
    times = chain_times(path, theirs)
    on_table(theirs, path, times)
    draws = torch.randn(n, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    worst = walk_beside(
        theirs,
        dpm.DPMMultistep(order, eta),
        ours(path, KINDS[kind]),
        times,
        start(),
        draws,
        variance_noise=lambda i: draws[i],
    )
    assert worst < 1e-5  # they step in float32


@pytest.mark.parametrize("kind", KINDS)
def test_dpmpp_third_order(kind, monkeypatch):
    """diffusers takes half of the second difference: with that half ours is its walk, and without it is not.
    (`tests/exact/test_diffusion_multistep.py` measures that half is of order 2, and the whole of order 3.)
    """
    path = P.LinearBetas()
    field = ours(path, KINDS[kind])

    def worst():
        theirs = diffusers.DPMSolverMultistepScheduler(
            num_train_timesteps=T, solver_order=3, prediction_type=kind, lower_order_final=False
        )
        theirs.set_timesteps(10)
        times = chain_times(path, theirs)
        on_table(theirs, path, times)
        return walk_beside(theirs, dpm.DPMMultistep(3), field, times, start())

    assert worst() > 1e-3
    monkeypatch.setattr(dpm, "guess", half_guess)
    assert worst() < 1e-5


class OfRatio(Field):
    """A field that reads x alone, on any path: what a net that is told no time says, F = tanh(1.3 x) as ε̂."""

    def __init__(self, path):
        self.path = path

    def predict(self, x, t, p, q, cond=NONE):
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        eps = torch.tanh(1.3 * x)
        return p * (x - sigma * eps) / alpha + q * eps


@pytest.mark.parametrize(("order", "n"), [(2, 12), (3, 12)])
def test_dpmpp_singlestep(order, n):
    """Their steps of order p go over p of their timesteps, ours look between: the same on equal steps of log-SNR."""
    path = P.LinearBetas()
    theirs = diffusers.DPMSolverSinglestepScheduler(
        num_train_timesteps=T, solver_order=order, final_sigmas_type="sigma_min", lower_order_final=False
    )
    theirs.set_timesteps(n)
    ratios = torch.linspace(path.logsnr(0.999), path.logsnr(0.01), n + 1, dtype=torch.float64).mul(-0.5).exp()
    theirs.sigmas = ratios
    assert theirs.order_list == [*range(1, order + 1)] * (n // order)
    field, x = OfRatio(path), start()
    times = [path.time(r) for r in ratios.tolist()]
    mine = [y for _, y in S.trajectory(field, x, times[::order], step=dpm.DPMSinglestep(order))]
    other, states = x, [x]
    for t in theirs.timesteps:
        other = theirs.step(torch.tanh(1.3 * other), t, other).prev_sample
        states.append(other)
    for a, b in zip(mine, states[::order], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("spacing", "n"), [("leading", 10), ("trailing", 13), ("linspace", 23)])
def test_unipc(kind, b, order, spacing, n):
    path = P.LinearBetas()
    theirs = diffusers.UniPCMultistepScheduler(
        num_train_timesteps=T, solver_order=order, prediction_type=kind, solver_type=b, timestep_spacing=spacing
    )
    theirs.set_timesteps(n)
    times = chain_times(path, theirs)
    on_table(theirs, path, times)
    if order == 3:  # they lower the order of the last but one too
        times, theirs.timesteps = times[:-2], theirs.timesteps[: n - 2]
        theirs.lower_order_final = False
        theirs.register_to_config(lower_order_final=False)
    solver = dpm.UniPC(order, {"bh1": dpm.bh1, "bh2": dpm.bh2}[b])
    assert walk_beside(theirs, solver, ours(path, KINDS[kind]), times, start()) < 1e-9


def to_sigma_space(path):
    return lambda t: 1 / path.alpha(t)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [10, 13])
@pytest.mark.parametrize(
    ("scheduler", "step"),
    [
        ("EulerDiscreteScheduler", multistep.LMS(1)),
        ("EulerAncestralDiscreteScheduler", S.Ancestral()),
        ("EulerAncestralDiscreteScheduler", S.DDIM(1.0)),
        ("LMSDiscreteScheduler", multistep.LMS()),
    ],
    ids=["euler", "euler-ancestral", "euler-ancestral-as-ddim", "lms"],
)
def test_sigma_space(scheduler, step, kind, spacing, n):
    """x/α in their σ is x on ours: Euler there is DDIM, its ancestral form the posterior."""
    path = P.LinearBetas()
    theirs = getattr(diffusers, scheduler)(num_train_timesteps=T, prediction_type=kind, timestep_spacing=spacing)
    theirs.set_timesteps(n)
    times = chain_times(path, theirs)
    on_table(theirs, path, times)
    g = torch.Generator().manual_seed(1)
    draws = torch.stack([torch.randn(4, 3, dtype=torch.float64, generator=g) for _ in range(n)])
    g = torch.Generator().manual_seed(1)
    more = {"generator": lambda i: g} if "Ancestral" in scheduler else {}
    worst = walk_beside(theirs, step, ours(path, KINDS[kind]), times, start(), draws, to_sigma_space(path), **more)
    assert worst < (1e-9 if "LMS" in scheduler else 1e-5)  # the Euler ones step in float32


@pytest.mark.parametrize("n", [9, 14])
def test_dpm_2(n):
    """KDPM2: the midpoint in log σ."""
    path = P.LinearBetas()
    theirs = diffusers.KDPM2DiscreteScheduler(
        num_train_timesteps=T, beta_schedule="linear", beta_start=1e-4, beta_end=0.02
    )
    theirs.set_timesteps(n)
    path = P.Exploding(theirs.sigmas[0].item())
    times = [s / path.sigma_max for s in theirs.sigmas[::2].tolist()]
    x = start().float() * path.sigma_max
    field, states = FromEps(path), [x]
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(1.3 * theirs.scale_model_input(x, t)), t, x).prev_sample
        states.append(x)
    mine = [y for _, y in S.trajectory(field, states[0], times, step=dpm.DPM2())]
    for a, b in zip(mine, [*states[::2][:n], states[-1]], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5 * path.sigma_max)


@pytest.mark.parametrize(("spacing", "n"), [("trailing", 13), ("linspace", 13), ("linspace", 20)])
def test_ddim_where_diffusers_is_wrong(spacing, n):
    """On these grids its step goes to t − T//N: from its own states ours differs, and the closed form (by the table ᾱ
    alone) sides with ours: mean 0.698, not 0.662, of data with mean 0.7.
    """
    path = P.LinearBetas()
    field = gaussian(path, 0.7, 0.3**0.5)
    theirs = diffusers.DDIMScheduler(num_train_timesteps=T, clip_sample=False, timestep_spacing=spacing)
    theirs.alphas_cumprod = path.abar
    theirs.set_timesteps(n)
    x = torch.zeros(1, 1, dtype=torch.float64)
    for t in theirs.timesteps:
        x = theirs.step(field.eps(x, path.at_index(float(t))), t, x).prev_sample
    exact = check.ddim(path, spacing, n, 0.7, 0.3)[0]
    mine = S.solve(field, torch.zeros(1, 1, dtype=torch.float64), chain_times(path, theirs), step=S.DDIM()).item()
    assert mine == pytest.approx(exact, rel=1e-9)
    assert abs(x.item() - exact) > 1e-3
    if (spacing, n) == ("linspace", 13):
        assert (mine, x.item()) == (pytest.approx(0.698, abs=1e-3), pytest.approx(0.662, abs=1e-3))


@pytest.mark.parametrize("table", TABLES)
def test_tables(table):
    config, path = TABLES[table]
    theirs = diffusers.DDPMScheduler(num_train_timesteps=T, **config)
    torch.testing.assert_close(path.abar.float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-6)
    zero = diffusers.DDIMScheduler(num_train_timesteps=T, rescale_betas_zero_snr=True, **config).alphas_cumprod
    torch.testing.assert_close(P.ZeroTerminal(path).abar.float(), zero, rtol=1e-3, atol=1e-6)
