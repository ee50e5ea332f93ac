"""GANs learn: every mode of a ring of eight, by games of two kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from morphogen.data.densities import eight_gaussians
from morphogen.experiment import draw
from morphogen.hooks import Voice
from morphogen.metrics.modes import mode_coverage
from morphogen.recipes.points_gan import points_gan


@pytest.mark.parametrize("game", ["r3gan", "wgan-gp"])
def test_a_generator_reaches_every_mode(game: str, tmp_path: Path) -> None:
    ring = eight_gaussians()
    means = torch.tensor(ring.means)
    experiment = points_gan(game=game, steps=400, batch=128)  # type: ignore[arg-type]
    blank = mode_coverage(draw(experiment.model, 1000, seed=1, chunk=1000), means, ring.std)
    assert blank.high_quality.value < 0.5
    run = experiment.train(tmp_path / "run", device="cpu", voice=Voice())
    found = mode_coverage(draw(run.model, 1000, seed=1, chunk=1000), means, ring.std)
    assert found.modes.value == 8
    assert found.high_quality.value > 0.8
    assert found.reverse_kl.value < 0.2
