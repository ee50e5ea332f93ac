"""Checks of what outlives a call: global state, specs, weights, sources, interrupted runs."""

from __future__ import annotations

import copy
import functools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..core import Bounds, LogProb, Model, Samples, Source, State, can, leaves
from ..errors import UserError
from ..experiment import Data
from ..hooks import Voice
from ..own import reasons, source_state
from ..spec import build, differences, modules_of, spec
from ..train import Trainer
from .case import SEED, Case, NotApplicable, changed, check, fail, phases, said, same, some, total, turn_name
from .likelihood import elbo_form, log_prob_form
from .sampling import sample_form
from .training import batch_form, finite_loss, gradients_reach_their_parameters, loss_repeats


def _built(case: Case, seed: int) -> Model:
    """The model made anew from its spec, on the case's device."""
    model: Model = build(spec(case.given), modules=modules_of(case.given), seed=seed)
    return model.to(case.device)


@check(finite_loss, sample_form, log_prob_form, elbo_form)
def global_state_is_left_alone(case: Case) -> None:
    """Neither loss nor sample nor log_prob seeds a generator or changes torch's dtype or gradient mode for others."""
    model = case.fresh()
    deeds: dict[str, Callable[[], object]] = {}
    for phase in phases(model):
        deeds[turn_name(phase)] = functools.partial(model, case.batch, turn_name(phase))
    if can(model, Samples):
        deeds["sample"] = lambda: case.sample(model, 2, case.noise(2), case.cond(2))
    for protocol, method in ((LogProb, "log_prob"), (Bounds, "elbo")):
        if can(model, protocol) and "x" in case.batch:
            deeds[method] = functools.partial(getattr(model, method), case.x, case.batch.get("cond"))
    for name, deed in deeds.items():
        dtype, left = torch.get_default_dtype(), []
        for seed in (1, 2):
            torch.manual_seed(seed)
            deed()
            left.append(torch.get_rng_state())
        if same(*left):
            fail(f"{name} seeds torch's global generator, which others draw from: draw from a Noise or own Generator.")
        if torch.get_default_dtype() != dtype or not torch.is_grad_enabled():
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(True)
            fail(f"{name} leaves another default dtype or gradient mode behind: set them in a `with` block.")


@check()
def spec_round_trip(case: Case) -> None:
    """`build(spec(model), seed)` gives the same model every time: class, spec, weights."""
    try:
        graph = spec(case.given)
    except UserError as error:
        fail(str(error))
    if json.loads(json.dumps(graph)) != graph:
        fail("the spec changes on its way through JSON: use plain numbers, strings, tuples and remembered objects.")
    made = []
    for seed in (1, 2):  # of all generators that `build` does not seed
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        made.append(_built(case, SEED))
    first, second = made
    if type(first) is not type(case.given):
        fail(f"the spec builds a {type(first).__name__}, but the model is a {type(case.given).__name__}.")
    differ = differences(graph, spec(first))
    if differ:
        fail(
            f"the model built from the spec has another spec ({differ[0]}): do not change arguments in the constructor."
        )
    strays = changed(first.state_dict(), second.state_dict())
    if strays:
        fail(
            f"built twice with one seed, {some(strays)} differ: the constructor draws from something else than torch's"
            " default generator (numpy, random, a clock)."
        )
    shapes, given = ({n: t.shape for n, t in m.state_dict().items()} for m in (first, case.given))
    if shapes != given:
        odd = [n for n in shapes.keys() | given.keys() if shapes.get(n) != given.get(n)]
        fail(f"the model built from the spec has other tensors ({some(odd)}): it was changed after its construction.")


@check(spec_round_trip, loss_repeats)
def weights_round_trip(case: Case) -> None:
    """After training, `state_dict` and `step` are all there is: a fresh build that loads them says the same loss."""
    trained, batches = case.trained
    model = _built(case, SEED + 1).train()
    try:
        model.load_state_dict({n: t.clone() for n, t in trained.state_dict().items()})
    except RuntimeError as error:
        fail(f"a fresh build cannot load the trained weights ({str(error).splitlines()[-1].strip()}).")
    model.step = trained.step
    trained = copy.deepcopy(trained)
    for phase in phases(model):
        for batch in (case.batch, batches[-1]):
            a, b = (float(total(said(m, batch, phase)).detach()) for m in (trained, model))
            if a != b:
                fail(
                    f"after training, {turn_name(phase)} says {a}, but a fresh build with the same state_dict says {b}:"
                    " something that training changes is not saved; make it a buffer (persistent)."
                )
    unsaved = {n: t for n, t in trained.named_buffers() if n not in trained.state_dict()}
    strays = changed(unsaved, {n: t for n, t in model.named_buffers() if n in unsaved})
    if strays:
        fail(f"training changes {some(strays)}, which state_dict() leaves out: register it with persistent=True.")


def _all_of(source: Source) -> State:
    """The source's state. Raises NotApplicable where it will not be exact after a resume."""
    kept = source_state(source)
    for reason in reasons(kept):
        raise NotApplicable(f"the source says: {reason}")
    state: State = kept["state"]
    return state


@check(batch_form)
def source_resumes(case: Case) -> None:
    """A source restored from its state goes on with the same batches."""
    actor = case.fresh()
    source = case.fresh_source()
    source.next(actor, {})
    state = copy.deepcopy(_all_of(source))
    again = case.fresh_source()
    again.restore(state)
    for step in (2, 3):
        torch.manual_seed(step)
        a = dict(leaves(source.next(actor, {})))
        torch.manual_seed(step)
        b = dict(leaves(again.next(actor, {})))
        strays = [n for n in a.keys() | b.keys() if n not in a or n not in b or not same(a[n], b[n])]
        if strays:
            fail(f"restored from its state after batch 1, the source gives another batch {step} ({some(strays)}).")


@check(finite_loss, gradients_reach_their_parameters, loss_repeats, spec_round_trip, weights_round_trip, source_resumes)
def resume_equals_no_interruption(case: Case) -> None:
    """Six steps of the trainer, and three, a fresh build, and three more, end in the same bytes."""
    _all_of(case.fresh_source())
    trainer = Trainer(6, save_every=6, log_every=6)
    with tempfile.TemporaryDirectory(prefix="check-model-") as folder:

        def fit(model: Model, name: str, until: int) -> Model:
            data = Data(copy.deepcopy(case.source))
            trainer.fit(model, data, run=Path(folder, name), seed=SEED, device=case.device, until=until, voice=Voice())
            return model

        straight = fit(copy.deepcopy(case.given), "straight", 6)
        fit(copy.deepcopy(case.given), "broken", 3)
        resumed = fit(_built(case, SEED + 1), "broken", 6)
    strays = changed(straight.state_dict(), resumed.state_dict())
    if strays:
        fail(
            f"a run interrupted after step 3 ends with other values of {some(strays)} than one that was not: what"
            " after_step or the source remembers must be in buffers and in state()."
        )
