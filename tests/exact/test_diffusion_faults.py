"""The checks of solvers notice what goes wrong in solvers: four planted faults, each in more than one form."""

from __future__ import annotations

import pytest
import torch

from morphogen.diffusion import grid as G
from morphogen.diffusion import solve as S
from morphogen.diffusion.dpm import DPMMultistep, UniPC
from morphogen.diffusion.multistep import LMS, ends
from tests.exact import solver_checks as check

GRIDS = {"leading": G.Leading(), "trailing": G.Trailing(), "linspace": G.Linspace()}


def fails(f, *args, **kwargs):
    with pytest.raises(AssertionError):
        f(*args, **kwargs)


# ---- off-by-one grids ----------------------------------------------------------------------------------------------


class Shifted(G.Grid):
    """Index i taken for the time i / T, or for (i + 2) / T."""

    def __init__(self, grid, by):
        self.grid, self.by = grid, by

    def __call__(self, path, n):
        times = self.grid(path, n)
        return torch.cat((times[:-1] + self.by / path.steps, times[-1:])).clamp(0.0, 1.0)


class Dropped(G.Grid):
    """Begins with the second time of the grid."""

    def __init__(self, grid):
        self.grid = grid

    def __call__(self, path, n):
        times = self.grid(path, n)
        return torch.cat((times[1:], times[-1:]))


class Late(S.DDIM):
    """Asks the field one index too late."""

    def __call__(self, field, x, t, s, cond=None, noise=None):
        return field.predict(x, min(t + 1 / field.path.steps, 1.0), field.path.alpha(s), field.path.sigma(s))


class WrongSign(S.DDIM):
    """ε̂ with its sign turned."""

    def __call__(self, field, x, t, s, cond=None, noise=None):
        return field.predict(x, t, field.path.alpha(s), -field.path.sigma(s))


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("n", [13, 20, 50])
def test_off_by_one_grid(spacing, n):
    grid = GRIDS[spacing]
    check.check_ddim(S.DDIM(), grid, spacing, n)
    for fault in (Shifted(grid, -1), Shifted(grid, 1), Dropped(grid)):
        fails(check.check_ddim, S.DDIM(), fault, spacing, n)
    for step in (Late(), WrongSign()):
        fails(check.check_ddim, step, grid, spacing, n)


# ---- T // N instead of the next time of the grid ---------------------------------------------------------------------


class FixedStride(S.DDIM):
    """Goes to t − T//N, not to the next time of the grid."""

    def __init__(self, n):
        super().__init__(0.0)
        self.n = n

    def __call__(self, field, x, t, s, cond=None, noise=None):
        return super().__call__(field, x, t, max(t - (field.path.steps // self.n) / field.path.steps, 0.0))


@pytest.mark.parametrize(
    ("spacing", "n"), [("trailing", 13), ("trailing", 30), *(("linspace", n) for n in (13, 20, 50))]
)
def test_fixed_stride(spacing, n):
    check.check_ddim(S.DDIM(), GRIDS[spacing], spacing, n)
    fails(check.check_ddim, FixedStride(n), GRIDS[spacing], spacing, n)
    if n == 13:
        check.check_published_ddim(S.DDIM(), GRIDS[spacing])
        fails(check.check_published_ddim, FixedStride(n), GRIDS[spacing])


def test_fixed_stride_is_right_where_it_is_the_grid():
    check.check_ddim(FixedStride(13), G.Leading(), "leading", 13)
    check.check_ddim(FixedStride(20), G.Trailing(), "trailing", 20)


# ---- a wrong first step of a multistep solver -----------------------------------------------------------------------


class Stale(S.Step):
    """Keeps one walk's memory for the next."""

    def __init__(self, step):
        self.walk = step.begin()

    def __call__(self, field, x, t, s, cond=None, noise=None):
        return self.walk(field, x, t, s, cond or {}, noise)


class FromZero(S.Step):
    """Begins as if the steps before the first one had been answered 0."""

    def __init__(self, step):
        self.step, self.walk = step, step.begin()

    def begin(self):
        return FromZero(self.step)

    def __call__(self, field, x, t, s, cond=None, noise=None):
        if not self.walk.past.places:
            here, there = ends(field.path, t, s)
            place, h = (
                (here.ratio, there.ratio - here.ratio)
                if isinstance(self.step, LMS)
                else (here.lam, there.lam - here.lam)
            )
            for before in (2, 1):
                self.walk.past.add(place - before * h, torch.zeros_like(x))
        return self.walk(field, x, t, s, cond or {}, noise)


class Forgetful(S.Step):
    """Never has more to read than the present answer."""

    def __init__(self, step):
        self.step = step

    def __call__(self, field, x, t, s, cond=None, noise=None):
        return self.step.begin()(field, x, t, s, cond or {}, noise)


TWO_M = (1.302e-2, 3.507e-3, 8.90e-4)


@pytest.mark.parametrize("fault", [Stale, Forgetful])  # (the answer before the first is 0 in this problem)
def test_wrong_first_multistep(fault):
    check.check_published_errors(DPMMultistep(2), TWO_M, 2)
    fails(check.check_published_errors, fault(DPMMultistep(2)), TWO_M, 2)


@pytest.mark.parametrize("fault", [Stale, FromZero, Forgetful])
@pytest.mark.parametrize(
    ("step", "order"),
    [(DPMMultistep(2), 2), (UniPC(1), 2), (UniPC(2), 3), (LMS(2), 2)],
    ids=["2m", "unipc-1", "unipc", "lms"],
)
def test_wrong_first_multistep_is_of_another_order(step, order, fault):
    check.check_order(step, order, 1, "middle", (64, 128))
    if step.order == 1 and fault is FromZero:
        return  # reads nothing earlier
    fails(check.check_order, fault(step), order, 1, "middle", (64, 128))


# ---- noise on the last step ----------------------------------------------------------------------------------------


class NoisyEnd(S.Step):
    """Noise on the step that arrives at data, as much as DDPM's β or, with `small`, as β̃ one index earlier."""

    def __init__(self, step, small=False):
        self.step, self.small = step, small

    def begin(self):
        return NoisyEnd(self.step.begin(), self.small)

    def __call__(self, field, x, t, s, cond=None, noise=None):
        y = self.step(field, x, t, s, {}, noise)
        if s > 0:
            return y
        start, end = (t + 1 / field.path.steps, t) if self.small else (t, s)
        scale = S.posterior(field.path, start, end)[2 if self.small else 3] ** 0.5
        return y + scale * noise.normal(*x.shape[1:], dtype=x.dtype)


@pytest.mark.parametrize("small", [False, True])
def test_noise_on_the_last_ancestral_step(small):
    check.check_ancestral(S.Ancestral())
    fails(check.check_ancestral, NoisyEnd(S.Ancestral(), small))
    for step in (S.Ancestral(), S.Ancestral(1.0), S.DDIM(1.0), S.DDIM(0.3), DPMMultistep(1, 1.0), DPMMultistep(2, 1.0)):
        check.check_point(step)
        fails(check.check_point, NoisyEnd(step, small))
