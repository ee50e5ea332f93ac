"""The agents of the papers, with perceptrons that suit their environments: an actor and a critic apart, of tanh units.

    reinforce   L_π = −E A log π, A = G − V(s), G to the end           Williams 1992; Sutton & Barto 2018, section 13.4
    a2c         L_π = −E A log π, A by a few steps, 0.01 of entropy    Mnih et al. 2016, arXiv:1602.01783
    ppo         the clipped surrogate, for several epochs              Schulman et al. 2017, arXiv:1707.06347

What a paper says, what is only in its first code (openai/baselines; Huang et al. 2022, "The 37 implementation details
of proximal policy optimization"), and where it is to be had here; that truncated episodes bootstrap is neither's (Pardo
et al. 2018, arXiv:1712.00378):

    detail                                   paper          code              here
    ε, and its falling to 0                  0.2; Atari     0.2               ppo(clip=0.2, until=STEPS)
    λ of the advantages                      0.95           0.95              GAE(gamma, lam)
    weight of the value's error              1              0.5, of ½ E       value=0.5
    weight of the entropy                    0; Atari 0.01  0; 0.01           entropy=
    the value clipped too                    no             0.2               value_clip=0.2 (None)
    advantages standardised by minibatch     no             yes               Rollouts(finish=standard)
    what is seen standardised, within ±10    no             continuous ones   observations=True
    rewards over the deviation of returns    no             continuous ones   returns=True
    orthogonal weights, gains √2, 0.01, 1    no             yes               always
    log σ a parameter of its own             yes            yes               DiagonalNormal
    gradients clipped to a norm of 0.5       no             yes               Trainer(clip=0.5)
    Adam's ε                                 –              1e-5              AdamW(eps=1e-5)
    a learning rate that falls to 0          Atari          yes               AdamW(schedule=Linear(flat=0))
    an end of epochs at a large KL           no             no; Spinning Up   Rollouts(most_kl=0.015)
    truncated episodes bootstrap             no             no                always (Pardo et al. 2018)
"""

from __future__ import annotations

import math

from ..errors import UserError
from ..nets.mlp import MLP
from ..nets.orthogonal import orthogonal
from ..nets.recurrent import LSTM
from .actor_critic import ActorCritic, Clipped, PolicyGradient
from .env.env import Choice, Env
from .moments import Moments
from .policy import Categorical, DiagonalNormal


def ppo(
    env: Env,
    *,
    clip: float = 0.2,
    until: int | None = None,
    value: float = 0.5,
    entropy: float = 0.0,
    value_clip: float | None = None,
    width: int = 64,
    depth: int = 2,
    memory: int = 0,
    observations: bool = False,
    returns: bool = False,
) -> ActorCritic:
    """Proximal policy optimisation of perceptrons of `depth` hidden layers of `width` units.

    clip, until: ε, and the training step at which it has fallen to 0. value, entropy: their weights. value_clip: how
    far the value may move, counted. memory: units of an LSTM before both nets; 0 is none. observations, returns:
    whether what is seen is standardised, and rewards are scaled, by moments learnt on the way.

    Raises UserError where a number is out of its range, or the environments see or do what the nets cannot.
    """
    if memory < 0:
        raise UserError(f"A memory of {memory} units cannot be: give 0 for none, or a number such as 64.")
    shape, law = _spaces(env)
    if memory and len(shape) != 1:
        raise UserError(f"What is seen has the shape {shape}, and an LSTM reads rows: flatten it to (n,), or memory=0.")
    inputs = math.prod(shape)
    return ActorCritic(
        _net(memory or inputs, law.outputs, width, depth, last=0.01),
        _net(memory or inputs, 1, width, depth, last=1.0),
        law,
        Clipped(clip, until=until),
        value=value,
        entropy=entropy,
        value_clip=value_clip,
        core=orthogonal(LSTM(inputs, memory)) if memory else None,
        observations=Moments(*shape) if observations else None,
        returns=Moments() if returns else None,
    )


def a2c(
    env: Env, *, value: float = 0.5, entropy: float = 0.01, width: int = 64, depth: int = 2, observations: bool = False
) -> ActorCritic:
    """Advantage actor-critic. value, entropy: their weights. observations: whether what is seen is standardised."""
    shape, law = _spaces(env)
    actor, critic = (_net(math.prod(shape), n, width, depth, last) for n, last in ((law.outputs, 0.01), (1, 1.0)))
    seen = Moments(*shape) if observations else None
    return ActorCritic(actor, critic, law, PolicyGradient(), value=value, entropy=entropy, observations=seen)


def reinforce(
    env: Env, *, value: float = 0.5, entropy: float = 0.0, width: int = 64, depth: int = 2, observations: bool = False
) -> ActorCritic:
    """REINFORCE with a learnt baseline, the critic: A2C's loss, whose `Rollouts` take estimate=MonteCarlo(gamma)."""
    return a2c(env, value=value, entropy=entropy, width=width, depth=depth, observations=observations)


def _spaces(env: Env) -> tuple[tuple[int, ...], Categorical | DiagonalNormal]:
    """The shape of what is seen, and the law of what is done."""
    seen, done = env.observation, env.action
    if isinstance(seen, Choice):
        raise UserError(
            f"What is seen is one of {seen.n} integers, and these nets read arrays: learn a table (rl/tabular), or give"
            " an ActorCritic nets that embed integers."
        )
    if isinstance(done, Choice):
        return seen.shape, Categorical(done.n)
    if len(done.shape) != 1:
        raise UserError(f"An action here has the shape {done.shape}, and these nets say rows: flatten it to (m,).")
    return seen.shape, DiagonalNormal(*done.shape)


def _net(inputs: int, outputs: int, width: int, depth: int, last: float) -> MLP:
    return orthogonal(MLP(inputs, outputs, width, depth, activation="tanh"), last)
