"""Checks of what is said in training: batches, losses, gradients, denominators."""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Loss, Model, Phase, Source, Update, leaves
from .case import (
    SEED,
    Case,
    NotApplicable,
    changed,
    check,
    differentiate,
    distance,
    fail,
    non_finite,
    parts,
    phases,
    said,
    same,
    snapshot,
    some,
    total,
    trained_by,
    turn_name,
    updates,
    within,
)


@check()
def batch_form(case: Case) -> None:
    """The source gives batches: named tensors that share their first dimension, `key` (B,) int64."""
    if not isinstance(case.source, Source):
        fail(f"{type(case.source).__name__} is no Source: it needs the methods start, next, state and restore.")
    for name, t in leaves(case.fresh_source().next(copy.deepcopy(case.given).train(), {})):
        if not isinstance(t, Tensor):
            fail(f"batch[{name!r}] is a {type(t).__name__}: a batch holds tensors (B, ...), and mappings of them.")
        if t.ndim == 0:
            fail(f"batch[{name!r}] is a tensor of one number without a dimension: give a row per sample, (B, ...).")
        if t.shape[0] != case.size:
            fail(f"batch[{name!r}] has the shape {tuple(t.shape)}, but the batch has {case.size} samples: put B first.")
    for name in ("key", "index"):
        key = case.batch.get(name)
        if key is not None and (key.dtype != torch.int64 or key.ndim != 1):
            fail(f"batch[{name!r}] is {key.dtype} {tuple(key.shape)}: it must be int64 of shape ({case.size},).")


@check(batch_form)
def loss_form(case: Case) -> None:
    """Every turn is a method found by its name and says a `Loss` of the agreed shapes."""
    model = case.fresh()
    turns = list(model.phases())
    names = [turn_name(t) for t in turns]
    if not turns:
        fail("phases() is empty: list at least one Phase or Update.")
    if len({*names}) < len(names):
        fail(f"phases() names {names}: give each turn a method of its own.")
    counts = model.counts(case.batch)
    for turn, name in zip(turns, names, strict=True):
        method = turn.loss if isinstance(turn, Phase) else turn.rule
        if getattr(model, name, None) != method:
            fail(
                f"the turn {name!r} is no method that the model has under this name: list bound methods (self.{name})."
            )
        loss = said(model, case.batch, turn)
        if not isinstance(loss, tuple) or not hasattr(loss, "seen"):
            fail(f"{name} returned a {type(loss).__name__}: return Loss(value, logs, seen).")
        for key, value in parts(loss).items():
            what = f"{name}: {_named(key)}"
            if not isinstance(value, Tensor) or value.numel() != 1:
                fail(f"{what} is {_described(value)}: give a mean over the batch, a tensor of one number.")
            if counts and key not in counts:
                fail(f"{what} has no denominator: counts(batch) names {sorted(counts)}, not {key!r}; use one name.")
        for key, value in loss.logs.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                fail(f"{name}: logs[{key!r}] is {_described(value)}: log tensors of one number.")
        for key, value in loss.seen.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != case.size:
                fail(f"{name}: seen[{key!r}] is {_described(value)}: give one row per sample, ({case.size}, ...).")
            if value.requires_grad:
                fail(f"{name}: seen[{key!r}] carries gradients and would keep the graph alive: detach it.")


def _named(key: str) -> str:
    return f"the value {key!r}" if key else "the value"


def _described(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@check(loss_form)
def finite_loss(case: Case) -> None:
    """Losses, logs and gradients are finite at the start."""
    for turn in case.fresh().phases():
        model = case.fresh()
        loss, name = said(model, case.batch, turn), turn_name(turn)
        for key, value in parts(loss).items():
            if not bool(value.isfinite().all()):
                fail(f"{name}: {_named(key)} is {float(value.detach())} on the first batch: find where it arises.")
        bad = non_finite(loss.logs) or non_finite(loss.seen)
        if bad:
            fail(f"{name}: logs or seen {bad!r} is not finite on the first batch.")
        if isinstance(turn, Phase):
            differentiate(model, loss)
            for n, p in trained_by(model, turn).items():
                if p.grad is not None and not bool(p.grad.isfinite().all()):
                    fail(
                        f"{name}: the loss is finite, but its gradient for {n!r} is not: look for sqrt(0), 0/0, log(0)."
                    )


@check(finite_loss)
def loss_repeats(case: Case) -> None:
    """The loss is a function of (weights, batch, step): said twice, it is the same, and the batch is left alone."""
    for turn in case.fresh().phases():
        model, name, batch = case.fresh(), turn_name(turn), case.batch
        first = total(said(model, batch, turn)).detach()
        spoiled = [n for (n, a), (_, b) in zip(leaves(case.batch), leaves(batch), strict=True) if not same(a, b)]
        if spoiled:
            fail(f"{name} changes the batch in place ({some(spoiled)}): write to a copy.")
        if isinstance(turn, Update):
            model = case.fresh()  # it has changed the weights
        second = total(said(model, batch, turn)).detach()
        if not same(first, second):
            fail(
                f"{name} says {float(first)} and then {float(second)} of one batch with one seed: something hidden"
                " changed between; keep it in a buffer changed in after_step, or read self.step."
            )


@check(loss_repeats)
def noise_is_keyed(case: Case) -> None:
    """A loss draws its noise from `batch["key"]`, so that neither ranks nor `micro` change it; dropout may not."""
    for turn in case.fresh().phases():
        model = case.fresh()
        if _seed_matters(model, case, turn) and _seed_matters(model.eval(), case, turn):
            key = "key" in case.batch
            fail(
                f"{turn_name(turn)} draws from torch's global generator: draw from Noise(batch['key'])"
                + ("." if key else ", and let the source give 'key' (B,) int64 in its batches.")
            )


def _seed_matters(model: Model, case: Case, turn: Phase | Update) -> bool:
    """Whether a turn says the same of the first batch under two seeds of the default generator."""
    a, b = (total(said(copy.deepcopy(model), case.batch, turn, seed)).detach() for seed in (1, 2))
    return not same(a, b)


def _quiet(case: Case, phase: Phase) -> Model:
    """A perturbed copy without dropout: in training mode where that draws nothing, else in evaluation mode."""
    model = case.perturbed()
    return model.eval() if _seed_matters(model, case, phase) else case.perturbed()


@check(finite_loss)
def gradients_reach_their_parameters(case: Case) -> None:
    """Each parameter that a phase `trains` gets a gradient from its loss, and each unfrozen one has a phase."""
    model = case.fresh()
    if not phases(model):
        raise NotApplicable("all turns are updates by their own rule")
    everything = {n for n, p in model.named_parameters() if p.requires_grad}
    for phase in phases(model):
        for prefix in phase.trains:
            if not any(within(n, prefix) for n in everything):
                known = {".".join(n.split(".")[:k]) for n in everything for k in range(1, n.count(".") + 2)}
                near = difflib.get_close_matches(prefix, known, 1, 0.0)
                fail(
                    f"{turn_name(phase)} trains {prefix!r}, but no unfrozen parameter's name begins so"
                    + (f": did you mean {near[0]!r}?" if near else ": the model has none.")
                )
        _reaches(case, phase)
    owned = {n for p in phases(model) for n in trained_by(model, p)}
    if everything - owned and not updates(model):
        fail(
            f"no phase trains {some(list(everything - owned))}: name it in a phase's `trains`, or freeze it with"
            " requires_grad_(False)."
        )


def _reaches(case: Case, phase: Phase) -> None:
    """Fails unless every parameter of a phase gets a gradient that is not all zero, on some batch."""
    name = turn_name(phase)
    first = case.fresh()
    missing, none = set(trained_by(first, phase)), set(trained_by(first, phase))
    if not total(said(first, case.batch, phase)).requires_grad:
        fail(f"{name} says a value without a gradient: it was detached (.detach(), .item(), no_grad) on its way.")
    for k in range(8):
        batch = case.trained[1][k] if k else case.batch
        for model in (case.fresh(), case.perturbed()):
            differentiate(model, said(model, batch, phase))
            grads = {n: p.grad for n, p in trained_by(model, phase).items()}
            none -= {n for n, g in grads.items() if g is not None}
            missing -= {n for n, g in grads.items() if g is not None and bool((g != 0).any())}
            if not missing:
                return
    kind = "no gradient" if missing <= none else "only zeros as gradient"
    fail(
        f"{name} trains {some(list(missing))}, which got {kind} on 8 batches: it is not used in this loss, is detached"
        " on the way, or belongs to another phase's `trains`."
    )


@check(gradients_reach_their_parameters)
def phases_change_only_their_own(case: Case) -> None:
    """A phase's loss writes to no parameter, and its step changes those that it `trains` and no other."""
    if not phases(case.fresh()):
        raise NotApplicable("all turns are updates by their own rule")
    for phase in phases(case.fresh()):
        model = case.perturbed()
        own = trained_by(model, phase)
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        differentiate(model, said(model, case.batch, phase))
        touched = changed(weights, dict(model.named_parameters()))
        if touched:
            fail(f"{turn_name(phase)} itself writes to {some(touched)}: change weights in after_step, not in the loss.")
        torch.optim.Adam(own.values(), 1e-3).step()
        strays = [n for n in changed(weights, dict(model.named_parameters())) if n not in own]
        if strays:
            fail(f"a step of {turn_name(phase)} changed {some(strays)}, which it does not train: untie them.")


@check(gradients_reach_their_parameters)
def overfits_one_batch(case: Case) -> None:
    """Each phase's loss falls when that phase alone is stepped on one batch; an update does not raise its own."""
    for turn in case.fresh().phases():
        name = turn_name(turn)
        if isinstance(turn, Update):
            model = case.fresh()
            before = snapshot(model)
            values = [float(total(said(model, case.batch, turn))) for _ in range(5)]
            if values[-1] > values[0] + 1e-5 * max(1.0, abs(values[0])):
                fail(f"{name}, five times on one batch, took its loss from {values[0]:.6g} up to {values[-1]:.6g}.")
            if not changed(before, snapshot(model)):
                fail(f"{name} changes neither a parameter nor a buffer: an Update must change weights by its rule.")
            continue
        start = best = float("nan")
        for lr in (1e-2, 1e-3, 1e-4):
            start, best = _fallen(case, turn, lr)
            if best < start - 1e-3 * max(abs(start), 1e-3):
                break
        else:
            fail(
                f"{name} does not fall on one batch: {start:.6g} at first, {best:.6g} at best in 20 Adam steps at lr"
                " 1e-2, 1e-3 and 1e-4; its gradient is not that of its value (sign, detached parts, wrong `trains`)."
            )


def _fallen(case: Case, phase: Phase, lr: float) -> tuple[float, float]:
    model = case.fresh()
    optim = torch.optim.Adam(trained_by(model, phase).values(), lr)
    values = []
    for _ in range(20):
        loss = said(model, case.batch, phase)
        values.append(float(total(loss).detach()))
        differentiate(model, loss)
        optim.step()
    values.append(float(total(said(model, case.batch, phase)).detach()))
    return values[0], min(v for v in values if v == v)


def _finite_at(case: Case, n: int) -> None:
    for turn in case.fresh().phases():
        model = case.fresh()
        loss, name = said(model, case.piece(0, n), turn), turn_name(turn)
        if not bool(total(loss).isfinite()):
            fail(
                f"{name} is {float(total(loss).detach())} on a batch of {n}: look for a spread over samples, squeeze()."
            )
        if isinstance(turn, Phase):
            differentiate(model, loss)
            for key, p in trained_by(model, turn).items():
                if p.grad is not None and not bool(p.grad.isfinite().all()):
                    fail(f"{name}: the gradient for {key!r} is not finite on a batch of {n}.")


@check(finite_loss)
def odd_sizes(case: Case) -> None:
    """The loss and its gradient are finite on batches of 2, 3 and 5."""
    if not case.fresh().counts(case.batch):
        raise NotApplicable("counts(batch) is empty, which says that a batch is never split")
    sizes = [n for n in case.sizes(2, 3, 5) if n < case.size]
    if not sizes:
        raise NotApplicable(f"the source's batch has only {case.size} samples")
    for n in sizes:
        _finite_at(case, n)


@check(finite_loss, odd_sizes)
def batch_of_one(case: Case) -> None:
    """The loss and its gradient are finite on a batch of one sample."""
    if not case.fresh().counts(case.batch):
        raise NotApplicable("counts(batch) is empty, which says that a batch is never split")
    _finite_at(case, 1)


@check(noise_is_keyed, gradients_reach_their_parameters, batch_of_one)
def denominators_add_up(case: Case) -> None:
    """However a batch is split, counts add up, and the count-weighted means and gradients equal the whole's."""
    if not case.fresh().counts(case.batch):
        raise NotApplicable("counts(batch) is empty, which says that a batch is never split")
    if case.size < 2:
        raise NotApplicable("the source's batch has only one sample")
    if not phases(case.fresh()):
        raise NotApplicable("all turns are updates by their own rule")
    n, generator = case.size, torch.Generator().manual_seed(SEED)
    cuts = torch.randint(1, n, (2,), generator=generator).tolist()
    splits = [[0, 1, n], [0, n // 2, n], sorted({0, *cuts, n}), list(range(n + 1))]
    for phase in phases(case.fresh()):
        model, name = _quiet(case, phase), turn_name(phase)
        counts = model.counts(case.batch)
        values, grad = _weighted(case, model, phase, [0, n], counts)
        for edges in splits:
            sizes = [b - a for a, b in itertools.pairwise(edges)]
            pieces = [model.counts(case.piece(a, b)) for a, b in itertools.pairwise(edges)]
            for key, count in counts.items():
                added = sum(p.get(key, 0) for p in pieces)
                if not abs(added - count) <= 1e-6 * abs(count):
                    fail(f"counts[{key!r}] of pieces of {sizes} add up to {added}, but of the whole it is {count}.")
            found, found_grad = _weighted(case, model, phase, edges, counts)
            for key, value in values.items():
                if distance(found[key], value) > 2e-5:
                    fail(
                        f"{name}: split into {sizes} samples, {_named(key)} becomes {float(found[key]):.7g} instead"
                        f" of {float(value):.7g}: divide by what counts() says, let no sample touch another,"
                        " or return {} from counts()."
                    )
            if float((found_grad - grad).norm()) > 1e-4 * float(grad.norm()) + 1e-7:
                fail(f"{name}: split into {sizes} samples, the value stays, but the gradient changes: see counts().")


def _weighted(
    case: Case, model: Model, phase: Phase, edges: list[int], counts: Mapping[str, float]
) -> tuple[dict[str, Tensor], Tensor]:
    """The count-weighted means over pieces, and the gradient of their sum, as the trainer makes them with `micro`."""
    model.zero_grad(set_to_none=True)
    state = snapshot(model)
    sums: dict[str, Tensor] = {}
    for a, b in itertools.pairwise(edges):
        with torch.no_grad():  # a running statistic that a piece changes is not this check's matter
            for name, buffer in model.named_buffers():
                buffer.copy_(state[name])
        piece = case.piece(a, b)
        mine = model.counts(piece)
        loss = said(model, piece, phase)
        scaled = {k: v * (mine[k] / counts[k]) for k, v in parts(loss).items() if counts[k] and mine[k]}
        if scaled:
            total(Loss(scaled)).backward()
        for k, v in scaled.items():
            sums[k] = sums.get(k, torch.zeros_like(v)) + v.detach()
    grads = [p.grad.double().flatten() for p in trained_by(model, phase).values() if p.grad is not None]
    return sums, torch.cat(grads)
