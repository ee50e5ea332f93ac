r"""The variational autoencoder: a posterior, a decoder, what the decoder's output means, and an objective.

    z ~ q(z|x),    h = decoder(z, c),    p(x|z, c) = likelihood(x; h),    loss = −objective

    VAE, β-VAE, free bits     VAE(Diagonal(encoder, 32), decoder, Bernoulli((1, 28, 28)), ELBO(beta, free=…))
    conditional VAE           an encoder and a decoder that read `cond["label"]` (Sohn, Lee & Yan 2015)
    IWAE, InfoVAE             objective=IWAE(k), InfoVAE(alpha, scale)
    flow posterior            VAE(Flowed(encoder, flow, 32), …)
    hierarchy                 VAE(Ladder(…), …)

Source: Kingma & Welling 2014, "Auto-encoding variational Bayes", arXiv:1312.6114; Rezende, Mohamed & Wierstra 2014,
arXiv:1401.4082. The importance-sampled likelihood: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import learnable, one_for_each
from ..core import NONE, Batch, Infers, Loss, Model, Noise, size
from ..errors import UserError
from ..laws import normal_log_prob
from .bound import iwae
from .likelihood import Likelihood
from .objective import ELBO, Objective
from .posterior import Cond, Posterior, repeated

_ROWS = 2048  # of the decoder's batch in `importance`: no more memory, whatever k


class VAE(Model):
    """A latent-variable model of x (B, *likelihood.shape).

    posterior:  q(z|x) and the prior: `Diagonal`, `Flowed` or `Ladder`.
    decoder:    `decoder(z, cond)` -> what the likelihood reads, `likelihood.parts` numbers a coordinate.
    likelihood: of x given those.
    objective:  of training; evaluation is by the bound itself whatever it was.
    Raises UserError for data that the likelihood is no law of, and for a decoder or encoder of another size.
    """

    def __init__(
        self,
        posterior: Posterior,
        decoder: nn.Module,
        likelihood: Likelihood,
        objective: Objective = ELBO(),  # noqa: B008  (immutable)
    ) -> None:
        super().__init__()
        objective.check(posterior)
        self.posterior, self.decoder, self.law, self.objective = posterior, decoder, likelihood, objective
        self.shape, self.latent_shape, self.discrete = likelihood.shape, posterior.shape, likelihood.discrete
        self.lacks = () if posterior.standard else (Infers,)

    def start(self, batch: Batch) -> None:
        """Look at the first data: are they the likelihood's, and of the net's precision?"""
        self.law.check(batch["x"])
        learnable(batch["x"], self.shape, self.decoder)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The samples; a batch is never split where the objective mixes them."""
        return {} if self.objective.mixes else {"": float(size(batch))}

    def loss(self, batch: Batch) -> Loss:
        """The objective, nats a sample; logs the "elbo" of this batch and its "kl"."""
        x, cond = batch["x"], batch.get("cond") or NONE

        def log_px(z: Tensor) -> Tensor:
            return self._log_px(x, z, cond)

        return self.objective(self.posterior, log_px, x, cond, Noise(batch["key"]), self.step)

    def _log_px(self, x: Tensor, z: Tensor, cond: Cond) -> Tensor:
        """Of draws z (N, …), whose rows go through those of x (B, …) again and again, log p(x|z) (N,)."""
        return self.law.log_prob(x, self.decoder(z, repeated(cond, len(z) // max(1, len(x)))))

    def elbo(
        self, x: Float[Tensor, " b *shape"], cond: Cond | None = None, *, noise: Noise | None = None
    ) -> Float[Tensor, " b"]:
        """The evidence lower bound (B,) by one draw of the posterior, nats: a function of x alone unless `noise` is
        given. A log-probability of discrete data, else a log-density.
        """
        cond, noise = self._asked(x, cond, noise)
        z, kl = self.posterior.infer(x, cond, noise)
        return self._log_px(x, z, cond) - kl.sum(1)

    def importance(
        self, x: Float[Tensor, " b *shape"], cond: Cond | None = None, *, k: int = 1000, noise: Noise | None = None
    ) -> Float[Tensor, " b"]:
        """The bound of k importance samples (B,), nats, as `elbo`: rising with k towards log p(x).

        The samples go through the decoder some at a time, so that memory does not grow with k.
        """
        if k < 1:
            raise UserError(f"The likelihood of k={k} importance samples: give 1 or more, such as 1000.")
        cond, noise = self._asked(x, cond, noise)
        many = max(1, _ROWS // max(1, len(x)))
        bounds, parts = [], [min(many, k - done) for done in range(0, k, many)]
        for part in parts:
            z, ratio = self.posterior.weigh(x, cond, noise, part)
            bounds.append(iwae((self._log_px(x, z, cond).view(part, -1) + ratio).double()) + math.log(part))
        return torch.stack(bounds).logsumexp(0) - math.log(k)

    def infer(
        self, x: Float[Tensor, " b *shape"], cond: Cond | None = None, *, noise: Noise
    ) -> tuple[Tensor, Float[Tensor, " b"]]:
        """A draw z (B, *latent_shape) of q(z|x), and log q(z|x) (B,), nats. A ladder's lowest z has no such density."""
        cond, noise = self._asked(x, cond, noise)
        z, ratio = self.posterior.weigh(x, cond, noise, 1)  # log p(z) − log q(z|x), p the standard normal
        return z, normal_log_prob(z, 0.0, torch.zeros_like(z)).flatten(1).sum(1) - ratio[0]

    def log_likelihood(self, x: Float[Tensor, " b *shape"], z: Tensor, cond: Cond | None = None) -> Float[Tensor, " b"]:
        """log p(x|z) (B,), nats."""
        return self._log_px(x, z, cond or NONE)

    def likelihood(self, method: str) -> str:
        """How `elbo` or `importance` is computed, in a clause."""
        kind = type(self.posterior).__name__
        return f"{'one draw' if method == 'elbo' else 'draws'} of the {kind} posterior"

    def _asked(self, x: Tensor, cond: Cond | None, noise: Noise | None) -> tuple[Cond, Noise]:
        cond = cond or NONE
        self.law.check(x)
        one_for_each(len(x), cond, noise)
        return cond, Noise.of(x) if noise is None else noise

    def sample(
        self, n: int, cond: Cond | None = None, *, noise: Noise | None = None, mean: bool = False
    ) -> Float[Tensor, " n *shape"]:
        """Samples (n, *shape) of the model: z of the prior, x of the likelihood.

        mean: the likelihood's mean instead of a draw, which shows what the decoder knows (grey where it is unsure).
        noise: keyed noise of n samples; without it keys come from torch's default generator.
        """
        cond = cond or NONE
        one_for_each(n, cond, noise)
        like = next(self.decoder.parameters(), torch.empty(()))
        if noise is None:
            noise = Noise.fresh(n, like.device)
        h = self.decoder(self.posterior.prior(n, cond, noise, like), cond)
        return self.law.mean(h) if mean else self.law.sample(h, noise)

    def units(self, x: Float[Tensor, " b *shape"], cond: Cond | None = None) -> Float[Tensor, "b d"]:
        """Of every latent dimension, on all levels, the posterior's mean for x (B, D): see `hooks.ActiveUnits`."""
        return self.posterior.units(x, cond or NONE)

    def encode(self, x: Float[Tensor, " b *shape"], cond: Cond | None = None) -> Tensor:
        """The z (B, *latent_shape) that stands for x: the posterior's mean."""
        return self.posterior.encode(x, cond or NONE)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Float[Tensor, " b *shape"]:
        """The likelihood's mean (B, *shape) given z (B, *latent_shape), in the units of the data."""
        return self.law.mean(self.decoder(z, cond or NONE))
