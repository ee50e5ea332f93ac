"""DDPG steers a linear system whose best answer Riccati's equation knows: how near does it come?"""

from __future__ import annotations

from ..experiment import Data, Experiment


def lq_ddpg(
    steps: int = 8000,
    envs: int = 8,
    batch: int = 128,
    capacity: int = 50_000,
    warmup: int = 100,
    width: int = 64,
    lr: float = 1e-3,
    actor_lr: float = 3e-4,
    gamma: float = 0.95,
    tau: float = 0.01,
    noise: float = 0.1,
    bound: float = 5.0,
    limit: int = 20,
) -> Experiment:
    """A deterministic policy learns to bring a double integrator to rest; its cost is to be compared with the best.

    steps: training steps, each of one batch after one step of every environment. envs: how many. batch, capacity,
    warmup: samples of a batch, steps remembered, and steps of each environment, at random, before the first batch.
    width: units of the two hidden layers. lr, actor_lr: the learning rates of critic and policy, which fall to 0.
    gamma: the discount. tau: how fast copies follow. noise: of the actions, in units of the bound. bound: of the force.
    limit: steps of an episode.

    Episodes are short, for a policy at random drives the system far away, where squares of what is seen drown the rest;
    costs are a tenth of the usual double integrator's, which moves no gain.
    """
    from ..nets.ensemble import Ensemble
    from ..nets.mlp import MLP
    from ..optim import AdamW, Linear
    from ..rl.env import LinearQuadratic, Simulated
    from ..rl.policy import Squashed
    from ..rl.replay import Replay
    from ..rl.td3 import ddpg
    from ..train import Trainer

    actor, critic = MLP(2, 1, width, 2, activation="relu", last=0.1), Ensemble(1, 3, width=width)
    model = ddpg(actor, critic, Squashed(1, -bound, bound), noise=noise, tau=tau)
    task = LinearQuadratic(q=((0.1, 0.0), (0.0, 0.1)), r=((0.01,),), bound=bound, limit=limit)
    source = Replay(Simulated(task, envs), capacity=capacity, batch=batch, warmup=warmup, gamma=gamma)
    often, falling = max(1, steps // 5), Linear(flat=0.5)
    optim = {"critic": AdamW(lr, schedule=falling), "actor": AdamW(actor_lr, schedule=falling)}
    return Experiment(model, Data(source), Trainer(steps, optim=optim, save_every=often, log_every=often // 20 or 1))
