"""Recurrences are torch.nn's with copied weights, in outputs and gradients; memories are exact (oracles A5)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from morphogen.errors import UserError
from morphogen.nets.causal import CausalSequence
from morphogen.nets.recurrent import GRU, LSTM, RNN, Bidirectional, Recurrence, reversal

KINDS = {"RNN": (RNN, nn.RNN), "LSTM": (LSTM, nn.LSTM), "GRU": (GRU, nn.GRU)}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return str(request.param)


def pair(kind: str, inputs: int = 3, width: int = 5, depth: int = 2, **more: object) -> tuple[Recurrence, nn.Module]:
    ours, theirs = KINDS[kind][0](inputs, width, depth), KINDS[kind][1](inputs, width, depth, batch_first=True, **more)
    ours.load_state_dict(theirs.state_dict())  # names and order of the weights are the same
    return ours.double(), theirs.double()


@pytest.mark.parametrize("written_out", [False, True])
def test_outputs_and_gradients_are_torchs(kind: str, written_out: bool) -> None:
    ours, theirs = pair(kind)
    x = torch.randn(4, 7, 3, dtype=torch.float64, requires_grad=True)
    begins = torch.zeros(4, 7, dtype=torch.bool) if written_out else None  # no row begins anew: only the loop is used
    y, memory = ours(x, begins=begins)
    expected, last = theirs(x)
    states = torch.stack(last if kind == "LSTM" else (last,), 1)  # (depth, states, B, width)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(memory, states.permute(2, 0, 1, 3).flatten(1), rtol=0, atol=1e-12)
    found = torch.autograd.grad((y.square().sum() + memory.sum()), [x, *ours.parameters()])
    wanted = torch.autograd.grad(expected.square().sum() + states.sum(), [x, *theirs.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_single_precision_too(kind: str) -> None:
    ours, theirs = pair(kind, depth=1)
    x = torch.randn(2, 9, 3)
    torch.testing.assert_close(ours.float()(x)[0], theirs.float()(x)[0], rtol=0, atol=1e-6)


def test_published_numbers_of_weights() -> None:
    assert sum(p.numel() for p in LSTM(10, 20).parameters()) == 2560
    assert sum(p.numel() for p in GRU(10, 20).parameters()) == 1920


def test_going_on_from_memory_is_the_whole(kind: str) -> None:
    ours, _ = pair(kind)
    x = torch.randn(3, 8, 3, dtype=torch.float64)
    whole, last = ours(x)
    for start in (None, torch.zeros(3, ours.size, dtype=torch.float64)):  # zeros are the beginning
        memory, said = start, []
        for t in range(8):
            y, memory = ours.step(x[:, t], memory)
            said.append(y)
        torch.testing.assert_close(torch.stack(said, 1), whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(memory, last, rtol=0, atol=1e-12)


def test_an_episode_that_begins_forgets(kind: str) -> None:
    ours, _ = pair(kind)
    x, begins = torch.randn(2, 6, 3, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.bool)
    begins[0, 4] = begins[1, 1] = begins[1, 5] = True
    y, memory = ours(x, torch.randn(2, ours.size, dtype=torch.float64), begins=begins)
    torch.testing.assert_close(y[0, 4:], ours(x[:1, 4:])[0][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(y[1, 1:5], ours(x[1:, 1:5])[0][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(memory[1], ours(x[1:, 5:])[1][0], rtol=0, atol=1e-12)


def test_padding_is_not_read(kind: str) -> None:
    ours, theirs = pair(kind)
    x, lengths = torch.randn(3, 6, 3, dtype=torch.float64), torch.tensor([6, 1, 4])
    _, memory = ours(x, lengths=lengths)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    last = theirs(packed)[1]
    states = torch.stack(last if kind == "LSTM" else (last,), 1)
    torch.testing.assert_close(memory, states.permute(2, 0, 1, 3).flatten(1), rtol=0, atol=1e-12)


def test_truncated_back_propagation_is_that_of_the_last_stretch(kind: str) -> None:
    ours, _ = pair(kind)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    _, memory = ours(x[:, :4])
    cut = torch.autograd.grad(ours(x[:, 4:], memory.detach())[0].sum(), ours.weight_hh_l0)[0]
    whole = torch.autograd.grad(ours(x[:, 4:], memory)[0].sum(), ours.weight_hh_l0)[0]
    constant = memory.detach().clone()
    torch.testing.assert_close(cut, torch.autograd.grad(ours(x[:, 4:], constant)[0].sum(), ours.weight_hh_l0)[0])
    assert (cut - whole).abs().max() > 1e-3


@pytest.mark.parametrize("ragged", [False, True])
def test_both_directions_are_torchs(kind: str, ragged: bool) -> None:
    torch.manual_seed(1)
    theirs = KINDS[kind][1](3, 5, batch_first=True, bidirectional=True)
    ours = Bidirectional(KINDS[kind][0](3, 5), KINDS[kind][0](3, 5))
    weights = theirs.state_dict()
    ours.left.load_state_dict({k: v for k, v in weights.items() if "reverse" not in k})
    ours.right.load_state_dict({k.removesuffix("_reverse"): v for k, v in weights.items() if "reverse" in k})
    x, lengths = torch.randn(3, 6, 3), torch.tensor([6, 2, 5])
    if not ragged:
        torch.testing.assert_close(ours(x), theirs(x)[0], rtol=0, atol=1e-6)
        return
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    there = torch.arange(6) < lengths[:, None]
    torch.testing.assert_close(ours(x, lengths=lengths)[there], expected[there], rtol=0, atol=1e-6)


def test_turning_round_is_its_own_inverse() -> None:
    assert reversal(4, torch.tensor([3, 0, 4]), torch.device("cpu")).tolist() == [
        [2, 1, 0, 3],
        [0, 1, 2, 3],
        [3, 2, 1, 0],
    ]


def test_half_precision_is_close(kind: str) -> None:
    ours = KINDS[kind][0](3, 8, 2)
    x = torch.randn(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (ours(x)[0].float() - ours(x.clone())[0].float()).abs().max() == 0
        half = ours(x)[0].float()
    assert (half - ours(x)[0]).abs().max() < 0.05


def test_empty_and_mistakes() -> None:
    y, memory = GRU(3, 4)(torch.randn(2, 0, 3))
    assert y.shape == (2, 0, 4)
    assert not memory.any()
    for bad in (lambda: LSTM(0, 4), lambda: LSTM(3, 4, dropout=1.0), lambda: CausalSequence(4, GRU(3, 5), tied=True)):
        with pytest.raises(UserError):
            bad()
    with pytest.raises(UserError, match="let both read as many"):
        Bidirectional(GRU(3, 4), GRU(2, 4))
