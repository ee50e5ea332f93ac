"""The densities are densities: they integrate to one, agree with scipy, and their samples follow them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from morphogen.core import LogProb, Noise, Place, Samples, keys
from morphogen.data import densities as d
from morphogen.errors import UserError

PLANE = {
    "8-gaussians": d.eight_gaussians(),
    "25-gaussians": d.gaussian_grid(),
    "uneven gaussians": d.Gaussians([(0.5, -1.0), (-1.0, 0.25), (0.0, 2.0)], 0.4, (1.0, 2.0, 5.0)),
    "checkerboard": d.Checkerboard(),
    "odd checkerboard": d.Checkerboard(3, 1.5),
    "moons": d.moons(),
    "rings": d.rings(),
    # narrow arcs of a radius that std often exceeds: much of the density is reached from the other side of the centre
    "arcs through their centres": d.Arcs([(0.3, -0.2, 0.4, 0.5, 2.0), (-0.5, 0.4, 0.6, 4.0, 3.0)], 0.5, (1.0, 2.0)),
    "pinwheel": d.Pinwheel(),
    "skew pinwheel": d.Pinwheel(3, 1.0, 0.5, 0.3, -1.2),
}


@pytest.fixture(params=PLANE, ids=str)
def density(request):
    return PLANE[request.param]


def reach(density: d.Density) -> int:
    """Half the side of that square: whole, so that the edges of the boards' squares are edges of cells."""
    return math.ceil(max(-density.low, density.high) * 1.25)


def cells(density: d.Density, side: int) -> tuple[torch.Tensor, float]:
    """Midpoints of a grid over a square that holds all but a negligible part, and the area of a cell."""
    half = reach(density)
    line = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1) * half
    return torch.cartesian_prod(line, line), (2 * half / side) ** 2


def test_integrates_to_one(density):
    x, area = cells(density, 1200 if len(density.weights) < 10 else 600)
    whole = sum(density.log_prob(piece).exp().sum().item() for piece in x.split(200_000)) * area
    parts = sum(density.log_probs(piece).exp().sum(0) for piece in x.split(200_000)) * area
    assert whole == pytest.approx(1, abs=4e-3)  # the midpoint rule's error at the ends and centres of arcs
    torch.testing.assert_close(parts, torch.ones_like(parts), atol=6e-3, rtol=0)


def test_samples_follow_the_density(density):
    n, coarse, fine = 40_000, 24, 50 if len(density.weights) < 10 else 25
    x, area = cells(density, coarse * fine)
    p = torch.cat([density.log_prob(piece).exp() for piece in x.split(200_000)]) * area
    p = p.view(coarse, fine, coarse, fine).sum((1, 3)).flatten()

    def where(points: torch.Tensor) -> torch.Tensor:
        place = ((points / reach(density) + 1) / 2 * coarse).long().clamp(0, coarse - 1)
        return place[:, 0] * coarse + place[:, 1]

    if isinstance(density, d.Arcs):  # grow like 1 / distance at their centres, which a grid integrates badly
        p[where(torch.tensor([arc[:2] for arc in density.arcs], dtype=torch.float64))] = 0  # counted with the rest
    counts = torch.bincount(where(density.sample(n, noise=Noise.seeded(7, n)).double()), minlength=coarse**2)
    big = n * p >= 5
    expected = torch.cat((n * p[big], (n - n * p[big].sum()).clamp_min(1e-9)[None]))
    seen = torch.cat((counts[big], counts[~big].sum()[None]))
    if expected[-1] < 5:
        expected[-2:-1] += expected[-1]
        seen[-2:-1] += seen[-1]
        expected, seen = expected[:-1], seen[:-1]
    assert scipy.stats.chisquare(seen.numpy(), (expected * n / expected.sum()).numpy()).pvalue > 1e-3


def test_components_follow_their_own_density(density):
    n = 3000
    x, label = density.labelled(n, noise=Noise.seeded(3, n))
    x = x.double()
    share = torch.bincount(label, minlength=len(density.weights))
    assert scipy.stats.chisquare(share.numpy(), n * np.array(density.weights)).pvalue > 1e-3
    own = density.log_prob(x, {"label": label})
    torch.testing.assert_close(own, density.log_probs(x)[torch.arange(n), label])
    assert own.isfinite().all()
    again = density.sample(n, {"label": label}, noise=Noise.seeded(3, n)).double()
    torch.testing.assert_close(again, x)
    null = torch.arange(n) % 2 == 0
    mixed = density.log_prob(x, {"label": label, "null": null})
    torch.testing.assert_close(mixed, torch.where(null, density.log_prob(x), own))


@pytest.mark.parametrize(("dims", "weights"), [(1, (0.2, 0.8)), (2, None), (5, (3.0, 1.0))])
def test_gaussians_equal_scipy(dims, weights):
    rng = np.random.default_rng(dims)
    means, x = rng.normal(size=(2, dims)), rng.normal(size=(17, dims)) * 2
    ours = d.Gaussians(means.tolist(), 0.7, weights).log_prob(torch.from_numpy(x))
    w = np.array(weights or (1, 1)) / sum(weights or (1, 1))
    theirs = np.log(sum(w[k] * scipy.stats.multivariate_normal(means[k], 0.49).pdf(x) for k in range(2)))
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)


def test_line_samples_follow_their_distribution_function():
    bumps = d.bumps()
    x = bumps.sample(20_000, noise=Noise.seeded(1, 20_000))[:, 0].double().numpy()
    cdf = lambda v: 0.3 * scipy.stats.norm.cdf(v, -1.5, 0.4) + 0.7 * scipy.stats.norm.cdf(v, 1.0, 0.4)  # noqa: E731
    assert scipy.stats.kstest(x, cdf).pvalue > 1e-3


def test_entropies():
    board = d.Checkerboard()
    assert board.entropy == pytest.approx(math.log(32))
    inside = board.sample(1000, noise=Noise.seeded(0, 1000))
    torch.testing.assert_close(-board.log_prob(inside), torch.full((1000,), math.log(32)))
    single = d.Gaussians([(1.0, 2.0, 3.0)], 0.3)
    assert single.entropy == pytest.approx(scipy.stats.multivariate_normal(np.zeros(3), 0.09).entropy())
    arm = d.Pinwheel(1, winding=1.3)
    logp = arm.log_prob(arm.sample(50_000, noise=Noise.seeded(0, 50_000)).double())
    assert -logp.mean().item() == pytest.approx(arm.entropy, abs=4 * logp.std().item() / 50_000**0.5)
    assert d.eight_gaussians().entropy is None


def test_off_the_board_is_impossible():
    board = d.Checkerboard()
    x = torch.tensor([[-3.0, -3.0], [-3.0, -1.0], [9.0, 0.0], [1.0, -1.0], [1.0, 1.0]])
    assert board.log_prob(x).isfinite().tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_points(density, dtype):
    x = density.sample(9, noise=Noise.seeded(0, 9)).to(dtype)
    assert density.log_prob(x).dtype == dtype
    torch.testing.assert_close(density.log_prob(x).double(), density.log_prob(x.double()), rtol=1e-3, atol=1e-3)


def test_sample_depends_on_its_own_key_alone(density):
    key = keys(torch.arange(50), 3)
    whole, some = density.sample(50, noise=Noise(key)), density.sample(1, noise=Noise(key[20:21]))
    torch.testing.assert_close(whole[20:21], some, atol=1e-6, rtol=1e-6)
    assert density.sample(0, noise=Noise(key[:0])).shape == (0, 2)


def test_serves_the_protocols_of_models(density):
    assert isinstance(density, Samples)
    assert isinstance(density, LogProb)
    assert density.space().shape == (2,)
    torch.manual_seed(0)
    assert not density.sample(5).equal(density.sample(5))  # without noise, from the default generator


@pytest.mark.parametrize(
    "make",
    [
        lambda: d.Gaussians([], 1.0),
        lambda: d.Gaussians([(0.0,), (0.0, 1.0)], 1.0),
        lambda: d.Gaussians([(0.0,)], 0.0),
        lambda: d.Gaussians([(0.0,)], 1.0, (0.5, 0.5)),
        lambda: d.Gaussians([(0.0,), (1.0,)], 1.0, (1.0, -1.0)),
        lambda: d.Checkerboard(1),
        lambda: d.Checkerboard(4, -1.0),
        lambda: d.Arcs([(0.0, 0.0, 1.0, 0.0, 7.0)], 0.1),
        lambda: d.Arcs([(0.0, 0.0, 1.0)], 0.1),
        lambda: d.Arcs([], 0.1),
        lambda: d.Pinwheel(0),
        lambda: d.Pinwheel(across=0.0),
        lambda: d.Drawn(d.moons(), 0),
        lambda: d.Fresh(d.moons(), 0),
    ],
)
def test_mistakes_are_one_sentence(make):
    with pytest.raises(UserError) as said:
        make()
    assert str(said.value).endswith(".")


# ---- as data -------------------------------------------------------------------------------------------------------


def test_fresh_samples_are_a_function_of_seed_and_place_in_the_stream():
    source = d.Fresh(d.moons(), 6)
    source.start(Place(seed=5))
    steps = [source.next() for _ in range(4)]
    assert torch.cat([s["index"] for s in steps]).tolist() == list(range(24))
    assert len(torch.cat([s["key"] for s in steps]).unique()) == 24
    pieces = []
    for rank in range(3):
        part = d.Fresh(d.moons(), 6)
        part.start(Place(rank, 3, seed=5))
        part.restore({"position": 12})
        pieces.append(part.next())
    for name in ("x", "key", "index"):
        torch.testing.assert_close(torch.cat([p[name] for p in pieces]), steps[2][name])
    other = d.Fresh(d.moons(), 6)
    other.start(Place(seed=6))
    assert not other.next()["x"].equal(steps[0]["x"])
    source.restore({"position": 6})
    assert source.next()["x"].equal(steps[1]["x"])
    assert source.state() == {"position": 12}
    with pytest.raises(UserError, match="take 8"):
        d.Fresh(d.moons(), 6).start(Place(0, 4))


def test_fresh_samples_do_not_share_their_noise_with_the_loss():
    gaussian = d.Gaussians([(0.0, 0.0)], 1.0)
    batch = d.Fresh(gaussian, 4000).next()
    noise = Noise(batch["key"])
    for _ in range(4):
        z = noise.normal(2)
        assert abs(torch.corrcoef(torch.cat((batch["x"], z), 1).T)[:2, 2:]).max() < 0.06


def test_drawn_is_fixed_and_not_what_is_trained_on():
    one, two = d.Drawn(d.rings(), 100, 0), d.Drawn(d.rings(), 100, 0)
    everything = torch.arange(100)
    assert one.take(everything)["x"].equal(two.take(everything)["x"])
    assert not one.take(everything)["x"].equal(d.Drawn(d.rings(), 100, 1).take(everything)["x"])
    fresh = d.Fresh(d.rings(), 100).next()["x"]
    assert torch.cdist(one.take(everything)["x"], fresh).min() > 0
