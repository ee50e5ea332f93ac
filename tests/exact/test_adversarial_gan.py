"""The GAN's turns against plain ones, its codes against their entropy, its nets' sizes, and modes."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from morphogen.adversarial.gan import GAN, truncated
from morphogen.adversarial.losses import NON_SATURATING, RELATIVISTIC, WASSERSTEIN
from morphogen.adversarial.penalties import R1, R2, GradientPenalty
from morphogen.adversarial.readings import Auxiliary, Categorical, Continuous
from morphogen.core import Batch, Net, Noise, keys
from morphogen.data.densities import eight_gaussians, gaussian_grid
from morphogen.errors import UserError
from morphogen.metrics.modes import class_shares, mode_coverage, nearest_mode
from morphogen.nets.critic import Critic
from morphogen.nets.dcgan import DCGANBody, DCGANGenerator
from morphogen.nets.embed import ClassEmbedding
from morphogen.nets.mlp import MLP
from morphogen.nets.r3gan import FixupBlock, R3GANBody, R3GANGenerator


def batch(n: int = 5, dims: int = 2, seed: int = 0) -> Batch:
    x = torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "cond": {"label": torch.arange(n) % 3}, "key": keys(torch.arange(n), seed)}


def gan(**more) -> GAN:
    torch.manual_seed(0)
    readings = sum(r.outputs for r in more.get("readings", ()))
    inputs = 4 + sum(r.inputs for r in more.get("readings", ()))
    critic = Critic(MLP(2, 8, 16, 1), 8, classes=3, readings=readings, activation="silu")
    return GAN(MLP(inputs, 2, 16, 1, classes=3), critic, 4, **more).double()


# ---- turns ---------------------------------------------------------------------------------------------------------


def test_the_turns_are_the_game_and_its_penalties() -> None:
    model, data = gan(game=RELATIVISTIC, penalties=(R1(0.3), R2(0.2))), batch()
    made = model.generator(Noise(data["key"]).normal(4, dtype=torch.float64), data["cond"])
    x, y = (t.detach().requires_grad_() for t in (data["x"], made))
    real, fake = (model.critic(t, data["cond"]) for t in (x, y))
    of_real, of_fake = (
        torch.autograd.grad(s.sum(), t, create_graph=True)[0].square().sum(1).mean() / 2
        for s, t in ((real, x), (fake, y))
    )
    plain = nn.functional.softplus(fake - real).mean() + 0.3 * of_real + 0.2 * of_fake
    said = model.critic_loss(data)
    torch.testing.assert_close(said.value, plain)
    own = list(model.critic.parameters())
    for a, b in zip(torch.autograd.grad(said.value, own), torch.autograd.grad(plain, own), strict=True):
        torch.testing.assert_close(a, b)
    logs = {"real": real.mean(), "fake": fake.mean(), "right": (real > fake).double().mean(), "r1": of_real}
    logs["r2"] = of_fake
    assert said.logs.keys() == logs.keys()
    for name, value in logs.items():
        torch.testing.assert_close(said.logs[name], value.detach())
    pull = nn.functional.softplus(model.critic(data["x"], data["cond"]) - model.critic(made, data["cond"])).mean()
    torch.testing.assert_close(model.generator_loss(data).value, pull)
    own = list(model.generator.parameters())
    for a, b in zip(
        torch.autograd.grad(model.generator_loss(data).value, own), torch.autograd.grad(pull, own), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_nothing_reaches_the_other_side() -> None:
    model, data = gan(), batch()
    model.critic_loss(data).value.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert [(p.loss.__name__, p.trains, p.every) for p in gan(critic_steps=5).phases()] == [
        ("critic_loss", ("critic",), 1),
        ("generator_loss", ("generator",), 5),
    ]


def test_held_out_losses_are_without_penalties_and_lazy_ones_wait_for_their_step() -> None:
    data = batch()
    model, plain = gan(penalties=(R1(5.0, every=3),)), gan()
    torch.testing.assert_close(model.eval().critic_loss(data).value, plain.critic_loss(data).value)
    model.train()
    for step in range(5):
        model.step = step
        apart = model.critic_loss(data).value - plain.critic_loss(data).value
        assert (float(apart) > 1e-9) == (step % 3 == 0)


def test_hidden_labels_are_hidden_from_both() -> None:
    seen: list[Tensor] = []

    class Spy(Net):
        def forward(self, x: Tensor, cond) -> Tensor:
            seen.append(cond["null"])
            return x.sum(1)

    model = GAN(MLP(4, 2, 8, 1, classes=3).double(), Spy(), 4, drop=0.5)
    model.critic_loss(batch(64))
    assert torch.equal(seen[0], seen[1])
    assert 16 < int(seen[0].sum()) < 48


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GAN(MLP(4, 2), MLP(2, 1), 0), "latent=0"),
        (lambda: GAN(MLP(4, 2), MLP(2, 1), 4, critic_steps=0), "critic_steps=0"),
        (lambda: GAN(MLP(4, 2), MLP(2, 1), 4, drop=2.0), "drop"),
        (lambda: GAN(MLP(7, 2), MLP(2, 1), 4, readings=(Categorical(3),)), "readings=3"),
        (lambda: GAN(MLP(4, 2), Critic(MLP(2, 4), 4, readings=3), 4), "readings"),
        (lambda: GAN(MLP(4, 2), MLP(2, 1), 4).sample(2, truncation=0.0), "truncation"),
        (lambda: Categorical(1), "2 or more"),
        (lambda: Continuous(0), "1 or more"),
        (lambda: Auxiliary(3, weight=-1.0), "0 or more"),
        (lambda: DCGANGenerator(4, 1, 30, depth=2), "multiple of 4"),
        (lambda: DCGANBody(1, 28, norm="layer"), "norm"),
        (lambda: R3GANBody(1, 30, (4, 8, 8)), "multiple of 4"),
        (lambda: R3GANGenerator(4, 1, 28, (8, 4), group=5), "groups of 5"),
    ],
)
def test_what_does_not_fit_is_told(make, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


# ---- readings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_of_information_is_at_most_the_entropy_and_tight_for_a_perfect_reader(seed: int) -> None:
    noise = Noise(keys(torch.arange(4000), seed))
    code = Categorical(5)
    c = code.code(noise, torch.float64)
    assert c.sum(1).eq(1).all()
    assert c.mean(0).sub(0.2).abs().max() < 0.04
    for said in (torch.randn(4000, 5, dtype=torch.float64), 3 * c, 60 * c):
        bound = code.report(code.of_made(said, c, {}).mean())
        assert float(bound) <= math.log(5) + 1e-12
    assert float(bound) == pytest.approx(math.log(5))  # Q = the posterior: I = H(c)
    blind = code.report(code.of_made(0 * c, c, {}).mean())
    assert float(blind) == pytest.approx(0)  # Q = the prior: nothing is known


def test_a_continuous_code_has_the_normal_laws_cost() -> None:
    code = Continuous(2)
    noise = Noise(keys(torch.arange(3000), 0))
    c = code.code(noise, torch.float64)
    assert float(c.abs().max()) < 1
    assert scipy.stats.kstest(c.flatten().numpy(), "uniform", (-1, 2)).pvalue > 1e-3
    mean, log_std = torch.randn(2, 3000, 2, dtype=torch.float64).unbind()
    said = torch.cat((mean, 0.3 * log_std), 1)
    law = torch.distributions.Normal(mean, (0.3 * log_std).exp())
    torch.testing.assert_close(code.of_made(said, c, {}), -law.log_prob(c).sum(1))
    # the best blind normal law: E[-log Q] ≥ H(c), so that the bound is no more than 0
    blind = torch.cat((torch.zeros_like(c), torch.full_like(c, 0.5 * math.log(1 / 3))), 1)
    assert float(code.report(code.of_made(blind, c, {}).mean())) < 0


def test_codes_of_one_kind_are_logged_apart() -> None:
    model = gan(readings=(Categorical(3), Continuous(1), Categorical(4)))
    assert list(model.generator_loss(batch()).logs) == ["information", "information_continuous", "information_2"]


def test_what_was_always_told_a_class_draws_none_untold() -> None:
    """The row of no class has learned nothing where no condition was dropped."""
    z, label = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    for cond in (None, {}, {"label": label, "null": torch.tensor([False, True])}):
        with pytest.raises(UserError, match="--label"):
            gan().decode(z, cond)
        assert gan(drop=0.1).decode(z, cond).shape == (2, 2)
    assert gan().decode(z, {"label": label}).shape == gan().sample(2).shape


def test_an_auxiliary_classifier_is_read_on_both_kinds() -> None:
    model, data = gan(readings=(Auxiliary(3, weight=0.5),)), batch()
    z = Noise(data["key"]).normal(4, dtype=torch.float64)
    made, label = model.generator(z, data["cond"]), data["cond"]["label"]
    costs = [nn.functional.cross_entropy(model.critic.both(x, data["cond"])[1], label) for x in (data["x"], made)]
    real, fake = (model.critic(x, data["cond"]) for x in (data["x"], made))
    torch.testing.assert_close(model.critic_loss(data).value, NON_SATURATING.critic(real, fake) + 0.5 * sum(costs))
    torch.testing.assert_close(model.generator_loss(data).value, NON_SATURATING.generator(real, fake) + 0.5 * costs[1])
    with pytest.raises(UserError, match="label"):
        Auxiliary(3).of_made(torch.zeros(2, 3), torch.zeros(2, 0), {})


def test_codes_stand_behind_z_and_are_read_off_what_was_made() -> None:
    readings = (Categorical(3), Continuous(2, weight=0.2))
    model, data = gan(readings=readings), batch()
    noise = Noise(data["key"])
    z, codes = noise.normal(4, dtype=torch.float64), [r.code(noise, torch.float64) for r in readings]
    made = model.generator(torch.cat((z, *codes), 1), data["cond"])
    said = model.critic.both(made, data["cond"])[1]
    costs = [
        readings[0].of_made(said[:, :3], codes[0], {}).mean(),
        readings[1].of_made(said[:, 3:], codes[1], {}).mean(),
    ]
    real, fake = (model.critic(x, data["cond"]) for x in (data["x"], made))
    value = NON_SATURATING.critic(real, fake) + costs[0] + 0.2 * costs[1]
    torch.testing.assert_close(model.critic_loss(data).value, value)
    logs = model.generator_loss(data).logs
    assert float(logs["information"]) == pytest.approx(math.log(3) - float(costs[0]))


# ---- drawing -------------------------------------------------------------------------------------------------------


def test_truncated_z_has_the_truncated_law() -> None:
    z = Noise(keys(torch.arange(5000), 3)).normal(2, dtype=torch.float64)
    found = truncated(z, 0.8)
    assert float(found.abs().max()) <= 0.8
    assert scipy.stats.kstest(found.flatten().numpy(), scipy.stats.truncnorm(-0.8, 0.8).cdf).pvalue > 1e-3
    torch.testing.assert_close(truncated(z, 40.0), z)
    model = gan()
    narrow = model.sample(
        200, {"label": torch.zeros(200, dtype=torch.long)}, noise=Noise.seeded(0, 200), truncation=1e-9
    )
    assert float(narrow.std(0).max()) < 1e-6


def test_without_a_label_one_is_drawn_evenly_unless_training_has_hidden_some() -> None:
    seen: list[Tensor] = []

    class Told(Net):
        def __init__(self) -> None:
            super().__init__()
            self.classes = ClassEmbedding(3, 2)

        def forward(self, z: Tensor, cond) -> Tensor:
            seen.append(cond.get("label"))
            return z + self.classes(cond, len(z))

    noise = Noise.seeded(0, 3000)
    x = GAN(Told(), MLP(2, 1), 2).sample(3000, noise=noise)
    label = seen[0]
    assert float(torch.bincount(label).div(3000).sub(1 / 3).abs().max()) < 0.03
    again = GAN(Told(), MLP(2, 1), 2)
    assert not torch.equal(again.sample(3000, {"label": label}, noise=Noise.seeded(0, 3000)), x)  # other weights
    asked = again.sample(3000, {"label": label}, noise=Noise.seeded(0, 3000))
    assert torch.equal(again.sample(3000, noise=Noise.seeded(0, 3000)), asked)  # the same z and labels
    GAN(Told(), MLP(2, 1), 2, drop=0.1).sample(4, noise=Noise.seeded(0, 4))
    assert seen[-1] is None
    GAN(MLP(2, 2), MLP(2, 1), 2).sample(4, noise=Noise.seeded(0, 4))


# ---- nets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "depth"), [(28, 2), (32, 3), (32, 1), (8, 3)])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_dcgan_makes_and_reads_pictures(size: int, depth: int, norm: str) -> None:
    generator = DCGANGenerator(6, 3, size, 4, depth, classes=10, norm=norm)
    x = generator(torch.randn(2, 6), {"label": torch.tensor([1, 9])})
    assert x.shape == (2, 3, size, size)
    assert float(x.detach().abs().max()) <= 1
    body = DCGANBody(3, size, 4, depth, norm=norm)
    assert body(x).shape == (2, body.features)
    model = GAN(generator, Critic(body, body.features), 6)
    assert (model.counts({"x": x}) == {}) == (norm == "batch")  # a batch norm mixes samples


@pytest.mark.parametrize(("size", "patch"), [(28, 1), (28, 2), (32, 2)])
def test_r3gan_makes_and_reads_pictures(size: int, patch: int) -> None:
    generator = R3GANGenerator(6, 3, size, (16, 8), group=4, patch=patch, classes=10)
    z, cond = torch.randn(2, 6), {"label": torch.tensor([1, 9])}
    x = generator(z, cond)
    assert x.shape == (2, 3, size, size)
    generator.bounded = True
    assert torch.equal(generator(z, cond), x.tanh())
    assert R3GANBody(3, size, (8, 16), group=4, patch=patch, features=5)(x).shape == (2, 5)


def test_a_fixup_block_begins_as_its_skip_and_keeps_variance_inside() -> None:
    torch.manual_seed(0)
    block = FixupBlock(32, 16, blocks=6)
    x = torch.randn(8, 32, 10, 10)
    assert torch.equal(block(x), x)
    inner = block.grouped(block.act1(block.into(x)))
    # He's gain twice, times 6^(-1/4) twice; a border of zeros takes a little away
    assert float(inner.detach().std()) == pytest.approx((2 / 1.04) ** 0.5 * 6**-0.5, rel=0.12)
    assert block.grouped.groups == 4


def test_all_of_an_r3gan_critic_is_differentiable_twice() -> None:
    torch.manual_seed(0)
    body = R3GANBody(1, 8, (8, 8), group=4, patch=2, features=4).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: body(x).sum(1).sin(), (x,), atol=1e-4)


# ---- modes ---------------------------------------------------------------------------------------------------------


def test_three_removed_modes_are_missed_exactly() -> None:
    density = gaussian_grid()
    means = torch.tensor(density.means)
    kept = torch.tensor([k for k in range(25) if k not in (0, 7, 19)])
    label = kept[torch.arange(2500) % 22]
    found = mode_coverage(density.sample(2500, {"label": label}, noise=Noise.seeded(0, 2500)), means, density.std)
    assert found.modes.value == 22
    assert found.high_quality.value == pytest.approx(1 - math.exp(-4.5), abs=0.01)  # of a normal law in the plane
    assert found.reverse_kl.value == pytest.approx(math.log(25 / 22), abs=5e-3)
    whole = mode_coverage(density.sample(2500, noise=Noise.seeded(1, 2500)), means, density.std)
    assert whole.modes.value == 25
    assert whole.reverse_kl.value < 0.02


def test_planted_strays_are_no_high_quality() -> None:
    density = eight_gaussians()
    x = density.sample(4000, noise=Noise.seeded(0, 4000))
    x[::10] += 100
    found = mode_coverage(x, torch.tensor(density.means), density.std)
    assert found.high_quality.value == pytest.approx(0.9 * (1 - math.exp(-4.5)), abs=0.006)
    wide = mode_coverage(x, torch.tensor(density.means), density.std, reach=6.0)
    assert wide.high_quality.value == pytest.approx(0.9, abs=1e-3)
    assert found.high_quality.low < 0.9 * (1 - math.exp(-4.5)) < found.high_quality.high
    assert int((nearest_mode(x, torch.tensor(density.means), density.std) == -1)[::10].sum()) == 400


@pytest.mark.parametrize("n", [1, 7])
def test_reverse_kl_is_its_closed_form(n: int) -> None:
    means = torch.tensor([[0.0], [10.0], [20.0]])
    x = torch.cat((torch.zeros(3 * n, 1), torch.full((n, 1), 10.0)))
    found = mode_coverage(x, means, 1.0, torch.tensor([0.5, 0.3, 0.2]))
    assert found.reverse_kl.value == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.3))
    assert found.modes.value == 2
    nothing = mode_coverage(x + 500, means, 1.0)
    assert (nothing.modes.value, nothing.high_quality.value, nothing.reverse_kl.value) == (0, 0, math.inf)
    with pytest.raises(UserError, match="no samples"):
        mode_coverage(x[:0], means, 1.0)


def test_class_shares() -> None:
    label = torch.tensor([0] * 5 + [2] * 3 + [3] * 2)
    rarest, commonest = class_shares(label, 4)
    assert (rarest.value, commonest.value) == (0, 0.5)
    assert "(1)" in rarest.how
    assert "(0)" in commonest.how


def test_a_wasserstein_gan_takes_its_penalty_between() -> None:
    model, data = gan(game=WASSERSTEIN, penalties=(GradientPenalty(),), critic_steps=2), batch()
    said = model.critic_loss(data)
    apart = said.value - (said.logs["fake"] - said.logs["real"])
    torch.testing.assert_close(apart.detach(), 10 * said.logs["gradient_penalty"])
