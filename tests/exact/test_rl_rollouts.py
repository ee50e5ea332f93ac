"""Experience as a source: what rollouts and online steps hold, over ends, cuts, memories, epochs, ranks and resumes."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from morphogen.core import Act, CannotRestore, Lives, Loss, Model, Noise, Place, beneath, leaves
from morphogen.data.augment import Augmented
from morphogen.errors import UserError
from morphogen.experiment import Data
from morphogen.hooks import Voice
from morphogen.nets.mlp import MLP
from morphogen.optim import AdamW
from morphogen.own import reasons
from morphogen.rl.dqn import DQN
from morphogen.rl.env import CartPole, Pendulum, Simulated
from morphogen.rl.player import Player, forgotten
from morphogen.rl.presets import ppo
from morphogen.rl.replay import Priorities, Replay
from morphogen.rl.returns import gae
from morphogen.rl.rollouts import (
    GAE,
    MonteCarlo,
    Online,
    Recent,
    Rollouts,
    by_environment,
    by_step,
    standard,
)
from morphogen.rl.tabular import grid4
from morphogen.train import Trainer


class Told(Model):
    """Acts at random, says as a value a number of what it sees, and remembers how many steps its episode has had."""

    def act(self, obs, memory=None, *, noise):
        count = torch.zeros(len(obs)) if memory is None else memory
        action = noise.integers(2)
        info = {"value": (obs * torch.tensor([1.0, 2.0, 30.0, 4.0])).sum(1), "count": count}
        return Act(action, info, count + 1)


def started(source, **place):
    source.start(Place(seed=5, **place))
    return source


def pole(envs=3, limit=9):
    return Simulated(CartPole(limit), envs)


def same(a, b):
    a, b = dict(leaves(a)), dict(leaves(b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_stretch_is_what_happens():
    """Beside a player that goes the same way: rewards and ends, values of where each step led to, and GAE of them."""
    length = 25
    batch = started(Rollouts(pole(), length, estimate=GAE(0.9, 0.8))).next(Told(), {})
    rows = {k: v.view(length, 3, *v.shape[1:]) for k, v in leaves(batch)}
    player, agent = Player(pole(), Place(seed=5)), Told()
    value = lambda obs: agent.act(obs, noise=Noise.seeded(0, 3)).info["value"]  # noqa: E731
    after, cuts, falls = [], 0, 0
    for t in range(length):
        obs, act = player.obs, player.act(agent)
        step = player.step(act)
        assert torch.equal(rows["obs"][t], obs)
        assert torch.equal(rows["action"][t], act.action)
        assert torch.equal(rows["info.value"][t], value(obs))
        for name in ("reward", "terminated", "truncated"):
            assert torch.equal(rows[name][t], getattr(step, name))
        after.append(value(step.final))
        cuts, falls = cuts + int(step.truncated.sum()), falls + int(step.terminated.sum())
    assert cuts
    ends, after = (rows["terminated"], rows["truncated"]), torch.stack(after)
    advantage = gae(rows["reward"], rows["info.value"], after, *ends, gamma=0.9, lam=0.8)
    torch.testing.assert_close(rows["advantage"], advantage)
    torch.testing.assert_close(rows["return"], advantage + rows["info.value"])
    alive = ~rows["terminated"]
    torch.testing.assert_close(rows["after"][alive], after[alive])
    assert torch.equal(rows["begins"][1:], (ends[0] | ends[1])[:-1])
    assert bool(rows["begins"][0].all())
    assert rows["score"].unique().tolist() == [pytest.approx(player.score())]


def test_memories_begin_with_the_episode():
    """A memory that counts is 0 at every beginning and goes on through the end of a stretch."""
    source, before = started(Rollouts(pole(), 7, cut=by_environment)), None
    for _ in range(6):
        batch = source.next(Told(), {})
        count, begins = batch["info"]["count"], batch["begins"]
        assert count.shape == (3, 7)
        assert torch.equal(begins, count == 0)
        assert torch.equal(batch["memory"], count[:, 0])
        if before is not None:
            assert bool(((count[:, 0] == before + 1) | begins[:, 0]).all())
        before = count[:, -1]
    pair = {"h": torch.ones(2, 3), "c": torch.ones(2)}
    assert {k: v.sum().item() for k, v in forgotten(pair, torch.tensor([True, False])).items()} == {"h": 3, "c": 1}
    assert forgotten(None, torch.tensor([True])) is None


def test_epochs_and_pieces_serve_every_sample_once_each():
    source = started(Rollouts(pole(4), 6, epochs=3, pieces=4))
    orders = []
    for _ in range(3):
        batches = [source.next(Told(), {}) for _ in range(4)]
        orders.append(torch.cat([b["index"] for b in batches]))
        assert sorted(orders[-1].tolist()) == list(range(24))
    assert not torch.equal(orders[0], orders[1])
    assert len(torch.cat([b["key"] for b in batches]).unique()) == 24
    fresh = source.next(Told(), {})
    assert not torch.equal(fresh["obs"].sort(0).values, batches[0]["obs"].sort(0).values)
    with pytest.raises(UserError, match="24 samples does not divide into 5 pieces: take 4 or 6"):
        Rollouts(pole(4), 6, pieces=5)
    with pytest.raises(UserError, match="3 samples does not divide into 4 pieces: take 3"):
        Rollouts(pole(3), 6, pieces=4, cut=by_environment)
    with pytest.raises(UserError, match="6 samples does not divide into 4 pieces: take 3 or 6"):  # of a rank
        started(Rollouts(pole(4), 3, pieces=4), ranks=2).next(Told(), {})
    with pytest.raises(UserError, match="24 samples does not divide into 7 pieces: take 6 or 8"):  # cut one's own way
        started(Rollouts(pole(4), 6, pieces=7, cut=lambda rows: {**by_step(rows)})).next(Told(), {})
    with pytest.raises(UserError, match="1 or more of each"):
        Rollouts(pole(), 0)
    standardised = started(Rollouts(pole(4), 6, pieces=2, finish=standard)).next(Told(), {})["advantage"]
    assert standardised.mean().item() == pytest.approx(0, abs=1e-5)
    assert standardised.std().item() == pytest.approx(1, abs=1e-5)


class Worth(Model):
    """Its value is of what it sees and of what it remembers; it counts how often it is asked."""

    def __init__(self, mapped=False):
        super().__init__()
        self.asked, self.mapped = 0, mapped

    def act(self, obs, memory=None, *, noise):
        self.asked += 1
        count = torch.zeros(len(obs), 1) if memory is None else memory["n"] if self.mapped else memory
        info = {"value": 100 * count[:, 0] + obs[:, 0]}
        return Act(noise.integers(2), info, {"n": count + 1} if self.mapped else count + 1)


@pytest.mark.parametrize("mapped", [False, True])
def test_all_cut_episodes_are_valued_at_once(mapped):
    """By the memory of before the end, beside a player that goes the same way; with one question more than steps."""
    agent, length = Worth(mapped), 15
    batch = started(Rollouts(Simulated(CartPole(limit=4), 3), length)).next(agent, {})
    assert agent.asked == length + 1
    after, cut = batch["after"].view(length, 3), batch["truncated"].view(length, 3)
    player, cuts = Player(Simulated(CartPole(limit=4), 3), Place(seed=5)), 0
    for t in range(length):
        act = player.act(agent)
        step = player.step(act)
        value = agent.act(step.final, act.memory, noise=Noise.seeded(0, 3)).info["value"]
        assert torch.equal(cut[t], step.truncated)
        assert torch.equal(after[t][cut[t]], value[cut[t]])
        cuts += int(cut[t].sum())
    assert cuts == 9
    assert torch.equal(batch["after"].view(length, 3)[-1], value)


def test_steps_are_counted_under_whatever_wraps_their_source():
    env = pole(4)
    for make, steps in ((lambda: Online(env), 1), (lambda: Recent(env, 3), 1), (lambda: Rollouts(env, 5), 5)):
        source = started(make())
        source.next(Told(), {})
        assert beneath(Augmented(Augmented(source, ()), ()), Lives).env_steps == 4 * steps
    assert beneath(object(), Lives) is None


def test_an_estimate_says_what_it_likes():
    """One without a return explains none, and what learns from one says that it is missing."""
    advantage = lambda rows: {"advantage": rows["reward"]}  # noqa: E731
    batch = started(Rollouts(pole(), 5, estimate=advantage)).next(Told(), {})
    assert torch.equal(batch["advantage"], batch["reward"])
    assert not {"return", "explained"} & set(batch)
    agent = ppo(pole())
    batch = started(Rollouts(pole(), 5, estimate=advantage)).next(agent, {})
    with pytest.raises(UserError, match="no 'return' to learn from"):
        agent.loss(batch)


def test_a_large_kl_ends_a_stretch():
    heard = lambda kl: {"loss": Loss(torch.zeros(()), {"kl": torch.tensor(kl)})}  # noqa: E731
    source = started(Rollouts(pole(), 4, epochs=5, most_kl=0.1))
    first = source.next(Told(), {})
    assert torch.equal(source.next(Told(), heard(0.05))["obs"], first["obs"])
    assert not torch.equal(source.next(Told(), heard(0.2))["obs"], first["obs"])


@pytest.mark.parametrize(
    "make",
    [lambda: Rollouts(pole(), 5, epochs=2, pieces=3), lambda: Online(pole()), lambda: Recent(pole(), 3)],
    ids=["rollouts", "online", "recent"],
)
@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_a_saved_state_goes_on_with_the_same_batches(make, at):
    source = started(make())
    for _ in range(at):
        source.next(Told(), {})
    state = copy.deepcopy(source.state())
    again = started(make())
    again.restore(state)
    for _ in range(8):
        assert same(source.next(Told(), {}), again.next(Told(), {}))


def test_ranks_share_the_environments_of_one_process():
    whole = started(Online(pole(4)))
    ranks = [started(Online(pole(4)), rank=r, ranks=2) for r in range(2)]
    for _ in range(12):
        batch, pieces = whole.next(Told(), {}), [s.next(Told(), {}) for s in ranks]
        for name in ("obs", "action", "reward", "next", "key", "index"):
            assert torch.equal(batch[name], torch.cat([p[name] for p in pieces]))
    with pytest.raises(UserError, match="do not divide"):
        started(Online(pole(4)), ranks=3)


def test_online_steps_hold_what_led_where():
    """The next action is the one that is taken next; after an end `next` is what was seen last, `obs` the new start."""
    source, before = started(Online(pole())), None
    for _ in range(30):
        batch = source.next(Told(), {})
        if before is not None:
            ended = before["terminated"] | before["truncated"]
            assert torch.equal(before["next_action"], batch["action"])
            assert torch.equal(before["next"][~ended], batch["obs"][~ended])
            assert not bool((before["next"][ended] == batch["obs"][ended]).all(1).any())
            assert bool((batch["obs"][ended].abs() <= 0.05).all())
        before = batch


def test_scores_are_mean_returns():
    source, done = started(Online(Simulated(CartPole(limit=4), 2))), []
    for t in range(1, 11):
        batch = source.next(Told(), {})
        done += [4.0] * 2 * (t % 4 == 0)
        assert batch["score"].tolist() == [pytest.approx(sum(done) / len(done) if done else float(t))] * 2


class Blind(Model):
    """Acts, and has no critic."""

    def act(self, obs, memory=None, *, noise):
        return Act(noise.integers(4))


def test_without_a_critic():
    """Monte Carlo's returns need none; GAE says what it needs, and a model that cannot act that it cannot."""
    batch = started(Rollouts(Simulated(grid4(limit=5), 2), 5, estimate=MonteCarlo(1.0))).next(Blind(), {})
    assert torch.equal(batch["return"], batch["advantage"])
    assert batch["return"].max() <= -1
    with pytest.raises(UserError, match="GAE needs a critic"):
        started(Rollouts(Simulated(grid4(), 2), 5)).next(Blind(), {})
    with pytest.raises(UserError, match="cannot act"):
        started(Online(Simulated(Pendulum(), 2))).next(Model(), {})


def test_what_another_number_of_processes_lived_through_is_refused_in_a_sentence():
    half, whole = (started(Online(pole(4)), ranks=ranks) for ranks in (2, 1))
    half.next(Told(), {})
    with pytest.raises(UserError, match=r"had 2 environments and would now have 4: .* as many processes as before"):
        whole.restore(half.state())


# ---- environments that cannot be saved -----------------------------------------------------------------------------


class Unsaved(Simulated):
    """Cart-poles whose state is their own."""

    def __init__(self):
        super().__init__(CartPole(9), 2)

    def state(self):
        raise CannotRestore("the poles begin new episodes.")

    def restore(self, state):
        self._steps = 1000 * (1 + state["anew"])
        return self.reset()


def unsaved(make, batches, agent):
    """A source after some batches, and one of the same seed that goes on from its state."""
    source, again = started(make(Unsaved())), started(make(Unsaved()))
    for _ in range(batches):
        source.next(agent, {})
    state = copy.deepcopy(source.state())
    assert reasons(state) == ["the poles begin new episodes. All else goes on."]
    again.restore(state)
    return source, again


def test_where_poles_cannot_be_saved_all_else_goes_on():
    """A stretch in use is served to its end; the next begins new episodes with other actions, and counts on."""
    make = lambda env: Rollouts(env, 5, epochs=2, cut=by_environment)  # noqa: E731
    source, again = unsaved(make, 3, Told())
    assert same(source.next(Told(), {}), again.next(Told(), {}))
    first, last = started(make(Unsaved())).next(Told(), {}), again.next(Told(), {})
    assert again.env_steps == source.env_steps + 10 == 30
    assert last["begins"][:, 0].all()
    assert not last["memory"].any()
    assert last["info"]["count"][:, 0].tolist() == [0, 0]
    assert not (last["obs"][:, 0] == first["obs"][:, 0]).any()
    assert not torch.equal(last["action"], first["action"])
    assert again._player.recent == source._player.recent


@pytest.mark.parametrize("make", [Online, lambda env: Recent(env, 3)])
def test_where_poles_cannot_be_saved_no_step_leads_into_the_new_episode(make):
    source, again = unsaved(make, 4, Told())
    assert again.env_steps == source.env_steps == 8
    batch, went = again.next(Told(), {}), source.next(Told(), {})
    assert again.env_steps == 10
    assert batch["info"]["count"].tolist() == [0, 0]  # chosen for what is seen now, not for the old episode
    assert not (batch["obs"] == went["obs"]).any()
    if "steps" in batch:
        assert batch["steps"]["live"].tolist() == [[False, False, True]] * 2
        assert went["steps"]["live"].all()


def test_where_poles_cannot_be_saved_a_memory_is_kept():
    """Priorities, places and counts too; the last step before leads nowhere, as where a limit cut the episode off."""
    chance = Blind()
    make = lambda env: Replay(env, capacity=40, batch=64, warmup=5, n=4, priorities=Priorities())  # noqa: E731
    source, again = unsaved(make, 3, chance)
    said = {"loss": Loss(torch.tensor(0.0), {}, {"priority": Noise.seeded(1, 64).uniform()})}
    before, after = source.next(chance, said), again.next(chance, said)
    assert torch.equal(source._weight[:7], again._weight[:7])
    assert again.env_steps == source.env_steps == 16
    assert torch.equal(source._held["obs"][:7], again._held["obs"][:7])
    assert torch.equal(before["index"], after["index"])
    assert not (source._held["obs"][7] == again._held["obs"][7]).any()
    assert not (again._held["obs"][7] == again._held["obs"][0]).any()
    assert again._held["truncated"][6].all()
    assert not source._held["truncated"][6].any()
    last = after["index"] // 2 == 6
    assert last.any()
    torch.testing.assert_close(after["discount"][last], torch.full((int(last.sum()),), 0.99))
    assert torch.equal(after["next"][last], again._held["next"][6][after["index"][last] % 2])


def test_a_training_goes_on_where_the_poles_cannot_be_saved(tmp_path):
    """Killed after its checkpoint: the log counts on, and the user hears what is lost in one sentence."""

    class Said(Voice):
        def __init__(self):
            self.texts = []

        def say(self, text):
            self.texts.append(text)

    def trained(until, voice):
        source = Replay(Unsaved(), capacity=60, batch=4, warmup=5)
        optim = AdamW(1e-3)
        Trainer(8, optim=optim, save_every=4, log_every=2).fit(
            DQN(MLP(4, 2, 8, 1), 2, explore=4), Data(source), run=tmp_path / "run", until=until, voice=voice
        )

    trained(4, Said())
    voice = Said()
    trained(8, voice)
    told = [t for t in voice.texts if "Not exact" in t]
    assert told == ["Not exact after this resume: the poles begin new episodes. All else goes on."]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["env_steps"] for line in lines if "env_steps" in line] == [12, 16, 20, 24]
