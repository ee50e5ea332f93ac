"""StyleGAN2: its layers and its theorems. A modulated convolution by a loop, truncation, path lengths, filters."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from morphogen.adversarial.ada import Adaptive
from morphogen.adversarial.losses import RELATIVISTIC
from morphogen.adversarial.penalties import R1
from morphogen.adversarial.stylegan import PathLength, StyleGAN2, path_lengths
from morphogen.core import Noise, keys
from morphogen.errors import UserError
from morphogen.nets.equal import EqualConv, EqualLinear, framed, leaky, pixel_norm, unframed, with_deviation
from morphogen.nets.style import (
    StyleCritic,
    StyledConv,
    StyleGenerator,
    StyleMapping,
    demodulation,
    fir_doubled,
    fir_halved,
    modulated,
)

SEEDS = [0, 1, 2]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def batch(n: int = 4, shape: tuple[int, ...] = (1, 8, 8), classes: int = 0) -> dict[str, object]:
    found: dict[str, object] = {"x": randn(n, *shape, dtype=torch.float32), "key": keys(torch.arange(n), 7)}
    return found | ({"cond": {"label": torch.arange(n) % classes}} if classes else {})


def model(shape: tuple[int, ...] = (1, 8, 8), classes: int | None = None, **more: object) -> StyleGAN2:
    torch.manual_seed(1)
    widths = (8, 6) if max(shape) <= 8 else (8, 6, 4)
    generator = StyleGenerator(shape, widths, latent=5, width=7, depth=2, classes=classes)
    return StyleGAN2(generator, StyleCritic(shape, widths, classes=classes), **more)  # type: ignore[arg-type]


# ---- layers that learn at equal rates ------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [3, 64, 700])
@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_an_equalised_layer_keeps_the_variance_whatever_its_width_and_rate(inputs: int, rate: float) -> None:
    torch.manual_seed(inputs)
    layer = EqualLinear(inputs, 4096, rate=rate)
    y = layer(randn(64, inputs, seed=1, dtype=torch.float32))
    assert float(y.detach().var()) == pytest.approx(1, abs=0.35 if inputs == 3 else 0.12)  # 64 rows of so many inputs
    assert float(layer.weight.detach().std() * rate) == pytest.approx(1, abs=0.02)


def test_an_equalised_convolution_keeps_the_variance() -> None:
    torch.manual_seed(0)
    y = EqualConv(20, 300, 3)(randn(8, 20, 16, 16, dtype=torch.float32))
    assert float(y.detach()[:, :, 1:-1, 1:-1].var()) == pytest.approx(1, abs=0.03)


def test_a_rate_is_how_far_a_step_of_adam_goes() -> None:
    steps = []
    for rate in (1.0, 0.01):
        torch.manual_seed(0)
        layer = EqualLinear(50, 3, rate=rate)
        x = randn(20, 50, dtype=torch.float32)
        before = layer(x).detach()
        optim = torch.optim.Adam(layer.parameters(), 1e-3)
        layer(x).sum().backward()
        optim.step()
        steps.append(layer(x).detach() - before)
    assert torch.allclose(steps[1], 0.01 * steps[0], rtol=2e-2, atol=1e-6)


def test_bias_and_gain_are_as_said() -> None:
    layer = EqualLinear(4, 5, bias=1.0, rate=0.01, gain=3.0)
    assert torch.allclose(layer(torch.zeros(2, 4)), torch.ones(2, 5))
    assert layer.scale * float(layer.weight.detach().abs().mean()) == pytest.approx(3 * 0.8 / 2, rel=0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_pixel_norm_has_root_mean_square_one(seed: int) -> None:
    x = 100 * randn(3, 7, 5, 4, seed=seed)
    assert torch.allclose(pixel_norm(x).square().mean(1), torch.ones(3, 5, 4, dtype=torch.float64))
    assert torch.allclose(pixel_norm(x), pixel_norm(0.01 * x), atol=1e-6)  # of any scale
    assert pixel_norm(torch.zeros(1, 4)).isfinite().all()
    assert pixel_norm(x.bfloat16()).dtype == torch.bfloat16


def test_leaky_keeps_the_second_moment() -> None:
    x = randn(200_000)
    assert float(leaky(x).square().mean()) == pytest.approx(1 + 0.2**2, rel=0.02)  # (1 + 0.2²) / 2 times 2


@pytest.mark.parametrize(("n", "group"), [(8, 4), (7, 4), (3, 4), (1, 4), (6, 3)])
def test_deviations_are_of_groups_of_neighbours(n: int, group: int) -> None:
    x = randn(n, 3, 2, 5)
    told = with_deviation(x, group)[:, 3]
    assert torch.equal(with_deviation(x, group)[:, :3], x)
    for i in range(n):
        mine = x[i // group * group : (i // group + 1) * group]
        wanted = (mine.var(0, correction=0) + 1e-8).sqrt().mean()
        assert torch.allclose(told[i], wanted.expand(2, 5))
    alike = with_deviation(x[:1].expand(4, -1, -1, -1), 4)[:, 3]
    assert torch.allclose(alike, torch.full_like(alike, 1e-4))  # the same picture four times: nothing but √1e-8


def test_a_group_does_not_look_into_the_next() -> None:
    x = randn(8, 3, 2, 2)
    other = x.clone()
    other[5] += 1
    assert torch.equal(with_deviation(x, 4)[:4], with_deviation(other, 4)[:4])
    assert not torch.equal(with_deviation(x, 4)[4, 3], with_deviation(other, 4)[4, 3])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 32), (1, 31, 30)])
def test_framing_is_undone(shape: tuple[int, ...]) -> None:
    x = randn(2, *shape)
    square = framed(x, 32, -1.0)
    assert square.shape == (2, shape[0], 32, 32)
    assert torch.equal(unframed(square, shape), x)
    assert float(square.sum()) == pytest.approx(float(x.sum()) - 2 * shape[0] * (1024 - shape[1] * shape[2]))


# ---- filters -------------------------------------------------------------------------------------------------------


def by_hand(x: Tensor, *, up: int, down: int, before: int, after: int) -> Tensor:
    """Zeros between, zeros around, the filter (1, 3, 3, 1)² / 64 · up², every `down`-th: upfirdn as it is defined."""
    b, c, h, w = x.shape
    wide = torch.zeros(b, c, h * up, w * up, dtype=x.dtype)
    wide[:, :, ::up, ::up] = x
    wide = F.pad(wide, (before, after, before, after))
    taps = torch.tensor([1.0, 3, 3, 1], dtype=x.dtype)
    kernel = (taps[:, None] * taps / 64 * up**2).expand(c, 1, 4, 4)
    return F.conv2d(wide, kernel, groups=c)[:, :, ::down, ::down]


@pytest.mark.parametrize("seed", SEEDS)
def test_doubling_and_halving_are_the_filter_away_from_the_border(seed: int) -> None:
    x = randn(2, 3, 6, 8, seed=seed)
    up, down = by_hand(x, up=2, down=1, before=2, after=1), by_hand(x, up=1, down=2, before=1, after=1)
    assert torch.allclose(fir_doubled(x)[:, :, 1:-1, 1:-1], up[:, :, 1:-1, 1:-1])
    assert torch.allclose(fir_halved(x)[:, :, 1:-1, 1:-1], down[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize("edge", [2, 4, 10])
def test_filters_keep_constants_up_to_the_border(edge: int) -> None:
    x = torch.full((1, 2, edge, edge), 0.7, dtype=torch.float64)
    assert torch.allclose(fir_doubled(x), torch.full((1, 2, 2 * edge, 2 * edge), 0.7, dtype=torch.float64))
    assert torch.allclose(fir_halved(x), torch.full((1, 2, edge // 2, edge // 2), 0.7, dtype=torch.float64))


# ---- modulation ----------------------------------------------------------------------------------------------------


def filters(weight: Tensor, style: Tensor, demodulate: bool) -> Tensor:
    """The filters (O, I, k, k) of one sample, as in eqs. 1 and 3 of the paper."""
    w = weight * style[None, :, None, None]
    return w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt() if demodulate else w


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulation_is_a_filter_of_each_samples_own(seed: int, demodulate: bool, kernel: int) -> None:
    x, style, weight = randn(3, 4, 5, 6, seed=seed), randn(3, 4, seed=seed + 10), randn(7, 4, kernel, kernel, seed=9)
    wanted = [F.conv2d(x[i : i + 1], filters(weight, style[i], demodulate), padding=kernel // 2) for i in range(3)]
    assert torch.allclose(modulated(x, weight, style, demodulate=demodulate), torch.cat(wanted))


@pytest.mark.parametrize("seed", SEEDS)
def test_modulation_that_doubles_is_a_transposed_convolution_and_the_filter(seed: int) -> None:
    x, style, weight = randn(3, 4, 5, 6, seed=seed), randn(3, 4, seed=seed + 10), randn(7, 4, 3, 3, seed=9)
    found = modulated(x, weight, style, double=True)
    assert found.shape == (3, 7, 10, 12)
    for i in range(3):
        wide = torch.zeros(1, 4, 10, 12, dtype=torch.float64)
        wide[:, :, ::2, ::2] = x[i]
        own = filters(weight, style[i], True).flip(2, 3)  # what a transposed convolution does, seen from its output
        wide = F.conv2d(F.pad(wide, (2, 1, 2, 1)), own)  # (11, 13)
        assert torch.allclose(found[i : i + 1], 4 * by_hand(wide, up=1, down=1, before=1, after=1))


@pytest.mark.parametrize("seed", SEEDS)
def test_demodulated_filters_have_unit_norm(seed: int) -> None:
    style, weight = 5 * randn(3, 4, seed=seed), randn(7, 4, 3, 3, seed=9)
    d = demodulation(weight, style)
    for i in range(3):
        own = weight * style[i][None, :, None, None] * d[i][:, None, None, None]
        assert torch.allclose(own.flatten(1).norm(dim=1), torch.ones(7, dtype=torch.float64), atol=1e-8)


def test_a_styled_layer_forgets_the_scale_of_its_style() -> None:
    torch.manual_seed(0)
    layer = StyledConv(4, 5, 6).double()
    with torch.no_grad():
        layer.style.bias.zero_()
    x, w = randn(2, 4, 3, 3), randn(2, 6)
    a, b = (layer(x, c * w, Noise.seeded(0, 2)) for c in (1, 7))
    assert torch.allclose(a, b, atol=1e-6)


def test_noise_enters_by_its_strength_alone() -> None:
    torch.manual_seed(0)
    layer = StyledConv(4, 5, 6)
    x, w = torch.randn(2, 4, 3, 3), torch.randn(2, 6)
    assert torch.equal(layer(x, w, Noise.seeded(0, 2)), layer(x, w, Noise.seeded(1, 2)))
    with torch.no_grad():
        layer.strength.fill_(0.3)
    assert not torch.equal(layer(x, w, Noise.seeded(0, 2)), layer(x, w, Noise.seeded(1, 2)))


# ---- nets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28), (2, 9, 13)])
@pytest.mark.parametrize("n", [1, 3])
def test_shapes(shape: tuple[int, ...], n: int) -> None:
    widths = {8: (6, 4), 16: (6, 5, 4), 32: (6, 5, 4, 3)}[1 << math.ceil(math.log2(max(shape[1:])))]
    generator = StyleGenerator(shape, widths, latent=5, width=7, depth=2)
    x = generator(torch.randn(n, 5), noise=Noise.seeded(0, n))
    assert x.shape == (n, *shape)
    assert generator.layers == 2 * len(widths)
    assert StyleCritic(shape, widths)(x).shape == (n,)


def test_wrong_widths_are_told() -> None:
    with pytest.raises(UserError, match="17 to 32 pixels"):
        StyleGenerator((1, 8, 8), (4, 4, 4, 4))
    with pytest.raises(UserError, match="two or more"):
        StyleCritic((1, 4, 4), (4,))
    with pytest.raises(UserError, match="give both the same"):
        StyleGAN2(StyleGenerator((1, 8, 8), (4, 4), classes=3), StyleCritic((1, 8, 8), (4, 4)))


def test_a_class_changes_the_style_and_the_score() -> None:
    generator = StyleMapping(4, 6, 2, classes=3)
    z = torch.randn(1, 4).expand(3, 4)
    w = generator(z, {"label": torch.arange(3)})
    assert len(w.unique(dim=0)) == 3
    critic = StyleCritic((1, 8, 8), (4, 4), classes=3, group=1)
    scores = critic(torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1), {"label": torch.arange(3)})
    assert len(scores.unique()) == 3
    with pytest.raises(UserError, match="holds 3"):
        generator(z, {"label": torch.arange(1, 4)})


# ---- truncation, mixing --------------------------------------------------------------------------------------------


def test_truncation_at_one_changes_nothing_and_at_zero_draws_one_picture() -> None:
    gan = model()
    with torch.no_grad():
        gan.mean_w.copy_(torch.randn(7))
        for layer in gan.generator.keep:
            layer.strength.fill_(0.5)
    noise = lambda: Noise.seeded(3, 5)  # noqa: E731
    plain = gan.sample(5, noise=noise())
    assert torch.equal(plain, gan.sample(5, noise=noise(), truncation=1.0))
    none = gan.sample(5, noise=noise(), truncation=0.0)
    assert torch.allclose(none, none[:1].expand_as(none), atol=1e-6)
    assert torch.allclose(none[:1], gan.sample(1, noise=Noise.seeded(9, 1), truncation=0.0), atol=1e-6)
    mean = gan.synthesise(gan.mean_w.expand(1, gan.generator.layers, -1))
    assert torch.allclose(none[:1], mean, atol=1e-5)


@pytest.mark.parametrize("psi", [0.3, 0.7, 1.5])
def test_truncation_is_a_line_in_w(psi: float) -> None:
    gan = model()
    gan.mean_w.copy_(randn(7))
    z = torch.randn(4, 5)
    w = gan.mapped(z)
    assert torch.allclose(gan.mapped(z, truncation=psi) - gan.mean_w, psi * (w - gan.mean_w), atol=1e-6)


def test_mixing_cuts_at_every_layer_as_often_as_it_says() -> None:
    gan, n = model(mixing=0.6), 6000
    noise = Noise.seeded(0, n)
    z, _ = noise.normal(5), noise.normal(5)
    styles = gan.styles({}, Noise.seeded(0, n))
    own = gan.generator.mapping(z)[:, None]
    kept = (styles == own).all(2).sum(1)  # layers that have the first z's style: they come first
    assert bool(((styles == own).all(2).int().diff(dim=1) <= 0).all())
    layers = gan.generator.layers
    shares = torch.bincount(kept, minlength=layers + 1) / n
    assert float(shares[layers]) == pytest.approx(0.4, abs=0.03)
    assert torch.allclose(shares[1:layers], torch.full((layers - 1,), 0.6 / (layers - 1)), atol=0.03)
    assert shares[0] == 0
    assert torch.equal(model(mixing=0.0).styles({}, Noise.seeded(0, 3)).var(1), torch.zeros(3, 7))


# ---- path lengths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_path_lengths_of_a_linear_generator(seed: int) -> None:
    matrix, y = randn(12, 5, seed=seed), randn(3, 1, 3, 4, seed=seed + 1)
    w = randn(3, 1, 5, seed=2).requires_grad_()
    x = (w[:, 0] @ matrix.T).view(3, 1, 3, 4)
    found = path_lengths(x, w, y)
    assert torch.allclose(found, (y.flatten(1) @ matrix).norm(dim=1) / math.sqrt(12))


def test_an_orthogonal_generator_has_no_path_penalty() -> None:
    q = torch.linalg.qr(randn(12, 12)).Q * 3.0
    y = F.normalize(randn(6, 12), dim=1).view(6, 1, 3, 4)
    w = randn(6, 1, 12, seed=2).requires_grad_()
    lengths = path_lengths((w[:, 0] @ q.T).view(6, 1, 3, 4), w, y)
    assert float((lengths - lengths.mean()).square().mean()) < 1e-24
    bent = path_lengths((w[:, 0] @ q.T).tanh().view(6, 1, 3, 4), w, y)
    assert float((bent - bent.mean()).square().mean()) > 1e-4


def test_lengths_are_over_layers_as_their_root_mean_square() -> None:
    matrix, y = randn(12, 5), randn(3, 1, 3, 4, seed=1)
    w = randn(3, 2, 5, seed=2).requires_grad_()
    x = (w[:, 0] @ matrix.T + 2 * w[:, 1] @ matrix.T).view(3, 1, 3, 4)
    alone = (y.flatten(1) @ matrix).norm(dim=1) / math.sqrt(12)
    assert torch.allclose(path_lengths(x, w, y), alone * math.sqrt((1 + 4) / 2))


def test_the_mean_length_is_the_one_of_the_loss_and_moves_only_after_the_step() -> None:
    gan = model(path=PathLength(2.0, 1, decay=0.25, among=2)).train()
    gan.step = 40
    gan.mean_path.fill_(0.5)
    said = gan.generator_loss(batch())
    assert float(gan.mean_path) == 0.5
    length = float(said.logs["path_length"])
    gan.after_step("generator_loss", said.seen)
    assert float(gan.mean_path) == pytest.approx(0.75 * 0.5 + 0.25 * length)
    penalty, lengths = gan.path_penalty(batch(), PathLength(2.0, 1, decay=0.25, among=2))
    assert lengths.shape == (2,)
    mean = 0.75 * float(gan.mean_path) + 0.25 * float(lengths.mean())
    assert float(penalty) == pytest.approx(float((lengths - mean).square().mean()), rel=1e-5)


def test_what_is_lazy_is_in_every_so_manieth_step_times_as_much() -> None:
    path = PathLength(3.0, 4)
    gan, plain = model(path=path), model(path=None)
    for step in range(6):
        gan.step = plain.step = step
        more = gan.generator_loss(batch()).value - plain.generator_loss(batch()).value
        wanted = 4 * 3.0 * gan.path_penalty(batch(), path)[0] if step % 4 == 0 else torch.zeros(())
        assert torch.allclose(more, wanted, rtol=1e-4, atol=1e-6)
    gan, plain = model(penalties=(R1(2.0, 3),)), model(penalties=())
    for step in range(4):
        gan.step = plain.step = step
        more = gan.critic_loss(batch()).value - plain.critic_loss(batch()).value
        x = batch()["x"].clone().requires_grad_()  # type: ignore[attr-defined]
        (g,) = torch.autograd.grad(plain.critic(x).sum(), x)
        wanted = 3 * 2.0 * 0.5 * g.flatten(1).square().sum(1).mean()
        assert torch.allclose(more, wanted if step % 3 == 0 else torch.zeros(()), rtol=1e-4, atol=1e-6)


def test_the_mean_style_is_at_first_the_mean_of_what_was_seen() -> None:
    gan = model(memory=4.0)
    means = []
    for gan.step in range(3):
        said = gan.generator_loss(batch())
        means.append(said.seen["w"].mean(0))
        gan.after_step("generator_loss", said.seen)
    assert torch.allclose(gan.mean_w, torch.stack(means).mean(0), atol=1e-6)


def test_other_games_are_played() -> None:
    gan = model(game=RELATIVISTIC)
    gan.generator_loss(batch()).value.backward()
    assert all(p.grad is not None for p in gan.generator.parameters())


def test_a_class_is_drawn_where_none_is_asked_for() -> None:
    gan = model(classes=3)
    a, b = gan.sample(40, noise=Noise.seeded(0, 40)), gan.sample(40, noise=Noise.seeded(0, 40))
    assert torch.equal(a, b)
    asked = [gan.sample(40, {"label": torch.full((40,), k)}, noise=Noise.seeded(0, 40)) for k in range(3)]
    hits = torch.stack([(a - x).flatten(1).abs().amax(1) < 1e-5 for x in asked]).sum(1)
    assert int(hits.sum()) == 40
    assert int(hits.min()) >= 5


def test_pictures_of_the_same_z_are_the_same_whatever_stands_beside() -> None:
    gan = model()
    z = torch.randn(4, 5)
    assert torch.allclose(gan.decode(z)[2:3], gan.decode(z[2:3]), atol=1e-6)


def test_bad_arguments_are_told() -> None:
    for more in ({"mixing": 1.5}, {"memory": 0.0}):
        with pytest.raises(UserError, match="give a share"):
            model(**more)
    with pytest.raises(UserError, match="PathLength"):
        PathLength(decay=0.0)
    with pytest.raises(UserError, match="learns floats of shape"):
        model().critic_loss(batch(shape=(1, 9, 9)))


# ---- adaptive augmentation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_probability_of_zero_is_off(channels: int) -> None:
    x = randn(5, channels, 9, 9, dtype=torch.float32)
    assert torch.equal(Adaptive()(x, Noise.seeded(0, 5)), x)


def test_the_same_key_changes_alike_and_each_picture_by_its_own() -> None:
    x, changed = randn(6, 3, 8, 8, dtype=torch.float32), Adaptive(p=0.7)
    key = keys(torch.arange(6), 3)
    all_of_them = changed(x, Noise(key))
    assert torch.allclose(all_of_them[4:], changed(x[4:], Noise(key[4:])), atol=1e-6)
    assert not torch.equal(all_of_them, changed(x, Noise(keys(key))))


def test_quarters_and_mirrors_are_exact_and_as_often_as_said() -> None:
    n, p = 8000, 0.6
    picture = randn(1, 1, 3, 3, dtype=torch.float32)
    y = Adaptive(("quarter",), p=p)(picture.expand(n, -1, -1, -1), Noise.seeded(0, n))
    share = [float((y == picture.rot90(k, (2, 3))).flatten(1).all(1).float().mean()) for k in range(4)]
    assert share == pytest.approx([1 - p + p / 4, p / 4, p / 4, p / 4], abs=0.02)
    y = Adaptive(("mirror",), p=p)(picture.expand(n, -1, -1, -1), Noise.seeded(0, n))
    share = [float((y == x).flatten(1).all(1).float().mean()) for x in (picture, picture.flip(3))]
    assert share == pytest.approx([1 - p / 2, p / 2], abs=0.02)


def test_what_is_changed_below_one_can_be_inverted() -> None:
    """The law of quarter turns seen through T has one law behind it: T has no eigenvalue 0 (section 3)."""
    n, p = 40_000, 0.6
    base = randn(1, 1, 3, 3, dtype=torch.float32)
    turned = torch.cat([base.rot90(k, (2, 3)) for k in range(4)])
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = torch.multinomial(law, n, replacement=True, generator=torch.Generator().manual_seed(0))
    y = Adaptive(("quarter",), p=p)(turned[drawn], Noise.seeded(1, n))
    seen = torch.stack([(y == t).flatten(1).all(1).float().mean() for t in turned])
    t = (1 - p) * torch.eye(4) + p / 4
    assert torch.allclose(torch.linalg.solve(t, seen), law, atol=0.02)
    assert float(torch.linalg.eigvalsh(t).min()) == pytest.approx(1 - p, abs=1e-6)


def test_whole_shifts_keep_pixels_and_turns_keep_the_centre() -> None:
    x = torch.zeros(200, 1, 17, 17)
    x[:, :, 8, 8] = 1
    y = Adaptive(("shift",), p=1.0)(x, Noise.seeded(0, 200))
    assert torch.allclose(y.flatten(1).sort(1).values, x.flatten(1).sort(1).values, atol=1e-4)
    places = y.flatten(1).argmax(1)
    assert len(places.unique()) == 25  # 17 / 8 is 2 pixels, either way
    y = Adaptive(("turn",), p=1.0)(x, Noise.seeded(0, 200))
    assert torch.allclose(y[:, :, 8, 8], torch.ones(200, 1), atol=1e-5)


def test_scales_are_lognormal() -> None:
    ramp = torch.linspace(-1, 1, 65).expand(4000, 1, 65, 65)
    y = Adaptive(("scale",), p=1.0)(ramp, Noise.seeded(0, 4000))
    slope = (y[:, 0, 32, 36] - y[:, 0, 32, 28]) / (ramp[0, 0, 0, 36] - ramp[0, 0, 0, 28])
    assert float(slope.log2().std()) == pytest.approx(0.2, abs=0.01)
    assert float(slope.log2().mean()) == pytest.approx(0, abs=0.01)


COLOURED = torch.tensor([[0.1, -0.4, 0.7], [0.5, 0.5, 0.5]])[:, :, None, None].expand(-1, -1, 2, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_luma_flip_makes_white_of_black(channels: int) -> None:
    x = torch.full((400, channels, 2, 2), 0.6)
    y = Adaptive(("luma-flip",), p=1.0)(x, Noise.seeded(0, 400))
    assert torch.allclose(y.abs(), x, atol=1e-6)
    assert float((y < 0).float().mean()) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("name", ["hue", "saturation"])
def test_hue_and_saturation_leave_greys_and_lightness_alone(name: str) -> None:
    changed = Adaptive((name,), p=1.0)
    y = changed(COLOURED.repeat(20, 1, 1, 1), Noise.seeded(0, 40)).view(20, 2, 3, 2, 2)
    assert torch.allclose(y[:, 1], torch.full((), 0.5), atol=1e-5)
    assert torch.allclose(y[:, 0].mean(1), COLOURED[0].mean(0).expand(20, 2, 2), atol=1e-5)
    off = y[:, 0] - y[:, 0].mean(1, keepdim=True)
    lengths = off[:, :, 0, 0].norm(dim=1) / (COLOURED[0, :, 0, 0] - COLOURED[0, :, 0, 0].mean()).norm()
    if name == "hue":
        assert torch.allclose(lengths, torch.ones(20), atol=1e-5)
    else:
        assert float(lengths.log2().std()) == pytest.approx(1.0, abs=0.45)
    grey = torch.full((40, 1, 2, 2), 0.3)
    assert torch.equal(changed(grey, Noise.seeded(0, 40)), grey)


def test_brightness_adds_and_contrast_multiplies() -> None:
    x = COLOURED[:1].expand(3000, -1, -1, -1)
    more = Adaptive(("brightness",), p=1.0)(x, Noise.seeded(0, 3000)) - x
    assert torch.allclose(more, more[:, :1, :1, :1].expand_as(more), atol=1e-6)
    assert float(more[:, 0, 0, 0].std()) == pytest.approx(0.2, abs=0.01)
    times = Adaptive(("contrast",), p=1.0)(x, Noise.seeded(0, 3000)) / x
    assert torch.allclose(times, times[:, :1, :1, :1].expand_as(times), atol=1e-4)
    assert float(times[:, 0, 0, 0].log2().std()) == pytest.approx(0.5, abs=0.02)


def test_gradients_pass_through() -> None:
    x = randn(3, 3, 8, 8, dtype=torch.float32).requires_grad_()
    Adaptive(p=1.0)(x, Noise.seeded(0, 3)).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().sum()) > 0


def test_the_probability_follows_the_signs() -> None:
    changed = Adaptive(p=0.5, target=0.6, kimg=1.0, every=2)
    sure, unsure = torch.ones(50), torch.tensor([1.0, -1.0]).repeat(25)
    changed.adjust(sure)
    assert float(changed.p) == 0.5  # the second batch decides
    changed.adjust(sure)
    assert float(changed.p) == pytest.approx(0.6)  # 100 pictures of 1000
    changed.adjust(unsure)
    changed.adjust(unsure)
    assert float(changed.p) == pytest.approx(0.5)
    for _ in range(40):
        changed.adjust(unsure)
    assert float(changed.p) == 0.0
    for _ in range(60):
        changed.adjust(sure)
    assert float(changed.p) == 1.0
    still = Adaptive(p=0.3, kimg=0.0)
    still.adjust(sure)
    assert float(still.p) == pytest.approx(0.3)


def test_a_critic_that_knows_the_data_raises_the_probability_in_training() -> None:
    gan = model(augment=Adaptive(kimg=0.1, every=1))
    said = gan.critic_loss(batch())
    gan.after_step("critic_loss", {"real": torch.full((4,), 9.0)})
    assert gan.augment is not None
    assert float(gan.augment.p) == pytest.approx(0.04)
    assert float(said.logs["augment"]) == 0
    assert "augment.p" in gan.state_dict()


def test_bad_augmentations_are_told() -> None:
    with pytest.raises(UserError, match="luma-flip"):
        Adaptive(("lumaflip",))
    with pytest.raises(UserError, match="probability"):
        Adaptive(p=1.5)
