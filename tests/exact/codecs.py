"""Codecs whose every answer is known: for tests of what is built in their space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from morphogen import Loss, Model, Noise


def log_normal(x: Tensor, mean: Tensor | float, var: Tensor | float) -> Tensor:
    var = torch.as_tensor(var, dtype=x.dtype)
    return (-0.5 * (x - mean) ** 2 / var - 0.5 * var.log() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


class Identity(Model):
    """z = x."""

    def __init__(self, shape: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.shape = self.latent_shape = tuple(shape)

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def transform(self, x: Tensor, cond: object = None) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(len(x))


class Linear(Model):
    """z = A x + b, A invertible."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.latent_shape = (dim,)
        self.A = nn.Parameter(torch.randn(dim, dim) + 2 * torch.eye(dim))
        self.b = nn.Parameter(torch.randn(dim))

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.A.T + self.b

    def decode(self, z: Tensor) -> Tensor:
        return torch.linalg.solve(self.A, (z - self.b).T).T

    def transform(self, x: Tensor, cond: object = None) -> tuple[Tensor, Tensor]:
        return self.encode(x), torch.linalg.slogdet(self.A)[1].expand(len(x))


class LinearGaussian(Model):
    """p(x|z) = N(W z + m, v I), q(z|x) = N(F x + f, S S'): a linear VAE of any posterior, right or wrong."""

    def __init__(self, dim: int = 3, latent: int = 2, var: float = 0.4) -> None:
        super().__init__()
        self.latent_shape, self.var = (latent,), var
        self.W, self.m = nn.Parameter(torch.randn(dim, latent)), nn.Parameter(torch.randn(dim))
        self.F, self.f = nn.Parameter(torch.randn(latent, dim)), nn.Parameter(torch.randn(latent))
        self.S = nn.Parameter(torch.eye(latent))

    def exact(self, mean: Tensor, cov: Tensor) -> None:
        """Make q the posterior under the prior N(mean, cov)."""
        with torch.no_grad():
            precision = torch.linalg.inv(cov) + self.W.T @ self.W / self.var
            S = torch.linalg.inv(precision)
            self.F.copy_(S @ self.W.T / self.var)
            self.f.copy_(S @ (torch.linalg.solve(cov, mean) - self.W.T @ self.m / self.var))
            self.S.copy_(torch.linalg.cholesky(S))

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.F.T + self.f

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.W.T + self.m

    def infer(self, x: Tensor, cond: object = None, *, noise: Noise) -> tuple[Tensor, Tensor]:
        eps = noise.normal(*self.latent_shape, dtype=x.dtype)
        log_q = log_normal(eps, 0.0, 1.0) - torch.linalg.slogdet(self.S)[1]
        return self.encode(x) + eps @ self.S.T, log_q

    def log_likelihood(self, x: Tensor, z: Tensor, cond: object = None) -> Tensor:
        return log_normal(x, self.decode(z), self.var)


class Squares(Model):
    """x (B, 1, 4, 4) of quarters, each nearest to one of `codes` greys: z (B, 2, 2)."""

    def __init__(self, codes: int = 3) -> None:
        super().__init__()
        self.codes, self.latent_shape = codes, (2, 2)
        self.register_buffer("greys", torch.linspace(-1, 1, codes))

    def encode(self, x: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(x, 2)[:, 0]  # (B, 2, 2)
        return (means[..., None] - self.greys).abs().argmin(-1)

    def decode(self, z: Tensor) -> Tensor:
        return self.greys[z].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]


class Conditioned(Model):
    """z = x − c_label: a codec that is told the class, both ways."""

    def __init__(self, classes: int = 8, dim: int = 2) -> None:
        super().__init__()
        self.latent_shape = (dim,)
        self.table = nn.Parameter(torch.randn(classes, dim))

    def encode(self, x: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        return x - self.table[cond["label"]] if cond else x

    def decode(self, z: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        return z + self.table[cond["label"]] if cond else z


class Normal(Model):
    """N(mean, LL'): a prior whose density is known."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.shape = (dim,)
        self.mean, self.L = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim, dim).tril() + torch.eye(dim))

    @property
    def law(self) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(self.mean, self.L @ self.L.T)

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        return Loss(-self.log_prob(batch["x"]).mean())

    def log_prob(self, x: Tensor, cond: object = None) -> Tensor:
        return self.law.log_prob(x)

    def sample(self, n: int, cond: object = None, *, noise: Noise | None = None, wide: float = 1.0) -> Tensor:
        """wide: a factor on the deviation."""
        noise = noise or Noise(torch.randint(1 << 62, (n,)))
        return self.mean + wide * noise.normal(*self.shape, dtype=self.mean.dtype) @ self.L.T
