r"""What a VAE is trained by: the bound itself, or something made of its terms (`bound.py` has the formulas).

    ELBO      log p(x|z) − β w_t KL,   w_t the warm-up, and free bits where they are asked for (β-VAE: Higgins et al.
              2017; warm-up: Bowman et al. 2016, arXiv:1511.06349, Sønderby et al. 2016, arXiv:1602.02282)
    IWAE      L_k, with doubly reparameterised gradients unless told otherwise
    InfoVAE   log p(x|z) − (1 − α) KL − (α + λ − 1) MMD²(q(z), p(z))    (Zhao, Song & Ermon 2019, arXiv:1706.02262);
              α = 1 is their MMD-VAE, α = 0 and λ = 1 the ELBO

An objective is called with the model's posterior, `log_px(z)` (N,) of draws z (N, …) for this batch, and the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from ..core import Loss, Noise, everyone
from ..errors import UserError
from ..spec import Remembers
from .bound import dreg, free_bits, iwae, mmd, rising
from .posterior import Cond, Posterior

LogPx = Callable[[Tensor], Tensor]


class Objective(Remembers, ABC):
    """What is minimised, in nats a sample. mixes: whether a sample's share depends on the rest of its batch."""

    mixes: bool = False

    @abstractmethod
    def __call__(self, posterior: Posterior, log_px: LogPx, x: Tensor, cond: Cond, noise: Noise, step: int) -> Loss:
        """The loss of a batch x (B, …); logs the "elbo", and the "kl" where there is one."""

    def check(self, posterior: Posterior) -> None:
        """Raise UserError where this posterior cannot be trained so."""


class ELBO(Objective):
    """The evidence lower bound.

    beta: factor on the KL. warmup: steps over which that factor rises from 0. free: nats that each dimension may say of
    x for nothing.
    """

    def __init__(self, beta: float = 1.0, *, warmup: int = 0, free: float = 0.0) -> None:
        if beta < 0 or warmup < 0 or free < 0:
            raise UserError(f"ELBO(beta={beta}, warmup={warmup}, free={free}): none of them can be below 0.")
        self.beta, self.warmup, self.free, self.mixes = beta, warmup, free, free > 0

    def __call__(self, posterior: Posterior, log_px: LogPx, x: Tensor, cond: Cond, noise: Noise, step: int) -> Loss:
        z, kl = posterior.infer(x, cond, noise)
        said, rate = log_px(z).mean(), kl.sum(1).mean()
        counted = free_bits(everyone.mean(kl), self.free) if self.free else rate
        factor = self.beta * rising(step, self.warmup)
        return Loss(factor * counted - said, {"elbo": (said - rate).detach(), "kl": rate.detach()})


class IWAE(Objective):
    """The bound of k importance samples.

    doubly: with DReG's gradient for the encoder, whose signal does not fade as k grows; the plain one where it is False
    (a flow or a hierarchy has that alone).
    """

    def __init__(self, k: int = 5, *, doubly: bool = True) -> None:
        if k < 1:
            raise UserError(f"IWAE has k={k} samples: give 1 or more.")
        self.k, self.doubly = k, doubly

    def check(self, posterior: Posterior) -> None:
        if self.doubly and not posterior.doubly:
            raise UserError(
                f"The density of a {type(posterior).__name__} posterior cannot be had with its parameters stopped, as"
                " doubly reparameterised gradients want it: take IWAE(doubly=False)."
            )

    def __call__(self, posterior: Posterior, log_px: LogPx, x: Tensor, cond: Cond, noise: Noise, step: int) -> Loss:
        z, ratio = posterior.weigh(x, cond, noise, self.k, stopped=self.doubly)
        log_w = log_px(z).view(self.k, -1) + ratio
        bound = dreg(log_w, z) if self.doubly else iwae(log_w)
        return Loss(-bound.mean(), {"elbo": log_w.detach().mean()})


class InfoVAE(Objective):
    """The KL of each posterior traded for a distance of all of them together from the prior.

    alpha, scale: α and λ. bandwidth: of the RBF kernel; None is √d, of the order of the prior's own distances.
    """

    mixes: ClassVar[bool] = True  # type: ignore[misc]

    def __init__(self, alpha: float = 0.0, scale: float = 10.0, bandwidth: float | None = None) -> None:
        if alpha + scale < 1 or (bandwidth is not None and bandwidth <= 0):
            raise UserError(
                f"InfoVAE(alpha={alpha}, scale={scale}, bandwidth={bandwidth}): alpha + scale is at least 1, and the"
                " bandwidth above 0."
            )
        self.alpha, self.scale, self.bandwidth = alpha, scale, bandwidth

    def __call__(self, posterior: Posterior, log_px: LogPx, x: Tensor, cond: Cond, noise: Noise, step: int) -> Loss:
        z, kl = posterior.infer(x, cond, noise)
        said, rate = log_px(z).mean(), kl.sum(1).mean()
        drawn = everyone.gather(posterior.prior(len(z), cond, noise, z).flatten(1))
        aggregate = everyone.gather(z.flatten(1))
        apart = mmd(aggregate, drawn, aggregate.shape[1] ** 0.5 if self.bandwidth is None else self.bandwidth)
        value = (1 - self.alpha) * rate + (self.alpha + self.scale - 1) * apart - said
        return Loss(value, {"elbo": (said - rate).detach(), "kl": rate.detach(), "mmd": apart.detach()})
