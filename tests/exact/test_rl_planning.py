"""Planning in finite worlds: values of the textbook and of gymnasium's tables, and other roads to them (oracle A10)."""

from __future__ import annotations

import itertools

import pytest
import torch

from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.rl.tabular import (
    MDP,
    backup,
    cliff_walking,
    evaluate,
    frozen_lake,
    grid4,
    grid5,
    occupancy,
    picture,
    policy_iteration,
    random_mdp,
    ski_resort,
    taxi,
    value_iteration,
    walk,
)
from morphogen.rl.tabular.mdp import one_hot
from morphogen.spec import build, spec


def uniform(mdp):
    return torch.full((mdp.states, mdp.actions), 1 / mdp.actions, dtype=torch.float64)


GYMNASIUM = {  # world, γ, horizon, V* of where an episode begins
    "lake, .9": (lambda: frozen_lake(), 0.9, None, 0.068891),
    "lake, .95": (lambda: frozen_lake(), 0.95, None, 0.180472),
    "lake, .99": (lambda: frozen_lake(), 0.99, None, 0.542026),
    "lake, 1": (lambda: frozen_lake(), 1.0, None, 14 / 17),
    "lake, 100 steps": (lambda: frozen_lake(), 1.0, 100, 0.7441903),
    "great lake, .99": (lambda: frozen_lake("8x8"), 0.99, None, 0.4146404),
    "great lake, 200 steps": (lambda: frozen_lake("8x8"), 1.0, 200, 0.9132202),
    "cliff, 1": (lambda: cliff_walking(), 1.0, None, -13.0),
    "cliff, .9": (lambda: cliff_walking(), 0.9, None, -7.4581342),
    "slippery cliff": (lambda: cliff_walking(slippery=True), 1.0, None, -64.7091759),
    "taxi, 1": (lambda: taxi(), 1.0, None, 7.93),
    "taxi, .99": (lambda: taxi(), 0.99, None, 6.3274645),
}


@pytest.mark.parametrize("name", GYMNASIUM)
def test_the_tables_of_gymnasium(name):
    pytest.importorskip("gymnasium")
    make, gamma, horizon, expected = GYMNASIUM[name]
    mdp = make()
    plan = value_iteration(mdp, gamma, horizon=horizon)
    assert float(plan.value @ mdp.begins) == pytest.approx(expected, abs=1e-6)
    if horizon is None:
        torch.testing.assert_close(plan.q.amax(1), plan.value, rtol=0, atol=1e-9)
    if horizon is None and (gamma < 1 or name == "cliff, 1"):
        start = plan.policy if gamma == 1 else None  # undiscounted, it must begin with one that ends
        assert float((policy_iteration(mdp, gamma, start).value - plan.value).abs().max()) < 1e-6


def test_taxi_from_each_of_its_starts():
    pytest.importorskip("gymnasium")
    mdp = taxi()
    value = value_iteration(mdp, 1.0).value[mdp.begins > 0]
    assert (len(value), value.min(), value.max()) == (300, 3, 15)


def test_the_grids_of_the_textbook():
    mdp = grid4()
    by_hand = torch.tensor([[0, -14, -20, -22], [-14, -18, -20, -20], [-20, -20, -18, -14], [-22, -20, -14, 0]])
    torch.testing.assert_close(evaluate(mdp, uniform(mdp), 1.0).view(4, 4), by_hand.double())
    distance = torch.tensor([[min(r + c, 6 - r - c) for c in range(4)] for r in range(4)])
    torch.testing.assert_close(value_iteration(mdp, 1.0).value.view(4, 4), -distance.double())
    mdp = grid5()
    random, best = evaluate(mdp, uniform(mdp), 0.9), value_iteration(mdp, 0.9).value
    assert random[:2].tolist() == pytest.approx([3.309, 8.789], abs=1e-3)
    assert best[:2].tolist() == pytest.approx([21.977, 24.419], abs=1e-3)
    assert best[1].item() == pytest.approx(10 / (1 - 0.9**5), abs=1e-9)  # from A to A and so on, every five steps


@pytest.mark.parametrize("n", [1, 5, 19])
def test_the_random_walk(n):
    mdp = walk(n)
    torch.testing.assert_close(evaluate(mdp, uniform(mdp), 1.0), torch.arange(1, n + 1).double() / (n + 1))


def test_the_ski_resort_against_all_policies():
    """The best of its 32 policies, each evaluated, is what both iterations find; and by hand at the ends."""
    mdp, gamma = ski_resort(), 0.9
    every = [torch.tensor(p) for p in itertools.product((0, 1), repeat=5)]
    values = torch.stack([evaluate(mdp, one_hot(p, 2), gamma) for p in every])
    best = values.amax(0)
    plan = value_iteration(mdp, gamma)
    torch.testing.assert_close(plan.value, best, rtol=0, atol=1e-9)
    torch.testing.assert_close(policy_iteration(mdp, gamma).value, best, rtol=0, atol=1e-9)
    assert plan.policy.tolist() == [1, 1, 1, 1, 0]  # up to the top before skiing
    assert (
        value_iteration(ski_resort(queue=0.9), gamma).policy.tolist() != plan.policy.tolist()
    )  # not if one must queue
    never = evaluate(mdp, one_hot(torch.tensor([0, 0, 0, 0, 0]), 2), gamma)
    assert never[0] == 0  # who never takes the lift never skis
    assert never[1].item() == pytest.approx(2)
    with pytest.raises(UserError, match="probabilities"):
        ski_resort(queue=1.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_linear_program_finds_the_same(seed):
    """min Σ µ V with V ≥ r + γ P V, by scipy; its dual variables are the occupancy of the best policy."""
    optimize = pytest.importorskip("scipy.optimize")
    mdp, gamma = random_mdp(7, 3, 2, ends=0.1 * seed, seed=seed), 0.9
    plan = value_iteration(mdp, gamma)
    rows, right = [], []
    for s, a in itertools.product(range(7), range(3)):
        row = [0.0] * 7
        for p, to, over in zip(mdp.prob[s, a], mdp.next[s, a], mdp.terminated[s, a], strict=True):
            row[int(to)] += gamma * float(p) * (not over)
        row[s] -= 1
        rows.append(row)
        right.append(-float((mdp.prob[s, a] * mdp.reward[s, a]).sum()))
    found = optimize.linprog(mdp.begins.numpy(), rows, right, bounds=(None, None))
    torch.testing.assert_close(plan.value, torch.as_tensor(found.x), rtol=0, atol=1e-7)
    visits = occupancy(mdp, one_hot(plan.policy, 3), gamma)
    dual = -torch.as_tensor(found.ineqlin.marginals).view(7, 3)
    torch.testing.assert_close(visits, dual, rtol=0, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_values_of_any_policy_are_fixed_points_and_sums_over_its_visits(seed):
    mdp, gamma = random_mdp(6, 2, 4, ends=0.2, seed=seed), 0.8
    policy = Noise.seeded(seed, 6).normal(2, dtype=torch.float64).softmax(1)
    value = evaluate(mdp, policy, gamma)
    torch.testing.assert_close((policy * backup(mdp, value, gamma)).sum(1), value, rtol=0, atol=1e-12)
    reward = (mdp.prob * mdp.reward).sum(2)
    total = (occupancy(mdp, policy, gamma) * reward).sum()
    assert total.item() == pytest.approx(float(mdp.begins @ value), abs=1e-12)
    assert bool((value <= value_iteration(mdp, gamma).value + 1e-9).all())
    best = policy_iteration(mdp, gamma)
    torch.testing.assert_close(best.value, value_iteration(mdp, gamma).value, rtol=0, atol=1e-9)


def test_walking_an_mdp_follows_its_tables():
    """Frequencies of outcomes from each state and action, within four standard errors; the start likewise."""
    mdp, n = random_mdp(3, 2, 3, ends=0.4, seed=5), 20_000
    for s, a in itertools.product(range(3), range(2)):
        made = mdp.advance(torch.full((n,), s), torch.full((n,), a), Noise.seeded(s * 2 + a, n))
        for to, over in itertools.product(range(3), (False, True)):
            share = float(((made.state == to) & (made.terminated == over)).double().mean())
            p = float(mdp.prob[s, a][(mdp.next[s, a] == to) & (mdp.terminated[s, a] == over)].sum())
            assert abs(share - p) <= 4 * (p * (1 - p) / n) ** 0.5
        mean, second = ((mdp.prob * mdp.reward**k).sum(2)[s, a] for k in (1, 2))
        assert abs(float(made.reward.mean() - mean)) <= 4 * float((second - mean**2) / n) ** 0.5
    begins = grid4().begin(Noise.seeded(0, n))
    assert not bool(torch.isin(begins, torch.tensor([0, 15])).any())
    assert torch.bincount(begins, minlength=16)[1:15].min() > n / 14 * 0.85


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="never ends"):
        policy_iteration(grid4(), 1.0)  # always left
    with pytest.raises(UserError, match="never ends"):
        evaluate(grid5(), uniform(grid5()), 1.0)
    p = torch.ones(1, 1, 1)
    with pytest.raises(UserError, match=r"sum to 0\.5"):
        MDP(p / 2, p.long() * 0, p, p.bool(), torch.ones(1))
    with pytest.raises(UserError, match="states 0 to 0"):
        MDP(p, p.long(), p, p.bool(), torch.ones(1))
    with pytest.raises(UserError, match="middle"):
        walk(0)


def test_worlds_are_remembered_and_drawn():
    for mdp in (grid4(limit=7), ski_resort(0.1), random_mdp(4, 2, 2, seed=3), walk(3)):
        again = build(spec(mdp))
        assert spec(again) == spec(mdp)
        assert torch.equal(again.prob, mdp.prob)
        assert again.limit == mdp.limit
    plan = value_iteration(grid5(), 0.9)
    drawn = picture(grid5(), plan.value, plan.policy, arrows=lambda a: ((-1, 0), (0, 1), (1, 0), (0, -1))[a])
    assert drawn.size == (280, 280)
    assert grid5().draw(torch.tensor(3)).size == (280, 280)
    assert drawn.getpixel((60, 50)) != drawn.getpixel((60, 270))  # the best state is darker than the worst
