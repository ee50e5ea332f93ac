"""The causal transformer looks back only, its memory changes nothing, rotary positions are relative (A5, A7)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from morphogen.errors import UserError
from morphogen.nets.attention import CAUSAL, attend
from morphogen.nets.causal import Causal, CausalSequence, CausalTransformer
from morphogen.nets.dilated import TCN, WaveNet
from morphogen.nets.memory import Memory, past
from morphogen.nets.positions import ALiBi, Rotary, Sinusoids, T5Relative
from morphogen.nets.recurrent import GRU, LSTM
from morphogen.nets.transformer import LLAMA, Attention, Block, Design

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 64, 65, 200])
def test_causal_attention_in_blocks_has_the_gradients_of_the_masked_softmax(n: int, dtype: torch.dtype) -> None:
    """Queries, keys and values lie interleaved, as one product leaves them, and share heads."""
    torch.manual_seed(n)
    assert n <= CAUSAL[dtype]
    whole = torch.randn(3, n, 8, 6, dtype=dtype, requires_grad=True)
    q, k, v = whole.transpose(1, 2).split((4, 2, 2), 1)
    y, dy = attend(q, k, v, causal=True), torch.randn(3, 4, n, 6, dtype=dtype)
    (found,) = torch.autograd.grad(y, whole, dy)
    exact = whole.detach().double().requires_grad_(True)
    q, k, v = exact.transpose(1, 2).split((4, 2, 2), 1)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(n, n).tril() > 0)
    (wanted,) = torch.autograd.grad(expected, exact, dy.double())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert (y.double() - expected).abs().max() < tolerance
    assert (found.double() - wanted).abs().max() < tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [7, 70])
def test_attention_under_autocast_is_that_in_half_precision(n: int, causal: bool, mixed: bool) -> None:
    """What comes in single precision, all or some of it, goes back as it came: as torch's own kernel does it."""
    found = []
    for own in (attend, lambda q, k, v, causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal)):
        torch.manual_seed(n)
        q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for _ in range(3))
        with torch.autocast("cpu", torch.bfloat16):
            y = own(q, k, v.bfloat16() if mixed and own is attend else v, causal=causal)
        (y.float() * torch.linspace(-1, 1, 8)).sum().backward()
        found.append((y.dtype, y.float(), q.grad, k.grad, v.grad))
    (kind, *mine), (theirs, *others) = found
    assert kind == theirs == torch.bfloat16
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CausalTransformer(5, (7,), width=8, depth=1, heads=2),
        lambda: CausalSequence(5, LSTM(6, 8)),
        lambda: CausalSequence(5, GRU(6, 8)),
        lambda: CausalSequence(5, WaveNet(6, 2)),
    ],
)
def test_a_net_of_no_memory_has_its_shapes(make: Callable[[], Causal]) -> None:
    """On the meta device, which knows no autocast."""
    with torch.device("meta"):
        assert make()(torch.zeros(2, 7, dtype=torch.long)).shape == (2, 7, 5)


def test_a_block_is_its_formula() -> None:
    block = awake(Block(8, 2, 12).double())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    norm1 = F.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias)
    q, k, v = (norm1 @ block.attention.qkv.weight.T + block.attention.qkv.bias).chunk(3, -1)
    heads = [F.scaled_dot_product_attention(*(a[..., i : i + 4] for a in (q, k, v)), is_causal=True) for i in (0, 4)]
    h = x + torch.cat(heads, -1) @ block.attention.out.weight.T + block.attention.out.bias
    inner = (
        F.layer_norm(h, (8,), block.norm2.weight, block.norm2.bias) @ block.mlp.inner.weight.T + block.mlp.inner.bias
    )
    expected = h + F.gelu(inner, approximate="tanh") @ block.mlp.outer.weight.T + block.mlp.outer.bias
    assert torch.allclose(block(x, past(5, None, 2, 4, None, x.device)), expected, atol=1e-12)


NETS = {
    "learned positions": {},
    "rotary positions": {"rotary": 100.0},
    "classes": {"classes": 3},
    "sinusoids": {"positions": Sinusoids()},
    "alibi": {"positions": ALiBi()},
    "t5": {"positions": T5Relative(2, buckets=6, furthest=7)},
    "llama": {"design": Design(norm="rms", activation="silu", gated=True, bias=False, kv_heads=1), "rotary": 50.0},
    "norms": {"design": Design(after=True, qk_norm=True, head=6), "tied": True, "begin": 2},
    "window": {"design": Design(window=4), "rotary": 50.0},
    "window, alibi, shared heads": {"design": Design(window=3, kv_heads=1), "positions": ALiBi()},
    "window, t5": {"design": Design(window=5), "positions": T5Relative(2, buckets=4, furthest=3)},
}
BODIES = {
    "gru": lambda: CausalSequence(5, GRU(6, 7, 2), classes=3),
    "lstm": lambda: CausalSequence(5, LSTM(6, 6), tied=True),
    "wavenet": lambda: CausalSequence(5, WaveNet(6, 7, largest=4, cycles=2)),
    "tcn": lambda: CausalSequence(5, TCN(6, 7, depth=3, kernel=2), classes=3),
}


@pytest.fixture(params=[*NETS, *BODIES])
def net(request: pytest.FixtureRequest) -> Causal:
    torch.manual_seed(0)
    if request.param in BODIES:
        return awake(BODIES[request.param]())
    return awake(CausalTransformer(5, (3, 4), width=16, depth=2, heads=2, **NETS[request.param]))


def _cond(net: Causal, n: int) -> dict[str, torch.Tensor]:
    return {} if net.classes is None else {"label": torch.arange(n) % 3}


def test_no_logit_reads_its_symbol_or_a_later_one(net: Causal) -> None:
    x = torch.randint(5, (1, 3, 4))
    said = net(x, _cond(net, 1)).flatten(1, 2)  # (1, 12, 5)
    for j in range(12):
        other = x.flatten(1).clone()
        other[0, j] = (other[0, j] + 1) % 5
        changed = (net(other.view_as(x), _cond(net, 1)).flatten(1, 2) != said).any(-1)[0]
        assert not changed[: j + 1].any()
        reach = 12  # each later one does, as far as a net of two layers with a window, or a convolution, reaches
        if isinstance(net, CausalTransformer) and net.design.window:
            reach = 2 * (net.design.window - 1) + 1
        elif isinstance(net, CausalSequence) and isinstance(net.body, TCN | WaveNet):
            reach = net.body.field
        assert changed[j + 1 : j + 1 + reach].all()
        assert not changed[j + 1 + reach :].any()


def test_going_on_from_memory_is_the_whole_pass(net: Causal) -> None:
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


def test_shorter_sequences_and_conditions(net: Causal) -> None:
    x = torch.randint(5, (2, 12))
    assert torch.allclose(net(x[:, :7], _cond(net, 2)), net(x, _cond(net, 2))[:, :7], atol=1e-5)
    if net.classes is not None:
        same = x[:1].expand(2, -1)
        logits = net(same, {"label": torch.tensor([0, 1])})
        assert (logits[0] != logits[1]).any(-1).all()  # every symbol hears of the class
        assert torch.equal(net(same, {}), net(same, {"label": torch.tensor([0, 1]), "null": torch.ones(2).bool()}))


def test_rows_of_any_lengths_are_as_if_alone(net: Causal) -> None:
    """Ragged prompts, in chunks, then symbols one by one: padding, batch and chunks change nothing (1e-5)."""
    x, lengths = torch.randint(5, (4, 12)), torch.tensor([5, 0, 2, 7])
    cond = _cond(net, 4)
    for chunks in ([7], [3, 1, 3], [0, 2, 5]):
        memory, done = net.memory(), 0
        last = torch.zeros(4, 5)
        for i, k in enumerate(chunks):
            there = (lengths - done).clamp(0, k)
            begin = i == 0
            logits, memory = net.step(x[:, done : done + k], cond, memory, lengths=there, begin=begin)
            row = there - 1 + begin
            last = torch.where((row >= 0)[:, None], logits[torch.arange(4), row.clamp(min=0)], last)
            done += k
        said = [last]
        for t in range(4):
            logits, memory = net.step(x[torch.arange(4), lengths + t][:, None], cond, memory)
            said.append(logits[:, -1])
        for i, n in enumerate(lengths.tolist()):
            alone = net(x[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()})[0]
            torch.testing.assert_close(torch.stack(said, 1)[i, : 12 - n], alone[n : n + 5], rtol=0, atol=1e-5)


def test_a_beginning_can_be_left_out() -> None:
    """GPT-2 is often prompted without <|endoftext|>: its first symbol then stands at the first place."""
    torch.manual_seed(0)
    net = awake(CausalTransformer(5, (8,), width=16, depth=2, heads=2, begin=4))
    x = torch.randint(5, (2, 6))
    begun, _ = net.step(x)
    spelled, _ = net.step(torch.cat((torch.full((2, 1), 4), x), 1), begin=False)
    torch.testing.assert_close(begun, spelled, rtol=0, atol=1e-6)
    bare, _ = net.step(x, begin=False)
    assert bare.shape == (2, 6, 5)
    assert (bare - begun[:, 1:]).abs().max() > 1e-2


def test_memory_has_room_for_its_length() -> None:
    attention, memory = Attention(8, 2), Memory(1, 5)
    for n in (3, 2):
        _, sight = memory.look(2, n, None, 2, 4, torch.device("cpu"))
        attention(torch.randn(2, n, 8), sight, memory.layers[0])
        memory.advance()
    assert memory.used == 5
    with pytest.raises(UserError, match="room for 5"):
        memory.look(2, 1, None, 2, 4, torch.device("cpu"))


@pytest.mark.parametrize("window", [None, 4])
def test_going_back_and_changing_rows(window: int | None) -> None:
    """A rejected draft leaves nothing behind, and beams take each other's places."""
    torch.manual_seed(0)
    net = awake(CausalTransformer(5, (40,), width=16, depth=2, heads=2, rotary=50.0, design=Design(window=window)))
    x = torch.randint(5, (3, 20))
    memory = net.memory(slack=3)
    net.step(x[:, :9], memory=memory, begin=True)
    net.step(torch.randint(5, (3, 3)), memory=memory, begin=False)  # a draft of 3
    memory.back(torch.tensor([10, 12, 11]))  # what begins is one more: 0, 2 and 1 symbols of the draft are kept
    kept = torch.tensor([9, 11, 10])
    x[1, 9:11], x[2, 9] = torch.tensor([1, 1]), 1
    whole = net(x)
    memory = net.memory(slack=3)
    net.step(x[:, :9], memory=memory, begin=True)
    net.step(torch.cat((x[:, 9:11], torch.full((3, 1), 3)), 1), memory=memory, begin=False)
    memory.back(kept + 1)
    for t in range(3):
        logits, _ = net.step(x[torch.arange(3), kept + t][:, None], memory=memory, begin=False)
        for i in range(3):
            torch.testing.assert_close(logits[i, 0], whole[i, kept[i] + t + 1], rtol=0, atol=1e-5)
    turned_round = memory.rows(torch.tensor([2, 0, 0]))
    a, _ = net.step(torch.tensor([[1], [2], [2]]), memory=turned_round, begin=False)
    b, _ = net.step(torch.tensor([[2], [4], [1]]), memory=memory, begin=False)
    torch.testing.assert_close(a, b[[2, 0, 0]], rtol=0, atol=1e-6)
    if window:
        with pytest.raises(UserError, match="more slack"):
            memory.back(torch.tensor([5, 5, 5]))


def test_eviction_is_the_masked_dense_result() -> None:
    """A window's cells are written over; hiding what is far in the whole pass says the same, long after that."""
    torch.manual_seed(0)
    net = awake(CausalTransformer(5, (60,), width=16, depth=2, heads=2, rotary=50.0, design=Design(window=5)))
    x = torch.randint(5, (2, 60))
    whole, memory, said = net(x), net.memory(), []
    assert memory.cells == 5
    for start, k in ((0, 7), (7, 1), (8, 13), *((t, 1) for t in range(21, 59))):
        logits, _ = net.step(x[:, start : start + k], memory=memory, begin=start == 0)
        said.append(logits)
    torch.testing.assert_close(torch.cat(said, 1), whole, rtol=0, atol=1e-5)


def test_dropout_is_of_training_alone() -> None:
    net = CausalTransformer(5, (6,), width=16, heads=2, design=Design(dropout=0.5))
    x = torch.randint(5, (2, 6))
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


def test_mistakes_are_said() -> None:
    net = CausalTransformer(4, (6,), width=8, depth=1, heads=2)
    with pytest.raises(UserError, match="alphabet is 0 to 3"):
        net(torch.tensor([[0, 4, 1]]))
    with pytest.raises(UserError, match="at most 6 symbols"):
        net(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(UserError, match="make it even"):
        CausalTransformer(4, (6,), width=9, heads=3, rotary=100.0)(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(UserError, match="use a divisor"):
        CausalTransformer(4, (6,), width=8, heads=3)
    with pytest.raises(UserError, match="at least 1"):
        CausalTransformer(0, (6,))
    with pytest.raises(UserError, match="give one of the two"):
        CausalTransformer(4, (6,), rotary=1.0, positions=Rotary())
    with pytest.raises(UserError, match="did you mean 'rms'"):
        Design(norm="rmsnorm")
    with pytest.raises(UserError, match="did you mean 'silu'"):
        Design(activation="sillu")
    with pytest.raises(UserError, match="use a divisor"):
        Attention(8, 4, Design(kv_heads=3))
    with pytest.raises(UserError, match="not with 7"):
        CausalTransformer(4, (6,), begin=7)
    assert LLAMA.gated
