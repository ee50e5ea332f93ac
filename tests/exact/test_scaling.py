"""Scaling laws: what was planted is found again, within the interval that is stated; a plausible wrong fit does not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from morphogen.errors import UserError
from morphogen.scaling import NAMES, Law, Point, curve, fit, objective, optimum, read_law

TRUTH = np.array([1.2, 30.0, 60.0, 0.35, 0.30])  # E, A, B, α, β
SIZES, AMOUNTS = np.geomspace(5e4, 1e6, 5), (1e6, 2e6, 4e6, 8e6)


def planted(noise: float, seed: int, truth: NDArray[np.float64] = TRUTH) -> list[Point]:
    """A grid of runs of a law, whose log losses scatter normally."""
    rng = np.random.default_rng(seed)
    return [
        Point(n, d, float(curve(truth, n, d) * np.exp(noise * rng.standard_normal()))) for n in SIZES for d in AMOUNTS
    ]


def wrong(points: Sequence[Point], *, draws: int, seed: int) -> Law:
    """Least squares of log L on log N and log D: two power laws multiplied, and no E."""
    rng, rows = np.random.default_rng(seed), np.array([p[:3] for p in points])
    found = []
    for i in range(draws + 1):
        n, d, loss = (rows if i == 0 else rows[rng.integers(len(rows), size=len(rows))]).T
        columns = np.stack([np.ones_like(n), -np.log(n), -np.log(d)], 1)
        a, alpha, beta = np.linalg.lstsq(columns, np.log(loss), rcond=None)[0]
        found.append([0.0, math.exp(a), 0.0, alpha, beta])
    theta = np.array(found)
    return Law(theta[0], theta[1:], np.zeros(1), points)


def covered(fitter: Callable[..., Law], seeds: int, noise: float, draws: int) -> dict[str, float]:
    """How often each planted number lies in its 90 % interval."""
    hits = dict.fromkeys(NAMES, 0)
    for seed in range(seeds):
        law = fitter(planted(noise, seed), draws=draws, seed=seed)
        for name, value in zip(NAMES, TRUTH, strict=True):
            told = law.intervals[name]
            hits[name] += told.low <= value <= told.high
    return {name: n / seeds for name, n in hits.items()}


@pytest.mark.parametrize("seed", range(3))
def test_without_noise_the_law_itself_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    alpha, beta, e = rng.uniform(0.25, 0.6), rng.uniform(0.25, 0.6), rng.uniform(0.05, 3)
    truth = np.array([e, e * rng.uniform(0.3, 2) * 2e5**alpha, e * rng.uniform(0.3, 2) * 3e6**beta, alpha, beta])
    law = fit(planted(0.0, seed, truth), draws=1)
    assert law.theta == pytest.approx(truth, rel=0.02)
    assert float(law(1e7, 1e8)) == pytest.approx(float(curve(truth, 1e7, 1e8)), rel=1e-3)  # far outside of the grid


def test_the_gradient_is_that_of_the_objective() -> None:
    rng = np.random.default_rng(0)
    at, log_l = rng.standard_normal((2, 9)), rng.standard_normal(9) * 1e-3
    for theta in (rng.standard_normal(5), np.array([-1.1, -1.1, -1.1, 1e-4, 1e-4])):  # both branches of Huber's loss
        numeric = [
            (objective(theta + h, at, log_l)[0] - objective(theta - h, at, log_l)[0]) / 2e-6 for h in np.eye(5) * 1e-6
        ]
        assert objective(theta, at, log_l)[1] == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_what_was_planted_lies_within_the_interval_and_a_wrong_fit_does_not_find_it() -> None:
    right = covered(fit, seeds=2, noise=0.004, draws=25)
    assert min(right.values()) > 0  # of two; the slow test counts them
    without = covered(wrong, seeds=20, noise=0.004, draws=40)
    assert max(without[name] for name in ("E", "alpha", "beta")) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_intervals_cover_as_often_as_they_say() -> None:
    right = covered(fit, seeds=60, noise=0.004, draws=100)
    print("", *(f"{name}={share:.3f}" for name, share in right.items()), f"least={min(right.values())}", sep="\n")
    assert min(right.values()) >= 0.8  # of 90 %: 60 draws of a coin of 0.9 give fewer than 0.8 once in 100 times


def test_a_run_gone_wrong_does_not_pull_the_law() -> None:
    points = planted(0.002, 1)
    spoilt = [p._replace(loss=p.loss * 2) if i == 7 else p for i, p in enumerate(points)]
    sound, robust = fit(points, draws=1), fit(spoilt, draws=1)
    assert float(robust(3e6, 3e7)) == pytest.approx(float(sound(3e6, 3e7)), rel=0.02)


def test_units_are_ones_own() -> None:
    """Loss in other units, and tokens counted in thousands, give the same law."""
    points = planted(0.003, 2)
    law = fit(points, draws=1)
    other = fit([Point(p.n, p.d / 1000, p.loss * 700, p.run) for p in points], draws=1)
    assert float(other(4e6, 5e4)) == pytest.approx(700 * float(law(4e6, 5e7)), rel=1e-3)
    assert other.theta[3:] == pytest.approx(law.theta[3:], rel=1e-2)


def test_the_best_size_is_the_best() -> None:
    k, compute = 7.5, 3e14
    n, d, loss = optimum(TRUTH[None], compute / k)[0]
    assert k * n * d == pytest.approx(compute)
    assert loss == pytest.approx(float(curve(TRUTH, n, d)))
    tried = n * np.geomspace(0.2, 5, 1001)
    assert loss <= curve(TRUTH, tried, compute / k / tried).min() + 1e-12
    law = Law(TRUTH, np.stack([TRUTH, TRUTH]), np.zeros(1), planted(0, 0))
    assert law.best(compute, k).n == (pytest.approx(n),) * 3


def test_a_new_run_falls_within_what_is_told_of_it() -> None:
    """Of new runs at a larger size and amount about nine of ten."""
    noise = 0.004
    rng, hits, laws = np.random.default_rng(9), 0, [fit(planted(noise, s), draws=20, seed=s) for s in range(2)]
    for law in laws:
        told = law.predict(2e6, 1.6e7)
        assert told.low < told.value < told.high
        new = curve(TRUTH, 2e6, 1.6e7) * np.exp(noise * rng.standard_normal(100))
        hits += int(((told.low <= new) & (new <= told.high)).sum())
    assert hits >= 0.75 * 200


def test_a_law_is_kept_as_json(tmp_path: Path) -> None:
    law = fit(planted(0.01, 3), draws=5, about={"recipe": "names-gpt", "unit": "tokens"})
    file = tmp_path / "law.json"
    file.write_text(json.dumps(law.page()))
    again = read_law(file)
    assert again.about == law.about
    assert again.points == law.points
    assert again.predict(3e6, 1e7) == pytest.approx(law.predict(3e6, 1e7), rel=1e-5)
    assert again.beyond(SIZES[0], 2e6) == []
    assert again.beyond(2e6, 8e7) == [
        "2 times more parameters than any run that the law was fitted to",
        "10 times more tokens than any run that the law was fitted to",
    ]
    page = law.page()
    spoilt: list[dict[str, Any]] = [
        {"law": 3},
        {"law": page["law"] | {"alpha": math.nan}},
        {"law": page["law"] | {"beta": -1.0}},
        {"draws": []},
        {"draws": [[1.0, 2.0]]},
        {"draws": [[math.inf] * 5]},
        {"scatter": []},
        {"scatter": [[0.1]]},
        {"scatter": 0.1},
        {"points": []},
        {"points": [{"n": 1}]},
        {"points": [{"n": -1, "d": 1, "loss": 1, "run": ""}]},
        {"level": 90},
        {"arguments": []},
        {"size": "width"},
    ]
    for text in ("", "[]", '{"format": 1}', '{"format": 2}', *(json.dumps(page | change) for change in spoilt)):
        file.write_text(text)
        with pytest.raises(UserError, match=r"law\.json"):
            read_law(file)


def test_what_the_runs_do_not_tell_is_said() -> None:
    """A loss that does not fall with the size, or falls with it by less than the runs scatter."""
    assert fit(planted(0.003, 4), draws=1).untold() == []
    flat = np.array([1.2, 0.0, 60.0, 0.35, 0.30])
    assert fit(planted(0.003, 4, flat), draws=1, about={"unit": "tokens"}).untold() == ["parameters"]
    rises = [p._replace(loss=1.2 + 30 * p.n**-0.35 + 0.1 * p.d / 8e6) for p in planted(0.0, 0)]
    assert fit(rises, draws=1, about={"unit": "tokens"}).untold() == ["tokens"]


def test_runs_that_tell_no_law_are_refused() -> None:
    points = planted(0.0, 0)
    for few in ([], points[:5], [p for p in points if p.n == points[0].n], [p for p in points if p.d < 3e6]):
        with pytest.raises(UserError, match="at least 3 sizes and 3 budgets"):
            fit(few)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="losses above 0"):
            fit([*points, Point(1e5, 1e6, bad, "width-8")])
