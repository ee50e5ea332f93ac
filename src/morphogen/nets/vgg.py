"""VGG-16's convolutions, for the features that perceptual distances compare. The weights are the user's.

    x, grey or RGB in [-1, 1] -> shifted and scaled as ImageNet's
      -> five groups of 2, 2, 3, 3, 3 times conv-ReLU with 64, 128, 256, 512, 512 channels, a 2 x 2 maximum between them

Simonyan & Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", arXiv:1409.1556.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..core import NONE, Net
from ..errors import UserError
from ..spec import Asset

GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(Net):
    """x (B, 1 or 3, H, W) in [-1, 1] -> five maps, the last of each group of convolutions, for H and W of 16 or more.

    weights: a .safetensors file with "features.0.weight", "features.0.bias", …, as torchvision's vgg16 names them; what
    else it holds is not read. Raises UserError where one is missing or of another shape.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Asset) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends, now = [], 3
        for group in GROUPS:
            layers += [nn.MaxPool2d(2)] if layers else []
            for wide in group:
                layers += [nn.Conv2d(now, wide, 3, padding=1), nn.ReLU()]
                now = wide
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)  # numbered as in the file
        for name, channel in {"shift": (-0.030, -0.088, -0.188), "scale": (0.458, 0.448, 0.450)}.items():
            self.register_buffer(name, torch.tensor(channel)[:, None, None], persistent=False)
        tensors = read_tensors(weights, "features.")
        for name, p in self.named_parameters():
            if name not in tensors or tensors[name].shape != p.shape:
                there = tuple(tensors[name].shape) if name in tensors else "missing"
                raise UserError(
                    f"{str(weights.path)!r} are no weights of VGG-16: {name} should be {tuple(p.shape)} and is {there};"
                    " save torchvision's vgg16 with safetensors.torch.save_file."
                )
            p.data.copy_(tensors[name])

    def maps(self, x: Float[Tensor, "b _ h w"], cond: Mapping[str, Tensor] = NONE) -> list[Tensor]:
        """The five maps (B, C, h, w), fine to coarse."""
        h, found = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in self.ends:
                found.append(h)
        return found


def read_tensors(file: Asset, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a .safetensors file whose names begin with `prefix`. Raises UserError where it is not one."""
    try:
        with safe_open(file.path, "pt") as held:
            return {n: held.get_tensor(n) for n in held.keys() if n.startswith(prefix)}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{str(file.path)!r} is no safetensors file: write weights with safetensors.torch.save_file."
        ) from error
