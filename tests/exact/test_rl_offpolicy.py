"""Agents that learn from a memory: targets by hand, copies that follow, laws that sum to one (A10, rows 8–10)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from morphogen import Data, Trainer
from morphogen.core import Acts, Greedy, LogProb, Net, Noise, Samples, can
from morphogen.errors import UserError
from morphogen.hooks import Voice
from morphogen.nets.ensemble import Ensemble
from morphogen.nets.mlp import MLP
from morphogen.nets.nature import NatureCNN
from morphogen.optim import AdamW
from morphogen.rl.dqn import DQN, Duelling
from morphogen.rl.env import CartPole, Pendulum, Simulated
from morphogen.rl.policy import Squashed, SquashedNormal
from morphogen.rl.replay import Priorities, Replay
from morphogen.rl.sac import SAC
from morphogen.rl.target import Target
from morphogen.rl.td3 import TD3, ddpg


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_batch(n=9, obs=3, actions=None, m=2):
    """A batch of a replay, of random numbers; some samples have ended, and their steps were of unequal number."""
    chance = random(5, n)
    return {
        "obs": random(1, n, obs),
        "action": torch.arange(n) % actions if actions else random(2, n, m).tanh(),
        "reward": random(3, n),
        "discount": torch.where(chance > 0.5, 0.0, torch.where(chance > 0, 0.9, 0.81)),
        "next": random(4, n, obs),
        "weight": random(6, n).exp(),
        "score": torch.zeros(n),
        "key": torch.arange(n) * 7919 + 13,
    }


def moved(net, seed):
    """The net with other weights."""
    with torch.no_grad():
        for i, t in enumerate(net.state_dict().values()):
            t.add_(0.5 * random(seed + i, *t.shape))
    return net


def trained(model, source, run, steps, until=None):
    trainer = Trainer(steps, optim=AdamW(1e-2), save_every=10**6, log_every=1)
    trainer.fit(model, Data(source), run=run, seed=3, device="cpu", voice=Voice(), until=until)
    return model


# ---- nets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "outputs"), [(1, 3), (2, 1), (5, 3)])
def test_an_ensemble_is_its_members(members, outputs):
    net, x = Ensemble(members, 5, outputs, width=7, depth=3), random(0, 4, 5)
    out = net(x)
    assert out.shape == (members, 4, outputs)
    for i in range(members):
        h = x
        for k, layer in enumerate([*net.hidden, net.last]):
            h = h @ layer.weight[i] + layer.bias[i]
            h = F.relu(h) if k < 3 else h
        torch.testing.assert_close(out[i], h)
    torch.manual_seed(0)
    one = Ensemble(1, 5, outputs, width=7, depth=3)
    torch.manual_seed(0)
    torch.testing.assert_close(one(x)[0], MLP(5, outputs, 7, 3, activation="relu")(x))  # it begins as one
    assert members == 1 or not torch.equal(out[0], out[1])
    with pytest.raises(UserError, match="says nothing"):
        Ensemble(0, 5)


def test_the_net_of_atari_has_its_shapes():
    """Mnih et al. 2015: 84×84×4 to 7×7×64, and 1.69 million weights with 18 actions."""
    net = NatureCNN(outputs=18)
    assert net(torch.zeros(2, 4, 84, 84)).shape == (2, 18)
    assert NatureCNN().outputs == 7 * 7 * 64
    convolutions = 32 * (4 * 64 + 1) + 64 * (32 * 16 + 1) + 64 * (64 * 9 + 1)
    assert sum(p.numel() for p in net.parameters()) == convolutions + 512 * (3136 + 1) + 18 * 513
    with pytest.raises(UserError, match="too small"):
        NatureCNN(1, 4)
    with pytest.raises(UserError, match="last 1 of 8 rows"):
        NatureCNN(1, 10, 3, ((4, 3, 1), (4, 3, 2)))


def test_a_copy_follows_and_is_not_trained():
    net = MLP(3, 2, 5, 2)
    copy = Target(net)
    x = random(0, 6, 3)
    assert torch.equal(copy(x), net(x))
    assert not list(copy.parameters())
    assert len(copy.state_dict()) == len(net.state_dict())  # it is saved whole
    before = [t.clone() for t in copy.buffers()]
    moved(net, 1)
    copy.follow(net, 0.3)
    for a, b, p in zip(copy.buffers(), before, net.parameters(), strict=True):
        torch.testing.assert_close(a, 0.3 * p.detach() + 0.7 * b)
    copy.follow(net, 1.0)
    assert all(torch.equal(a, p) for a, p in zip(copy.buffers(), net.parameters(), strict=True))
    assert torch.equal(copy(x), net(x))
    ensemble = Ensemble(2, 3, width=4)
    twin = Target(ensemble)
    moved(ensemble, 2)
    twin.follow(ensemble, 1.0)
    assert torch.equal(twin(x), ensemble(x))


# ---- DQN -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_the_loss_of_dqn_is_its_formula(double):
    model = DQN(MLP(3, 4, 8, 1), 4, double=double, kappa=1.5)
    moved(model.net, 10)
    batch = a_batch(actions=4)
    said = model.loss(batch)
    total, errors = 0.0, []
    q, q_next, q_target = (
        f(batch[k]).tolist() for f, k in ((model.net, "obs"), (model.net, "next"), (model.target, "next"))
    )
    for i in range(9):
        best = max(range(4), key=lambda a, i=i: (q_next if double else q_target)[i][a])
        y = float(batch["reward"][i]) + float(batch["discount"][i]) * q_target[i][best]
        e = abs(y - q[i][i % 4])
        total += float(batch["weight"][i]) * (0.5 * e * e if e < 1.5 else 1.5 * (e - 0.75)) / 9
        errors.append(e)
    assert said.value.item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(said.seen["priority"].abs(), torch.tensor(errors))
    assert min(errors) < 1.5 < max(errors)
    ways = {d: [double_or_not(model, batch, d)] for d in (False, True)}
    assert ways[True] != ways[False]  # the batch tells the two apart


def double_or_not(model, batch, double):
    model.doubled = double
    return model.loss(batch).value.item()


def test_the_copy_of_dqn_is_made_now_and_then():
    model = DQN(MLP(4, 2, 8, 1), 2, copy_every=3, tau=0.5)
    before = [t.clone() for t in model.target.buffers()]
    moved(model.net, 1)
    for model.step in range(3):
        assert all(torch.equal(a, b) for a, b in zip(model.target.buffers(), before, strict=True))
        model.after_step("loss", {})
    for a, b, p in zip(model.target.buffers(), before, model.net.parameters(), strict=True):
        torch.testing.assert_close(a, 0.5 * p.detach() + 0.5 * b)


def test_dqn_explores_less_and_less():
    model, obs, n = DQN(MLP(4, 2, 8, 1), 2, explore=100, epsilon=0.1), random(0, 20_000, 4), 20_000
    best = model.net(obs).argmax(1)
    for step, epsilon in ((0, 1.0), (50, 0.55), (100, 0.1), (1000, 0.1)):
        model.step = step
        share = (model.act(obs, noise=Noise.seeded(step, n)).action != best).double().mean().item()
        assert share == pytest.approx(epsilon / 2, abs=4 * 0.5 / n**0.5)
    assert torch.equal(model.greedy(obs).action, best)


def test_two_streams_are_centred():
    net = Duelling(MLP(3, 6, 8, 1), MLP(6, 1, 8, 1), MLP(6, 4, 8, 1))
    x = random(0, 5, 3)
    h = net.body(x)
    torch.testing.assert_close(net(x).mean(1), net.value(h)[:, 0])
    before = net(x)
    with torch.no_grad():
        net.advantage.last.bias += 7.0
    torch.testing.assert_close(net(x), before)
    with torch.no_grad():
        net.value.last.bias += 7.0
    torch.testing.assert_close(net(x), before + 7)


# ---- laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.0, 2.0), (0.5, 4.0)])
def test_a_squashed_law_sums_to_one(low, high):
    law = SquashedNormal(1, low, high)
    line = low + (high - low) * (torch.arange(40_000).double() + 0.5) / 40_000
    for mean, log_sigma in ((0.0, 0.0), (0.7, -1.5), (-1.2, 0.4), (0.1, -3.0)):
        params = torch.tensor([[mean, log_sigma]], dtype=torch.float64)
        logp = law.log_prob(params.expand(len(line), 2), line[:, None])
        mass = logp.exp() * (high - low) / 40_000
        assert mass.sum().item() == pytest.approx(1, abs=1e-3)
        assert law.entropy(params).item() == pytest.approx(-(mass * logp).sum().item(), abs=2e-3)
    assert law.log_prob(params, torch.tensor([[high + 0.1]])).item() == -math.inf
    assert law.log_prob(params, torch.tensor([[high]])).isfinite().all()


@pytest.mark.parametrize("log_sigma", [-3.0, 0.0, 1.0, 1.5, 2.0])
def test_the_entropy_of_wide_laws_too_is_that_of_a_dense_quadrature(log_sigma):
    """H = log σ + ½ log 2πe + E log(1 − tanh² u), the mean by a million points."""
    law, u = SquashedNormal(1), torch.linspace(-12, 12, 1_000_001, dtype=torch.float64)
    weights = (-0.5 * u.square()).exp()
    for mean in (0.0, 0.5, 3.0):
        points = mean + math.exp(log_sigma) * u
        slope = -2 * (points.abs() + torch.log1p((-2 * points.abs()).exp()) - math.log(2))
        expected = log_sigma + 0.5 * math.log(2 * math.pi * math.e) + float((weights * slope).sum() / weights.sum())
        for kind, within in ((torch.float64, 1e-6), (torch.float32, 2e-5)):
            found = law.entropy(torch.tensor([[mean, log_sigma]], dtype=kind))
            assert found.dtype == kind
            assert found.item() == pytest.approx(expected, abs=within)


def test_draws_are_of_the_law():
    law, n = SquashedNormal(3, -2.0, 1.0), 50_000
    params = random(0, 1, 6).double().expand(n, 6)
    action, logp = law.draw(params, Noise.seeded(0, n))
    assert torch.equal(action, law.sample(params, Noise.seeded(0, n)))
    torch.testing.assert_close(logp, law.log_prob(params, action), rtol=1e-6, atol=1e-6)
    assert bool(((action > -2) & (action < 1)).all())
    entropy = law.entropy(params[:1]).item()
    assert abs(-logp.mean().item() - entropy) < 4 * logp.std().item() / n**0.5
    # The gradient of the log-density through the draw, beside differences.
    free = params[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: law.draw(p, Noise.seeded(1, 4)), free)
    far = torch.tensor([[300.0, -40.0, 0.0, 9.0, -25.0, 2.0]])
    action, logp = law.draw(far, Noise.seeded(0, 1))
    assert bool(action.isfinite().all() and logp.isfinite().all())
    torch.testing.assert_close(law.mode(far), -0.5 + 1.5 * far[:, :3].tanh())


def test_bounds_must_be_there():
    with pytest.raises(UserError, match="finite bounds"):
        SquashedNormal(1, -math.inf, 1.0)
    with pytest.raises(UserError, match="low < high"):
        Squashed(1, 1.0, 1.0)


# ---- TD3 and DDPG --------------------------------------------------------------------------------------------------


def deterministic(**more):
    model = TD3(MLP(3, 2, 8, 1), Ensemble(2, 5, width=8), Squashed(2, -1.0, 3.0), **more)
    moved(model.actor, 20)
    moved(model.critic, 30)
    return model


def test_the_target_of_td3_is_the_lesser_twins_with_clipped_noise():
    model, batch = deterministic(sigma=0.6, clip=0.5), a_batch()
    z = Noise(batch["key"]).normal(2)
    assert bool((0.6 * z.abs() > 0.5).any())
    noise = 2 * (0.6 * z).clamp(-0.5, 0.5)  # half the distance of the bounds is 2
    action = (1 + 2 * model.target_actor(batch["next"]).tanh() + noise).clamp(-1, 3)
    twins = model.target_critic(torch.cat((batch["next"], action), 1))[:, :, 0]
    assert 0 < int((twins[0] < twins[1]).sum()) < 9  # each is the lesser somewhere
    y = batch["reward"] + batch["discount"] * torch.minimum(*twins)
    q = model.critic(torch.cat((batch["obs"], batch["action"]), 1))[:, :, 0]
    said = model.values(batch)
    expected = sum(0.5 * (batch["weight"] * (y - one).square()).mean() for one in q)
    torch.testing.assert_close(said.value, expected)
    torch.testing.assert_close(said.seen["priority"], torch.maximum(*(y - q).abs()))
    said.value.backward()
    assert all(p.grad is None for p in model.actor.parameters())


def test_the_policy_of_td3_climbs_its_first_critic():
    model, batch = deterministic(), a_batch()
    action = (1 + 2 * model.actor(batch["obs"]).tanh()).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.critic(torch.cat((batch["obs"], action), 1))[0].sum(), action)
    through = 1 + 2 * model.actor(batch["obs"]).tanh()
    expected = torch.autograd.grad(-(slope * through).sum() / 9, list(model.actor.parameters()))
    found = torch.autograd.grad(model.policy(batch).value, list(model.actor.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_policy_and_the_copies_of_td3_are_delayed():
    model = deterministic(delay=3, tau=0.25)
    assert [(p.loss.__name__, p.trains, p.every) for p in model.phases()] == [
        ("values", ("critic",), 1),
        ("policy", ("actor",), 3),
    ]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.after_step("values", {})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.after_step("policy", {})
    for part in ("actor", "critic"):
        for k in (k for k in before if k.startswith(part + ".")):
            name = f"target_{part}.net.{k.removeprefix(part + '.')}"
            torch.testing.assert_close(model.state_dict()[name], 0.25 * before[k] + 0.75 * before[name])


def test_ddpg_is_plain():
    model = ddpg(MLP(3, 2, 8, 1), Ensemble(1, 5, width=8), Squashed(2), noise=0.3)
    moved(model.actor, 1)
    batch = a_batch()
    action = model.target_actor(batch["next"]).tanh()
    y = batch["reward"] + batch["discount"] * model.target_critic(torch.cat((batch["next"], action), 1))[0, :, 0]
    q = model.critic(torch.cat((batch["obs"], batch["action"]), 1))[0, :, 0]
    torch.testing.assert_close(model.values(batch).value, 0.5 * (batch["weight"] * (y - q).square()).mean())
    assert [p.every for p in model.phases()] == [1, 1]


def test_deterministic_policies_act_with_noise_within_bounds():
    model, n = deterministic(noise=0.2), 20_000
    obs = random(0, 1, 3).expand(n, 3)
    mean = 1 + 2 * model.actor(obs).tanh()
    any_action = model.act(obs, noise=Noise.seeded(0, n)).action
    assert any_action.mean().item() == pytest.approx(1, abs=0.05)  # uniform at first
    assert any_action.std().item() == pytest.approx(4 / 12**0.5, abs=0.02)
    model.step = 1
    action = model.act(obs, noise=Noise.seeded(0, n)).action
    assert bool(((action >= -1) & (action <= 3)).all())
    assert -0.2 < mean[0, 0] < 2  # far from the bounds
    assert (action - mean)[:, 0].std().item() == pytest.approx(0.4, abs=0.01)
    torch.testing.assert_close(model.greedy(obs[:1]).action, mean[:1])


# ---- SAC -----------------------------------------------------------------------------------------------------------


def soft(**more):
    more = {"target_entropy": -2.0, "alpha": 0.3} | more
    torch.manual_seed(0)
    model = SAC(MLP(3, 4, 8, 1), Ensemble(2, 5, width=8), SquashedNormal(2, -1.0, 3.0), **more)
    moved(model.actor, 20)
    moved(model.critic, 30)
    return model


def test_the_losses_of_sac_are_its_formulas():
    model, batch = soft(), a_batch()
    action, logp = model.law.draw(model.actor(batch["next"]), Noise(batch["key"]))
    twins = model.target(torch.cat((batch["next"], action), 1))[:, :, 0]
    y = (batch["reward"] + batch["discount"] * (torch.minimum(*twins) - 0.3 * logp)).detach()
    q = model.critic(torch.cat((batch["obs"], batch["action"]), 1))[:, :, 0]
    said = model.values(batch)
    torch.testing.assert_close(said.value, sum(0.5 * (batch["weight"] * (y - one).square()).mean() for one in q))
    torch.testing.assert_close(said.seen["priority"], torch.maximum(*(y - q).abs()))
    action, logp = model.law.draw(model.actor(batch["obs"]), Noise(~batch["key"]))
    twins = model.critic(torch.cat((batch["obs"], action), 1))[:, :, 0]
    assert 0 < int((twins[0] < twins[1]).sum()) < 9
    plain = (0.3 * logp - torch.minimum(*twins)).mean()
    found = model.policy(batch)
    expected = plain + math.log(0.3) * (2.0 - 2 * math.log(2) - logp).mean()
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-4)
    expected = torch.autograd.grad(plain, list(model.actor.parameters()), retain_graph=True)
    *grads, slope = torch.autograd.grad(found.value, [*model.actor.parameters(), model.log_alpha])
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)
    goal = 2.0 - 2 * math.log(2)  # −H̄: of two numbers in units of bounds 4 apart
    assert slope.item() == pytest.approx(-(logp.mean() - goal).item(), rel=1e-5)


def test_a_temperature_that_stands_is_not_trained():
    model, batch = soft(target_entropy=None), a_batch()
    assert [p.trains for p in model.phases()] == [("critic",), ("actor",)]
    assert "log_alpha" not in {n for n, p in model.named_parameters() if p.requires_grad}
    _, logp = model.law.draw(model.actor(batch["obs"]), Noise(~batch["key"]))
    learned = soft().policy(batch)
    extra = math.log(0.3) * (2.0 - 2 * math.log(2) - logp.mean().item())
    assert model.policy(batch).value.item() == pytest.approx(learned.value.item() - extra, rel=1e-4)


def test_the_copy_of_sac_follows_the_values():
    model = soft(tau=0.25)
    before = [t.clone() for t in model.target.buffers()]
    model.after_step("policy", {})
    assert all(torch.equal(a, b) for a, b in zip(model.target.buffers(), before, strict=True))
    model.after_step("values", {})
    for a, b, p in zip(model.target.buffers(), before, model.critic.parameters(), strict=True):
        torch.testing.assert_close(a, 0.25 * p.detach() + 0.75 * b)


class Constant(Net):
    """The same parameters of a law, whatever is seen."""

    def __init__(self):
        super().__init__()
        self.params = torch.nn.Parameter(torch.tensor([0.0, -3.0]))

    def forward(self, x):
        return self.params.expand(len(x), 2)


class Bandit(Net):
    """Two critics that know r = −c (a − µ)²."""

    def __init__(self, c, mu):
        super().__init__()
        self.c, self.mu = c, mu

    def forward(self, x):
        return (-self.c * (x[:, -1:] - self.mu).square()).expand(2, -1, -1)


def test_sac_finds_the_temperature_of_the_bandit():
    """A10, row 9: σ² = α/2c, and a target entropy H asks for α = 2c e^{2H} / 2πe, within 5 %. Bounds far away."""
    c, target = 2.0, -1.0
    law = SquashedNormal(1, -8.0, 8.0)
    model = SAC(Constant(), Bandit(c, 0.3), law, target_entropy=target - math.log(8), alpha=0.1)
    policy, alpha = torch.optim.Adam([model.actor.params], 0.05), torch.optim.SGD([model.log_alpha], 0.015)
    obs, sums = torch.zeros(512, 1), []
    for step in range(600):
        said = model.policy({"obs": obs, "key": Noise.seeded(step, 512).key})
        policy.zero_grad()
        alpha.zero_grad()
        said.value.backward()
        policy.step()
        alpha.step()
        if step >= 420:
            mean, log_sigma = model.actor.params.tolist()
            sums.append((said.logs["alpha"].item(), (8 * math.exp(log_sigma)) ** 2, 8 * math.tanh(mean)))
    found, variance, mean = (sum(x) / len(sums) for x in zip(*sums, strict=True))
    assert found == pytest.approx(0.0316954321, rel=0.05)
    assert variance == pytest.approx(found / (2 * c), rel=0.05)
    assert mean == pytest.approx(0.3, abs=0.03)


def test_what_they_can_do():
    model, obs = soft(), random(0, 5, 3)
    assert all(can(model, protocol) for protocol in (Acts, Greedy, LogProb, Samples))
    params = model.actor(obs)
    first = model.act(obs, noise=Noise.seeded(0, 5)).action
    assert torch.equal(first, -1 + 4 * Noise.seeded(0, 5).uniform(2))  # any action, before the first step
    model.step = 1
    action = model.act(obs, noise=Noise.seeded(0, 5)).action
    assert torch.equal(action, model.sample(5, {"obs": obs}, noise=Noise.seeded(0, 5)))
    torch.testing.assert_close(model.log_prob(action, {"obs": obs}), model.law.log_prob(params, action))
    assert torch.equal(model.greedy(obs).action, 1 + 2 * params[:, :2].tanh())
    with pytest.raises(UserError, match="what it sees"):
        model.sample(5)


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="tau=0"):
        DQN(MLP(3, 2, 8, 1), 2, tau=0.0)
    with pytest.raises(UserError, match="delay=0"):
        deterministic(delay=0)
    with pytest.raises(UserError, match="alpha=0"):
        soft(alpha=0.0)


# ---- on the one Trainer --------------------------------------------------------------------------------------------


def agents():
    torch.manual_seed(1)
    duelling = Duelling(MLP(4, 6, 8, 1), MLP(6, 1, 8, 1), MLP(6, 2, 8, 1))
    pendulum = {"capacity": 40, "batch": 8, "warmup": 5}
    return {
        "dqn": (
            DQN(duelling, 2, copy_every=4, explore=6),
            Replay(Simulated(CartPole(limit=9), 3), **pendulum, n=3, priorities=Priorities(), every=2),
        ),
        "sac": (
            SAC(MLP(3, 2, 8, 1), Ensemble(2, 4, width=8), SquashedNormal(1, -2.0, 2.0), target_entropy=-1.0),
            Replay(Simulated(Pendulum(limit=7), 3), **pendulum),
        ),
        "td3": (
            TD3(MLP(3, 1, 8, 1), Ensemble(2, 4, width=8), Squashed(1, -2.0, 2.0)),
            Replay(Simulated(Pendulum(limit=7), 3), **pendulum, priorities=Priorities()),
        ),
    }


@pytest.mark.parametrize("name", ["dqn", "sac", "td3"])
def test_a_run_that_was_cut_ends_in_the_same_bytes(name, tmp_path):
    """Copies, memory, priorities and the episode in progress included; and what is loaded has its copy."""
    whole = trained(*agents()[name], tmp_path / "whole", 7).state_dict()
    trained(*agents()[name], tmp_path / "cut", 7, until=3)
    again = trained(*agents()[name], tmp_path / "cut", 7).state_dict()
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    copies = [k for k in whole if k.startswith("target")]
    assert copies
    assert not all(torch.equal(whole[k], agents()[name][0].state_dict()[k]) for k in copies)
