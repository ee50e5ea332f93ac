r"""The autoencoder: x to a code z and back, plain or with something that keeps it from learning the identity.

    loss = −log p(x | decoder(encoder(x̃))) + Σ penalties(z, x)

    plain        x̃ = x; with a Gaussian likelihood of std 1 the loss is ½ |x − x̂|² and a constant
    denoising    x̃ = corrupt(x), the clean x to be told         (Vincent, Larochelle, Bengio & Manzagol 2008)
    sparse       L1: λ Σ_j |z_j|;  Sparsity: λ Σ_j KL(ρ ‖ mean over the batch of sigmoid(z_j))          (Ng 2011)
    contractive  λ |∂z/∂x|_F²                                    (Rifai, Vincent, Muller, Glorot & Bengio 2011)

Linear, with squared error, it finds the subspace of the principal components (Baldi & Hornik 1989). With Gaussian
corruption of variance σ² the best decoding is the mean of x given x̃ (Alain & Bengio 2014, arXiv:1211.4246).
Departure from Rifai et al.: for encoders of any depth, by automatic differentiation (paper: one layer, in closed form).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import learnable
from ..core import NONE, Batch, Loss, Model, Noise, everyone, size
from ..errors import UserError
from ..spec import Remembers
from .likelihood import Likelihood
from .posterior import Cond, shaped

Encode = Callable[[Tensor], Tensor]  # x (B, …) to its code (B, *latent_shape)


class Penalty(Remembers, ABC):
    """What is added to the reconstruction's loss, nats a sample. mixes: whether it is of the batch as a whole."""

    name: ClassVar[str]
    mixes: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        if weight < 0:
            raise UserError(f"The weight of {type(self).__name__} is {weight}: give 0 or more.")
        self.weight = weight

    @abstractmethod
    def __call__(self, z: Tensor, encode: Encode, x: Tensor) -> Tensor:
        """The penalty of a batch, a mean over samples, without its weight. z (B, …) is encode(x)."""


class L1(Penalty):
    """Sum over the code of |z_j|: most of it goes to zero."""

    name = "l1"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def __call__(self, z: Tensor, encode: Encode, x: Tensor) -> Tensor:
        return z.abs().flatten(1).sum(1).mean()


class Sparsity(Penalty):
    """KL of a unit that is on `target` of the time from one that is on as often as sigmoid(z_j) in this batch."""

    name = "sparsity"
    mixes = True

    def __init__(self, weight: float = 1.0, target: float = 0.05) -> None:
        super().__init__(weight)
        if not 0 < target < 1:
            raise UserError(f"Sparsity's target is the share of the time that a unit is on, not {target}: 0 to 1.")
        self.target = target

    def __call__(self, z: Tensor, encode: Encode, x: Tensor) -> Tensor:
        on = everyone.mean(z.flatten(1).sigmoid().mean(0)).clamp(1e-6, 1 - 1e-6)  # (d,)
        p = self.target
        return (p * (p / on).log() + (1 - p) * ((1 - p) / (1 - on)).log()).sum()


class Contractive(Penalty):
    """The square of the Jacobian's norm |∂z/∂x|_F², by one backward pass for each number of the code."""

    name = "contraction"

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def __call__(self, z: Tensor, encode: Encode, x: Tensor) -> Tensor:
        return jacobian_square(encode, x).mean()


def jacobian_square(f: Encode, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
    """|∂f/∂x|_F² of each row (B,), differentiable; row i of f may depend on row i of x alone."""
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        z = f(x).flatten(1)
        total = x.new_zeros(len(x))
        for unit in z.unbind(1):
            (g,) = torch.autograd.grad(unit.sum(), x, create_graph=outer, retain_graph=True)
            total = total + g.flatten(1).square().sum(1)
    return total


class Autoencoder(Model):
    """A code of x (B, *likelihood.shape) and the way back; a `Codec`.

    encoder:    `encoder(x, cond)` -> the code (B, *shape), or as many numbers. decoder: `decoder(z, cond)` -> what the
                likelihood reads. shape: of the code, or its size.
    corrupt:    what is done to the input in training, in order, by keyed noise; the loss is of the clean x.
    penalties:  further terms of the loss, each logged by its name.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        shape: int | Sequence[int],
        *,
        corrupt: tuple[Callable[[Tensor, Noise], Tensor], ...] = (),
        penalties: tuple[Penalty, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.law, self.latent_shape = encoder, decoder, likelihood, shaped(shape)
        self.corrupt, self.penalties, self.shape = tuple(corrupt), tuple(penalties), likelihood.shape

    def start(self, batch: Batch) -> None:
        """Look at the first data: are they the likelihood's, and of the net's precision?"""
        self.law.check(batch["x"])
        learnable(batch["x"], self.shape, self.decoder)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The samples; a batch is never split where a penalty is of it as a whole."""
        return {} if any(p.mixes for p in self.penalties) else {"": float(size(batch))}

    def loss(self, batch: Batch) -> Loss:
        """Reconstruction and penalties, nats a sample; logs "reconstruction" and each penalty."""
        x, cond, noise = batch["x"], batch.get("cond") or NONE, Noise(batch["key"])
        seen = x
        for change in self.corrupt:
            seen = change(seen, noise)
        z = self.encode(seen, cond)
        value = -self.law.log_prob(x, self.decoder(z, cond)).mean()
        logs = {"reconstruction": value.detach()}
        for penalty in self.penalties:
            term = penalty(z, lambda x: self.encode(x, cond), seen)
            logs[penalty.name] = term.detach()
            value = value + penalty.weight * term
        return Loss(value, logs)

    def encode(self, x: Float[Tensor, " b *shape"], cond: Cond | None = None) -> Tensor:
        """The code (B, *latent_shape) of x."""
        z: Tensor = self.encoder(x, cond or NONE)
        return z.reshape(len(z), *self.latent_shape)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Float[Tensor, " b *shape"]:
        """The likelihood's mean (B, *shape) given a code z (B, *latent_shape), in the units of the data."""
        return self.law.mean(self.decoder(z, cond or NONE))
