r"""What a critic is made to read off x beside telling real from made: the label, or the code that x was made of.

    auxiliary classifier   critic: -E log C(y | x) - E log C(y | G(z, y))     generator: -E log C(y | G(z, y))
    latent codes           both:   -E log Q(c | G(z, c)),   and  I(c; G(z, c)) ≥ H(c) - E[-log Q(c | G(z, c))]

A categorical code is uniform on K classes and given as one-hot numbers; a continuous one is uniform on [-1, 1]^C, and
Q a normal law whose mean and log of the standard deviation the critic tells. Both are given beside z. Nats.

Odena, Olah & Shlens 2017, "Conditional image synthesis with auxiliary classifier GANs", arXiv:1610.09585; Chen et al.
2016, "InfoGAN", arXiv:1606.03657.
Departure: Q learns in the critic's turn, from the same made x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core import Noise
from ..errors import UserError
from ..spec import Remembers


class Reading(Remembers, ABC):
    """Base. inputs: numbers of the code that stand beside z. outputs: numbers that the critic tells. weight: of it."""

    name: ClassVar[str]
    inputs: int = 0
    outputs: int

    def __init__(self, weight: float) -> None:
        if weight < 0:
            raise UserError(f"The weight of {type(self).__name__} is {weight}: give 0 or more.")
        self.weight = weight

    @abstractmethod
    def code(self, noise: Noise, dtype: torch.dtype) -> Float[Tensor, "b {self.inputs}"]:
        """A code for each key."""

    @abstractmethod
    def of_made(self, said: Tensor, code: Tensor, cond: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        """What misreading made x costs, nats (B,). said: (B, outputs) of the critic."""

    def of_real(self, said: Tensor, cond: Mapping[str, Tensor]) -> Float[Tensor, " b"] | None:
        """The same of real x, whose code nobody knows: None."""
        return None

    def report(self, cost: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What the log has under `name` of the mean cost of made x."""
        return cost


class Auxiliary(Reading):
    """The class of x, as `cond["label"]` says. AC-GAN."""

    name = "auxiliary"

    def __init__(self, classes: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.outputs = classes

    def code(self, noise: Noise, dtype: torch.dtype) -> Float[Tensor, "b 0"]:
        return torch.empty(len(noise), 0, dtype=dtype, device=noise.key.device)

    def of_made(self, said: Tensor, code: Tensor, cond: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        if cond.get("label") is None:
            raise UserError('An Auxiliary reads classes, and this data has none: give a cond with "label" (B,).')
        cost = F.cross_entropy(said, cond["label"], reduction="none")
        return cost.masked_fill(cond["null"], 0.0) if "null" in cond else cost

    def of_real(self, said: Tensor, cond: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        return self.of_made(said, said, cond)


class Code(Reading):
    """Base of latent codes. entropy: H(c), nats. The log has the bound of the information that x holds of c."""

    entropy: float

    def report(self, cost: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The bound H(c) + E log Q(c | x) of the mutual information, nats."""
        return self.entropy - cost


class Categorical(Code):
    """A code of K classes of equal probability."""

    name = "information"

    def __init__(self, classes: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        if classes < 2:
            raise UserError(f"A categorical code of {classes} classes says nothing: give 2 or more.")
        self.inputs = self.outputs = classes
        self.entropy = math.log(classes)

    def code(self, noise: Noise, dtype: torch.dtype) -> Float[Tensor, "b k"]:
        return F.one_hot(noise.integers(self.inputs), self.inputs).to(dtype)

    def of_made(self, said: Tensor, code: Tensor, cond: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        return F.cross_entropy(said, code.argmax(1), reduction="none")


class Continuous(Code):
    """A code of C numbers, uniform on [-1, 1]."""

    name = "information_continuous"

    def __init__(self, dims: int, weight: float = 0.1) -> None:
        super().__init__(weight)
        if dims < 1:
            raise UserError(f"A continuous code of {dims} numbers is none: give 1 or more.")
        self.inputs, self.outputs = dims, 2 * dims
        self.entropy = dims * math.log(2)

    def code(self, noise: Noise, dtype: torch.dtype) -> Float[Tensor, "b c"]:
        return 2 * noise.uniform(self.inputs, dtype=dtype) - 1

    def of_made(self, said: Tensor, code: Tensor, cond: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        mean, log_std = said.chunk(2, 1)
        log_std = log_std.clamp(-5, 5)
        z = (code - mean) * (-log_std).exp()
        return (0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1)
