"""DDPG swings a pendulum up and holds it: gymnasium's Pendulum-v1 as tensors, about −150 being the best."""

from __future__ import annotations

from ..experiment import Data, Experiment


def pendulum_ddpg(
    steps: int = 19_900,
    envs: int = 1,
    batch: int = 256,
    capacity: int = 20_000,
    warmup: int = 100,
    width: int = 64,
    lr: float = 1e-3,
    gamma: float = 0.99,
    tau: float = 0.005,
    noise: float = 0.1,
) -> Experiment:
    """A deterministic policy and a critic learn the torque, from a memory of what came of it.

    steps: training steps, each of one batch after one step of every environment. envs: how many. batch, capacity,
    warmup: samples of a batch, steps remembered, and steps of each environment, at random, before the first batch.
    width: units of the two hidden layers. lr: the learning rate. gamma: the discount. tau: how fast copies follow.
    noise: of the actions.

    As in Lillicrap et al. 2016 with TD3's nets, learning rate and noise without memory (the paper: batches of 64, 400
    and 300 units, a policy that learns ten times slower, an Ornstein-Uhlenbeck process, batch normalisation).
    """
    from ..nets.ensemble import Ensemble
    from ..nets.mlp import MLP
    from ..optim import AdamW
    from ..rl.env import Pendulum, Simulated
    from ..rl.policy import Squashed
    from ..rl.replay import Replay
    from ..rl.td3 import ddpg
    from ..train import Trainer

    actor, critic = MLP(3, 1, width, 2, activation="relu", last=0.1), Ensemble(1, 4, width=width)
    model = ddpg(actor, critic, Squashed(1, -2.0, 2.0), noise=noise, tau=tau)
    source = Replay(Simulated(Pendulum(), envs), capacity=capacity, batch=batch, warmup=warmup, gamma=gamma)
    often = max(1, steps // 5)
    trainer = Trainer(steps, optim=AdamW(lr), save_every=often, log_every=often // 20 or 1)
    return Experiment(model, Data(source), trainer)
