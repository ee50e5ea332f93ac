"""PPO runs: gymnasium's HalfCheetah-v5, whose two legs are moved by six torques."""

from __future__ import annotations

from ..experiment import Data, Experiment


def halfcheetah_ppo(
    experience: int = 1_000_000,
    envs: int = 8,
    length: int = 256,
    epochs: int = 10,
    pieces: int = 8,
    width: int = 64,
    lr: float = 8e-4,
    gamma: float = 0.99,
    lam: float = 0.95,
    clip: float = 0.2,
    entropy: float = 0.0,
) -> Experiment:
    """Two perceptrons, an actor and a critic, learn to run; what they see and earn is standardised.

    experience: steps of all environments together. envs, length: environments, and their steps in a stretch. epochs,
    pieces: how often each stretch is gone through, in how many minibatches. width: units of the two hidden layers. lr:
    the learning rate, which falls to 0. gamma, lam: of the advantages (GAE). clip: how far the policy's ratio counts.
    entropy: the weight of the policy's entropy.
    """
    from ..optim import AdamW, Linear
    from ..rl.env import Gymnasium
    from ..rl.presets import ppo
    from ..rl.rollouts import GAE, Rollouts, standard
    from ..train import Trainer

    env = Gymnasium("HalfCheetah-v5", envs)
    source = Rollouts(env, length, estimate=GAE(gamma, lam), epochs=epochs, pieces=pieces, finish=standard)
    steps = source.steps(experience)
    model = ppo(env, clip=clip, entropy=entropy, width=width, value_clip=0.2, observations=True, returns=True)
    optim = AdamW(lr, eps=1e-5, schedule=Linear(flat=0.0))
    trainer = Trainer(steps, optim=optim, clip=0.5, save_every=max(1, steps // 4), log_every=max(1, steps // 100))
    return Experiment(model, Data(source), trainer)
