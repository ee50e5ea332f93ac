r"""A generator as a codec: the latents of a picture are those that draw it best.

    encode(x) = argmin over u of   mean (G(u) - x)² + λ d(G(u), x),      decode(u) = G(u)

by Adam, its rate on half a cosine, from a few starts of which the best is taken. u lies in one of the generator's
spaces: z, the noise it was trained on; for one of styles also w, a single style, and w+, a style for each layer, which
draws what it was never trained on too. d compares what a trained net sees in both, such as `latent.Perceptual`.

Zhu, Krähenbühl, Shechtman & Efros 2016, "Generative visual manipulation on the natural image manifold",
arXiv:1609.03552 (inversion by optimisation); Abdal, Qin & Wonka 2019, "Image2StyleGAN", arXiv:1904.03189 (w+); Karras
et al. 2020, arXiv:1912.04958, appendix D. Departures: the generator's noise inputs are fixed and not optimised; the
starts are keyed by the picture, so that it has the same latents in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import NONE, Net, Noise, each, leaves
from ..errors import UserError, unknown
from .stylegan import StyleGAN2

Cond = Mapping[str, Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]  # of x, y (B, ...): (B,)


@runtime_checkable
class Decodes(Protocol):
    """A generator: draws latents, and makes data of them."""

    def draw_z(self, n: int, *, noise: Noise) -> Tensor:
        """n latents (n, ...) of the law that it was trained on."""
        ...

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """Data (B, ...) of latents."""
        ...


class Space:
    """Latents of a generator. draw: n of them, (n, ...), conditions and noise given; decode: data of them."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def draw(self, n: int, cond: Cond, noise: Noise) -> Tensor:
        z: Tensor = self.model.draw_z(n, noise=noise)
        return z

    def decode(self, u: Tensor, cond: Cond) -> Tensor:
        x: Tensor = self.model.decode(u, cond)
        return x


class _Style(Space):
    """One style for all layers."""

    def draw(self, n: int, cond: Cond, noise: Noise) -> Tensor:
        return self.model.mapped(super().draw(n, cond, noise), cond)  # type: ignore[no-any-return]

    def decode(self, u: Tensor, cond: Cond) -> Tensor:
        return self.model.synthesise(u[:, None].expand(-1, self.model.generator.layers, -1))  # type: ignore[no-any-return]


class _Styles(_Style):
    """A style for each layer."""

    def draw(self, n: int, cond: Cond, noise: Noise) -> Tensor:
        return super().draw(n, cond, noise)[:, None].repeat(1, self.model.generator.layers, 1)

    def decode(self, u: Tensor, cond: Cond) -> Tensor:
        return self.model.synthesise(u)  # type: ignore[no-any-return]


SPACES: Mapping[str, type[Space]] = {"z": Space, "w": _Style, "w+": _Styles}


class Inverse(Net):
    """x (B, *shape) <-> latents u of a generator, found by optimisation; a `Codec`.

    model:    a GAN that decodes. space: a name in SPACES; w and w+ are of `StyleGAN2`.
    distance: compares pictures beside their pixels, with the weight `likeness`; None: pixels alone.
    steps:    of Adam, the largest rate `lr`. starts: how many are tried for each picture.
    Raises UserError where the model has no such space.
    """

    def __init__(
        self,
        model: Any,
        space: str = "z",
        *,
        distance: Distance | None = None,
        likeness: float = 1.0,
        steps: int = 200,
        lr: float = 0.1,
        starts: int = 2,
    ) -> None:
        super().__init__()
        if not isinstance(model, Decodes):
            raise UserError(f"A {type(model).__name__} makes no data of latents, so there is nothing to invert.")
        known = tuple(SPACES) if isinstance(model, StyleGAN2) else ("z",)
        if space not in known:
            raise unknown(f"latent space of {type(model).__name__}", space, known)
        if steps < 1 or starts < 1 or lr <= 0 or likeness < 0:
            raise UserError(
                f"Inverse was given steps={steps}, starts={starts}, lr={lr}, likeness={likeness}: give 1 or more steps"
                " and starts, a rate above 0, and a weight of 0 or more."
            )
        self.model, self.space, self.distance, self.likeness = model, space, distance, likeness
        self.steps, self.lr, self.starts = steps, lr, starts
        self.ways = SPACES[space](model)

    def draw(self, n: int, cond: Cond | None = None, *, noise: Noise) -> Tensor:
        """n latents u of pictures that the generator draws."""
        return self.ways.draw(n, cond or NONE, noise)

    def decode(self, u: Float[Tensor, " b *latent"], cond: Cond | None = None) -> Tensor:
        """The pictures of latents."""
        return self.ways.decode(u, cond or NONE)

    def encode(self, x: Float[Tensor, " b *shape"], cond: Cond | None = None) -> Tensor:
        """Latents u (B, ...) whose pictures are as near to x as was found."""
        n, told = len(x), cond or NONE
        for name, c in leaves(told):
            if len(c) != n:
                raise UserError(f"The condition {name!r} has {len(c)} rows for {n} pictures: give one for each.")
        told = each(told, lambda c: c.repeat_interleave(self.starts, 0))
        key = Noise.of(x).bits(self.starts).flatten().to(x.device)  # (B starts,)
        target = x.repeat_interleave(self.starts, 0)
        with torch.no_grad():
            u = self.ways.draw(n * self.starts, told, Noise(key))
        best, least = u.clone(), torch.full((len(u),), math.inf, device=u.device)
        u.requires_grad_()
        optim = torch.optim.Adam([u], self.lr)
        with torch.enable_grad():
            for step in range(self.steps + 1):
                apart = self._apart(self.ways.decode(u, told), target)
                with torch.no_grad():
                    nearer = apart < least
                    best[nearer], least[nearer] = u[nearer], apart[nearer].to(least)
                (u.grad,) = torch.autograd.grad(apart.sum(), u)  # of each by itself: Adam goes number by number
                optim.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / (self.steps + 1)))
                optim.step()
        chosen = least.view(n, self.starts).argmin(1) + torch.arange(n, device=u.device) * self.starts
        return best[chosen]

    def _apart(self, made: Tensor, x: Tensor) -> Tensor:
        error = (made - x).square().flatten(1).mean(1)
        return error if self.distance is None else error + self.likeness * self.distance(made, x)
