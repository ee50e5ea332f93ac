"""Diffusion, score matching and flow matching: one model.

    x_t = α(t) x + σ(t) z,   loss = E_t,x,z  w(t) mean_d (F(input x_t, noise, c) − a x − b z)²,   t from a density

With a path, a parametrisation (a, b), a weight w and a density of t this is DDPM, a score SDE, EDM, flow matching …
(`presets.py` names them), and sampling is a solver on the field that the net says. x and z are independent unless the
batch brings a `z` of its own (`coupling.py`). Conditions are dropped with probability `drop` (Ho & Salimans 2021, arXiv
2207.12598) so that guidance has its unconditional half.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..checks import buildable, guidable, learnable, named, one_for_each
from ..core import NONE, Batch, Loss, Model, Noise
from ..errors import UserError
from ..nets.embed import drop as drop_conditions
from ..spec import Remembers
from .decoder import Decoder
from .divergence import DIVERGENCES, Divergence
from .field import Cond, Eps, Field, Parametrisation, affine, spread
from .grid import Grid, chosen
from .guide import autoguided, guided, rescaled, thresholded
from .likelihood import EVALUATIONS, Integrator, bound, log_density, told
from .path import At, Path, Scalar
from .solve import Step, trajectory
from .solvers import SOLVERS
from .weight import Density, Weight

_STEPS = 50  # of a solver of equal steps where the model's own chooses its steps itself, so says no number


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

    one_law: ClassVar[bool] = False

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
        buildable(net, shape, drop)
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
        learnable(x, self.shape, self.net)
        noise = Noise(batch["key"])
        at = At(self.path, self.density(noise, self.path, x.dtype))
        z = batch["z"] if "z" in batch else noise.normal(*x.shape[1:], dtype=x.dtype)
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
        skip, out = self.parametrisation.mix(at, p, q)
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
        weak: Field | None = None,
        rescale: float = 0.0,
        threshold: float | None = None,
        steps: int | None = None,
        solver: Step | str | None = None,
        grid: Grid | str | None = None,
        watch: Callable[[float, Tensor], None] = lambda t, x: None,
    ) -> Tensor:
        """Samples (n, *shape), differentiable in weights and conditions.

        cond: conditions (n, ...), such as {"label": (n,)}.
        noise: keyed noise of n samples; without it keys come from torch's default generator.
        guidance: weight of the pull towards the conditions, and away from their absence or from those in
            `cond["negative"]`; 1 is none.
        interval: the times at which guidance pulls.
        weak: a worse model of the same preset, to be pulled away from instead (autoguidance).
        rescale: share by which a guided guess is brought back to its own contrast, 0 to 1.
        threshold: quantile of dynamic thresholding, such as 0.995, for data in [-1, 1]; without it there is none.
        steps: number of steps, instead of the model's own (50 with another solver where that has an adaptive one).
        solver: instead of the model's own, an object or its name in `solvers.py`, such as heun or ddim.
        grid: of times, instead of the model's own, an object or its name in `grid.py`, such as karras or uniform; the
            name of the model's own kind of grid means that one, with its own ends.
        watch: told every state on the way, as watch(t, x (n, *shape)).
        Raises UserError for conditions of another number, unknown names, fewer steps than 1, and guidance that was not
        trained for.
        """
        cond = cond or NONE
        one_for_each(n, cond, noise)
        if weak is None and "negative" not in cond:
            guidable(guidance, self.drop)
        like = next(self.net.parameters(), torch.empty(()))
        if noise is None:
            noise = Noise.fresh(n, like.device)
        if n == 0:
            return like.new_zeros(0, *self.shape)
        stepper = named("solver", solver, SOLVERS, self.sampler.solver)
        count = steps if steps is not None else self._steps(stepper, solver is not None)
        times = chosen(grid, self.sampler.grid, self.path)(self.path, count)
        field: Field = self
        if weak is not None:
            field = autoguided(self, weak, guidance, interval=interval)
        else:
            field = guided(self, guidance, interval=interval)
        field = rescaled(field, rescale)
        if threshold is not None:
            field = thresholded(field, threshold)
        x = noise.normal(*self.shape, dtype=like.dtype).to(like.device) * self.path.sigma(float(times[0]))
        for t, x in trajectory(field, x, times, step=stepper, cond=cond, noise=noise):  # noqa: B020
            watch(t, x)
        return x

    def _steps(self, stepper: Step, asked: bool) -> int:
        """How many steps where nobody says, with the model's own solver or with another that was asked for."""
        if not asked:
            return self.sampler.steps
        if stepper.intervals is not None:
            return stepper.intervals
        return self.sampler.steps if self.sampler.solver.intervals is None else _STEPS

    def log_prob(
        self,
        x: Shaped[Tensor, " b *shape"],
        cond: Cond | None = None,
        *,
        noise: Noise | None = None,
        divergence: Divergence | str | None = None,
        integrator: Integrator | None = None,
        low: float | None = None,
    ) -> Float[Tensor, " b"]:
        """The log-density (B,) of the probability flow, nats: see `likelihood.log_density`.

        With Hutchinson's divergence (by default above 16 coordinates) an unbiased estimate, a function of x alone
        unless `noise` is given. divergence may be named: "exact", "hutchinson", "gaussian".
        """
        cond = cond or NONE
        self._check_density(x, cond, noise)
        by = named("divergence", divergence, DIVERGENCES, None)
        return log_density(self, x, cond, noise=noise, divergence=by, integrator=integrator, low=low)

    def elbo(
        self,
        x: Shaped[Tensor, " b *shape"],
        cond: Cond | None = None,
        *,
        noise: Noise | None = None,
        evaluations: int = EVALUATIONS,
        decoder: Decoder | None = None,
        low: float | None = None,
    ) -> Float[Tensor, " b"]:
        """The variational bound (B,) of the reverse diffusion's log-density, nats: see `likelihood.bound`.

        An unbiased estimate from evaluations + 1 of the net, a function of x alone unless `noise` is given.
        """
        cond = cond or NONE
        self._check_density(x, cond, noise)
        return bound(self, x, cond, noise=noise, evaluations=evaluations, decoder=decoder, low=low)

    def likelihood(self, method: str) -> str:
        """How `log_prob` or `elbo` is computed unless told otherwise, in a clause."""
        return told(self.path, self.shape, method)

    def _check_density(self, x: Tensor, cond: Cond, noise: Noise | None) -> None:
        if x.shape[1:] != self.shape:
            raise UserError(
                f"x is {tuple(x.shape[1:])} a sample, and this model's density is over floats of shape {self.shape}."
            )
        one_for_each(len(x), cond, noise)
