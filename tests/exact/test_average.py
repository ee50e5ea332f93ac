"""Averages of weights: their profiles by direct sums and by quadrature, and what is averaged at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from morphogen import EMA, Loss, Model, PowerEMA, UserError
from morphogen.average import LIVE, Average, averages, parts_of, rules_of, snapshot
from morphogen.posthoc import (
    LONGEST,
    MOST,
    REACH,
    Snapshots,
    combination,
    due,
    gamma_of,
    length_of,
    overlap,
    put_together,
)

LENGTHS = (0.02, 0.05, 0.1, 0.17, 0.25, LONGEST)


class Bare(Model):
    """Whatever parameters a test gives it."""

    def __init__(self, **parameters) -> None:
        super().__init__()
        for name, p in parameters.items():
            self.register_parameter(name, p if isinstance(p, nn.Parameter) else nn.Parameter(p))

    def loss(self, batch) -> Loss:
        raise NotImplementedError


def walk(model: Model, kept: list[Average], steps: int, seed: int = 0):
    """A random walk of the weights, taken in by the averages; the weights after each step, in float64."""
    generator = torch.Generator().manual_seed(seed)
    live = list(model.parameters())
    path = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            for p in live:
                if p.requires_grad:
                    p += 0.1 * torch.randn(p.shape, generator=generator).to(p.dtype)
        for average in kept:
            average.update(step)
        path.append([p.detach().double().clone() for p in live])
        yield step, path


def mixed(path: list[list[torch.Tensor]], weight: np.ndarray, i: int = 0) -> torch.Tensor:
    return sum(w * float(c) for w, c in zip((row[i] for row in path), weight, strict=True))


# ---- profiles ------------------------------------------------------------------------------------------------------


def test_gamma_and_the_length_are_those_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    for length in LENGTHS:
        gamma = gamma_of(length)
        assert gamma >= 0
        assert length_of(gamma) == pytest.approx(length, rel=1e-12)
        u = (np.arange(200_000) + 0.5) / 200_000
        p = (gamma + 1) * u**gamma / 200_000
        assert math.sqrt(p @ u**2 - (p @ u) ** 2) == pytest.approx(length, rel=1e-5)
    assert length_of(0) == pytest.approx(1 / math.sqrt(12))


def test_overlaps_are_the_integrals():
    x, w = np.polynomial.legendre.leggauss(200)
    rng = np.random.default_rng(0)
    for _ in range(40):
        (t_a, t_b), (g_a, g_b) = rng.integers(1, 5000, 2).astype(float), rng.uniform(0, 40, 2)
        least = min(t_a, t_b)
        tau = least * (x + 1) / 2
        with np.errstate(divide="ignore"):
            profile = [np.exp(np.log(g + 1) + g * np.log(tau / t)) / t for t, g in ((t_a, g_a), (t_b, g_b))]
        integral = least / 2 * np.sum(w * profile[0] * profile[1])
        found = float(overlap(t_a, g_a, t_b, g_b))
        assert found == pytest.approx(integral, rel=1e-10, abs=1e-250)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_power_average_is_its_sum(length):
    model = Bare(a=torch.randn(3, 5), b=torch.randn(()))
    (average,) = averages((PowerEMA((length,)),), model)
    gamma = gamma_of(length)
    for step, path in walk(model, [average], 37):
        i = np.arange(1, step + 1)
        weight = (i / step) ** (gamma + 1) - ((i - 1) / step) ** (gamma + 1)
        assert weight.sum() == pytest.approx(1)
        for k, mean in enumerate(average.mean.values()):
            torch.testing.assert_close(mean.double(), mixed(path, weight, k), rtol=0, atol=2e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_an_exponential_average_is_its_sum_and_bit_for_bit_what_it_was(decay):
    model = Bare(a=torch.randn(3, 5), b=torch.randn(()))
    (average,) = averages((EMA(decay),), model)
    before = [p.detach().clone() for p in model.parameters()]  # as recorded runs have averaged
    start = before[0].double()
    for step, path in walk(model, [average], 25):
        d = [min(decay, (1 + t) / (10 + t)) for t in range(1, step + 1)]
        weight = np.array([(1 - d[i]) * math.prod(d[i + 1 :]) for i in range(step)])
        expected = mixed(path, weight) + math.prod(d) * start
        torch.testing.assert_close(average.mean["a"].double(), expected, rtol=0, atol=2e-6)
        with torch.no_grad():
            torch._foreach_lerp_(before, list(model.parameters()), 1 - min(decay, (1 + step) / (10 + step)))
        assert all(torch.equal(a, b) for a, b in zip(before, average.mean.values(), strict=True))


# ---- post hoc ------------------------------------------------------------------------------------------------------


def norm_of(c, t, gamma, to, wished, n=100_000):
    """‖Σ c_i p_i - p‖ / ‖p‖ by the midpoint rule on (0, to]."""
    tau = (np.arange(n) + 0.5) * to / n
    p = (wished + 1) * (tau / to) ** wished / to
    total = sum(
        ci * np.where(tau <= ti, (gi + 1) * np.minimum(tau / ti, 1.0) ** gi / ti, 0.0)
        for ci, ti, gi in zip(c, t, gamma, strict=True)
    )
    return math.sqrt(np.mean((total - p) ** 2) / np.mean(p**2))


def test_the_combination_is_the_nearest_of_sum_one():
    rng = np.random.default_rng(1)
    t = np.repeat([7.0, 20.0, 41.0, 64.0], 2)
    gamma = np.tile([gamma_of(0.05), gamma_of(0.1)], 4)
    for wished in map(gamma_of, (0.04, 0.07, 0.15, 0.25)):
        c, left = combination(t, gamma, 64.0, wished)
        assert c.sum() == pytest.approx(1, abs=1e-12)
        assert left == pytest.approx(norm_of(c, t, gamma, 64.0, wished), rel=1e-3)
        for _ in range(10):  # no other one near it, of the same sum, is nearer
            step = rng.normal(size=8)
            other = c + 0.02 * (step - step.mean())
            assert norm_of(other, t, gamma, 64.0, wished) > left


def test_a_profile_that_is_there_is_taken_alone():
    t = np.repeat([10.0, 30.0, 55.0], 2)
    gamma = np.tile([gamma_of(0.05), gamma_of(0.1)], 3)
    c, left = combination(t, gamma, 55.0, gamma_of(0.1))
    assert left < 1e-6
    np.testing.assert_allclose(c, [0, 0, 0, 0, 0, 1], atol=1e-6)
    c, left = combination(np.array([9.0]), np.array([gamma_of(0.1)]), 9.0, gamma_of(0.1))  # of one alone
    assert (c.tolist(), left) == ([pytest.approx(1)], pytest.approx(0, abs=1e-7))


@pytest.mark.parametrize("steps", [40, 151, 700])
def test_any_length_is_put_together_within_its_bound(tmp_path, steps):
    """|Σ ∫ (p̂ - p) w| <= ‖p̂ - p‖ ‖w - m‖ for every constant m, by Cauchy and Schwarz: nothing is tuned here."""
    model = Bare(a=torch.randn(7), b=torch.randn(()))
    wished = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
    kept = averages(rules_of([PowerEMA((0.05, 0.1)), PowerEMA((0.03, 0.07, 0.15, 0.2, 0.25), snapshots=0)]), model)
    bases, store = kept[:2], Snapshots(tmp_path)
    for step, path in walk(model, kept, steps):  # noqa: B007
        snapshot(kept, tmp_path, step)
    exact = {float(a.name): a.mean for a in kept}
    w = torch.stack([row[0] for row in path])
    away = (w - w.mean(0)).square().mean(0).sqrt()  # ‖w - m‖ / √t, of each weight
    at = [*[s for s in store.steps() if s < steps], steps]
    t, gamma = np.repeat(np.array(at, float), 2), np.tile([gamma_of(0.05), gamma_of(0.1)], len(at))
    for length in wished:
        _, left = combination(t, gamma, steps, gamma_of(length))
        found = put_together(length, {a.name: a.mean for a in bases}, tmp_path, steps, pytest.fail)
        assert left < 0.04
        size = math.sqrt((gamma_of(length) + 1) ** 2 / (2 * gamma_of(length) + 1))  # ‖p‖ √t
        bound = left * size * away + 3e-5 * (1 + w.abs().max())  # and rounding: float32 snapshots, Σ |c| < 20
        assert (found["a"].double() - exact[length]["a"].double()).abs().le(bound).all()
        assert found["a"].dtype == torch.float32
        assert found["b"].shape == ()


def test_weights_that_did_not_move_stay_where_they_are(tmp_path):
    model = Bare(a=torch.full((3,), 1e4), b=nn.Parameter(torch.zeros(2)))
    kept, store = averages((PowerEMA(),), model), Snapshots(tmp_path)
    for step in range(1, 301):
        for average in kept:
            average.update(step)
        if due(step, 8):
            store.write(step, {a.name: a.mean for a in kept})
    found = put_together(0.2, {a.name: a.mean for a in kept}, tmp_path, 300, pytest.fail)
    torch.testing.assert_close(found["a"], model.a.detach(), rtol=1e-6, atol=0)
    assert torch.equal(found["b"], torch.zeros(2))


def test_a_length_out_of_reach_is_refused(tmp_path):
    model = Bare(a=torch.randn(3))
    kept = averages((PowerEMA((0.05,)),), model)
    for average in kept:
        average.update(1)
    Snapshots(tmp_path).write(1, {a.name: a.mean for a in kept})
    present = {a.name: a.mean for a in kept}
    with pytest.raises(UserError, match=r"length 0\.2 after step 900 .* 1 snapshots of 0\.05: .*% off"):
        put_together(0.2, present, tmp_path, 900, pytest.fail)
    assert torch.equal(put_together(0.2, present, tmp_path, 0, pytest.fail)["a"], kept[0].mean["a"])
    assert MOST < 0.1


def test_snapshots_are_even_in_the_logarithm_and_bounded():
    for doubling in (1, 3, 8, 12, 16):
        for power in (16, 64, 1024):
            assert sum(due(step, doubling) for step in range(power, 2 * power)) == min(doubling, power)
    assert [s for s in range(64, 160) if due(s, 16)] == [*range(64, 128, 4), *range(128, 160, 8)]
    assert all(due(step, 16) for step in range(1, 17))
    assert not any(due(step, 0) for step in range(1, 100))
    alive = [s for s in range(1, 100_001) if due(s, 16) and s * REACH >= 100_000]
    assert len(alive) == 16 * 6


def test_snapshots_in_reach_stay_and_others_go(tmp_path):
    store = Snapshots(tmp_path)
    for step in (1, 2, 3, 63, 64, 65, 128):
        store.write(step, {"0.1": {"a": torch.full((2,), float(step))}})
        assert store.steps() == [s for s in (1, 2, 3, 63, 64, 65, 128) if s <= step and s * REACH >= step]
    assert store.read(64)["0.1"]["a"].tolist() == [64.0, 64.0]


# ---- what is averaged ----------------------------------------------------------------------------------------------


def test_frozen_parameters_are_left_alone():
    frozen = torch.randn(4)
    model = Bare(a=torch.randn(3), still=nn.Parameter(frozen.clone(), requires_grad=False))
    kept = averages((EMA(0.9), PowerEMA()), model)
    for _ in walk(model, kept, 9):
        pass
    for average in kept:
        assert set(average.mean) == {"a"}
        with average.swapped():
            assert torch.equal(model.still, frozen)
            assert torch.equal(model.a, average.mean["a"])
    assert torch.equal(model.still, frozen)


@pytest.mark.parametrize("rule", [EMA(0.7), PowerEMA((0.1,))])
def test_what_is_frozen_later_is_averaged_over_all_that_it_was(rule):
    model = Bare(a=torch.randn(3), b=torch.randn(2))
    (average,) = averages((rule,), model)
    (decay,) = rule.decays.values()
    expected = model.b.detach().double().clone()
    for step, path in walk(model, [average], 20):
        model.b.requires_grad_(step < 8)
        expected = decay(step) * expected + (1 - decay(step)) * path[-1][1]
        torch.testing.assert_close(average.mean["b"].double(), expected, rtol=0, atol=2e-6)
    assert not torch.equal(average.mean["b"], model.b)


class Twins(Model):
    """A critic of the scaffold that shares a table with the net, and one weight that the net uses twice."""

    scaffold = ("critic", "margin")

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(2, 3)
        self.margin = nn.Parameter(torch.randn(2))
        self.net = nn.Linear(2, 3)
        self.again = nn.Linear(2, 3)
        self.net.weight = self.critic.weight
        self.again.weight = self.net.weight

    def loss(self, batch) -> Loss:
        raise NotImplementedError


def test_tied_parameters_are_averaged_once_and_stay_tied():
    model = Twins()
    kept = averages((EMA(0.5), PowerEMA((0.1,))), model)
    for average in kept:
        assert set(average.mean) == {"net.weight", "net.bias", "again.bias"}  # of the scaffold alone: left out
    for _ in walk(model, kept, 5):
        pass
    own = model.net.weight.detach().clone()
    with kept[1].swapped():
        assert model.critic.weight is model.net.weight is model.again.weight
        assert torch.equal(model.again.weight, kept[1].mean["net.weight"])
    assert torch.equal(model.net.weight, own)
    model.load_state_dict(kept[0].mean, strict=False)
    assert model.critic.weight is model.net.weight is model.again.weight
    assert torch.equal(model.critic.weight, kept[0].mean["net.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_averaged_in_float32(dtype):
    model = Bare(a=torch.ones(4, dtype=dtype))
    (average,) = averages((EMA(0.999),), model)
    with torch.no_grad():
        model.a += 1
    for step in range(10_000, 10_100):  # past the warm-up: a step of 0.001, which half precision would lose
        average.update(step)
    torch.testing.assert_close(average.mean["a"], torch.full((4,), 2 - 0.999**100), rtol=0, atol=1e-5)
    own = model.a.detach().clone()
    with average.swapped():
        assert model.a.dtype == dtype
        assert torch.equal(model.a, average.mean["a"].to(dtype))
    assert torch.equal(model.a, own)


def test_double_precision_is_kept_and_the_memory_is_shared():
    model = Bare(a=torch.randn(3, dtype=torch.float64))
    (average,) = averages((EMA(),), model)
    assert average.mean["a"].dtype == torch.float64
    with average.swapped():
        assert model.a.data_ptr() == average.mean["a"].data_ptr()  # no copy of the weights


def test_a_model_with_nothing_to_average(tmp_path):
    for model in (Bare(), Bare(a=nn.Parameter(torch.ones(2), requires_grad=False)), Bare(a=torch.zeros(0, 3))):
        kept, store = averages((EMA(), PowerEMA()), model), Snapshots(tmp_path)
        for step in range(1, 4):
            for average in kept:
                average.update(step)
            snapshot(kept, tmp_path, step)
        assert store.steps() == ([1, 2, 3] if kept[0].mean else [])
        with kept[0].swapped(), kept[1].swapped():
            pass
        found = put_together(0.095, {a.name: a.mean for a in kept[1:]}, tmp_path, 3, pytest.fail)
        assert set(found) == set(kept[1].mean)


# ---- names and mistakes --------------------------------------------------------------------------------------------


def test_averages_have_names_and_the_first_keeps_its_place():
    assert parts_of(rules_of(None)) == {}
    assert parts_of(rules_of(EMA(0.9998))) == {"0.9998": "average"}
    several = rules_of([EMA(0.99), PowerEMA((0.05, 0.1)), EMA(0)])
    assert parts_of(several) == {
        "0.99": "average", "0.05": "average-0.05", "0.1": "average-0.1", "0.0": "average-0.0"
    }  # fmt: skip
    assert LIVE not in parts_of(several)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EMA(1.0), r"\[0, 1\)"),
        (lambda: PowerEMA(()), "one or more"),
        (lambda: PowerEMA((0.05, 0.3)), r"\(0, 0\.2886\]"),
        (lambda: PowerEMA((0.0,)), "such as 0.05, 0.1"),
        (lambda: PowerEMA((0.05, 0.05)), "each of them once"),
        (lambda: PowerEMA(snapshots=-1), "or 0"),
        (lambda: rules_of(0.999), r"give EMA\(0\.999\)"),
        (lambda: rules_of([EMA(), 0.5]), r"give EMA\(0\.999\)"),
        (lambda: rules_of([EMA(0.1), PowerEMA()]), "two averages by the name of 0.1"),
    ],
)
def test_mistakes_are_sentences(make, says):
    with pytest.raises(UserError, match=says):
        make()
