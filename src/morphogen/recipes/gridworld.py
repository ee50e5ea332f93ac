"""Learning to act in a small world from experience alone: the values and best actions come out as a picture.

With its defaults (Q-learning on the cliff) it takes about 7 s of one core of an AMD EPYC and finds the shortest way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..experiment import Data, Experiment


def gridworld(
    world: Literal["cliff", "lake", "grid4", "grid5", "ski-resort", "taxi"] = "cliff",
    rule: Literal["q-learning", "sarsa", "expected-sarsa", "double-q"] = "q-learning",
    steps: int = 5000,
    learners: int = 16,
    gamma: float = 0.99,
    alpha: float = 0.5,
    decay: float = 0.0,
    epsilon: float = 0.1,
) -> Experiment:
    """Tables Q(s, a) of a small world, learned by ε-greedy control.

    world: the cliff, the lake (slippery) and the taxi of gymnasium (pip install 'morphogen[rl]'), Sutton and Barto's
    grids, or the ski resort. rule: the target that tables move towards. steps: of each environment. learners: tables
    that learn beside one another, each in an environment of its own; the picture is of the first. gamma: the discount.
    alpha: the step size. decay: that of an entry's n-th move is divided by n^decay. epsilon: how often any action is
    tried.
    """
    from ..hooks import Portrait
    from ..rl.env.env import Simulated
    from ..rl.rollouts import Online
    from ..rl.tabular import MDP, control, worlds
    from ..train import Trainer

    endless = 200  # steps after which an episode of a world that never ends is cut off
    makers: dict[str, Callable[[], MDP]] = {
        "cliff": worlds.cliff_walking,
        "lake": worlds.frozen_lake,
        "grid4": worlds.grid4,
        "grid5": lambda: worlds.grid5(limit=endless),
        "ski-resort": lambda: worlds.ski_resort(limit=endless),
        "taxi": worlds.taxi,
    }
    made = makers[world]()
    rules = {"q-learning": control.q_learning, "sarsa": control.sarsa, "expected-sarsa": control.expected_sarsa}
    model: control.Control | control.DoubleQ
    if rule == "double-q":
        model = control.DoubleQ(made, gamma=gamma, alpha=alpha, decay=decay, epsilon=epsilon, learners=learners)
    else:
        model = control.Control(
            made, rules[rule], gamma=gamma, alpha=alpha, decay=decay, epsilon=epsilon, learners=learners
        )
    often = max(1, steps // 5)
    trainer = Trainer(steps, hooks=(Portrait(often),), save_every=often, log_every=max(1, steps // 50))
    return Experiment(model, Data(Online(Simulated(made, learners))), trainer)
