"""Autoregressive models: probabilities that sum to one, and samples that follow them (oracles A4, A5)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from morphogen.autoregressive import Autoregressive, decode
from morphogen.core import Net, Noise
from morphogen.errors import UserError
from morphogen.nets.causal import CausalTransformer
from morphogen.nets.masked import MADE

from .test_nets import awake


def everything(codes: int, *shape: int) -> Tensor:
    """Every x of the shape, (codes ** size, *shape)."""
    size = int(torch.tensor(shape).prod())
    return torch.tensor(list(itertools.product(range(codes), repeat=size))).view(-1, *shape)


def transformer(codes: int, shape: tuple[int, ...], classes: int = 0, **more: float) -> Autoregressive:
    torch.manual_seed(0)
    net = CausalTransformer(codes, shape, width=16, depth=2, heads=2, classes=classes, **more)
    return awake(Autoregressive(net, shape, codes), 4)


@pytest.mark.parametrize(
    ("model", "x", "classes"),
    [
        (transformer(3, (2, 2), 2), everything(3, 2, 2), 2),
        (transformer(2, (3, 3), rotary=50.0), everything(2, 3, 3), 0),
        (transformer(4, (1,)), everything(4, 1), 0),
        (awake(Autoregressive(MADE(10, 2, (12, 12)), (10,), 2)), everything(2, 10), 0),
    ],
    ids=["codes with classes", "a grid", "one symbol", "MADE over 2^10"],
)
def test_all_probabilities_sum_to_one(model: Autoregressive, x: Tensor, classes: int) -> None:
    model = model.double()
    for label in range(max(classes, 1)):
        cond = {"label": torch.full((len(x),), label)} if classes else None
        logp = model.log_prob(x, cond).detach()
        assert float(logp.exp().sum()) == pytest.approx(1, abs=1e-6)
        assert float(logp.std()) > 0.1  # and not because all are alike


def test_the_loss_is_the_mean_of_minus_log_prob_by_symbol() -> None:
    model = transformer(5, (2, 3), 4)
    model.drop = 0.0
    x, label = torch.randint(5, (7, 2, 3)), torch.randint(4, (7,))
    said = model.loss({"x": x, "cond": {"label": label}, "key": torch.arange(7)})
    logp = model.log_prob(x, {"label": label}).detach()
    assert float(said.value.detach()) == pytest.approx(-float(logp.mean()) / 6, abs=1e-5)
    assert torch.allclose(said.seen["nll"], -logp, atol=1e-5)


class Whole(Net):
    """A causal net that cannot go on from what it has seen."""

    def __init__(self, net: CausalTransformer) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.net(x, cond)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_samples_are_those_of_whole_passes(guidance: float) -> None:
    model = transformer(6, (3, 3), 3)
    slow = Autoregressive(Whole(model.net), (3, 3), 6)
    cond = {"label": torch.tensor([0, 1, 2, 0, 1])}
    drawn = [m.sample(5, cond, noise=Noise.seeded(1, 5), guidance=guidance) for m in (model, slow)]
    assert torch.equal(*drawn)
    assert drawn[0].dtype == torch.long
    assert drawn[0].shape == (5, 3, 3)


def test_samples_follow_the_probabilities() -> None:
    """chi-square of 40,000 samples over 27 sequences: a right sampler is above the bound once in 10^4."""
    model, x, n = transformer(3, (3,), 2), everything(3, 3), 40_000
    cond = {"label": torch.ones(n, dtype=torch.long)}
    with torch.no_grad():
        expected = model.log_prob(x, {"label": torch.ones(27, dtype=torch.long)}).double().exp() * n
        drawn = model.sample(n, cond, noise=Noise.seeded(3, n))
    counts = (drawn @ torch.tensor([9, 3, 1])).bincount(minlength=27)
    assert float(((counts - expected).square() / expected).sum()) < 62.0  # chi2(26).isf(1e-4) = 62.1


def test_guidance_is_the_power_of_probabilities() -> None:
    """Of one symbol, guidance w draws from p(x | c)^w p(x)^(1 - w), normed; w = 1 is the conditional law itself."""
    model, n = transformer(4, (1,), 2), 40_000
    label = torch.ones(4, dtype=torch.long)
    with torch.no_grad():
        given = model.log_prob(everything(4, 1), {"label": label}).double()
        without = model.log_prob(everything(4, 1)).double()
        for w in (1.0, 2.0, 0.0):
            expected = (w * given + (1 - w) * without).softmax(0) * n
            drawn = model.sample(n, {"label": label[:1].expand(n)}, noise=Noise.seeded(5, n), guidance=w)
            counts = drawn.flatten().bincount(minlength=4)
            assert float(((counts - expected).square() / expected).sum()) < 21.2  # chi2(3).isf(1e-4) = 21.1


def test_temperature_and_top_k() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]))
    sharp = decode.temperature(logits, 0.5).softmax(-1)
    expected = torch.tensor([[0.561404, 0.315789, 0.078947, 0.035088, 0.008772]])
    assert torch.allclose(sharp, expected, atol=1e-6)
    mild = torch.tensor([[0.476510, 0.315928, 0.117367, 0.065764, 0.024431]])
    assert torch.allclose(decode.temperature(logits, 0.7).softmax(-1), mild, atol=1e-6)
    assert torch.allclose(decode.top_k(logits, 2).softmax(-1), torch.tensor([[4, 3, 0, 0, 0]]) / 7, atol=1e-6)
    assert torch.equal(decode.top_k(logits, 9), logits)
    assert decode.temperature(logits, 0).softmax(-1)[0, 0] == 1
    assert torch.equal(decode.guided(-logits, logits, 1.0), logits)
    model = transformer(5, (4,))
    greedy = model.sample(3, noise=Noise.seeded(0, 3), temperature=0)
    assert (greedy == greedy[0]).all()
    assert torch.equal(greedy, model.sample(3, noise=Noise.seeded(9, 3), top_k=1))


def test_greedy_is_the_likeliest_next_symbol() -> None:
    model = transformer(5, (4,))
    x = model.sample(1, temperature=0)
    for i in range(4):
        others = x.repeat(5, 1)
        others[:, i] = torch.arange(5)
        assert int(model.net(others)[0, i].argmax()) == int(x[0, i])


def test_no_samples_and_no_data() -> None:
    model = transformer(3, (2, 2), 2)
    assert model.sample(0, {"label": torch.zeros(0, dtype=torch.long)}, guidance=2.0).shape == (0, 2, 2)
    assert model.log_prob(torch.zeros(0, 2, 2, dtype=torch.long)).shape == (0,)


def test_small_integers_are_data_too() -> None:
    model = transformer(3, (2, 2))
    x = torch.randint(3, (4, 2, 2))
    assert torch.equal(model.log_prob(x.to(torch.uint8)), model.log_prob(x))


def test_mistakes_are_said() -> None:
    model = transformer(3, (2, 2), 2)
    with pytest.raises(UserError, match="float32 of shape"):
        model.log_prob(torch.zeros(1, 2, 2))
    with pytest.raises(UserError, match="alphabet is 0 to 2"):
        model.log_prob(torch.full((1, 2, 2), 3))
    with pytest.raises(UserError, match="guided to"):
        model.sample(2, guidance=2.0)
    with pytest.raises(UserError, match="none can be drawn"):
        model.sample(2, top_k=0)
    with pytest.raises(UserError, match="temperature of -1"):
        model.sample(2, temperature=-1)
    for n, prompt in ((-1, [0]), (2, [0] * 5)):
        with pytest.raises(UserError, match="4 at the most"):
            model.sample(n, prompt=torch.tensor(prompt))
    assert torch.equal(model.sample(2, prompt=torch.arange(4) % 3).flatten(1), (torch.arange(4) % 3).expand(2, 4))
    with pytest.raises(UserError, match="drop=0"):
        Autoregressive(model.net, (2, 2), 3, drop=0.0).sample(2, {"label": torch.zeros(2).long()}, guidance=2.0)
    with pytest.raises(UserError, match="one for each"):
        model.sample(2, {"label": torch.zeros(3).long()})
