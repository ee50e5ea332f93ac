"""REINFORCE with a learnt baseline keeps a pole upright: returns to the end of an episode, a step for each stretch."""

from __future__ import annotations

from ..experiment import Data, Experiment


def cartpole_reinforce(
    experience: int = 1_000_000,
    envs: int = 16,
    length: int = 200,
    width: int = 64,
    lr: float = 5e-3,
    gamma: float = 0.99,
    entropy: float = 0.0,
) -> Experiment:
    """A perceptron learns to balance from returns, less what another expects of them.

    experience: steps of all environments together. envs, length: environments, and their steps in a stretch, at whose
    end the baseline stands for the rest of an episode. width: units of the two hidden layers. lr: the learning rate,
    which falls to 0. gamma: of the returns. entropy: the weight of the policy's entropy.
    """
    from ..optim import AdamW, Linear
    from ..rl.env import CartPole, Simulated
    from ..rl.presets import reinforce
    from ..rl.rollouts import MonteCarlo, Rollouts, standard
    from ..train import Trainer

    env = Simulated(CartPole(), envs)
    source = Rollouts(env, length, estimate=MonteCarlo(gamma), finish=standard)
    steps = source.steps(experience)
    optim = AdamW(lr, eps=1e-5, schedule=Linear(flat=0.0))
    trainer = Trainer(steps, optim=optim, clip=0.5, save_every=max(1, steps // 4), log_every=max(1, steps // 100))
    return Experiment(reinforce(env, entropy=entropy, width=width), Data(source), trainer)
