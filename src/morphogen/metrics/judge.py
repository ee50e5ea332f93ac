r"""What a trained reader says of samples: are they what was asked for, are they good enough to learn from.

`agreement` is the share of class-conditional samples that a judge reads as the class asked for. `useful` is "train on
synthetic, test on real": the accuracy on real held-out items of a classifier that saw samples alone. The first falls
where samples are wrong, the second also where they lack variety.

Sources: Ravuri & Vinyals 2019, "Classification accuracy score for conditional generative models", arXiv:1905.10887;
Wilson 1927 (the intervals).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Items
from ..errors import UserError
from .classification import accuracy
from .frechet import frechet_distance
from .measure import Measure
from .memorisation import memorised


@runtime_checkable
class Judge(Protocol):
    """A classifier with the features that distances are measured on."""

    def predict(self, x: Tensor) -> Tensor:
        """Probabilities (B, classes) of x (B, ...)."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) of x (B, ...)."""
        ...


Fit = Callable[[Tensor, Tensor], Judge]  # trains a judge on items x (N, ...) and labels (N,) alone


class Reading(NamedTuple):
    """What a judge makes of items: the label it reads (N,) int64 and its features (N, D)."""

    label: Tensor
    features: Tensor


@torch.no_grad()
def read(judge: Judge, x: Float[Tensor, " n *shape"], *, chunk: int = 500) -> Reading:
    """The judge's labels and features of x, in evaluation mode. Raises UserError where x is empty."""
    if len(x) == 0:
        raise UserError("There is nothing for the judge to read: give at least one item.")
    training = isinstance(judge, nn.Module) and judge.training
    if isinstance(judge, nn.Module):
        judge.eval()
    labels = [judge.predict(part).argmax(1) for part in x.split(chunk)]
    features = [judge.features(part) for part in x.split(chunk)]
    if isinstance(judge, nn.Module):
        judge.train(training)
    return Reading(torch.cat(labels), torch.cat(features))


def agreement(judge: Judge, samples: Float[Tensor, " n *shape"], asked: Int[Tensor, " n"]) -> Measure:
    """The share of samples that the judge reads as the class `asked` for, with Wilson's interval."""
    return accuracy(read(judge, samples).label, asked, "samples read as the class asked for")


def useful(
    fit: Fit,
    samples: Float[Tensor, " n *shape"],
    asked: Int[Tensor, " n"],
    x: Float[Tensor, " m *shape"],
    label: Int[Tensor, " m"],
) -> Measure:
    """The accuracy on real items x of a classifier that `fit` trains on the samples alone, with Wilson's interval."""
    how = f"real test items read right by a classifier trained on {len(samples)} samples alone"
    return accuracy(read(fit(samples, asked), x).label, label, how)


def everything(items: Items) -> tuple[Tensor, Tensor]:
    """All of the items: x (N, ...) and labels (N,)."""
    batch = items.take(torch.arange(len(items)))
    return batch["x"], batch["cond"]["label"]


def evaluate_samples(
    samples: Float[Tensor, " n *shape"],
    asked: Int[Tensor, " _"],
    *,
    train: Items,
    test: Items,
    judge: Judge,
    fit: Fit | None = None,
    seed: int = 0,
) -> dict[str, Measure]:
    """Class-conditional samples against real data.

    samples: drawn at one setting. asked: their classes. train: what the model was trained on. test: real items that
    it never saw. judge: trained on real items. fit: trains a fresh classifier on samples; without it "useful" is left
    out. seed: picks the items where a set is cut to the other's size.
    Returns, in order:
        judge      the judge's own accuracy on the test items
        agreement  share of samples read as the class asked for
        useful     accuracy on test items of a classifier trained on the samples alone
        memorised  share of samples nearer to a training item than the 1 % quantile of test items
        frechet    Fréchet distance, on the judge's features, of samples from test items
        floor      the same of as many training items from test items: what real data score at this N
    Raises UserError where a set is empty or the samples' shape is not the data's.
    """
    train_x, _ = everything(train)
    test_x, test_label = everything(test)
    if samples.shape[1:] != test_x.shape[1:]:
        raise UserError(
            f"The samples are {tuple(samples.shape[1:])} each and the test items {tuple(test_x.shape[1:])}:"
            " evaluate against the data that the model was trained on."
        )
    if len(samples) != len(asked):
        raise UserError(f"There are {len(samples)} samples and {len(asked)} classes asked for: give one a sample.")
    n = min(len(samples), len(train_x))
    order = torch.Generator().manual_seed(seed)
    drawn, real = read(judge, samples), read(judge, test_x)
    seen = read(judge, train_x[torch.randperm(len(train_x), generator=order)[:n]])
    picked = drawn.features[torch.randperm(len(samples), generator=order)[:n]]
    frechet, floor = frechet_distance(picked, real.features), frechet_distance(seen.features, real.features)
    found = {
        "judge": accuracy(real.label, test_label, "real test items read right by the judge"),
        "agreement": accuracy(drawn.label, asked, "samples read as the class asked for"),
        "memorised": memorised(samples, train_x, test_x),
        "frechet": frechet._replace(how=f"samples from test items, {frechet.how}"),
        "floor": floor._replace(how=f"training items from test items, {floor.how}"),
    }
    if fit is not None:
        found["useful"] = useful(fit, samples, asked, test_x, test_label)
    order_of = ("judge", "agreement", "useful", "memorised", "frechet", "floor")
    return {name: found[name] for name in order_of if name in found}
