"""DQN with a convolutional net catches a ball that falls through 10×10 pixels: the best return is 1."""

from __future__ import annotations

from ..experiment import Data, Experiment


def catch_dqn(
    steps: int = 8000,
    envs: int = 16,
    batch: int = 64,
    capacity: int = 50_000,
    warmup: int = 100,
    size: int = 10,
    filters: int = 16,
    width: int = 128,
    lr: float = 1e-3,
    gamma: float = 0.99,
    n: int = 1,
    copy_every: int = 100,
    explore: int = 3000,
    epsilon: float = 0.05,
    duelling: bool = False,
    prioritised: bool = False,
) -> Experiment:
    """A convolutional net learns from pixels alone where its paddle must go.

    steps: training steps, each of one batch after one step of every environment. envs: how many. batch, capacity,
    warmup: samples of a batch, steps remembered, and steps of each environment before the first batch. size: rows and
    columns. filters, width: of the first convolution, and units of the hidden layer. lr: the learning rate, which falls
    to 0. gamma: the discount. n: steps of a return. copy_every: training steps between two copies of the net. explore,
    epsilon: in so many training steps ε falls to this. duelling, prioritised: two streams, and priorities.

    The net is of the form of Mnih et al. 2015, with two convolutions for their three; one frame says all there is to
    know. Not of the paper: double Q-learning, Adam.
    """
    from ..nets.mlp import MLP
    from ..nets.nature import NatureCNN
    from ..optim import AdamW, Linear
    from ..rl.dqn import DQN, Duelling
    from ..rl.env import Catch, Simulated
    from ..rl.replay import Priorities, Replay
    from ..train import Trainer

    layers = ((filters, 3, 1), (2 * filters, 2, 2))
    if duelling:
        body = NatureCNN(1, size, filters=layers)
        heads = (MLP(body.outputs, outputs, width, 1, activation="relu") for outputs in (1, 3))
        net: NatureCNN | Duelling = Duelling(body, *heads)
    else:
        net = NatureCNN(1, size, 3, layers, width)
    model = DQN(net, 3, copy_every=copy_every, explore=explore, epsilon=epsilon)
    source = Replay(
        Simulated(Catch(size), envs),
        capacity=capacity,
        batch=batch,
        warmup=warmup,
        n=n,
        gamma=gamma,
        priorities=Priorities(anneal=steps) if prioritised else None,
    )
    often = max(1, steps // 5)
    trainer = Trainer(
        steps, optim=AdamW(lr, schedule=Linear(flat=0.5)), clip=10.0, save_every=often, log_every=often // 20 or 1
    )
    return Experiment(model, Data(source), trainer)
