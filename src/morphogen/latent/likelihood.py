r"""What a decoder's output means: the law p(x | h) of data x given the numbers h that a net says of it.

    Gaussian              N(x; h, σ²),  σ one number, given or learned (Rybkin et al. 2021, arXiv:2006.13202)
    Heteroscedastic       N(x; h_1, e^{h_2}), a variance of its own for each coordinate (Kingma & Welling 2014)
    Bernoulli             two values, the upper one with probability sigmoid(h)
    DiscretisedLogistic   the mass of a logistic law of centre h_1 and scale e^{h_2} in the cell of each level, the
                          outer cells open (Kingma et al. 2016, arXiv:1606.04934, eq. 15): with u and l the cell's ends
                          less the centre, in units of the scale,  σ(u) − σ(l) = σ(u) σ(−l) (1 − e^{l − u})
    Categorical           any law over the levels, K numbers h a coordinate

Coordinates are independent given h. `discrete` laws give probabilities of the levels, the others densities.
Departure from Kingma et al. 2016: data are in [low, high], by default [-1, 1] with the levels at both ends (there in
[-1/2, 1/2]), and a scale is at least e^floor.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net, Noise
from ..errors import UserError
from ..laws import log1mexp, normal_log_prob


class Likelihood(Net):
    """p(x | h) of x (B, *shape) given h of `parts` numbers a coordinate: (N, parts * shape[0], *shape[1:]), or any
    other shape of as many numbers, N a multiple of B whose rows go through the rows of x again and again.

    Raises UserError for h of another size.
    """

    discrete: bool = False
    parts: int = 1

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        if not self.shape or min(self.shape) < 1:
            raise UserError(
                f"A likelihood of data of shape {self.shape}: give that of one sample, such as (1, 28, 28)."
            )

    def log_prob(self, x: Float[Tensor, " b *shape"], h: Float[Tensor, " n *_"]) -> Float[Tensor, " n"]:
        """Log-density or log-probability (N,) of x, nats."""
        k = len(h) // max(1, len(x))
        told = self._parted(h)  # each (N, *shape)
        if k > 1:
            x = x.expand(k, *x.shape)
            told = tuple(t.reshape(k, -1, *t.shape[1:]) for t in told)
        return self._log_prob(x, *told).flatten()

    def mean(self, h: Float[Tensor, " n *_"]) -> Float[Tensor, " n *_"]:
        """The law's mean (N, *shape), in the units of the data."""
        return self._mean(*self._parted(h))

    def sample(self, h: Float[Tensor, " n *_"], noise: Noise) -> Float[Tensor, " n *_"]:
        """A draw (N, *shape) of the law."""
        return self._sample(noise, *self._parted(h))

    def check(self, x: Tensor) -> None:
        """Raise UserError where x are no data of this law. Reads all of x: for the first batch, and for evaluation."""
        if x.shape[1:] != self.shape:
            raise UserError(
                f"x is {tuple(x.shape[1:])} a sample and this model's likelihood is of {self.shape}: build it for that"
                " shape."
            )

    def _parted(self, h: Tensor) -> tuple[Tensor, ...]:
        if h[:1].numel() not in (0, self.parts * math.prod(self.shape)):
            raise UserError(
                f"The decoder says {h[0].numel()} numbers a sample, and {type(self).__name__} of {self.shape} reads"
                f" {self.parts * math.prod(self.shape)}: give its last layer that many outputs."
            )
        h = h.to(torch.promote_types(h.dtype, torch.float32))  # sums of bfloat16 over a picture are coarse
        if self.parts == 1:
            return (h.reshape(len(h), *self.shape),)
        return h.reshape(len(h), self.parts, *self.shape).unbind(1)

    def _sum(self, each: Tensor) -> Tensor:
        """The sum (…) over the coordinates (…, *shape)."""
        return each.flatten(-len(self.shape)).sum(-1)

    @abstractmethod
    def _log_prob(self, x: Tensor, *told: Tensor) -> Tensor:
        """Log-density (…) of x (…, *shape)."""

    @abstractmethod
    def _mean(self, *told: Tensor) -> Tensor: ...

    @abstractmethod
    def _sample(self, noise: Noise, *told: Tensor) -> Tensor: ...


class Gaussian(Likelihood):
    """N(h, std²). learned: std is where it starts, one number that is trained with the net."""

    def __init__(self, shape: Sequence[int], std: float = 1.0, *, learned: bool = False) -> None:
        super().__init__(shape)
        if not 0 < std < math.inf:
            raise UserError(f"A Gaussian likelihood of standard deviation {std}: give a number above 0.")
        log_var = torch.tensor(2 * math.log(std))
        self.log_var: Tensor
        if learned:
            self.log_var = nn.Parameter(log_var)
        else:
            self.register_buffer("log_var", log_var, persistent=False)

    def _log_prob(self, x: Tensor, *told: Tensor) -> Tensor:
        return self._sum(normal_log_prob(x, told[0], self.log_var))

    def _mean(self, *told: Tensor) -> Tensor:
        return told[0]

    def _sample(self, noise: Noise, *told: Tensor) -> Tensor:
        return told[0] + (0.5 * self.log_var).exp() * _normal(noise, told[0])


class Heteroscedastic(Likelihood):
    """N(h_1, e^{h_2}), the log-variance at least `floor`: without one the density of flat data has no upper end."""

    parts = 2

    def __init__(self, shape: Sequence[int], floor: float = -10.0) -> None:
        super().__init__(shape)
        self.floor = floor

    def _log_prob(self, x: Tensor, *told: Tensor) -> Tensor:
        return self._sum(normal_log_prob(x, told[0], told[1].clamp(min=self.floor)))

    def _mean(self, *told: Tensor) -> Tensor:
        return told[0]

    def _sample(self, noise: Noise, *told: Tensor) -> Tensor:
        return told[0] + (0.5 * told[1].clamp(min=self.floor)).exp() * _normal(noise, told[0])


class Leveled(Likelihood):
    """Base of the laws over `levels` values, equally far apart from `low` to `high`."""

    discrete = True

    def __init__(self, shape: Sequence[int], levels: int, low: float, high: float) -> None:
        super().__init__(shape)
        if levels < 2 or not low < high:
            raise UserError(
                f"A likelihood of {levels} levels from {low:g} to {high:g}: give 2 or more levels, and low < high."
            )
        self.levels, self.low, self.high = levels, low, high
        self.cell = (high - low) / (levels - 1)

    def index(self, x: Tensor) -> Tensor:
        """Of each x the nearest level's number, from 0, as floats."""
        return ((x - self.low) / self.cell).round().clamp(0, self.levels - 1)

    def check(self, x: Tensor) -> None:
        super().check(x)
        away = (self.index(x) * self.cell + self.low - x).abs()
        if x.numel() and float(away.max()) > 0.01 * self.cell:
            raise UserError(
                f"x holds {float(x.flatten()[away.argmax()]):g}, which is none of the {self.levels} values from"
                f" {self.low:g} to {self.high:g} that {type(self).__name__} is a law of"
                + (": binarise the pixels (data.augment.Binarise)." if self.levels == 2 else ": scale x, or round it.")
            )


class Bernoulli(Leveled):
    """Two values, the `high` one with probability sigmoid(h). Between them the log-probability is linear in x: its mean
    over random rounding to them.
    """

    def __init__(self, shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(shape, 2, low, high)

    def _log_prob(self, x: Tensor, *told: Tensor) -> Tensor:
        on = x if (self.low, self.high) == (0.0, 1.0) else (x - self.low).div_(self.cell)
        return -self._sum(F.binary_cross_entropy_with_logits(told[0], on.expand_as(told[0]), reduction="none"))

    def _mean(self, *told: Tensor) -> Tensor:
        return told[0].sigmoid() * self.cell + self.low

    def _sample(self, noise: Noise, *told: Tensor) -> Tensor:
        on = noise.uniform(*self.shape, dtype=told[0].dtype).to(told[0].device) < told[0].sigmoid()
        return on.to(told[0].dtype) * self.cell + self.low


class DiscretisedLogistic(Leveled):
    """A logistic law of centre h_1 and log-scale h_2 (at least `floor`), its mass gathered at the levels."""

    parts = 2

    def __init__(
        self, shape: Sequence[int], levels: int = 256, low: float = -1.0, high: float = 1.0, floor: float = -7.0
    ) -> None:
        super().__init__(shape, levels, low, high)
        self.floor = floor

    def _log_prob(self, x: Tensor, *told: Tensor) -> Tensor:
        level = self.index(x)
        centre, width = told[0], (-told[1].clamp(min=self.floor)).exp()
        away = level * self.cell + self.low - centre
        above, below = (away + 0.5 * self.cell) * width, (away - 0.5 * self.cell) * width
        first, last = level == 0, level == self.levels - 1
        upper = F.logsigmoid(above).masked_fill(last, 0.0)
        lower = F.logsigmoid(-below).masked_fill(first, 0.0)
        return self._sum(upper + lower + log1mexp(-self.cell * width).masked_fill(first | last, 0.0))

    def _mean(self, *told: Tensor) -> Tensor:
        """The centre, within the range: the mean up to what the open cells gather."""
        return told[0].clamp(self.low, self.high)

    def _sample(self, noise: Noise, *told: Tensor) -> Tensor:
        u = noise.uniform(*self.shape, dtype=torch.float64).to(told[0].device).clamp(2.0**-25, 1 - 2.0**-25)
        x = told[0] + told[1].clamp(min=self.floor).exp() * u.logit().to(told[0].dtype)
        return self.index(x) * self.cell + self.low


class Categorical(Leveled):
    """Any law over the levels: h holds `levels` logits a coordinate."""

    def __init__(self, shape: Sequence[int], levels: int = 256, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(shape, levels, low, high)
        self.parts = levels

    def _parted(self, h: Tensor) -> tuple[Tensor, ...]:
        return (torch.stack(super()._parted(h), -1),)  # (N, *shape, levels)

    def _log_prob(self, x: Tensor, *told: Tensor) -> Tensor:
        index = self.index(x).long().expand(told[0].shape[:-1])
        return self._sum(told[0].log_softmax(-1).gather(-1, index[..., None])[..., 0])

    def _mean(self, *told: Tensor) -> Tensor:
        values = torch.linspace(self.low, self.high, self.levels, dtype=told[0].dtype, device=told[0].device)
        return told[0].softmax(-1) @ values

    def _sample(self, noise: Noise, *told: Tensor) -> Tensor:
        return noise.categorical(told[0]).to(told[0].dtype) * self.cell + self.low


def _normal(noise: Noise, like: Tensor) -> Tensor:
    return noise.normal(*like.shape[1:], dtype=like.dtype).to(like.device)
