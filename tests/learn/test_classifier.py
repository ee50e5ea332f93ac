"""The classifier really learns, through the trainer, and serves as judge and as reader of noisy images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from morphogen.data.digits import Digits, space
from morphogen.data.source import Shuffled
from morphogen.diffusion.path import Linear
from morphogen.experiment import Data, Experiment, Run
from morphogen.heldout import HeldOut
from morphogen.hooks import Voice
from morphogen.metrics.classification import accuracy
from morphogen.metrics.judge import evaluate_samples, everything, read
from morphogen.nets.resnet import ResNet
from morphogen.optim import AdamW, Triangle
from morphogen.recipes.digits_classifier import digits_classifier
from morphogen.supervised import Classifier
from morphogen.train import Trainer


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.manual_seed(0)
    return digits_classifier(epochs=20).train(tmp_path_factory.mktemp("judge") / "run", device="cpu", voice=Voice())


def test_reads_digits(judge: Run) -> None:
    x, label = everything(Digits("test"))
    found = accuracy(read(judge.model, x).label, label)
    assert found.value >= 0.97
    heldout = [line["heldout"] for line in judge.log() if "heldout" in line]
    assert heldout[-1]["accuracy"] == pytest.approx(found.value, abs=1e-6)


def test_judges_real_digits_as_real(judge: Run) -> None:
    """Real test digits that stand in for samples: read as asked, not copied, as near to the others as is ordinary."""
    x, label = everything(Digits("test"))
    samples, others = torch.arange(0, 360, 2), torch.arange(1, 360, 2)

    class Others:
        def __len__(self) -> int:
            return len(others)

        def take(self, index: torch.Tensor) -> dict[str, object]:
            return {"x": x[others[index]], "cond": {"label": label[others[index]]}}

    found = evaluate_samples(x[samples], label[samples], train=Digits("train"), test=Others(), judge=judge.model)
    assert found["agreement"].value >= 0.95
    assert found["memorised"].value <= 0.04
    assert found["frechet"].low <= found["floor"].high
    noise = torch.randn(x[samples].shape, generator=torch.Generator().manual_seed(0))
    worse = evaluate_samples(
        (x[samples] + noise).clamp(-1, 1), label[samples], train=Digits("train"), test=Others(), judge=judge.model
    )
    assert worse["agreement"].high < found["agreement"].low
    assert worse["frechet"].low > found["frechet"].high


def test_reads_noisy_digits(tmp_path: Path) -> None:
    """Trained along a path, it reads half-noised digits, and knows nothing of pure noise."""
    torch.manual_seed(0)
    path = Linear()
    model = Classifier(ResNet(1, 10, 16, scalars=("t",)), path=path)
    trainer = Trainer(300, optim=AdamW(5e-3, schedule=Triangle()), heldout=HeldOut(every=300, metric="accuracy"))
    data = Data(Shuffled(Digits("train"), 64), Digits("test"), space())
    model = Experiment(model, data, trainer).train(tmp_path / "run", device="cpu", voice=Voice()).model
    x, label = everything(Digits("test"))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def right(t: float) -> float:
        p = model.predict(path.alpha(t) * x + path.sigma(t) * z, {"t": torch.full((360,), t)})
        return float((p.argmax(1) == label).double().mean())

    assert right(0.1) > 0.9
    assert right(0.4) > 0.75
    assert right(1.0) < 0.25
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model.log_label(x, 0.3, {"label": label}).sum(), x)
    assert bool(slope.isfinite().all())
    assert bool(slope.any())
