"""A memory of experience: what it holds and forgets, n steps at once, priorities through their door, exact resume."""

from __future__ import annotations

import copy

import pytest
import torch

from morphogen.core import Act, Loss, Model, Noise, Place, leaves
from morphogen.errors import UserError
from morphogen.rl.env import CartPole, Simulated
from morphogen.rl.losses import importance, prioritised
from morphogen.rl.player import Player
from morphogen.rl.replay import Priorities, Replay


class Chance(Model):
    def act(self, obs, memory=None, *, noise):
        return Act(noise.integers(2), {"seen": obs[:, 0] * 2})


def started(**more):
    more = {"capacity": 40, "batch": 12, "warmup": 3} | more
    source = Replay(Simulated(CartPole(limit=7), 2), **more)
    source.start(Place(seed=5))
    return source


def history(steps):
    """The steps of a player that goes the same way, (steps, 2, ...)."""
    player, agent, rows = Player(Simulated(CartPole(limit=7), 2), Place(seed=5)), Chance(), []
    for _ in range(steps):
        obs, act = player.obs, player.act(agent)
        step = player.step(act)
        rows.append((obs, act.action, step.reward, step.final, step.terminated, step.truncated))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("served", [1, 30])
def test_samples_are_what_happened(n, served):
    """Each drawn step, its n-step return and where it led to, by their definition; nothing older than the memory."""
    source = started(n=n, gamma=0.9, every=2)
    for _ in range(served):
        batch = source.next(Chance(), {})
    taken = 3 + 2 * (served - 1)
    obs, action, reward, final, terminated, truncated = history(taken)
    assert sorted(batch["index"].unique().tolist())[-1] < min(taken, 20) * 2
    lengths = set()
    for i, at in enumerate(batch["index"].tolist()):
        row, env = divmod(at, 2)
        t = max(u for u in range(taken) if u % 20 == row)
        assert torch.equal(batch["obs"][i], obs[t, env])
        assert batch["action"][i] == action[t, env]
        assert batch["info"]["seen"][i] == obs[t, env, 0] * 2
        g, m = 0.0, 0
        while True:
            g += 0.9**m * float(reward[t + m, env])
            m += 1
            u = t + m - 1
            if terminated[u, env] or truncated[u, env] or m == n or u == taken - 1:
                break
        lengths.add(m)
        assert batch["reward"][i].item() == pytest.approx(g, abs=1e-6)
        assert batch["discount"][i].item() == pytest.approx(0.0 if terminated[u, env] else 0.9**m, abs=1e-6)
        assert torch.equal(batch["next"][i], final[u, env])
    assert served == 1 or n == 1 or len(lengths) > 1
    assert bool((batch["weight"] == 1).all())


def test_every_place_is_drawn_alike():
    source = started(batch=4000)
    for _ in range(30):
        batch = source.next(Chance(), {})
    share = torch.bincount(batch["index"], minlength=40) / 4000
    assert float((share - 1 / 40).abs().max()) < 5 * (1 / 40 / 4000) ** 0.5


def test_the_noise_of_a_sample_knows_nothing_of_its_place():
    """E z² = 1 and E u = ½ wherever in the memory a sample is from: its key is another than the one that chose it."""
    batch = started(batch=40_000, warmup=20).next(Chance(), {})
    place, n = batch["index"], 40_000 / 40
    for key in (batch["key"], ~batch["key"]):
        z, u = Noise(key).normal(dtype=torch.float64), Noise(key).uniform(dtype=torch.float64)
        for values, mean, var in ((z.square(), 1.0, 2.0), (z, 0.0, 1.0), (u, 0.5, 1 / 12)):
            by_place = torch.zeros(40).double().index_add(0, place, values) / torch.bincount(place, minlength=40)
            assert float((by_place - mean).abs().max()) < 5 * (var / n) ** 0.5


def test_priorities_come_back_through_the_door():
    """Drawn by P ∝ p^α of what the agent said of the last batch, new steps by the largest; weights undo that."""
    source = started(batch=6000, priorities=Priorities(0.6, 0.4, anneal=10, eps=0.01), warmup=20)
    agent = Chance()
    first = source.next(agent, {})
    assert first["weight"].unique().tolist() == [1.0]  # all alike at first
    said = 0.5 + first["index"].double() % 7  # a priority by place
    agent.step = 5
    batch = source.next(agent, {"critic": Loss(torch.zeros(()), seen={"priority": -said})})
    p = 0.5 + torch.arange(40).double() % 7 + 0.01
    p[:2] = p.max()  # a step was taken since: it stands in place of the oldest
    chance = prioritised(p, 0.6)
    share = torch.bincount(batch["index"], minlength=40) / 6000
    assert bool(((share - chance).abs() < 5 * (chance / 6000).sqrt()).all())
    expected = importance(chance[batch["index"]], 40, 0.7)  # β half way to 1
    torch.testing.assert_close(batch["weight"], expected.float())
    agent.step = 100
    last = source.next(agent, {})
    by_place = last["weight"].double() * prioritised(p, 0.6)[last["index"]]
    kept = last["index"] > 3  # all but what is new
    assert float(by_place[kept].std() / by_place[kept].mean()) < 1e-5  # β = 1: P w is the same everywhere


@pytest.mark.parametrize("priorities", [None, Priorities()])
@pytest.mark.parametrize("at", [0, 1, 25])
def test_a_saved_state_goes_on_with_the_same_batches(priorities, at):
    def heard(batch):
        return {"loss": Loss(torch.zeros(()), seen={"priority": batch["obs"][:, 2]})} if batch else {}

    source, batch = started(n=2, priorities=priorities), None
    for _ in range(at):
        batch = source.next(Chance(), heard(batch))
    again = started(n=2, priorities=priorities)
    again.restore(copy.deepcopy(source.state()))
    other = batch
    for _ in range(8):
        batch, other = source.next(Chance(), heard(batch)), again.next(Chance(), heard(other))
        a, b = dict(leaves(batch)), dict(leaves(other))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="room for a step"):
        started(capacity=1)
    with pytest.raises(UserError, match="1 or more"):
        started(n=0)
    with pytest.raises(UserError, match="beta=2"):
        Priorities(beta=2.0)
    with pytest.raises(UserError, match="does not divide"):
        Replay(Simulated(CartPole(), 3), capacity=9, batch=4).start(Place(ranks=3))
