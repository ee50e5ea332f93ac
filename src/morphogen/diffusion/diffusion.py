"""Diffusion, score matching and flow matching: one model, three presets.

    x_t = α(t) x + σ(t) z,   loss = E_t,x,z  w(t) mean_d (F(input x_t, noise, c) − a x − b z)²,   t from a density

With the path, the parametrisation (a, b), the weight w and the density of t this is

    ddpm            discrete chain, ε, steps uniform       Ho, Jain & Abbeel 2020, arXiv 2006.11239
    edm             α = 1, EDM's F, log σ normal           Karras et al. 2022, arXiv 2206.00364
    rectified_flow  straight path, velocity, t uniform     Liu et al. 2022, arXiv 2209.03003 (first round)

and sampling is a solver on the field that the net says. Conditions are dropped with probability `drop` (Ho &
Salimans 2021, arXiv 2207.12598) so that guidance has its unconditional half.

Departures: a chain's process begins at σ_T z (DDPM: at z; σ_T = 0.99998). EDM's net is told 1000 log(σ)/4, so that a
sinusoidal embedding made for step numbers resolves it (paper: log(σ)/4). Rectified flow samples with 50 Euler steps
(paper: adaptive RK45).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Batch, Loss, Model, Noise, leaves
from ..errors import UserError, unknown
from ..nets.embed import drop as drop_conditions
from ..spec import Remembers
from .field import EDM, Cond, Eps, Field, Parametrisation, Velocity, Weight, affine, spread
from .guide import guided
from .path import At, Density, Exploding, Linear, LinearBetas, LogNormal, Path, Scalar, Steps
from .path import Uniform as UniformTime
from .solve import GRIDS, SOLVERS, Ancestral, Grid, Karras, Step, Trailing, Uniform, euler, heun, solve


class Sampler(Remembers):
    """How a model samples when it is not told: solver, grid, number of steps."""

    def __init__(self, solver: Step, grid: Grid, steps: int) -> None:
        self.solver, self.grid, self.steps = solver, grid, steps


class Diffusion(Model, Field):
    """A generative model that denoises.

    net:      `net(x, cond)` -> (B, *shape); `cond["t"]` (B,) is what the parametrisation tells it of the time.
    shape:    of one sample.
    weight:   a factor on F's squared error; None is 1 (see `Weight`).
    drop:     probability of dropping a training sample's conditions.
    sampler:  what `sample` uses unless told otherwise.
    Raises UserError for `Eps` on a path that ends in pure noise: such a net says nothing of x there; `loss` for data of
    another shape, and for integers.
    """

    def __init__(
        self,
        net: nn.Module,
        shape: tuple[int, ...],
        path: Path,
        parametrisation: Parametrisation,
        density: Density,
        sampler: Sampler,
        weight: Weight | None = None,
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        if isinstance(parametrisation, Eps) and path.alpha(1.0) == 0:
            raise UserError(
                f"Eps says nothing of the data where none is left, which is so at t = 1 of {type(path).__name__}:"
                " use V or Velocity, or a path that keeps a little, such as LinearBetas or CosineBetas."
            )
        self.net, self.shape, self.path, self.parametrisation = net, tuple(shape), path, parametrisation
        self.density, self.sampler, self.weight, self.drop = density, sampler, weight, drop

    def loss(self, batch: Batch) -> Loss:
        """The mean over samples and coordinates of F's squared error; `seen["error"]` (B,) is each sample's."""
        x = batch["x"]
        if x.shape[1:] != self.shape or not x.is_floating_point():
            raise UserError(
                f"The data's x is {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape[1:])} a sample, and"
                f" this model learns floats of shape {self.shape}: build it for that shape, or give Tensors(levels=…)."
            )
        noise = Noise(batch["key"])
        at = At(self.path, self.density(noise, self.path, x.dtype))
        z = noise.normal(*x.shape[1:], dtype=x.dtype)
        x_t = affine(spread(at.alpha, x), x, spread(at.sigma, x), z)
        cond = batch.get("cond") or NONE
        F = self._net(x_t, at, drop_conditions(cond, self.drop, noise) if cond else cond)
        a, b = self.parametrisation.target(at)
        error = (F - affine(spread(a, x), x, spread(b, x), z)).square().flatten(1).mean(1)  # (B,)
        if self.weight is not None:
            error = error * self.weight(at, self.parametrisation)
        return Loss(error.mean(), seen={"error": error.detach()})

    def _net(self, x: Tensor, at: At, cond: Cond) -> Tensor:
        """F at x_t = x."""
        told, scale = self.parametrisation.noise(at), self.parametrisation.input(at)
        time = told.expand(len(x)) if isinstance(told, Tensor) else x.new_full((len(x),), told)
        F: Tensor = self.net(affine(spread(scale, x), x, 0.0, x), {**cond, "t": time})
        return F

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        """The mixture p x̂ + q ε̂ at x_t = x: one evaluation of the net."""
        at = At(self.path, t)
        (skip_x, out_x), (skip_e, out_e) = self.parametrisation.x(at), self.parametrisation.eps(at)
        skip, out = affine(p, skip_x, q, skip_e), affine(p, out_x, q, out_e)
        mixed: Tensor = affine(spread(skip, x), x, spread(out, x), self._net(x, at, cond))
        return mixed

    def sample(
        self,
        n: int,
        cond: Cond | None = None,
        *,
        noise: Noise | None = None,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        steps: int | None = None,
        solver: Step | str | None = None,
        grid: Grid | str | None = None,
    ) -> Tensor:
        """Samples (n, *shape), differentiable in weights and conditions.

        cond:     conditions (n, ...), such as {"label": (n,)}.
        noise:    keyed noise of n samples; without it keys come from torch's default generator.
        guidance: classifier-free guidance at times in `interval`; 1 is none.
        steps, solver, grid: instead of the model's own; solver and grid may be named ("heun", "karras").
        Raises UserError for conditions of another number, unknown names, and guidance that was not trained for.
        """
        cond = cond or NONE
        self._check(n, cond, guidance, noise)
        like = next(self.net.parameters(), torch.empty(()))
        if noise is None:
            noise = Noise(torch.randint(-(2**63), 2**63 - 1, (n,), device=like.device))
        if n == 0:
            return like.new_zeros(0, *self.shape)
        stepper = _named("solver", solver, SOLVERS, self.sampler.solver)
        times = _named("grid", grid, GRIDS, self.sampler.grid)(
            self.path, self.sampler.steps if steps is None else steps
        )
        z = noise.normal(*self.shape, dtype=like.dtype).to(like.device) * self.path.sigma(1.0)
        return solve(guided(self, guidance, interval=interval), z, times, step=stepper, cond=cond, noise=noise)

    def _check(self, n: int, cond: Cond, guidance: float, noise: Noise | None) -> None:
        for name, c in leaves(cond):
            if len(c) != n:
                raise UserError(f"cond[{name!r}] holds {len(c)} conditions for {n} samples: give one for each.")
        if noise is not None and len(noise) != n:
            raise UserError(f"The noise has {len(noise)} keys for {n} samples: give one for each.")
        if guidance != 1 and self.drop == 0:
            raise UserError(
                f"This model was trained with drop=0, so it has no unconditional half for guidance {guidance:g}:"
                " use guidance 1, or train it with drop=0.1."
            )


def _named(kind: str, wish: Any, known: Mapping[str, Any], own: Any) -> Any:
    if isinstance(wish, str):
        if wish not in known:
            raise unknown(kind, wish, known)
        return known[wish]
    return own if wish is None else wish


# ---- presets: `scale` is 1000 for nets with sinusoids, which are made for step numbers; 1 for nets that read t bare --


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
