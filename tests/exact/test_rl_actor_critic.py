"""The actor-critic: what it says of a stretch, surrogates beside their formulas, moments, memories, ends and cuts."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
from torch import nn

from morphogen.core import Act, Everyone, Greedy, Model, Net, Noise, Place, can, everyone
from morphogen.errors import UserError
from morphogen.experiment import Data
from morphogen.hooks import Voice
from morphogen.nets.mlp import MLP
from morphogen.nets.orthogonal import orthogonal
from morphogen.nets.recurrent import GRU, LSTM
from morphogen.optim import SGD
from morphogen.rl.actor_critic import ActorCritic, Clipped, PolicyGradient
from morphogen.rl.env import CartPole, Pendulum, Simulated
from morphogen.rl.moments import Moments
from morphogen.rl.policy import Categorical, DiagonalNormal
from morphogen.rl.presets import a2c, ppo, reinforce
from morphogen.rl.returns import gae
from morphogen.rl.rollouts import GAE, MonteCarlo, Reviews, Rollouts, by_environment
from morphogen.spec import build, spec
from morphogen.train import Trainer


def pole(envs=3, limit=6, velocities=True):
    return Simulated(CartPole(limit, velocities=velocities), envs)


def started(env, length=9, **more):
    source = Rollouts(env, length, **more)
    source.start(Place(seed=1))
    return source


def remembering(core, **more):
    torch.manual_seed(0)
    nets = (orthogonal(MLP(5, 2, 8, 1), 1.0), orthogonal(MLP(5, 1, 8, 1)))
    return ActorCritic(*nets, Categorical(2), Clipped(), core=core(2, 5), **more)


# ---- what is said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [pole(5), Simulated(Pendulum(), 5)], ids=["choices", "numbers"])
def test_a_stretch_is_reviewed_as_its_steps_are_said(env):
    torch.manual_seed(0)
    model = ppo(env, width=8, observations=True, returns=True)
    model.observations.add(torch.randn(50, env.observation.shape[0]) * 3 + 1)
    model.returns.add(torch.randn(50) * 7)
    obs = torch.randn(5, env.observation.shape[0])
    act = model.act(obs, noise=Noise.seeded(3, 5))
    assert torch.equal(model.decide(obs, noise=Noise.seeded(3, 5)), act.action)
    said = model.review(obs, act.action)
    assert said.keys() == act.info.keys() == {"logp", "value", "seen", "unit"}
    for name, value in said.items():
        torch.testing.assert_close(value, act.info[name])
    assert can(model, Reviews)
    assert can(model, Greedy)
    greedy = model.greedy(obs).action
    if isinstance(model.law, Categorical):
        logps = [model.log_prob(torch.full((5,), a), {"obs": obs}) for a in range(2)]
        assert torch.equal(greedy, torch.stack(logps).argmax(0))
    else:
        assert bool((model.log_prob(greedy, {"obs": obs}) >= act.info["logp"]).all())


class Sure(Model):
    """Its critic says 7, whatever it sees."""

    def act(self, obs, memory=None, *, noise):
        return Act(noise.integers(2), {"value": torch.full((len(obs),), 7.0), "logp": torch.zeros(len(obs))})


def test_a_cut_bootstraps_and_an_end_does_not():
    batch = started(pole(4, limit=15), 60, estimate=GAE(0.9, 0.0)).next(Sure(), {})
    expected = 1.0 + 0.9 * 7 * (~batch["terminated"]).float() - 7
    torch.testing.assert_close(batch["advantage"], expected)
    assert bool(batch["terminated"].any())
    assert bool(batch["truncated"].any())
    many = started(pole(4, limit=15), 60, estimate=MonteCarlo(0.9)).next(Sure(), {})
    cut = many["truncated"]
    torch.testing.assert_close(many["return"][cut], torch.full((int(cut.sum()),), 1 + 0.9 * 7))
    torch.testing.assert_close(many["return"][many["terminated"]], torch.ones(int(many["terminated"].sum())))


# ---- surrogates ----------------------------------------------------------------------------------------------------


class Fixed(Net):
    """Logits that nothing seen changes."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, obs):
        return self.logits.expand(len(obs), -1)


@pytest.mark.parametrize("baseline", [0.0, 0.5, -3.0])
def test_the_gradient_of_a_softmax_bandit_is_the_theorems(baseline):
    """θ = (0.1, −0.2, 0.3), r = (1, 0, 0.5): ∇J = (0.154024, −0.135985, −0.018038), whatever the baseline."""
    n, reward = 20_000, torch.tensor([1.0, 0.0, 0.5])
    model = ActorCritic(Fixed([0.1, -0.2, 0.3]), None, Categorical(3), PolicyGradient())
    obs = torch.zeros(n, 1)
    act = model.act(obs, noise=Noise.seeded(0, n))
    advantage = reward[act.action] - baseline
    batch = {"obs": obs, "action": act.action, "info": act.info, "advantage": advantage, "score": advantage}
    model.loss(batch).value.backward()
    probs = model.actor.logits.detach().softmax(0)
    each = advantage[:, None] * (torch.eye(3)[act.action] - probs)  # of log π, by hand
    torch.testing.assert_close(model.actor.logits.grad, -each.mean(0), rtol=1e-4, atol=1e-6)
    exact = torch.tensor([0.154024, -0.135985, -0.018038])
    torch.testing.assert_close(probs * (reward - probs @ reward), exact, rtol=0, atol=1e-6)
    assert bool(((-model.actor.logits.grad - exact).abs() < 4 * each.std(0) / n**0.5).all())


def test_a2c_is_a3c_with_one_worker(tmp_path):
    """The asynchronous form by hand: a worker takes the shared weights, and gives the optimiser its gradients."""
    torch.manual_seed(0)
    model = a2c(pole(), width=8)
    shared = copy.deepcopy(model)
    Trainer(5, optim=SGD(0.1, momentum=0.0, nesterov=False)).fit(
        model, Data(Rollouts(pole(), 4)), run=tmp_path, device="cpu", voice=Voice()
    )
    optimiser = torch.optim.SGD(shared.parameters(), 0.1)
    source = Rollouts(pole(), 4)
    source.start(Place(seed=0))
    for step in range(5):
        worker = copy.deepcopy(shared)
        worker.step = step
        batch = source.next(worker, {})
        worker.loss(batch).value.backward()
        for p, own in zip(shared.parameters(), worker.parameters(), strict=True):
            p.grad = own.grad
        optimiser.step()
    for p, q in zip(model.parameters(), shared.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a2cs_loss_is_the_papers():
    """−log π (R − V) + ½ c_v (R − V)² − c_e H, with R the rewards to the end of the stretch and V after it."""
    torch.manual_seed(0)
    model, gamma = a2c(pole(4, limit=500), width=8, value=0.3, entropy=0.2), 0.9
    batch = started(pole(4, limit=500), 5, estimate=GAE(gamma, 1.0)).next(model, {})
    source = started(pole(4, limit=500), 5, estimate=GAE(gamma, 1.0))
    source.next(model, {})
    ahead = model.critic(source._player.obs)[:, 0].detach()
    rows = {k: batch[k].view(5, 4, *batch[k].shape[1:]) for k in ("reward", "terminated", "obs", "action")}
    assert not bool(rows["terminated"].any())
    returns = []
    for reward in rows["reward"].flip(0):
        ahead = reward + gamma * ahead
        returns.append(ahead)
    target = torch.stack(returns[::-1]).flatten()
    logp = model.actor(batch["obs"]).log_softmax(1)
    value = model.critic(batch["obs"])[:, 0]
    taken = logp.gather(1, batch["action"][:, None])[:, 0]
    policy = -((target - value.detach()) * taken).mean()
    expected = policy + 0.3 * 0.5 * (target - value).square().mean() + 0.2 * (logp.exp() * logp).sum(1).mean()
    said = model.loss(batch).value
    assert said.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(*(torch.autograd.grad(v, list(model.parameters())) for v in (said, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_reinforce_takes_returns_to_the_end():
    torch.manual_seed(0)
    model = reinforce(pole(), width=8)
    batch = started(pole(3, limit=4), 8, estimate=MonteCarlo(1.0)).next(model, {})
    torch.testing.assert_close(batch["advantage"], batch["return"] - batch["info"]["value"])
    assert isinstance(model.surrogate, PolicyGradient)


def test_where_all_is_clipped_the_actor_does_not_move():
    torch.manual_seed(0)
    model = ppo(pole(), width=8, clip=0.1)
    batch = dict(started(pole(), 8).next(model, {}))
    up = batch["advantage"] > 0
    logp = batch["info"]["logp"] + torch.where(up, -1.0, 1.0)  # of old: the ratio has gone where the advantage points
    batch["info"] = {**batch["info"], "logp": logp}
    said = model.loss(batch)
    assert said.logs["clipped"].item() == 1
    said.value.backward()
    assert all(not p.grad.any() for p in model.actor.parameters())
    assert any(p.grad.any() for p in model.critic.parameters())


def test_the_clip_falls_and_the_value_is_clipped():
    torch.manual_seed(0)
    model = ppo(pole(), width=8, until=10, value_clip=0.05, value=1.0)
    batch = started(pole(), 8).next(model, {})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    ratio = (model.log_prob(batch["action"], {"obs": batch["obs"]}) - batch["info"]["logp"]).exp()
    value, old, target = model.critic(batch["obs"])[:, 0], batch["info"]["value"], batch["return"]
    kept = torch.minimum(torch.maximum(value, old - 0.05), old + 0.05)
    error = 0.5 * torch.maximum((value - target) ** 2, (kept - target) ** 2).mean()
    assert bool((kept != value).any())
    for step in (0, 5, 10, 12):
        model.step = step
        clip = max(0.0, 0.2 * (1 - step / 10))
        a = batch["advantage"]
        surrogate = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).mean()
        said = model.loss(batch)
        assert said.value.item() == pytest.approx((error - surrogate).item(), rel=1e-4)
        assert said.logs["clipped"].item() == pytest.approx(((ratio - 1).abs() > clip).float().mean().item())
    for wrong in ({"clip": 0.0}, {"until": 0}):
        with pytest.raises(UserError, match=r"clip=0|until step 0"):
            Clipped(**wrong)


def test_a_large_kl_ends_the_epochs(tmp_path):
    """With steps that are too large some stretches are left early; with none each serves four times."""
    served = {}
    for lr in (3.0, 0.0):
        torch.manual_seed(0)
        model, source = ppo(pole(), width=8), Rollouts(pole(), 8, epochs=4, most_kl=0.02)
        Trainer(12, optim=SGD(lr, momentum=0.0, nesterov=False), clip=1e9).fit(
            model, Data(source), run=tmp_path / str(lr), device="cpu", voice=Voice()
        )
        served[lr] = source.state()["count"]
    assert served[0.0] == 3
    assert served[3.0] > 3


# ---- moments -------------------------------------------------------------------------------------------------------


class Threads(Everyone):
    """Ranks that are threads of this process."""

    def __init__(self, n):
        self.barrier, self.held, self.rank = threading.Barrier(n), [None] * n, threading.local()

    def sum(self, x):
        self.held[self.rank.i] = x
        self.barrier.wait()
        total = sum(self.held[1:], self.held[0])
        self.barrier.wait()
        return total


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("pieces", [1, 4])
def test_moments_are_exact_however_they_are_split(ranks, pieces, monkeypatch):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 + 100
    cuts = torch.linspace(0, 60, ranks * pieces + 1).long() + torch.tensor([0] + [i % 2 for i in range(ranks * pieces)])
    cuts[-1] = 60  # uneven parts
    threads, done = Threads(ranks), [Moments(3) for _ in range(ranks)]
    monkeypatch.setattr(everyone, "through", threads)

    def work(rank):
        threads.rank.i = rank
        for piece in range(pieces):
            k = piece * ranks + rank
            done[rank].add(x[cuts[k] : cuts[k + 1]].float())

    workers = [threading.Thread(target=work, args=(r,)) for r in range(ranks)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for moments in done:
        assert moments.count == 60
        torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(moments.variance, x.var(0, correction=0), rtol=1e-5, atol=0)
    monkeypatch.setattr(everyone, "through", None)
    y = done[0](x.float())
    torch.testing.assert_close(y.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3), rtol=1e-5, atol=0)


def test_moments_at_their_edges():
    moments = Moments(2, clip=3.0)
    x = torch.tensor([[0.5, -9.0], [100.0, 2.0]])
    assert torch.equal(moments(x), x.clamp(-3, 3))  # nothing is known yet
    moments.add(torch.empty(0, 2))
    assert moments.count == 0
    moments.add(torch.tensor([[1.0, 5.0]]))  # one item: no variance
    assert bool(moments(x).isfinite().all())
    assert moments.variance.tolist() == [0, 0]
    moments.add(torch.tensor([[[3.0, 5.0]]]))  # (B, T, 2)
    assert moments.mean.tolist() == [2, 5]
    assert moments.variance.tolist() == [1, 0]
    assert moments(x.double()).dtype == torch.float64
    with pytest.raises(UserError, match="clip=0,"):
        Moments(clip=0)


def test_moments_are_learnt_once_from_each_step_and_leave_the_ratio_alone():
    """After a stretch of three epochs in two pieces: the moments of its 24 steps; in the second piece ρ is still 1."""
    torch.manual_seed(0)
    env = Simulated(Pendulum(limit=5), 4)
    model = ppo(env, width=8, observations=True, returns=True)
    source = Rollouts(env, 6, estimate=GAE(0.9, 0.7), epochs=3, pieces=2)
    source.start(Place(seed=0))
    obs, returns = [], []
    for step in range(7):
        batch = source.next(model, {})
        said = model.loss(batch)
        if step < 6:
            assert said.logs["kl"].item() == pytest.approx(0, abs=1e-6)  # nothing was learnt, and the moments moved
        if step < 2:
            obs.append(batch["obs"])
            returns.append(batch["return"])
        model.after_step("loss", said.seen)
        if step == 5:
            assert model.observations.count == model.returns.count == 24
            torch.testing.assert_close(model.observations.mean.float(), torch.cat(obs).mean(0))
            torch.testing.assert_close(model.returns.variance.float(), torch.cat(returns).var(correction=0))
            deviation, before = model.returns.deviation.float(), copy.deepcopy(model.observations)
    assert bool((batch["info"]["unit"] == deviation).all())
    torch.testing.assert_close(batch["info"]["seen"], before(batch["obs"]))
    whole = {k: v for k, v in source.state()["whole"].items() if k != "info"} | source.state()["whole"]["info"]
    rows = {k: v.view(6, 4, *v.shape[1:]) for k, v in whole.items()}
    ends = rows["terminated"], rows["truncated"]
    scaled = gae(rows["reward"] / deviation, rows["value"], rows["after"], *ends, gamma=0.9, lam=0.7)
    torch.testing.assert_close(rows["advantage"], scaled)
    with pytest.raises(UserError, match="critic"):
        ActorCritic(MLP(3, 1), None, DiagonalNormal(1), Clipped(), returns=Moments())


# ---- memories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", [GRU, LSTM])
def test_a_stretch_replayed_says_what_was_said_while_acting(core):
    """Episodes of four steps in stretches of nine: ends within, and memories that go on from stretch to stretch."""
    model = remembering(core, observations=Moments(2))
    source = started(pole(3, limit=4, velocities=False), 9, cut=by_environment)
    for _ in range(3):
        batch = source.next(model, {})
        assert batch["obs"].shape == (3, 9, 2)
        assert bool(batch["begins"][:, 1:].any())
        h, _ = model.core(batch["info"]["seen"], batch["memory"], begins=batch["begins"])
        logp = model.law.log_prob(model.actor(h.flatten(0, 1)), batch["action"].flatten())
        torch.testing.assert_close(logp, batch["info"]["logp"].flatten())
        torch.testing.assert_close(model.critic(h.flatten(0, 1))[:, 0], batch["info"]["value"].flatten())
        through, _ = model.core(batch["info"]["seen"], batch["memory"])
        assert not torch.allclose(h, through, atol=1e-4)  # without forgetting it would say something else
        said = model.loss(batch)
        assert said.logs["kl"].item() == pytest.approx(0, abs=1e-6)
    assert not can(model, Reviews)
    with pytest.raises(UserError, match="by_environment"):
        model.loss(started(pole(3, velocities=False)).next(model, {}))


# ---- beginnings ----------------------------------------------------------------------------------------------------


def test_orthogonal_weights():
    torch.manual_seed(0)
    net = orthogonal(MLP(4, 2, 16, 2), 0.01)
    first, inner, last = net.first.weight, net.hidden[0].weight, net.last.weight
    torch.testing.assert_close(first.T @ first, 2 * torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(inner @ inner.T, 2 * torch.eye(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(2), rtol=0, atol=1e-8)
    assert not any(p.any() for n, p in net.named_parameters() if "bias" in n)
    core = orthogonal(LSTM(3, 4))
    torch.testing.assert_close(core.weight_hh_l0.T @ core.weight_hh_l0, torch.eye(4), rtol=0, atol=1e-5)
    torch.manual_seed(0)
    assert torch.equal(build(spec(net)).first.weight, first)
    with pytest.raises(UserError, match="no layer"):
        orthogonal(Moments(3))


def test_presets_begin_near_the_uniform_policy():
    env = Simulated(CartPole(), 4)
    for make in (ppo, a2c, reinforce):
        torch.manual_seed(0)
        model = make(env)
        logits = model.actor(torch.randn(32, 4))
        assert model.law.entropy(logits).min().item() == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [32, 0])
def test_only_a_memory_balances_what_is_half_seen(tmp_path, memory):
    from morphogen.experiment import Experiment
    from morphogen.recipes.cartpole_recurrent import cartpole_recurrent

    made = cartpole_recurrent(memory=memory)
    run = Experiment(made.model, made.data, made.trainer).train(tmp_path, seed=0, device="cpu", voice=Voice())
    assert (run.log()[-1]["score"] > 400) == bool(memory)
