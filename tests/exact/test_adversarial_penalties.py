"""Penalties, spectral norms and projection held against closed forms on critics whose gradient is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from morphogen.adversarial.penalties import (
    R1,
    R2,
    Consistency,
    GradientPenalty,
    Penalty,
    Play,
    consistency,
    due,
    gradient_penalty,
    penalised,
    zero_centred,
)
from morphogen.core import Net, Noise, keys
from morphogen.data.augment import Shift
from morphogen.errors import UserError
from morphogen.nets.critic import Critic, PatchCritic
from morphogen.nets.mlp import MLP, ResidualMLP
from morphogen.nets.spectral import Spectral, iterate, spectrally_normalised
from morphogen.spec import build, spec


def noise(n: int, seed: int = 0) -> Noise:
    return Noise(keys(torch.arange(n), seed))


def test_pictures_may_lie_channels_last() -> None:
    torch.manual_seed(0)
    net, x = nn.Conv2d(3, 2, 3).double(), points(2, 3, 5, 6)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        critic, real = net.to(memory_format=layout), x.to(memory_format=layout).requires_grad_()
        found.append((zero_centred(real, critic(real)), gradient_penalty(critic, real, real + 1, noise(2))))
    torch.testing.assert_close(*found)


def points(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sloped(x: Tensor) -> Tensor:
    return 3 * x[:, 0] + 4 * x[:, 1]


def bowl(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)  # its gradient is x


def play(critic, real: Tensor, fake: Tensor) -> Play:
    real, fake = (x.detach().requires_grad_() for x in (real, fake))
    return Play(critic, real, fake, critic(real), critic(fake), noise(len(real)))


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_critic_of_slope_five_is_penalised_by_sixteen(n: int) -> None:
    found = gradient_penalty(sloped, points(n, 2), points(n, 2, seed=1), noise(n))
    assert float(10 * found) == pytest.approx(160)  # λ = 10, (5 - 1)²
    assert float(gradient_penalty(sloped, points(n, 2), points(n, 2), noise(n), 0.0)) == pytest.approx(25)
    value, logs = penalised([(GradientPenalty(), 10.0)], play(sloped, points(n, 2), points(n, 2, seed=1)))
    assert float(value) == pytest.approx(160)
    assert float(logs["gradient_penalty"]) == pytest.approx(16)


def test_the_points_between_are_drawn_by_key_on_the_lines() -> None:
    real, fake = points(5, 3, 2), points(5, 3, 2, seed=1)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return bowl(x)

    found = gradient_penalty(critic, real, fake, noise(5))
    u = noise(5).uniform(dtype=torch.float64)
    expected = u.view(5, 1, 1) * real + (1 - u.view(5, 1, 1)) * fake
    torch.testing.assert_close(seen[0], expected)
    assert len({round(float(v), 6) for v in u}) == 5  # a share of its own for each
    assert float(found) == pytest.approx(float((expected.flatten(1).norm(dim=1) - 1).square().mean()))


@pytest.mark.parametrize("seed", [0, 1])
def test_zero_centred_penalties_are_of_their_own_points(seed: int) -> None:
    real, fake = points(4, 2, 3, seed=seed), 2 * points(4, 2, 3, seed=seed + 5)
    own = play(bowl, real, fake)
    assert float(R1(1.0)(own)) == pytest.approx(0.5 * float(real.flatten(1).square().sum(1).mean()))
    assert float(R2(1.0)(own)) == pytest.approx(0.5 * float(fake.flatten(1).square().sum(1).mean()))


def test_a_penalty_reaches_the_weights_of_the_critic() -> None:
    """½ γ E |∇D|² of D(x) = w·x is ½ γ |w|², whose gradient is γ w."""
    w = points(3)[:, None].requires_grad_()
    own = play(lambda x: (x @ w)[:, 0], points(6, 3, seed=2), points(6, 3, seed=3))
    value, _ = penalised([(R1(0.7), 0.7), (R2(0.7), 0.7)], own)
    (g,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(g, 1.4 * w.detach())


def test_of_several_scores_the_mean_counts() -> None:
    one, many = bowl, lambda x: torch.stack((bowl(x), 3 * bowl(x)), 1).view(len(x), 1, 2)
    x = points(3, 4).requires_grad_()
    assert float(zero_centred(x, many(x))) == pytest.approx(4 * float(zero_centred(x, one(x))))
    critic = PatchCritic(1, 4, 1).double()
    x = points(2, 1, 8, 8).requires_grad_()
    g = torch.autograd.grad(critic(x).flatten(1).mean(1).sum(), x)[0]
    assert float(zero_centred(x, critic(x))) == pytest.approx(0.5 * float(g.flatten(1).square().sum(1).mean()))


def test_a_flat_critic_has_a_finite_gradient() -> None:
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    value = gradient_penalty(lambda x: x @ w, points(3, 2), points(3, 2), noise(3))
    assert float(value) == 1
    assert torch.autograd.grad(value, w)[0].isfinite().all()


@pytest.mark.parametrize("every", [1, 2, 5])
def test_lazy_is_the_same_in_the_mean(every: int) -> None:
    penalty = R1(0.3, every=every)
    factors = [penalty.factor(step) for step in range(20)]
    assert sum(factors) / 20 == pytest.approx(0.3)
    assert sum(f > 0 for f in factors) == 20 // every
    assert [bool(due([penalty], step)) for step in range(20)] == [step % every == 0 for step in range(20)]
    own = play(bowl, points(4, 2), points(4, 2))
    total = sum(float(penalised(due([penalty], step), own)[0]) for step in range(20))
    assert total / 20 == pytest.approx(0.3 * float(R1(1.0)(own)))


def test_a_weight_falls_along_half_a_cosine() -> None:
    penalty = R2(2.0, final=0.5, over=10)
    assert penalty.factor(0) == 2
    assert penalty.factor(5) == pytest.approx(1.25)
    assert [penalty.factor(step) for step in (10, 11, 1000)] == [0.5] * 3
    found = [penalty.factor(step) for step in range(11)]
    assert found == pytest.approx([0.5 + 1.5 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)])
    assert R1(2.0).factor(7) == 2


def test_consistency_sees_what_an_augmentation_changes() -> None:
    x, other = points(4, 1, 6, 6), points(4, 1, 6, 6, seed=1)
    shift = Shift(2)
    top = lambda x: x[:, 0, 0, :].sum(1)  # noqa: E731
    moved = shift(x, noise(4))
    expected = float((top(x) - top(moved)).square().mean())
    assert expected > 0
    assert float(consistency(top, x, top(x), shift, noise(4))) == pytest.approx(expected)
    assert float(consistency(lambda x: 0 * bowl(x), x, 0 * bowl(x), shift, noise(4))) == 0
    both = Consistency(shift, made=0.5)(play(top, x, other))
    drawn = noise(4)
    parts = [float(consistency(top, y, top(y), shift, drawn)) for y in (x, other)]
    assert float(both) == pytest.approx(parts[0] + 0.5 * parts[1])
    assert float(Consistency(shift)(play(top, x, other))) == pytest.approx(expected)


@pytest.mark.parametrize(
    "make",
    [lambda: R1(-1.0), lambda: R2(1.0, every=0), lambda: R1(1.0, final=-0.1), lambda: Consistency(Shift(1), made=-1.0)],
)
def test_senseless_weights_are_refused(make) -> None:
    with pytest.raises(UserError, match="give"):
        make()


def test_penalties_are_written_down() -> None:
    made: list[Penalty] = [R1(0.1, 2, final=0.01, over=7), R2(), GradientPenalty(centre=0.0), Consistency(Shift(1))]
    for penalty in made:
        again = build(spec(penalty))
        assert type(again) is type(penalty)
        assert [again.factor(s) for s in range(9)] == [penalty.factor(s) for s in range(9)]


# ---- spectral normalisation ----------------------------------------------------------------------------------------


class Layers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(7, 5), nn.Conv2d(3, 4, 3)


def test_a_weight_is_divided_by_its_largest_singular_value() -> None:
    torch.manual_seed(0)
    net = Layers().double()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    spectrally_normalised(net)
    for _ in range(50):
        iterate(net)
    for name in ("linear", "conv"):
        layer, weight = getattr(net, name), before[f"{name}.weight"]
        sigma = torch.linalg.svdvals(weight.flatten(1))[0]
        torch.testing.assert_close(layer.weight, weight / sigma, rtol=1e-3, atol=0)
        assert float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]) == pytest.approx(1, abs=1e-3)
    assert set(net.state_dict()) >= {"linear.parametrizations.weight.0.u", "linear.parametrizations.weight.0.v"}


def test_its_gradient_is_that_of_the_quotient() -> None:
    """∂(W/σ) contracted with G is (G - (G·W/σ) u vᵀ)/σ (Miyato et al. 2018, eq. 12)."""
    w, g = points(4, 3, seed=1).requires_grad_(), points(4, 3, seed=2)
    change = Spectral(w)
    change.iterate(w, 200)
    (found,) = torch.autograd.grad((change(w) * g).sum(), w)
    with torch.no_grad():
        sigma = torch.linalg.svdvals(w)[0]
        expected = (g - (g * w).sum() / sigma * torch.outer(change.u, change.v)) / sigma
    torch.testing.assert_close(found, expected)


def test_a_loss_changes_no_vector_and_a_copy_goes_on_alike() -> None:
    torch.manual_seed(0)
    net = spectrally_normalised(MLP(2, 3, 8, 2))
    x = torch.randn(4, 2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    y = net.train()(x)
    torch.testing.assert_close(net(x), y, rtol=0, atol=0)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    twin = copy.deepcopy(net)
    again = build(spec(net), seed=3)
    again.load_state_dict(net.state_dict())
    for other in (net, twin, again):
        iterate(other)
    assert torch.equal(twin(x), net(x))
    assert torch.equal(again(x), net(x))
    assert not torch.equal(
        before["first.parametrizations.weight.0.u"], net.state_dict()["first.parametrizations.weight.0.u"]
    )


def test_what_cannot_be_normalised_is_refused() -> None:
    with pytest.raises(UserError, match="starts at zero"):
        spectrally_normalised(ResidualMLP(2, 2, 8, 1))

    class Empty(Net):
        pass

    with pytest.raises(UserError, match="no linear layer"):
        spectrally_normalised(Empty())


# ---- projection ----------------------------------------------------------------------------------------------------


def test_a_projection_is_linear_in_the_class_embedding() -> None:
    torch.manual_seed(0)
    critic = Critic(MLP(2, 6, 16, 1), 6, classes=4).double()
    x, label = points(5, 2), torch.tensor([0, 3, 1, 1, 2])
    assert critic.classes is not None
    table = critic.classes.table
    a, b = points(5, 6, seed=1), points(5, 6, seed=2)

    def scored(rows: Tensor) -> Tensor:
        with torch.no_grad():
            table.copy_(rows)
            return critic(x, {"label": label})

    plain = scored(torch.zeros(5, 6, dtype=torch.float64))
    torch.testing.assert_close(plain, critic.body(x) @ critic.score)
    mixed = scored(2 * a - 3 * b) - plain
    torch.testing.assert_close(mixed, 2 * (scored(a) - plain) - 3 * (scored(b) - plain))
    torch.testing.assert_close(scored(a) - plain, (critic.body(x) * a[label]).sum(1))
    hidden = critic(x, {"label": label, "null": torch.ones(5, dtype=torch.bool)})
    torch.testing.assert_close(hidden - plain, critic.body(x) @ a[4])
    assert torch.equal(hidden, critic(x, {}))


def test_a_critics_readings_stand_beside_its_scores() -> None:
    critic = Critic(MLP(2, 6, 16, 1), 6, readings=3, activation="silu").double()
    x = points(5, 2)
    scores, said = critic.both(x)
    assert torch.equal(scores, critic(x))
    assert said.shape == (5, 3)
    assert Critic(MLP(2, 6, 16, 1), 6).double().both(x)[1].shape == (5, 0)
    with pytest.raises(UserError, match="silu"):
        Critic(MLP(2, 6, 16, 1), 6, activation="siluu")
