r"""A hierarchy of latents, inferred from above and from below: the ladder variational autoencoder.

    p(z) = N(z_L; 0, I) Π_{l<L} N(z_l; m_l(z_{l+1}), e^{v_l(z_{l+1})}),     x is decoded from z_1
    upwards    d_l = up_l(d_{l-1}), d_0 = x;     (m̂_l, v̂_l) linear in d_l
    downwards  q(z_L|x) = N(m̂_L, e^{v̂_L}),  and below it the product of the two Gaussians, each by its precision:
               e^{-v} = e^{-v̂_l} + e^{-v_l},     m = e^v (m̂_l e^{-v̂_l} + m_l e^{-v_l})

Sønderby, Raiko, Maaløe, Sønderby & Winther 2016, "Ladder variational autoencoders", arXiv:1602.02282. Their warm-up is
`ELBO(warmup=…)`. Departures: log-variances (paper: softplus); no batch normalisation, the nets bring their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Net, Noise
from ..errors import UserError
from ..laws import normal_kl, normal_log_prob
from ..nets.embed import dense
from .bound import standard_kl
from .posterior import Cond, Posterior, halves, normal, repeated, shaped, single


class Rung(Net):
    """One level z_l (B, size) of a ladder.

    up: `up(d, cond)` -> (B, width), of the level below (of x for the first). down: `down(z, cond)` -> (B, 2 size), of
    the level above: means, then log-variances; None for the top, whose prior is N(0, I).
    """

    def __init__(self, up: nn.Module, width: int, size: int, down: nn.Module | None = None) -> None:
        super().__init__()
        self.up, self.head, self.down, self.shape = up, dense(width, 2 * size), down, shaped(size)

    def below(self, z: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, size) of the prior of this level below z, a draw of the level above."""
        assert self.down is not None, "the top has nothing above it"
        return halves(self.down(z, cond), self.shape)


class Ladder(Posterior):
    """Rungs from the one nearest to x to the top. Raises UserError unless the top, and it alone, has no `down`."""

    standard = False

    def __init__(self, *rungs: Rung) -> None:
        super().__init__()
        if not rungs or rungs[-1].down is not None or any(r.down is None for r in rungs[:-1]):
            raise UserError(
                "A Ladder's rungs go from x upwards: each but the last has a `down` from the one above it, and the last"
                " has none."
            )
        self.rungs: Sequence[Rung] = nn.ModuleList(rungs)  # type: ignore[assignment]
        self.shape = rungs[0].shape

    def _upwards(self, x: Tensor, cond: Cond) -> list[tuple[Tensor, Tensor]]:
        """What x says of each level by itself: (m̂, v̂), the top first."""
        found = []
        d = x
        for rung in self.rungs:
            d = rung.up(d, cond)
            found.append(halves(rung.head(d), rung.shape))
        return found[::-1]

    def infer(self, x: Tensor, cond: Cond, noise: Noise) -> tuple[Tensor, Tensor]:
        """As of any posterior; the KL of each level is exact given the draw of the one above it."""
        z, parts = x, list[Tensor]()
        for rung, (mean, log_var) in zip(reversed(self.rungs), self._upwards(x, cond), strict=True):
            if not parts:
                parts.append(standard_kl(mean, log_var))
            else:
                mean_p, log_var_p = rung.below(z, cond)
                mean, log_var = product(mean, log_var, mean_p, log_var_p)
                parts.append(normal_kl(mean, log_var, mean_p, log_var_p))
            z = torch.addcmul(mean, (0.5 * log_var).exp(), normal(noise, mean))
        return z, torch.cat(parts, 1)

    def weigh(self, x: Tensor, cond: Cond, noise: Noise, k: int, *, stopped: bool = False) -> tuple[Tensor, Tensor]:
        z, many, ratio = x, repeated(cond, k), x.new_zeros(())
        for i, (rung, (mean, log_var)) in enumerate(zip(reversed(self.rungs), self._upwards(x, cond), strict=True)):
            eps = normal(noise, mean, k)  # (k, B, d)
            mean_p, log_var_p = torch.zeros_like(mean), torch.zeros_like(log_var)
            if i:
                mean_p, log_var_p = (t.view(eps.shape) for t in rung.below(z, many))
                mean, log_var = product(mean, log_var, mean_p, log_var_p)
            seen = torch.addcmul(mean, (0.5 * log_var).exp(), eps)
            log_q = normal_log_prob(seen, mean, log_var)
            ratio = ratio + (normal_log_prob(seen, mean_p, log_var_p) - log_q).sum(2)
            z = seen.flatten(0, 1)
        return z, ratio

    def encode(self, x: Tensor, cond: Cond) -> Tensor:
        return self._means(x, cond)[-1]

    def units(self, x: Tensor, cond: Cond) -> Tensor:
        """As of any posterior: those of the first rung, which the decoder reads, come first."""
        return torch.cat(self._means(x, cond)[::-1], 1)

    def _means(self, x: Tensor, cond: Cond) -> list[Tensor]:
        """The mean of each level given that of the one above it, the top first."""
        means: list[Tensor] = []
        for rung, (mean, log_var) in zip(reversed(self.rungs), self._upwards(x, cond), strict=True):
            means.append(product(mean, log_var, *rung.below(means[-1], cond))[0] if means else mean)
        return means

    def prior(self, n: int, cond: Cond, noise: Noise, like: Tensor) -> Tensor:
        top, *below = reversed(self.rungs)
        z = noise.normal(*top.shape, dtype=like.dtype).to(like.device)
        for rung in below:
            mean, log_var = rung.below(z, cond)
            z = torch.addcmul(mean, (0.5 * log_var).exp(), normal(noise, mean))
        return single(z)


def product(mean: Tensor, log_var: Tensor, mean_p: Tensor, log_var_p: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the Gaussian that is the product of two, a coordinate at a time."""
    apart = log_var_p - log_var
    share = apart.sigmoid()  # of the first's precision in the sum
    return torch.lerp(mean_p.expand_as(share), mean.expand_as(share), share), log_var + F.logsigmoid(apart)
