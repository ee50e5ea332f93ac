"""Four throw-away models through the unmodified Trainer: they learn, and an interrupted run ends in the same bytes."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch

from morphogen.hooks import Voice
from morphogen.log import read

from ..system.kills import NAMES, campaign, throwaway, train, weights
from .throwaway import gan, kmeans, lm, ppo


def trained(tmp_path, module, steps):
    torch.manual_seed(0)
    return module.experiment(steps).train(tmp_path / "run", seed=1, voice=Voice())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("until", [1, 7, 20])
def test_resume_equals_no_interruption(tmp_path, name, until):
    train(throwaway(name), tmp_path / "straight")
    torch.manual_seed(0)
    throwaway(name)().train(tmp_path / "broken", seed=3, voice=Voice(), until=until)
    train(throwaway(name), tmp_path / "broken")
    assert weights(tmp_path / "broken") == weights(tmp_path / "straight")


def test_fifty_kills(tmp_path):
    """Ten of them at least inside a save; nothing lost, nothing bad, the same bytes at the end."""
    found = campaign(50, {name: throwaway(name) for name in NAMES}, tmp_path)
    assert found["kills"] >= 50
    assert found["inside_save"] >= 10
    assert found["runs"] >= 2
    assert (found["lost"], found["different"]) == (0, 0)


@pytest.mark.slow
def test_the_gan_reaches_its_ring(tmp_path):
    run = trained(tmp_path, gan, 1500)
    from morphogen import draw

    x = draw(run.model, 2000, seed=0, chunk=500)
    before = draw(gan.GAN(), 2000, seed=0, chunk=500)
    from morphogen.data.densities import eight_gaussians

    density = eight_gaussians()
    assert density.log_prob(x).clamp(min=-50).mean() > density.log_prob(before).clamp(min=-50).mean() + 10


def test_kmeans_finds_the_modes(tmp_path):
    run = trained(tmp_path, kmeans, 60)
    lines = read(run.path / "log.jsonl")
    first = next(line for line in lines if line["step"] == 10)
    assert lines[-1]["assign.loss"] < 0.9 * first["assign.loss"]
    z = torch.arange(8)
    assert torch.equal(run.model.encode(run.model.decode(z)), z)


@pytest.mark.slow
def test_the_language_model_learns_to_count(tmp_path):
    run = trained(tmp_path, lm, 300)
    assert read(run.path / "log.jsonl")[-1]["loss.tokens"] < 0.1  # the next number is certain


@pytest.mark.slow
def test_ppo_learns_and_its_epochs_are_stopped_by_kl(tmp_path):
    run = trained(tmp_path, ppo, 300)
    assert read(run.path / "log.jsonl")[-1]["reward"] > 0.7  # action 1 everywhere pays 7 of 8
    torch.manual_seed(0)
    rollouts = {}
    for most_kl in (0.0, 0.003, 1e9):
        experiment = ppo.experiment(60)
        experiment.data.train.most_kl = most_kl
        experiment.trainer.fit(experiment.model, experiment.data, run=tmp_path / str(most_kl), voice=Voice())
        rollouts[most_kl] = experiment.data.train.rollouts
    assert rollouts[1e9] == 15  # four steps each
    assert rollouts[1e9] < rollouts[0.003] < rollouts[0.0]


@pytest.mark.parametrize(("module", "most"), [(gan, 40), (ppo, 60)])
def test_they_are_as_short_as_promised(module, most):
    """Lines of code: neither blank, nor imports, nor the docstrings."""
    tree = ast.parse(inspect.getsource(module))
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom):
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not docstring:
                last = node.lineno if hasattr(node, "body") else node.end_lineno
                lines |= set(range(node.lineno, last + 1))
    assert 20 < len(lines) <= most
