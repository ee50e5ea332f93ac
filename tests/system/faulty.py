"""Recipes and models that go wrong, each in one way, beside the files that the tests put into this one's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import morphogen as mg
from morphogen.data import Shuffled, Tensors

HERE = Path(__file__).parent


class Mean(mg.Model):
    """The mean of the data, by squared error; `way` says how its loss goes wrong."""

    def __init__(self, way: Any = None) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))
        self.way = way

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        value = (batch["x"] - self.mean).square().flatten(1).mean(1)
        if self.way == "bare":
            return value.mean()  # type: ignore[return-value]
        if self.way == "each":
            return mg.Loss(value)
        if self.way == "constant":
            return mg.Loss(batch["x"].mean())
        if self.way == "raises":
            raise RuntimeError("a matrix that\ndoes not fit")
        return mg.Loss(value.mean())


class Weightless(mg.Model):
    """Has nothing to learn."""

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        return mg.Loss(batch["x"].mean())


class Lossless(mg.Model):
    """Says no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


class Items(Tensors):
    """Tensors made here, so that a run can write them down."""

    def __init__(self, kind: str) -> None:
        super().__init__(*_ITEMS[kind]())
        self.levels = 17 if kind == "beyond" else None


_ITEMS: dict[str, Any] = {
    "good": lambda: (torch.randn(20, 2),),
    "double": lambda: (torch.randn(20, 2).double(),),
    "integers": lambda: (torch.ones(20, 1, 8, 8, dtype=torch.uint8),),
    "shape": lambda: (torch.randn(20, 1, 5, 7),),
    "few": lambda: (torch.randn(20, 2), {"label": torch.zeros(19, dtype=torch.long)}),
    "high": lambda: (torch.rand(20, 1, 8, 8), {"label": torch.full((20,), 12)}),
    "float label": lambda: (torch.rand(20, 1, 8, 8), {"label": torch.zeros(20)}),
    "none": lambda: (torch.zeros(0, 2),),
    "number": lambda: (torch.tensor(3.0),),
    "beyond": lambda: (torch.full((20, 1, 8, 8), 40),),
    "nan": lambda: (torch.full((20, 2), float("nan")),),
}


def _made(model: mg.Model, items: Any, **trainer: Any) -> mg.Experiment:
    return mg.Experiment(model, mg.Data(Shuffled(items, 16)), mg.Trainer(2, save_every=1, **trainer))


def _pictures(kind: str) -> mg.Experiment:
    net = mg.nets.UNet(1, widths=(8, 8), attention=(), classes=10)
    return _made(mg.diffusion.rectified_flow(net, (1, 8, 8), drop=0.0), Items(kind))


def _points(kind: str) -> mg.Experiment:
    net = mg.nets.MLP(2, 2, 8, 1, scalars=("t",))
    return _made(mg.diffusion.rectified_flow(net, (2,), drop=0.0), Items(kind))


def _file(name: str) -> mg.Experiment:
    return _made(Mean(), Tensors(mg.Asset(HERE / name)))


def nothing() -> mg.Experiment:
    """Forgets to return."""


def model_alone() -> mg.Experiment:
    """Returns the model."""
    from tiny import Blurs

    return Blurs()  # type: ignore[no-any-return]


def three() -> mg.Experiment:
    """Returns the three parts."""
    made = _points("good")
    return made.model, made.data, made.trainer  # type: ignore[return-value]


def yields() -> Iterator[mg.Experiment]:
    """Yields where it should return."""
    yield _points("good")


def a_lambda() -> mg.Experiment:
    """Passes a lambda."""
    return _made(Mean(lambda x: x), Items("good"))


def a_tensor() -> mg.Experiment:
    """Passes a tensor."""
    return _made(Mean(torch.zeros(3)), Items("good"))


def bare_module() -> mg.Experiment:
    """Passes a network of torch, which remembers nothing."""
    net = nn.Sequential(nn.Linear(2, 2))
    return _made(mg.diffusion.rectified_flow(net, (2,)), Items("good"))


def misspelt() -> mg.Experiment:
    """Misspells an argument."""
    return mg.Experiment(Mean(), mg.Data(Shuffled(Items("good"), 16)), mg.Trainer(step=3))  # type: ignore[call-arg]


def divides() -> mg.Experiment:
    """Divides by zero."""
    return _made(Mean(1 // 0), Items("good"))


def no_trainer() -> mg.Experiment:
    """Leaves the trainer out."""
    return mg.Experiment(Mean(), mg.Data(Shuffled(Items("good"), 16)))  # type: ignore[call-arg]


def swapped() -> mg.Experiment:
    """Puts the model in the data's place."""
    return mg.Experiment(mg.Data(Shuffled(Items("good"), 16)), Mean(), mg.Trainer(2))  # type: ignore[arg-type]


def doubles() -> mg.Experiment:
    """Floats of double precision for weights of single."""
    return _points("double")


def integers() -> mg.Experiment:
    """Pixels 0 to 255 as they come."""
    return _pictures("integers")


def other_shape() -> mg.Experiment:
    """Pictures of another shape than the net's."""
    return _pictures("shape")


def few_labels() -> mg.Experiment:
    """A label fewer than items."""
    return _points("few")


def high_label() -> mg.Experiment:
    """A label 12 of 10 classes."""
    return _pictures("high")


def float_labels() -> mg.Experiment:
    """Labels as floats."""
    return _pictures("float label")


def no_items() -> mg.Experiment:
    """Nothing to learn from."""
    return _points("none")


def one_number() -> mg.Experiment:
    """A single number."""
    return _points("number")


def beyond_levels() -> mg.Experiment:
    """Pixels of 40 where 17 levels are."""
    return _pictures("beyond")


def csv() -> mg.Experiment:
    """A table of text as an array."""
    return _file("table.csv")


def text_npy() -> mg.Experiment:
    """Text under an array's name."""
    return _file("text.npy")


def objects_npy() -> mg.Experiment:
    """An array of Python objects, which only unpickling could read."""
    return _file("objects.npy")


def words_npy() -> mg.Experiment:
    """An array of words."""
    return _file("words.npy")


def short_npy() -> mg.Experiment:
    """An array cut short."""
    return _file("short.npy")


def empty_npy() -> mg.Experiment:
    """A file of no bytes."""
    return _file("empty.npy")


def text_safetensors() -> mg.Experiment:
    """Text under the name of safetensors."""
    return _file("text.safetensors")


def no_such_tensor() -> mg.Experiment:
    """A file whose tensor has another name."""
    return _file("pixels.safetensors")


def no_file() -> mg.Experiment:
    """A file that is not there."""
    return _file("gone.npy")


def nan_data() -> mg.Experiment:
    """Data that are no numbers."""
    return _points("nan")


def bare_loss() -> mg.Experiment:
    """A loss that is a bare tensor."""
    return _made(Mean("bare"), Items("good"))


def loss_each() -> mg.Experiment:
    """A loss for each sample."""
    return _made(Mean("each"), Items("good"))


def no_gradient() -> mg.Experiment:
    """A loss that no weight changes."""
    return _made(Mean("constant"), Items("good"))


def no_weights() -> mg.Experiment:
    """A model without weights."""
    return _made(Weightless(), Items("good"))


def no_loss() -> mg.Experiment:
    """A model without a loss."""
    return _made(Lossless(), Items("good"))


def raises() -> mg.Experiment:
    """A loss that raises."""
    return _made(Mean("raises"), Items("good"))


def half() -> mg.Experiment:
    """A precision that the trainer does not have."""
    return _made(Mean(), Items("good"), dtype="float16")


def clip() -> mg.Experiment:
    """A largest norm below zero."""
    return _made(Mean(), Items("good"), clip=-1.0)


def metric() -> mg.Experiment:
    """A held-out metric that the model does not say."""
    data = mg.Data(Shuffled(Items("good"), 16), Items("good"))
    return mg.Experiment(Mean(), data, mg.Trainer(2, heldout=mg.HeldOut(every=1, metric="los")))


def never() -> mg.Experiment:
    """A hook that is never due."""
    return _made(Mean(), Items("good"), hooks=(mg.SampleGrid(every=0, n=4),))


def good() -> mg.Experiment:
    """Goes well, and measures nothing."""
    return _points("good")


def opens() -> mg.Experiment:
    """Opens a file of its own that is not there."""
    return _made(Mean(), (HERE / "gone.txt").open())
