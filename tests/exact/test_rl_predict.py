"""Prediction and bandits: textbook figures, unbiasedness within standard errors, theorems on regret (oracle A10)."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.rl.tabular import evaluate, random_mdp, walk
from morphogen.rl.tabular.bandit import (
    UCB,
    Arms,
    EpsilonGreedy,
    Gradient,
    Record,
    ThompsonBernoulli,
    ThompsonNormal,
    _gamma,
    play,
)
from morphogen.rl.tabular.predict import (
    Experience,
    batch_td,
    first_visits,
    importance_ratios,
    monte_carlo,
    ordinary,
    returns,
    td_lambda,
    td_n,
    walked,
    weighted,
)


def told(rows):
    """Experience of rows (state, reward, state after, how it ended: "", "t" or "c")."""
    s, r, to, ends = zip(*rows, strict=True)
    ended = [torch.tensor([e == kind for e in ends]) for kind in "tc"]
    return Experience(
        torch.tensor(s), torch.zeros(len(s), dtype=torch.long), torch.tensor(r).double(), torch.tensor(to), *ended
    )


TOLD = told([(0, 1.0, 1, ""), (1, 2.0, 0, ""), (0, 4.0, 1, "t"), (0, 8.0, 1, "t"), (1, 9.0, 1, "c"), (0, 5.0, 1, "")])


def test_monte_carlo_by_hand():
    """γ = ½: G = 3, 4, 4, 8; the episode that was cut off and the one that goes on say nothing."""
    g, whole = returns(TOLD, 0.5)
    assert g[:4].tolist() == [3, 4, 4, 8]
    assert whole.tolist() == [True, True, True, True, False, False]
    assert first_visits(TOLD).tolist() == [True, True, False, True, True, True]
    assert monte_carlo(TOLD, 2, 0.5).tolist() == [5, 4]  # (3 + 4 + 8) / 3
    assert monte_carlo(TOLD, 2, 0.5, first_visits(TOLD)).tolist() == [5.5, 4]
    assert math.isnan(float(monte_carlo(TOLD, 3, 0.5)[2]))


def test_td_by_hand():
    """One episode, γ = ½, α = ½, V = (2, 4): TD(0) as it comes, 2 steps at a time, and with traces."""
    seen = told([(0, 1.0, 1, ""), (1, 2.0, 0, "t")])
    v = torch.tensor([2.0, 4.0])
    assert td_n(seen, v, 0.5, 0.5).tolist() == [2.5, 3.0]
    assert td_n(seen, v, 0.5, 0.5, n=2).tolist() == [2.0, 3.0]  # 1 + ½ 2 = 2
    assert td_lambda(seen, v, 0.5, 0.5, 0.0).tolist() == [2.5, 3.0]
    assert td_lambda(seen, v, 0.5, 0.5, 0.5).tolist() == [2.25, 3.0]  # δ = (1, −2), e = (¼, 1) in the second step
    cut = told([(0, 1.0, 1, ""), (1, 2.0, 0, "c"), (1, 7.0, 0, "t")])
    assert td_n(cut, v, 0.5, 0.5).tolist() == [2.5, 0.5 * (4 + 2 + 1.25) / 2 + 3.5]  # goes on from V(0) = 2.5


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_n_steps_at_once_are_the_definition(n):
    """Each step learns from r + … + γ^n V(s_{t+n}), all of V as it is n steps later or at the end."""
    world, gamma, alpha = walk(7), 0.9, 0.3
    seen = walked(world, torch.ones(7, 1).double(), 60, seed=n)
    v = Noise.seeded(0, 7).normal(dtype=torch.float64)
    expected, ends = v.clone(), seen.terminated
    last = [next((u for u in range(t, 60) if ends[u]), None) for t in range(60)]
    due = {}
    for t in range(60):
        if last[t] is not None or t + n - 1 < 60:
            at = t + n - 1 if last[t] is None else min(t + n - 1, last[t])
            due.setdefault(at, []).append(t)
    for at in range(60):
        for t in due.get(at, []):
            g = 0.0 if ends[at] else float(expected[seen.next[at]])
            for u in range(at, t - 1, -1):
                g = float(seen.reward[u]) + gamma * g
            expected[seen.obs[t]] += alpha * (g - float(expected[seen.obs[t]]))
    torch.testing.assert_close(td_n(seen, v, gamma, alpha, n), expected, rtol=0, atol=1e-12)


def test_td_and_monte_carlo_come_to_the_values_of_the_walk():
    """V = 1/6 … 5/6 (example 6.2), by each of them."""
    world, truth = walk(5), torch.arange(1, 6).double() / 6
    seen = walked(world, torch.ones(5, 1).double(), 4000)
    start = torch.full((5,), 0.5)
    for found in (
        monte_carlo(seen, 5, 1.0),
        monte_carlo(seen, 5, 1.0, first_visits(seen)),
        batch_td(seen, 5, 1.0, 1.0),
        td_n(seen, start, 1.0, 0.01),
        td_n(seen, start, 1.0, 0.01, 4),
        td_lambda(seen, start, 1.0, 0.01, 0.6),
    ):
        assert float((found - truth).abs().max()) < 0.1


def test_batch_td_is_certainty_equivalence_and_batch_monte_carlo_is_the_mean():
    """You are the predictor (example 6.4): A, 0, B, 0 once, B, 1 six times, B, 0 once. V(A) is ¾ to TD, 0 to MC."""
    rows = [(0, 0.0, 1, ""), (1, 0.0, 1, "t"), *[(1, 1.0, 1, "t")] * 6, (1, 0.0, 1, "t")]
    seen = told(rows)
    torch.testing.assert_close(batch_td(seen, 2, 1.0, 1.0), torch.tensor([0.75, 0.75]).double(), rtol=0, atol=1e-8)
    assert monte_carlo(seen, 2, 1.0).tolist() == [0.0, 0.75]
    world = random_mdp(5, 1, 3, ends=0.3, seed=4)  # the model that the steps suggest, solved
    seen = walked(world, torch.ones(5, 1).double(), 400, seed=2)
    count = torch.zeros(5, 5).double().index_put_((seen.obs, seen.next), (~seen.terminated).double(), accumulate=True)
    met = torch.bincount(seen.obs, minlength=5).double()
    reward = torch.zeros(5).double().index_add(0, seen.obs, seen.reward) / met
    solved = torch.linalg.solve(torch.eye(5).double() - 0.9 * count / met[:, None], reward)
    torch.testing.assert_close(batch_td(seen, 5, 0.9, 1.0), solved, rtol=0, atol=1e-8)


def test_off_policy_estimates_find_the_other_policy():
    """Ratios by hand, and both estimators within 5 standard errors of V_π from experience of another policy."""
    target, behaviour = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double(), torch.full((2, 2), 0.5).double()
    seen = TOLD._replace(action=torch.tensor([0, 1, 1, 0, 0, 0]))
    ratios = importance_ratios(seen, target, behaviour)
    torch.testing.assert_close(ratios[:4], torch.tensor([1.8 * 1 * 0.2, 1 * 0.2, 0.2, 1.8]).double())
    world = random_mdp(2, 2, 2, ends=0.5, seed=3)
    seen = walked(world, behaviour, 3000, seed=1)
    ratios, truth = importance_ratios(seen, target, behaviour), evaluate(world, target, 0.9)
    g, whole = returns(seen, 0.9)
    for s in range(2):
        own = (ratios * g)[whole & (seen.obs == s)]
        error = 5 * float(own.std()) / len(own) ** 0.5
        assert abs(float(ordinary(seen, 2, 0.9, ratios)[s] - truth[s])) < error
        assert abs(float(weighted(seen, 2, 0.9, ratios)[s] - truth[s])) < error
    assert float((monte_carlo(seen, 2, 0.9) - truth).abs().max()) > 0.1  # which is not what it does itself
    ones = torch.ones_like(ratios)
    torch.testing.assert_close(ordinary(seen, 2, 0.9, ones), monte_carlo(seen, 2, 0.9))
    with pytest.raises(UserError, match="never takes action"):
        importance_ratios(seen, target, torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double())
    with pytest.raises(UserError, match="n of 1 or more"):
        td_n(seen, truth, 0.9, 0.1, 0)


# ---- bandits -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def testbed():
    """Ten normal arms, 400 problems."""
    return Arms(Noise.seeded(7, 400).normal(10, dtype=torch.float64))


def test_the_testbed_of_the_textbook(testbed):
    """Figure 2.2 after 1000 pulls: ε = .1 takes the best arm about 80 % of the time, the greedy one about a third."""
    share = {e: float(play(testbed, EpsilonGreedy(e), 1000).best[-100:].double().mean()) for e in (0.0, 0.1)}
    assert 0.74 < share[0.1] < 0.86
    assert 0.25 < share[0.0] < 0.48
    hopeful = play(testbed, EpsilonGreedy(0.0, initial=5.0), 300)
    assert float(hopeful.best[:10].double().mean()) == pytest.approx(0.1, abs=0.02)  # every arm once, whatever it pays
    assert sorted(hopeful.arm[:10, 0].tolist()) == list(range(10))


def test_regret_is_what_was_missed(testbed):
    made = play(testbed, UCB(), 50)
    missed = testbed.mean.amax(1) - testbed.mean.gather(1, made.arm.T).T
    torch.testing.assert_close(made.regret[-1], missed.sum(0))
    assert bool(((missed == 0) == made.best).all())
    noise = (made.reward - (testbed.mean.amax(1) - missed)).flatten()
    assert abs(float(noise.mean())) < 4 / len(noise) ** 0.5


def test_regret_keeps_the_bounds_of_the_theorems():
    """UCB1 below Auer's bound, Thompson below it by far and above that of Lai and Robbins; ε-greedy grows linearly."""
    mean, pulls = torch.tensor([0.5, 0.6, 0.8]).double().expand(100, 3), 800
    arms = Arms(mean, 0.0)
    gap = torch.tensor([0.3, 0.2]).double()
    auer = float((8 * math.log(pulls) / gap).sum() + (1 + math.pi**2 / 3) * gap.sum())
    kl = sum(
        d * math.log(pulls) / (p * math.log(p / 0.8) + (1 - p) * math.log((1 - p) / 0.2))
        for d, p in ((0.3, 0.5), (0.2, 0.6))
    )
    regret = {p: play(arms, p, pulls).regret for p in (UCB(), ThompsonBernoulli(), EpsilonGreedy(0.1))}
    ucb, thompson, greedy = (float(r[-1].mean()) for r in regret.values())
    assert ucb < auer
    assert 0.3 * kl < thompson < 2 * kl
    assert thompson < 0.5 * ucb
    late = list(regret.values())[2].mean(1)
    assert float(late[-1] - late[-501]) / 500 > 0.1 * float(gap.sum()) / 3 * 0.8
    assert greedy > thompson


def test_thompsons_posteriors():
    """The normal's after pulls by hand; the draws of a beta law have its mean and variance."""
    record = Record(
        torch.tensor([[4.0, 0.0]]).double(), torch.tensor([[2.0, 0.0]]).double(), torch.zeros(1, 2).double()
    )
    n = 20_000
    wide = Record(*(t.expand(n, 2) for t in record))
    first = ThompsonNormal(sigma=2.0, prior=1.0).choose(wide, 5, Noise.seeded(0, n)) == 0
    # posteriors N(1, ½) and N(0, 1): the first is larger with probability Φ(1/√1.5)
    p = 0.5 * (1 + math.erf(1 / 1.5**0.5 / 2**0.5))
    assert abs(float(first.double().mean()) - p) < 4 * (p * (1 - p) / n) ** 0.5
    for a, b in ((1.0, 1.0), (3.0, 2.0), (40.0, 7.0)):
        noise = Noise.seeded(int(a), n)
        x, y = (_gamma(torch.full((n, 1), v).double(), noise)[:, 0] for v in (a, b))
        law = torch.distributions.Beta(torch.tensor(a).double(), torch.tensor(b).double())
        beta = x / (x + y)
        assert abs(float(beta.mean() - law.mean)) < 4 * float(law.variance / n) ** 0.5
        assert float(beta.var()) == pytest.approx(float(law.variance), rel=0.06)


def test_a_gradient_step_is_the_gradient():
    """E[(r − b)(1_a − π)] is ∇ E r, whatever the baseline; one step by hand."""
    h = torch.tensor([[0.1, -0.2, 0.3]]).double()
    record = Record(h * 0, h * 0, h)
    pi = h.softmax(1)
    made = Gradient(0.5).prefer(record, torch.tensor([2]), torch.tensor([2.0]).double(), torch.tensor([0.5]).double())
    torch.testing.assert_close(made, h + 0.5 * 1.5 * (torch.tensor([[0, 0, 1.0]]).double() - pi))
    reward, steps = torch.tensor([1.0, 0.0, 0.5]).double(), torch.zeros(3).double()
    for a in range(3):
        moved = Gradient(1.0).prefer(record, torch.tensor([a]), reward[a : a + 1], torch.tensor([0.7]).double()) - h
        steps = steps + pi[0, a] * moved[0]
    torch.testing.assert_close(steps, torch.tensor([0.154024, -0.135985, -0.018038]).double(), rtol=0, atol=1e-6)


def test_all_players_learn(testbed):
    for player in (UCB(), ThompsonNormal(), Gradient(0.1)):
        made = play(testbed, player, 400)
        assert float(made.best[-50:].double().mean()) > 0.6
        assert torch.equal(made.arm, play(testbed, player, 400).arm)
    with pytest.raises(UserError, match="1 or more"):
        play(testbed, UCB(), 0)
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        EpsilonGreedy(2.0)
