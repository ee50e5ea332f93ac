"""The causal transformer looks back only, its memory changes nothing, rotary positions are relative (A5, A7)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from morphogen.errors import UserError
from morphogen.nets.attention import attend
from morphogen.nets.causal import CausalTransformer
from morphogen.nets.transformer import Attention, Block, Memory, turned

from .test_nets import awake


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (1, 9), (4, 9), (300, 300)])
def test_causal_attention_is_the_masked_softmax(n: int, m: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, rows, 6, dtype=dtype) for rows in (n, m, m))
    scores = q.double() @ k.double().mT / math.sqrt(6)
    for i in range(n):
        scores[:, :, i, m - n + i + 1 :] = -torch.inf  # query i stands at the place m - n + i
    expected = scores.softmax(-1) @ v.double()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.03}[dtype]
    assert (attend(q, k, v, causal=True).double() - expected).abs().max() < tolerance


def test_causal_attention_in_pieces_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 5, 2, 6, 4, dtype=torch.bfloat16)
    whole = attend(q, k, v, causal=True)
    monkeypatch.setattr("morphogen.nets.attention.PIECE", 2 * 36 * 2)
    assert torch.allclose(attend(q, k, v, causal=True), whole, atol=1e-2)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        return float((turned(q, i, 10_000.0) * turned(k, j, 10_000.0)).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-9)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)
    assert torch.equal(turned(q, 0, 10_000.0), q)
    assert turned(q, 5, 10_000.0).norm() == pytest.approx(float(q.norm()), abs=1e-12)
    ones = torch.ones(1, 1, 2, 2, dtype=torch.float64)  # one pair, angles 0 and 1
    assert torch.allclose(
        turned(ones, 0, 50.0)[0, 0, 1],
        torch.tensor([math.cos(1) - math.sin(1), math.cos(1) + math.sin(1)], dtype=torch.float64),
    )


def test_a_block_is_its_formula() -> None:
    block = awake(Block(8, 2, 12, causal=True).double())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    norm1 = F.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias)
    q, k, v = (norm1 @ block.attention.qkv.weight.T + block.attention.qkv.bias).chunk(3, -1)
    heads = [F.scaled_dot_product_attention(*(a[..., i : i + 4] for a in (q, k, v)), is_causal=True) for i in (0, 4)]
    h = x + torch.cat(heads, -1) @ block.attention.out.weight.T + block.attention.out.bias
    inner = (
        F.layer_norm(h, (8,), block.norm2.weight, block.norm2.bias) @ block.mlp.inner.weight.T + block.mlp.inner.bias
    )
    expected = h + F.gelu(inner, approximate="tanh") @ block.mlp.outer.weight.T + block.mlp.outer.bias
    assert torch.allclose(block(x), expected, atol=1e-12)


NETS = {
    "learned positions": {},
    "rotary positions": {"rotary": 100.0},
    "classes": {"classes": 3},
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> CausalTransformer:
    torch.manual_seed(0)
    made = CausalTransformer(5, (3, 4), width=16, depth=2, heads=2, **NETS[request.param])
    return awake(made)


def _cond(net: CausalTransformer, n: int) -> dict[str, torch.Tensor]:
    return {} if net.classes is None else {"label": torch.arange(n) % 3}


def test_no_logit_reads_its_symbol_or_a_later_one(net: CausalTransformer) -> None:
    x = torch.randint(5, (1, 3, 4))
    said = net(x, _cond(net, 1)).flatten(1, 2)  # (1, 12, 5)
    for j in range(12):
        other = x.flatten(1).clone()
        other[0, j] = (other[0, j] + 1) % 5
        changed = (net(other.view_as(x), _cond(net, 1)).flatten(1, 2) != said).any(-1)[0]
        assert not changed[: j + 1].any()
        assert changed[j + 1 :].all()  # and each later one does


def test_going_on_from_memory_is_the_whole_pass(net: CausalTransformer) -> None:
    x = torch.randint(5, (4, 12))
    cond = _cond(net, 4)
    whole = net(x, cond)
    for pieces in ([0] + [1] * 11, [3, 1, 5, 2], [11], [1, 10]):
        memory, said, done = None, [], 0
        for k in pieces:
            logits, memory = net.step(x[:, done : done + k], cond, memory)
            said.append(logits)
            done += k
        assert torch.allclose(torch.cat(said, 1), whole[:, : done + 1], atol=1e-5)


def test_shorter_sequences_and_conditions(net: CausalTransformer) -> None:
    x = torch.randint(5, (2, 12))
    assert torch.allclose(net(x[:, :7], _cond(net, 2)), net(x, _cond(net, 2))[:, :7], atol=1e-5)
    if net.classes is not None:
        same = x[:1].expand(2, -1)
        logits = net(same, {"label": torch.tensor([0, 1])})
        assert (logits[0] != logits[1]).any(-1).all()  # every symbol hears of the class
        assert torch.equal(net(same, {}), net(same, {"label": torch.tensor([0, 1]), "null": torch.ones(2).bool()}))


def test_memory_has_room_for_its_length() -> None:
    attention = Attention(8, 2, causal=True)
    memory = Memory(5)
    attention(torch.randn(2, 3, 8), memory)
    assert memory.used == 3
    attention(torch.randn(2, 2, 8), memory)
    assert memory.used == 5


def test_mistakes_are_said() -> None:
    net = CausalTransformer(4, (6,), width=8, depth=1, heads=2)
    with pytest.raises(UserError, match="alphabet is 0 to 3"):
        net(torch.tensor([[0, 4, 1]]))
    with pytest.raises(UserError, match="at most 6 symbols"):
        net(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(UserError, match="make it even"):
        Attention(9, 3, rotary=100.0)
    with pytest.raises(UserError, match="use a divisor"):
        CausalTransformer(4, (6,), width=8, heads=3)
    with pytest.raises(UserError, match="at least 1"):
        CausalTransformer(0, (6,))
