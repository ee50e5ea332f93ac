"""DQN keeps a pole upright: gymnasium's CartPole-v1 as tensors, the best return being 500."""

from __future__ import annotations

from ..experiment import Data, Experiment


def cartpole_dqn(
    steps: int = 24_750,
    envs: int = 4,
    every: int = 1,
    batch: int = 128,
    capacity: int = 100_000,
    warmup: int = 250,
    width: int = 128,
    lr: float = 1e-3,
    gamma: float = 0.99,
    n: int = 3,
    copy_every: int = 1,
    tau: float = 0.005,
    explore: int = 4000,
    epsilon: float = 0.04,
    double: bool = True,
    duelling: bool = False,
    prioritised: bool = False,
) -> Experiment:
    """A perceptron learns what pushing left and right is worth, from a memory of what came of it.

    steps: training steps, each of one batch; with the defaults 100,000 of the environment. envs, every: environments,
    and their steps between two batches. batch, capacity, warmup: samples of a batch, steps remembered, and steps of
    each environment before the first batch. width: units of the two hidden layers. lr: the learning rate, which falls
    to 0. gamma: the discount. n: steps of a return. copy_every, tau: after so many training steps the copy goes this
    share of the way to the net. explore, epsilon: in so many training steps ε falls to this. double, duelling,
    prioritised: whether the net chooses what its copy values, has two streams, and learns more often from what
    surprised it.

    Of Mnih et al. 2015: the copy, the memory, Huber's loss and a linear fall of ε. Of their code, not: frames, RMSProp,
    rewards cut to ±1. Not of the paper: double Q-learning, three steps, Adam at a falling rate, and a copy that follows
    a little at every step (Lillicrap et al. 2016): with one in 100 steps, or at twice the pace, some seeds fell. The
    memory holds the whole training: one that has forgotten how poles fall lets them fall again.
    """
    from ..nets.mlp import MLP
    from ..optim import AdamW, Linear
    from ..rl.dqn import DQN, Duelling
    from ..rl.env import CartPole, Simulated
    from ..rl.replay import Priorities, Replay
    from ..train import Trainer

    relu = "relu"
    if duelling:
        heads = (MLP(width, outputs, width, 1, activation=relu) for outputs in (1, 2))
        net: MLP | Duelling = Duelling(MLP(4, width, width, 1, activation=relu), *heads)
    else:
        net = MLP(4, 2, width, 2, activation=relu)
    model = DQN(net, 2, double=double, copy_every=copy_every, tau=tau, explore=explore, epsilon=epsilon)
    source = Replay(
        Simulated(CartPole(), envs),
        capacity=capacity,
        batch=batch,
        warmup=warmup,
        every=every,
        n=n,
        gamma=gamma,
        priorities=Priorities(anneal=steps) if prioritised else None,
    )
    often = max(1, steps // 5)
    optim = AdamW(lr, schedule=Linear(flat=0.2))
    return Experiment(
        model, Data(source), Trainer(steps, optim=optim, clip=10.0, save_every=often, log_every=often // 20 or 1)
    )
