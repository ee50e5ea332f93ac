"""A generator as a codec: what it drew itself is found again, in each of its latent spaces."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from morphogen.adversarial.gan import GAN
from morphogen.adversarial.invert import SPACES, Inverse
from morphogen.adversarial.progressive import Growth, ProgressiveGAN
from morphogen.adversarial.readings import Categorical
from morphogen.adversarial.stylegan import StyleGAN2
from morphogen.core import Codec, Net, Noise, can
from morphogen.errors import UserError
from morphogen.latent.interpolate import interpolate
from morphogen.metrics.psnr import psnr
from morphogen.nets.critic import Critic
from morphogen.nets.mlp import MLP
from morphogen.nets.progressive import GrowingCritic, GrowingGenerator
from morphogen.nets.style import StyleCritic, StyleGenerator

SHAPE = (1, 8, 8)


class Linear(Net):
    """A generator whose inverse is a pseudo-inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(64, 5, generator=torch.Generator().manual_seed(3)))

    def draw_z(self, n: int, *, noise: Noise) -> Tensor:
        return noise.normal(5)

    def decode(self, z: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return (z @ self.matrix.T).view(-1, *SHAPE)


def style(classes: int | None = None) -> StyleGAN2:
    torch.manual_seed(1)
    generator = StyleGenerator(SHAPE, (8, 6), latent=6, width=8, depth=2, classes=classes)
    gan = StyleGAN2(generator, StyleCritic(SHAPE, (8, 6), classes=classes))
    with torch.no_grad():
        for layer in gan.generator.keep:
            layer.strength.fill_(0.2)  # fixed in decoding, or nothing would be found again
    return gan


def test_a_linear_generator_is_inverted_as_by_least_squares() -> None:
    model = Linear()
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    z = Inverse(model, steps=400).encode(x)
    wanted = torch.linalg.lstsq(model.matrix.detach(), x.flatten(1).T).solution.T
    assert torch.allclose(z, wanted, atol=1e-3)


@pytest.mark.parametrize("space", SPACES)
def test_pictures_of_its_own_are_found_again(space: str) -> None:
    gan = style().eval()
    inverse = Inverse(gan, space, steps=300, starts=4)
    with torch.no_grad():
        u = inverse.draw(4, noise=Noise.seeded(5, 4))
        x = inverse.decode(u)
        y = inverse.decode(inverse.encode(x))
        strangers = inverse.decode(inverse.draw(4, noise=Noise.seeded(6, 4)))
    span = float(x.max() - x.min())
    assert u.shape[1:] == {"z": (6,), "w": (8,), "w+": (4, 8)}[space]
    assert float(psnr(y, x, span=span).min()) > 30
    assert float(psnr(strangers, x, span=span).mean()) < 22  # and that is not because all are alike
    assert can(inverse, Codec)


def test_w_plus_finds_what_w_cannot() -> None:
    gan = style().eval()
    mixed = gan.styles({}, Noise.seeded(2, 3)).detach()  # two styles, from a random layer on
    with torch.no_grad():
        x = gan.synthesise(mixed)
        errors = []
        for space in ("w", "w+"):
            inverse = Inverse(gan, space, steps=200)
            errors.append((inverse.decode(inverse.encode(x)) - x).square().mean())
    assert errors[1] < 0.5 * errors[0]


def test_a_picture_has_the_same_latents_in_any_batch_and_gradients_are_left_alone() -> None:
    inverse = Inverse(style(), "z", steps=20)
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        together, alone = inverse.encode(x), inverse.encode(x[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-4)
    assert torch.equal(together, inverse.encode(x))
    assert all(p.grad is None for p in inverse.parameters())
    assert not together.requires_grad


def test_more_starts_and_more_steps_are_never_worse_than_the_first_of_them() -> None:
    gan, x = style(), torch.randn(4, *SHAPE)

    def error(**more: int) -> Tensor:
        inverse = Inverse(gan, "z", **more)
        with torch.no_grad():
            return (inverse.decode(inverse.encode(x)) - x).square().flatten(1).mean(1)

    one, more = error(steps=30, starts=1), error(steps=30, starts=4)
    assert float(more.mean()) <= float(one.mean())
    assert bool((error(steps=60, starts=1) <= error(steps=1, starts=1) + 1e-6).all())


def test_a_distance_counts_beside_the_pixels() -> None:
    model = Linear()
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))

    def first_rows(made: Tensor, x: Tensor) -> Tensor:
        return (made - x)[:, :, :1].square().flatten(1).mean(1)

    plain, led = Inverse(model, steps=400), Inverse(model, steps=400, distance=first_rows, likeness=50.0)
    with torch.no_grad():
        errors = [first_rows(i.decode(i.encode(x)), x) for i in (plain, led)]
    assert bool((errors[1] < errors[0]).all())


def test_the_way_from_one_to_another() -> None:
    gan = style().eval()
    inverse = Inverse(gan, "w", steps=50)
    with torch.no_grad():
        u = inverse.draw(2, noise=Noise.seeded(0, 2))
        way = interpolate(inverse, inverse.decode(u[:1]), inverse.decode(u[1:]), 5)
    assert way.shape == (1, 5, *SHAPE)


def test_classes_must_be_told() -> None:
    inverse = Inverse(style(3), "z", steps=2)
    x = torch.randn(2, *SHAPE)
    with pytest.raises(UserError, match="the class that it is told"):
        inverse.encode(x)
    assert inverse.encode(x, {"label": torch.tensor([0, 2])}).shape == (2, 6)
    with pytest.raises(UserError, match="3 rows for 2"):
        inverse.encode(x, {"label": torch.tensor([0, 1, 2])})


def test_any_gan_is_inverted() -> None:
    torch.manual_seed(0)
    gan = GAN(MLP(5, 2, 16, 1), Critic(MLP(2, 8, 16, 1), 8, readings=3), 2, readings=(Categorical(3),))
    noise = Noise.seeded(0, 4)
    with torch.no_grad():
        z = gan.draw_z(4, noise=noise)
        assert torch.equal(gan.decode(z), gan.sample(4, noise=Noise.seeded(0, 4)))
        found = Inverse(gan, steps=300, starts=4).encode(gan.decode(z))
        assert torch.allclose(gan.decode(found), gan.decode(z), atol=1e-2)


def test_other_generators_have_z_alone() -> None:
    nets = GrowingGenerator(SHAPE, (6, 4), latent=5), GrowingCritic(SHAPE, (6, 4))
    grown = ProgressiveGAN(*nets, Growth(0, 0))
    assert Inverse(grown, steps=2).encode(torch.randn(2, *SHAPE)).shape == (2, 5)
    with pytest.raises(UserError, match="latent space of ProgressiveGAN"):
        Inverse(grown, "w")
    with pytest.raises(UserError, match="nothing to invert"):
        Inverse(torch.nn.Linear(3, 3))
    with pytest.raises(UserError, match="1 or more steps"):
        Inverse(grown, steps=0)
