"""Bits per dimension on laws whose bits are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from morphogen import UserError
from morphogen.core import Model, Noise, keys
from morphogen.data.densities import Drawn, Gaussians
from morphogen.data.items import Tensors
from morphogen.data.space import Pictures
from morphogen.metrics.likelihood import bits_per_dim, dequantised, likelihoods, mean_of


class Steps(Model):
    """A density over one pixel of `levels` values that is constant on each cell: dequantising loses nothing."""

    def __init__(self, levels: int, tilt: float = 0.0) -> None:
        super().__init__()
        self.levels, self.tilt = levels, tilt
        p = torch.arange(1.0, levels + 1, dtype=torch.float64)
        self.p = p / p.sum()

    def log_prob(self, x, cond=None):
        assert not self.training
        cell = 2 / (self.levels - 1)
        k = ((x + 1) / cell).round().long()
        inside = (x + 1) / cell - k  # -1/2 .. 1/2
        shape = torch.log1p(self.tilt * inside)  # integrates to one over the cell
        return (self.p[k].log() - math.log(cell) + shape).flatten(1).sum(1)


class Half(Model):
    """The same with a bound that is 1 nat lower."""

    def __init__(self) -> None:
        super().__init__()
        self.own = Steps(5)

    def elbo(self, x, cond=None):
        return self.own.log_prob(x) - 1

    def likelihood(self, method: str) -> str:
        return f"{method} by hand"


def pixels(n: int, levels: int, size: int = 6) -> Tensors:
    p = torch.arange(1.0, levels + 1)
    k = torch.multinomial(p, n * size, replacement=True, generator=torch.Generator().manual_seed(0))
    return Tensors(k.reshape(n, 1, 2, size // 2), levels=levels)


def true_bits(items: Tensors, levels: int) -> Tensor:
    x = items.take(torch.arange(len(items)))["x"]
    p = torch.arange(1.0, levels + 1, dtype=torch.float64)
    k = ((x + 1) * (levels - 1) / 2).round().long()
    return -(p / p.sum()).log2()[k].flatten(1).mean(1)


def test_the_published_conversion():
    assert 2.92 * 32 * 32 * 3 * math.log(2) == pytest.approx(6217.70, abs=0.01)
    volume = Pictures((3, 32, 32)).volume
    assert bits_per_dim(-6217.70 - volume, volume, 3072) == pytest.approx(2.92, abs=1e-5)
    # on [0, 1] in units of a level (x / 256) a density has 8 bits more a coordinate than in levels
    nats = -6217.70
    assert bits_per_dim(nats, 3072 * math.log(1 / 256), 3072) == pytest.approx(2.92 + 8, abs=1e-5)


def test_a_density_that_knows_the_cells_needs_the_bits_of_the_law():
    levels, items = 5, pixels(700, 5)
    volume = Pictures((1, 2, 3), levels=levels).volume
    model = Steps(levels).train()
    said = likelihoods(model, items, volume=volume, chunk=64)
    assert model.training
    exact = true_bits(items, levels)
    assert said.bits.value == pytest.approx(exact.mean().item(), rel=1e-9)
    half = 1.959963984540054 * exact.std().item() / 700**0.5
    assert (said.bits.low, said.bits.high) == pytest.approx((said.bits.value - half, said.bits.value + half), rel=1e-9)
    assert said.bits.n == said.nats.n == len(said.each) == 700
    assert said.nats.value == pytest.approx(-said.bits.value * 6 * math.log(2) - volume, rel=1e-9)
    assert "dequantised (≤)" in said.bits.how
    assert said.seconds > 0


def test_another_density_needs_more():
    """Jensen's inequality, and by how much: −E log(1 + a u) nats a coordinate."""
    items, a = pixels(4000, 5), 1.9
    volume = Pictures((1, 2, 3), levels=5).volume
    said = likelihoods(Steps(5, a), items, volume=volume)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 - 0.5
    lost = -torch.log1p(a * u).mean().item() / math.log(2)
    assert lost > 0.1
    assert said.bits.value - true_bits(items, 5).mean().item() == pytest.approx(lost, abs=0.03)


def test_bounds_are_marked_and_said_how():
    items = pixels(50, 5)
    volume = Pictures((1, 2, 3), levels=5).volume
    said = likelihoods(Half(), items, volume=volume, method="elbo")
    assert said.bits.value == pytest.approx(true_bits(items, 5).mean().item() + 1 / (6 * math.log(2)), rel=1e-9)
    assert "≤" in said.bits.how
    assert "≥" in said.nats.how
    assert said.bits.how.endswith("elbo by hand")
    with pytest.raises(UserError, match="Half has no log_prob, so no bits/dim by it: use 'elbo'"):
        likelihoods(Half(), items)


def test_some_items_in_any_chunks():
    items, told = pixels(60, 5), []
    one = likelihoods(Steps(5, 1.0), items, volume=6 * math.log(0.5), n=17, seed=3, chunk=4, progress=told.append)
    two = likelihoods(Steps(5, 1.0), items, volume=6 * math.log(0.5), n=17, seed=3, chunk=17)
    assert torch.equal(one.each, two.each)
    assert told == [4, 8, 12, 16, 17]
    assert not torch.equal(likelihoods(Steps(5, 1.0), items, n=17, seed=4).each, one.each)
    assert likelihoods(Steps(5), items, n=1).nats.high == math.inf
    assert likelihoods(Steps(5), items).bits is None  # no cells, no bits


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_pixels_stay_in_their_cells(levels):
    items = pixels(500, levels)
    x = items.take(torch.arange(500))["x"]
    cell = 2 / (levels - 1)
    volume = Pictures((1, 2, 3), levels=levels).volume
    y = dequantised(x, volume, Noise(keys(torch.arange(500), 0)))
    u = (y - x) / cell
    assert -0.5001 < u.min() < -0.49
    assert 0.49 < u.max() < 0.5001
    assert u.mean().abs() < 4 / 12**0.5 / 3000**0.5
    assert (((y + 1) / cell).round() == ((x + 1) / cell).round()).float().mean() > 0.999
    assert torch.equal(dequantised(x, 0.0, Noise.seeded(0, 500)), x)


# ---- distance from a known density ---------------------------------------------------------------------------------


def field_model(mean: float, std: float) -> Model:
    """A model that says the exact density of N(mean, std²) in the plane, blurred by no more than a flow's end."""
    from morphogen.diffusion import field as F
    from morphogen.diffusion import likelihood as L
    from morphogen.diffusion import path as P

    class Exactly(Model):
        def __init__(self) -> None:
            super().__init__()
            self.field = F.gaussian(P.Linear(), mean, std)

        def log_prob(self, x, cond=None):
            return L.log_density(self.field, x.double(), integrator=L.Fixed(60))

    return Exactly()


def kl(model: Model, items: Drawn, n: int):
    said = likelihoods(model, items, n=n, seed=2)
    return mean_of(items.density.log_prob(items.take(said.items)["x"].double()) - said.each, "")


def test_the_kl_of_the_truth_is_0_and_of_another_law_the_known_one():
    truth, n = Gaussians([(0.5, 0.5)], 0.8), 3000
    items = Drawn(truth, 4000, seed=5)
    none = kl(field_model(0.5, 0.8), items, n)
    assert none.low - 1e-4 <= 0 <= none.high + 1e-4  # σ/α = 0.001 blurs by that much at most
    assert none.high - none.low < 0.01  # item by item, not a difference of two means of 3000
    wrong = kl(field_model(0.2, 1.1), items, n)
    known = 2 * (math.log(1.1 / 0.8) + (0.8**2 + 0.3**2) / (2 * 1.1**2) - 0.5)
    assert wrong.low < known < wrong.high
    assert wrong.high - wrong.low < 0.1 < known
    assert wrong.n == n


def test_items_are_those_that_were_measured():
    items = Drawn(Gaussians([(0.0, 3.0), (4.0, 0.0)], 0.5), 300, seed=1)

    class Truth(Model):
        def log_prob(self, x, cond=None):
            return items.density.log_prob(x.double(), cond)

    for n in (1, 7, 300, None):
        said = likelihoods(Truth(), items, n=n, seed=4, chunk=5)
        batch = items.take(said.items)
        assert torch.equal(said.each, items.density.log_prob(batch["x"].double(), batch["cond"]))
        assert len(said.items.unique()) == len(said.each) == (n or 300)


def test_mistakes():
    class Broken(Model):
        def log_prob(self, x: Tensor, cond=None) -> Tensor:
            return torch.full((len(x),), float("nan"))

    with pytest.raises(UserError, match="6 of 6 items have no finite log_prob"):
        likelihoods(Broken(), pixels(6, 5))
    with pytest.raises(UserError, match="no item"):
        likelihoods(Steps(5), pixels(6, 5), n=0)
    with pytest.raises(UserError, match="measure its samples instead"):
        likelihoods(torch.nn.Identity(), pixels(6, 5))
