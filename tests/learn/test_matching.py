"""Score matching learns: each loss, on the Trainer, comes near the true score of a mixture, and samples its law."""

from __future__ import annotations

import pytest
import torch

from morphogen.core import Noise
from morphogen.data.densities import Fresh, Gaussians
from morphogen.diffusion.field import Mixture
from morphogen.diffusion.langevin import MALA, ULA
from morphogen.diffusion.matching import Denoising, Energy, Implicit, ScoreModel, SlicedVR
from morphogen.diffusion.path import Exploding
from morphogen.experiment import Data, Experiment
from morphogen.hooks import Voice
from morphogen.nets.mlp import MLP
from morphogen.optim import AdamW, Triangle
from morphogen.train import Trainer

MEANS, STD, WEIGHTS = [[-0.9, -0.3], [0.9, 0.5]], 0.5, [0.3, 0.7]
CASES = {
    "implicit": (Implicit(), False, 0.0),
    "sliced": (SlicedVR(), False, 0.0),
    "denoising": (Denoising(0.3), False, 0.3),
    "energy": (Implicit(), True, 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_learns_the_score_and_samples_the_law(name, tmp_path):
    objective, energy, sigma = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(2, 2, 48, 2)
    model = ScoreModel(Energy(net) if energy else net, (2,), objective, (MALA if energy else ULA)(0.05, 100))
    density = Gaussians(MEANS, STD, WEIGHTS)
    trainer = Trainer(600, optim=AdamW(1e-2, schedule=Triangle()))
    run = Experiment(model, Data(Fresh(density, 512), None, None), trainer)
    model = run.train(tmp_path / "run", device="cpu", voice=Voice()).model
    n = 20_000
    x = density.sample(n, noise=Noise.seeded(1, n)) + sigma * Noise.seeded(2, n).normal(2)
    truth = Mixture(Exploding(1.0), MEANS, [STD, STD], WEIGHTS)  # at t = sigma the data has that noise on it
    if sigma:
        true = truth.score(x, sigma)
    else:
        watched = x.clone().requires_grad_()
        (true,) = torch.autograd.grad(truth.log_density(watched, 0.0).sum(), watched)
    with torch.no_grad():
        error = (model.score(x) - true).square().sum(1).mean() / true.square().sum(1).mean()
        drawn = model.sample(n, noise=Noise.seeded(3, n))
    print(name, error.item())
    assert error < 0.03  # of the squared score; a net that says nothing has 1
    assert (drawn.mean(0) - x.mean(0)).abs().max() < 0.06
    assert (drawn.T.cov() - x.T.cov()).abs().max() < 0.06
    right = ((drawn @ torch.tensor([0.9, 0.4])) > 0.0).double().mean()
    assert (right - ((x @ torch.tensor([0.9, 0.4])) > 0.0).double().mean()).abs() < 0.04
