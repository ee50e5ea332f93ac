"""Codecs against a critic: the adaptive weight by hand, turns, the critic of patches, the perceptual distance."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from morphogen.adversarial.losses import (
    HINGE,
    NON_SATURATING,
    RELATIVISTIC,
    hinge,
    hinge_generator,
    non_saturating,
    non_saturating_generator,
)
from morphogen.core import Net, Noise, keys
from morphogen.errors import UserError
from morphogen.latent.perceptual import Perceptual, unit
from morphogen.latent.quantise import EMACodeBook
from morphogen.latent.vq import VQVAE, absolute
from morphogen.latent.vqgan import VQGAN, KLAutoencoder, adaptive_weight, led
from morphogen.nets import vgg
from morphogen.nets.autoencoder import Decoder, Encoder
from morphogen.nets.critic import PatchCritic
from morphogen.nets.resnet import ResNet, SpeedNet
from morphogen.nets.vgg import VGG16
from morphogen.spec import Asset
from morphogen.supervised import Classifier


def batch(n: int = 3, size: int = 8, seed: int = 0) -> dict[str, Tensor]:
    x = torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "key": keys(torch.arange(n), seed)}


def nets(outputs: int, inputs: int) -> tuple[Encoder, Decoder]:
    torch.manual_seed(1)
    encoder = Encoder(1, outputs, widths=(4, 8), depth=1, middle=False, groups=4)
    return encoder, Decoder(1, inputs, widths=(4, 8), depth=1, middle=False, groups=4)


def vqgan(**more: object) -> VQGAN:
    codec = VQVAE(*nets(3, 3), EMACodeBook(8, 3), (1, 8, 8), error=absolute)
    perceptual = Perceptual(Classifier(ResNet(1, 10, 4, multipliers=(1, 2))))
    return VQGAN(codec, PatchCritic(1, 4, 1), perceptual, **more)  # type: ignore[arg-type]


# ---- the game ------------------------------------------------------------------------------------------------------


def test_losses_are_their_formulas() -> None:
    real, fake = (
        torch.randn(3, 1, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    real, fake = 3 * real, 3 * fake

    def mean(f: object, *scores: Tensor) -> float:
        values = [f(float(s)) for score in scores for s in score.flatten()]  # type: ignore[operator]
        return sum(values) / len(values)

    def chance(s: float) -> float:
        return 1 / (1 + math.exp(-s))

    assert float(hinge(real, fake)) == pytest.approx(
        mean(lambda s: max(0.0, 1 - s), real) + mean(lambda s: max(0.0, 1 + s), fake)
    )
    assert float(hinge_generator(real, fake)) == pytest.approx(-mean(lambda s: s, fake))
    assert float(non_saturating(real, fake)) == pytest.approx(
        mean(lambda s: -math.log(chance(s)), real) + mean(lambda s: -math.log(1 - chance(s)), fake)
    )
    assert float(non_saturating_generator(real, fake)) == pytest.approx(mean(lambda s: -math.log(chance(s)), fake))
    assert (HINGE.critic, HINGE.generator) == (hinge, hinge_generator)
    assert (NON_SATURATING.critic, NON_SATURATING.generator) == (non_saturating, non_saturating_generator)


def test_scores_far_out_stay_finite() -> None:
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    value = non_saturating(far, far) + non_saturating_generator(far, far)
    value.backward()
    assert far.grad is not None
    assert bool(far.grad.isfinite().all())
    assert bool(value.isfinite())


# ---- the adaptive weight -------------------------------------------------------------------------------------------


def test_the_weight_is_the_ratio_of_the_last_layers_gradients() -> None:
    h, target = (
        torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    last = nn.Conv2d(3, 3, 3, padding=1).double()
    x_hat = last(h)
    rec, play = (x_hat - target).abs().mean(), -x_hat.tanh().mean()
    grads = [torch.autograd.grad(v, last.weight, retain_graph=True)[0] for v in (rec, play)]
    expected = grads[0].square().sum().sqrt() / (grads[1].square().sum().sqrt() + 1e-4)
    g = [torch.autograd.grad(v, x_hat, retain_graph=True)[0] for v in (rec, play)]
    torch.testing.assert_close(adaptive_weight(x_hat, last.weight, *g), expected)
    assert float(adaptive_weight(x_hat, last.weight, g[0], 0 * g[1])) == pytest.approx(
        min(1e4, float(grads[0].norm()) / 1e-4)
    )
    assert float(adaptive_weight(x_hat, last.weight, 1e9 * g[0], 0 * g[1])) == 1e4


def test_a_led_number_has_that_value_and_that_gradient() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    g, value = torch.randn(4, 3), torch.tensor(2.5)
    said = led(2 * x, g, value)
    assert said.item() == 2.5
    torch.testing.assert_close(torch.autograd.grad(said, x)[0], 2 * g)


def test_the_autoencoders_loss_and_gradient_are_those_of_the_plain_sum() -> None:
    model, data = vqgan(likeness=0.3, weight=0.7).double(), batch()
    data["x"] = data["x"].double()
    model.start(data)
    said = model.autoencoder_loss(data)
    own = list(model.codec.parameters())
    found = torch.autograd.grad(said.value, own)
    made = model.codec.reconstruct(data)  # the same again, with nothing cut
    rec = (made.x - data["x"]).abs().mean() + 0.3 * model.perceptual(made.x, data["x"]).mean()
    play = -model.critic(made.x).mean()
    norms = [torch.autograd.grad(v, model.last, retain_graph=True)[0].norm() for v in (rec, play)]
    ratio = (norms[0] / (norms[1] + 1e-4)).detach()
    value = rec + 0.7 * ratio * play + made.penalty
    torch.testing.assert_close(said.value, value)
    torch.testing.assert_close(said.logs["adaptive"], 0.7 * ratio)
    for mine, plain in zip(found, torch.autograd.grad(value, own), strict=True):
        torch.testing.assert_close(mine, plain)


def test_nothing_reaches_the_critic_in_the_autoencoders_turn_nor_the_codec_in_the_critics() -> None:
    model, data = vqgan(), batch()
    model.autoencoder_loss(data).value.backward()
    assert all(p.grad is None for p in model.critic.parameters())
    model.zero_grad()
    model.critic_loss(data).value.backward()
    assert all(p.grad is None for p in model.codec.parameters())
    assert all(p.grad is not None for p in model.critic.parameters())
    turns = model.phases()
    assert [(t.loss.__name__, t.trains) for t in turns] == [
        ("autoencoder_loss", ("codec",)),
        ("critic_loss", ("critic",)),
    ]


def test_before_its_time_there_is_no_critic() -> None:
    model, data = vqgan(after=5), batch()
    model.step = 4
    said = model.autoencoder_loss(data)
    assert "generator" not in said.logs
    rec = said.logs["reconstruction"] + said.logs["perceptual"]
    torch.testing.assert_close(said.value.detach(), rec + model.codec.reconstruct(data).penalty.detach())
    idle = model.critic_loss(data)
    assert idle.value.item() == 0
    idle.value.backward()
    assert all(not bool(p.grad.any()) for p in model.critic.parameters() if p.grad is not None)
    model.step = 5
    assert "generator" in model.autoencoder_loss(data).logs
    assert model.critic_loss(data).value.item() > 0
    model.eval()
    assert "generator" not in model.autoencoder_loss(data).logs  # held-out losses do without


def test_the_critics_loss_is_of_the_codec_as_it_is() -> None:
    model, data = vqgan(game=NON_SATURATING), batch()
    with torch.no_grad():
        fake = model.critic(model.codec.decode(model.codec.encode(data["x"])))
        real = model.critic(data["x"])
    expected = F.softplus(-real).mean() + F.softplus(fake).mean()
    torch.testing.assert_close(model.critic_loss(data).value.detach(), expected)


def test_a_game_that_compares_is_given_the_real_scores() -> None:
    model, data = vqgan(game=RELATIVISTIC), batch()
    model.start(data)
    said = model.autoencoder_loss(data)
    with torch.no_grad():
        fake = model.critic(model.codec.decode(model.codec.encode(data["x"])))
        expected = F.softplus(model.critic(data["x"]) - fake).mean()
    torch.testing.assert_close(said.logs["generator"], expected)


def test_only_the_codecs_own_turn_moves_its_book() -> None:
    model, data = vqgan(), batch(seed=1)
    model.start(batch())
    seen = model.autoencoder_loss(data).seen
    before = model.codec.quantiser.book.clone()
    model.after_step("critic_loss", {})
    assert torch.equal(model.codec.quantiser.book, before)
    model.after_step("autoencoder_loss", seen)
    assert not torch.equal(model.codec.quantiser.book, before)
    assert torch.equal(model.encode(data["x"]), model.codec.encode(data["x"]))


# ---- the KL autoencoder --------------------------------------------------------------------------------------------


def test_stable_diffusions_autoencoder_has_its_parameters() -> None:
    with torch.device("meta"):
        model = KLAutoencoder.stable_diffusion(512)
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    assert model.latent_shape == (4, 64, 64)


def test_the_kl_is_weighed_as_beside_a_sum_over_the_picture() -> None:
    kl, data = 0.01, batch(5)
    model = KLAutoencoder(*nets(4, 2), 2, (1, 8, 8), kl=kl).double()
    data["x"] = data["x"].double()
    said = model.loss(data)
    mean, log_var = model.posterior(data["x"])
    law = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    by_torch = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))  # (B,)
    z = mean + law.stddev * Noise(data["key"]).normal(2, 4, 4, dtype=torch.float64)
    summed = (model.decode(z) - data["x"]).abs().sum((1, 2, 3)) + kl * by_torch
    torch.testing.assert_close(said.value, summed.mean() / 64)
    torch.testing.assert_close(said.logs["kl"], by_torch.mean().detach())
    assert torch.equal(model.encode(data["x"]), mean)
    assert model.latent_shape == (2, 4, 4)


# ---- the critic of patches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_score_sees_its_patch_and_no_more(depth: int) -> None:
    torch.manual_seed(0)
    critic = PatchCritic(1, 4, depth, norm="batch").double().eval()  # batch norms at rest look at nothing else
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(0.1 * torch.randn_like(p))
    field = critic.field
    assert field == {1: 16, 2: 34, 3: 70}[depth]
    x = torch.randn(1, 1, 2 * field + 16, 2 * field + 16, dtype=torch.float64, requires_grad=True)
    scores = critic(x)
    middle = scores.shape[2] // 2
    scores[0, 0, middle, middle].backward()
    assert x.grad is not None
    seen = x.grad[0, 0].ne(0)
    for axis in (0, 1):
        where = seen.any(axis).nonzero()
        assert int(where.max() - where.min()) + 1 == field


def test_the_critic_of_the_paper_has_its_parameters() -> None:
    critic = PatchCritic(3, norm="batch")  # C64-C128-C256-C512: 4 x 4 kernels, biases where there is no norm
    kernels = sum(16 * a * b for a, b in ((3, 64), (64, 128), (128, 256), (256, 512), (512, 1)))
    assert sum(p.numel() for p in critic.parameters()) == kernels + 64 + 1 + 2 * (128 + 256 + 512)
    assert PatchCritic(3)(torch.randn(1, 3, 24, 33)).shape == (1, 1, 1, 2)
    with pytest.raises(UserError, match="24 pixels or more"):
        PatchCritic(3)(torch.randn(1, 3, 23, 40))
    with pytest.raises(UserError, match="did you mean 'batch'"):
        PatchCritic(3, norm="bach")


# ---- the perceptual distance ---------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-16 with a sixteenth of its channels, to be quick."""
    monkeypatch.setattr(vgg, "GROUPS", tuple(tuple(wide // 16 for wide in group) for group in vgg.GROUPS))


def test_vgg_has_the_convolutions_of_the_paper() -> None:
    widths = [3, *(wide for group in vgg.GROUPS for wide in group)]
    assert sum(9 * a * b + b for a, b in itertools.pairwise(widths)) == 14_714_688


def weights_of_vgg(folder: Path) -> tuple[Asset, dict[str, Tensor]]:
    tensors, layer, now = {"classifier.0.weight": torch.zeros(1)}, 0, 3
    generator = torch.Generator().manual_seed(3)
    for group in vgg.GROUPS:
        for wide in group:
            tensors[f"features.{layer}.weight"] = (
                torch.randn(wide, now, 3, 3, generator=generator) * (2 / now / 9) ** 0.5
            )
            tensors[f"features.{layer}.bias"] = 0.1 * torch.randn(wide, generator=generator)
            now, layer = wide, layer + 2
        layer += 1
    save_file(tensors, folder / "vgg.safetensors")
    return Asset(folder / "vgg.safetensors"), tensors


def test_lpips_is_its_formula(narrow: None, tmp_path: Path) -> None:
    file, tensors = weights_of_vgg(tmp_path)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, g[-1], 1, 1) for i, g in enumerate(vgg.GROUPS)}
    save_file(linear, tmp_path / "lin.safetensors")
    distance = Perceptual.lpips(file, Asset(tmp_path / "lin.safetensors"))
    x, y = (torch.rand(2, 3, 35, 32, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))

    def maps(x: Tensor) -> list[Tensor]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of pixels in [0, 1]
        h, found, layer = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None], [], 0
        for k, group in enumerate(vgg.GROUPS):
            if k:
                h, layer = F.max_pool2d(h, 2), layer + 1
            for _ in group:
                h = F.relu(
                    F.conv2d(h, tensors[f"features.{layer}.weight"], tensors[f"features.{layer}.bias"], padding=1)
                )
                layer += 2
            found.append(h)
        return found

    expected = torch.zeros(2)
    for level, (f, g) in enumerate(zip(maps(x), maps(y), strict=True)):
        apart = (F.normalize(f, dim=1) - F.normalize(g, dim=1)).square()
        expected += (apart * linear[f"lin{level}.model.1.weight"]).sum(1).mean((1, 2))
    torch.testing.assert_close(
        distance(x, y), expected, rtol=2e-3, atol=1e-5
    )  # shift and scale have three digits there
    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert not bool(distance(x, x).any())
    grey, other = x[:, :1], y[:, 1:2]
    torch.testing.assert_close(distance(grey, other), distance(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("net", [ResNet(1, 10, 4, multipliers=(1, 2, 2)), SpeedNet(1, 10, (4, 8))])
def test_any_classifier_gives_a_distance(net: nn.Module) -> None:
    classifier = Classifier(net)  # type: ignore[arg-type]
    x, y = (torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    before = classifier.eval().features(x)
    distance = Perceptual(classifier)
    x.requires_grad_()
    apart = distance(x, y)
    assert apart.shape == (3,)
    assert bool((apart > 0).all())
    expected = sum(
        (F.normalize(f, dim=1) - F.normalize(g, dim=1)).square().sum(1).mean((1, 2))
        for f, g in zip(classifier.maps(x), classifier.maps(y), strict=True)
    )
    torch.testing.assert_close(apart, expected)
    assert not bool(distance(x, x).any())
    apart.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    distance.train()
    assert not any(m.training for m in distance.modules())
    assert not any(p.requires_grad for p in distance.parameters())
    assert torch.equal(distance(x, y), apart)
    assert torch.equal(classifier.features(x), before)


def test_nothing_seen_is_at_no_distance_and_has_a_gradient() -> None:
    f = torch.zeros(1, 3, 2, 2, requires_grad=True)
    unit(f).square().sum().backward()
    assert f.grad is not None
    assert bool(f.grad.isfinite().all())


class Nothing(Net):
    """A net whose maps are of other channels."""

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x, x]


def test_weights_that_do_not_fit_are_told(narrow: None, tmp_path: Path) -> None:
    file, tensors = weights_of_vgg(tmp_path)
    del tensors["features.2.bias"]
    save_file(tensors, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"features\.2\.bias should be \(4,\) and is missing"):
        VGG16(Asset(tmp_path / "short.safetensors"))
    (tmp_path / "no.safetensors").write_text("nothing")
    with pytest.raises(UserError, match="is no safetensors file"):
        VGG16(Asset(tmp_path / "no.safetensors"))
    with pytest.raises(UserError, match="no weights of LPIPS"):
        Perceptual(Nothing(), file)
    save_file({f"lin{i}.model.1.weight": torch.ones(1, 2, 1, 1) for i in range(2)}, tmp_path / "lin.safetensors")
    with pytest.raises(UserError, match="belong to another net"):
        Perceptual(Nothing(), Asset(tmp_path / "lin.safetensors"))(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    assert (
        float(
            Perceptual(Nothing(), Asset(tmp_path / "lin.safetensors"))(
                *torch.eye(2)[:, None, :, None, None][:, :1].view(2, 1, 2, 1, 1)
            )
        )
        == 4
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: vqgan(weight=-1.0), "weight=-1.0"),
        (lambda: KLAutoencoder(*nets(3, 2), 2, (1, 8, 8)).encode(torch.zeros(1, 1, 8, 8)), "3 channels"),
        (lambda: KLAutoencoder(*nets(4, 2), 2, (1, 8, 8), kl=-1.0), "-1.0"),
        (
            lambda: VQGAN(
                KLAutoencoder(nets(4, 2)[0], nn.ConvTranspose2d(2, 1, 2, 2), 2, (1, 8, 8)), PatchCritic(1, 4, 1)
            ),
            "last",
        ),
        (lambda: PatchCritic(1, 4, 0), "depth 0"),
    ],
)
def test_mistakes_are_told(make: object, said: str) -> None:
    with pytest.raises(UserError) as told:
        make()  # type: ignore[operator]
    assert said in str(told.value)
