"""Checks of samples: what they look like, whose noise they depend on, and what sampling leaves behind."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Model, Noise, Samples, can, keys
from ..experiment import draw
from .case import (
    SEED,
    Case,
    NotApplicable,
    changed,
    check,
    distance,
    fail,
    non_finite,
    repeated,
    reseed,
    same,
    snapshot,
    some,
)
from .training import finite_loss

OTHER = SEED + 1  # another seed for the default generator, or for the noise


def _sampler(case: Case) -> Model:
    """A copy in evaluation mode, its weights perturbed: a start from zeros would give constant samples."""
    model = case.perturbed().eval()
    if not can(model, Samples):
        raise NotApplicable("the model has no sample()" + (" (lacks says so)" if Samples in model.lacks else ""))
    return model


@check(finite_loss)
def sample_form(case: Case) -> None:
    """`sample(n, cond, noise=...)` gives n finite samples of the data's shape and dtype, for n = 1, 2, 3, 5."""
    model = _sampler(case)
    x = case.batch.get("x")
    for n in (1, 2, 3, 5):
        reseed(model)
        samples = case.sample(model, n, case.noise(n), case.cond(n))
        if non_finite({"samples": samples}):
            fail(f"sample({n}) is not all finite.")
        if x is None:
            continue
        if samples.dtype != x.dtype:
            fail(f"sample({n}) is {samples.dtype}, but the data is {x.dtype}: return what the data is made of.")
        # sequences of tokens may end where they like
        free = not x.is_floating_point() and x.ndim == 2
        if samples.ndim != x.ndim or (not free and samples.shape[1:] != x.shape[1:]):
            fail(f"sample({n}) has the shape {tuple(samples.shape)}, but a batch of data {tuple(x.shape)}.")


@check(sample_form)
def samples_follow_their_noise(case: Case) -> None:
    """Samples are a function of the noise given, the conditions and the weights, and other noise gives others."""
    n, model = 16, _sampler(case)
    cond = case.cond(n)
    x = []
    for seed in (SEED, OTHER):
        reseed(model, seed)
        x.append(case.sample(model, n, case.noise(n), cond))
    if not same(*x):
        fail("sample(noise=...) draws from torch's global generator too: draw everything from the noise given.")
    if same(x[0], case.sample(model, n, case.noise(n, OTHER), cond)):
        fail("sample(noise=...) gives the same for any noise: draw from the noise given, a core.Noise of n keys.")


@check(samples_follow_their_noise)
def samples_have_noise_of_their_own(case: Case) -> None:
    """Sample i depends on the noise's key i: other keys give other samples, and samples move with their keys."""
    n, model = 16, _sampler(case)
    cond = repeated(case.cond(1), n)
    key = keys(torch.arange(n, device=case.device), SEED)
    reseed(model)
    x = case.sample(model, n, Noise(key), cond)
    if all(same(row, x[0]) for row in x):
        fail(f"{n} samples of one condition are all the same: draw noise of shape (n, ...), a row for each key.")
    reseed(model)
    rolled = case.sample(model, n, Noise(key.roll(1)), cond)
    if distance(rolled.roll(-1, 0), x) > 1e-4:
        fail("with the keys in another order the samples are others: sample i must depend on the noise's row i alone.")


def _drawn(case: Case, n: int, chunk: int, dtype: torch.dtype | None = None) -> Tensor:
    sampler = _sampler(case) if dtype is None else copy.deepcopy(_sampler(case)).to(dtype)
    return draw(sampler, n, case.cond(n), seed=SEED, chunk=chunk, options=case.options)


@check(samples_have_noise_of_their_own)
def draws_begin_alike(case: Case) -> None:
    """`draw` of n and of n + 1 samples at one chunk size begin with the same bits."""
    few, more = _drawn(case, 5, 4), _drawn(case, 6, 4)
    if len(few) != 5 or len(more) != 6:
        fail(f"draw gave {len(few)} and {len(more)} samples where 5 and 6 were asked for.")
    if not same(few, more[:5]):
        fail(
            "the first 5 of 6 drawn samples are not the 5 drawn alone: a sample must not depend on another's condition."
        )


@check(draws_begin_alike)
def chunk_sizes_agree(case: Case) -> None:
    """`draw` in chunks of 1, 4 and 6 gives samples that differ by at most 1e-5.

    Where they differ by more, they are drawn in double precision: a difference that is rounding (kernels add in another
    order for one row than for six) goes away there, and one that is mixing stays.
    """
    for chunk in (1, 4):
        apart = distance(_drawn(case, 6, chunk), _drawn(case, 6, 6))
        if apart > 1e-5:
            apart = distance(_drawn(case, 6, chunk, torch.double), _drawn(case, 6, 6, torch.double))
        if apart > 1e-5:
            fail(
                f"samples drawn in chunks of {chunk} and of 6 differ by {apart:.2g}: something mixes the samples of a"
                " batch (a mean over dim 0, batch statistics); compute each from its own row."
            )


@check(sample_form)
def sampling_leaves_no_trace(case: Case) -> None:
    """Neither `sample` nor `draw` changes parameters, buffers or modes."""
    for mode in (False, True):
        model = _sampler(case).train(mode)
        _traceless(model, functools.partial(case.sample, model, 3, case.noise(3), case.cond(3)), "sample", mode)
        _traceless(model, functools.partial(draw, model, 3, case.cond(3), chunk=2, options=case.options), "draw", mode)


def _traceless(model: Model, act: functools.partial[Tensor], name: str, training: bool) -> None:
    before, modes = snapshot(model), _modes(model)
    try:
        act()
    except Exception:
        if training and name == "sample":
            return  # what a model in training mode refuses to do is no fault of it; draw() never asks for that
        raise
    strays = [n or type(model).__name__ for n, m in _modes(model).items() if modes[n] != m]
    if strays:
        fail(f"{name} leaves {some(strays)} in another mode: leave train() and eval() to the caller.")
    if training and name == "sample":
        return  # batch statistics may move in training mode
    touched = changed(before, snapshot(model))
    if touched:
        fail(f"{name} in evaluation mode changes {some(touched)}: sampling only reads.")


def _modes(model: Model) -> Mapping[str, bool]:
    return {n: m.training for n, m in model.named_modules()}
