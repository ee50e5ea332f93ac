"""What returns come to: the statistics beside scipy's and a bootstrap by enumeration; and episodes, counted fairly."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from morphogen.core import Act, Greedy, Model, can
from morphogen.data.augment import Augmented
from morphogen.errors import UserError
from morphogen.metrics.returns import interquartile_mean, mean, median, return_measures, stratified_bootstrap
from morphogen.rl.control import lqr
from morphogen.rl.env import CartPole, Catch, Gymnasium, LinearQuadratic, PointMaze, Rated, Simulated
from morphogen.rl.env.env import Box, Choice, Step, Task, Transition
from morphogen.rl.play import another, environment, play
from morphogen.rl.rollouts import Online, Rollouts
from morphogen.rl.tabular import cliff_walking, frozen_lake, grid4, ski_resort, value_iteration
from morphogen.rl.tabular.control import Control, DoubleQ
from morphogen.spec import Remembers, arguments

# ---- statistics ----------------------------------------------------------------------------------------------------


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_t(2, shape)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 10, 23, 100])
def test_the_interquartile_mean_is_scipys(n):
    stats = pytest.importorskip("scipy.stats")
    scores = drawn(6, n, seed=n)
    np.testing.assert_allclose(interquartile_mean(scores), stats.trim_mean(scores, 0.25, axis=-1), rtol=1e-13)
    assert interquartile_mean(scores[0]) == pytest.approx(stats.trim_mean(scores[0], 0.25), rel=1e-13)


def quantiles(strata, statistic):
    """The quantiles of every way to draw the strata again, each as likely as any other."""
    ways = product(*[list(product(s, repeat=len(s))) for s in strata])
    every = np.array([np.concatenate(way) for way in ways])
    values = np.sort(statistic(every))
    return values, np.quantile(values, 0.025), np.quantile(values, 0.975)


@pytest.mark.parametrize("statistic", [mean, median, interquartile_mean])
@pytest.mark.parametrize("shape", [(5,), (3, 3), (2, 4)])
def test_the_bootstrap_is_that_of_all_ways_to_draw_again(statistic, shape):
    """Up to what 10,000 of the draws can tell: each end lies where a share of 0.025 ± 5 of its errors are beyond."""
    strata = [10 * k + drawn(n, seed=n + k) for k, n in enumerate(shape)]
    values, _, _ = quantiles(strata, statistic)
    low, high = stratified_bootstrap(strata, statistic, seed=1)
    slack = 5 * (0.025 * 0.975 / 10_000) ** 0.5
    assert (values < low - 1e-9).mean() <= 0.025 + slack
    assert (values <= low + 1e-9).mean() >= 0.025 - slack
    assert (values > high + 1e-9).mean() <= 0.025 + slack
    assert (values >= high - 1e-9).mean() >= 0.025 - slack
    assert (low, high) == stratified_bootstrap(strata, statistic, seed=1)
    assert len(shape) == 1 or high - low < 5  # strata 10 apart are never drawn for one another


def test_an_interval_holds_the_mean_as_often_as_it_says():
    """Of 30 normal numbers, within what 400 trials can tell (a bootstrap is a little narrow)."""
    held = 0
    for seed in range(400):
        low, high = stratified_bootstrap([np.random.default_rng(seed).normal(size=30)], mean, resamples=500, seed=seed)
        held += low <= 0 <= high
    assert 0.90 <= held / 400 <= 0.975


def test_measures_of_one_run_are_over_episodes_and_of_several_over_runs():
    one = return_measures([[1.0, 2.0, 3.0, 10.0]], [[5, 5, 5, 5]])
    assert [one[k].value for k in ("return", "return_median", "return_iqm", "length")] == [4.0, 2.5, 2.5, 5.0]
    assert one["return"].n == 4
    assert one["length"].low == one["length"].high == 5
    runs = return_measures([[1.0, 3.0], [5.0, 7.0], [100.0, 0.0]], [[1, 1], [2, 2], [3, 3]])
    assert [runs[k].value for k in ("return", "return_median", "return_iqm", "length")] == [
        pytest.approx(58 / 3), 6.0, pytest.approx(58 / 3), 2.0,
    ]  # fmt: skip
    assert runs["return"].n == 3
    assert (runs["return"].low, runs["return"].high) == (2.0, 50.0)
    with pytest.raises(UserError, match="no interval"):
        return_measures([[1.0]], [[1]])
    with pytest.raises(UserError, match="no score"):
        stratified_bootstrap([[1.0], []])


# ---- episodes ------------------------------------------------------------------------------------------------------


class Coin(Task):
    """An episode of 1 step that pays 0, or one of 9 that pay 1 each, by a coin at its beginning. State: (B, 2)."""

    def __init__(self) -> None:
        self.observation, self.action, self.limit = Box((2,)), Choice(2), None

    def begin(self, noise):
        return torch.stack(((noise.uniform() < 0.5).float(), torch.zeros(len(noise))), 1)

    def advance(self, state, action, noise):
        there = state + torch.tensor([0.0, 1.0])
        long = there[:, 0] > 0
        return Transition(there, long.float(), ~long | (there[:, 1] >= 9))

    def observe(self, state):
        return state

    def draw(self, state):
        raise NotImplementedError


class Left(Model):
    """Pushes left, always; or, greedily, right. Remembers how many steps its episode has had, and says it."""

    judged_greedy = False

    def act(self, obs, memory=None, *, noise):
        memory = torch.zeros(len(obs)) if memory is None else memory
        return Act(torch.zeros(len(obs), dtype=torch.int64), {"value": memory}, memory + 1)

    def greedy(self, obs, memory=None):
        return Act(torch.ones(len(obs), dtype=torch.int64), {}, memory)


class Chance(Model):
    """Acts at random, and in no other way."""

    def __init__(self, n=2):
        super().__init__()
        self.n = n

    def act(self, obs, memory=None, *, noise):
        return Act(noise.integers(self.n))


@pytest.mark.parametrize(("slots", "n"), [(1, 51), (7, 300), (64, 1001)])
def test_short_episodes_count_as_often_as_long_ones(slots, n):
    """Half of all episodes are long, and whoever took the first to end would find far fewer."""
    played = play(Left(), Simulated(Coin(), slots), n, seed=slots)
    assert set(played.lengths.tolist()) == {1, 9}
    assert torch.equal(played.returns, torch.where(played.lengths == 9, 9.0, 0.0).double())
    assert abs(float((played.lengths == 9).float().mean()) - 0.5) < 5 * 0.5 / n**0.5
    assert not bool(played.truncated.any())


def test_returns_are_those_of_episodes_played_by_hand():
    """Environment by environment, the k-th episode of a slot has what its rewards sum to, cut ones included."""
    env, told = Simulated(CartPole(limit=12), 3), []
    played = play(Left(), env, 8, seed=5, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 8
    seen = []
    play(Left(), env, 8, seed=5, watch=lambda e, over: seen.append((e.look().clone(), over.clone())))
    quota, at = [3, 3, 2], 0
    for i, q in enumerate(quota):
        steps, done = 0, 0
        for (_, _), (here, _) in pairwise(seen):
            steps += 1
            if bool((here[i].abs() <= 0.05).all()) and done < q:  # begun anew
                assert (played.returns[at].item(), played.lengths[at].item()) == (steps, steps)
                assert bool(played.truncated[at]) == (steps == 12)
                at, steps, done = at + 1, 0, done + 1
        assert done == q
    assert seen[-1][1].all()
    assert not seen[0][1].any()


def test_the_seed_decides_and_training_is_another_thing():
    env = Simulated(CartPole(), 4)
    a, b, c = (play(Chance(), env, 9, seed=s).returns for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    model = Chance().train()
    play(model, env, 1)
    assert model.training


def test_greedy_and_sampled():
    env = Simulated(CartPole(), 2)
    right, left = play(Left(), env, 4, greedy=True).lengths, play(Left(), env, 4).lengths
    assert torch.equal(play(Left(), env, 4, greedy=False).lengths, left)
    assert not torch.equal(right, left)
    assert can(Left(), Greedy)
    assert not can(Chance(), Greedy)
    with pytest.raises(UserError, match="without chance"):
        play(Chance(), env, 4, greedy=True)
    with pytest.raises(UserError, match="cannot act"):
        play(Model(), env, 4)
    with pytest.raises(UserError, match="1 or more"):
        play(Left(), env, 0)


def test_an_endless_episode_is_an_error_and_can_be_cut():
    env = Simulated(LinearQuadratic(limit=None), 2)

    class Still(Left):
        def act(self, obs, memory=None, *, noise):
            return Act(torch.zeros(len(obs), 1))

    with pytest.raises(UserError, match="has not ended in 50 steps"):
        play(Still(), env, 2, most=50)
    short = another(env, 3, limit=7)
    assert play(Still(), short, 4, most=50).lengths.tolist() == [7] * 4
    assert env.task.limit is None  # the run's own environments are as they were
    assert another(env, 5).envs == 5


class Own(Remembers):
    """An environment of a user's, two of it: an episode of `length` steps that pay 1 each."""

    def __init__(self, length: int = 3) -> None:
        self.length, self.envs, self.observation, self.action = length, 2, Box((1,)), Choice(2)

    def start(self, place):
        self.at = torch.zeros(2)

    def reset(self):
        return self.at[:, None]

    def step(self, action):
        self.at = self.at + 1
        final, over = self.at[:, None], self.at == self.length
        self.at = self.at * ~over
        return Step(self.at[:, None], torch.ones(2), over, torch.zeros(2, dtype=torch.bool), final)

    def state(self):
        return {"at": self.at}

    def restore(self, state):
        self.at = state["at"]
        return self.at[:, None]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_users_environments_are_played_as_many_as_they_are(n):
    made = another(Own(4), n)
    assert (made.length, made.envs) == (4, 2)
    assert play(Left(), made, n).lengths.tolist() == [4] * n
    with pytest.raises(UserError, match="limit is its own"):
        another(Own(), 2, limit=2)


def test_another_limit_has_another_optimum():
    """What was worked out for the old one is not kept: from a corner's neighbour 1 step, from farther ones up to 3."""
    env = Simulated(grid4(limit=1), 2)
    assert env.rated() == {"best": -1.0}
    cut = another(env, 2, limit=50)
    assert cut.rated() == Simulated(grid4(limit=50), 2).rated() == {"best": -2.0}
    assert arguments(cut.task)["limit"] == 50
    assert another(Simulated(Catch(), 2), 2, limit=4).task.limit == 4  # whose constructor has none
    pytest.importorskip("gymnasium")
    pole = Gymnasium("CartPole-v1", 1)
    assert another(pole, 2).rated() == another(pole, 2, limit=500).rated() == {"solved": 475.0}
    assert another(pole, 2, limit=50).rated() == {}


def test_environments_are_found_under_what_wraps_their_source():
    env = Simulated(CartPole(), 2)
    assert environment(Online(env)) is env
    assert environment(Augmented(Rollouts(env, 4), ())) is env
    assert environment(object()) is None


# ---- what is known of returns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_known_return_of_a_linear_system_is_what_its_best_law_gets(sigma):
    """By the gain for ever, which in 200 steps loses next to nothing: the mean of 20,000 episodes, within 4 errors."""
    task = LinearQuadratic(sigma=sigma)
    gain, _ = lqr(task.a, task.b, task.q, task.r)

    class Best(Model):
        def act(self, obs, memory=None, *, noise):
            return Act(-obs @ gain.T.to(obs))

    returns = play(Best(), Simulated(task, 20_000), 20_000).returns
    best = task.rated()["best"]
    error = float(returns.std()) / 20_000**0.5
    assert abs(float(returns.mean()) - best) < 4 * error + 1e-3 * abs(best)
    assert LinearQuadratic(bound=1.0).rated() == {}


def test_what_environments_know_of_the_best_return():
    pytest.importorskip("gymnasium")
    assert CartPole(limit=70).rated() == {"best": 70.0}
    assert CartPole(limit=None).rated() == {}
    assert Catch().rated() == PointMaze().rated() == {"best": 1.0}
    assert cliff_walking().rated()["best"] == pytest.approx(-13)
    assert frozen_lake().rated()["best"] == pytest.approx(0.7441903, abs=1e-6)  # in its 100 steps
    assert frozen_lake(limit=None).rated()["best"] == pytest.approx(14 / 17, abs=1e-6)
    assert ski_resort().rated() == {}  # one can earn there for ever
    assert isinstance(Simulated(CartPole(), 1), Rated)
    assert Simulated(CartPole(), 1).rated() == {"best": 500.0}


@pytest.mark.parametrize("kind", [Control, DoubleQ])
def test_a_planned_table_gets_what_is_known_to_be_best(kind):
    """A table of the best values, played greedily, has the best return; ε-greedily, less."""
    world = grid4(limit=50)
    agent = kind(world, epsilon=0.5, learners=2)
    agent.q.copy_(value_iteration(world, 1.0).q.expand_as(agent.q))
    env, best = Simulated(world, 32), world.rated()["best"]
    assert agent.judged_greedy
    greedy = play(agent, env, 4000).returns
    assert float(greedy.mean()) == pytest.approx(best, abs=5 * float(greedy.std()) / 4000**0.5)
    assert float(play(agent, env, 400, greedy=False).returns.mean()) < best - 1
