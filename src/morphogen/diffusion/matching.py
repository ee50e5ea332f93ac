"""Score matching: a net learns ∇ log p without ever knowing p's constant.

For a score s(x), each averaged over data x (and over directions v with E vvᵀ = I, or noise z ~ N(0, I)):

    explicit    ½ |s(x) − ∇ log p(x)|²                           where the truth is known
    implicit    tr ∂s(x) + ½ |s(x)|²                             Hyvärinen 2005: D differentiations
    sliced      vᵀ ∂s(x) v + ½ (vᵀ s(x))²                        Song et al. 2019, SSM: one for each direction
    sliced_vr   vᵀ ∂s(x) v + ½ |s(x)|²                           the same, SSM-VR: less variance
    denoising   ½ |s(x + σz) + z/σ|²                             Vincent 2011: none, for the law of x + σz

All differ from the first by a constant that s does not enter (the last from the first for the law of x + σz), so they
have one minimiser. On Gaussian data it is −S⁻¹(x − x̄) with the sample's covariance S.

`ScoreModel` trains a net by any of them and samples by Langevin dynamics. Between far modes a walk at one noise level
takes forever: the cure, a net for all levels that is walked from the highest to none (NCSN; Song & Ermon 2019, arXiv
1907.05600), is `Diffusion` on `Exploding` with `Eps`, whose loss is `denoising` at every σ.

Hyvärinen 2005, "Estimation of non-normalized statistical models by score matching"; Vincent 2011, "A connection between
score matching and denoising autoencoders"; Song, Garg, Shi & Ermon 2019, "Sliced score matching" (arXiv 1905.07088).
Departures: `Denoising` is σ² times Vincent's loss, so that a net which says nothing has D/2 at every σ; directions are
Rademacher's unless told otherwise, whose trace has the least variance.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checks import learnable, one_for_each
from ..core import NONE, Batch, Loss, Model, Net, Noise
from ..errors import UserError
from ..spec import Remembers
from .divergence import Directions, gaussian, rademacher
from .langevin import MALA, Langevin, Law, Score

# ---- losses: (score, x, ...) -> (B,) -------------------------------------------------------------------------------


def explicit(score: Score, x: Float[Tensor, " b *shape"], truth: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
    """½ |s(x) − truth|², truth = ∇ log p(x)."""
    return 0.5 * _squared(score(x) - truth)


def implicit(score: Score, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
    """tr ∂s(x) + ½ |s(x)|², the trace exact by one differentiation for each coordinate. x gets no gradient."""
    with _watched(x) as (x, finish):
        s = score(x)
        trace = torch.zeros_like(s.flatten(1)[:, 0])  # (B,)
        for i, s_i in enumerate(s.flatten(1).unbind(1)):
            trace = trace + _slope(s_i, x).flatten(1)[:, i]
        return finish(trace + 0.5 * _squared(s))


def sliced(score: Score, x: Float[Tensor, " b *shape"], v: Float[Tensor, "b m *shape"]) -> Float[Tensor, " b"]:
    """The mean over M directions of vᵀ ∂s v + ½ (vᵀ s)². x gets no gradient."""
    with _watched(x) as (x, finish):
        s = score(x)
        along = [_dot(s, d) for d in v.unbind(1)]  # M of (B,)
        curved = [_dot(_slope(a, x), d) for a, d in zip(along, v.unbind(1), strict=True)]
        return finish(torch.stack([c + 0.5 * a.square() for a, c in zip(along, curved, strict=True)]).mean(0))


def sliced_vr(score: Score, x: Float[Tensor, " b *shape"], v: Float[Tensor, "b m *shape"]) -> Float[Tensor, " b"]:
    """The mean over M directions of vᵀ ∂s v, and ½ |s|² exactly. x gets no gradient."""
    with _watched(x) as (x, finish):
        s = score(x)
        curved = [_dot(_slope(_dot(s, d), x), d) for d in v.unbind(1)]
        return finish(torch.stack(curved).mean(0) + 0.5 * _squared(s))


def denoising(
    score: Score, x: Float[Tensor, " b *shape"], z: Float[Tensor, " b *shape"], sigma: float
) -> Float[Tensor, " b"]:
    """½ |s(x + σz) + z/σ|²."""
    return 0.5 * _squared(score(x + sigma * z) + z / sigma)


def _squared(a: Tensor) -> Tensor:
    return a.flatten(1).square().sum(1)  # (B,)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)  # (B,)


def _slope(value: Tensor, x: Tensor) -> Tensor:
    """The gradient by x of values (B,), each of its own row; itself differentiable."""
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)
    return slope


@contextlib.contextmanager
def _watched(x: Tensor) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """x as a leaf that gradients reach, also where none are wanted; then `finish` cuts the result off again."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        yield x.detach().requires_grad_(), lambda value: value if wanted else value.detach()


# ---- objectives: a loss with its random numbers --------------------------------------------------------------------


class Objective(Remembers, ABC):
    """A loss of a score on data, with the noise that it needs.

    differentiates: whether it differentiates the net by its input.
    """

    differentiates: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, score: Score, x: Tensor, noise: Noise) -> Tensor:
        """The loss of each sample (B,)."""


class Implicit(Objective):
    """Hyvärinen's, exact: as dear as D + 1 evaluations."""

    def __call__(self, score: Score, x: Tensor, noise: Noise) -> Tensor:
        return implicit(score, x)


class Sliced(Objective):
    """Along `directions` random directions of a law with E vvᵀ = I."""

    def __init__(self, directions: int = 1, law: Directions = gaussian) -> None:
        self.directions, self.law = directions, law

    def __call__(self, score: Score, x: Tensor, noise: Noise) -> Tensor:
        return sliced(score, x, _draw(self.directions, self.law, x, noise))


class SlicedVR(Objective):
    """Along `directions` random directions, the norm of the score exactly."""

    def __init__(self, directions: int = 1, law: Directions = rademacher) -> None:
        self.directions, self.law = directions, law

    def __call__(self, score: Score, x: Tensor, noise: Noise) -> Tensor:
        return sliced_vr(score, x, _draw(self.directions, self.law, x, noise))


def _draw(directions: int, law: Directions, x: Tensor, noise: Noise) -> Tensor:
    if directions < 1:
        raise UserError(f"Sliced score matching along {directions} directions sees nothing: use at least 1.")
    return law(noise, (directions, *x.shape[1:]), x.dtype).to(x.device)


class Denoising(Objective):
    """σ² times Vincent's loss: learns the score of the data with noise N(0, σ²) on it."""

    differentiates = False

    def __init__(self, sigma: float) -> None:
        if sigma <= 0:
            raise UserError(f"Denoising needs noise, and sigma is {sigma}: use a positive one, such as 0.1.")
        self.sigma = sigma

    def __call__(self, score: Score, x: Tensor, noise: Noise) -> Tensor:
        z = noise.normal(*x.shape[1:], dtype=x.dtype).to(x.device)
        return self.sigma**2 * denoising(score, x, z, self.sigma)


# ---- the model -----------------------------------------------------------------------------------------------------


class Energy(Net):
    """A net F made one that says the score −∇E of the energy E(x) = ½ |x − F(x)|², whose law is exp(−E)/Z.

    net: `net(x, cond)` -> (B, *shape): what it leaves as it is, is likely. The energy of Salimans & Ho 2021, "Should
    EBMs model the energy or the score?": it has no constant to waste a weight on, and any net of a score serves.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def energy(self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, " b"]:
        """E(x), nats."""
        return 0.5 * _squared(x - self.net(x, cond))

    def forward(self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, " b *shape"]:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x, cond).sum(), x, create_graph=wanted)
        return -slope


class ScoreModel(Model):
    """A score or an energy, learnt by score matching, sampled by Langevin dynamics. It has no likelihood.

    net:       `net(x, cond)` -> (B, *shape), the score; or `Energy(net)`. It should be smooth in x (SiLU, not ReLU).
    shape:     of one sample.
    objective: `Implicit()`, `Sliced(…)`, `SlicedVR(…)` or `Denoising(sigma)`.
    sampler:   `ULA(step, steps)`, or `MALA(step, steps)` with an energy.
    spread:    chains begin at N(0, spread²).
    Raises UserError for MALA without an energy; `loss` for data of another shape, and for integers.
    """

    def __init__(
        self, net: nn.Module, shape: tuple[int, ...], objective: Objective, sampler: Langevin, spread: float = 1.0
    ) -> None:
        super().__init__()
        self.net, self.shape, self.objective, self.sampler, self.spread = net, tuple(shape), objective, sampler, spread
        if isinstance(sampler, MALA) and not isinstance(net, Energy):
            raise UserError("MALA weighs a density, and this net says only a score: use ULA, or wrap it: Energy(net).")

    def loss(self, batch: Batch) -> Loss:
        """The objective's mean over samples; `seen["error"]` (B,) is each sample's."""
        x, cond = batch["x"], batch.get("cond") or NONE
        learnable(x, self.shape, self.net)
        with self._smoothly(self.objective.differentiates):
            error = self.objective(lambda y: self.net(y, cond), x, Noise(batch["key"]))
        return Loss(error.mean(), seen={"error": error.detach()})

    def score(self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, " b *shape"]:
        """∇ log p(x) as the net has it; under `Denoising` that of the data with its noise on."""
        with self._smoothly():
            s: Tensor = self.net(x, cond)
        return s

    def log_density(self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, " b"]:
        """The log-density −E(x), nats, up to an unknown constant. Raises UserError where the net says a score."""
        if not isinstance(self.net, Energy):
            raise UserError("This model's net says a score, which is no density: build it with Energy(net).")
        with self._smoothly():
            return -self.net.energy(x, cond)

    def sample(
        self,
        n: int,
        cond: Mapping[str, Tensor] | None = None,
        *,
        noise: Noise | None = None,
        sampler: Langevin | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        """Samples (n, *shape); by `ULA` differentiable in weights and conditions.

        cond:    conditions (n, ...), such as {"label": (n,)}.
        noise:   keyed noise of n samples; without it keys come from torch's default generator.
        sampler: instead of the model's own.
        x:       where the chains begin (n, *shape), instead of noise.
        Raises UserError for conditions or noise of another number, and for MALA without an energy.
        """
        cond = cond or NONE
        like = next(self.net.parameters(), torch.empty(()))
        if noise is None:
            noise = Noise.fresh(n, like.device)
        one_for_each(n, cond, noise)
        if x is not None and len(x) != n:
            raise UserError(f"x holds the beginnings of {len(x)} chains for {n} samples: give one for each.")
        if x is None:
            x = self.spread * noise.normal(*self.shape, dtype=like.dtype).to(like.device)
        density = (lambda y: self.log_density(y, cond)) if isinstance(self.net, Energy) else None
        return (sampler or self.sampler)(Law(lambda y: self.score(y, cond), density), x, noise)

    def _smoothly(self, differentiates: bool = False) -> contextlib.AbstractContextManager[object]:
        """Where the net is differentiated by its input: eagerly and with plain attention, since neither compiled nets
        nor fused attention can be differentiated twice.
        """
        stack = contextlib.ExitStack()
        if differentiates or isinstance(self.net, Energy):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack
