"""The chain whose variances are learned: Improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672).

A net with twice the outputs says ε and v, and a reverse step from t to s is

    p(x_s | x_t) = N(a x̂ + b x_t, Σ),   log Σ = w log β + (1 − w) log β̃,   w = (v + 1)/2      a, b, β̃, β: `posterior`

    L_vlb = Σ_i L_i + L_T,   L_0 = −log p(x | x_1),   L_i = KL(q(x_i | x_{i+1}, x) ‖ p(x_i | x_{i+1})),
    L_T = KL(q(x_T | x) ‖ N(0, 1)),   L_hybrid = mean_d (ε − ε̂)² + 0.001 T L_i / (D ln 2)

with i uniform in training. In the hybrid loss L_i sees ε̂ as a constant, so that it trains v alone. β̃ is 0 at the
first step of the chain, where that of the second stands for it in the logarithm. `Variational` is L_vlb alone, its
steps drawn by the root mean square of their last ten losses. On fewer steps a, b, β̃ and β are those between the times
that are taken. The decoder p(x | x_1) is over levels of pixels, or normal.

As in the authors' code L_i enters the hybrid loss in bits per dimension, and sampling and the bound cut x̂ to the range
of pixels. Departure: the exact normal distribution function in the decoder (there a tanh).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..checks import guidable, learnable, named, one_for_each
from ..core import NONE, Batch, Loss, Model, Noise, everyone
from ..errors import UserError
from ..laws import normal_kl
from ..nets.embed import drop as drop_conditions
from ..spec import Remembers
from .decoder import Decoder, Levels
from .field import Cond, Eps, Field, affine, spread
from .grid import Grid, Trailing, chosen
from .guide import guided
from .path import At, Chain, CosineBetas, Scalar
from .solve import Step, posterior, trajectory
from .solvers import SOLVERS


class Between(NamedTuple):
    """A reverse step: a, b of its mean, and the logarithms of β̃ and β, for each sample (B,) or for all."""

    a: Scalar
    b: Scalar
    low: Scalar
    high: Scalar


# ---- what is minimised ---------------------------------------------------------------------------------------------


class Objective(Remembers, ABC):
    """Which steps are trained, and what is differentiated there."""

    @abstractmethod
    def steps(self, noise: Noise, history: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """Step indices (B,) and the probability (B,) of each, from the last losses of every step."""

    @abstractmethod
    def __call__(self, error: Tensor, term: Tensor, steps: int) -> Tensor:
        """What a sample's error of ε (B,) and its term of the bound (B,), both means over coordinates, come to."""

    @abstractmethod
    def hear(self, i: Tensor, term: Tensor, history: Tensor, filled: Tensor) -> None:
        """Enter the terms (B,) of steps i (B,) into the last losses of every step, (T, 10), of which `filled` (T,)."""

    @abstractmethod
    def seen_mean(self, mean: Tensor) -> Tensor:
        """The mean of the reverse step as the bound's term sees it."""


class Hybrid(Objective):
    """The simple loss and `weight` times the bound in bits per dimension, through the variances alone."""

    def __init__(self, weight: float = 0.001) -> None:
        self.weight = weight

    def steps(self, noise: Noise, history: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        i = noise.integers(len(history))
        return i, torch.full(i.shape, 1 / len(history), device=i.device)

    def __call__(self, error: Tensor, term: Tensor, steps: int) -> Tensor:
        return error + term * (self.weight * steps / math.log(2))

    def hear(self, i: Tensor, term: Tensor, history: Tensor, filled: Tensor) -> None:
        return

    def seen_mean(self, mean: Tensor) -> Tensor:
        return mean.detach()


class Variational(Objective):
    """The bound alone, in bits per dimension, with steps drawn in proportion to the root mean square of their last
    losses once each has ten, but for a share `uniform` of them.
    """

    def __init__(self, uniform: float = 0.001) -> None:
        self.uniform = uniform

    def steps(self, noise: Noise, history: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.full_like(history[:, 0], 1 / len(history))
        if bool((filled == history.shape[1]).all()):
            rms = history.square().mean(1).sqrt()
            share = (1 - self.uniform) * rms / rms.sum() + self.uniform * share
        i = noise.categorical(share.log().expand(len(noise), -1))
        return i, share[i]

    def __call__(self, error: Tensor, term: Tensor, steps: int) -> Tensor:
        return term * (steps / math.log(2))

    def hear(self, i: Tensor, term: Tensor, history: Tensor, filled: Tensor) -> None:
        steps, terms = everyone.gather(i).tolist(), everyone.gather(term).tolist()
        touched = sorted(set(steps))
        place = {step: k for k, step in enumerate(touched)}
        rows, counts = history[touched].tolist(), filled[touched].tolist()
        for step, value in zip(steps, terms, strict=True):
            k = place[step]
            if counts[k] == len(rows[k]):
                rows[k] = [*rows[k][1:], value]
            else:
                rows[k][counts[k]] = value
                counts[k] += 1
        history[touched], filled[touched] = history.new_tensor(rows), filled.new_tensor(counts)

    def seen_mean(self, mean: Tensor) -> Tensor:
        return mean


# ---- the model -----------------------------------------------------------------------------------------------------


class LearnedVariance(Model, Field):
    """A discrete chain that says mean and variance of its reverse steps.

    net:       `net(x, cond)` -> (B, 2C, ...) for x (B, C, ...): first ε, then v; `cond["t"]` is scale · i / T.
    shape:     of one sample. path: the chain.
    decoder:   `Levels()` for pixels on [-1, 1], `Normal()` for real numbers.
    objective: `Hybrid()` or `Variational()`.
    drop:      probability of dropping a training sample's conditions.
    steps:     that `sample` takes unless told otherwise; the whole chain by default.
    Raises UserError where the path ends in pure noise, of which ε says nothing.
    """

    path: Chain
    history: Tensor
    filled: Tensor

    def __init__(
        self,
        net: nn.Module,
        shape: tuple[int, ...],
        path: Chain,
        decoder: Decoder,
        objective: Objective,
        scale: float = 1000.0,
        drop: float = 0.1,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if path.alpha(1.0) == 0:
            raise UserError(
                f"Improved DDPM's net says ε, which says nothing of the data at the end of {type(path).__name__}, where"
                " none is left: use CosineBetas or LinearBetas."
            )
        self.net, self.shape, self.path, self.decoder, self.objective = net, tuple(shape), path, decoder, objective
        self.parametrisation, self.drop, self.steps = Eps(scale), drop, path.steps if steps is None else steps
        self.register_buffer("history", torch.zeros(path.steps, 10))  # of each step's losses
        self.register_buffer("filled", torch.zeros(path.steps, dtype=torch.int64))
        whole = [posterior(path, path.at_index(i), path.at_index(i - 1)) for i in range(path.steps)]
        self._table = torch.tensor(whole, dtype=torch.float64).T  # a, b, β̃, β (4, T)

    def _whole(self, i: Int[Tensor, " b"], dtype: torch.dtype) -> Between:
        """The chain's own step from index i."""
        if self._table.device != i.device:
            self._table = self._table.to(i.device)
        a, b, small, large = self._table[:, i]
        second = self._table[2, min(1, self.path.steps - 1)]
        low = torch.where(i == 0, second, small)
        return Between(a.to(dtype), b.to(dtype), low.log().to(dtype), large.log().to(dtype))

    def _both(self, x: Tensor, at: At, cond: Cond) -> tuple[Tensor, Tensor]:
        """ε̂ and v (B, *shape) at x_t = x."""
        told = self.parametrisation.noise(at)
        time = told.expand(len(x)) if isinstance(told, Tensor) else x.new_full((len(x),), told)
        out: Tensor = self.net(x, {**cond, "t": time})
        if out.shape[1] != 2 * x.shape[1]:
            raise UserError(
                f"The net gives {out.shape[1]} channels for {x.shape[1]} of x, but a chain with learned variances needs"
                f" ε and v, {2 * x.shape[1]}: build it with twice the outputs, UNet(…, outputs={2 * x.shape[1]})."
            )
        eps, v = out.chunk(2, 1)
        return eps, v

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        """The mixture p x̂ + q ε̂ at x_t = x: one evaluation of the net."""
        return self.predict_both(x, t, p, q, cond)[0]

    def predict_both(self, x: Tensor, t: Scalar, p: Scalar, q: Scalar, cond: Cond) -> tuple[Tensor, Tensor]:
        """The mixture p x̂ + q ε̂, and v, of one evaluation."""
        at = At(self.path, t)
        eps, v = self._both(x, at, cond)
        skip, out = self.parametrisation.x(at)
        mixed: Tensor = affine(spread(affine(p, skip, 0.0, skip), x), x, spread(affine(p, out, q, 1.0), x), eps)
        return mixed, v

    # ---- training and the bound

    def loss(self, batch: Batch) -> Loss:
        """The objective's mean; `seen` has each sample's error of ε, step and term of the bound (nats/coordinate)."""
        x = batch["x"]
        learnable(x, self.shape, self.net)
        noise, steps = Noise(batch["key"]), self.path.steps
        i, share = self.objective.steps(noise, self.history, self.filled)
        z = batch["z"] if "z" in batch else noise.normal(*x.shape[1:], dtype=x.dtype)
        cond = batch.get("cond") or NONE
        error, term = self._terms(x, z, i, drop_conditions(cond, self.drop, noise) if cond else cond, self.objective)
        value = self.objective(error, term, steps) / (share * steps).to(x.dtype)
        seen = {"error": error.detach(), "step": i, "term": term.detach()}
        return Loss(value.mean(), seen=seen)

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """Let the objective remember the losses of the steps, of all ranks."""
        self.objective.hear(seen["step"], seen["term"], self.history, self.filled)

    def _terms(self, x: Tensor, z: Tensor, i: Tensor, cond: Cond, objective: Objective | None) -> tuple[Tensor, Tensor]:
        """The mean square error of ε (B,) and L_i (B,), nats, both means over coordinates, at x_t of index i."""
        at = At(self.path, ((i + 1).double() / self.path.steps).to(x.dtype))
        x_t = affine(spread(at.alpha, x), x, spread(at.sigma, x), z)
        eps, v = self._both(x_t, at, cond)
        error = (eps - z).square().flatten(1).mean(1)
        step = self._whole(i, x.dtype)
        told, out = self.parametrisation.x(at)
        x0 = affine(spread(told, x), x_t, spread(out, x), eps)
        if objective is None:
            x0 = self.decoder.clamp(x0)
        mean = spread(step.a, x) * x0 + spread(step.b, x) * x_t
        if objective is not None:
            mean = objective.seen_mean(mean)
        log_var = _between(step, v)
        true = spread(step.a, x) * x + spread(step.b, x) * x_t
        kl = normal_kl(true, spread(step.low, x), mean, log_var)
        term = torch.where(spread(i == 0, x), -self.decoder.log_prob(x, mean, log_var), kl)
        return error, term.flatten(1).mean(1)

    def term(
        self, x: Float[Tensor, " b *shape"], i: Int[Tensor, " b"], z: Float[Tensor, " b *shape"], cond: Cond = NONE
    ) -> Float[Tensor, " b"]:
        """One sample L_i (B,), nats, of the bound's term at step index i, with noise z."""
        return self._terms(x, z, i, cond, None)[1] * x[0].numel()

    def elbo(
        self,
        x: Float[Tensor, " b *shape"],
        cond: Cond | None = None,
        *,
        noise: Noise | None = None,
        evaluations: int | None = 100,
    ) -> Float[Tensor, " b"]:
        """A lower bound of the chain's log-density (B,), nats: −L_vlb, estimated without bias.

        noise:       by default that of the numbers in x (`Noise.of`).
        evaluations: of the net: one step drawn from each of as many equal pieces of the chain, the first step always;
                     None, or as many as the chain has steps, takes each step once.
        With `Levels` x is rounded to its level, and the density is that of dequantised pixels: log P − log cell.
        """
        cond, steps = cond or NONE, self.path.steps
        one_for_each(len(x), cond, noise)
        if x.shape[1:] != self.shape or not x.is_floating_point():
            raise UserError(f"x is {x.dtype} {tuple(x.shape[1:])} a sample, not floats of shape {self.shape}.")
        if evaluations is not None and evaluations < 2:
            raise UserError(f"evaluations={evaluations} cannot meet both the decoder and the chain: use 2 or more.")
        x = self.decoder.observe(x)
        noise = Noise.of(x) if noise is None else noise
        n = steps if evaluations is None else min(evaluations, steps)
        found = -self.last(x)
        edges = [0, *(1 + round(k * (steps - 1) / (n - 1)) for k in range(n))] if n > 1 else [0, 1]
        for first, end in pairwise(edges):
            i = first + noise.integers(end - first).to(x.device)
            z = noise.normal(*x.shape[1:], dtype=x.dtype).to(x.device)
            found = found - self.term(x, i, z, cond) * (end - first)
        return found

    def last(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
        """L_T (B,), nats."""
        alpha, sigma = self.path.alpha(1.0), self.path.sigma(1.0)
        prior = x.new_zeros(())
        return normal_kl(alpha * x, x.new_tensor(2 * math.log(float(sigma))), 0.0, prior).flatten(1).sum(1)

    # ---- sampling

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
        watch: Callable[[float, Tensor], None] = lambda t, x: None,
    ) -> Tensor:
        """Samples (n, *shape) by the chain's own reverse steps, or by a solver of its ε alone.

        steps: how many times of the chain are taken, evenly to its end (1 with an adaptive solver).
        solver: a `Step` or a name; None is the reverse chain with learned variances.
        grid: of times instead, an object or its name in `grid.py`.
        watch: told every state on the way, as watch(t, x (n, *shape)).
        Others as in `Diffusion.sample`; under guidance v is that of the given condition.
        """
        cond = cond or NONE
        one_for_each(n, cond, noise)
        guidable(guidance, self.drop)
        like = next(self.net.parameters(), torch.empty(()))
        if noise is None:
            noise = Noise.fresh(n, like.device)
        if n == 0:
            return like.new_zeros(0, *self.shape)
        z = noise.normal(*self.shape, dtype=like.dtype).to(like.device)
        told = Telling(self)
        own = Reverse(told, self.decoder)
        step = named("solver", solver, SOLVERS, own)
        own_steps = self.steps if step.intervals is None else step.intervals
        times = chosen(grid, Trailing(), self.path)(self.path, own_steps if steps is None else steps)
        field, x = guided(told, guidance, interval=interval), z
        for t, x in trajectory(field, x, times, step=step, cond=cond, noise=noise):  # noqa: B020
            watch(t, x)
        return x


class Telling(Field):
    """The field of a chain, which keeps the v of its last evaluation: so that guidance can wrap it as any other."""

    def __init__(self, model: LearnedVariance) -> None:
        self.model, self.path = model, model.path
        self.v: Tensor | None = None

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        mixed, self.v = self.model.predict_both(x, t, p, q, cond)
        return mixed


class Reverse(Step):
    """The chain's reverse step with its learned variance, between any two of its times.

    Of guided evaluations, which hold both branches, the last B samples are those of the given condition.
    """

    def __init__(self, told: Telling, decoder: Decoder) -> None:
        self.told, self.decoder = told, decoder

    def __call__(
        self, field: Field, x: Tensor, t: Scalar, s: Scalar, cond: Cond = NONE, noise: Noise | None = None
    ) -> Tensor:
        if isinstance(t, Tensor) or isinstance(s, Tensor) or not s < t:
            raise UserError("A chain with learned variances goes from one number t down to another: give such a grid.")
        a, b, small, large = posterior(field.path, t, s)
        x0 = self.decoder.clamp(field.predict(x, t, 1.0, 0.0, cond))
        mean = a * x0 + b * x
        if s == 0:
            return mean
        if noise is None:
            raise UserError("This solver draws noise and was given none: pass noise=Noise.seeded(seed, n).")
        assert self.told.v is not None
        log_var = _between(Between(a, b, math.log(small), math.log(large)), self.told.v[-len(x) :])
        return mean + (0.5 * log_var).exp() * noise.normal(*x.shape[1:], dtype=x.dtype).to(x.device)


def _between(step: Between, v: Tensor) -> Tensor:
    """Σ's logarithm (B, *shape) of the net's v."""
    w = (v + 1) / 2
    log_var: Tensor = w * spread(step.high, v) + (1 - w) * spread(step.low, v)
    return log_var


def improved_ddpm(
    net: nn.Module,
    shape: tuple[int, ...],
    *,
    steps: int = 4000,
    decoder: Decoder | None = None,
    objective: Objective | None = None,
    scale: float = 1000.0,
    drop: float = 0.1,
) -> LearnedVariance:
    """Improved DDPM: the cosine chain of 4000 steps, the hybrid loss, pixels of 256 levels on [-1, 1].

    net: gives twice the channels of x. `cond["t"]` is scale · i / steps, the step index i of a chain of 1000.
    `sample(steps=…)` takes fewer steps than the chain has: 50 to 250 in the paper.
    """
    decoder = Levels() if decoder is None else decoder
    objective = Hybrid() if objective is None else objective
    return LearnedVariance(net, shape, CosineBetas(steps=steps), decoder, objective, scale, drop)
