r"""Two classics of control, equal to gymnasium's CartPole-v1 and Pendulum-v1 step by step, for thousands at once.

    cart-pole   θ̈ = (g sin θ − cos θ (F + m l θ̇² sin θ)/M) / (l (4/3 − m cos² θ/M)),
                ẍ = (F + m l θ̇² sin θ)/M − m l θ̈ cos θ/M,     Euler's steps of 0.02 s, F = ±10 N
    pendulum    θ̈ = 3g/(2l) sin θ + 3/(m l²) u,     θ̇ first, then θ with it: steps of 0.05 s, |u| ≤ 2, |θ̇| ≤ 8

Barto, Sutton & Anderson 1983, "Neuronlike adaptive elements that can solve difficult learning control problems".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...core import Noise
from .env import Box, Choice, Picture, Task, Transition

_PAPER, _INK, _WOOD, _RED = (250, 250, 248), (40, 40, 48), (196, 148, 90), (214, 39, 40)


def beside(*columns: Tensor) -> Tensor:
    """Columns (B,) as (B, n), each of them one piece of memory: quick to make, and to take apart again."""
    return torch.stack(columns).T


class CartPole(Task):
    """Keep a pole upright by pushing its cart left (0) or right (1): 1 for each step. State: x, ẋ, θ, θ̇ (B, 4).

    velocities: whether they are seen; without them x and θ alone (B, 2), so that a policy must remember.
    """

    def __init__(self, limit: int | None = 500, *, velocities: bool = True) -> None:
        self.limit, self.velocities = limit, velocities
        self.observation, self.action = Box((4 if velocities else 2,)), Choice(2)

    def begin(self, noise: Noise) -> Tensor:
        """All four uniform within 0.05."""
        return noise.uniform(4) * 0.1 - 0.05

    def advance(self, state: Tensor, action: Tensor, noise: Noise) -> Transition:
        """One of Euler's steps. It is over beyond 2.4 m, and beyond 12 degrees."""
        x, v, theta, omega = state.unbind(1)
        force = 20.0 * action.to(state) - 10.0
        gravity, pole, mass, half, tau = 9.8, 0.1, 1.1, 0.5, 0.02
        cos, sin = theta.cos(), theta.sin()
        push = (force + pole * half * omega.square() * sin) / mass
        turn = (gravity * sin - cos * push) / (half * (4.0 / 3.0 - pole * cos.square() / mass))
        slide = push - pole * half * turn * cos / mass
        there = beside(x + tau * v, v + tau * slide, theta + tau * omega, omega + tau * turn)
        over = (there[:, 0].abs() > 2.4) | (there[:, 2].abs() > 12 * 2 * math.pi / 360)
        return Transition(there, torch.ones_like(x), over)

    def observe(self, state: Tensor) -> Tensor:
        """The state itself, or its positions."""
        return state if self.velocities else state[..., ::2]

    def rated(self) -> Mapping[str, float]:
        """A pole that never falls: 1 for each step."""
        return {} if self.limit is None else {"best": float(self.limit)}

    def draw(self, state: Tensor) -> Picture:
        """Cart and pole on their track."""
        x, _, theta, _ = state.tolist()
        sheet = Image.new("RGB", (300, 200), _PAPER)
        pen = ImageDraw.Draw(sheet)
        at, floor = 150 + 60 * x, 150
        pen.line((0, floor + 12, 300, floor + 12), _INK, 1)
        pen.rectangle((at - 18, floor - 10, at + 18, floor + 10), fill=_INK)
        pen.line((at, floor, at + 100 * math.sin(theta), floor - 100 * math.cos(theta)), _WOOD, 7)
        pen.ellipse((at - 4, floor - 4, at + 4, floor + 4), fill=_RED)
        return sheet


class Pendulum(Task):
    """Swing a pendulum up and hold it by a torque of at most 2. State: θ (0 is up), θ̇ (B, 2); seen: cos θ, sin θ, θ̇.

    The reward is −(θ² + 0.1 θ̇² + 0.001 u²), θ in [−π, π).
    """

    def __init__(self, limit: int | None = 200) -> None:
        self.limit, self.observation, self.action = limit, Box((3,)), Box((1,), -2.0, 2.0)

    def begin(self, noise: Noise) -> Tensor:
        """Any angle, and a speed within 1."""
        return (2 * noise.uniform(2) - 1) * torch.tensor([math.pi, 1.0], device=noise.key.device)

    def advance(self, state: Tensor, action: Tensor, noise: Noise) -> Transition:
        """A step of 0.05 s. It is never over."""
        theta, omega = state.unbind(1)
        u = action[:, 0].clamp(-2, 2)
        angle = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        cost = angle.square() + 0.1 * omega.square() + 0.001 * u.square()
        omega = (omega + (15.0 * theta.sin() + 3.0 * u) * 0.05).clamp(-8, 8)
        there = beside(theta + omega * 0.05, omega)
        return Transition(there, -cost, torch.zeros_like(theta, dtype=torch.bool))

    def observe(self, state: Tensor) -> Tensor:
        """cos θ, sin θ, θ̇ (B, 3)."""
        theta, omega = state.unbind(-1)
        return torch.stack((theta.cos(), theta.sin(), omega), -1)

    def draw(self, state: Tensor) -> Picture:
        """The pendulum about its hinge."""
        theta = float(state[0])
        sheet = Image.new("RGB", (200, 200), _PAPER)
        pen = ImageDraw.Draw(sheet)
        tip = (100 - 80 * math.sin(theta), 100 - 80 * math.cos(theta))
        pen.line((100, 100, *tip), _RED, 14)
        pen.ellipse((tip[0] - 7, tip[1] - 7, tip[0] + 7, tip[1] + 7), fill=_RED)
        pen.ellipse((95, 95, 105, 105), fill=_INK)
        return sheet
