"""The battery passes tiny honest models of many kinds, and each broken one fails exactly the check meant for it."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from morphogen.core import Model, Source
from morphogen.errors import UserError
from morphogen.spec import spec
from morphogen.testing import CHECKS, ContractBroken, Everything, Report, box, check_model

from . import broken, good

PLANE = box(-9, 9, 2)
PAIRS = Everything(torch.tensor([*itertools.product(range(3), repeat=2)]), tolerance=1e-5)  # (9, 2)
LABELS = {"label": torch.tensor([0, 1, 2, 2, 0, 1])}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # the models below draw their first weights from the default generator


def plane(model: Model, source: Source | None = None) -> Report:
    return check_model(model, source or good.Points(), normalise=PLANE)


def pairs(model: Model) -> Report:
    return check_model(model, good.Pairs(), normalise=PAIRS)


def labelled(model: Model) -> Report:
    return check_model(model, good.Points(), cond=LABELS, options={"steps": 3})


def ragged(model: Model) -> Report:
    return check_model(model, good.Ragged())


def denoiser(cls: Callable[[good.Mind], Model]) -> Model:
    return cls(good.Mind())


# ---- honest models -------------------------------------------------------------------------------------------------

NO_SAMPLES = {
    "sample_form",
    "samples_follow_their_noise",
    "samples_have_noise_of_their_own",
    "draws_begin_alike",
    "chunk_sizes_agree",
    "sampling_leaves_no_trace",
}
NO_DENSITY = {"log_prob_form", "log_prob_integrates_to_one", "elbo_is_below_log_prob"}
NEVER_SPLIT = {"odd_sizes", "batch_of_one", "denominators_add_up"}
NO_PHASE = {"gradients_reach_their_parameters", "phases_change_only_their_own", "denominators_add_up"}

# what is checked, and exactly what does not apply
GOOD: dict[str, tuple[Callable[[], Report], set[str]]] = {
    "gaussian": (
        lambda: plane(good.Gaussian()),
        {"elbo_form", "codec_form", "field_form", "act_form", "elbo_is_below_log_prob"},
    ),
    "coupling": (lambda: plane(good.Coupling()), {"elbo_form", "field_form", "act_form", "elbo_is_below_log_prob"}),
    "table": (
        lambda: pairs(good.Table()),
        {"elbo_form", "codec_form", "field_form", "act_form", "elbo_is_below_log_prob"},
    ),
    "pca": (lambda: plane(good.PCA()), {"field_form", "act_form"}),
    "denoiser": (lambda: labelled(denoiser(good.Denoiser)), NO_DENSITY | {"elbo_form", "codec_form", "act_form"}),
    "gan": (
        lambda: plane(good.GAN()),
        NO_DENSITY | {"elbo_form", "codec_form", "field_form", "act_form", "rows_are_independent"},
    ),
    "batch-norm gan": (
        lambda: plane(good.BatchNormGAN()),
        NO_DENSITY | NEVER_SPLIT | {"elbo_form", "codec_form", "field_form", "act_form", "rows_are_independent"},
    ),
    "k-means": (
        lambda: plane(good.KMeans()),
        NO_SAMPLES | NO_DENSITY | NO_PHASE | {"elbo_form", "field_form", "act_form"},
    ),
    "teacher": (
        lambda: plane(good.Teacher()),
        NO_SAMPLES | NO_DENSITY | {"elbo_form", "codec_form", "field_form", "act_form", "rows_are_independent"},
    ),
    "policy": (
        lambda: check_model(good.Policy(), good.Deeds()),
        NO_SAMPLES | NO_DENSITY | {"elbo_form", "codec_form", "field_form", "rows_are_independent"},
    ),
    "bigram": (
        lambda: ragged(good.Bigram()),
        NO_SAMPLES | NO_DENSITY | {"elbo_form", "codec_form", "field_form", "act_form", "rows_are_independent"},
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_honest_model_passes_every_check_that_applies(name: str) -> None:
    run, skipped = GOOD[name]
    report = run()
    report.raise_if_failed()
    assert report.named("skipped") == skipped
    assert all(r.reason for r in report.results if r.outcome == "skipped")


# ---- broken models -------------------------------------------------------------------------------------------------

BROKEN: dict[str, list[Callable[[], Report]]] = {
    "batch_form": [
        lambda: plane(good.Gaussian(), broken.ScalarInBatch()),
        lambda: plane(good.Gaussian(), broken.KeysOfWrongType()),
    ],
    "loss_form": [
        lambda: plane(broken.LossOfEachSample()),
        lambda: ragged(broken.UnnamedDenominator()),
        lambda: plane(broken.SeenWithGraph()),
    ],
    "finite_loss": [lambda: plane(broken.LogOfNegative()), lambda: plane(broken.GradientOfRootOfZero())],
    "loss_repeats": [lambda: plane(broken.CountsItsCalls()), lambda: plane(broken.WritesToItsBatch())],
    "noise_is_keyed": [
        lambda: labelled(denoiser(broken.NoiseWithoutKeys)),
        lambda: plane(broken.UpdateWithoutKeys()),
    ],
    "global_state_is_left_alone": [
        lambda: plane(broken.SeedsEveryone()),
        lambda: plane(broken.ChangesDefaultType()),
    ],
    "gradients_reach_their_parameters": [
        lambda: plane(broken.DetachedLoss()),
        lambda: plane(broken.DetachedPart()),
        lambda: plane(broken.OtherPhasesGradient()),
        lambda: plane(broken.MisspelledPart()),
        lambda: plane(broken.TrainedByNobody()),
    ],
    "phases_change_only_their_own": [lambda: plane(broken.ClipsInItsLoss())],
    "overfits_one_batch": [
        lambda: plane(broken.UphillGradient()),
        lambda: plane(broken.UpdateAway()),
        lambda: plane(broken.UpdateOfNothing()),
    ],
    "odd_sizes": [lambda: plane(broken.PairsUp())],
    "batch_of_one": [lambda: plane(broken.Squeezes()), lambda: plane(broken.SpreadOverBatch())],
    "denominators_add_up": [
        lambda: ragged(broken.CountsPadding()),
        lambda: ragged(broken.CountsLongest()),
        lambda: pairs(broken.SumsItsLoss()),
        lambda: plane(broken.CentresItsBatch()),
        lambda: plane(broken.GradientPerPiece()),
    ],
    "sample_form": [
        lambda: plane(broken.SamplesDouble()),
        lambda: plane(broken.SamplesExtraDimension()),
        lambda: plane(broken.SamplesWithoutNoiseKeyword()),
    ],
    "samples_follow_their_noise": [
        lambda: plane(broken.OwnRandomness()),
        lambda: plane(broken.AlwaysTheSameNoise()),
    ],
    "samples_have_noise_of_their_own": [
        lambda: plane(broken.SharedNoise()),
        lambda: plane(broken.PartlySharedNoise()),
    ],
    "draws_begin_alike": [lambda: labelled(denoiser(broken.SharedCondition))],
    "chunk_sizes_agree": [lambda: plane(broken.StandardisesSamples())],
    "sampling_leaves_no_trace": [
        lambda: plane(broken.CountsItsSamples()),
        lambda: labelled(denoiser(broken.StaysInEvaluation)),
    ],
    "log_prob_form": [lambda: pairs(broken.MeanLogProb())],
    "elbo_form": [lambda: plane(broken.ColumnElbo())],
    "codec_form": [lambda: plane(broken.FlatCode())],
    "field_form": [lambda: labelled(denoiser(broken.NarrowField))],
    "act_form": [
        lambda: check_model(broken.GlobalDice(), good.Deeds()),
        lambda: check_model(broken.InfoOfBatch(), good.Deeds()),
    ],
    "rows_are_independent": [lambda: plane(broken.DensityOfBatch())],
    "log_prob_integrates_to_one": [
        lambda: plane(broken.WrongLogDeterminant()),
        lambda: plane(broken.ForgottenConstant()),
        lambda: pairs(broken.UnnormalisedTable()),
    ],
    "elbo_is_below_log_prob": [lambda: plane(broken.BoundWithoutKL())],
    "spec_round_trip": [
        lambda: plane(broken.GrowsItsArgument([4])),
        lambda: plane(broken.DrawsFromNumpy()),
        lambda: plane(broken.DrawsFromPython()),
        lambda: plane(broken.TakesALambda(lambda x: x)),
    ],
    "weights_round_trip": [lambda: plane(broken.UnsavedAverage()), lambda: plane(broken.UnsavedBuffer())],
    "source_resumes": [lambda: plane(good.Gaussian(), broken.ForgetsItsPlace())],
    "resume_equals_no_interruption": [lambda: plane(broken.HiddenStepCounter())],
}


def test_every_check_has_a_broken_model() -> None:
    assert set(BROKEN) == {c.name for c in CHECKS}


@pytest.mark.parametrize(("name", "which"), [(n, i) for n, runs in BROKEN.items() for i in range(len(runs))])
def test_a_broken_model_fails_the_check_meant_for_it_and_no_other(name: str, which: int) -> None:
    report = BROKEN[name][which]()
    assert report.failed == {name}, str(report)
    (finding,) = (r.reason for r in report.results if r.outcome == "failed")
    assert len(finding) > 40  # what, where, and what to do
    with pytest.raises(ContractBroken, match=name):
        report.raise_if_failed()


# ---- the battery itself --------------------------------------------------------------------------------------------


def test_model_source_and_global_state_are_left_as_they_were() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    model, source = denoiser(good.Denoiser).eval(), good.Points()
    model.step = 7
    before = copy.deepcopy(model.state_dict()), spec(model), dict(vars(source))
    torch.manual_seed(4)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    labelled(model)
    plane(broken.ChangesDefaultType(), source)  # whose faults are undone, too
    plane(broken.SeedsEveryone(), source)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values(), strict=True))
    assert (spec(model), dict(vars(source))) == before[1:]
    assert model.step == 7
    assert not any(m.training for m in model.modules())
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_the_table_names_every_check_its_outcome_and_why() -> None:
    report = plane(broken.StandardisesSamples())
    head, *rows = str(report).splitlines()
    assert head.startswith("StandardisesSamples: ")
    assert "1 failed" in head
    assert [row.split()[0] for row in rows] == [c.name for c in CHECKS]
    assert next(row for row in rows if row.startswith("codec_form")).endswith("the model has no encode and decode")
    assert "chunks of 1" in next(row for row in rows if row.startswith("chunk_sizes_agree"))


def test_a_fault_is_said_once_and_what_hangs_on_it_is_skipped() -> None:
    reasons = {r.name: r.reason for r in plane(broken.OwnRandomness()).results}
    assert reasons["samples_have_noise_of_their_own"] == "first put right samples_follow_their_noise"
    assert reasons["chunk_sizes_agree"] == "first put right samples_follow_their_noise"


def test_an_error_of_the_model_is_a_finding_that_says_where() -> None:
    (finding,) = (r.reason for r in plane(broken.Squeezes()).results if r.outcome == "failed")
    assert "IndexError" in finding
    assert "good.py" in finding
    assert "log_prob" in finding


def test_checks_can_be_left_out_with_a_reason() -> None:
    report = check_model(broken.SumsItsLoss(), good.Pairs(), skip={"denominators_add_up": "a sum, as in the paper"})
    report.raise_if_failed()
    assert {r.reason for r in report.results if r.name == "denominators_add_up"} == {"a sum, as in the paper"}
    with pytest.raises(UserError, match="did you mean 'denominators_add_up'"):
        check_model(good.Table(), good.Pairs(), skip={"denominator_adds_up": "?"})


def test_without_everything_to_sum_over_the_check_says_what_to_give() -> None:
    report = check_model(good.Gaussian(), good.Points())
    (reason,) = (r.reason for r in report.results if r.name == "log_prob_integrates_to_one")
    assert "normalise=box" in reason


@pytest.mark.parametrize(("shape", "n"), [((1,), 7), ((2,), 49), ((1, 3), 343)])
def test_box_is_the_midpoint_rule(shape: tuple[int, ...], n: int) -> None:
    everything = box(-1.0, 2.5, *shape, points=7)
    assert everything.x.shape == (n, *shape)
    assert len(everything.x) * everything.cell == pytest.approx(3.5 ** everything.x[0].numel())
    assert everything.x.mean() == pytest.approx(0.75)
    assert everything.x.min() == pytest.approx(-0.75)


def test_box_refuses_what_no_grid_can_cover() -> None:
    with pytest.raises(UserError, match="1 to 3 numbers"):
        box(-1, 1, 3, 8, 8)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_small_batches_skip_what_they_cannot_say(batch: int) -> None:
    report = check_model(good.Table(), good.Pairs(batch=batch), normalise=PAIRS)
    report.raise_if_failed()
    assert ("denominators_add_up" in report.named("skipped")) == (batch == 1)


def test_double_precision() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        report = check_model(good.PCA(), good.Points(), normalise=box(-9, 9, 2, tolerance=1e-9))
    finally:
        torch.set_default_dtype(torch.float32)
    report.raise_if_failed()
    assert report.named("skipped") == {"field_form", "act_form"}
