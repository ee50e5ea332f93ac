"""Codecs so simple that what the tools make of them is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """z = A x, x = A⁺ z, for pictures (C, H, W); with as many rows as numbers, exact."""

    def __init__(self, shape: tuple[int, ...], rank: int, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.latent_shape = shape, (rank,)
        size = torch.Size(shape).numel()
        a = torch.randn(rank, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.down = nn.Parameter(a)
        self.up = nn.Parameter(torch.linalg.pinv(a))

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1).double() @ self.down.T).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        return (z.double() @ self.up.T).reshape(len(z), *self.shape).to(z.dtype)


class Labelled(Linear):
    """Each class has an offset of its own, so a wrong condition shows."""

    def encode(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:  # type: ignore[override]
        return super().encode(x - self._offset(len(x), cond, x))

    def decode(self, z: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:  # type: ignore[override]
        return super().decode(z) + self._offset(len(z), cond, z)

    def _offset(self, n: int, cond: Mapping[str, Tensor] | None, like: Tensor) -> Tensor:
        label = torch.zeros(n) if cond is None else cond["label"]
        return (10.0 * label.to(like)).reshape(n, *(1,) * len(self.shape))


class Tall(Linear):
    """A hierarchy of two: latents are a tuple of tensors of unlike shapes."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z = super().encode(x)
        return z[:, :2], z[:, 2:].reshape(len(z), 2, -1)

    def decode(self, z: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        return super().decode(torch.cat((z[0], z[1].flatten(1)), 1))


class Bare(nn.Module):
    """Indices that stand for nothing: the nearest of three brightnesses of the mean."""

    codes: ClassVar[int] = 3

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1).mean(1) + 1).round().long().clamp(0, 2)

    def decode(self, z: Tensor) -> Tensor:
        return (z.float() - 1).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


class Book(Bare):
    """The same with vectors: each index stands for a number."""

    def quantised(self, z: Tensor) -> Tensor:
        return z.float()[:, None] - 1

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
