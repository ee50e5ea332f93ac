"""MADE reads what it may and nothing else, in any order (oracle A5: a strictly triangular Jacobian)."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.errors import UserError
from morphogen.nets.masked import MADE

from .test_nets import awake


def _reads(net: MADE, cond: dict[str, torch.Tensor]) -> torch.Tensor:
    """(D, D): whether output i depends on input j, found by autograd at a random point."""
    x = torch.randn(net.features, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None], cond)[0], x)  # (D, outputs, D)
    return (jacobian != 0).any(1)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(5)), st.lists(st.integers(1, 11), min_size=1, max_size=3), st.integers(1, 3))
def test_the_jacobian_is_strictly_triangular_in_the_order(order, widths, outputs) -> None:  # type: ignore[no-untyped-def]
    net = awake(MADE(5, outputs, tuple(widths), order=tuple(order), activation="tanh").double())
    reads = _reads(net, {})
    for i, j in itertools.product(range(5), range(5)):
        assert not reads[i, j] or order[j] < order[i]


@pytest.mark.parametrize("conditional", [False, True])
def test_wide_layers_read_everything_that_they_may(conditional: bool) -> None:
    order = (2, 0, 3, 1)
    net = awake(MADE(4, 2, (24, 24), order=order, activation="tanh", classes=3 if conditional else 0).double())
    cond = {"label": torch.tensor([1])} if conditional else {}
    expected = torch.tensor([[order[j] < order[i] for j in range(4)] for i in range(4)])
    assert torch.equal(_reads(net, cond), expected)


def test_every_output_reads_the_conditions() -> None:
    net = awake(MADE(3, 2, (9,), classes=2, context=4).double())
    x, label, context = (
        torch.zeros(1, 3, dtype=torch.float64),
        torch.tensor([0]),
        torch.zeros(1, 4, dtype=torch.float64),
    )
    said = net(x, {"label": label, "context": context})
    assert ((net(x, {"label": label + 1, "context": context}) - said) != 0).any(2).all()
    assert ((net(x, {"label": label, "context": context + 1}) - said) != 0).any(2).all()
    single = awake(MADE(1, 2, (4,), classes=2).double())
    assert not torch.equal(single(x[:, :1], {"label": label}), single(x[:, :1], {"label": label + 1}))


def test_initial_outputs_have_the_variance_of_what_they_read() -> None:
    torch.manual_seed(0)
    net = MADE(64, 1, (512, 512), activation="tanh")
    out = net(torch.randn(2000, 64))[:, 1:].detach()
    assert 0.1 < float(out.var()) < 1.0
    spread = out.var(0).squeeze()
    assert float(spread[-8:].mean() / spread[:8].mean()) < 3  # late outputs read many units, early ones few


def test_integers_are_read_as_numbers() -> None:
    net = MADE(4, 2, (8,))
    x = torch.randint(2, (3, 4))
    assert torch.equal(net(x), net(x.float()))


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="no permutation of 0 to 2"):
        MADE(3, order=(0, 1, 1))
    with pytest.raises(UserError, match="at least 1"):
        MADE(3, widths=())
    with pytest.raises(UserError, match="did you mean 'relu'"):
        MADE(3, activation="rellu")
    with pytest.raises(UserError, match="reads the condition 'context'"):
        MADE(3, context=2)(torch.zeros(1, 3))
