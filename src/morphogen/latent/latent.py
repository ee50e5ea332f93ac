"""Any prior in any codec's space.

    z = encode(x),  z' = (z − m) / s,   loss = the prior's, of z'         m a number for each channel, s one for all
    x = decode(m + s z'),  z' drawn from the prior

Latent diffusion and flow matching, a transformer over a code book's integers, a normalizing flow in a VAE's space: each
is a codec, frozen, and a prior. m and s are those of the first batch; integers stay as they are. Where z has a law
q(z|x) the prior learns from its draws, which is to raise the bound

    log p(x) ≥ E_q [log p(x|z) − log q(z|x) + log prior(z)]

and where the codec is invertible, log p(x) = log prior(f(x)) + log |det f'(x)| is exact.

Rombach, Blattmann, Lorenz, Esser & Ommer 2022, "High-resolution image synthesis with latent diffusion models",
arXiv:2112.10752; van den Oord, Vinyals & Kavukcuoglu 2017, "Neural discrete representation learning", arXiv:1711.00937.
Departures: latent diffusion has m = 0, and draws z of its KL autoencoder (here: its mean, as it says no p(x|z)).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    NONE,
    Batch,
    Bounds,
    Codec,
    Infers,
    Invertible,
    LogProb,
    Loss,
    Model,
    Noise,
    Phase,
    Samples,
    can,
    keys,
)
from ..errors import UserError

Cond = Mapping[str, Tensor]
_DRAW = 0x1A7E  # sets the noise of a latent's draw apart from the prior's own


class Latent(Model):
    """A generator of x: `prior` in the space of `codec`.

    codec: encodes x to z of `codec.latent_shape` and back; of a discrete one z are integers below `codec.codes`. It is
        frozen here: `frozen(RUN)` gives the one of a finished run.
    prior: a model of z, with one loss. `sample` has its options, conditions are told to it (and to a codec that reads
        them), and what it lacks, this lacks.
    Batches hold x, or, from `Encoded`, `latent` (B, K, *latent_shape), K draws of which each step takes one.
    Raises UserError where the prior is of another shape or alphabet than the codec's latents, or has several losses.
    """

    codec: Any
    prior: Any
    mean: Tensor  # (C, 1, ..), of the first batch's latents
    std: Tensor  # (), of all their numbers

    def __init__(self, codec: Model, prior: Model) -> None:
        super().__init__()
        _fitting(codec, prior)
        self.codec, self.prior = codec.requires_grad_(False).eval(), prior
        self.latent_shape: tuple[int, ...] = tuple(self.codec.latent_shape)
        self.discrete_latents = getattr(codec, "codes", None) is not None
        self.discrete = codec.discrete
        self._told = ["cond" in inspect.signature(f).parameters for f in (self.codec.encode, self.codec.decode)]
        self.register_buffer("mean", torch.zeros(self.latent_shape[0], *(1,) * (len(self.latent_shape) - 1)))
        self.register_buffer("std", torch.ones(()))
        density = can(prior, LogProb)
        exact = can(codec, Invertible) and density and not self.discrete_latents
        bound = (can(codec, Invertible) or can(codec, Infers)) and (density or can(prior, Bounds))
        lacks = {Samples: not can(prior, Samples), LogProb: not exact, Bounds: exact or not bound}
        self.lacks = tuple(protocol for protocol, lacking in lacks.items() if lacking)

    def train(self, mode: bool = True) -> Latent:
        """Training mode for the prior; the codec stays as it is."""
        super().train(mode)
        self.codec.eval()
        return self

    # ---- training

    def start(self, batch: Batch) -> None:
        """Take mean and deviation of the first batch's latents, and let the prior start from them."""
        z = self._drawn(batch)
        if not self.discrete_latents:
            others = [i for i in range(z.ndim) if i != 1]
            mean = z.mean(others, keepdim=True)
            self.mean.copy_(mean[0])
            self.std.copy_((z - mean).square().mean().sqrt().clamp(min=1e-8))
        self.prior.start({**batch, "x": self._standard(z)})

    def loss(self, batch: Batch) -> Loss:
        """The prior's loss of the batch's latents."""
        self.prior.step = self.step
        said: Loss = self.prior.loss({**batch, "x": self._standard(self._drawn(batch))})
        return said

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """What the prior does after a step."""
        self.prior.after_step(phase, seen)

    def _drawn(self, batch: Batch) -> Tensor:
        """The latents (B, *latent_shape) of a batch: one of those that it holds, or of its x."""
        drawn: Tensor
        if "latent" in batch:
            z = batch["latent"]
            if z.shape[2:] != self.latent_shape:
                raise UserError(
                    f"The batch's latents are {tuple(z.shape[2:])} a draw and this codec's {self.latent_shape}: make"
                    " them with this codec, as Encoded(items, codec)."
                )
            which = Noise(keys(batch["key"], _DRAW)).integers(z.shape[1]) if z.shape[1] > 1 else 0
            drawn = z[torch.arange(len(z), device=z.device), which]
            return drawn
        x, cond = batch["x"], batch.get("cond") or NONE
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # as Encoded does, whatever is trained
            if can(self.codec, Infers):
                drawn, _ = self.codec.infer(x, cond, noise=Noise(keys(batch["key"], _DRAW)))
                return drawn
            return self.encode(x, cond)

    def _standard(self, z: Tensor) -> Tensor:
        return z.long() if self.discrete_latents else (z - self.mean) / self.std

    # ---- sampling

    @property
    def sample(self) -> Callable[..., Tensor]:
        """`sample(n, cond, *, noise, …)`: samples (n, ...), with the options of the prior's own `sample`."""
        of_prior: Callable[..., Tensor] = self.prior.sample

        @functools.wraps(of_prior)
        def sample(n: int, cond: Cond | None = None, *, noise: Noise | None = None, **options: Any) -> Tensor:
            z = of_prior(n, cond, noise=noise, **options)
            return self.decode(z if self.discrete_latents else self.mean + self.std * z, cond)

        return sample

    def encode(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """The codec's latents of x."""
        z: Tensor = self.codec.encode(x, *[cond] * self._told[0])
        return z

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The codec's x of latents."""
        x: Tensor = self.codec.decode(z, *[cond] * self._told[1])
        return x

    # ---- likelihoods

    def log_prob(self, x: Tensor, cond: Cond | None = None) -> Float[Tensor, " b"]:
        """The exact log-density (B,), nats, where the codec is invertible and the prior has a density."""
        z, logdet = self.codec.transform(x, cond)
        logp: Tensor = self._log_prior(z, cond) + logdet
        return logp

    def elbo(self, x: Tensor, cond: Cond | None = None, *, noise: Noise | None = None) -> Float[Tensor, " b"]:
        """A lower bound of the log-density (B,), nats, by one draw of the posterior: a function of x alone unless
        `noise` is given.
        """
        if can(self.codec, Infers):
            z, log_q = self.codec.infer(x, cond, noise=Noise.of(x) if noise is None else noise)
            known = self.codec.log_likelihood(x, z, cond) - log_q
        else:
            z, known = self.codec.transform(x, cond)
        bound: Tensor = known + self._log_prior(z, cond)
        return bound

    def _log_prior(self, z: Tensor, cond: Cond | None) -> Tensor:
        """The prior's log-density (or its bound of it) at z, before it was standardised."""
        says = self.prior.log_prob if can(self.prior, LogProb) else self.prior.elbo
        logp: Tensor = says(self._standard(z), cond)
        return logp if self.discrete_latents else logp - math.prod(self.latent_shape) * self.std.log()

    def likelihood(self, method: str) -> str:
        """How `log_prob` or `elbo` is computed, in a clause."""
        of = "log_prob" if can(self.prior, LogProb) else "elbo"
        way = "one draw of the codec's posterior" if can(self.codec, Infers) else "an invertible codec"
        said = getattr(self.prior, "likelihood", None)
        own = f" ({said(of)})" if callable(said) else ""
        return f"{way}, and the {of} of a {type(self.prior).__name__}{own}"


def _fitting(codec: Model, prior: Model) -> None:
    """Raise UserError where the prior is none of the codec's latents."""
    name, shape = type(codec).__name__, getattr(codec, "latent_shape", None)
    if not can(codec, Codec) or shape is None:
        raise UserError(f"A {name} is no codec: give a model with encode, decode and latent_shape, such as a VAE.")
    if [p.loss.__name__ if isinstance(p, Phase) else "" for p in prior.phases()] != ["loss"]:
        raise UserError(f"A {type(prior).__name__} is trained in several turns: give a prior with one loss.")
    own = getattr(prior, "shape", shape)
    if tuple(own) != tuple(shape):
        raise UserError(
            f"The prior is over {tuple(own)} a sample and the latents of this {name} are {tuple(shape)}: build it for"
            " codec.latent_shape."
        )
    codes, alphabet = getattr(codec, "codes", None), getattr(prior, "codes", None)
    if (codes is None) != (alphabet is None):
        kind = "integers" if alphabet is None else "real numbers"
        raise UserError(
            f"The latents of this {name} are {kind}, and the prior is of others: give an Autoregressive for integers, a"
            " diffusion or flow for real numbers."
        )
    if codes is not None and codes != alphabet:
        raise UserError(f"The {name} has {codes} codes and the prior {alphabet}: build it for codec.codes.")
