"""Adaptive Dormand-Prince on 2-D flow matching at equal tolerance (1e-5): microseconds for each evaluation of the net.

Ours is `integrate`, with one step for the whole batch (torchdiffeq's rule) and with a step for each sample, and
`Dopri5` on the model's field. The net is an MLP of 4 layers of 256 with the same weights on both sides, and one that
costs nothing, which shows what a solver costs beside it. Rates are evaluations per second, of calls that each side
counts itself; both are told how many evaluations a walk took. The check compares where the walks end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from harness import Check, Metric, Registry, Work, smoking

WIDTH, DRAWN, TOL = 256, 256, 1e-5
REG = Registry(
    "adaptive",
    rounds=15,
    slice=0.4,
    budget=200,
    rtol=2e-3,
    needs={"torchdiffeq": ("torchdiffeq",)},
    pairs=[
        *(
            (f"morphogen {kind} {net}", f"torchdiffeq {net}", 1.0)
            for net in ("mlp", "free")
            for kind in ("joint", "own")
        ),
        ("morphogen field mlp", "torchdiffeq mlp", 1.0),
    ],
)


def net_of(kind: str) -> Callable[[Any, Any], Any]:
    """dx/dt at (t, x), t a number or (B,): the same numbers whoever asks."""
    import torch

    if kind == "free":
        return lambda t, x: x * -3.0
    g = torch.Generator().manual_seed(1)
    shapes = [(WIDTH, 3), (WIDTH, WIDTH), (WIDTH, WIDTH), (2, WIDTH)]
    layers = [(torch.randn(s, generator=g) * (2 / s[1]) ** 0.5, 0.1 * torch.randn(s[0], generator=g)) for s in shapes]

    def mlp(t: Any, x: Any) -> Any:
        t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))
        h = torch.cat((x, t[:, None]), 1)
        for i, (w, b) in enumerate(layers):
            h = torch.nn.functional.linear(h, w, b)
            h = torch.nn.functional.silu(h) if i < 3 else h
        return h

    return mlp


def start() -> Any:
    import torch

    return torch.randn(32 if smoking() else DRAWN, 2, generator=torch.Generator().manual_seed(2))


def work(walk: Callable[[], tuple[Any, int]], versions: tuple[str, ...]) -> Work:
    """A side of walks, each of which says where it ended and how many evaluations it took."""
    import torch

    @torch.no_grad()
    def timed() -> int:
        return walk()[1]

    def check() -> Check:
        with torch.no_grad():
            return {"end": walk()[0].flatten().tolist()}

    with torch.no_grad():
        taken = walk()[1]
    config = {"batch": DRAWN, "width": WIDTH, "rtol": TOL, "atol": TOL, "evaluations a walk": taken}
    return Work({"evaluate": Metric(timed, "evaluations/s")}, config, versions, check=check)


def morphogen(net: str, kind: str) -> Work:
    from morphogen.diffusion.adaptive import Joint, PerSample, integrate

    f, x, control = net_of(net), start(), Joint() if kind == "joint" else PerSample()

    def walk() -> tuple[Any, int]:
        done = integrate(f, x, 1.0, 0.0, rtol=TOL, atol=TOL, control=control)
        return done.y, done.evaluations

    return work(walk, ("torch", "morphogen"))


def field() -> Work:
    """The whole way: a field on the straight path, in its own frame, by the solver that `sample` uses."""
    from morphogen.diffusion.adaptive import Dopri5
    from morphogen.diffusion.field import Field, affine, spread
    from morphogen.diffusion.path import Linear
    from morphogen.diffusion.solve import solve

    f, x = net_of("mlp"), start()

    class Flow(Field):
        """x̂ = x − t u, ε̂ = x + (1 − t) u of a velocity u."""

        path = Linear()

        def predict(self, x: Any, t: Any, p: Any, q: Any, cond: Any = None) -> Any:
            return affine(spread(p + q, x), x, spread(q * (1 - t) - p * t, x), f(t, x))

    solver = Dopri5(TOL, TOL)

    def walk() -> tuple[Any, int]:
        return solve(Flow(), x, [1.0, 0.0], step=solver), solver.evaluations

    return work(walk, ("torch", "morphogen"))


def torchdiffeq(net: str) -> Work:
    import torch
    from torchdiffeq import odeint

    f, x, times, calls = net_of(net), start(), torch.tensor([1.0, 0.0]), 0

    def counted(t: Any, x: Any) -> Any:
        nonlocal calls
        calls += 1
        return f(t, x)

    def walk() -> tuple[Any, int]:
        nonlocal calls
        calls = 0
        return odeint(counted, x, times, rtol=TOL, atol=TOL, method="dopri5")[-1], calls

    return work(walk, ("torch", "torchdiffeq"))


for name in ("mlp", "free"):
    for kind in ("joint", "own"):
        REG.add(f"morphogen {kind} {name}", functools.partial(morphogen, name, kind), name, smoke=True)
    REG.add(f"torchdiffeq {name}", functools.partial(torchdiffeq, name), name)
REG.add("morphogen field mlp", field, "mlp", smoke=True)
