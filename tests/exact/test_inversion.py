"""The probability flow as a codec, against the flow of Gaussian data, which is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen.core import Codec, Noise, Samples, can
from morphogen.diffusion import Diffusion, gaussian, rectified_flow
from morphogen.diffusion.inversion import ProbabilityFlow
from morphogen.diffusion.likelihood import Fixed
from morphogen.diffusion.path import Cosine, Exploding, Linear, LinearBetas, Path
from morphogen.latent.interpolate import interpolate, spherical
from morphogen.latent.reconstruct import reconstruct
from morphogen.nets.mlp import MLP

PATHS = [Linear(), Cosine(), LinearBetas(), Exploding()]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_noise_of_gaussian_data_is_the_closed_form(path: Path) -> None:
    """Along the flow (x_t − α m) / √(α² s² + σ²) stays what it is."""
    mean, std, low = torch.tensor([2.0, -1.0]).double(), 0.5, 0.01
    flow = ProbabilityFlow(gaussian(path, mean, [std, std]), (2,), Fixed(60), low=low)
    x = mean + std * normal(1, 5, 2)
    alpha, sigma = float(path.alpha(1.0)), float(path.sigma(1.0))
    kept = (x - mean) / math.hypot(std, low)
    z = (alpha * mean + math.hypot(alpha * std, sigma) * kept) / sigma
    assert torch.allclose(flow.encode(x), z, atol=2e-4)
    assert torch.allclose(flow.decode(z), x, atol=2e-4)
    assert torch.allclose(flow.encode(x[3:4]), flow.encode(x)[3:4])


def test_a_diffusion_is_a_codec_by_its_flow() -> None:
    torch.manual_seed(0)
    model = rectified_flow(MLP(2, 2, 16, 1, scalars=("t",), classes=3), (2,)).double()
    assert isinstance(model, Diffusion)
    coarse, flow = (ProbabilityFlow(model, model.shape, Fixed(steps), low=0.05) for steps in (20, 80))
    assert can(flow, Codec)
    assert can(flow, Samples)
    x, cond = normal(2, 4, 2) * 0.5, {"label": torch.tensor([0, 1, 2, 0])}
    left = [reconstruct(codec, x, cond).error.max().sqrt() for codec in (coarse, flow)]
    assert left[1] < left[0] / 50  # both ways one equation: what remains is the solver's error, of fourth order
    with torch.no_grad():
        assert not torch.allclose(flow.encode(x, cond), flow.encode(x, {"label": torch.tensor([1, 2, 0, 1])}))
        z = Noise.seeded(3, 4).normal(2, dtype=torch.float64)
        assert torch.equal(flow.sample(4, cond, noise=Noise.seeded(3, 4)), flow.decode(z, cond))
    made = interpolate(flow, x[:1], x[1:2], 3, way=spherical, cond_a={"label": cond["label"][:1]})
    assert torch.allclose(made[0, 0], x[0], atol=1e-3)
