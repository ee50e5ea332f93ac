"""Vectors of texts in a language model: a function of the text alone, whatever it is read with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from morphogen.errors import UserError
from morphogen.language import Bytes
from morphogen.language.contextual import encode, read
from morphogen.nets.causal import CausalSequence, CausalTransformer
from morphogen.nets.recurrent import LSTM

TEXTS = ["to be", "or not to be, that", "", "é", "that is the question"]


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_vectors_do_not_depend_on_the_batch(kind: str) -> None:
    torch.manual_seed(0)
    net: Any = CausalSequence(256, LSTM(16, 16))
    if kind == "transformer":
        net = CausalTransformer(256, (24,), width=16, depth=2, heads=2)
    tokens = Bytes()
    alone = [read(net, tokens, [t])[0] for t in TEXTS]
    for batch in (1, 2, 8):
        for a, b in zip(alone, read(net, tokens, TEXTS, batch=batch), strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, atol=1e-5)
    assert [len(v) for v in alone] == [len(t.encode()) for t in TEXTS]
    begun = read(net, tokens, [TEXTS[1][:7]])[0]
    assert torch.allclose(begun, alone[1][:7], atol=1e-5)  # what comes later is not seen
    assert not torch.allclose(alone[0][1], read(net, tokens, ["xo be"])[0][1])  # what is before is
    kept = [t for t in TEXTS if t]
    assert torch.allclose(encode(net, tokens, kept), torch.stack([v.mean(0) for v in alone if len(v)]), atol=1e-5)
    assert net.training
    bare = read(net, tokens, TEXTS, begin=False)  # as if nothing began a sequence
    assert [v.shape for v in bare] == [v.shape for v in alone]
    assert torch.allclose(bare[0], read(net, tokens, ["to be"], begin=False)[0], atol=1e-5)
    assert not torch.allclose(bare[0], alone[0], atol=1e-3)
    assert read(net, tokens, [""], begin=False)[0].shape == alone[2].shape
    for ask in (read, encode):
        with pytest.raises(UserError, match="a list of them"):
            ask(net, tokens, "to be")
    with pytest.raises(UserError, match="no token"):
        encode(net, tokens, TEXTS)
    with pytest.raises(UserError, match="does not say"):
        read(torch.nn.Linear(1, 1), tokens, ["a"])
    if kind == "transformer":
        with pytest.raises(UserError, match="more than the 23"):
            read(net, tokens, ["x" * 24])
