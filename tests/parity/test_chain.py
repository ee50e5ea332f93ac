"""The learned-variance chain step by step against diffusers' DDPM with `learned_range`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from morphogen.core import Noise
from morphogen.diffusion import grid as G
from morphogen.diffusion import path as P
from morphogen.diffusion.chain import Hybrid, LearnedVariance, Reverse, Telling
from morphogen.diffusion.decoder import Levels, Normal

diffusers = pytest.importorskip("diffusers")


class Wavy(nn.Module):
    """ε and v of nothing in particular, non-linear in x and t."""

    def forward(self, x, cond):
        t = cond["t"].reshape(-1, 1)
        return torch.cat((torch.tanh(1.3 * x) + 0.2 * torch.sin(t / 100), torch.cos(2 * x + t / 70)), 1)


class Given(Noise):
    """Draws taken from a list."""

    def __init__(self, draws):
        super().__init__(torch.zeros(draws.shape[1], dtype=torch.int64))
        self.draws = iter(draws)

    def normal(self, *shape, dtype=None):
        return next(self.draws).clone().to(dtype)


@pytest.mark.parametrize(("schedule", "path"), [("linear", P.LinearBetas()), ("squaredcos_cap_v2", P.CosineBetas())])
@pytest.mark.parametrize("clip", [False, True], ids=["free", "cut"])
@pytest.mark.parametrize(("spacing", "n"), [("leading", 20), ("trailing", 20), ("linspace", 30), ("leading", 1000)])
def test_every_step(schedule, path, clip, spacing, n):
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule=schedule,
        variance_type="learned_range",
        clip_sample=clip,
        timestep_spacing=spacing,
    )
    theirs.alphas_cumprod = path.abar  # theirs are float32, where 1 - ᾱ has lost four digits near data
    theirs.one = torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(n)
    grid = {"leading": G.Leading(), "trailing": G.Trailing(), "linspace": G.Linspace()}[spacing](path, n).tolist()
    g = torch.Generator().manual_seed(1)
    noise = torch.stack([torch.randn(4, 3, dtype=torch.float64, generator=g) for _ in range(n)])
    g = torch.Generator().manual_seed(1)
    decoder = Levels() if clip else Normal()
    told = Telling(LearnedVariance(Wavy(), (3,), path, decoder, Hybrid()))
    step = Reverse(told, decoder)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(theirs.timesteps):
        output = Wavy()(x, {"t": t.double().expand(4)})
        mine = step(told, x, grid[i], grid[i + 1], {}, Given(noise[i : i + 1]))
        x = theirs.step(output, t, x, generator=g).prev_sample
        if spacing == "trailing" and i == n - 1:
            continue  # there diffusers draws noise on the last step, with a variance of 1e-20
        torch.testing.assert_close(mine, x, rtol=1e-7, atol=1e-8)
        x = x.clamp(-3, 3)  # a wavy net's states would grow without end
