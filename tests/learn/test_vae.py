"""It learns: of real digits of two values every kind of VAE knows more than a mixture of the ten classes; a run names
its collapsed dimensions and is measured by importance weights.
"""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from morphogen.cli import main
from morphogen.core import keys
from morphogen.data.augment import AugmentedOnce, Binarise
from morphogen.data.digits import Digits
from morphogen.flows import iaf
from morphogen.latent.hierarchical import Ladder, Rung
from morphogen.latent.likelihood import Bernoulli
from morphogen.latent.objective import ELBO, IWAE, InfoVAE, Objective
from morphogen.latent.posterior import Diagonal, Flowed, Posterior
from morphogen.latent.vae import VAE
from morphogen.log import read
from morphogen.nets.mlp import MLP


def digits(part: str) -> tuple[Tensor, Tensor]:
    """Digits x (N, 1, 8, 8) of two values, and their classes (N,)."""
    items = AugmentedOnce(Digits(part), (Binarise(),))
    batch = items.take(torch.arange(len(items)))
    return batch["x"], batch["cond"]["label"]


def mixture(x: Tensor, label: Tensor, test: Tensor) -> float:
    """The mean log-likelihood of test digits under a mixture of ten: each class's pixels, independent of each other."""
    parts = []
    for k in range(10):
        on = (x[label == k] > 0).double().mean(0).clamp(0.01, 0.99)
        share = (label == k).double().mean().log()
        parts.append(torch.where(test > 0, on.log(), (1 - on).log()).flatten(1).sum(1) + share)
    return float(torch.stack(parts).logsumexp(0).mean())


def ladder() -> Posterior:
    return Ladder(Rung(MLP(64, 64, 64, 1), 64, 8, MLP(4, 16, 32, 1)), Rung(MLP(64, 32, 32, 1), 32, 4))


KINDS: dict[str, tuple[Any, Objective]] = {
    "elbo": (lambda: Diagonal(MLP(64, 16, 96, 1), 8), ELBO()),
    "warm-up and free bits": (lambda: Diagonal(MLP(64, 16, 96, 1), 8), ELBO(warmup=100, free=0.1)),
    "iwae": (lambda: Diagonal(MLP(64, 16, 96, 1), 8), IWAE(5)),
    "info-vae": (lambda: Diagonal(MLP(64, 16, 96, 1), 8), InfoVAE()),
    "flow": (lambda: Flowed(MLP(64, 24, 96, 1), iaf(8, 2, (32,), context=8), 8, 8), ELBO()),
    "ladder": (ladder, ELBO(warmup=100)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_vae_of_real_digits_beats_a_mixture_of_their_classes(kind: str):
    (x, label), (test, _) = digits("train"), digits("test")
    torch.manual_seed(0)
    posterior, objective = KINDS[kind]
    model = VAE(posterior(), MLP(8, 64, 96, 1), Bernoulli((1, 8, 8)), objective)
    optim = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.0, fused=True)
    steps, n = 400, 128
    for step in range(steps):
        model.step = step
        for group in optim.param_groups:
            group["lr"] = 5e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = (torch.arange(n) * 7 + step * n) % len(x)
        optim.zero_grad(set_to_none=True)
        value = model.loss({"x": x[index], "key": keys(index, step)}).value
        assert isinstance(value, Tensor)
        value.backward()
        optim.step()
    model.eval()
    with torch.no_grad():
        bound, tight = model.elbo(test).mean().item(), model.importance(test, k=100).mean().item()
    assert tight > mixture(x, label, test)  # -23.9 nats, and it is told no classes
    assert bound < tight


OWN = '''
"""A VAE of the digits, for one line of the command line."""
import morphogen as mg
from morphogen.data import Digits, Shuffled
from morphogen.data.augment import Augmented, AugmentedOnce, Binarise
from morphogen.data.digits import space
from morphogen.hooks import ActiveUnits, SampleGrid
from morphogen.latent.likelihood import Bernoulli
from morphogen.latent.posterior import Diagonal
from morphogen.latent.vae import VAE
from morphogen.nets.mlp import MLP


def digits_vae(steps: int = 60) -> mg.Experiment:
    """Digits."""
    model = VAE(Diagonal(MLP(64, 12, 32, 1), 6), MLP(6, 64, 32, 1), Bernoulli((1, 8, 8)))
    source = Augmented(Shuffled(Digits("train"), 64), (Binarise(),))
    hooks = (ActiveUnits(steps), SampleGrid(steps, n=6, options={"mean": True}))
    data = mg.Data(source, AugmentedOnce(Digits("test"), (Binarise(),)), space())
    return mg.Experiment(model, data, mg.Trainer(steps, hooks=hooks, log_every=20))
'''


def run(typed: str) -> int:
    return main(shlex.split(typed))


def test_a_run_names_its_collapsed_dimensions_and_is_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    assert run("train own.py:digits_vae --run vae") == 0
    line = next(line for line in read(Path("vae/log.jsonl")) if "collapsed" in line)
    assert line["active"] + len(line["collapsed"]) == 6
    if line["collapsed"]:
        assert "have collapsed and say nothing" in capsys.readouterr().err
    assert run("evaluate vae --n 0 --likelihood 50 --importance 200") == 0
    page = json.loads(Path("vae/evaluation.json").read_text())["measures"]
    assert page["importance"]["n"] == page["elbo"]["n"] == 50
    assert page["importance"]["value"] > page["elbo"]["value"]
    assert "k 200" in page["importance"]["how"]
    assert page["bits/dim (importance)"]["value"] == pytest.approx(-page["importance"]["value"] / (64 * math.log(2)))
    assert run("evaluate vae --n 0 --likelihood 50 --importance 0") == 0
    assert "importance" not in json.loads(Path("vae/evaluation.json").read_text())["measures"]
    assert run("evaluate vae --n 0 --likelihood 50 --importance -1") == 2
    assert "--importance -1" in capsys.readouterr().err
    assert run("sample vae --n 4 --mean --out grid.png") == 0
    assert run("sample vae --n 4 --out draws.png") == 0
