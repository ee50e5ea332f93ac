"""Checks of what the capability protocols promise beside samples: likelihoods, bounds, codecs, fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import Act, Acts, Bounds, Codec, Field, Greedy, LogProb, Model, can, each
from .case import SEED, Case, NotApplicable, check, distance, fail, non_finite, repeated, reseed, same
from .training import finite_loss

Rows = Callable[[Tensor, Any], Tensor]  # x (B, ...) and its conditions to one row each


def _serving(case: Case, *protocols: type) -> Model:
    model = case.perturbed().eval()
    lacking = [p.__name__ for p in protocols if not can(model, p)]
    if lacking:
        methods = {
            "LogProb": "log_prob",
            "Bounds": "elbo",
            "Codec": "encode and decode",
            "Field": "denoise",
            "Acts": "act",
        }
        raise NotApplicable(f"the model has no {' and no '.join(methods[name] for name in lacking)}")
    return model


def _density(case: Case, model: Model, method: str, x: Tensor, cond: Any, seed: int = SEED) -> Tensor:
    reseed(model, seed)
    with torch.no_grad():
        value = getattr(model, method)(x, cond)
    if not isinstance(value, Tensor) or value.shape != (x.shape[0],):
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        fail(f"{method} of {x.shape[0]} values has the {what}: return one number for each, ({x.shape[0]},).")
    return value


def _form(case: Case, protocol: type, method: str) -> None:
    model = _serving(case, protocol)
    for n in case.sizes(1, 2, 3, 5):
        value = _density(case, model, method, case.x[:n], _cond(case, n))
        if not value.is_floating_point() or non_finite({method: value}):
            fail(f"{method} of the source's data is not finite floating-point nats on {n} samples.")


def _cond(case: Case, n: int) -> Any:
    """The conditions that belong to the batch's first n samples."""
    cond = case.batch.get("cond")
    return case.cond(n) if cond is None else each(cond, lambda t: t[:n])


@check(finite_loss)
def log_prob_form(case: Case) -> None:
    """`log_prob(x, cond)` is (B,), finite on the data, for 1, 2, 3 and 5 samples."""
    _form(case, LogProb, "log_prob")


@check(finite_loss)
def elbo_form(case: Case) -> None:
    """`elbo(x, cond)` is (B,), finite on the data, for 1, 2, 3 and 5 samples."""
    _form(case, Bounds, "elbo")


@check(finite_loss)
def codec_form(case: Case) -> None:
    """`decode(encode(x))` has the shape and dtype of x, for 1, 2, 3 and 5 samples."""
    model = _serving(case, Codec)
    for n in case.sizes(1, 2, 3, 5):
        x = case.x[:n]
        y = _recoded(model, x)
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            what = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            fail(f"decode(encode(x)) of x {x.dtype} {tuple(x.shape)} is {what}: give back what was encoded.")


def _recoded(model: Any, x: Tensor) -> Tensor:
    reseed(model)
    with torch.no_grad():
        y: Tensor = model.decode(model.encode(x))
    return y


@check(finite_loss)
def field_form(case: Case) -> None:
    """`denoise(x, cond)` with `cond["t"]` (B,) has the shape and dtype of x, finite, for 1, 2, 3 and 5 samples."""
    model = _serving(case, Field)
    for n in case.sizes(1, 2, 3, 5):
        x, y = case.x[:n], _denoised(case, model, case.x[:n], _cond(case, n))
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype or non_finite({"x": y}):
            what = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            fail(f"denoise(x, cond) of x {x.dtype} {tuple(x.shape)} at t = 0.5 is {what}: give finite E[x_0 | x_t].")


def _denoised(case: Case, model: Any, x: Tensor, cond: Any) -> Tensor:
    reseed(model)
    with torch.no_grad():
        y: Tensor = model.denoise(x, dict(cond or {}, t=torch.full((len(x),), 0.5, dtype=x.dtype, device=x.device)))
    return y


@check(finite_loss)
def act_form(case: Case) -> None:
    """`act(obs, noise=...)` gives actions and info (B, ...), a function of the noise given, for 1, 2, 3 and 5."""
    model: Any = _serving(case, Acts)
    obs = (case.cond(5) or case.batch).get("obs")  # the batch's may be of whole stretches
    if not isinstance(obs, Tensor):
        raise NotApplicable("the source's batch has no tensor 'obs'")
    for n in case.sizes(1, 2, 3, 5):
        said = []
        for seed in (SEED, SEED + 1):
            reseed(model, seed)
            with torch.no_grad():
                act = model.act(obs[:n], noise=case.noise(n))
            if not isinstance(act, Act):
                fail(f"act returned a {type(act).__name__}: return Act(action, info, memory).")
            said.append({"action": act.action, **act.info})
        for name, rows in said[0].items():
            if rows.shape[:1] != (n,):
                fail(f"act of {n} observations gives {name!r} of shape {tuple(rows.shape)}: give a row for each.")
            if not same(rows, said[1][name]):
                fail(f"act draws its {name!r} from torch's global generator too: draw everything from the noise given.")
        if can(model, Greedy):
            with torch.no_grad():
                acts = [model.greedy(obs[:n]).action for _ in range(2)]
            if acts[0].shape != said[0]["action"].shape or not same(*acts):
                fail(
                    f"greedy of {n} observations gives {tuple(acts[0].shape)}, or others each time: act without chance."
                )


@check(log_prob_form, elbo_form, codec_form, field_form)
def rows_are_independent(case: Case) -> None:
    """In evaluation mode, what `log_prob`, `elbo`, `decode(encode)` and `denoise` say of x_i depends on x_i alone."""
    model = case.perturbed().eval()
    sayings: dict[str, tuple[type, Rows]] = {
        "log_prob": (LogProb, lambda x, cond: _density(case, model, "log_prob", x, cond)),
        "elbo": (Bounds, lambda x, cond: _density(case, model, "elbo", x, cond)),
        "decode(encode(x))": (Codec, lambda x, _: _recoded(model, x)),
        "denoise": (Field, lambda x, cond: _denoised(case, model, x, cond)),
    }
    served = {name: f for name, (protocol, f) in sayings.items() if can(model, protocol)}
    if not served:
        raise NotApplicable("the model has no log_prob, elbo, encode and decode, or denoise")
    n = min(case.size, 5)
    if n < 2:
        raise NotApplicable("the source's batch has only one sample")
    x, cond = case.x[:n], _cond(case, n)
    if "elbo" in served and not _still(case, model):
        del served["elbo"]  # an estimate by random draws: its rows cannot be compared between batches
    for name, f in served.items():
        whole = f(x, cond)
        for i in range(n):
            own = None if cond is None else each(cond, lambda t, i=i: t[i : i + 1])  # type: ignore[misc]
            apart = distance(f(x[i : i + 1], own), whole[i : i + 1])
            if apart > 1e-4:
                fail(
                    f"{name} of sample {i} alone differs by {apart:.2g} from the same in a batch of {n}: something"
                    " mixes the samples of a batch; compute each from its own row."
                )


def _still(case: Case, model: Model) -> bool:
    """Whether elbo says the same under two seeds of the default generator."""
    x, cond = case.x[:2], _cond(case, min(2, case.size))
    return same(*(_density(case, model, "elbo", x, cond, seed) for seed in (1, 2)))


@check(log_prob_form, rows_are_independent)
def log_prob_integrates_to_one(case: Case) -> None:
    """`log_prob` over everything that there is sums to one, at the first weights and at others."""
    _serving(case, LogProb)
    if case.normalise is None:
        raise NotApplicable("give check_model a small instance and normalise=box(...), or Everything(all values of x)")
    everything = case.normalise
    x = everything.x.to(case.device)
    for which, model in (("first", case.fresh()), ("perturbed", case.perturbed()), ("random", case.perturbed(1.0))):
        model.eval()
        for row in case.sizes(1, 2):
            one = _cond(case, row)
            mass = 0.0
            for piece in x.split(8192):
                cond = repeated(one, len(piece))
                mass += float(_density(case, model, "log_prob", piece, cond).double().exp().sum())
            mass *= everything.cell
            if not abs(mass - 1) <= everything.tolerance:
                fail(
                    f"exp(log_prob) over all of x is {mass:.6g} instead of 1 (tolerance {everything.tolerance:g}), at"
                    f" the {which} weights: look at the log-determinant and the constants, or widen or refine the box."
                )
            if one is None:
                break


@check(log_prob_form, elbo_form, log_prob_integrates_to_one)
def elbo_is_below_log_prob(case: Case) -> None:
    """The mean of `elbo` over its own randomness is at most `log_prob`, up to four standard errors."""
    model = _serving(case, LogProb, Bounds)
    if not model.one_law:
        raise NotApplicable("the model says that its bound is of another law than its density (one_law)")
    x, cond = case.x, _cond(case, case.size)
    logp = _density(case, model, "log_prob", x, cond).double()
    draws = torch.stack([_density(case, model, "elbo", x, cond, seed) for seed in range(64)]).double()  # (64, B)
    excess = draws.mean(0) - logp - 4 * draws.std(0) / 8 - 1e-4 * logp.abs().clamp(min=1)
    worst = int(excess.argmax())
    if excess[worst] > 0:
        fail(
            f"elbo of sample {worst} is {float(draws.mean(0)[worst]):.6g}, above its log_prob {float(logp[worst]):.6g}:"
            " a bound cannot be; look at the sign and scale of the KL and at missing constants."
        )
