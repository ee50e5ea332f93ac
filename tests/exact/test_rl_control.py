"""Learning to act from experience: each rule by hand, the textbook's cliff, the bias of the maximum (oracle A10)."""

from __future__ import annotations

import pytest
import torch

from morphogen.core import Place
from morphogen.errors import UserError
from morphogen.rl.env import Simulated
from morphogen.rl.rollouts import Online, Recent
from morphogen.rl.tabular import cliff_walking, evaluate, random_mdp, value_iteration
from morphogen.rl.tabular.control import (
    Control,
    DoubleQ,
    NStep,
    epsilon_greedy,
    expected_sarsa,
    q_learning,
    sampled,
    sarsa,
    tree_backup,
)
from morphogen.rl.tabular.mdp import one_hot, table


def learn(agent, envs, steps, seed=0):
    """The last batch, and the scores of all steps."""
    source, scores = Online(Simulated(agent.world, envs)), []
    source.start(Place(seed=seed))
    for _ in range(steps):
        batch = source.next(agent, {})
        agent.learn(batch)
        scores.append(batch["score"][0].item())
    return scores


def a_batch(world, seed, n):
    g = torch.Generator().manual_seed(seed)
    integers = lambda high: torch.randint(high, (n,), generator=g)  # noqa: E731
    return {
        "obs": integers(world.states),
        "action": integers(world.actions),
        "reward": torch.randn(n, generator=g),
        "next": integers(world.states),
        "next_action": integers(world.actions),
        "terminated": torch.rand(n, generator=g) < 0.3,
        "truncated": torch.rand(n, generator=g) < 0.3,
        "key": torch.arange(n),
    }


@pytest.mark.parametrize("rule", [q_learning, sarsa, expected_sarsa])
@pytest.mark.parametrize("learners", [1, 3])
def test_a_step_is_its_formula(rule, learners):
    """Written out sample by sample; where two meet in one entry their errors are averaged."""
    world = random_mdp(3, 2, 2)
    agent = Control(world, rule, gamma=0.9, alpha=0.4, epsilon=0.2, learners=learners)
    agent.q.copy_(torch.randn(learners, 3, 2, generator=torch.Generator().manual_seed(1)))
    before, batch = agent.q.clone(), a_batch(world, 2, 9)
    errors = {}
    for i in range(9):
        table_, s, a, to = before[i % learners], *(int(batch[k][i]) for k in ("obs", "action", "next"))
        best = int(table_[to].argmax())
        policy = 0.1 + 0.8 * one_hot(torch.tensor([best]), 2)[0]
        expected = float(policy @ table_[to])
        after = {
            q_learning: float(table_[to].max()),
            expected_sarsa: expected,
            sarsa: expected if batch["truncated"][i] else float(table_[to, int(batch["next_action"][i])]),
        }[rule]
        target = float(batch["reward"][i]) + 0.9 * after * (not batch["terminated"][i])
        errors.setdefault((i % learners, s, a), []).append(target - float(table_[s, a]))
    said = agent.learn(batch)
    for entry, found in errors.items():
        before[entry] += 0.4 * sum(found) / len(found)
        assert agent.visits[entry] == 1
    torch.testing.assert_close(agent.q, before, rtol=0, atol=1e-12)
    assert said.value.item() == pytest.approx(sum(e * e for f in errors.values() for e in f) / 18)


def test_a_double_step_is_its_formula():
    world = random_mdp(3, 2, 2)
    agent = DoubleQ(world, gamma=0.9, alpha=0.4)
    agent.q.copy_(torch.randn(2, 1, 3, 2, generator=torch.Generator().manual_seed(1)))
    moved = {0: 0, 1: 0}
    for seed in range(40):
        batch, before = a_batch(world, seed, 1) | {"key": torch.tensor([seed])}, agent.q[:, 0].clone()
        agent.learn(batch)
        s, a, to = (int(batch[k]) for k in ("obs", "action", "next"))
        (k,) = [k for k in (0, 1) if not torch.equal(before[k], agent.q[k, 0])]  # one of the two alone
        moved[k] += 1
        after = before[1 - k][to, int(before[k][to].argmax())]
        before[k, s, a] += 0.4 * (
            float(batch["reward"]) + 0.9 * float(after) * (not batch["terminated"]) - before[k, s, a]
        )
        torch.testing.assert_close(agent.q[:, 0], before, rtol=0, atol=1e-12)
    assert min(moved.values()) >= 10


def test_epsilon_greedy_shares_ties():
    probs = epsilon_greedy(torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), 0.3)
    torch.testing.assert_close(probs, torch.tensor([[0.45, 0.45, 0.1], [0.1, 0.8, 0.1]]))


@pytest.mark.slow
def test_the_cliff_of_the_textbook():
    """Sutton & Barto, example 6.6: Q-learning finds the edge, −13, and falls from it while it explores (about −50 an
    episode); SARSA keeps away (about −25). Sixteen learners of each.
    """
    pytest.importorskip("gymnasium")
    world, late = cliff_walking(), {}
    for rule in (q_learning, sarsa):
        agent = Control(world, rule, alpha=0.5, epsilon=0.1, learners=16)
        scores = learn(agent, 16, 6000)
        late[rule] = sum(scores[-1000:]) / 1000
        if rule is q_learning:
            for q in agent.q:
                value = evaluate(world, one_hot(q.argmax(1), 4), 0.999)
                assert float(value[36]) > -13.0
                assert float(value[36]) == pytest.approx(-(1 - 0.999**13) / 0.001, abs=1e-6)  # 13 steps
    assert -60 < late[q_learning] < -40
    assert -30 < late[sarsa] < -20
    assert late[sarsa] > late[q_learning] + 15


@pytest.mark.parametrize(
    "make",
    [
        lambda w: Control(w, gamma=0.8, alpha=1.0, decay=0.7, epsilon=1.0, learners=1),
        lambda w: DoubleQ(w, gamma=0.8, alpha=1.0, decay=0.7, epsilon=1.0),
    ],
)
def test_q_learning_ends_at_the_optimum(make):
    """With steps that shrink and every action tried, Q comes to Q* of the Bellman equation."""
    world = random_mdp(4, 2, 2, ends=0.2, seed=1)
    agent = make(world)
    learn(agent, 256, 600)
    found = agent.q.view(-1, 4, 2)
    expected = value_iteration(world, 0.8).q
    assert float((found - expected).abs().max()) < 0.08
    assert bool((found.argmax(2) == expected.argmax(1)).all())


def test_expected_sarsa_ends_at_the_value_of_what_it_does():
    world = random_mdp(4, 2, 2, ends=0.2, seed=2)
    agent = Control(world, expected_sarsa, gamma=0.8, alpha=1.0, decay=0.7, epsilon=0.4)
    learn(agent, 256, 600)
    policy = epsilon_greedy(agent.q[0], 0.4)
    assert float(((policy * agent.q[0]).sum(1) - evaluate(world, policy, 0.8)).abs().max()) < 0.08


def bias_world(actions=8):
    """Example 6.7: from A right ends with 0, left leads to B, all of whose actions pay −0.1 in the mean, 1 about it."""
    stay = [(1.0, 0, 0.0, True)]
    a = [[(1.0, 1, 0.0, False)], stay, *[stay] * (actions - 2)]
    b = [[(0.5, 0, 0.9, True), (0.5, 0, -1.1, True)]] * actions
    return table([a, b], [1.0, 0.0])


def test_two_tables_are_not_taken_in_by_a_maximum():
    """Left looks good for a while to Q-learning, whose maximum over noisy values is too high, and less to double Q."""
    share = {}
    for name, make in (("single", Control), ("double", DoubleQ)):
        agent = make(bias_world(), alpha=0.1, epsilon=0.1, learners=400)
        source = Online(Simulated(agent.world, 400))
        source.start(Place(seed=1))
        left = []
        for _ in range(250):
            batch = source.next(agent, {})
            agent.learn(batch)
            at_a = batch["obs"] == 0
            left.append(float((batch["action"][at_a] == 0).double().mean()))
        share[name] = max(sum(left[i : i + 25]) / 25 for i in range(25, 225, 25))
    assert share["single"] > share["double"] + 0.1
    assert share["single"] > 0.4  # the best is a share of 0.0125


RULES = [(sarsa, sampled), (expected_sarsa, sampled), (expected_sarsa, tree_backup)]


def textbook(rows, q, rule, backup, n, gamma, alpha, policy):
    """Sutton & Barto's algorithm of n steps (sections 7.2 and 7.5), one environment, an update at a time.

    rows: (s, a, r, s', a', terminated, truncated), in which one episode follows the other.
    """
    episode = []

    def value(last):
        _, _, _, to, then, terminated, truncated = last
        if terminated:
            return 0.0
        if rule is sarsa and not truncated:
            return float(q[to, then])
        return float(policy(q[to]) @ q[to])

    def learn(tau, upto):
        g = episode[upto][2] + gamma * value(episode[upto])
        for k in range(upto - 1, tau - 1, -1):
            _, _, r, to, then, _, _ = episode[k]
            if backup is sampled:
                g = r + gamma * g
            else:
                pi = policy(q[to])
                g = r + gamma * (float(pi @ q[to]) + float(pi[then]) * (g - float(q[to, then])))
        s, a = episode[tau][:2]
        q[s, a] += alpha * (g - q[s, a])

    for row in rows:
        episode.append(row)
        t = len(episode) - 1
        if row[5] or row[6]:
            for tau in range(max(0, t - n + 1), t + 1):
                learn(tau, t)
            episode.clear()
        elif t - n + 1 >= 0:
            learn(t - n + 1, t)
    return q


@pytest.mark.parametrize(("rule", "backup"), RULES)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_n_steps_are_the_textbooks_algorithm(rule, backup, n):
    """Two learners in an environment each, beside the algorithm written out; episodes end in both ways."""
    world = random_mdp(5, 3, ends=0.15, limit=7, seed=3)
    agent = NStep(world, rule, backup, gamma=0.9, alpha=0.3, epsilon=0.3, initial=0.5, learners=2)
    source = Recent(Simulated(world, 2), n)
    source.start(Place(seed=1))
    rows, ends = [[], []], [0, 0]
    for _ in range(60):
        batch = source.next(agent, {})
        agent.learn(batch)
        for i in range(2):
            names = ("obs", "action", "reward", "next", "next_action", "terminated", "truncated")
            rows[i].append([batch[k][i].item() for k in names])
            ends = [e + batch[k][i].item() for e, k in zip(ends, names[5:], strict=True)]
    assert min(ends) > 2
    for i in range(2):
        policy = lambda q: epsilon_greedy(q[None], 0.3)[0]  # noqa: E731
        q = textbook(rows[i], torch.full((5, 3), 0.5, dtype=torch.float64), rule, backup, n, 0.9, 0.3, policy)
        torch.testing.assert_close(agent.q[i], q, rtol=0, atol=1e-12)


def test_one_step_of_n_is_the_rule_itself():
    world = random_mdp(4, 2, ends=0.2, limit=6)
    one, many = (make(world, expected_sarsa, gamma=0.9, alpha=0.3) for make in (Control, NStep))
    learn(one, 3, 40)
    source = Recent(Simulated(world, 3), 1)
    source.start(Place())
    for _ in range(40):
        many.learn(source.next(many, {}))
    torch.testing.assert_close(many.q, one.q, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rule", "backup"), RULES)
def test_n_steps_end_at_the_value_of_what_they_do(rule, backup):
    """On-policy all three have the same fixed point, that of expected SARSA of one step."""
    world = random_mdp(4, 2, 2, ends=0.2, seed=2)
    agent = NStep(world, rule, backup, gamma=0.8, alpha=1.0, decay=0.7, epsilon=0.4)
    source = Recent(Simulated(world, 256), 3)
    source.start(Place())
    for _ in range(200):
        agent.learn(source.next(agent, {}))
    policy = epsilon_greedy(agent.q[0], 0.4)
    assert float(((policy * agent.q[0]).sum(1) - evaluate(world, policy, 0.8)).abs().max()) < 0.1


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="n of 1 or more"):
        Recent(Simulated(random_mdp(), 2), 0)
    with pytest.raises(UserError, match="at least one learner"):
        Control(random_mdp(), learners=0)
    with pytest.raises(UserError, match="alpha above 0"):
        DoubleQ(random_mdp(), alpha=0.0)
