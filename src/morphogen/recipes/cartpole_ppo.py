"""PPO keeps a pole upright: gymnasium's CartPole-v1 as tensors, the best return being 500."""

from __future__ import annotations

from ..experiment import Data, Experiment


def cartpole_ppo(
    steps: int = 3000,
    envs: int = 16,
    length: int = 64,
    epochs: int = 6,
    pieces: int = 4,
    width: int = 64,
    lr: float = 2.5e-3,
    gamma: float = 0.99,
    lam: float = 0.95,
    clip: float = 0.2,
    entropy: float = 0.0,
) -> Experiment:
    """Two perceptrons, an actor and a critic, learn to balance from stretches of experience.

    steps: training steps, each of one minibatch. envs, length: environments, and their steps in a stretch. epochs,
    pieces: how often each stretch is gone through, in how many minibatches. width: units of the two hidden layers. lr:
    the learning rate, which falls to 0. gamma, lam: of the advantages (GAE). clip: how far the policy's ratio counts.
    entropy: the weight of the policy's entropy.
    """
    from ..optim import AdamW, Triangle
    from ..rl.env import CartPole, Simulated
    from ..rl.presets import ppo
    from ..rl.rollouts import GAE, Rollouts, standard
    from ..train import Trainer

    env = Simulated(CartPole(), envs)
    model = ppo(env, clip=clip, entropy=entropy, width=width)
    source = Rollouts(env, length, estimate=GAE(gamma, lam), epochs=epochs, pieces=pieces, finish=standard)
    often = max(1, steps // 5)
    optim = AdamW(lr, betas=(0.9, 0.999), weight_decay=0.0, schedule=Triangle(peak=0.0))
    trainer = Trainer(steps, optim=optim, clip=0.5, save_every=often, log_every=max(1, steps // 50))
    return Experiment(model, Data(source), trainer)
