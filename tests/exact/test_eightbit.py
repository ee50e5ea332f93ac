"""Eight-bit weights: within half a scale, products of exactly these weights, and what they cost a trained model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from morphogen.autoregressive import Autoregressive
from morphogen.autoregressive.generate import generate, greedy
from morphogen.core import NONE, Net
from morphogen.errors import UserError
from morphogen.nets import GRU, CausalSequence, CausalTransformer, int8, spectrally_normalised
from morphogen.nets.eightbit import FEW, Int8
from morphogen.spec import build, spec

from .test_nets import awake

SHAPES = [(1, 1, 1), (3, 5, 2), (17, 33, 1), (64, 16, 5), (100, 7, 16), (384, 257, 1), (31, 64, FEW), (45, 12, FEW + 1)]


def linear(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs * outputs)
    made = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight.copy_(torch.randn_like(made.weight) * torch.logspace(-3, 2, outputs)[:, None])  # rows of all sizes
        made.weight[0] = 0
    return made.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("inputs", "outputs", "rows"), SHAPES)
def test_weights_are_within_half_a_scale(inputs: int, outputs: int, rows: int, dtype: torch.dtype) -> None:
    layer = linear(inputs, outputs, dtype)
    made = Int8(layer)
    off = (layer.weight.double() - made.q.double()[:, :inputs] * made.scale.double()[:, None]).abs()
    assert (off <= made.scale.double()[:, None] / 2 * (1 + 1e-6)).all()
    assert made.q.abs().max() <= 127
    assert outputs == 1 or (made.q.abs().amax(1)[1:] >= 126).all()  # each row has its own scale, and uses all of it
    assert made.weight.dtype == dtype
    assert (made.weight[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "rows"), SHAPES)
def test_the_product_is_that_of_these_weights(
    inputs: int, outputs: int, rows: int, bias: bool, dtype: torch.dtype
) -> None:
    layer = linear(inputs, outputs, dtype, bias)
    made, x = Int8(layer), torch.randn(rows, inputs).to(dtype)
    y = made(x)
    assert y.dtype == dtype
    w, half = made.q.double()[:, :inputs] * made.scale.double()[:, None], x.bfloat16().double()
    exact = half @ w.T
    rounding = 2**-7 * exact.abs() + 1e-5 * (half.abs() @ w.abs().T)  # two roundings to bfloat16; sums of singles
    if bias:
        exact = exact + layer.bias.double()
        rounding = rounding + 2**-7 * (exact.abs() + layer.bias.double().abs())
    assert ((y.double() - exact).abs() <= rounding).all()
    several = made(x[None, :, None])
    torch.testing.assert_close(several[0, :, 0], y, rtol=0, atol=0)


def test_a_net_keeps_what_is_no_linear_layer_and_remembers_what_was_done() -> None:
    torch.manual_seed(0)
    net = awake(CausalTransformer(9, (12,), width=16, depth=2, heads=2, tied=True))
    table, x = net.embed.weight.clone(), torch.randint(9, (3, 8))
    before = net(x).detach()
    quick = int8(net)
    assert quick is net
    assert sum(isinstance(m, Int8) for m in quick.modules()) == 9
    assert not any(isinstance(m, nn.Linear) for m in quick.modules())
    assert torch.equal(quick.embed.weight, table)
    assert not any(p.requires_grad for p in quick.parameters())
    assert not quick.training
    assert F.kl_div(quick(x).log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean") < 0.05
    again = build(spec(quick))
    again.load_state_dict(quick.state_dict())
    assert torch.equal(again(x), quick(x))
    model = int8(Autoregressive(CausalTransformer(9, (12,), width=16, depth=1, heads=2), (12,), 9))
    assert model.log_prob(x).shape == (3,)


class Twice(Net):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.a = self.b = layer


def test_a_layer_in_two_places_stays_one_and_one_that_computes_its_weights_stays_itself() -> None:
    layer = nn.Linear(4, 4)
    net = int8(Twice(layer))
    assert net.a is net.b
    with pytest.raises(UserError, match="no linear layer"):
        int8(spectrally_normalised(awake(CausalTransformer(5, (4,), width=8, depth=1, heads=2))))
    with pytest.raises(UserError, match="no linear layer"):
        int8(Twice(nn.Conv2d(1, 1, 1)))
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        int8(Twice(layer))


@pytest.mark.parametrize("body", ["transformer", "gru"])
@pytest.mark.parametrize("rows", [1, 3])
def test_decoding_is_the_full_pass(body: str, rows: int) -> None:
    torch.manual_seed(0)
    if body == "gru":
        net = int8(awake(CausalSequence(9, GRU(16, 16)), 2))
    else:
        net = int8(awake(CausalTransformer(9, (80,), width=16, depth=2, heads=2, rotary=50.0), 2))
    x = torch.randint(9, (rows, 4))
    made = generate(net, x, steps=70, choose=greedy, codes=9).tokens
    logits = net(made, NONE)[:, 4:]
    taken = logits.gather(2, made[:, 4:, None])[..., 0]
    assert (logits.amax(2) - taken).max() < 0.06  # bfloat16 rounds logits of 4 by up to 0.016


def test_what_it_costs_a_trained_model() -> None:
    """A net trained for a moment on a text of known entropy; nats a symbol before and after, on fresh text."""
    torch.manual_seed(0)
    law = torch.randn(12, 12).mul(2).softmax(-1)

    def text(n: int) -> torch.Tensor:
        x = torch.randint(12, (n, 1))
        for _ in range(23):
            x = torch.cat((x, law[x[:, -1]].multinomial(1)), 1)
        return x

    net = CausalTransformer(12, (24,), width=64, depth=2, heads=4)
    optim = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(120):
        x = text(32)
        loss = F.cross_entropy(net(x).flatten(0, 1), x.flatten())
        optim.zero_grad()
        loss.backward()
        optim.step()
    fresh = text(256)
    with torch.no_grad():
        before = F.cross_entropy(net(fresh).flatten(0, 1), fresh.flatten())
        after = F.cross_entropy(int8(copy.deepcopy(net))(fresh).flatten(0, 1), fresh.flatten())
    print(f"nats={float(before):.4f}")
    print(f"int8_nats={float(after - before):.5f}")
    assert before < 1.6  # it has learnt: a uniform law has 2.48
    assert abs(float(after - before)) < 0.005
