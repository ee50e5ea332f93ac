"""The classifier, its nets and its augmentations against closed forms and theorems."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from morphogen.core import NONE, LogProb, Noise, Samples, can, each, keys
from morphogen.data.augment import Flip, Shift, Warp
from morphogen.diffusion.field import Field
from morphogen.diffusion.guide import classified
from morphogen.diffusion.path import VP, Exploding, Linear, Path
from morphogen.diffusion.weight import Uniform
from morphogen.errors import UserError
from morphogen.nets.resnet import Reader, ResNet, SpeedNet, Whitening
from morphogen.spec import build, spec
from morphogen.supervised import Classifier
from morphogen.supervised.classifier import STEPS


def images(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(seed: int, n: int, *shape: int, classes: int = 10, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    key = keys(torch.arange(n), seed)
    label = Noise(key).integers(classes)
    return {"x": images(seed, n, *shape, dtype=dtype), "cond": {"label": label}, "key": key, "index": torch.arange(n)}


class Given(Reader):
    """Reads x (B, 1, 1, K) itself as scores, and keeps what it was shown."""

    def features(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        self.shown = (x, dict(cond))
        return x.flatten(1)

    def scores(self, features: Tensor) -> Tensor:
        return features


# ---- the loss


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 0.2413112967), (0.1, 0.3913112967)])
def test_cross_entropy_oracle(smoothing: float, expected: float) -> None:
    x = torch.tensor([[[[2.0, 0.5, -1.0]]]], dtype=torch.float64)
    one = {"x": x, "cond": {"label": torch.tensor([0])}, "key": torch.tensor([1])}
    loss = Classifier(Given(), smoothing=smoothing).loss(one)
    assert float(loss.value) == pytest.approx(expected, abs=1e-10)
    assert float(loss.logs["accuracy"]) == 1.0


def test_predict_and_log_label() -> None:
    model, x = Classifier(Given()), images(1, 5, 1, 1, 4, dtype=torch.float64)
    assert torch.allclose(model.predict(x), x.flatten(1).exp() / x.flatten(1).exp().sum(1, keepdim=True))
    label = torch.tensor([0, 3, 1, 1, 2])
    assert torch.allclose(model.log_label(x, 0.0, {"label": label}).exp(), model.predict(x)[torch.arange(5), label])
    assert torch.equal(model.features(x), x.flatten(1))
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model.log_label(x, 0.0, {"label": label}).sum(), x)
    onehot = F.one_hot(label, 4).double()
    assert torch.allclose(slope.flatten(1), onehot - model.predict(x))


class Bump(Field):
    """Data N(0, 1) on the path: x̂ = α x_t / (α² + σ²)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def predict(self, x: Tensor, t: float | Tensor, p: object, q: object, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        a, s = (torch.as_tensor(v).reshape(-1, 1, 1, 1) for v in (self.path.alpha(t), self.path.sigma(t)))
        return (p * a + q * s) * x / (a * a + s * s)


class Halves(Reader):
    """The exact classifier of N(0, 1) into positive and not at time t, for the scaled x_t that it is shown.

    x_0 | x_t is N(α u, σ² / h²) with h² = α² + σ² and u = x_t / h² = shown / h.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def features(self, x: Tensor, cond: Mapping[str, Tensor] = NONE) -> Tensor:
        t = cond["t"] / STEPS
        a, s = self.path.alpha(t), self.path.sigma(t)
        return (a / s)[:, None] * x.flatten(1)

    def scores(self, features: Tensor) -> Tensor:
        law = torch.distributions.Normal(0.0, 1.0)
        return torch.cat((law.cdf(-features), law.cdf(features)), 1).log()


@pytest.mark.parametrize("path", [Linear(), VP(), Exploding(5.0)])
def test_guides_a_field_to_the_exact_conditional(path: Path) -> None:
    """With the exact classifier the guided field is E[x_0 | x_t, x_0 > 0], the mean of a truncated normal."""
    x, t = images(1, 40, 1, 1, 1, dtype=torch.float64) * 2, 0.6
    model = Classifier(Halves(path), path=path)
    cond = {"label": torch.ones(40, dtype=torch.int64)}
    found = classified(Bump(path), model.log_label).denoise(x, {"t": torch.full((40,), t, dtype=x.dtype), **cond})
    a, s = path.alpha(t), path.sigma(t)
    mean, std = a * x / (a * a + s * s), s / math.hypot(a, s)
    law = torch.distributions.Normal(0.0, 1.0)
    expected = mean + std * law.log_prob(mean / std).exp() / law.cdf(mean / std)
    assert torch.allclose(found, expected, rtol=1e-8)


def test_is_no_density() -> None:
    model = Classifier(Given())
    assert not can(model, LogProb)
    assert not can(model, Samples)


def test_mistakes() -> None:
    model = Classifier(Given())
    with pytest.raises(UserError, match="needs the classes"):
        model.loss({"x": images(1, 2, 1, 1, 3), "cond": {}, "key": torch.arange(2)})
    with pytest.raises(UserError, match="needs the classes"):
        model.log_label(images(1, 2, 1, 1, 3), 0.0, {})
    with pytest.raises(UserError, match=r"smoothing=1\.0"):
        Classifier(Given(), smoothing=1.0)


@pytest.mark.parametrize("path", [None, VP()])
def test_denominators_are_additive(path: Path | None) -> None:
    """The loss of a batch is the mean of its pieces' losses, with augmentation and noise."""
    net = ResNet(1, 10, 8, multipliers=(1, 2), scalars=("t",) if path else ()).double()
    model = Classifier(net, smoothing=0.1, augment=(Shift(1), Warp()), path=path)
    whole = batch(3, 7, 1, 8, 8, dtype=torch.float64)
    pieces = [each(whole, lambda v, a=a, b=b: v[a:b]) for a, b in ((0, 1), (1, 4), (4, 7))]
    total = sum(model.loss(p).value * model.counts(p)[""] for p in pieces) / model.counts(whole)[""]
    assert float(total.detach()) == pytest.approx(float(model.loss(whole).value.detach()), rel=1e-12)


def test_batch_norms_are_never_split() -> None:
    assert Classifier(SpeedNet(1, 10, (4,))).counts(batch(1, 4, 1, 8, 8)) == {}
    assert Classifier(ResNet(1, 10, 8)).counts(batch(1, 4, 1, 8, 8)) == {"": 4}


@pytest.mark.parametrize("path", [Linear(), VP(), Exploding(50.0)])
def test_noise_aware_inputs(path: Path) -> None:
    """The net sees x_t / sqrt(alpha^2 + sigma^2) with t, both keyed; the same at a given time in `predict`."""
    net = Given()
    model, given = Classifier(net, path=path), batch(5, 2000, 1, 1, 10, dtype=torch.float64)
    model.loss(given)
    shown, cond = net.shown
    t = cond["t"] / STEPS
    alpha, sigma = path.alpha(t), path.sigma(t)
    z = (shown.flatten(1) * torch.hypot(alpha, sigma)[:, None] - alpha[:, None] * given["x"].flatten(1)) / sigma[
        :, None
    ]
    assert abs(float(z.mean())) < 0.03
    assert float(z.var()) == pytest.approx(1, abs=0.03)
    assert float(shown.var()) == pytest.approx(1, abs=0.05)  # the data have variance 1: so has what is shown
    assert float(t.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(t.var()) == pytest.approx(1 / 12, abs=0.005)
    x_t = alpha[:, None, None, None] * given["x"] + sigma[:, None, None, None] * z.view_as(given["x"])
    model.predict(x_t, {"t": t, "label": given["cond"]["label"]})
    assert torch.allclose(net.shown[0], shown)
    assert set(net.shown[1]) == {"t"}  # never the label, which it is to find
    model.predict(given["x"])  # no time: clean
    assert torch.equal(net.shown[1]["t"], torch.zeros(2000, dtype=torch.float64))
    assert torch.allclose(net.shown[0], given["x"])


def test_times() -> None:
    net = Given()
    Classifier(net, path=Linear(), times=Uniform(0.2, 0.3)).loss(batch(5, 200, 1, 1, 10))
    t = net.shown[1]["t"] / STEPS
    assert 0.2 <= float(t.min()) < 0.21 < 0.29 < float(t.max()) <= 0.3


# ---- augmentation


AUGMENTATIONS = [Shift(2), Shift(2, None), Flip(), Warp(15.0, 0.2, 0.1), Warp(15.0, 0.2, 0.1, None)]


@pytest.mark.parametrize("change", AUGMENTATIONS, ids=lambda c: f"{type(c).__name__}-{getattr(c, 'fill', '')}")
def test_each_row_depends_on_its_own_key(change: object) -> None:
    x, key = images(1, 9, 2, 7, 5), keys(torch.arange(9), 4)
    whole = change(x, Noise(key))
    order = torch.tensor([4, 0, 8, 3])
    assert torch.equal(change(x[order], Noise(key[order])), whole[order])
    assert torch.equal(change(x[2:3], Noise(key[2:3])), whole[2:3])
    assert whole.shape == x.shape
    assert whole.dtype == x.dtype
    assert not torch.equal(change(x, Noise(key + 1)), whole)
    assert change(x.double(), Noise(key)).dtype == torch.float64


def test_shift_is_a_whole_move_uniform_over_the_square() -> None:
    n = 5000
    x = torch.full((n, 1, 5, 7), -1.0)
    x[:, :, 2, 3] = 1.0
    found = Shift(2)(x, Noise.seeded(1, n))
    assert bool(((found == 1).sum((1, 2, 3)) == 1).all())
    at = (found == 1).flatten(1).long().argmax(1)
    counts = torch.bincount((at // 7) * 5 + at % 7 - 1, minlength=25).double()
    assert float(((counts - n / 25) ** 2 / (n / 25)).sum()) < 52  # chi-squared with 24 degrees: 0.999 quantile 51.2
    fill = Shift(1, 0.25)(torch.ones(200, 1, 3, 3), Noise.seeded(2, 200))
    assert set(fill.unique().tolist()) == {0.25, 1.0}
    mirrored = Shift(1, None)(torch.arange(9.0).view(1, 1, 3, 3).expand(50, 1, 3, 3), Noise.seeded(3, 50))
    assert any(m.flatten().tolist() == [4, 3, 4, 1, 0, 1, 4, 3, 4] for m in mirrored)  # up and left by one
    assert torch.equal(Shift(0)(x, Noise.seeded(1, n)), x)
    with pytest.raises(UserError, match="cannot mirror"):
        Shift(3, None)(torch.zeros(1, 1, 3, 9), Noise.seeded(1, 1))


def test_flip() -> None:
    x = images(1, 4000, 1, 2, 3)
    found = Flip()(x, Noise.seeded(1, 4000))
    same = (found == x).flatten(1).all(1)
    assert torch.equal(found[~same], x[~same].flip(3))
    assert float(same.double().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(Flip(1.0)(x, Noise.seeded(1, 4000)), x.flip(3))
    assert torch.equal(Flip(0.0)(x, Noise.seeded(1, 4000)), x)
    with pytest.raises(UserError, match="no probability"):
        Flip(1.5)


class Extreme(Noise):
    """Every uniform number is `at`, from which a Warp makes its largest change (1) or its smallest (0)."""

    at = 1.0

    def uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full((len(self), *shape), self.at, dtype=dtype)


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (9, 4)])
def test_warp_by_a_straight_angle_is_exact(size: tuple[int, int]) -> None:
    x, noise = images(1, 2, 1, *size, dtype=torch.float64), Extreme(torch.zeros(2, dtype=torch.int64))
    assert torch.allclose(Warp(0.0, 0.0)(x, noise), x)
    assert torch.allclose(Warp(180.0, 0.0)(x, noise), x.flip(2, 3))
    if size[0] == size[1]:
        assert torch.allclose(Warp(90.0, 0.0)(x, noise), x.rot90(1, (2, 3)))


def test_warp_moves_pixels_as_its_angle_scale_and_slope_say() -> None:
    """On an image that is not square: a turn keeps lengths in pixels, whatever the axes' lengths."""
    h, w = 41, 61
    row, column = torch.meshgrid(torch.arange(h) - 20.0, torch.arange(w) - 30.0, indexing="ij")
    noise = Extreme(torch.zeros(1, dtype=torch.int64))

    def centre(dx: float, dy: float, warp: Warp) -> tuple[float, float]:
        blob = (-((column - dx) ** 2 + (row - dy) ** 2) / 8).exp()[None, None] * 2 - 1
        mass = (warp(blob, noise) + 1)[0, 0]
        return float((mass * column).sum() / mass.sum()), float((mass * row).sum() / mass.sum())

    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    # rows grow downwards, so that a turn against the clock takes (x, y) to (c x + s y, c y - s x)
    assert centre(12.0, 5.0, Warp(30.0, 0.0)) == pytest.approx((c * 12 + s * 5, c * 5 - s * 12), abs=0.05)
    assert centre(12.0, 5.0, Warp(0.0, 0.25)) == pytest.approx((15, 6.25), abs=0.05)
    x, y = centre(12.0, 5.0, Warp(0.0, 0.0, 0.4))
    assert (abs(x - 12), y) == (pytest.approx(0.4 * 5, abs=0.05), pytest.approx(5, abs=0.05))


def test_augmentation_is_for_training_alone() -> None:
    net = Given()
    model, given = Classifier(net, augment=(Flip(1.0),)), batch(1, 3, 1, 1, 10)
    model.loss(given)
    assert torch.equal(net.shown[0], given["x"].flip(3))
    model.eval().loss(given)
    assert torch.equal(net.shown[0], given["x"])


# ---- nets


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (33, 17), (3, 5), (2, 2), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resnet_sizes(size: tuple[int, int], channels: int) -> None:
    net = ResNet(channels, 7, 16)
    x = images(1, 3, channels, *size)
    assert net(x).shape == (3, 7)
    assert net.features(x).shape == (3, 64)
    assert torch.allclose(net(x), net.scores(net.features(x)))
    assert torch.allclose(net(x[1:2]), net(x)[1:2], atol=1e-5)  # no sample sees another


@pytest.mark.parametrize(("dims", "size"), [(1, (11,)), (3, (5, 4, 3))])
def test_resnet_axes(dims: int, size: tuple[int, ...]) -> None:
    assert ResNet(2, 4, 8, dims=dims)(images(1, 2, 2, *size)).shape == (2, 4)


def test_resnet_reads_the_time() -> None:
    net = ResNet(1, 4, 8, scalars=("t",))
    for p in net.parameters():  # blocks start as their skips, which hides the time
        torch.nn.init.normal_(p, std=0.2)
    x = images(1, 2, 1, 8, 8)
    early, late = (net(x, {"t": torch.full((2,), t)}).detach() for t in (0.1, 0.9))
    assert float((early - late).abs().max()) > 1e-3
    with pytest.raises(UserError, match="'t'"):
        net(x)
    with pytest.raises(UserError, match="is empty"):
        ResNet(1, 4, multipliers=())


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (33, 17), (3, 5), (2, 2)])
def test_speednet_sizes(size: tuple[int, int]) -> None:
    net = SpeedNet(3, 7, (8, 8, 16))
    net.start(images(2, 5, 3, *size))
    net(images(1, 4, 3, *size))
    net.eval()
    x = images(1, 3, 3, *size)
    assert net.features(x).shape == (3, 16)
    assert torch.allclose(net(x[1:2]), net(x)[1:2], atol=1e-5)


def test_speednet_too_small() -> None:
    with pytest.raises(UserError, match="smaller kernel"):
        SpeedNet(1, 10)(images(1, 2, 1, 1, 9))


@pytest.mark.parametrize(("channels", "kernel"), [(1, 2), (3, 2), (2, 3)])
def test_whitening(channels: int, kernel: int) -> None:
    """The second moments of what comes out are the identity, twice with opposite signs; the scale of x is no matter."""
    mix = images(1, channels, channels, dtype=torch.float64)
    x = torch.einsum("ij,bjhw->bihw", mix, images(2, 40, channels, 9, 8, dtype=torch.float64)).cumsum(3)
    layer = Whitening(channels, kernel, eps=0.0).double()
    layer.start(x)
    out = layer(x).transpose(0, 1).flatten(1)  # (2 n, B L)
    n = channels * kernel**2
    assert torch.allclose(out[:n] @ out[:n].T / out.shape[1], torch.eye(n, dtype=torch.float64), atol=1e-9)
    assert torch.equal(out[n:], -out[:n])
    damped, large = Whitening(channels, kernel).double(), Whitening(channels, kernel).double()
    damped.start(x)
    large.start(1000 * x)
    assert torch.allclose(large(1000 * x).square(), damped(x).square(), rtol=1e-6)
    flat = Whitening(channels, kernel)
    flat.start(torch.ones(2, channels, 4, 4))  # one direction only: the floor keeps the others finite
    assert bool(flat.filters.isfinite().all())


@pytest.mark.parametrize("net", [ResNet(1, 10, 8), SpeedNet(1, 10, (8, 8))], ids=["ResNet", "SpeedNet"])
def test_every_trained_weight_gets_a_gradient(net: Reader) -> None:
    model = Classifier(net)
    given = batch(1, 16, 1, 8, 8)
    model.start(given)
    for p in model.parameters():
        if p.requires_grad and not p.any():
            torch.nn.init.normal_(p, std=0.1)
    model(given).value.backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead


def test_bfloat16_is_close() -> None:
    model, given = Classifier(ResNet(1, 10, 8)), batch(1, 16, 1, 8, 8)
    exact = model(given).value
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(given).value
    assert rough.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(exact.detach()), rel=1e-2)


# ---- remembered


@pytest.mark.parametrize(
    "make",
    [
        lambda: Classifier(SpeedNet(1, 10, (4, 8)), smoothing=0.2, augment=(Shift(2), Flip(), Warp(10.0))),
        lambda: Classifier(ResNet(1, 10, 8, scalars=("t",)), path=VP(), times=Uniform(0.1, 0.9)),
    ],
)
def test_spec_and_weights_round_trip(make: object) -> None:
    torch.manual_seed(7)
    model = make()
    model.start(batch(1, 9, 1, 8, 8))
    again = build(spec(model), seed=3)
    assert spec(again) == spec(model)
    again.load_state_dict(model.state_dict())  # the whitening's filters too
    given = batch(2, 5, 1, 8, 8)
    assert torch.equal(again.eval().loss(given).value, model.eval().loss(given).value)
    assert torch.equal(again.train().loss(given).value, model.train().loss(given).value)
