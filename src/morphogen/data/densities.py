"""Densities known exactly: samples without error and log p(x) in closed form, to hold generative models against.

Each is a mixture p(x) = Σ_k w_k p_k(x) of components that can be drawn and evaluated; the component is the label.
- Gaussians     p_k = N(m_k, s² I), in any dimension.
- Checkerboard  p_k uniform on a square: p = 1 / area on the dark squares, entropy ln(area).
- Arcs          about a centre, a signed radius r ~ N(R_k, s²) at an angle uniform on an arc of φ_k radians. With ρ, θ
                the polar coordinates of x: p_k = [N(ρ; R_k, s²) 1{θ ∈ arc} + N(-ρ; R_k, s²) 1{θ + π ∈ arc}] / (φ_k ρ),
                where ρ is the Jacobian of polar coordinates; whole circles make rings, two half circles moons.
- Pinwheel      x = R(2πk/K + c|v|) v with v ~ N((m, 0), diag(s_r², s_t²)): a turn by an angle that depends on |v| alone
                keeps areas and |v|, so p_k(x) = N(R(-2πk/K - c|x|) x).

The shapes are those customary since W. Grathwohl et al. 2018, "FFJORD", arXiv:1810.01367. Departure: its moons and
pinwheel have no closed form (noise added to a curve; a turn that depends on one coordinate), these do.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import Batch, Loss, Model, Noise, Place, State, keys
from ..errors import UserError
from ..spec import Remembers
from .items import Stored
from .space import Points

_FRESH, _DRAWN = 0xF5E5, 0xD5A3  # keys of what is drawn for training, and of fixed samples: never the same
_TAU = 2 * math.pi


class Density(Remembers):
    """Base of the densities: a mixture that serves the protocols `Samples` and `LogProb`.

    weights: of the components, summing to one. dims: D. low, high: the square to draw. entropy: nats, or None where
    there is no closed form.
    """

    weights: tuple[float, ...]
    dims: int = 2
    low: float
    high: float
    entropy: float | None = None

    @abstractmethod
    def draw(self, label: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, "b d"]:
        """A sample of each component `label`."""

    @abstractmethod
    def log_probs(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """`log p_k(x)` of every component, nats."""

    def sample(
        self, n: int, cond: Mapping[str, Tensor] | None = None, *, noise: Noise | None = None
    ) -> Float[Tensor, "n d"]:
        """Draw n samples; of components `cond["label"]` (n,) where given and not null. noise: of n keys."""
        return self.labelled(n, cond, noise=noise)[0]

    def labelled(
        self, n: int, cond: Mapping[str, Tensor] | None = None, *, noise: Noise | None = None
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Draw n samples and say their components."""
        if noise is None:
            noise = Noise.fresh(n)
        edges = constants(tuple(accumulate(self.weights))[:-1], torch.float64, noise.key.device)
        label = torch.bucketize(noise.uniform(dtype=torch.float64), edges, right=True)
        if cond is not None and "label" in cond:
            label = torch.where(cond["null"], label, cond["label"]) if "null" in cond else cond["label"]
        return self.draw(label, noise), label

    def log_prob(self, x: Float[Tensor, "b d"], cond: Mapping[str, Tensor] | None = None) -> Float[Tensor, " b"]:
        """`log p(x)`, nats; `log p(x | label)` where `cond["label"]` (b,) is given, not null. -inf off the support."""
        each = self.log_probs(x)
        mixed = (each + constants(self.weights, x.dtype, x.device).log()).logsumexp(-1)
        if cond is None or "label" not in cond:
            return mixed
        chosen = each.gather(-1, cond["label"][:, None])[:, 0]
        return torch.where(cond["null"], mixed, chosen) if "null" in cond else chosen

    def space(self) -> Points:
        """The `Space` of its samples."""
        return Points(self.low, self.high, self.dims, tuple(str(k) for k in range(len(self.weights))))


@lru_cache(maxsize=256)
def constants(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of fixed numbers, made once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def log_normal(x: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """`log N(x; mean, std²)`, elementwise."""
    std = torch.as_tensor(std, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(_TAU)


def normalised(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights that sum to one; equal ones where none are given. Raises UserError."""
    weights = tuple(weights) if weights is not None else (1.0,) * count
    if not count or len(weights) != count or not all(0 < w < math.inf for w in weights):
        raise UserError(f"A density of {count} components has weights {weights}: give one positive number for each.")
    return tuple(w / sum(weights) for w in weights)


# ---- the densities -------------------------------------------------------------------------------------------------


class Gaussians(Density):
    """A mixture of isotropic Gaussians. means: K points of D numbers. std: of each coordinate. weights: equal if None.

    Raises UserError where the means are not K points of one dimension or std is not positive.
    """

    def __init__(self, means: Sequence[Sequence[float]], std: float, weights: Sequence[float] | None = None) -> None:
        self.means = tuple(tuple(float(v) for v in m) for m in means)
        if len({len(m) for m in self.means}) != 1 or not self.means[0]:
            raise UserError(f"Gaussians has means {means}: give at least one point, all of the same dimension.")
        self.weights, self.std, self.dims = (
            normalised(weights, len(self.means)),
            _positive("std", std),
            len(self.means[0]),
        )
        least, most = min(min(m) for m in self.means), max(max(m) for m in self.means)
        reach = max(4 * std, (most - least) / 8)
        self.low, self.high = least - reach, most + reach
        if len(self.means) == 1:
            self.entropy = self.dims * (0.5 + 0.5 * math.log(_TAU) + math.log(std))

    def draw(self, label: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, "b d"]:
        """m_k + s z."""
        z = noise.normal(self.dims)
        return constants(self.means, z.dtype, z.device)[label] + self.std * z

    def log_probs(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """`log N(x; m_k, s² I)`."""
        return log_normal(x[:, None], constants(self.means, x.dtype, x.device), self.std).sum(-1)  # (b, k, d) summed


class Checkerboard(Density):
    """Uniform on every second square of a board of cells x cells squares on [-half, half]².

    Raises UserError where there are fewer than two cells a side or `half` is not positive.
    """

    def __init__(self, cells: int = 4, half: float = 4.0) -> None:
        if cells < 2:
            raise UserError(f"A checkerboard of {cells} squares a side has no pattern: take cells=2 or more.")
        self.side = 2 * _positive("half", half) / cells
        self.corners = tuple(
            (-half + i * self.side, -half + j * self.side)
            for i in range(cells)
            for j in range(cells)
            if (i + j) % 2 == 0
        )
        self.weights = normalised(None, len(self.corners))
        self.low, self.high = -1.1 * half, 1.1 * half
        self.entropy = math.log(len(self.corners) * self.side**2)

    def draw(self, label: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, "b d"]:
        """Uniform on the square."""
        u = noise.uniform(2)
        return constants(self.corners, u.dtype, u.device)[label] + self.side * u

    def log_probs(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """-log(side²) within the square, -inf without."""
        corner = constants(self.corners, x.dtype, x.device)  # (k, 2)
        inside = ((x[:, None] >= corner) & (x[:, None] < corner + self.side)).all(-1)
        return torch.where(inside, -2 * math.log(self.side), -math.inf)


class Arcs(Density):
    """Points along arcs. arcs: of each (centre x, centre y, radius, start, sweep), the angles in radians. std: across.

    Raises UserError where a radius, a sweep or std is not positive, or a sweep is more than a whole turn.
    """

    def __init__(self, arcs: Sequence[Sequence[float]], std: float, weights: Sequence[float] | None = None) -> None:
        self.arcs = tuple(tuple(float(v) for v in arc) for arc in arcs)
        if not all(len(arc) == 5 and arc[2] > 0 and 0 < arc[4] <= _TAU for arc in self.arcs):
            raise UserError("Each arc is (centre x, centre y, radius > 0, start, sweep in (0, 2π]): put them right.")
        self.weights, self.std = normalised(weights, len(self.arcs)), _positive("std", std)
        reach = max(max(abs(x), abs(y)) + r for x, y, r, _, _ in self.arcs) + 4 * std
        self.low, self.high = -reach, reach

    def draw(self, label: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, "b d"]:
        """Centre + r (cos θ, sin θ), r ~ N(R, s²), θ uniform on the arc."""
        z, u = noise.normal(), noise.uniform()
        x0, y0, radius, start, sweep = constants(self.arcs, z.dtype, z.device)[label].unbind(-1)  # each (b,)
        r, angle = radius + self.std * z, start + sweep * u
        return torch.stack((x0 + r * angle.cos(), y0 + r * angle.sin()), -1)

    def log_probs(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """The two ways to reach x, at radius ρ and, from the other side, at -ρ."""
        x0, y0, radius, start, sweep = constants(self.arcs, x.dtype, x.device).unbind(-1)  # each (k,)
        dx, dy = x[:, :1] - x0, x[:, 1:] - y0  # (b, k)
        rho, angle = torch.hypot(dx, dy).clamp_min(torch.finfo(x.dtype).tiny), torch.atan2(dy, dx)
        log_p = torch.full_like(rho, -math.inf)
        for r, theta in ((rho, angle), (-rho, angle + math.pi)):
            on_arc = (theta - start) % _TAU <= sweep
            log_p = torch.logaddexp(log_p, torch.where(on_arc, log_normal(r, radius, self.std), -math.inf))
        return log_p - (sweep * rho).log()


class Pinwheel(Density):
    """`arms` Gaussian arms wound up by `winding` radians a unit of radius.

    radius: distance of the arms' centres from the origin. along, across: standard deviations of an arm.
    """

    def __init__(
        self,
        arms: int = 5,
        radius: float = 2.0,
        along: float = 0.6,
        across: float = 0.2,
        winding: float = 0.5,
    ) -> None:
        if arms < 1:
            raise UserError(f"A pinwheel of {arms} arms is none: take arms=1 or more.")
        self.radius, self.winding = radius, winding
        self.stds = (_positive("along", along), _positive("across", across))
        self.weights = normalised(None, arms)
        self.high = abs(radius) + 4 * max(along, across)
        self.low = -self.high
        if arms == 1:  # a map that keeps areas keeps the entropy
            self.entropy = 1 + math.log(_TAU) + math.log(along * across)

    def draw(self, label: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, "b d"]:
        """R(2πk/K + c|v|) v."""
        z = noise.normal(2)
        v = z * constants(self.stds, z.dtype, z.device) + constants((self.radius, 0.0), z.dtype, z.device)
        return turn(v, label * (_TAU / len(self.weights)) + self.winding * v.norm(dim=-1))

    def log_probs(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """The density of v, the turn taken back."""
        arms = torch.arange(len(self.weights), dtype=x.dtype, device=x.device)
        angle = -arms * (_TAU / len(self.weights)) - self.winding * x.norm(dim=-1, keepdim=True)  # (b, k)
        v = turn(x[:, None], angle)  # (b, k, 2)
        mean, std = (constants(c, x.dtype, x.device) for c in ((self.radius, 0.0), self.stds))
        return log_normal(v, mean, std).sum(-1)


def turn(v: Float[Tensor, "*b 2"], angle: Float[Tensor, "*c"]) -> Float[Tensor, "*d 2"]:
    """Vectors turned anticlockwise by an angle, radians; the batch axes broadcast."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos * v[..., 0] - sin * v[..., 1], sin * v[..., 0] + cos * v[..., 1]), -1)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}: give a positive number.")
    return float(value)


# ---- the customary ones --------------------------------------------------------------------------------------------


def eight_gaussians() -> Gaussians:
    """Eight on a circle of radius 4/√2, std 0.5/√2."""
    r = 4 / math.sqrt(2)
    means = [(r * math.cos(_TAU * k / 8), r * math.sin(_TAU * k / 8)) for k in range(8)]
    return Gaussians(means, 0.5 / math.sqrt(2))


def gaussian_grid() -> Gaussians:
    """Twenty-five at (-4, -2, 0, 2, 4)², std 0.05: the test of lost modes of Lin et al. 2018, arXiv:1712.04086."""
    return Gaussians([(x, y) for x in (-4.0, -2.0, 0.0, 2.0, 4.0) for y in (-4.0, -2.0, 0.0, 2.0, 4.0)], 0.05)


def moons() -> Arcs:
    """Two interleaved half circles."""
    return Arcs([(-1.0, -0.5, 2.0, 0.0, math.pi), (1.0, 0.5, 2.0, math.pi, math.pi)], 0.2)


def rings() -> Arcs:
    """Four whole circles of equal weight."""
    return Arcs([(0.0, 0.0, r, 0.0, _TAU) for r in (0.75, 1.5, 2.25, 3.0)], 0.08)


def bumps() -> Gaussians:
    """Two unequal ones on the line."""
    return Gaussians([(-1.5,), (1.0,)], 0.4, (0.3, 0.7))


# ---- as data -------------------------------------------------------------------------------------------------------


class Fresh(Remembers):
    """Endless new samples of a density; a `Source`. Sample i of the stream is a function of (seed, i) alone.

    batch: samples of a step over all ranks. Each batch is {"x": (b, D), "cond": {"label": (b,)}, "index", "key"}.
    """

    def __init__(self, density: Density, batch: int) -> None:
        if batch < 1:
            raise UserError(f"Fresh has batch={batch}: give 1 or more.")
        self.density, self.batch = density, batch
        self._place, self._position = Place(), 0

    def start(self, place: Place) -> None:
        """Take one's place among the ranks, at the beginning of the stream."""
        if self.batch % place.ranks:
            raise UserError(
                f"A batch of {self.batch} does not divide among {place.ranks} processes:"
                f" take {-(-self.batch // place.ranks) * place.ranks}."
            )
        self._place, self._position = place, 0

    def next(self, actor: Model | None = None, heard: Mapping[str, Loss] | None = None) -> Batch:
        """The next step's batch of this rank."""
        place, length = self._place, self.batch // self._place.ranks
        begin = self._position + place.rank * length
        index = torch.arange(begin, begin + length, device=place.device)
        self._position += self.batch
        x, label = self.density.labelled(length, noise=Noise(keys(index, place.seed, _FRESH)))
        return {"x": x, "cond": {"label": label}, "index": index, "key": keys(index, place.seed, 0)}

    def state(self) -> State:
        """The position in the stream: samples that all ranks have been given."""
        return {"position": self._position}

    def restore(self, state: State) -> None:
        """Continue from a position."""
        self._position = int(state["position"])


class Drawn(Stored):
    """`Items`: a fixed sample of a density, n points that depend on the seed alone. Held-out data for `Fresh`."""

    def __init__(self, density: Density, n: int = 10_000, seed: int = 0) -> None:
        if n < 1:
            raise UserError(f"A sample of {n} points is none: give n of 1 or more.")
        self.density, self.n, self.seed = density, n, seed

    def read(self) -> dict[str, Any]:
        """The points and their components."""
        noise = Noise(keys(torch.arange(self.n), self.seed, _DRAWN))
        x, label = self.density.labelled(self.n, noise=noise)
        return {"x": x, "cond": {"label": label}}
