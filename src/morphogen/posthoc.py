"""Averages of any length after training, from snapshots of a few.

Source: Karras et al. 2024, Analyzing and improving the training dynamics of diffusion models, arXiv:2312.02696.
A power-function average after step t weighs the weights of the time τ in (0, t] by the profile
    p(τ) = (γ+1) τ^γ / t^(γ+1);   σ_rel² = (γ+1) / ((γ+2)² (γ+3)),
the variance of τ/t. Weights change once a step, w(τ) = w_i on (i-1, i], so this integral is the running average itself,
not an approximation. γ of σ_rel: the largest root of γ³ + 7γ² + (16 - σ⁻²) γ + 12 - σ⁻² = 0. Snapshots have profiles
p_i with (t_i, γ_i), and Σ c_i p_i with Σ c_i = 1 is the nearest to p in L², where, with m = min(t_a, t_b),
    ⟨p_a, p_b⟩ = (γ_a+1)(γ_b+1) / (γ_a+γ_b+1) · (m/t_a)^γ_a (m/t_b)^γ_b / max(t_a, t_b).

Departures: Σ c_i = 1 is held exactly (paper: not), so that weights that did not move stay where they are; snapshots lie
at even distances in log t (paper: in t), as p has no scale of its own, so that their number does not grow and every
checkpoint is served alike; the profile's distance from the wished one is computed, and too great a one refused.

`run/snapshots/STEP.safetensors` holds the averages after a step as `LENGTH/PARAMETER` and a hash of them. It is written
to another name, synced and renamed before the next step, so it is whole and is older than any checkpoint after it. A
resumed run writes the same bytes again. Which steps are stored, and which still are at a later step, are functions of
the steps alone, so a run that was killed ends with the same files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import Damaged, digest, save_tensors
from .disk import make, settle
from .errors import UserError

Reals = NDArray[np.float64]
LONGEST = 0.2886  # σ_rel: γ = 0, the plain mean, is at 1/√12
REACH = 64  # snapshots from before 1/REACH of the present step are removed: they hold less than 1/REACH of any profile
MOST = 0.05  # of the wished profile's norm: how far the one put together may be from it
CUT = 1e-12  # eigenvalues below this share of the largest are rounding


def gamma_of(length: float) -> float:
    """γ of the length σ_rel in (0, LONGEST]: 0.05 -> 16.97, 0.1 -> 6.94."""
    s = length**-2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def length_of(gamma: float) -> float:
    """σ_rel of γ >= 0."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def overlap(t_a: Reals | float, gamma_a: Reals | float, t_b: Reals | float, gamma_b: Reals | float) -> Reals:
    """⟨p_a, p_b⟩, broadcast."""
    least = np.minimum(t_a, t_b)
    shape = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return np.asarray(shape * (least / t_a) ** gamma_a * (least / t_b) ** gamma_b / np.maximum(t_a, t_b))


def combination(t: Reals, gamma: Reals, to: float, wished: float) -> tuple[Reals, float]:
    """Coefficients c (n,), Σ c = 1, with which profiles (t, gamma), each (n,), come nearest to that of time `to` and
    exponent `wished`; and the distance that is left, relative to the wished profile's norm.
    """
    norm = np.sqrt(overlap(t, gamma, t, gamma))
    gram = overlap(t[:, None], gamma[:, None], t, gamma) / np.outer(norm, norm)
    aim = overlap(t, gamma, to, wished) / norm
    values, vectors = np.linalg.eigh(gram)
    kept = values > CUT * values[-1]
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    c, shift = inverse @ aim, inverse @ (1 / norm)
    c = c + shift * (1 - c @ (1 / norm)) / (shift @ (1 / norm))  # Lagrange: the sum is 1
    whole = float(overlap(to, wished, to, wished))
    left = max(float((c @ gram @ c - 2 * c @ aim + whole) / whole), 0.0)
    return c / norm, math.sqrt(left)


def due(step: int, doubling: int) -> bool:
    """Whether a snapshot is stored after `step` (from 1): `doubling` of them, evenly, while the step doubles."""
    power = 1 << (step.bit_length() - 1)
    return step * doubling // power != (step - 1) * doubling // power


class Snapshots:
    """The stored averages of a run folder."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "snapshots"

    def steps(self) -> list[int]:
        """The steps that are stored, oldest first."""
        return sorted(int(p.stem) for p in self.folder.glob("*.safetensors") if p.stem.isdecimal())

    def write(self, step: int, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store averages by name, and remove what is out of reach."""
        make(self.folder)
        path = self._path(step)
        partial = path.with_suffix(".partial")
        tensors = {f"{name}/{n}": t.contiguous() for name, mean in averages.items() for n, t in mean.items()}
        save_tensors(tensors, partial, {"sha256": digest(tensors)})
        settle(partial, path)
        for old in self.steps():
            if old * REACH < step:
                self._path(old).unlink()

    def read(self, step: int) -> dict[str, dict[str, Tensor]]:
        """The averages by name. Raises `Damaged` unless they are what was written."""
        try:
            with safe_open(self._path(step), "pt") as file:
                said = (file.metadata() or {}).get("sha256")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no mapping)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch, which maps the file, has its own
            raise Damaged(f"it cannot be read ({error})") from error
        if digest(tensors) != said:
            raise Damaged("it does not match its hash")
        found: dict[str, dict[str, Tensor]] = {}
        for key, t in tensors.items():
            name, _, parameter = key.partition("/")
            found.setdefault(name, {})[parameter] = t
        return found

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.safetensors"


def put_together(
    length: float, present: Mapping[str, Mapping[str, Tensor]], run: Path, step: int, say: Callable[[str], None]
) -> dict[str, Tensor]:
    """The average of `length` after `step`, summed in double precision, in the types of `present`.

    present: the averages of the checkpoint of that step by name, which are snapshots too. say: told about damaged
    snapshots that were left out. Raises UserError where the snapshots cannot give this length.
    """
    store = Snapshots(run)
    if step == 0:
        return dict(next(iter(present.values())))
    steps = [s for s in store.steps() if s < step]
    while True:
        try:
            return _summed(length, present, store, steps, step)
        except _Unreadable as snapshot:
            say(f"Left out the snapshot of step {snapshot.step}: {snapshot.__cause__}.")
            steps.remove(snapshot.step)


class _Unreadable(Exception):
    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def _summed(
    length: float, present: Mapping[str, Mapping[str, Tensor]], store: Snapshots, steps: list[int], step: int
) -> dict[str, Tensor]:
    at = [*steps, step]
    names = list(present)
    t = np.repeat(np.array(at, np.float64), len(names))
    gamma = np.tile([gamma_of(float(name)) for name in names], len(at))
    c, left = combination(t, gamma, step, gamma_of(length))
    if left > MOST:
        raise UserError(
            f"The average of length {length:g} after step {step} cannot be put together from {len(steps)} snapshots of"
            f" {', '.join(names)}: its profile would be {left:.0%} off. Take a length nearer to these; for another one"
            f" train with more snapshots, or with PowerEMA(lengths=(…, {length:g}))."
        )
    share = dict(zip([(s, name) for s in at for name in names], c.tolist(), strict=True))
    total: dict[str, Tensor] = {}
    for s in at:
        try:
            averages = present if s == step else store.read(s)
        except Damaged as damage:
            raise _Unreadable(s) from damage
        for name in names:
            for n, a in averages[name].items():
                wide = a.to(torch.promote_types(a.dtype, torch.float64)) * share[s, name]
                total[n] = total[n] + wide if n in total else wide
    return {n: t.to(next(iter(present.values()))[n].dtype) for n, t in total.items()}
