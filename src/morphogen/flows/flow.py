"""Normalizing flows: one model over any bijection.

    z = f(x),    log p(x) = log N(f(x); 0, I) + log |det f'(x)|,    x = f^-1(z) with z ~ N(0, I)

Rezende & Mohamed 2015, "Variational inference with normalizing flows", arXiv:1505.05770; Papamakarios et al. 2021,
"Normalizing flows for probabilistic modeling and inference", arXiv:1912.02762.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import learnable, one_for_each
from ..core import NONE, Batch, Loss, Model, Noise
from ..errors import UserError
from ..nets.embed import drop as drop_conditions
from .bijection import Bijection, Cond


class Flow(Model):
    """A density that is exact, and samples in one go.

    bijection:    from data to noise.
    shape:        of one sample of the data.
    latent_shape: of one sample of the noise, where that is another shape of as many numbers.
    drop:         probability of dropping a training sample's conditions, where `sample` and `log_prob` shall know the
                  density without them.
    Raises UserError in `loss` and `log_prob` for data of another shape.
    """

    def __init__(
        self,
        bijection: Bijection,
        shape: tuple[int, ...],
        latent_shape: tuple[int, ...] | None = None,
        *,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.bijection, self.shape, self.drop = bijection, tuple(shape), drop
        self.latent_shape = self.shape if latent_shape is None else tuple(latent_shape)

    def loss(self, batch: Batch) -> Loss:
        """Mean of −log p(x), nats a sample; `seen["nll"]` (B,) is each sample's."""
        x, cond = batch["x"], batch.get("cond") or NONE
        learnable(x, self.shape, self.bijection)
        nll = -self.log_prob(x, drop_conditions(cond, self.drop, Noise(batch["key"])) if cond else cond)
        return Loss(nll.mean(), seen={"nll": nll.detach()})

    def log_prob(self, x: Float[Tensor, " b *shape"], cond: Cond | None = None) -> Float[Tensor, " b"]:
        """The exact log-density (B,), nats."""
        cond = cond or NONE
        if x.shape[1:] != self.shape:
            raise UserError(f"x is {tuple(x.shape[1:])} a sample, and this flow is over floats of shape {self.shape}.")
        one_for_each(len(x), cond, None)
        z, logdet = self.transform(x, cond)
        z = z.flatten(1)
        logp: Tensor = logdet - 0.5 * z.square().sum(1) - 0.5 * math.log(2 * math.pi) * z.shape[1]
        return logp

    def sample(self, n: int, cond: Cond | None = None, *, noise: Noise | None = None) -> Tensor:
        """Samples (n, *shape), differentiable in weights and conditions.

        cond: conditions (n, ...), such as {"label": (n,)}. noise: keyed noise of n samples; without it keys come from
        torch's default generator.
        """
        cond = cond or NONE
        one_for_each(n, cond, noise)
        like = next(self.bijection.parameters(), torch.empty(()))
        if noise is None:
            noise = Noise.fresh(n, like.device)
        return self.decode(noise.normal(*self.latent_shape, dtype=like.dtype).to(like.device), cond)

    def transform(
        self, x: Float[Tensor, " b *shape"], cond: Cond | None = None
    ) -> tuple[Float[Tensor, " b *latent"], Float[Tensor, " b"]]:
        """The noise z of data x, and log |det dz/dx| (B,)."""
        mapped: tuple[Tensor, Tensor] = self.bijection(x, cond or NONE)
        return mapped

    def encode(self, x: Float[Tensor, " b *shape"], cond: Cond | None = None) -> Float[Tensor, " b *latent"]:
        """The noise z of data x."""
        return self.transform(x, cond)[0]

    def decode(self, z: Float[Tensor, " b *latent"], cond: Cond | None = None) -> Float[Tensor, " b *shape"]:
        """The data x of noise z."""
        return self.bijection.inverse(z, cond or NONE)[0]
