"""Causal convolutions look back as far as their formula says and no further (oracles A5)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from morphogen.errors import UserError
from morphogen.nets.dilated import TCN, CausalConvolution, Dilated, WaveNet

from .test_nets import awake

NETS = {
    "WaveNet": lambda: WaveNet(3, 6, kernel=3, largest=4, cycles=2, skip=5),
    "TCN": lambda: TCN(3, 6, depth=2, kernel=3),
    "TCN of one width": lambda: TCN(6, 6, depth=3, kernel=2),
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> Dilated:
    torch.manual_seed(0)
    return awake(NETS[request.param]()).double()


def test_a_convolution_is_its_sum() -> None:
    torch.manual_seed(0)
    conv = awake(CausalConvolution(2, 3, 3, 2)).double()
    x = torch.randn(2, 2, 9, dtype=torch.float64)
    y, _ = conv(x)
    for t in range(9):
        expected = conv.bias.clone().expand(2, 3)
        for j in range(3):
            if t - 2 * j >= 0:
                expected = expected + x[:, :, t - 2 * j] @ conv.weight[:, :, 2 - j].T
        torch.testing.assert_close(y[:, :, t], expected)


@pytest.mark.parametrize(
    ("kernel", "largest", "cycles", "field"), [(3, 16, 2, 125), (2, 512, 3, 3070)]
)  # 2 cycles of 1..16, k = 3; 3 cycles of 1..512, k = 2
def test_published_receptive_fields(kernel: int, largest: int, cycles: int, field: int) -> None:
    with torch.device("meta"):
        assert WaveNet(1, 2, kernel=kernel, largest=largest, cycles=cycles).field == field


def test_the_field_is_what_is_read(net: Dilated) -> None:
    n = net.field + 4
    x = torch.randn(1, n, net.inputs, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x)[0][0, -1].sum(), x)
    read = grad[0].abs().sum(-1) > 0
    assert read[-net.field :].any()
    assert not read[: -net.field].any()
    assert read[-net.field]
    (grad,) = torch.autograd.grad(net(x)[0][0, 5].sum(), x)
    assert not grad[0, 6:].any()


def test_going_on_from_memory_is_the_whole(net: Dilated) -> None:
    x = torch.randn(2, 20, net.inputs, dtype=torch.float64)
    whole, last = net(x)
    zeros = {k: torch.zeros_like(v) for k, v in last.items()}
    for pieces, start in (([1] * 20, None), ([3, 1, 16], None), ([7, 13], zeros)):
        memory, said, done = start, [], 0
        for k in pieces:
            y, memory = net(x[:, done : done + k], memory)
            said.append(y)
            done += k
        torch.testing.assert_close(torch.cat(said, 1), whole, rtol=0, atol=1e-12)
        for name, past in memory.items():
            torch.testing.assert_close(past, last[name], rtol=0, atol=1e-12)


def test_padding_is_not_remembered(net: Dilated) -> None:
    x, lengths = torch.randn(3, 9, net.inputs, dtype=torch.float64), torch.tensor([9, 1, 4])
    _, memory = net(x, lengths=lengths)
    more = torch.randn(3, 5, net.inputs, dtype=torch.float64)
    said, _ = net(more, memory)
    for i, n in enumerate(lengths):
        alone, _ = net(torch.cat((x[i : i + 1, :n], more[i : i + 1]), 1))
        torch.testing.assert_close(said[i], alone[0, n:], rtol=0, atol=1e-12)


def test_a_wavenet_layer_is_its_formula() -> None:
    net = awake(WaveNet(2, 3, largest=1)).double()
    x = torch.randn(1, 5, 2, dtype=torch.float64)
    h = F.linear(x, net.first.weight[:, :, 0], net.first.bias)
    before = F.pad(h, (0, 0, 1, 0))[:, :-1]
    w = net.gates[0].weight
    value, gate = (before @ w[:, :, 0].T + h @ w[:, :, 1].T + net.gates[0].bias).chunk(2, -1)
    skip = F.linear(value.tanh() * gate.sigmoid(), net.after[0].weight[3:, :, 0], net.after[0].bias[3:])
    expected = F.relu(F.linear(F.relu(skip), net.last.weight[:, :, 0], net.last.bias))
    torch.testing.assert_close(net(x)[0], expected)


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="power of 2"):
        WaveNet(1, 2, largest=12)
    with pytest.raises(UserError, match="kernel of 2"):
        TCN(1, 2, kernel=1)
    with pytest.raises(UserError, match="at least 1"):
        CausalConvolution(1, 0)
