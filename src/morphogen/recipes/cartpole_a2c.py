"""Advantage actor-critic keeps a pole upright: one step of the policy's gradient for each few steps of experience."""

from __future__ import annotations

from ..experiment import Data, Experiment


def cartpole_a2c(
    experience: int = 400_000,
    envs: int = 16,
    length: int = 8,
    width: int = 64,
    lr: float = 2e-3,
    gamma: float = 0.99,
    lam: float = 1.0,
    entropy: float = 0.0,
) -> Experiment:
    """Two perceptrons, an actor and a critic, learn to balance; every step of theirs is from new experience.

    experience: steps of all environments together. envs, length: environments, and their steps in a stretch. width:
    units of the two hidden layers. lr: the learning rate, which falls to 0. gamma, lam: of the advantages (GAE; lam = 1
    is the paper's sum of rewards to the end of the stretch). entropy: the weight of the policy's entropy.
    """
    from ..optim import AdamW, Linear
    from ..rl.env import CartPole, Simulated
    from ..rl.presets import a2c
    from ..rl.rollouts import GAE, Rollouts
    from ..train import Trainer

    env = Simulated(CartPole(), envs)
    source = Rollouts(env, length, estimate=GAE(gamma, lam))
    steps = source.steps(experience)
    optim = AdamW(lr, eps=1e-5, schedule=Linear(flat=0.0))
    trainer = Trainer(steps, optim=optim, clip=0.5, save_every=max(1, steps // 4), log_every=max(1, steps // 100))
    return Experiment(a2c(env, entropy=entropy, width=width), Data(source), trainer)
