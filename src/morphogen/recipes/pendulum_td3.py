"""TD3 swings a pendulum up and holds it: gymnasium's Pendulum-v1 as tensors, about −150 being the best."""

from __future__ import annotations

from ..experiment import Data, Experiment


def pendulum_td3(
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
    sigma: float = 0.2,
    clip: float = 0.5,
    delay: int = 2,
) -> Experiment:
    """A deterministic policy and twin critics learn the torque, from a memory of what came of it.

    steps: training steps, each of one batch after one step of every environment. envs: how many. batch, capacity,
    warmup: samples of a batch, steps remembered, and steps of each environment, at random, before the first batch.
    width: units of the two hidden layers. lr: the learning rate. gamma: the discount. tau: how fast copies follow.
    noise: of the actions. sigma, clip: of the target's. delay: steps of the critics for one of the policy.

    As in Fujimoto et al. 2018; of their code the larger batch of 256, and nets of 256 units twice (the paper: batches
    of 100, 400 and 300 units).
    """
    from ..nets.ensemble import Ensemble
    from ..nets.mlp import MLP
    from ..optim import AdamW
    from ..rl.env import Pendulum, Simulated
    from ..rl.policy import Squashed
    from ..rl.replay import Replay
    from ..rl.td3 import TD3
    from ..train import Trainer

    actor, critic = MLP(3, 1, width, 2, activation="relu", last=0.1), Ensemble(2, 4, width=width)
    law = Squashed(1, -2.0, 2.0)
    model = TD3(actor, critic, law, sigma=sigma, clip=clip, delay=delay, noise=noise, tau=tau)
    source = Replay(Simulated(Pendulum(), envs), capacity=capacity, batch=batch, warmup=warmup, gamma=gamma)
    often = max(1, steps // 5)
    trainer = Trainer(steps, optim=AdamW(lr), save_every=often, log_every=often // 20 or 1)
    return Experiment(model, Data(source), trainer)
