"""SAC swings a pendulum up and holds it: gymnasium's Pendulum-v1 as tensors, about −150 being the best."""

from __future__ import annotations

from ..experiment import Data, Experiment


def pendulum_sac(
    steps: int = 19_900,
    envs: int = 1,
    batch: int = 256,
    capacity: int = 20_000,
    warmup: int = 100,
    width: int = 64,
    lr: float = 1e-3,
    gamma: float = 0.99,
    tau: float = 0.005,
    entropy: float = -1.0,
    learned: bool = True,
    alpha: float = 1.0,
) -> Experiment:
    """A stochastic policy and twin critics learn the torque, from a memory of what came of it.

    steps: training steps, each of one batch after one step of every environment. envs: how many. batch, capacity,
    warmup: samples of a batch, steps remembered, and steps of each environment, at random, before the first batch.
    width: units of the two hidden layers. lr: the learning rate. gamma: the discount. tau: how fast the critics' copies
    follow. entropy: the policy's target, in nats of an action in units of the bound and minus its dimension as in the
    paper. learned: whether the temperature follows it. alpha: what the temperature begins with.

    As in Haarnoja et al. 2018 but for the learning rate (theirs 3e-4): a task of 20,000 steps takes the larger one.
    """
    from ..nets.ensemble import Ensemble
    from ..nets.mlp import MLP
    from ..optim import AdamW
    from ..rl.env import Pendulum, Simulated
    from ..rl.policy import SquashedNormal
    from ..rl.replay import Replay
    from ..rl.sac import SAC
    from ..train import Trainer

    law = SquashedNormal(1, -2.0, 2.0)
    actor, critic = MLP(3, 2, width, 2, activation="relu"), Ensemble(2, 4, width=width)
    model = SAC(actor, critic, law, target_entropy=entropy if learned else None, alpha=alpha, tau=tau)
    source = Replay(Simulated(Pendulum(), envs), capacity=capacity, batch=batch, warmup=warmup, gamma=gamma)
    often = max(1, steps // 5)
    trainer = Trainer(steps, optim=AdamW(lr), save_every=often, log_every=often // 20 or 1)
    return Experiment(model, Data(source), trainer)
