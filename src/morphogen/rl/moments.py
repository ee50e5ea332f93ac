r"""Running moments of what is seen and earned, by which an agent standardises it.

    y = clip((x − μ)/√(σ² + ε), ±c)         n, μ, σ² of all that was added, over all ranks:
    n = n_a + n_b,   δ = μ_b − μ_a,   μ = μ_a + δ n_b/n,   n σ² = n_a σ_a² + n_b σ_b² + δ² n_a n_b/n

Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances". They are
buffers of the model, so that they are saved with it; until something is added, x is only clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Net, everyone
from ..errors import UserError


class Moments(Net):
    """Mean and variance of x (N, *shape), a number at a time. clip: c. eps: ε.

    Raises UserError where clip or eps is not above 0.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, *shape: int, clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        if not (clip > 0 and eps > 0):
            raise UserError(f"Moments with clip={clip}, eps={eps}: give numbers above 0 (10 and 1e-8 are usual).")
        self.clip, self.eps = clip, eps
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))

    @property
    def deviation(self) -> Tensor:
        """√(σ² + ε) (*shape), float64."""
        return (self.variance + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., *shape) standardised, in its dtype."""
        return ((x - self.mean) / self.deviation).clamp(-self.clip, self.clip).to(x.dtype)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take in x (..., *shape) of this rank, and what the others have."""
        x = x.detach().to(self.mean.dtype).reshape(-1, *self.mean.shape)  # (N, *shape)
        n = everyone.sum(torch.tensor(len(x), device=x.device))
        if not bool(n):
            return
        mean = everyone.sum(x.sum(0)) / n
        squares = everyone.sum((x - mean).square().sum(0))
        total, apart = self.count + n, mean - self.mean
        squares = self.variance * self.count + squares + apart.square() * (self.count * n / total)
        self.mean.add_(apart * (n / total))
        self.variance.copy_(squares / total)
        self.count.copy_(total)
