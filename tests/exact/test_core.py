"""Keyed noise is a function of the key alone and follows its law; batches, seeds and capabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from morphogen import Noise
from morphogen.core import LogProb, Model, Samples, can, each, everyone, fold, keys, leaves, size
from morphogen.errors import UserError


def test_splitmix64_published_values():
    """The reference generator's first outputs for seed 1234567 (Vigna's splitmix64.c; listed on Rosetta Code)."""
    bits = Noise(torch.tensor([1234567])).bits(5)[0]
    assert [int(b) % 2**64 for b in bits] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def test_fold_depends_on_every_part_and_their_order():
    seen = {fold(*p) for p in ((), (0,), (0, 0), (1,), (0, 1), (1, 0), (-1,), (2**63,), (0, 1, 0))}
    assert len(seen) == 9
    assert all(0 <= s < 2**63 for s in seen)
    torch.Generator().manual_seed(max(seen))


def test_the_noise_of_a_sample_depends_on_its_key_alone():
    key = keys(torch.arange(50), 3)
    order = torch.randperm(50)
    for draw in (lambda n: n.normal(3, 5), lambda n: n.uniform(7), lambda n: n.integers(9, 2)):
        whole, shuffled, one = draw(Noise(key)), draw(Noise(key[order])), draw(Noise(key[7:8]))
        assert torch.equal(whole[order], shuffled)
        assert torch.equal(whole[7:8], one)
    assert draw(Noise(key[:0])).shape == (0, 2)


def test_successive_draws_differ_and_an_odd_count_is_a_prefix_of_nothing_else():
    noise = Noise(keys(torch.arange(4), 0))
    a, b = noise.normal(5), noise.normal(5)
    assert not torch.isclose(a, b).any()
    assert Noise(keys(torch.arange(4), 0)).normal().shape == (4,)


def test_single_and_double_precision_draw_the_same_noise():
    key = keys(torch.arange(1000), 0)
    a, b = Noise(key).normal(3, dtype=torch.float32), Noise(key).normal(3, dtype=torch.float64)
    assert a.dtype == torch.float32
    assert torch.equal(a, b.float())
    assert torch.equal(Noise(key).uniform(3, dtype=torch.float32).double(), Noise(key).uniform(3, dtype=torch.float64))


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 5])
def test_laws(seed):
    """Kolmogorov-Smirnov at 1e-4 for each of two axes: along one sample's stream, and across samples."""
    for shape in ((1, 40_000), (40_000, 1)):
        x = Noise(keys(torch.arange(shape[0]), seed)).normal(shape[1], dtype=torch.float64).flatten().numpy()
        u = Noise(keys(torch.arange(shape[0]), seed)).uniform(shape[1], dtype=torch.float64).flatten().numpy()
        assert stats.kstest(x, "norm").pvalue > 1e-4
        assert stats.kstest(u, "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / 200
        assert abs(np.corrcoef(x[:-1] ** 2, x[1:] ** 2)[0, 1]) < 4 / 200
    pairs = (
        Noise(keys(torch.arange(20_000), seed)).normal(2, dtype=torch.float64).numpy()
    )  # both of one Box-Muller pair
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 4 / 20_000**0.5


def test_uniform_never_reaches_one():
    u = Noise(keys(torch.arange(200), 0)).uniform(5000, dtype=torch.float32)
    assert 0 <= u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1


def test_categorical_follows_its_logits():
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0])
    drawn = Noise(keys(torch.arange(50_000), 1)).categorical(logits.expand(50_000, 5))
    counts = torch.bincount(drawn, minlength=5).double()
    p = logits.softmax(0).double()
    assert counts[3] == 0
    live = p > 0
    assert stats.chisquare(counts[live].numpy(), (p * 50_000 / p.sum())[live].numpy()).pvalue > 1e-4
    assert Noise(keys(torch.arange(6), 1)).categorical(torch.zeros(6, 2, 3, 4)).shape == (6, 2, 3)


def test_batches():
    batch = {"x": torch.zeros(3, 2), "cond": {"label": torch.arange(3), "none": None}}
    assert size(batch) == 3
    assert size({"cond": {"label": torch.arange(4)}}) == 4
    assert [n for n, _ in leaves(batch)] == ["x", "cond.label"]
    halves = each(batch, lambda t: t[:2])
    assert size(halves) == 2
    assert halves["cond"]["none"] is None
    with pytest.raises(ValueError, match="holds no tensor"):
        size({})


class Sampler(Model):
    def sample(self, n, cond=None, *, noise=None):
        return torch.zeros(n, 1)

    def log_prob(self, x, cond=None):
        return torch.zeros(len(x))


def test_capabilities_are_asked_for():
    model = Sampler()
    assert can(model, Samples)
    assert can(model, LogProb)
    model.lacks = (LogProb,)
    assert not can(model, LogProb)
    assert not can(torch.nn.Linear(1, 1), Samples)
    with pytest.raises(UserError, match="Sampler defines neither loss"):
        model({"x": torch.zeros(1)})


def test_alone_everyone_is_the_identity():
    x = torch.arange(3.0)
    for f in (everyone.sum, everyone.mean, everyone.gather, everyone.any):
        assert f(x) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_lie_where_they_should(dtype):
    u = Noise(keys(torch.arange(1000), 0)).uniform(200, dtype=dtype)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.float().mean() - 0.5) < 0.005
    assert Noise(keys(torch.arange(10), 0)).normal(5, dtype=dtype).isfinite().all()


@pytest.mark.parametrize("high", [0, -1, 2**24 + 1])
def test_integers_that_cannot_be_drawn_are_refused(high):
    with pytest.raises(ValueError, match="high is"):
        Noise(keys(torch.arange(3), 0)).integers(high)


def test_neighbouring_keys_draws_and_bits_are_unrelated():
    """Every bit of every 64 is fair, and free of the same bit of the next index, epoch, seed, draw and position."""
    n = 1 << 14
    index = torch.arange(n)
    first = Noise(keys(index, 0, 0))
    bits = first.bits(2)
    others = {
        "index": Noise(keys(index + 1, 0, 0)).bits(1)[:, 0],
        "epoch": Noise(keys(index, 0, 1)).bits(1)[:, 0],
        "seed": Noise(keys(index, 1, 0)).bits(1)[:, 0],
        "swapped": Noise(keys(index, 7, 0)).bits(1)[:, 0] ^ Noise(keys(index, 0, 7)).bits(1)[:, 0],
        "draw": first.bits(1)[:, 0],
        "position": bits[:, 1],
    }
    for name, other in {"fair": torch.zeros_like(index), **others}.items():
        for shift in (0, 1, 13):
            x = bits[:, 0] ^ (other << shift)
            ones = torch.stack([(x >> b & 1).sum() for b in range(shift, 64)]).double()
            assert ((ones - n / 2).abs() < 5.5 * n**0.5 / 2).all(), (name, shift)
