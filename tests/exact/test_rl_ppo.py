"""PPO: laws of actions that sum to one, a loss put together as in the paper, and a pole that it learns to balance."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen import Data, Experiment
from morphogen.core import Acts, LogProb, Noise, Place, Samples, can
from morphogen.errors import UserError
from morphogen.hooks import Voice
from morphogen.nets.mlp import MLP
from morphogen.recipes.cartpole_ppo import cartpole_ppo
from morphogen.rl.actor_critic import ActorCritic, Clipped
from morphogen.rl.env import CartPole, Simulated
from morphogen.rl.policy import Categorical, DiagonalNormal
from morphogen.rl.rollouts import Rollouts


def agent(clip=0.2, **more):
    torch.manual_seed(0)
    return ActorCritic(MLP(4, 2, 8, 1), MLP(4, 1, 8, 1), Categorical(2), Clipped(clip), **more)


def a_batch(model, epochs=1):
    source = Rollouts(Simulated(CartPole(limit=6), 3), 8, epochs=epochs)
    source.start(Place(seed=1))
    return source.next(model, {})


def test_laws_sum_to_one_and_their_entropy_is_theirs():
    params = Noise.seeded(0, 5).normal(4)
    law = Categorical(4)
    logp = torch.stack([law.log_prob(params, torch.full((5,), a)) for a in range(4)], 1)
    torch.testing.assert_close(logp.exp().sum(1), torch.ones(5))
    torch.testing.assert_close(law.entropy(params), -(logp.exp() * logp).sum(1))
    law, mean = DiagonalNormal(2, log_sigma=-0.3), torch.tensor([[0.5, -1.0]])
    x = mean + law.sample(torch.zeros(4000, 2), Noise.seeded(1, 4000))
    line = torch.linspace(-6, 6, 241)
    grid = torch.cartesian_prod(line, line)
    mass = law.log_prob(mean.expand(len(grid), 2), grid).exp().sum() * 0.05**2
    assert mass.item() == pytest.approx(1, abs=1e-4)
    entropy = law.entropy(mean).item()
    assert entropy == pytest.approx(2 * (-0.3 + 0.5 * math.log(2 * math.pi * math.e)), abs=1e-5)
    own = -law.log_prob(mean.expand_as(x), x)
    assert abs(own.mean().item() - entropy) < 4 * own.std().item() / 4000**0.5


def test_the_first_step_is_the_policy_gradient_and_a_later_one_is_clipped():
    """Written out: at the policy that made the batch ρ = 1, no KL, nothing clipped; then a net moved by hand."""
    model = agent(entropy=0.1)
    batch = a_batch(model)
    said = model.loss(batch)
    assert said.logs["kl"].item() == pytest.approx(0, abs=1e-6)
    assert said.logs["clipped"].item() == 0
    value, logits = model.critic(batch["obs"])[:, 0], model.actor(batch["obs"])
    logp = logits.log_softmax(1)
    entropy = -(logp.exp() * logp).sum(1).mean()
    error = 0.5 * (batch["return"] - value).square().mean()
    expected = -batch["advantage"].mean() + 0.5 * error - 0.1 * entropy
    assert said.value.item() == pytest.approx(expected.item(), rel=1e-5)
    taken = logp.gather(1, batch["action"][:, None])[:, 0]
    plain = -(batch["advantage"] * taken).mean() + 0.5 * error - 0.1 * entropy
    grads = [torch.autograd.grad(v, list(model.parameters())) for v in (said.value, plain)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        model.actor.last.bias += torch.tensor([3.0, -3.0])
    moved = model.loss(batch)
    assert moved.logs["clipped"].item() > 0.3
    ratio = (model.log_prob(batch["action"], {"obs": batch["obs"]}) - batch["info"]["logp"]).exp()
    a = batch["advantage"]
    surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()
    rest = 0.5 * error - 0.1 * model.law.entropy(model.actor(batch["obs"])).mean()
    assert moved.value.item() == pytest.approx((rest - surrogate).item(), rel=1e-4)


def test_what_it_can_do():
    model = agent()
    assert all(can(model, protocol) for protocol in (Acts, LogProb, Samples))
    obs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    act = model.act(obs, noise=Noise.seeded(0, 5))
    torch.testing.assert_close(act.info["logp"], model.log_prob(act.action, {"obs": obs}))
    assert torch.equal(model.sample(5, {"obs": obs}, noise=Noise.seeded(0, 5)), act.action)
    with pytest.raises(UserError, match="what it sees"):
        model.sample(5)
    with pytest.raises(UserError, match="clip=0"):
        agent(clip=0.0)


def test_it_learns_to_balance(tmp_path):
    """A seventh of the recipe's experience: far above chance (22 steps)."""
    made = cartpole_ppo(experience=15_360, envs=16, length=64, pieces=4, epochs=6, lr=2.5e-3, gamma=0.99, lam=0.95)
    assert isinstance(made.data, Data)
    run = Experiment(made.model, made.data, made.trainer).train(tmp_path, seed=0, device="cpu", voice=Voice())
    assert run.log()[-1]["score"] > 60
