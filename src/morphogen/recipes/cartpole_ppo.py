"""PPO keeps a pole upright: CartPole-v1, as tensors or gymnasium's, the best return being 500."""

from __future__ import annotations

from ..experiment import Data, Experiment


def cartpole_ppo(
    experience: int = 100_000,
    envs: int = 64,
    length: int = 16,
    epochs: int = 4,
    pieces: int = 4,
    width: int = 64,
    lr: float = 5e-3,
    gamma: float = 0.98,
    lam: float = 0.8,
    clip: float = 0.2,
    entropy: float = 0.0,
    gymnasium: bool = False,
) -> Experiment:
    """Two perceptrons, an actor and a critic, learn to balance from stretches of experience.

    experience: steps of all environments together. envs, length: environments, and their steps in a stretch. epochs,
    pieces: how often each stretch is gone through, in how many minibatches. width: units of the two hidden layers. lr,
    clip: the learning rate, and how far the policy's ratio counts; both fall to 0. gamma, lam: of the advantages (GAE).
    entropy: the weight of the policy's entropy. gymnasium: take its CartPole-v1, and not the same as tensors.
    """
    from ..optim import AdamW, Linear
    from ..rl.env import CartPole, Gymnasium, Simulated
    from ..rl.presets import ppo
    from ..rl.rollouts import GAE, Rollouts, standard
    from ..train import Trainer

    env = Gymnasium("CartPole-v1", envs) if gymnasium else Simulated(CartPole(), envs)
    source = Rollouts(env, length, estimate=GAE(gamma, lam), epochs=epochs, pieces=pieces, finish=standard)
    steps = source.steps(experience)
    model = ppo(env, clip=clip, until=steps, entropy=entropy, width=width)
    optim = AdamW(lr, eps=1e-5, schedule=Linear(flat=0.0))
    trainer = Trainer(steps, optim=optim, clip=0.5, save_every=max(1, steps // 4), log_every=max(1, steps // 100))
    return Experiment(model, Data(source), trainer)
