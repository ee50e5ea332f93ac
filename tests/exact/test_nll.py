"""The loss of a large alphabet in pieces is the plain one, and packed layers say what they did before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from morphogen.autoregressive import Autoregressive, autoregressive, generate, nll
from morphogen.core import Noise
from morphogen.nets.causal import CausalSequence, CausalTransformer
from morphogen.nets.packed import Packed, packable, packed
from morphogen.nets.recurrent import GRU

from .test_nets import awake


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_loss_and_gradients_are_those_of_all_logits(bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(nll, "PIECE", 11 * rows)
    last = nn.Linear(5, 11, bias=bias).double()
    h, y = torch.randn(13, 5, dtype=torch.float64, requires_grad=True), torch.randint(11, (13,))
    w = torch.rand(13, dtype=torch.float64)
    expected = F.cross_entropy(last(h), y, reduction="none")
    wanted = torch.autograd.grad(3 * (w * expected).sum(), [h, *last.parameters()])
    loss, each = nll.weighted_nll(h, last, y, w)
    found = torch.autograd.grad(3 * loss, [h, *last.parameters()])
    torch.testing.assert_close(each, expected.detach())
    torch.testing.assert_close(loss, (w * expected).sum())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert not each.requires_grad


def test_extreme_logits_and_half_precision() -> None:
    last = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[1e4, 0.0], [0.0, 1e4], [0.0, 0.0]]))
    loss, _ = nll.weighted_nll(torch.eye(2), last, torch.tensor([0, 2]), torch.ones(2))
    assert float(loss) == pytest.approx(1e4)
    torch.manual_seed(0)
    last, h, y = nn.Linear(16, 40), torch.randn(9, 16, requires_grad=True), torch.randint(40, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = nll.weighted_nll(h, last, y, torch.full((9,), 1 / 9))
    half.backward()
    assert h.grad is not None
    assert h.grad.dtype == torch.float32
    plain = F.cross_entropy(last(h), y)
    assert float(half) == pytest.approx(float(plain), abs=0.02)
    (grad,) = torch.autograd.grad(plain, h)
    assert (h.grad - grad).abs().max() < 0.01


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("body", ["transformer", "gru"])
def test_a_model_learns_the_same_either_way(
    tied: bool, ragged: bool, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if body == "gru":
        net = awake(CausalSequence(7, GRU(6, 6), tied=tied))
    else:
        net = awake(CausalTransformer(7, (5,), width=8, depth=1, heads=2, tied=tied))
    model = Autoregressive(net, (5,), 7)
    batch = {"x": torch.randint(7, (4, 5)), "key": torch.arange(4)}
    if ragged:
        batch["lengths"] = torch.tensor([5, 0, 2, 3])
    said = []
    for large in (4096, 7):
        monkeypatch.setattr(autoregressive, "LARGE", large)
        model.zero_grad()
        loss = model.loss(batch)
        loss.value.backward()
        said.append((loss.value.detach(), loss.seen["nll"], [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(said[0], said[1])


def test_packed_layers_say_what_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = awake(CausalTransformer(9, (40,), width=16, depth=2, heads=2, tied=True))
    if not packable(net):
        pytest.skip("oneDNN is not there")
    quick = packed(net, 3)
    assert sum(isinstance(m, Packed) for m in quick.modules()) == 9
    assert not any(isinstance(m, Packed) for m in net.modules())
    assert {p.data_ptr() for p in quick.parameters()} == {p.data_ptr() for p in net.parameters()}  # no second copy
    x = torch.randint(9, (3, 8))
    torch.testing.assert_close(quick.step(x)[0], net.step(x)[0], rtol=0, atol=1e-5)
    assert not packable(net.double())
    net = net.float()
    model = Autoregressive(net, (40,), 9)
    plain = model.generate(x, noise=Noise.seeded(0, 3))
    monkeypatch.setattr(generate, "PACK_FROM", 1)
    assert torch.equal(model.generate(x, noise=Noise.seeded(0, 3)).tokens, plain.tokens)
