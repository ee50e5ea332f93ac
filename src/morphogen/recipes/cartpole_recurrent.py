"""PPO with a memory keeps a pole upright of which it sees the positions only, which no policy without one can."""

from __future__ import annotations

from ..experiment import Data, Experiment


def cartpole_recurrent(
    experience: int = 200_000,
    envs: int = 16,
    length: int = 64,
    epochs: int = 10,
    pieces: int = 2,
    memory: int = 32,
    width: int = 32,
    lr: float = 1e-3,
    gamma: float = 0.98,
    lam: float = 0.9,
    clip: float = 0.2,
) -> Experiment:
    """An LSTM with an actor and a critic on it learns to balance from cart and pole's positions, without velocities.

    experience: steps of all environments together. envs, length: environments, and their steps in a stretch, through
    which the memory is replayed. epochs, pieces: how often each stretch is gone through, in how many minibatches of
    whole environments. memory: units of the LSTM; 0: a policy without one, to compare. width: units of the two hidden
    layers. lr, clip: the learning rate, and how far the policy's ratio counts; both fall to 0. gamma, lam: of the
    advantages (GAE).
    """
    from ..optim import AdamW, Linear
    from ..rl.env import CartPole, Simulated
    from ..rl.presets import ppo
    from ..rl.rollouts import GAE, Rollouts, by_environment, by_step, standard
    from ..train import Trainer

    env = Simulated(CartPole(velocities=False), envs)
    cut = by_environment if memory else by_step
    source = Rollouts(env, length, estimate=GAE(gamma, lam), epochs=epochs, pieces=pieces, cut=cut, finish=standard)
    steps = source.steps(experience)
    model = ppo(env, clip=clip, until=steps, width=width, memory=memory, observations=True, returns=True)
    optim = AdamW(lr, eps=1e-5, schedule=Linear(flat=0.0))
    trainer = Trainer(steps, optim=optim, clip=0.5, save_every=max(1, steps // 4), log_every=max(1, steps // 100))
    return Experiment(model, Data(source), trainer)
