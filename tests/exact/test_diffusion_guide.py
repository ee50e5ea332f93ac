"""Guidance: w = 1 is none, affine in w, one call for both halves, classifier and classifier-free agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from morphogen import UserError
from morphogen.diffusion import field as F
from morphogen.diffusion import path as P
from morphogen.diffusion.grid import Uniform
from morphogen.diffusion.guide import autoguided, classified, guided, rescaled, thresholded
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


def test_a_classifier_does_not_pull_what_has_no_condition():
    field, (x, cond) = field_of(P.VP()), inputs()
    null = torch.tensor([True, False, True, False, False])

    def log_label(x_t, t, cond):
        return field.log_label(x_t, t, cond["label"])

    out = classified(field, log_label, 2.0).eps(x, 0.4, {**cond, "null": null})
    torch.testing.assert_close(out[null], field.eps(x, 0.4)[null])
    torch.testing.assert_close(out[~null], classified(field, log_label, 2.0).eps(x, 0.4, cond)[~null])


# ---- away from something else --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_negative_conditions_are_what_is_left_behind(path):
    field, (x, cond) = field_of(path), inputs()
    away = {"label": 1 - cond["label"]}
    for p, q in VIEWS:
        toward, from_ = field.predict(x, 0.4, p, q, cond), field.predict(x, 0.4, p, q, away)
        for w in (0.0, 0.5, 3.0):
            out = guided(field, w).predict(x, 0.4, p, q, {**cond, "negative": away})
            torch.testing.assert_close(out, from_ + w * (toward - from_), rtol=1e-9, atol=1e-9)
    same = guided(field, 5.0).eps(x, 0.4, {**cond, "negative": cond})
    torch.testing.assert_close(same, field.eps(x, 0.4, cond), rtol=1e-9, atol=1e-9)
    assert field.rows == 5  # (the last line's own call)


@pytest.mark.parametrize(
    ("negative", "word"),
    [({"text": torch.zeros(5)}, "'text'"), ({"label": torch.zeros(3, dtype=torch.int64)}, "one a")],
)
def test_negative_conditions_that_do_not_fit_are_refused(negative, word):
    field, (x, cond) = field_of(P.VP()), inputs()
    with pytest.raises(UserError, match=word):
        guided(field, 2.0).eps(x, 0.5, {**cond, "negative": negative})


def test_autoguidance():
    field, (x, cond) = field_of(P.VP()), inputs()
    weak = Counted(P.VP(), [[-1.0, 0.4, 0.1], [1.8, 0.0, 1.0]], [0.7, 0.9], [0.4, 0.6])
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for given in (cond, {}):
        for p, q in VIEWS:
            good, bad = field.predict(x, t, p, q, given), weak.predict(x, t, p, q, given)
            for w in (0.0, 0.5, 2.0):
                out = autoguided(field, weak, w).predict(x, t, p, q, given)
                torch.testing.assert_close(out, bad + w * (good - bad), rtol=1e-9, atol=1e-9)
    assert autoguided(field, weak, 1.0) is field
    weak.calls = 0
    part = autoguided(field, weak, 2.0, interval=(0.2, 0.5))
    torch.testing.assert_close(part.eps(x, 0.7, cond), field.eps(x, 0.7, cond))
    assert weak.calls == 0
    with pytest.raises(UserError, match="same preset"):
        autoguided(field, field_of(P.Linear()), 2.0)


def test_autoguidance_of_gaussians_is_a_gaussian():
    """ε̂ of N(0, s²) is linear in x: ε̂ = σ x / (α²s² + σ²), so w = 2 doubles one factor and takes the other away."""
    path, x = P.VP(), torch.randn(7, 1, dtype=torch.float64)
    good, bad = F.gaussian(path, 0.0, 0.5), F.gaussian(path, 0.0, 0.8)
    alpha, sigma = path.alpha(0.3), path.sigma(0.3)
    factor = 2 * sigma / (alpha**2 * 0.25 + sigma**2) - sigma / (alpha**2 * 0.64 + sigma**2)
    torch.testing.assert_close(autoguided(good, bad, 2.0).eps(x, 0.3), factor * x)


# ---- the guess put right -------------------------------------------------------------------------------------------


def consistent(field, path, x, t, cond):
    """Every view of a corrected field says the same x̂ and ε̂, and x_t = αx̂ + σε̂."""
    guess, eps = field.predict(x, t, 1.0, 0.0, cond), field.predict(x, t, 0.0, 1.0, cond)
    alpha, sigma = F.spread(path.alpha(t), x), F.spread(path.sigma(t), x)
    torch.testing.assert_close(alpha * guess + sigma * eps, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(field.predict(x, t, -0.3, 0.8, cond), -0.3 * guess + 0.8 * eps, rtol=1e-8, atol=1e-8)
    return guess


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_rescaling_by_its_formula(path):
    field, (x, cond) = field_of(path), inputs()
    strong = field.predict(x, 0.4, 1.0, 0.0, cond)
    over = guided(field, 4.0).predict(x, 0.4, 1.0, 0.0, cond)
    back = over * torch.as_tensor(np.std(strong.numpy(), 1) / np.std(over.numpy(), 1))[:, None]
    for phi in (0.3, 1.0):
        guess = consistent(rescaled(guided(field, 4.0), phi), path, x, 0.4, cond)
        torch.testing.assert_close(guess, phi * back + (1 - phi) * over, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(guess.std(1), strong.std(1))  # all of it: the spread without guidance
    times = torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    consistent(rescaled(guided(field, 4.0, interval=(0.3, 0.5)), 0.7), path, x, times, cond)


def test_rescaling_leaves_alone_what_is_not_guided():
    field, (x, cond) = field_of(P.VP()), inputs()
    assert rescaled(field, 0.7) is field
    g = guided(field, 3.0, interval=(0.5, 1.0))
    assert rescaled(g, 0.0) is g
    torch.testing.assert_close(rescaled(g, 0.7).eps(x, 0.2, cond), field.eps(x, 0.2, cond), rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="share of rescaling"):
        rescaled(g, 1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_dynamic_thresholding_by_its_formula(bound, dtype):
    path = P.VP()
    field = F.Mixture(path, [[3.0, -0.2, 0.4, 0.1, -2.0], [0.3, 0.1, 0.0, -0.2, 0.4]], [0.1, 0.1])
    x = torch.stack((field.means[0], field.means[1])).to(dtype) * path.alpha(0.2)
    guess = field.predict(x, 0.2, 1.0, 0.0)
    cut = thresholded(field, 0.8, bound).predict(x, 0.2, 1.0, 0.0)
    for before, after in zip(guess.double().numpy(), cut.double().numpy(), strict=True):
        s = max(bound, np.quantile(abs(before), 0.8))
        torch.testing.assert_close(
            torch.as_tensor(after), torch.as_tensor(before.clip(-s, s) * bound / s), rtol=1e-6, atol=1e-6
        )
    assert cut.abs().max() <= bound * (1 + 1e-6)
    torch.testing.assert_close(cut[1], guess[1], rtol=1e-6, atol=1e-6)  # within the range nothing is changed
    if dtype == torch.float64:
        consistent(thresholded(field, 0.8, bound), path, x, 0.2, {})


def test_thresholding_scales_down_and_clipping_does_not():
    """At the 0.5 quantile 2 of (3, 2, 1): clipped to 2, then halved — a mere clip at 1 would give (1, 1, 1)."""
    field = F.Mixture(P.Linear(), [[3.0, 2.0, 1.0]], [0.0])
    x = torch.zeros(1, 3, dtype=torch.float64)
    torch.testing.assert_close(
        thresholded(field, 0.5).predict(x, 0.5, 1.0, 0.0), torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.float64)
    )
    for quantile, bound in ((1.5, 1.0), (0.9, 0.0), (0.9, math.inf)):
        with pytest.raises(UserError, match=r"0\.995"):
            thresholded(field, quantile, bound)


ENDS = [P.Linear(), P.Cosine(), P.VP(), P.ZeroTerminal(P.ScaledLinearBetas())]


@pytest.mark.parametrize("path", ENDS, ids=lambda p: type(p).__name__)
def test_both_ends_are_finite(path):
    field, (x, cond) = field_of(path), inputs()
    for t in (0.0, 1.0, torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0], dtype=torch.float64)):
        for g in (rescaled(guided(field, 3.0)), thresholded(guided(field, 3.0))):
            for p, q in VIEWS:
                assert g.predict(x, t, p, q, cond).isfinite().all()


def test_all_of_it_at_once():
    field, cond = field_of(P.VP()), inputs()[1]
    weak = field_of(P.VP())

    def log_label(x_t, t, cond):
        return field.log_label(x_t, t, cond["label"])

    g = thresholded(rescaled(guided(autoguided(classified(field, log_label, 0.5), weak, 1.5), 2.0), 0.5), 0.9, 2.0)
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = solve(g, z, Uniform(0.999)(field.path, 30), step=heun, cond=cond)
    assert out.isfinite().all()
    assert out.abs().max() <= 2.1
