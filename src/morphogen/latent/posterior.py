r"""What a VAE has at its latent end: the approximate posterior q(z|x), and the prior p(z) it is held against.

    Diagonal   q = N(m(x), diag e^{v(x)}),  p = N(0, I)                      (Kingma & Welling 2014, arXiv:1312.6114)
    Flowed     z_0 ~ N(m(x), diag e^{v(x)}), z = f(z_0; c(x)) with f invertible, so that
               log q(z|x) = log N(z_0; m, e^v) − log |det ∂f/∂z_0|           (Rezende & Mohamed 2015, arXiv:1505.05770;
               with inverse autoregressive f: Kingma et al. 2016, arXiv:1606.04934)

The hierarchy is in `hierarchical.py`. Each is a `Posterior`; `VAE` knows no more of it than that.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net, Noise
from ..errors import UserError
from ..laws import normal_log_prob
from .bound import standard_kl

Cond = Mapping[str, Tensor]


class Posterior(Net):
    """q(z|x) and p(z). shape: of the z (B, *shape) that the decoder takes.

    doubly: whether the density of q can be had with its parameters stopped, as DReG wants it. standard: whether the z
    of `shape` is all that there is, and its prior N(0, I).
    """

    shape: tuple[int, ...]
    doubly: bool = False
    standard: bool = True

    @abstractmethod
    def infer(self, x: Tensor, cond: Cond, noise: Noise) -> tuple[Tensor, Tensor]:
        """A draw z (B, *shape) of q(z|x), and KL(q ‖ p) (B, D), nats, in D parts that add up: exact, or as z says."""

    @abstractmethod
    def weigh(self, x: Tensor, cond: Cond, noise: Noise, k: int, *, stopped: bool = False) -> tuple[Tensor, Tensor]:
        """k draws z (k B, *shape), all first ones first, and log p(z) − log q(z|x) (k, B).

        stopped: q's parameters are constants in log q, and act through z alone (only where `doubly`).
        """

    @abstractmethod
    def encode(self, x: Tensor, cond: Cond) -> Tensor:
        """The z (B, *shape) that stands for x: the mean of q, or what the flow makes of the mean."""

    def units(self, x: Tensor, cond: Cond) -> Tensor:
        """What each latent dimension stands at for x, (B, D): the mean of q, of all levels where there are several."""
        return self.encode(x, cond).flatten(1)

    @abstractmethod
    def prior(self, n: int, cond: Cond, noise: Noise, like: Tensor) -> Tensor:
        """A draw z (n, *shape) of p(z), of the device and dtype of `like`."""


class Diagonal(Posterior):
    """A Gaussian with independent coordinates.

    encoder: `encoder(x, cond)` -> (B, 2 d) or (B, 2 c, h, w): means, then log-variances. shape: of z, or d.
    """

    doubly = True

    def __init__(self, encoder: nn.Module, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.shape = encoder, shaped(shape)

    def infer(self, x: Tensor, cond: Cond, noise: Noise) -> tuple[Tensor, Tensor]:
        mean, log_var = halves(self.encoder(x, cond), self.shape)
        z = torch.addcmul(mean, (0.5 * log_var).exp(), normal(noise, mean))
        return z, standard_kl(mean, log_var).flatten(1)

    def weigh(self, x: Tensor, cond: Cond, noise: Noise, k: int, *, stopped: bool = False) -> tuple[Tensor, Tensor]:
        mean, log_var = halves(self.encoder(x, cond), self.shape)
        z = torch.addcmul(mean, (0.5 * log_var).exp(), normal(noise, mean, k))  # (k, B, *shape)
        if stopped:
            mean, log_var = mean.detach(), log_var.detach()
        z = z.flatten(0, 1)
        seen = z.view(k, *mean.shape)
        ratio = normal_log_prob(seen, 0.0, torch.zeros_like(log_var)) - normal_log_prob(seen, mean, log_var)
        return z, ratio.flatten(2).sum(2)

    def encode(self, x: Tensor, cond: Cond) -> Tensor:
        return halves(self.encoder(x, cond), self.shape)[0]

    def prior(self, n: int, cond: Cond, noise: Noise, like: Tensor) -> Tensor:
        return noise.normal(*self.shape, dtype=like.dtype).to(like.device)


@runtime_checkable
class Flow(Protocol):
    """What `Flowed` asks of a bijection: z' (N, d) and log |det ∂z'/∂z| (N,) of z (N, d), told cond["context"] too."""

    def __call__(self, z: Tensor, cond: Cond) -> tuple[Tensor, Tensor]: ...


class Flowed(Posterior):
    """A Gaussian pushed through a flow that is told of x: z need not be Gaussian given x, nor its parts independent.

    encoder: `encoder(x, cond)` -> (B, 2 size + context). flow: a bijection of (N, size), such as `flows.iaf`. size: of
    z. context: numbers that the encoder says to the flow as cond["context"]; with 0 the flow is the same for all x.
    """

    def __init__(self, encoder: nn.Module, flow: Flow, size: int, context: int = 0) -> None:
        super().__init__()
        self.encoder, self.flow, self.shape, self.context = encoder, flow, shaped(size), context

    def _start(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Cond]:
        h, size = self.encoder(x, cond), self.shape[0]
        if h.shape[1:] != (2 * size + self.context,):
            raise UserError(
                f"The encoder says {tuple(h.shape[1:])} a sample: means and log-variances of {size} coordinates and"
                f" {self.context} numbers for the flow are {2 * size + self.context}."
            )
        told = {**cond, "context": h[:, 2 * size :]} if self.context else cond
        h = single(h)
        return h[:, :size], h[:, size : 2 * size], told

    def infer(self, x: Tensor, cond: Cond, noise: Noise) -> tuple[Tensor, Tensor]:
        z, ratio = self.weigh(x, cond, noise, 1)
        return z, -ratio.T

    def weigh(self, x: Tensor, cond: Cond, noise: Noise, k: int, *, stopped: bool = False) -> tuple[Tensor, Tensor]:
        mean, log_var, told = self._start(x, cond)
        eps = normal(noise, mean, k)  # (k, B, d)
        z = torch.addcmul(mean, (0.5 * log_var).exp(), eps).flatten(0, 1)
        z, log_det = self.flow(z, repeated(told, k))
        ratio = 0.5 * (eps.square() + log_var).sum(2) - 0.5 * z.square().sum(1).view(k, -1) + log_det.view(k, -1)
        return z, ratio

    def encode(self, x: Tensor, cond: Cond) -> Tensor:
        mean, _, told = self._start(x, cond)
        return self.flow(mean, told)[0]

    def prior(self, n: int, cond: Cond, noise: Noise, like: Tensor) -> Tensor:
        return noise.normal(*self.shape, dtype=like.dtype).to(like.device)


# ---- parts ---------------------------------------------------------------------------------------------------------


def shaped(shape: int | Sequence[int]) -> tuple[int, ...]:
    """A latent's shape. Raises UserError where it holds nothing."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not shape or min(shape) < 1:
        raise UserError(f"A latent of shape {shape} holds nothing: give its size, such as 32, or its shape (4, 8, 8).")
    return shape


def halves(h: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Means and log-variances (B, *shape) from what an encoder says. Raises UserError where it says another number."""
    if h[:1].numel() not in (0, 2 * math.prod(shape)):
        raise UserError(
            f"The encoder says {h[0].numel()} numbers a sample, and a Gaussian of shape {shape} has"
            f" {2 * math.prod(shape)} (means, then log-variances): give its last layer that many outputs."
        )
    mean, log_var = single(h).flatten(1).chunk(2, 1)
    return mean.reshape(len(h), *shape), log_var.reshape(len(h), *shape)


def single(h: Tensor) -> Tensor:
    """What a net says, in single precision at least: exponentials and sums of bfloat16 are coarse."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


def repeated(cond: Cond, k: int) -> Cond:
    """The conditions of B samples for k draws of each: (B, …) -> (k B, …)."""
    return cond if k == 1 else {name: c.repeat(k, *(1,) * (c.ndim - 1)) for name, c in cond.items()}


def normal(noise: Noise, like: Float[Tensor, " b *shape"], k: int | None = None) -> Tensor:
    """Standard normal (B, *shape), or k for each sample: (k, B, *shape)."""
    if k is None:
        return noise.normal(*like.shape[1:], dtype=like.dtype).to(like.device)
    return noise.normal(k, *like.shape[1:], dtype=like.dtype).to(like.device).transpose(0, 1)
