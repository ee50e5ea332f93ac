r"""Pictures mended by a model of what pictures look like: the nearest that its decoder can make takes their place.

    projected   decode(encode(y))                                              what the damage was need not be known
    fitted      decode(ẑ),   ẑ = argmin_z  |A decode(z) − y|² / D + weight |z|² / D     A, the damage's known part

The fit starts at encode(y) and keeps for each picture the best z that it met. weight: for a VAE of observation noise σ
and prior N(0, I), σ² makes ẑ the mode of p(z | y). Where pixels are known to be intact, they stay as they are
(`intact`): only what was lost is the model's.

Sources: Bora, Jalal, Price & Dimakis 2017, "Compressed sensing using generative models", arXiv:1703.03208 (eq. 3: the
fit); Yeh, Chen, Lim, Schwing, Hasegawa-Johnson & Do 2017, "Semantic image inpainting with deep generative models",
arXiv:1607.07539 (intact pixels kept); Vincent et al. 2008, "Extracting and composing robust features with denoising
autoencoders" (the projection). Departures: Adam from the encoder's latent, not restarts from random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from .damage import Damaged
from .reconstruct import reconstruct
from .vectors import Cond, vectors


def projected(codec: Any, damaged: Damaged, cond: Cond | None = None) -> Float[Tensor, "b c h w"]:
    """Each picture's reconstruction, with its intact pixels put back."""
    return _kept(damaged, reconstruct(codec, damaged.y, cond).made)


def fitted(
    codec: Any,
    damaged: Damaged,
    cond: Cond | None = None,
    *,
    steps: int = 200,
    rate: float = 0.05,
    weight: float = 0.0,
    progress: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "b c h w"]:
    """The picture of the latent whose damaged picture is nearest to each, with its intact pixels put back.

    steps, rate: of Adam on the latents. weight: of |z|². progress: told how many steps are done. Of a codec of codes
    the latents are vectors beside the code book. Raises UserError where its latents cannot be moved.
    """
    if steps < 0 or not rate > 0:
        raise UserError(f"A fit of {steps} steps at rate {rate} goes nowhere: take 0 steps or more, a rate above 0.")
    flat = vectors(codec)
    with torch.no_grad():
        z = flat.encode(damaged.y, cond)
    size = damaged.y[0].numel()
    best, least = z.clone(), torch.full((len(z),), torch.inf, dtype=torch.float64, device=z.device)
    frozen = _frozen(flat.codec)
    z.requires_grad_()
    adam = torch.optim.Adam([z], lr=rate, betas=(0.9, 0.99))
    try:
        for step in range(steps + 1):
            with torch.enable_grad():
                off = (damaged.forward(flat.decode(z, cond)) - damaged.y).flatten(1).square().sum(1)
                lost = (off + weight * z.square().sum(1)) / size  # (B,)
                adam.zero_grad()
                lost.sum().backward()
            with torch.no_grad():
                better = lost.double() < least
                least, best = torch.where(better, lost.double(), least), torch.where(better[:, None], z, best)
            if step < steps:
                adam.step()
            progress(step)
    finally:
        for p in frozen:
            p.requires_grad_(True)
    with torch.no_grad():
        return _kept(damaged, flat.decode(best.detach(), cond))


def _frozen(codec: Any) -> list[nn.Parameter]:
    """The codec's weights that learn, made to stand still."""
    learn = [p for p in codec.parameters() if p.requires_grad] if isinstance(codec, nn.Module) else []
    for p in learn:
        p.requires_grad_(False)
    return learn


def _kept(damaged: Damaged, made: Tensor) -> Tensor:
    return made if damaged.intact is None else torch.where(damaged.intact > 0, damaged.y, made)
