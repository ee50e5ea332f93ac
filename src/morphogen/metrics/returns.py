r"""What an agent's returns come to, with intervals that are honest for a handful of runs.

    interquartile mean   the mean of the scores that are left when the lowest and the highest quarter are taken away: it
                         is less swayed than the mean by one run that failed, and wastes less than the median
    stratified bootstrap each stratum's scores are drawn again with repetition, as many as they are, a number of times;
                         between the 2.5 % and the 97.5 % quantile of what a statistic comes to lies its interval

A score is the mean return of one run, where several are compared (the interval is of what other seeds would come to),
and the return of one episode where there is one run (the interval is of this very policy). Strata are tasks.

Agarwal, Schwarzer, Castro, Courville & Bellemare 2021, "Deep reinforcement learning at the edge of the statistical
precipice", arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError
from .measure import Measure

Scores = NDArray[np.float64]
Statistic = Callable[[Scores], Scores]  # of scores (..., n), over their last axis
_AT_ONCE = 2_000_000  # numbers that are drawn at once


def mean(scores: ArrayLike) -> Scores:
    """The mean over the last axis."""
    found: Scores = np.asarray(np.asarray(scores, np.float64).mean(-1))
    return found


def median(scores: ArrayLike) -> Scores:
    """The median over the last axis."""
    found: Scores = np.asarray(np.median(np.asarray(scores, np.float64), -1))
    return found


def interquartile_mean(scores: ArrayLike) -> Scores:
    """The mean over the last axis (n) without its ⌊n/4⌋ lowest and ⌊n/4⌋ highest numbers."""
    ordered = np.sort(np.asarray(scores, np.float64), -1)
    n = ordered.shape[-1]
    return mean(ordered[..., n // 4 : n - n // 4])


def stratified_bootstrap(
    strata: Sequence[ArrayLike], statistic: Statistic = interquartile_mean, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of the scores of all strata, each (n_k,).

    Raises UserError where a stratum has no score.
    """
    parts = [np.asarray(s, np.float64).ravel() for s in strata]
    if not parts or min(map(len, parts)) < 1:
        raise UserError("There is no score to draw again: give at least one of each task.")
    draw, found = np.random.default_rng(seed), []
    rows = max(1, _AT_ONCE // sum(map(len, parts)))
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        found.append(statistic(np.concatenate([s[draw.integers(len(s), size=(count, len(s)))] for s in parts], 1)))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return float(low), float(high)


def return_measures(returns: Sequence[ArrayLike], lengths: Sequence[ArrayLike], *, seed: int = 0) -> dict[str, Measure]:
    """Mean, median and interquartile mean of returns, and the mean length, of runs' episodes: each run's (episodes,).

    Of one run the scores are its episodes; of several each run's mean. Raises UserError where there is but one score,
    or a return is not finite.
    """
    if not all(np.isfinite(r).all() for r in returns):
        raise UserError("A return is not finite, so that neither is their mean: look for the reward that is not.")
    one = len(returns) == 1
    kinds = {"return": mean, "return_median": median, "return_iqm": interquartile_mean}
    names = {"return": "mean", "return_median": "median", "return_iqm": "interquartile mean"}
    scores, steps = (np.ravel(v[0]) if one else np.array([mean(r) for r in v]) for v in (returns, lengths))
    if len(scores) < 2:
        raise UserError("One score has no interval: play 2 episodes or more, better 100.")
    over = "episodes" if one else f"runs of {len(np.ravel(returns[0]))} episodes each"
    how = f"bootstrap over {over}"
    found = {
        name: Measure(
            float(f(scores)), *stratified_bootstrap([scores], f, seed=seed), len(scores), f"{names[name]} return, {how}"
        )
        for name, f in kinds.items()
    }
    length = Measure(
        float(mean(steps)), *stratified_bootstrap([steps], mean, seed=seed), len(steps), f"steps an episode, {how}"
    )
    return found | {"length": length}
