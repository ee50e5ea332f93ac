"""The Fokker–Planck equation on a grid: how a process carries a density.

    ∂p/∂t = −Σ_k ∂_k J_k,    J_k = f_k p − ∂_k (D_k p) = B p − D ∂p,    D = g²/2,  B = f − ∂D

Finite volumes with no flow through the walls. Between two cells the flux is that of constant B and D,

    J = D/dx [β(−w) p_i − β(w) p_{i+1}],    w = B dx/D,    β(w) = w/(e^w − 1)

which is second order, keeps a law of no flow exactly (p_{i+1}/p_i = e^w), and turns into the upwind flux, of first
order, as D → 0. So p is the law of a Markov chain that jumps between neighbours, dp/dt = Ap, and a step multiplies by
e^{hA}, with A of the middle of the step: exact in time where the process does not depend on t, else second order. It is
made of powers of a stochastic matrix, with q above the rate at which any cell is left,

    e^{hA} p = Σ_k Poisson(k; qh) (1 + A/q)^k p

and so p stays at least 0 and keeps its mass, whatever the step. The price is qh products: ∝ time × D/dx².

Scharfetter & Gummel 1969 and Chang & Cooper 1970 (the flux); Jensen 1953, "Markoff chains as an aid in the study of
Markoff processes" (the sum, "uniformisation"). Departure from the schemes of both: time is not discretised implicitly,
which would be positive at first order only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from .process import Process, Times


class Mesh:
    """A box cut into equal cells; one entry of low, high and cells for each of its D axes.

    Densities on it are float64 tensors (n_1, …, n_D), one value for each cell, of total `mass` one.
    """

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...], cells: tuple[int, ...]) -> None:
        if not len(low) == len(high) == len(cells) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise UserError(f"A mesh from {low} to {high} in {cells} cells is no box: give low < high on every axis.")
        if min(cells) < 2:
            raise UserError(f"A mesh of {cells} cells has no faces to flow through: use at least 2 on every axis.")
        self.low, self.high, self.cells = low, high, cells
        self.widths = tuple((b - a) / n for a, b, n in zip(low, high, cells, strict=True))
        self.volume = float(torch.tensor(self.widths, dtype=torch.float64).prod())
        self.centres = [
            a + w * (torch.arange(n, dtype=torch.float64) + 0.5)
            for a, w, n in zip(low, self.widths, cells, strict=True)
        ]  # a list of (n_k,)

        self.points = _product(self.centres)  # (N, D), in the order of a flattened density
        self.faces = [  # of each axis k: the middles of the faces between neighbours along it (N_k, D)
            _product([(x[1:] + x[:-1]) / 2 if i == k else x for i, x in enumerate(self.centres)])
            for k in range(len(cells))
        ]

    def mass(self, p: Tensor) -> float:
        """The integral of a density."""
        return float(p.sum()) * self.volume

    def normalised(self, values: Tensor) -> Tensor:
        """Values (n,) at `points`, or of the mesh's shape, as a density of mass one."""
        p = values.double().reshape(self.cells)
        return p / (p.sum() * self.volume)

    def histogram(self, x: Float[Tensor, "b d"]) -> Tensor:
        """The density of particles: their share in each cell by its volume. Those outside the box are left out."""
        low, widths = x.new_tensor(self.low, dtype=torch.float64), x.new_tensor(self.widths, dtype=torch.float64)
        place = ((x.double() - low) / widths).floor().long()  # (B, D)
        size = torch.tensor(self.cells, device=x.device)
        inside = ((place >= 0) & (place < size)).all(1)
        flat = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for k, n in enumerate(self.cells):
            flat = flat * n + place[:, k]
        counts = torch.bincount(flat[inside], minlength=int(size.prod()))
        return (counts.double() / (len(x) * self.volume)).reshape(self.cells).cpu()

    def at(self, *point: float) -> Tensor:
        """All the mass in the cell that holds a point. Raises UserError for a point outside."""
        p = self.histogram(torch.tensor([point], dtype=torch.float64))
        if not bool(p.any()):
            raise UserError(f"The point {point} lies outside the mesh from {self.low} to {self.high}.")
        return p


def _product(axes: list[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)  # (N, D)


def marginals(process: Process, p: Tensor, mesh: Mesh, times: Times) -> Iterator[tuple[float, Tensor]]:
    """`fokker_planck`, density by density: (times[0], p), (times[1], …), …"""
    grid = [float(t) for t in (times.tolist() if isinstance(times, Tensor) else times)]
    if p.shape != mesh.cells or p.dtype != torch.float64 or bool((p < 0).any()):
        raise UserError(
            f"The density is {p.dtype} of shape {tuple(p.shape)}: give one of float64, nowhere negative, of the mesh's"
            f" shape {mesh.cells}, such as mesh.at(…) or mesh.normalised(…)."
        )
    if not grid:
        raise UserError("There are no times to go through: give at least one, such as torch.linspace(0, 1, 1001).")
    yield grid[0], p
    for t, s in pairwise(grid):
        p = _carried(p, _rates(process, mesh, (t + s) / 2, backwards=s < t), abs(s - t))
        yield s, p


def fokker_planck(process: Process, p: Tensor, mesh: Mesh, times: Times) -> Tensor:
    """The density at times[-1] of what has the density p at times[0].

    process: of points (B, D); its diffusion acts on each coordinate alone.
    p:       float64, of the mesh's shape, nowhere negative.
    times:   rising, or falling for `Reverse`; the process is taken as it is in the middle between two of them.
    Raises UserError for another kind of p, and where the process is not finite on the mesh.
    """
    density = p
    for _, density in marginals(process, p, mesh, times):  # noqa: B007
        pass
    return density.contiguous()


Rates = list[tuple[Tensor, Tensor]]  # of each axis k: up and down across its faces (…, n_k − 1, …), per time


def _rates(process: Process, mesh: Mesh, t: float, *, backwards: bool) -> Rates:
    """How fast mass jumps between neighbours along each axis."""
    g = process.diffusion(mesh.points, t)
    rates = []
    for k, dx in enumerate(mesh.widths):
        faces, shape = mesh.faces[k], [n - (i == k) for i, n in enumerate(mesh.cells)]
        B = _along(process.drift(faces, t), k, shape)
        D = _along(process.diffusion(faces, t), k, shape).square() / 2
        if backwards:
            B = -B
        if isinstance(g, Tensor):
            B = B - _along(g, k, mesh.cells).square().div(2).diff(dim=k) / dx
        if not bool((B.isfinite() & D.isfinite()).all()):
            name = type(process).__name__
            raise UserError(f"{name} is not finite on the mesh at t = {t:g}: use a smaller box or other times.")
        D = torch.maximum(D, B.abs() * (dx / 500))  # upwind; e^500 is still a number
        w = torch.where(D > 0, B * dx / D.clamp(min=torch.finfo(D.dtype).tiny), 0.0)
        rates.append((_bernoulli(-w) * D / dx**2, _bernoulli(w) * D / dx**2))
    return rates


def _along(values: Tensor | float, k: int, shape: Sequence[int]) -> Tensor:
    """The k-th coordinate of values (N, D), or a number, in `shape`."""
    if isinstance(values, Tensor):
        return values[:, k].double().reshape(tuple(shape))
    return torch.full(tuple(shape), values, dtype=torch.float64)


def _bernoulli(w: Tensor) -> Tensor:
    """w / (e^w − 1), 1 at w = 0."""
    small = w.abs() < 1e-6
    return torch.where(small, 1 - w / 2, w / torch.where(small, 1.0, w).expm1())


def _carried(p: Tensor, rates: Rates, h: float) -> Tensor:
    """The density e^{hA} p."""
    leaving = torch.zeros_like(p)
    for k, (up, down) in enumerate(rates):
        n = p.shape[k]
        leaving.narrow(k, 0, n - 1).add_(up)
        leaving.narrow(k, 1, n - 1).add_(down)
    q = 1.01 * float(leaving.max())  # above it: rounding, too, leaves no cell less than nothing
    if q * h == 0:
        return p
    pieces = math.ceil(q * h / 400)  # e^{−400} is still a number
    mean = q * h / pieces
    jump = torch.arange(int(mean + 9 * math.sqrt(mean) + 15), dtype=torch.float64)  # what is left out is below rounding
    poisson = (jump * math.log(mean) - mean - (jump + 1).lgamma()).exp()
    weights = (poisson / poisson.sum()).tolist()
    jumps = [(up / q, down / q) for up, down in rates]
    for _ in range(pieces):
        power, total = p.clone(), p * weights[0]
        for weight in weights[1:]:
            _jump(power, jumps)
            total.add_(power, alpha=weight)
        p = total
    return p


def _jump(p: Tensor, jumps: Rates) -> None:
    """One product with 1 + A/q, in place: what leaves a cell enters its neighbour, to the last bit of the flow."""
    flows = []
    for k, (up, down) in enumerate(jumps):
        n = p.shape[k] - 1
        flows.append(torch.addcmul(up * p.narrow(k, 0, n), down, p.narrow(k, 1, n), value=-1))
    for k, flow in enumerate(flows):
        n = p.shape[k] - 1
        p.narrow(k, 0, n).sub_(flow)
        p.narrow(k, 1, n).add_(flow)
