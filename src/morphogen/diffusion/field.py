"""Fields: what is known of the data at x_t, and the coefficients by which a net says it.

A field answers one question: p E[x_0 | x_t] + q E[z | x_t] for any p and q. Everything else is algebra:

    denoise x̂ = (1, 0)    eps ε̂ = (0, 1)    velocity u = (α̇, σ̇)    score = (0, −1/σ)    DDIM's step to s = (α_s, σ_s)

A parametrisation says what a net F aims at, F* = a x + b z, and so, with x_t = αx + σz, how x̂ and ε̂ follow from it:

    D = αb − σa,   x̂ = (b x_t − σ F) / D,   ε̂ = (α F − a x_t) / D

with `X` (1, 0), `Eps` (0, 1), `V` (−σ, α), `Velocity` (α̇, σ̇) and `EDM` (σ/σd, −ασd)/h, h² = σ² + α²σd². Each gives
its coefficients with what cancels already cancelled, so that they hold at both ends; `convert` turns what one kind of
net says into what another would. Two limits remain: `X` at σ = 0 takes ε̂ = 0, the limit for any smooth density; `Eps`
at α = 0 says nothing of x (x̂ counts as 0), and `Diffusion` refuses that pair.

Papers: Ho et al. 2020 (ε, arXiv 2006.11239), Salimans & Ho 2022 (v, arXiv 2202.00512; its v is αz − σx, as here),
Lipman et al. 2023 (velocity, arXiv 2210.02747), Karras et al. 2022 (EDM, arXiv 2206.00364; here for any α).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import NONE
from ..errors import UserError
from ..spec import Remembers
from .path import At, Path, Scalar, lib, over

Pair = tuple[Scalar, Scalar]
Cond = Mapping[str, Tensor]


def spread(c: Scalar, x: Tensor) -> Any:
    """A coefficient per sample (B,) shaped to multiply x (B, ...); a number as it is."""
    return c.reshape(-1, *(1,) * (x.dim() - 1)) if isinstance(c, Tensor) and c.dim() else c


def affine(p: Scalar, u: Any, q: Scalar, v: Any) -> Any:
    """The sum p u + q v in as few operations as it takes; a factor that is the number 0 takes its term away, infinite
    or not.
    """
    if not isinstance(p, Tensor) and p == 0:
        return v if not isinstance(q, Tensor) and q == 1 else q * v
    left = u if not isinstance(p, Tensor) and p == 1 else p * u
    if isinstance(q, Tensor):
        return torch.addcmul(left, q, v) if isinstance(left, Tensor) and isinstance(v, Tensor) else left + q * v
    if q == 0:
        return left
    if isinstance(left, Tensor) and isinstance(v, Tensor):
        return torch.add(left, v, alpha=q)
    return left + q * v


# ---- fields --------------------------------------------------------------------------------------------------------


class Field(ABC):
    """What solvers, guidance and likelihood read. A subclass has a `path` and says `predict`; the views follow.

    Times `t` are floats or tensors (B,); conditions `cond` are (B, ...) and hold no time.
    """

    path: Path

    @abstractmethod
    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        """The mixture p E[x_0 | x_t = x] + q E[z | x_t = x]; p and q are numbers or (B,)."""

    def denoise(self, x: Float[Tensor, " b *shape"], cond: Cond) -> Float[Tensor, " b *shape"]:
        """E[x_0 | x_t = x], the time (B,) in `cond["t"]` (the protocol `morphogen.core.Field`)."""
        return self.predict(x, cond["t"], 1.0, 0.0, {k: v for k, v in cond.items() if k != "t"})

    def eps(self, x: Float[Tensor, " b *shape"], t: Scalar, cond: Cond = NONE) -> Float[Tensor, " b *shape"]:
        """E[z | x_t = x]."""
        return self.predict(x, t, 0.0, 1.0, cond)

    def velocity(self, x: Float[Tensor, " b *shape"], t: Scalar, cond: Cond = NONE) -> Float[Tensor, " b *shape"]:
        """dx/dt of the probability-flow ODE, E[dx_t/dt | x_t = x]. Where σ̇ is infinite (`VP` at t = 0) it does not
        follow from a denoiser: UserError for a number, α̇x̂ in a tensor of times.
        """
        dsigma = self.path.dsigma(t)
        if isinstance(dsigma, Tensor):
            dsigma = torch.where(dsigma == math.inf, 0.0, dsigma)
        elif dsigma == math.inf:
            raise UserError(
                f"The velocity at t = {t:g} on {type(self.path).__name__} does not follow from a denoiser: ask for it"
                " at a small t, such as 1e-3."
            )
        return self.predict(x, t, self.path.dalpha(t), dsigma, cond)

    def score(self, x: Float[Tensor, " b *shape"], t: Scalar, cond: Cond = NONE) -> Float[Tensor, " b *shape"]:
        """∇ log p_t(x). At t = 0 the data's own score does not follow from a denoiser: UserError for a number, 0 in a
        tensor of times.
        """
        sigma = self.path.sigma(t)
        if not isinstance(sigma, Tensor) and sigma == 0:
            raise UserError(
                "The score at t = 0 does not follow from a denoiser: ask for it at a small t, such as 1e-3."
            )
        return self.predict(x, t, 0.0, over(-1.0, sigma), cond)


class Mixture(Field):
    """The exact field of a mixture of Gaussians with independent coordinates, for tests and for teaching.

    means: (K, *shape). stds: (K,) or (K, *shape), not negative. weights: (K,), positive (equal where not given).
    `cond["label"]` (B,) picks one component, which is then the whole law; `cond["null"]` (B,) unpicks it.
    """

    def __init__(
        self, path: Path, means: Tensor | Sequence[Any], stds: Tensor | Sequence[Any], weights: Any = None
    ) -> None:
        self.path = path
        self.means = torch.as_tensor(means, dtype=torch.float64)  # (K, *shape)
        std = torch.as_tensor(stds, dtype=torch.float64)
        self.stds = std.reshape(*std.shape, *(1,) * (self.means.dim() - std.dim())).expand_as(self.means)
        weight = torch.as_tensor([1.0] * len(self.means) if weights is None else weights, dtype=torch.float64)
        self.logits = (weight / weight.sum()).log()  # (K,)

    def _parts(self, x: Tensor, t: Scalar) -> tuple[Tensor, Any, Any, Tensor, Tensor]:
        """The parts x − αm_k, α, σ, s_k² and the variance α²s_k² + σ²: each (K, B, *shape) or made to fit it."""
        alpha, sigma = spread(self.path.alpha(t), x), spread(self.path.sigma(t), x)
        mean, var = self.means.to(x)[:, None], self.stds.to(x)[:, None].square()
        return x - alpha * mean, alpha, sigma, var, alpha * alpha * var + sigma * sigma

    def log_joint(self, x: Float[Tensor, " b *shape"], t: Scalar) -> Float[Tensor, "k b"]:
        """The nats log p(component) + log p_t(x | component)."""
        away, _, _, _, var = self._parts(x, t)
        logp = -0.5 * (away.square() / var + (2 * math.pi * var).log())
        return logp.flatten(2).sum(2) + self.logits.to(x)[:, None]

    def log_density(self, x: Float[Tensor, " b *shape"], t: Scalar) -> Float[Tensor, " b"]:
        """The log-density log p_t(x), nats."""
        return self.log_joint(x, t).logsumexp(0)

    def log_label(self, x: Float[Tensor, " b *shape"], t: Scalar, label: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The nats log p_t(label | x): the exact noise-aware classifier."""
        return self.log_joint(x, t).log_softmax(0).gather(0, label[None])[0]

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        away, alpha, sigma, var, total = self._parts(x, t)
        share = self.log_joint(x, t).softmax(0)  # (K, B)
        if "label" in cond:
            one = torch.nn.functional.one_hot(cond["label"], len(share)).T.to(x)
            share = torch.where(cond["null"], share, one) if "null" in cond else one
        gain = away / total
        x0 = self.means.to(x)[:, None] + alpha * var * gain  # (K, B, *shape)
        each = affine(spread(p, x), x0, spread(q, x), sigma * gain)
        mean: Tensor = (share.reshape(*share.shape, *(1,) * (x.dim() - 1)) * each).sum(0)
        return mean

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " {n} *shape"]:
        """Draws (n, *shape) from the data's law, float64."""
        k = torch.multinomial(self.logits.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, *self.means.shape[1:], dtype=torch.float64, generator=generator)
        return self.means[k] + self.stds[k] * z


def gaussian(path: Path, mean: float | Sequence[Any] | Tensor, std: float | Sequence[Any] | Tensor) -> Mixture:
    """The exact field of one Gaussian: numbers for one coordinate, else (*shape)."""
    mean, std = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64)
    return Mixture(path, mean.reshape(1, *(mean.shape or (1,))), std[None])


# ---- parametrisations ----------------------------------------------------------------------------------------------


class Parametrisation(Remembers, ABC):
    """What a net aims at and is given: x̂ = skip x_t + out F(input x_t, noise)."""

    @abstractmethod
    def target(self, at: At) -> Pair:
        """(a, b) of F* = a x + b z."""

    @abstractmethod
    def x(self, at: At) -> Pair:
        """(skip, out) of x̂ = skip x_t + out F."""

    @abstractmethod
    def eps(self, at: At) -> Pair:
        """(skip, out) of ε̂ = skip x_t + out F."""

    @abstractmethod
    def input(self, at: At) -> Scalar:
        """The factor on x_t before the net."""

    @abstractmethod
    def noise(self, at: At) -> Scalar:
        """What the net is told as `cond["t"]`."""

    def mix(self, at: At, p: Scalar, q: Scalar) -> Pair:
        """(skip, out) of p x̂ + q ε̂ = skip x_t + out F."""
        (skip_x, out_x), (skip_e, out_e) = self.x(at), self.eps(at)
        return affine(p, skip_x, q, skip_e), affine(p, out_x, q, out_e)


def convert(
    F: Float[Tensor, " b *shape"],
    x: Float[Tensor, " b *shape"],
    at: At,
    given: Parametrisation,
    wanted: Parametrisation,
) -> Float[Tensor, " b *shape"]:
    """What a net of the kind `wanted` would say at x_t = x, where one of the kind `given` says F.

    Exact for every two kinds on every path, both ends included, but for what `given` does not know there (see the
    head) and for a `Velocity` wanted where σ̇ is infinite.
    """
    skip, out = given.mix(at, *wanted.target(at))
    converted: Tensor = affine(spread(skip, x), x, spread(out, x), F)
    return converted


def viewed(field: Field, path: Path | None = None, kind: Parametrisation | None = None) -> Field:
    """`field` walked along another path, and asked for what a net of another kind would say.

    At equal log-SNR the x_t of two paths are one but for a factor, so a field on one path is a field on every other (up
    to where its own ends). With `kind` the field is asked for that kind's target F alone, and p x̂ + q ε̂ is made of F:
    the same field, but for what that kind does not know at the ends.
    """
    return Viewed(field, field.path if path is None else path, kind)


class Viewed(Field):
    """See `viewed`."""

    def __init__(self, field: Field, path: Path, kind: Parametrisation | None) -> None:
        self.field, self.path, self.kind = field, path, kind

    def predict(
        self, x: Float[Tensor, " b *shape"], t: Scalar, p: Scalar, q: Scalar, cond: Cond = NONE
    ) -> Float[Tensor, " b *shape"]:
        here, there = At(self.path, t), At(self.field.path, self.field.path.time_at(self.path.logsnr(t)))
        m = lib(t)
        factor = m.sqrt(there.alpha * there.alpha + there.sigma * there.sigma) / m.sqrt(
            here.alpha * here.alpha + here.sigma * here.sigma
        )
        moved = x * spread(factor, x)
        if self.kind is None:
            return self.field.predict(moved, there.t, p, q, cond)
        skip, out = self.kind.mix(here, p, q)
        F = self.field.predict(moved, there.t, *self.kind.target(here), cond)
        mixed: Tensor = affine(spread(skip, x), x, spread(out, x), F)
        return mixed


def _positive(sigma_data: float) -> None:
    if sigma_data <= 0:
        raise UserError(f"sigma_data is {sigma_data}, but it is the data's standard deviation: give a positive one.")


def _unit(at: At, std: float) -> Scalar:
    """The standard deviation of x_t for data of standard deviation `std`."""
    scaled = at.alpha * std
    h: Scalar = lib(at.t).sqrt(at.sigma * at.sigma + scaled * scaled)
    return h


class Plain(Parametrisation):
    """A net that is given x_t itself and `scale` times the path's clock.

    scale:      1000 (step numbers, as DDPM's U-Net embeds them), or 1 for a net that takes times in [0, 1].
    sigma_data: the data's standard deviation, to give the net x_t at unit variance instead (for paths that explode).
    """

    def __init__(self, scale: float = 1000.0, sigma_data: float | None = None) -> None:
        if sigma_data is not None:
            _positive(sigma_data)
        self.scale, self.sigma_data = scale, sigma_data

    def input(self, at: At) -> Scalar:
        return 1.0 if self.sigma_data is None else 1 / _unit(at, self.sigma_data)

    def noise(self, at: At) -> Scalar:
        clock = at.path.clock(at.t)
        return clock if self.scale == 1 else self.scale * clock


class X(Plain):
    """F aims at the data x."""

    def target(self, at: At) -> Pair:
        return 1.0, 0.0

    def x(self, at: At) -> Pair:
        return 0.0, 1.0

    def eps(self, at: At) -> Pair:
        return over(1.0, at.sigma), over(-at.alpha, at.sigma)


class Eps(Plain):
    """F aims at the noise z."""

    def target(self, at: At) -> Pair:
        return 0.0, 1.0

    def x(self, at: At) -> Pair:
        return over(1.0, at.alpha), over(-at.sigma, at.alpha)

    def eps(self, at: At) -> Pair:
        return 0.0, 1.0


class V(Plain):
    """F aims at v = αz − σx, the velocity along the circle where α² + σ² = 1."""

    def target(self, at: At) -> Pair:
        return -at.sigma, at.alpha

    def x(self, at: At) -> Pair:
        square = at.alpha * at.alpha + at.sigma * at.sigma
        return at.alpha / square, -at.sigma / square

    def eps(self, at: At) -> Pair:
        square = at.alpha * at.alpha + at.sigma * at.sigma
        return at.sigma / square, at.alpha / square


class Velocity(Plain):
    """F aims at u = α̇x + σ̇z, flow matching's target. (On `VP`, where σ̇ is infinite at data, train `V` instead.)"""

    def target(self, at: At) -> Pair:
        return at.dalpha, at.dsigma

    def _slopes(self, at: At) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        """α̇, σ̇, 1 and D, each over 1 + σ̇: finite also where σ̇ is infinite."""
        ds = at.dsigma
        unit = 1 / (1 + ds)
        down, up = at.dalpha * unit, ds * unit
        if isinstance(ds, Tensor):
            up = torch.where(ds == math.inf, 1.0, up)
        elif ds == math.inf:
            up = 1.0
        return down, up, unit, at.alpha * up - at.sigma * down

    def x(self, at: At) -> Pair:
        _, up, unit, d = self._slopes(at)
        return up / d, -at.sigma * unit / d

    def eps(self, at: At) -> Pair:
        down, _, unit, d = self._slopes(at)
        return -down / d, at.alpha * unit / d


class EDM(Parametrisation):
    """Input, target and output of unit variance at every noise level, for data of standard deviation `sigma_data`.

    scale: the net is told scale log(σ/α) / 4. The paper's is 1; the default 1000 suits embeddings of step numbers.
    """

    def __init__(self, sigma_data: float = 0.5, scale: float = 1000.0) -> None:
        _positive(sigma_data)
        self.sigma_data, self.scale = sigma_data, scale

    def target(self, at: At) -> Pair:
        h = _unit(at, self.sigma_data)
        return at.sigma / (self.sigma_data * h), -self.sigma_data * at.alpha / h

    def x(self, at: At) -> Pair:
        h = _unit(at, self.sigma_data)
        return self.sigma_data**2 * at.alpha / (h * h), self.sigma_data * at.sigma / h

    def eps(self, at: At) -> Pair:
        h = _unit(at, self.sigma_data)
        return at.sigma / (h * h), -self.sigma_data * at.alpha / h

    def input(self, at: At) -> Scalar:
        return 1 / _unit(at, self.sigma_data)

    def noise(self, at: At) -> Scalar:
        r = over(at.sigma, at.alpha, math.inf)
        if isinstance(r, Tensor):
            return r.clamp(1e-6, 1e6).log() * (self.scale / 4)  # finite at both ends
        return math.log(min(max(r, 1e-6), 1e6)) * (self.scale / 4)
