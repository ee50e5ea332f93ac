"""Guidance: w = 1 is none, affine in w, one call for both halves, classifier and classifier-free agree."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen import UserError
from morphogen.diffusion import field as F
from morphogen.diffusion import path as P
from morphogen.diffusion.grid import Uniform
from morphogen.diffusion.guide import classified, guided
from morphogen.diffusion.solve import heun, solve

PATHS = [P.Linear(), P.VP(), P.Exploding(), P.LinearBetas()]
VIEWS = [(1.0, 0.0), (0.0, 1.0), (-0.3, 0.8)]


class Counted(F.Mixture):
    """A mixture that counts its calls and remembers how many samples the last one had."""

    calls = rows = 0

    def predict(self, x, t, p, q, cond=F.NONE):
        self.calls, self.rows = self.calls + 1, len(x)
        return super().predict(x, t, p, q, cond)


def field_of(path):
    return Counted(path, [[-1.0, 0.5, 0.0], [2.0, 0.0, 1.0]], [0.4, 0.6], [0.3, 0.7])


def inputs(n=5, dtype=torch.float64):
    x = torch.randn(n, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x, {"label": torch.arange(n) % 2}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_affine_in_w_with_one_meaning_none(path):
    field, (x, cond) = field_of(path), inputs()
    t = torch.full((5,), 0.4, dtype=torch.float64)
    for p, q in VIEWS:
        with_, without = field.predict(x, 0.4, p, q, cond), field.predict(x, 0.4, p, q)
        for w in (0.0, 0.5, 1.0, 2.0, 7.5):
            expected = without + w * (with_ - without)
            for time in (0.4, t):
                torch.testing.assert_close(
                    guided(field, w).predict(x, time, p, q, cond), expected, rtol=1e-9, atol=1e-9
                )
    assert guided(field, 1.0) is field


def test_both_halves_are_one_call_and_weights_may_differ_by_sample():
    field, (x, cond) = field_of(P.VP()), inputs()
    w = torch.tensor([0.0, 1.0, 2.0, 3.0, -1.0], dtype=torch.float64)
    out = guided(field, w).velocity(x, 0.5, cond)
    assert (field.calls, field.rows) == (1, 10)
    for i, v in enumerate(w.tolist()):
        one = guided(field, v).velocity(x[i : i + 1], 0.5, {"label": cond["label"][i : i + 1]})
        torch.testing.assert_close(out[i : i + 1], one)


def test_samples_that_are_null_already_stay_so():
    field, (x, cond) = field_of(P.VP()), inputs()
    null = torch.tensor([True, False, False, True, False])
    out = guided(field, 3.0).eps(x, 0.5, {**cond, "null": null})
    torch.testing.assert_close(out[null], field.eps(x, 0.5)[null])
    torch.testing.assert_close(out[~null], guided(field, 3.0).eps(x, 0.5, cond)[~null])


def test_interval():
    field, (x, cond) = field_of(P.VP()), inputs()
    g = guided(field, 4.0, interval=(0.2, 0.6))
    times = torch.tensor([0.1, 0.2, 0.5, 0.61, 0.9], dtype=torch.float64)
    plain, strong = field.eps(x, times, cond), guided(field, 4.0).eps(x, times, cond)
    inside = torch.tensor([False, True, True, False, False])[:, None]
    torch.testing.assert_close(g.eps(x, times, cond), torch.where(inside, strong, plain))
    field.calls = 0
    torch.testing.assert_close(g.eps(x, 0.7, cond), field.eps(x, 0.7, cond))
    assert field.rows == 5  # outside the interval the unconditional half is not computed


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_exact_classifier_guidance_is_classifier_free_guidance(path, w):
    field, (x, cond) = field_of(path), inputs()

    def log_label(x_t, t, cond):
        return field.log_label(x_t, t, cond["label"])

    for t in (0.05, 0.5, 0.97, torch.linspace(0.1, 0.9, 5, dtype=torch.float64)):
        scaled = x * (1 + F.spread(path.sigma(t), x))
        for p, q in VIEWS:
            one = classified(field, log_label, w).predict(scaled, t, p, q, cond)
            two = guided(field, w).predict(scaled, t, p, q, cond)
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_classifier_guidance_where_nothing_is_left():
    field, (x, cond) = field_of(P.Linear()), inputs()
    out = classified(field, lambda x_t, t, c: field.log_label(x_t, t, c["label"]), 3.0).velocity(x, 1.0, cond)
    torch.testing.assert_close(out, field.velocity(x, 1.0))


def test_guided_flow_at_one_samples_the_class():
    field = F.Mixture(P.Linear(), [[-2.0], [1.0]], [0.5, 0.25])
    z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    cond = {"label": torch.ones(3, dtype=torch.int64)}
    x = solve(guided(field, 1.0), z, Uniform()(field.path, 200), step=heun, cond=cond)
    torch.testing.assert_close(x, 1 + 0.25 * z, rtol=0, atol=5e-3)


def test_guidance_without_a_condition_is_refused():
    field, (x, _) = field_of(P.VP()), inputs()
    with pytest.raises(UserError, match="needs a condition"):
        guided(field, 2.0).eps(x, 0.5)


@pytest.mark.parametrize("w", [math.inf, math.nan])
def test_a_weight_that_is_no_number_is_refused(w):
    with pytest.raises(UserError, match="draws nothing"):
        guided(F.gaussian(P.Linear(), 0.0, 1.0), w)
