"""A diffusion as a codec: data to noise along its probability flow, and back.

    dx̃/dθ = cos θ ε̂ − sin θ x̂,     x̃ = x_t / √(α² + σ²),  θ = atan(σ/α)        (`likelihood.py`: the unit circle)

is an ordinary differential equation, so it goes both ways: `encode` from x̃ = cos θ_0 x at θ_0 = atan(low) to θ_1, where
z = x_t / σ(1) is the noise, and `decode` from there back. Noise between that of two pictures is of their kind again
along the great circle, and so is what it decodes to.

Sources: Song et al. 2021, "Score-based generative modeling through stochastic differential equations", arXiv 2011.13456
(section 4.3); Song, Meng & Ermon 2021, "Denoising diffusion implicit models", arXiv 2010.02502 (section 5.3, and
figure 6: interpolation). Departure: Runge-Kutta steps equal in log θ, as the likelihoods take them.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import NONE, Net, Noise
from .field import Cond, Field, spread
from .likelihood import Integrator, angles, circle, integrator_for, time
from .path import Scalar


class ProbabilityFlow(Net):
    """The codec of a diffusion: x (B, *shape) <-> noise z (B, *shape), near N(0, I) for data that it knows.

    field: what denoises, such as a `Diffusion`. shape: of one x. integrator: by default `likelihood.integrator_for`, 64
    evaluations each way (200 up to 16 coordinates). low: the noise-to-signal ratio at which the flow ends.
    """

    def __init__(
        self, field: Field, shape: tuple[int, ...], integrator: Integrator | None = None, low: float | None = None
    ) -> None:
        super().__init__()
        self.field, self.low, self.shape, self.latent_shape = field, low, tuple(shape), tuple(shape)
        self.integrator = integrator_for(math.prod(self.shape)) if integrator is None else integrator

    def encode(self, x: Float[Tensor, " b *shape"], cond: Cond | None = None) -> Float[Tensor, " b *shape"]:
        """The noise z that the flow ends in where it begins at x."""
        start, end = angles(self.field.path, self.low)
        y = self._walk(x * math.cos(start), math.log(start), math.log(end), end, cond)
        return y / math.sin(end)

    def decode(self, z: Float[Tensor, " b *shape"], cond: Cond | None = None) -> Float[Tensor, " b *shape"]:
        """The x at which the flow ends where it begins at the noise z."""
        start, end = angles(self.field.path, self.low)
        y = self._walk(z * math.sin(end), math.log(end), math.log(start), end, cond)
        return y / math.cos(start)

    def sample(self, n: int, cond: Cond | None = None, *, noise: Noise | None = None) -> Float[Tensor, " n *shape"]:
        """What noise decodes to."""
        like = next(self.parameters(), torch.empty(()))
        if noise is None:
            noise = Noise.fresh(n, like.device)
        return self.decode(noise.normal(*self.shape, dtype=like.dtype).to(like.device), cond)

    def _walk(self, y: Tensor, u: float, w: float, end: float, cond: Cond | None) -> Tensor:
        """x̃ from log θ = u to w."""
        path, shape = self.field.path, y.shape

        def rate(u: Scalar, y: Tensor) -> Tensor:
            theta = u.double().exp() if isinstance(u, Tensor) else math.exp(u)
            t = time(path, theta, end, y.dtype)
            cos, sin, h = circle(path, t)
            scale = theta.to(y.dtype) if isinstance(theta, Tensor) else theta
            x = y.reshape(shape)
            return self.field.predict(x * spread(h, x), t, -scale * sin, scale * cos, cond or NONE).flatten(1)

        return self.integrator(rate, y.flatten(1), u, w).reshape(shape)
