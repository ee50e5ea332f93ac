"""Numbers out of their range, and spaces that an agent cannot serve: one sentence each, which names what was wrong."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch

from morphogen.core import Loss, Noise, Place
from morphogen.errors import UserError
from morphogen.metrics.returns import return_measures
from morphogen.nets.ensemble import Ensemble
from morphogen.nets.mlp import MLP
from morphogen.recipes.cartpole_a2c import cartpole_a2c
from morphogen.recipes.cartpole_ppo import cartpole_ppo
from morphogen.recipes.cartpole_recurrent import cartpole_recurrent
from morphogen.recipes.cartpole_reinforce import cartpole_reinforce
from morphogen.recipes.catch_dqn import catch_dqn
from morphogen.rl.actor_critic import ActorCritic, Clipped, PolicyGradient
from morphogen.rl.control import cem, ilqr, mppi
from morphogen.rl.dqn import DQN
from morphogen.rl.env import Box, CartPole, Choice, PointMass, Simulated
from morphogen.rl.moments import Moments
from morphogen.rl.policy import Categorical, DiagonalNormal, Squashed, SquashedNormal
from morphogen.rl.presets import a2c, ppo, reinforce
from morphogen.rl.replay import Priorities, Replay
from morphogen.rl.rollouts import GAE, MonteCarlo, Rollouts
from morphogen.rl.sac import SAC
from morphogen.rl.tabular import evaluate, grid4, occupancy, policy_iteration, value_iteration
from morphogen.rl.tabular.bandit import UCB, EpsilonGreedy, Gradient, ThompsonNormal
from morphogen.rl.tabular.control import Control
from morphogen.rl.td3 import TD3


def pole(envs=2):
    return Simulated(CartPole(), envs)


def replay(**more):
    return Replay(pole(), **{"capacity": 8, "batch": 2} | more)


def critic(**more):
    return ActorCritic(MLP(4, 2, 8, 1), MLP(4, 1, 8, 1), Categorical(2), PolicyGradient(), **more)


def sac(**more):
    return SAC(MLP(3, 2, 8, 1), Ensemble(2, 4, width=8), SquashedNormal(1), **more)


def td3(**more):
    return TD3(MLP(3, 1, 8, 1), Ensemble(2, 4, width=8), Squashed(1), **more)


def planned(planner, plans=8, **more):
    return planner(PointMass(), torch.zeros(4), torch.zeros(3, 2), Noise.seeded(0, plans), **{"sigma": 1.0} | more)


def swept(cost):
    """iLQR of two numbers that move each other, from rest."""
    zero = torch.zeros(2, dtype=torch.float64)
    return ilqr(lambda x, u: x.flip(0) + u, cost, lambda x: x @ x, zero, zero.expand(3, 2))


def valued(p):
    return evaluate(grid4(), torch.full((16, 4), p, dtype=torch.float64), 0.9)


def heard(priority):
    source = replay(priorities=Priorities())
    source.start(Place())
    agent = DQN(MLP(4, 2, 8, 1), 2)
    source.next(agent, {})
    return source.next(agent, {"loss": Loss(torch.tensor(0.0), {}, {"priority": priority})})


def seen(space):
    env = pole()
    env.observation = space
    return env


def done(space):
    env = pole()
    env.action = space
    return env


CASES = {
    "gae gamma": (lambda: GAE(gamma=1.1), "gamma=1.1"),
    "gae gamma nan": (lambda: GAE(gamma=nan), "gamma=nan"),
    "gae lam": (lambda: GAE(lam=-0.1), "lam=-0.1"),
    "monte carlo gamma": (lambda: MonteCarlo(-1.0), "gamma=-1.0"),
    "rollouts kl": (lambda: Rollouts(pole(), 4, most_kl=nan), "most_kl=nan"),
    "replay gamma": (lambda: replay(gamma=-1), "gamma=-1"),
    "replay gamma nan": (lambda: replay(gamma=nan), "gamma=nan"),
    "priorities alpha": (lambda: Priorities(inf), "alpha=inf"),
    "priorities eps": (lambda: Priorities(eps=nan), "eps=nan"),
    "clip inf": (lambda: Clipped(inf), "clip=inf"),
    "clip nan": (lambda: Clipped(nan), "clip=nan"),
    "clip 0": (lambda: Clipped(0.0), "clip=0.0"),
    "until": (lambda: Clipped(until=0), "until step 0"),
    "entropy nan": (lambda: critic(entropy=nan), "entropy=nan"),
    "value": (lambda: critic(value=-0.5), "value=-0.5"),
    "value clip": (lambda: critic(value_clip=nan), "value_clip=nan"),
    "no actions": (lambda: Categorical(0), "among 0 actions"),
    "fewer than no numbers": (lambda: DiagonalNormal(-1), "law of -1 numbers"),
    "log sigma": (lambda: DiagonalNormal(2, nan), "log_sigma=nan"),
    "squashed": (lambda: Squashed(0), "action of 0 numbers"),
    "bounds": (lambda: Squashed(1, -inf, 1.0), "from -inf to 1.0"),
    "moments clip": (lambda: Moments(clip=nan), "clip=nan"),
    "moments eps": (lambda: Moments(eps=0.0), "eps=0.0"),
    "sac alpha": (lambda: sac(alpha=inf), "alpha=inf"),
    "sac entropy": (lambda: sac(target_entropy=nan), "target_entropy=nan"),
    "sac tau": (lambda: sac(tau=nan), "tau=nan"),
    "td3 clip": (lambda: td3(clip=nan), "clip=nan"),
    "td3 noise": (lambda: td3(noise=inf), "noise=inf"),
    "td3 sigma": (lambda: td3(sigma=nan), "sigma=nan"),
    "dqn kappa": (lambda: DQN(MLP(4, 2, 8, 1), 2, kappa=nan), "kappa=nan"),
    "dqn epsilon": (lambda: DQN(MLP(4, 2, 8, 1), 2, epsilon=1.5), "epsilon=1.5"),
    "table gamma": (lambda: Control(grid4(), gamma=2), "gamma=2"),
    "table alpha": (lambda: Control(grid4(), alpha=inf), "alpha=inf"),
    "table decay": (lambda: Control(grid4(), decay=-1), "decay=-1"),
    "table initial": (lambda: Control(grid4(), initial=nan), "initial=nan"),
    "bandit epsilon": (lambda: EpsilonGreedy(nan), "epsilon = nan"),
    "bandit c": (lambda: UCB(nan), "c = nan"),
    "bandit sigma": (lambda: ThompsonNormal(nan), "sigma = nan"),
    "bandit alpha": (lambda: Gradient(nan), "alpha = nan"),
    "plan gamma": (lambda: value_iteration(grid4(), 1.5), "gamma=1.5"),
    "plan gamma below 0": (lambda: policy_iteration(grid4(), -0.5), "gamma=-0.5"),
    "value gamma": (lambda: evaluate(grid4(), torch.ones(16, 4), nan), "gamma=nan"),
    "visits gamma": (lambda: occupancy(grid4(), torch.ones(16, 4), 2.0), "gamma=2.0"),
    "policy of 4": (lambda: valued(1.0), "in state 0 sum to 4"),
    "policy below 0": (lambda: evaluate(grid4(), torch.eye(4)[[0] * 16] * 2 - 0.25, 0.9), "in state 0"),
    "policy's shape": (lambda: evaluate(grid4(), torch.ones(16), 0.9), r"\(16,\)"),
    "elite": (lambda: planned(cem, elite=2.0), "elite=2.0"),
    "one plan": (lambda: planned(cem, plans=1), "1 plan"),
    "rounds": (lambda: planned(cem, rounds=0), "rounds=0"),
    "cem sigma": (lambda: planned(cem, sigma=nan), "sigma=nan"),
    "temperature 0": (lambda: planned(mppi, temperature=0.0), "temperature=0.0"),
    "temperature below 0": (lambda: planned(mppi, temperature=-1.0), "temperature=-1.0"),
    "mppi sigma": (lambda: planned(mppi, sigma=-1.0, temperature=1.0), "sigma=-1.0"),
    "no slope": (lambda: swept(lambda x, u: (x @ x).sqrt() * 0 + u @ u), "step 2 .* not finite"),
    "priority nan": (lambda: heard(torch.tensor([1.0, nan])), "not finite"),
    "priority of three": (lambda: heard(torch.ones(3)), r"\(3,\).* 2 samples"),
    "return nan": (lambda: return_measures([[1.0, nan, 3.0]], [[1, 1, 1]]), "not finite"),
    "no units": (lambda: catch_dqn(width=0), "width 0"),
    "memory": (lambda: ppo(pole(), memory=-2), "memory of -2 units"),
    "memory of rows": (lambda: ppo(seen(Box((2, 2))), memory=4), r"shape \(2, 2\)"),
    "seen integers": (lambda: ppo(seen(Choice(7))), "one of 7 integers"),
    "seen integers, standardised": (lambda: a2c(seen(Choice(7)), observations=True), "one of 7 integers"),
    "actions without a shape": (lambda: reinforce(done(Box(()))), r"shape \(\)"),
    "actions of two dimensions": (lambda: ppo(done(Box((2, 3)))), r"shape \(2, 3\)"),
}


CASES |= {
    f"{make.__name__} of {name}={value}": (lambda make=make, name=name, value=value: make(**{name: value}), says)
    for make, more in (
        (cartpole_ppo, ("epochs", "pieces")),
        (cartpole_recurrent, ("epochs", "pieces")),
        (cartpole_a2c, ()),
        (cartpole_reinforce, ()),
    )
    for name, value, says in (
        ("experience", -5, "-5 steps of experience"),
        ("length", 0, "length 0"),
        ("envs", 0, "0 environments"),
        ("epochs", 0, "0 epochs"),
        ("pieces", 0, "0 pieces"),
    )
    if name in ("experience", "length", "envs", *more)
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_in_a_sentence(name):
    wrong, says = CASES[name]
    with pytest.raises(UserError, match=says) as said:
        wrong()
    assert str(said.value).endswith(".")
    assert "\n" not in str(said.value)


def test_what_is_at_the_edge_is_taken():
    GAE(1.0, 0.0)
    MonteCarlo(0.0)
    replay(gamma=1)
    td3(clip=inf, sigma=0.0, noise=0.0)
    DQN(MLP(4, 2, 8, 1), 2, kappa=inf, epsilon=0.0)
    Moments(clip=inf)
    critic(value=0.0, value_clip=inf)
    assert ppo(seen(Box((2, 2))), observations=True).observations.mean.shape == (2, 2)
    assert ppo(done(Box((3,)))).law.outputs == 3
