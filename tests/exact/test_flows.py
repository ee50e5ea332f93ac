"""Bijections invert, their log-determinants are those of the Jacobian, and a flow's density sums to one (oracle A3)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from morphogen.core import Codec, LogProb, Noise, Samples, can
from morphogen.errors import UserError
from morphogen.flows import (
    AffineAutoregressive,
    AffineCoupling,
    Bijection,
    Composition,
    Flatten,
    Flow,
    Inverse,
    Permutation,
    iaf,
    maf,
    realnvp,
)
from morphogen.nets.masked import MADE
from morphogen.nets.mlp import MLP
from morphogen.spec import build, spec

from .test_nets import awake


def _double(bijection: torch.nn.Module) -> torch.nn.Module:
    return awake(bijection.double(), 3)


MADE_OF = {
    "affine autoregressive, 1": (lambda: AffineAutoregressive(MADE(1, 2, (8,))), (1,), None),
    "affine autoregressive, 5, in an order": (
        lambda: AffineAutoregressive(MADE(5, 2, (7, 9), order=(3, 0, 4, 1, 2))),
        (5,),
        None,
    ),
    "affine autoregressive, conditions": (lambda: AffineAutoregressive(MADE(3, 2, (8,), classes=4)), (3,), 4),
    "its inverse": (lambda: Inverse(AffineAutoregressive(MADE(3, 2, (8, 8), order=(2, 0, 1)))), (3,), None),
    "affine coupling, odd": (
        lambda: AffineCoupling(MLP(2, 6, 8, 1), (False, True, False, False, True)),
        (5,),
        None,
    ),
    "affine coupling, conditions": (lambda: AffineCoupling(MLP(1, 4, 8, 1, classes=4), (True, False, False)), (3,), 4),
    "permutation": (lambda: Permutation((2, 0, 3, 1)), (4,), None),
    "flattened pictures": (
        lambda: Composition(Flatten((1, 2, 3)), *maf(6, 2, (8,)).bijection.bijections),
        (1, 2, 3),
        None,
    ),
    "maf": (lambda: maf(3, 3, (8,), classes=4).bijection, (3,), 4),
    "iaf": (lambda: iaf(4, 3, (8,)), (4,), None),
    "real nvp": (lambda: realnvp(5, 4, 8, 1).bijection, (5,), None),
    "nothing": (lambda: Composition(), (3,), None),
}


@pytest.fixture(params=MADE_OF)
def made(request: pytest.FixtureRequest) -> tuple[Bijection, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    make, shape, classes = MADE_OF[request.param]
    x = 1.5 * torch.randn(4, *shape, dtype=torch.float64)
    return _double(make()), x, {} if classes is None else {"label": torch.tensor([0, 3, 1, 1])}


def test_the_inverse_inverts(made: tuple[Bijection, Tensor, dict[str, Tensor]]) -> None:
    f, x, cond = made
    y, logdet = f(x, cond)
    again, back = f.inverse(y, cond)
    assert (again - x).abs().max() <= 1e-9
    assert (back + logdet).abs().max() <= 1e-9
    assert logdet.shape == (4,)
    other = y + torch.randn_like(y)
    onto, _ = f(f.inverse(other, cond)[0], cond)
    assert (onto - other).abs().max() <= 1e-9


def test_the_log_determinant_is_that_of_the_jacobian(made: tuple[Bijection, Tensor, dict[str, Tensor]]) -> None:
    f, x, cond = made
    for way, at in ((f, x), (f.inverse, f(x, cond)[0].detach())):
        for i in range(len(at)):
            own = {k: v[i : i + 1] for k, v in cond.items()}
            jacobian = torch.autograd.functional.jacobian(lambda v: way(v[None], own)[0][0].flatten(), at[i])  # noqa: B023
            expected = torch.linalg.slogdet(jacobian.reshape(at[i].numel(), -1))[1]
            assert abs(float((way(at[i : i + 1], own)[1] - expected).detach())) <= 1e-8


def test_conditions_and_rows_count() -> None:
    f = _double(maf(3, 2, (8,), classes=4).bijection)
    x = torch.randn(1, 3, dtype=torch.float64).expand(2, 3)
    y, _ = f(x, {"label": torch.tensor([0, 1])})
    assert not torch.allclose(y[0], y[1])
    assert not torch.allclose(y[0, 0], y[1, 0])  # the first feature too, which reads no other


@pytest.mark.parametrize(
    "make",
    [lambda: maf(2, 3, (8,), classes=3, bound=1.0), lambda: realnvp(2, 3, 8, 1, classes=3, bound=1.0)],
    ids=["maf", "real nvp"],
)
def test_the_density_sums_to_one(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    flow = awake(make().double(), 5)
    n, reach = 600, 15.0
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * reach / n) - reach
    grid = torch.cartesian_prod(axis, axis)
    cell = (2 * reach / n) ** 2
    with torch.no_grad():
        for label in (0, 2):
            mass = sum(
                float(flow.log_prob(piece, {"label": torch.full((len(piece),), label)}).exp().sum()) * cell
                for piece in grid.split(100_000)
            )
            assert abs(mass - 1) <= 1e-3


def test_a_flow_of_the_identity_is_the_standard_normal() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    for flow in (Flow(Composition(), (3,)), maf(3).double(), realnvp(3).double()):  # every layer starts as the identity
        assert torch.allclose(flow.log_prob(x), expected, atol=1e-12)


def test_an_affine_layer_has_the_density_of_the_gaussian_that_it_makes() -> None:
    """y = Lz + m with L triangular: MAF with constant scales and linear shifts is a multivariate normal."""
    torch.manual_seed(2)
    net = MADE(2, 2, (1,), activation="elu").double()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.hidden[0].weight[0, 0] = 1e-5  # elu is linear near 0
        net.last.weight[2, 0] = 0.7e5  # m_2 = 0.7 x_1
        net.last.bias.copy_(torch.tensor([0.3, 0.2, -0.4, -0.5]))  # m_1, s_1, m_2, s_2
    flow = Flow(AffineAutoregressive(net, bound=1e6), (2,))
    A = torch.tensor([[math.exp(0.2), 0.0], [0.7, math.exp(-0.5)]], dtype=torch.float64)  # z = A x + b
    b = torch.tensor([0.3, -0.4], dtype=torch.float64)
    inverse = torch.linalg.inv(A)
    law = torch.distributions.MultivariateNormal(-inverse @ b, inverse @ inverse.T)
    x = torch.randn(6, 2, dtype=torch.float64).abs()  # where elu is exactly linear
    assert torch.allclose(flow.log_prob(x), law.log_prob(x), atol=1e-9)


def test_samples_are_the_inverse_of_their_noise() -> None:
    flow = awake(maf(3, 2, (8,)), 1)
    x = flow.sample(7, noise=Noise.seeded(4, 7))
    z = Noise.seeded(4, 7).normal(3)
    assert torch.allclose(flow.encode(x), z, atol=1e-4)
    assert torch.allclose(flow.decode(z), x, atol=1e-6)
    assert flow.sample(0).shape == (0, 3)
    assert all(can(flow, p) for p in (Samples, LogProb, Codec))
    assert flow.latent_shape == (3,)


def test_a_flow_over_pictures_has_flat_noise() -> None:
    flow = Flow(Composition(Flatten((1, 2, 3)), iaf(6, 2, (8,))), (1, 2, 3), (6,))
    assert flow.sample(4).shape == (4, 1, 2, 3)
    assert flow.encode(flow.sample(4)).shape == (4, 6)
    assert flow.log_prob(torch.randn(4, 1, 2, 3)).shape == (4,)


def test_the_flow_comes_back_from_its_spec() -> None:
    flow = maf(3, 2, (8,), classes=4)
    again = build(spec(flow))
    again.load_state_dict(flow.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    assert set(flow.state_dict()) == set(dict(flow.named_parameters()))  # masks are computed, not saved


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="shift and a scale"):
        AffineAutoregressive(MADE(3, 3))
    with pytest.raises(UserError, match="both kinds"):
        AffineCoupling(MLP(1, 2), (True, True))
    with pytest.raises(UserError, match="no permutation"):
        Permutation((0, 0, 1))
    with pytest.raises(UserError, match="above 0"):
        AffineAutoregressive(MADE(3), bound=0.0)
    with pytest.raises(UserError, match="nothing to go by"):
        realnvp(1)
    with pytest.raises(UserError, match=r"over floats of shape \(3,\)"):
        maf(3).log_prob(torch.zeros(2, 4))
    with pytest.raises(UserError, match="over"):
        Flatten((2, 3))(torch.zeros(1, 3, 2))
    with pytest.raises(UserError, match="one for each"):
        maf(3, classes=2).log_prob(torch.zeros(2, 3), {"label": torch.zeros(3, dtype=torch.long)})
