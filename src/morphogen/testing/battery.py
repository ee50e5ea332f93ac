"""`check_model`: runs every check on a model and reports what passed, what failed and what does not apply."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core import Model, Source
from ..errors import unknown
from . import likelihood, sampling, saving, training
from .case import Broken, Case, Check, Everything, NotApplicable, undisturbed

CHECKS: tuple[Check, ...] = (  # each after those that it needs
    training.batch_form,
    training.loss_form,
    training.finite_loss,
    training.loss_repeats,
    training.noise_is_keyed,
    training.gradients_reach_their_parameters,
    training.phases_change_only_their_own,
    training.overfits_one_batch,
    training.odd_sizes,
    training.batch_of_one,
    training.denominators_add_up,
    sampling.sample_form,
    sampling.samples_follow_their_noise,
    sampling.samples_have_noise_of_their_own,
    sampling.draws_begin_alike,
    sampling.chunk_sizes_agree,
    sampling.sampling_leaves_no_trace,
    likelihood.log_prob_form,
    likelihood.elbo_form,
    likelihood.codec_form,
    likelihood.field_form,
    likelihood.act_form,
    likelihood.rows_are_independent,
    likelihood.log_prob_integrates_to_one,
    likelihood.elbo_is_below_log_prob,
    saving.global_state_is_left_alone,
    saving.spec_round_trip,
    saving.weights_round_trip,
    saving.source_resumes,
    saving.resume_equals_no_interruption,
)


class ContractBroken(AssertionError):
    """A model fails checks of the battery; says which and why."""


class Result(NamedTuple):
    """What became of one check; `reason` is empty where it passed."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str
    seconds: float


class Report(NamedTuple):
    """What became of every check of one model. Printed, it is a table."""

    model: str
    results: tuple[Result, ...]

    def named(self, outcome: str) -> set[str]:
        """The names of the checks that "passed", "failed" or were "skipped"."""
        return {r.name for r in self.results if r.outcome == outcome}

    @property
    def failed(self) -> set[str]:
        return self.named("failed")

    def raise_if_failed(self) -> None:
        """Raises ContractBroken where a check failed."""
        found = [f"  {r.name}: {r.reason}" for r in self.results if r.outcome == "failed"]
        if found:
            raise ContractBroken(f"{self.model} fails {len(found)} of {len(self.results)} checks:\n" + "\n".join(found))

    def __str__(self) -> str:
        width = max(len(r.name) for r in self.results)
        counts = ", ".join(f"{len(self.named(o))} {o}" for o in ("passed", "failed", "skipped"))
        seconds = sum(r.seconds for r in self.results)
        rows = [f"{r.name:{width}}  {r.outcome:7}  {r.reason}".rstrip() for r in self.results]
        return "\n".join([f"{self.model}: {counts} in {seconds:.1f} s", *rows])


def check_model(
    model: Model,
    source: Source,
    *,
    cond: Mapping[str, Tensor] | None = None,
    normalise: Everything | None = None,
    options: Mapping[str, Any] | None = None,
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Hold a model against every contract of the library. Neither model nor source is changed.

    source: gives the batches; one of at least 6 samples lets every check say something.
    cond: conditions (N, ...) to sample under; otherwise those of the batch. options: further keywords of `sample`
    (fewer steps of a slow sampler). normalise: what `log_prob` must sum to one over, for a small instance
    (`box(-8, 8, 2)`, `Everything(all_values)`). skip: checks to leave out, each with the reason why.

    Use a small instance: each check runs the model a few dozen times. A check that does not apply, or that would
    only repeat an earlier finding, is skipped with the reason. Raises UserError where `skip` names no check.

        report = check_model(MyModel(width=8), source)
        print(report)
        report.raise_if_failed()
    """
    skip = dict(skip or {})
    for name in skip:
        if name not in {c.name for c in CHECKS}:
            raise unknown("check", name, [c.name for c in CHECKS])
    case = Case(model, source, cond=cond, normalise=normalise, options=options or {})
    return Report(type(model).__name__, tuple(_run(case, skip)))


def _run(case: Case, skip: Mapping[str, str]) -> Iterator[Result]:
    failed: set[str] = set()
    blocked: dict[str, str] = {}  # a check that could not run, to the failure behind it
    for check in CHECKS:
        start = time.perf_counter()
        cause = next((blocked.get(n, n) for n in check.needs if n in failed or n in blocked), None)
        outcome: Literal["passed", "failed", "skipped"] = "skipped"
        if check.name in skip:
            reason = skip[check.name]
        elif cause is not None:
            blocked[check.name] = cause
            reason = f"first put right {cause}"
        else:
            outcome, reason = _verdict(case, check)
        if outcome == "failed":
            failed.add(check.name)
        yield Result(check.name, outcome, reason, time.perf_counter() - start)


def _verdict(case: Case, check: Check) -> tuple[Literal["passed", "failed", "skipped"], str]:
    with undisturbed(case.device):
        torch.manual_seed(0)
        try:
            check.run(case)
        except NotApplicable as reason:
            return "skipped", str(reason)
        except Broken as finding:
            return "failed", str(finding)
        except Exception as error:  # the model's own: a finding like any other
            return "failed", f"{type(error).__name__}: {error}{_where(error)}"
    return "passed", ""


def _where(error: Exception) -> str:
    """File, line and function of the innermost frame that is the model's rather than torch's, Python's or ours."""
    foreign = (str(Path(__file__).parent), str(Path(torch.__file__).parent), str(Path(traceback.__file__).parent), "<")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(foreign)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name})" if own else ""
