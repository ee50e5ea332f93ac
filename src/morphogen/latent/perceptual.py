r"""A distance of pictures that looks at what a trained net sees in them, not at pixels.

    d(x, y) = Σ_l  mean over positions of  Σ_c w_lc (f̂_lc(x) - f̂_lc(y))²,      f̂ = f / |f| along the channels

f_l are the maps of any net that has `maps(x)`: the library's own classifiers, or VGG-16 where the user gives weights.
w = 1, or what was learned from people's judgements (LPIPS).

Zhang, Isola, Efros, Shechtman & Wang 2018, "The unreasonable effectiveness of deep features as a perceptual metric",
arXiv:1801.03924; Johnson, Alahi & Fei-Fei 2016, arXiv:1603.08155.
Departure: |f| = sqrt(Σ f² + 1e-10), whose gradient is finite where a net sees nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Net
from ..errors import UserError
from ..nets.vgg import VGG16, read_tensors
from ..spec import Asset


def unit(f: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
    """f scaled to length one along the channels."""
    f = f.to(torch.promote_types(f.dtype, torch.float32))
    return f * (f.square().sum(1, keepdim=True) + 1e-10).rsqrt()


class Perceptual(Net):
    """x, y (B, C, H, W) -> distances (B,), by what `extractor.maps` gives of both.

    extractor: a net or classifier with `maps(x)`, trained. It is taken over: frozen, and always in evaluation mode.
    weights:   of the channels, a .safetensors file with "lin0.model.1.weight" (1, C, 1, 1) and so on, as LPIPS names
               them; all are 1 without it. Raises UserError where they do not fit.
    """

    def __init__(self, extractor: nn.Module, weights: Asset | None = None) -> None:
        super().__init__()
        self.extractor = extractor.requires_grad_(False)
        read = {} if weights is None else read_tensors(weights, "lin")
        named = [read.get(f"lin{level}.model.1.weight") for level in range(len(read))]
        if any(w is None for w in named) or (weights is not None and not named):
            raise UserError(
                f"{str(weights.path if weights else weights)!r} holds no weights of LPIPS: they are named"
                " 'lin0.model.1.weight' and so on."
            )
        self.channels = nn.ParameterList(nn.Parameter(w.flatten(), False) for w in named if w is not None)
        self.eval()

    @classmethod
    def lpips(cls, vgg: Asset, linear: Asset) -> Perceptual:
        """LPIPS on VGG-16, of the files of both weights."""
        return cls(VGG16(vgg), linear)

    def train(self, mode: bool = True) -> Perceptual:
        """Stay in evaluation mode: the distance does not depend on the rest of a batch."""
        super().train(False)
        return self

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        extractor: Any = self.extractor
        maps = list(zip(extractor.maps(x), extractor.maps(y), strict=True))
        shapes = [f.shape[1] for f, _ in maps]
        if self.channels and (given := [len(w) for w in self.channels]) != shapes:
            raise UserError(f"The maps have {shapes} channels and the weights {given}: they belong to another net.")
        total = x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
        for level, (f, g) in enumerate(maps):
            apart = (unit(f) - unit(g)).square()  # (B, C, h, w)
            if self.channels:
                apart = apart * self.channels[level][:, None, None]
            total = total + apart.sum(1).flatten(1).mean(1)
        return total
