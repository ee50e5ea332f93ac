r"""A finite Markov decision process as arrays, and the functions of it that know its tables: planning.

Of state s and action a there are K outcomes, each with a probability p, a next state s', a reward r, and whether the
episode is over. With c = 0 where it is over and 1 elsewhere the Bellman equations are

    Q(s, a) = Σ_k p_k (r_k + γ c_k V(s'_k)),    V_π = Σ_a π(a|s) Q,    V* = max_a Q*

    evaluate           solves the linear equation of V_π
    value_iteration    V ← max_a Q, from 0: in the limit V*, after H sweeps what is best in H steps
    policy_iteration   π ← argmax_a Q_π until it stays: a finite number of times
    occupancy          d(s, a) = Σ_t γ^t P(s_t = s, a_t = a): the dual variable of the linear program of V*

Sutton & Barto 2018, chapters 3 and 4; Puterman 1994.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...core import Noise
from ...errors import UserError
from ..env.env import Choice, Picture, Task, Transition


class MDP(Task):
    """A Markov decision process of S states and A actions with K outcomes each; a `Task`, so it can be walked.

    prob, next, reward, terminated: (S, A, K); probabilities sum to one over K. start: (S,) probabilities of where an
    episode begins. limit: steps after which one is cut off. columns: of a world drawn in rows, its width.
    A state (B,) int64 is seen as it is. Raises UserError where shapes or sums are wrong.
    """

    def __init__(
        self,
        prob: Tensor,
        next: Tensor,
        reward: Tensor,
        terminated: Tensor,
        start: Tensor,
        *,
        limit: int | None = None,
        columns: int | None = None,
    ) -> None:
        if prob.ndim != 3 or not prob.shape == next.shape == reward.shape == terminated.shape:
            raise UserError(
                f"The tables of an MDP are {tuple(prob.shape)}, {tuple(next.shape)}, {tuple(reward.shape)} and"
                f" {tuple(terminated.shape)}: give all four as (states, actions, outcomes)."
            )
        self.states, self.actions = prob.shape[:2]
        if not bool(((prob.sum(2) - 1).abs() < 1e-9).all()) or bool((prob < 0).any()):
            s, a = divmod(int((prob.sum(2) - 1).abs().argmax()), self.actions)
            raise UserError(f"The outcomes of action {a} in state {s} sum to {float(prob[s, a].sum()):.6g}, not to 1.")
        if start.shape != (self.states,) or abs(float(start.sum()) - 1) > 1e-9:
            raise UserError(f"An MDP of {self.states} states begins with that many probabilities, which sum to 1.")
        if bool(((next < 0) | (next >= self.states)).any()):
            raise UserError(f"An outcome leads to none of the states 0 to {self.states - 1}.")
        self.prob, self.reward, self.begins = prob.double(), reward.double(), start.double()
        self.next, self.terminated = next.long(), terminated.bool()
        self.observation, self.action, self.limit = Choice(self.states), Choice(self.actions), limit
        self.columns = columns or self.states

    def begin(self, noise: Noise) -> Tensor:
        """States (B,) to begin with."""
        return noise.categorical(self.begins.log().to(noise.key.device).expand(len(noise), -1))

    def advance(self, state: Tensor, action: Tensor, noise: Noise) -> Transition:
        """One of the outcomes of actions (B,) in states (B,)."""
        prob, *rest = (t.to(state.device) for t in (self.prob, self.next, self.reward, self.terminated))
        k = noise.categorical(prob[state, action].log()) if prob.shape[2] > 1 else torch.zeros_like(state)
        next, reward, over = (t[state, action, k] for t in rest)
        return Transition(next, reward.to(torch.get_default_dtype()), over)

    def observe(self, state: Tensor) -> Tensor:
        """The states (B,) themselves."""
        return state

    @cached_property
    def worth(self) -> Tensor:
        """What is best in an episode (S,), by value iteration; without a limit, in 10,000 steps."""
        return value_iteration(self, 1.0, horizon=self.limit or 10_000).value

    def rated(self) -> Mapping[str, float]:
        """The mean return of the best plan; nothing where returns have no bound."""
        settled = self.limit is not None or torch.allclose(
            backup(self, self.worth, 1.0).amax(1), self.worth, rtol=1e-12
        )
        return {"best": float(self.begins @ self.worth)} if settled else {}

    def draw(self, state: Tensor) -> Picture:
        """The world with its one state () marked, coloured by what is best from each."""
        return picture(self, self.worth, at=int(state))


# ---- planning ------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """value V (S,) and q (S, A), float64; policy (S,): the first of the best actions; sweeps: how many it took."""

    value: Tensor
    q: Tensor
    policy: Tensor
    sweeps: int


def backup(mdp: MDP, value: Tensor, gamma: float) -> Tensor:
    """Q (S, A) of a step and then `value` (S,)."""
    after = torch.where(mdp.terminated, 0.0, value[mdp.next])  # (S, A, K)
    return (mdp.prob * (mdp.reward + gamma * after)).sum(2)


def one_hot(policy: Tensor, actions: int) -> Tensor:
    """Probabilities (S, A) of a policy that names one action for each state (S,)."""
    return torch.nn.functional.one_hot(policy, actions).double()


def live(mdp: MDP, policy: Tensor) -> Tensor:
    """(S, S) probabilities of going from s to s' under a policy (S, A), the episode not being over."""
    flow = policy[:, :, None] * mdp.prob * ~mdp.terminated  # (S, A, K)
    out = torch.zeros(mdp.states, mdp.states, dtype=torch.float64)
    return out.scatter_add_(1, mdp.next.flatten(1), flow.flatten(1))


def evaluate(mdp: MDP, policy: Tensor, gamma: float) -> Tensor:
    """V_π (S,), exactly, of a policy (S, A) of probabilities.

    Raises UserError for gamma = 1 and a policy that can go on for ever, whose value is no number; for gamma outside
    [0, 1], and rows that are no probabilities.
    """
    _discount(gamma)
    _probabilities(mdp, policy)
    on, reward = live(mdp, policy), (policy * (mdp.prob * mdp.reward).sum(2)).sum(1)
    if gamma >= 1:
        _ends(on)
    value: Tensor = torch.linalg.solve(torch.eye(mdp.states, dtype=torch.float64) - gamma * on, reward)
    return value


def value_iteration(mdp: MDP, gamma: float, *, tol: float = 1e-12, horizon: int | None = None) -> Plan:
    """Sweeps of V ← max_a Q from V = 0, until none changes V by more than tol, or exactly `horizon` of them.

    Raises UserError where a million sweeps did not suffice (gamma = 1 and rewards without an end), and for gamma
    outside [0, 1].
    """
    _discount(gamma)
    value, most = torch.zeros(mdp.states, dtype=torch.float64), 1_000_000
    sweeps, apart = 0, float("inf")
    while sweeps < horizon if horizon is not None else apart > tol:
        if horizon is None and sweeps == most:
            raise UserError(f"Value iteration has not settled in {most:,} sweeps: take gamma < 1, or a horizon.")
        before, value, sweeps = value, backup(mdp, value, gamma).amax(1), sweeps + 1
        apart = float((value - before).abs().max())
    q = backup(mdp, value, gamma)
    return Plan(value, q, q.argmax(1), sweeps)


def policy_iteration(mdp: MDP, gamma: float, start: Tensor | None = None) -> Plan:
    """Evaluation and improvement in turn, from a policy (S,), until nothing improves.

    start: without it, action 0 everywhere. Raises UserError as `evaluate` does.
    """
    policy = torch.zeros(mdp.states, dtype=torch.int64) if start is None else start
    sweeps = 1
    while True:
        value = evaluate(mdp, one_hot(policy, mdp.actions), gamma)
        q = backup(mdp, value, gamma)
        best, now = q.max(1), q.gather(1, policy[:, None])[:, 0]
        better = best.values > now + 1e-10 * (1 + now.abs())  # or rounding would go round in circles
        if not bool(better.any()):
            return Plan(value, q, policy, sweeps)
        policy, sweeps = torch.where(better, best.indices, policy), sweeps + 1


def occupancy(mdp: MDP, policy: Tensor, gamma: float) -> Tensor:
    """d (S, A): how often, discounted, an episode is in s and does a under a policy (S, A) of probabilities.

    Sums to 1 / (1 − γ) where no episode ends, and the expected return is Σ d r. Raises UserError as `evaluate` does.
    """
    _discount(gamma)
    _probabilities(mdp, policy)
    on = live(mdp, policy)
    if gamma >= 1:
        _ends(on)
    visits: Tensor = torch.linalg.solve(torch.eye(mdp.states, dtype=torch.float64) - gamma * on.T, mdp.begins)
    return visits[:, None] * policy


def _discount(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise UserError(f"Planning with gamma={gamma}: give a discount in [0, 1].")


def _probabilities(mdp: MDP, policy: Tensor) -> None:
    """Raise UserError unless the rows of a policy (S, A) are probabilities."""
    if policy.shape != (mdp.states, mdp.actions):
        raise UserError(f"A policy {tuple(policy.shape)} is not ({mdp.states}, {mdp.actions}): give one row a state.")
    wrong = ((policy.sum(1) - 1).abs() > 1e-5) | (policy < 0).any(1)
    if bool(wrong.any()):
        s = int(wrong.int().argmax())
        raise UserError(
            f"The policy's numbers in state {s} sum to {float(policy[s].sum()):.6g}, the least being"
            f" {float(policy[s].min()):.6g}: give probabilities."
        )


def _ends(on: Tensor) -> None:
    """Raise UserError unless episodes end from every state. on: (S, S), as `live`."""
    out = on.sum(1) < 1 - 1e-12
    for _ in range(len(on)):
        wider = out | (on[:, out] > 0).any(1)
        if bool((wider == out).all()):
            break
        out = wider
    if not bool(out.all()):
        raise UserError(
            f"From state {int((~out).int().argmax())} this policy never ends, and undiscounted it has no value: take"
            " gamma < 1, another policy to begin with, or value iteration."
        )


# ---- pictures ------------------------------------------------------------------------------------------------------


def picture(
    mdp: MDP,
    value: Tensor,
    policy: Tensor | None = None,
    *,
    arrows: Callable[[int], tuple[float, float]] | None = None,
    at: int | None = None,
    cell: int = 56,
) -> Picture:
    """The values (S,) as colours with their numbers, and the policy (S,), state by state in rows of `mdp.columns`.

    arrows: the direction (right, down) of an action, drawn as an arrow; without it, the action's number. at: a state
    to mark.
    """
    columns = mdp.columns
    rows = -(-mdp.states // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    low, high = float(value.min()), float(value.max())
    for s in range(mdp.states):
        x, y = s % columns * cell, s // columns * cell
        share = (float(value[s]) - low) / (high - low) if high > low else 0.0
        ink = (round(235 - 175 * share), round(240 - 80 * share), round(245 - 105 * share))
        pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=ink, outline=(255, 255, 255))
        pen.text((x + 4, y + 2), f"{float(value[s]):.3g}", (40, 40, 48))
        middle = (x + cell / 2, y + cell * 0.6)
        if at == s:
            pen.ellipse((middle[0] - 8, middle[1] - 8, middle[0] + 8, middle[1] + 8), fill=(214, 39, 40))
        if policy is not None and not bool(mdp.terminated[s].all()):
            a = int(policy[s])
            if arrows is None:
                pen.text(middle, str(a), (20, 20, 20), anchor="mm")
            else:
                right, down = arrows(a)
                tip = (middle[0] + right * cell / 4, middle[1] + down * cell / 4)
                pen.line((middle[0] - right * cell / 4, middle[1] - down * cell / 4, *tip), (20, 20, 20), 2)
                pen.ellipse((tip[0] - 3, tip[1] - 3, tip[0] + 3, tip[1] + 3), fill=(20, 20, 20))
    return sheet


def table(rows: Any, start: Any, *, limit: int | None = None, columns: int | None = None) -> MDP:
    """An MDP of gymnasium's kind of table: rows[s][a] a list of (probability, next state, reward, over).

    start: (S,) probabilities of where an episode begins. Outcomes of which there are fewer are filled up with
    probability 0.
    """
    n, actions = len(rows), len(rows[0])
    outcomes = max(len(rows[s][a]) for s in range(n) for a in range(actions))
    shape = (n, actions, outcomes)
    prob, reward = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    next, over = torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)
    for s in range(n):
        for a in range(actions):
            for k, (p, to, r, ends) in enumerate(rows[s][a]):
                prob[s, a, k], next[s, a, k], reward[s, a, k], over[s, a, k] = float(p), int(to), float(r), bool(ends)
    prob /= prob.sum(2, keepdim=True)
    begins = torch.as_tensor(start, dtype=torch.float64)
    return MDP(prob, next, reward, over, begins / begins.sum(), limit=limit, columns=columns)
