"""Encoders and encoder-decoders: torch's own layers with copied weights, padding, memory (oracle A7)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from morphogen.core import Noise
from morphogen.errors import UserError
from morphogen.nets.causal import CausalTransformer
from morphogen.nets.encoder import EncoderDecoder, TransformerEncoder
from morphogen.nets.memory import past
from morphogen.nets.positions import ALiBi, T5Relative
from morphogen.nets.transformer import Block, Design

from .test_nets import awake


def copied(block: Block, theirs: nn.Module) -> None:
    """torch's names for the weights of a block."""
    pairs = {"attention": "self_attn", "cross": "multihead_attn"}
    weights: dict[str, Tensor] = {}
    for part, name in pairs.items():
        if getattr(block, part) is None:
            continue
        other = getattr(theirs, name)
        for kind in ("weight", "bias"):
            qkv = getattr(other, f"in_proj_{kind}")
            if part == "attention":
                weights[f"attention.qkv.{kind}"] = qkv
            else:
                weights[f"cross.q.{kind}"], weights[f"cross.kv.{kind}"] = qkv.split((8, 16))
            weights[f"{part}.out.{kind}"] = getattr(other.out_proj, kind)
    norms = {"norm1": "norm1", "norm2": "norm2"} if block.cross is None else {"norm1": "norm1", "norm3": "norm2"}
    norms["norm2"] = "norm2" if block.cross is None else "norm3"
    for ours, name in {**norms, "mlp.inner": "linear1", "mlp.outer": "linear2"}.items():
        for kind in ("weight", "bias"):
            weights[f"{ours}.{kind}"] = theirs.get_parameter(f"{name}.{kind}")
    block.load_state_dict(weights)


@pytest.mark.parametrize("after", [True, False])
def test_blocks_are_torchs(after: bool) -> None:
    torch.manual_seed(0)
    design = Design(after=after, activation="relu")
    options = {"dropout": 0.0, "batch_first": True, "norm_first": not after}
    plain = awake(nn.TransformerEncoderLayer(8, 2, 12, **options))
    ours = Block(8, 2, 12, design)
    copied(ours, plain)
    x, c = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=1e-5)
    crossing = awake(nn.TransformerDecoderLayer(8, 2, 12, **options))
    ours = Block(8, 2, 12, design, context=8)
    copied(ours, crossing)
    there = torch.arange(7) < torch.tensor([[7], [2], [5]])
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    expected = crossing(x, c, tgt_mask=mask, memory_key_padding_mask=~there, tgt_is_causal=True)
    said = ours(x, past(5, None, 2, 4, None, x.device), None, ours.across(c), there)
    torch.testing.assert_close(said, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", [None, ALiBi(), T5Relative(2, buckets=8, furthest=6, both=True)])
@pytest.mark.parametrize("window", [None, 3])
def test_padding_is_not_read(positions: object, window: int | None) -> None:
    torch.manual_seed(0)
    net = awake(TransformerEncoder(6, 9, width=8, depth=2, heads=2, positions=positions, design=Design(window=window)))
    x, lengths = torch.randint(6, (3, 9)), torch.tensor([9, 4, 1])
    there = torch.arange(9) < lengths[:, None]
    said = net(x, there)
    assert said.isfinite().all()
    for i, n in enumerate(lengths):
        torch.testing.assert_close(said[i, :n], net(x[i : i + 1, :n])[0], rtol=0, atol=1e-5)


def test_a_window_hides_what_is_far() -> None:
    torch.manual_seed(0)
    net = awake(TransformerEncoder(6, 9, width=8, depth=1, heads=2, design=Design(window=3)))
    x = torch.randint(6, (1, 9))
    other = x.clone()
    other[0, 4] = (other[0, 4] + 1) % 6
    changed = (net(x) != net(other)).any(-1)[0]
    assert changed.tolist() == [False, False, True, True, True, True, True, False, False]


class Nowhere(ALiBi):
    """A scheme that says nothing."""

    def bias(self, at: Tensor, seen: Tensor, heads: int) -> Tensor:
        return 0 * super().bias(at, seen, heads)


def test_without_positions_an_order_says_nothing() -> None:
    torch.manual_seed(0)
    net = awake(TransformerEncoder(6, 9, width=8, depth=2, heads=2, positions=Nowhere()))
    x, order = torch.randint(6, (2, 7)), torch.randperm(7)
    torch.testing.assert_close(net(x[:, order]), net(x)[:, order], rtol=0, atol=1e-5)


def pair(**more: object) -> EncoderDecoder:
    torch.manual_seed(0)
    encoder = TransformerEncoder(6, 8, width=8, depth=2, heads=2)
    decoder = CausalTransformer(6, (7,), width=8, depth=2, heads=2, source=8, tied=True)
    return awake(EncoderDecoder(encoder, decoder, **more))


def test_the_source_is_read_once_and_its_padding_is_not() -> None:
    net = pair(tied=True)
    source, lengths, x = torch.randint(6, (3, 8)), torch.tensor([8, 3, 5]), torch.randint(6, (3, 7))
    cond = {"source": source, "lengths": lengths}
    whole = net(x, cond)
    for i, n in enumerate(lengths):
        alone = net(x[i : i + 1], {"source": source[i : i + 1, :n]})
        torch.testing.assert_close(whole[i], alone[0], rtol=0, atol=1e-5)
    memory, said, calls = net.memory(), [], []
    net.encoder.register_forward_hook(lambda *_: calls.append(1))
    for t in range(7):
        step = x[:, :0] if t == 0 else x[:, t - 1 : t]
        logits, memory = net.step(step, cond, memory, begin=t == 0)
        said.append(logits)
    torch.testing.assert_close(torch.cat(said, 1), whole, rtol=0, atol=1e-5)
    assert len(calls) == 1
    other = {"source": (source + 1) % 6, "lengths": lengths}
    assert (net(x, other) - whole).abs().amin(-1).max() > 0
    assert net.encoder.embed.weight is net.decoder.embed.weight


def test_a_copying_pair_learns_to_copy() -> None:
    """An encoder-decoder that cannot look across would stay at ln 6: 1.79 nats a symbol."""
    net = pair()
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(200):
        source = Noise.seeded(step, 32).integers(6, 3)
        logits = net(source, {"source": source})
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), source.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert float(loss.detach()) < 0.9


def test_mistakes_are_said() -> None:
    net = pair()
    with pytest.raises(UserError, match="reads cond"):
        net(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(UserError, match="at most 8"):
        net.encoder(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(UserError, match="use more codes"):
        net.encoder(torch.full((1, 2), 6))
    with pytest.raises(UserError, match="looks across to nothing"):
        EncoderDecoder(net.encoder, CausalTransformer(6, (7,), width=8, heads=2))
    with pytest.raises(UserError, match="none is given"):
        net.decoder(torch.zeros(1, 3, dtype=torch.long))
