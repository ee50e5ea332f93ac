r"""Small tasks of our own, each with a known best answer.

    Catch            a ball falls through 10×10 pixels and must be caught: +1, else −1. The best is +1, always
    PointMass        x'' = u in the plane: a linear system with bounds on its force
    PointMaze        a point is steered through a maze to its goal, and is paid 1 there alone
    LinearQuadratic  x ← A x + B u + σ z, reward −(xᵀQx + uᵀRu): Riccati's equation has the answer (rl/control.py)

Catch: Mnih et al. 2014, arXiv:1406.6247, in the form of Osband et al. 2020, arXiv:1908.03568, on ten columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...core import Noise
from ...errors import UserError
from .env import Box, Choice, Picture, Task, Transition

_PAPER, _INK, _RED, _BLUE = (250, 250, 248), (40, 40, 48), (214, 39, 40), (31, 119, 180)
Matrix = tuple[tuple[float, ...], ...]


class Catch(Task):
    """Move a paddle in the lowest row left (0), not (1) or right (2), until the ball is there, 9 steps on.

    Seen: pixels (1, size, size) of 0 and 1. State: row and column of the ball, column of the paddle (B, 3) int64.
    """

    def __init__(self, size: int = 10) -> None:
        if size < 2:
            raise UserError(f"A game of {size} rows is over before it began: take size=2 or more.")
        self.size, self.observation, self.action = size, Box((1, size, size), 0.0, 1.0), Choice(3)

    def begin(self, noise: Noise) -> Tensor:
        """The ball anywhere in the uppermost row, the paddle in the middle."""
        column = noise.integers(self.size)
        return torch.stack((torch.zeros_like(column), column, torch.full_like(column, self.size // 2)), 1)

    def advance(self, state: Tensor, action: Tensor, noise: Noise) -> Transition:
        """The ball falls a row; in the lowest it is over."""
        row, ball, paddle = state.unbind(1)
        row, paddle = row + 1, (paddle + action - 1).clamp(0, self.size - 1)
        over = row == self.size - 1
        reward = over * (2.0 * (ball == paddle) - 1.0)
        return Transition(torch.stack((row, ball, paddle), 1), reward.to(torch.get_default_dtype()), over)

    def observe(self, state: Tensor) -> Tensor:
        """Pixels (B, 1, size, size): ball and paddle."""
        row, ball, paddle = state.unbind(1)
        lines = torch.arange(self.size, device=state.device)
        shape = lines[:, None] + 0 * lines  # (size, size), its row in each
        columns = lines.expand(self.size, -1)
        is_ball = (shape == row[:, None, None]) & (columns == ball[:, None, None])
        is_paddle = (shape == self.size - 1) & (columns == paddle[:, None, None])
        return (is_ball | is_paddle)[:, None].to(torch.get_default_dtype())

    def rated(self) -> Mapping[str, float]:
        """The ball is always caught."""
        return {"best": 1.0}

    def draw(self, state: Tensor) -> Picture:
        """The pixels, enlarged."""
        pixels = (self.observe(state[None])[0, 0] * 255).byte()
        small = Image.frombytes("L", (self.size, self.size), bytes(pixels.flatten().tolist()))
        return small.convert("RGB").resize((200, 200), Image.Resampling.NEAREST)


class PointMass(Task):
    """Bring a mass in the plane to rest at the origin by a force within 1 each way. State: x, y, ẋ, ẏ (B, 4).

    Steps of 0.1 s, the speed first; the reward is −(|x|² + 0.1 |ẋ|² + 0.01 |u|²) before the step.
    """

    def __init__(self, limit: int | None = 100) -> None:
        self.limit, self.observation, self.action = limit, Box((4,)), Box((2,), -1.0, 1.0)

    def begin(self, noise: Noise) -> Tensor:
        """At rest, anywhere within 1."""
        place = 2 * noise.uniform(2) - 1
        return torch.cat((place, torch.zeros_like(place)), 1)

    def advance(self, state: Tensor, action: Tensor, noise: Noise) -> Transition:
        """A step of 0.1 s. It is never over."""
        place, speed, u = state[:, :2], state[:, 2:], action.clamp(-1, 1)
        cost = place.square().sum(1) + 0.1 * speed.square().sum(1) + 0.01 * u.square().sum(1)
        speed = speed + 0.1 * u
        return Transition(torch.cat((place + 0.1 * speed, speed), 1), -cost, torch.zeros_like(cost, dtype=torch.bool))

    def observe(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def draw(self, state: Tensor) -> Picture:
        """The mass, its speed and the origin."""
        x, y, v, w = state.tolist()
        sheet = Image.new("RGB", (200, 200), _PAPER)
        pen = ImageDraw.Draw(sheet)
        at = (100 + 70 * x, 100 - 70 * y)
        pen.line((90, 100, 110, 100), _RED, 2)
        pen.line((100, 90, 100, 110), _RED, 2)
        pen.line((*at, at[0] + 40 * v, at[1] - 40 * w), _INK, 2)
        pen.ellipse((at[0] - 7, at[1] - 7, at[0] + 7, at[1] + 7), fill=_BLUE)
        return sheet


class PointMaze(Task):
    """Steer a point through a maze to its goal: 1 there, and it is over, 0 elsewhere. State: x, y (B, 2).

    maze: rows of "#" walls, "G" the goal, "S" where an episode may begin (without one: anywhere free). The cell in
    column c and row r holds c ≤ x < c + 1, r ≤ y < r + 1. An action within 1 each way moves 0.25 of it; a wall stops
    the way that it stands in. Seen: the point and the goal's middle (B, 4).
    Raises UserError where the maze is open, uneven, or has not one goal.
    """

    def __init__(
        self,
        maze: Sequence[str] = ("#######", "#S    #", "# ### #", "#   #G#", "#######"),
        limit: int | None = 200,
    ) -> None:
        self.maze = tuple(maze)
        edge = "".join((*self.maze[:1], *self.maze[-1:], *(r[:1] + r[-1:] for r in self.maze)))
        if len({len(r) for r in self.maze}) != 1 or set(edge) != {"#"} or "".join(self.maze).count("G") != 1:
            raise UserError("A maze is rows of one length with walls (#) all around and one goal (G): this one is not.")
        cells = [(c, r) for r, row in enumerate(self.maze) for c, mark in enumerate(row) if mark == "S"]
        free = [(c, r) for r, row in enumerate(self.maze) for c, mark in enumerate(row) if mark == " "]
        if not cells and not free:
            raise UserError("In this maze there is nowhere to begin: leave a cell free, or mark one with S.")
        self.starts = torch.tensor(cells or free)
        self.walls = torch.tensor([[mark == "#" for mark in row] for row in self.maze])  # (rows, columns)
        goal = next((c, r) for r, row in enumerate(self.maze) for c, mark in enumerate(row) if mark == "G")
        self.goal, self.limit = goal, limit
        self.observation, self.action = Box((4,)), Box((2,), -1.0, 1.0)

    def begin(self, noise: Noise) -> Tensor:
        """Anywhere in a cell to begin with."""
        cell = self.starts.to(noise.key.device)[noise.integers(len(self.starts))]
        return cell + noise.uniform(2)

    def advance(self, state: Tensor, action: Tensor, noise: Noise) -> Transition:
        """A move along x and then along y, each not made where it would end in a wall."""
        move, walls = 0.25 * action.clamp(-1, 1), self.walls.to(state.device)
        x, y = state.unbind(1)
        to = x + move[:, 0]
        x = torch.where(walls[y.long(), to.long()], x, to)
        to = y + move[:, 1]
        y = torch.where(walls[to.long(), x.long()], y, to)
        over = (x.long() == self.goal[0]) & (y.long() == self.goal[1])
        return Transition(torch.stack((x, y), 1), over.to(state.dtype), over)

    def observe(self, state: Tensor) -> Tensor:
        """The point and the goal's middle (B, 4)."""
        goal = torch.tensor(self.goal, device=state.device) + 0.5
        return torch.cat((state, goal.to(state).expand(*state.shape[:-1], 2)), -1)

    def rated(self) -> Mapping[str, float]:
        """The goal is always reached."""
        return {"best": 1.0}

    def draw(self, state: Tensor) -> Picture:
        """Walls, goal and point."""
        cell = 32
        sheet = Image.new("RGB", (cell * len(self.maze[0]), cell * len(self.maze)), _PAPER)
        pen = ImageDraw.Draw(sheet)
        for r, row in enumerate(self.maze):
            for c, mark in enumerate(row):
                if mark in "#G":
                    ink = _INK if mark == "#" else _RED
                    pen.rectangle((c * cell, r * cell, (c + 1) * cell - 1, (r + 1) * cell - 1), fill=ink)
        x, y = (cell * v for v in state.tolist())
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=_BLUE)
        return sheet


class LinearQuadratic(Task):
    """x ← A x + B u + sigma z from a normal x, rewarded −(xᵀQx + uᵀRu) before the step. State: x (B, n), seen whole.

    A (n, n), B (n, m), Q (n, n), R (m, m) as tuples of rows. bound: of each number of u. By default the double
    integrator in steps of 0.1. Raises UserError where the shapes do not fit.
    """

    def __init__(
        self,
        a: Matrix = ((1.0, 0.1), (0.0, 1.0)),
        b: Matrix = ((0.0,), (0.1,)),
        q: Matrix = ((1.0, 0.0), (0.0, 1.0)),
        r: Matrix = ((0.1,),),
        *,
        sigma: float = 0.0,
        bound: float = float("inf"),
        limit: int | None = 200,
    ) -> None:
        self.a, self.b, self.q, self.r = (torch.tensor(m, dtype=torch.float64) for m in (a, b, q, r))
        n, m = self.b.shape
        if self.a.shape != (n, n) or self.q.shape != (n, n) or self.r.shape != (m, m):
            raise UserError(
                f"A linear system of {n} numbers steered by {m} has A and Q of {n} × {n} and R of {m} × {m}, and these"
                f" are {tuple(self.a.shape)}, {tuple(self.q.shape)} and {tuple(self.r.shape)}."
            )
        self.sigma, self.limit = sigma, limit
        self.observation, self.action = Box((n,)), Box((m,), -bound, bound)

    def begin(self, noise: Noise) -> Tensor:
        """Standard normal."""
        return noise.normal(len(self.a))

    def advance(self, state: Tensor, action: Tensor, noise: Noise) -> Transition:
        """One step of the system. It is never over."""
        assert isinstance(self.action, Box)
        a, b, q, r = (t.to(state) for t in (self.a, self.b, self.q, self.r))
        u = action.clamp(self.action.low, self.action.high)
        cost = ((state @ q) * state).sum(1) + ((u @ r) * u).sum(1)
        there = state @ a.T + u @ b.T
        if self.sigma:
            there = there + self.sigma * noise.normal(state.shape[1], dtype=state.dtype)
        return Transition(there, -cost, torch.zeros_like(cost, dtype=torch.bool))

    def observe(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def rated(self) -> Mapping[str, float]:
        """−E xᵀP x of the first states and of the noise, by Riccati's recursion; nothing where u is bounded."""
        assert isinstance(self.action, Box)
        if self.limit is None or self.action.high != float("inf"):
            return {}
        a, b, p, cost = self.a, self.b, torch.zeros_like(self.a), 0.0
        for _ in range(self.limit):
            cost += self.sigma**2 * float(p.trace())  # of the noise that comes before the steps left
            gain = torch.linalg.solve(self.r + b.T @ p @ b, b.T @ p @ a)
            p = self.q + a.T @ p @ (a - b @ gain)
        return {"best": -cost - float(p.trace())}

    def draw(self, state: Tensor) -> Picture:
        """Its numbers as bars about zero."""
        sheet = Image.new("RGB", (200, 200), _PAPER)
        pen, wide = ImageDraw.Draw(sheet), 200 / len(state)
        for i, v in enumerate(state.clamp(-3, 3).tolist()):
            ends = sorted((100.0, 100 - 30 * v))
            pen.rectangle((i * wide + 8, ends[0], (i + 1) * wide - 8, ends[1]), fill=_BLUE)
        pen.line((0, 100, 200, 100), _INK, 1)
        return sheet
