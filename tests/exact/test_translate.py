"""Pictures from pictures: losses by hand, the buffer's law, the nets, and what both papers say can be counted."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.adversarial.losses import HINGE, LEAST_SQUARES, NON_SATURATING, RELATIVISTIC, RELATIVISTIC_AVERAGE
from morphogen.adversarial.translate import CycleGAN, Pix2Pix, Pool
from morphogen.core import Net, Noise, keys, size
from morphogen.data.items import Tensors
from morphogen.data.paired import Unpaired
from morphogen.data.source import Shuffled
from morphogen.errors import UserError
from morphogen.experiment import Data
from morphogen.hooks import Voice
from morphogen.metrics.translation import translated
from morphogen.nets.critic import PatchCritic
from morphogen.nets.translate import TranslationResNet, TranslationUNet, dropped
from morphogen.optim import AdamW, Linear
from morphogen.train import Trainer


def pairs(n: int = 3, size: int = 12, seed: int = 0, channels: int = 1) -> dict[str, object]:
    """A batch of pairs, the source of `channels` channels."""
    g = torch.Generator().manual_seed(seed)
    x, source = (torch.rand(n, c, size, size, generator=g) * 2 - 1 for c in (1, channels))
    return {"x": x, "cond": {"source": source}, "key": keys(torch.arange(n), seed)}


def pix2pix(critic: bool = True, **more: object) -> Pix2Pix:
    torch.manual_seed(1)
    net = TranslationUNet(2, 1, 4, 3, dropped=1)
    return Pix2Pix(net, PatchCritic(3, 4, 1) if critic else None, (2, 12, 12), (1, 12, 12), **more)  # type: ignore[arg-type]


class Same(Net):
    """The identity, as a translation."""

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return x


def cyclegan(same: bool = False, shape: tuple[int, ...] = (1, 12, 12), **more: object) -> CycleGAN:
    torch.manual_seed(2)
    nets = [Same() if same else TranslationResNet(1, 1, 4, 1) for _ in range(2)]
    critics = [PatchCritic(1, 4, 1) for _ in range(2)]
    return CycleGAN(*nets, *critics, shape, shape, **more)  # type: ignore[arg-type]


# ---- pix2pix -------------------------------------------------------------------------------------------------------


def test_pix2pix_gradients_are_those_of_a_plain_loop() -> None:
    model, batch = pix2pix().double(), pairs(4, channels=2)
    x, source = batch["x"].double(), batch["cond"]["source"].double()  # type: ignore[union-attr, index, call-overload]
    batch |= {"x": x, "cond": {"source": source}}
    bce = nn.BCEWithLogitsLoss()
    G, D = copy.deepcopy(model.generator), copy.deepcopy(model.critic)
    made = G(source, Noise(batch["key"]))  # type: ignore[arg-type]
    real, fake = D(torch.cat((source, x), 1)), D(torch.cat((source, made.detach()), 1))  # type: ignore[misc]
    loss_d = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    loss_d.backward()
    fake = D(torch.cat((source, made), 1))  # type: ignore[misc]
    loss_g = bce(fake, torch.ones_like(fake)) + 100 * (made - x).abs().sum() / x.numel()
    grads = torch.autograd.grad(loss_g, list(G.parameters()))

    said = model(batch, "critic_loss")
    torch.testing.assert_close(said.value, loss_d)
    said.value.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    for p, q in zip(model.critic.parameters(), D.parameters(), strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(p.grad, q.grad)
    shares = (real > 0).double().mean(), (fake < 0).double().mean()
    assert float(said.logs["right"]) == pytest.approx(float(sum(shares)) / 2)
    said = model(batch, "generator_loss")
    torch.testing.assert_close(said.value, loss_g)
    for g, h in zip(torch.autograd.grad(said.value, list(model.generator.parameters())), grads, strict=True):
        torch.testing.assert_close(g, h)
    torch.testing.assert_close(said.logs["l1"], F.l1_loss(made, x).detach())


def test_the_control_is_the_absolute_error_alone() -> None:
    model, alone, batch = pix2pix(), pix2pix(critic=False), pairs(channels=2)
    assert [p.loss.__name__ for p in alone.phases()] == ["generator_loss"]
    assert [p.trains for p in model.phases()] == [("critic",), ("generator",)]
    for p, q in zip(model.generator.parameters(), alone.generator.parameters(), strict=True):
        assert torch.equal(p, q)  # the same net from the same seed
    l1 = model(batch, "generator_loss").logs["l1"]
    torch.testing.assert_close(alone(batch, "generator_loss").value.detach(), 100 * l1)


def test_the_critic_comes_after_so_many_steps() -> None:
    model, plain, batch = pix2pix(after=2), pix2pix(), pairs(channels=2)
    model.step = 1
    said = model(batch, "generator_loss")
    torch.testing.assert_close(said.value.detach(), 100 * said.logs["l1"])
    model(batch, "critic_loss").value.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.critic.parameters())  # type: ignore[union-attr]
    for ready in (2, 3):
        model.step = ready
        for phase in ("generator_loss", "critic_loss"):
            assert torch.equal(model(batch, phase).value, plain(batch, phase).value)
    model.step = 0
    assert torch.equal(model.eval()(batch, "critic_loss").value, plain.eval()(batch, "critic_loss").value)


class Constant(Net):
    """One learned picture, whatever the source."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.zeros(1, size, size))

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return self.picture.expand(len(x), -1, -1, -1)


def test_the_best_constant_of_the_absolute_error_is_the_median() -> None:
    batch = pairs(7, 4, seed=5)
    batch["x"] = batch["x"] ** 3  # type: ignore[operator]  # a mean that is no median
    model = Pix2Pix(Constant(4), None, (1, 4, 4), (1, 4, 4), l1=1.0)
    optim = torch.optim.SGD(model.parameters(), 1.0)
    for k in range(600):
        optim.zero_grad()
        model(batch, "generator_loss").value.backward()
        optim.param_groups[0]["lr"] = 2.0 * 0.99**k
        optim.step()
    median, mean = batch["x"].median(0).values, batch["x"].mean(0)  # type: ignore[attr-defined]
    assert float((model.generator.picture.detach() - median).abs().max()) < 0.02
    assert float((mean - median).abs().max()) > 0.1


def test_relativistic_games_are_shown_real_pairs_too() -> None:
    batch, model = pairs(4, channels=2), pix2pix(game=RELATIVISTIC)
    source, x = batch["cond"]["source"], batch["x"]  # type: ignore[index]
    made = model.translate(source, noise=Noise(batch["key"]))  # type: ignore[arg-type]
    real, fake = (model.critic(torch.cat((source, p), 1)) for p in (x, made))  # type: ignore[misc, arg-type]
    expected = F.softplus(real - fake).mean() + 100 * F.l1_loss(made, x)  # type: ignore[arg-type]
    torch.testing.assert_close(model(batch, "generator_loss").value, expected)
    assert pix2pix(game=RELATIVISTIC_AVERAGE).counts(batch) == {}
    assert pix2pix(game=HINGE).counts(batch) == {"": 4.0}


def test_translations_of_one_source_differ_by_noise_alone() -> None:
    model, source = pix2pix().eval(), pairs(channels=2)["cond"]["source"]  # type: ignore[index]
    assert torch.equal(model.translate(source), model.translate(source))
    a, b = (model.translate(source, noise=Noise.seeded(s, 3)) for s in (0, 1))
    assert not torch.allclose(a, b)
    assert torch.allclose(model.sample(3, {"source": source}, noise=Noise.seeded(0, 3)), a)
    with pytest.raises(UserError, match="source"):
        model.sample(3)


# ---- CycleGAN ------------------------------------------------------------------------------------------------------


def test_identical_generators_lose_nothing() -> None:
    model, batch = cyclegan(same=True), pairs()
    logs = model(batch, "generator_loss").logs
    assert (float(logs["cycle"]), float(logs["identity"])) == (0.0, 0.0)
    assert torch.equal(model.translate(batch["x"]), batch["x"])  # type: ignore[arg-type]


def test_cyclegan_losses_are_those_of_a_plain_loop() -> None:
    model, batch = cyclegan().double(), pairs(3)
    x, a = batch["x"].double(), batch["cond"]["source"].double()  # type: ignore[union-attr, index, call-overload]
    batch |= {"x": x, "cond": {"source": a}}
    G, back, D, D_back = (copy.deepcopy(m) for m in (model.generator, model.back, model.critic, model.critic_back))

    def squares(scores: Tensor, aim: float) -> Tensor:
        return ((scores - aim) ** 2).mean() / 2

    made, made_back = G(a), back(x)
    expected = squares(D(made), 1) + squares(D_back(made_back), 1)
    expected = expected + 10 * ((back(made) - a).abs().mean() + (G(made_back) - x).abs().mean())
    expected = expected + 5 * ((G(x) - x).abs().mean() + (back(a) - a).abs().mean())
    params = [*model.generator.parameters(), *model.back.parameters()]
    said = model(batch, "generator_loss").value
    torch.testing.assert_close(said, expected)
    grads = torch.autograd.grad(expected, [*G.parameters(), *back.parameters()])
    for g, h in zip(torch.autograd.grad(said, params), grads, strict=True):
        torch.testing.assert_close(g, h)
    critics = squares(D(x), 1) + squares(D(made), -1) + squares(D_back(a), 1) + squares(D_back(made_back), -1)
    torch.testing.assert_close(model(batch, "critic_loss").value, critics)  # the buffers are empty still


def test_kinds_of_two_shapes_have_no_identity() -> None:
    nets = (TranslationResNet(3, 1, 4, 1), TranslationResNet(1, 3, 4, 1), PatchCritic(1, 4, 1), PatchCritic(3, 4, 1))
    with pytest.raises(UserError, match="identity=0"):
        CycleGAN(*nets, (3, 12, 12), (1, 12, 12))
    model, batch = CycleGAN(*nets, (3, 12, 12), (1, 12, 12), identity=0.0), pairs(channels=3)
    assert "identity" not in model(batch, "generator_loss").logs
    assert model.translate(batch["cond"]["source"]).shape == (3, 1, 12, 12)  # type: ignore[index]
    assert model.translate_back(batch["x"]).shape == (3, 3, 12, 12)  # type: ignore[arg-type]


class Published:
    """The buffer as the paper's own words have it, a picture at a time; chances are given."""

    def __init__(self, size: int) -> None:
        self.size, self.pictures = size, []

    def query(self, made: float, chance: float, slot: int) -> float:
        if len(self.pictures) < self.size:
            self.pictures.append(made)
            return made
        if chance < 0.5:
            old, self.pictures[slot] = self.pictures[slot], made
            return old
        return made


def test_the_buffer_of_batches_of_one_is_the_published_one() -> None:
    pool, published = Pool(5, (1,)), Published(5)
    for i in range(60):
        key = keys(torch.tensor([i]), 3)
        made, noise = torch.tensor([[float(i)]]), Noise(key)
        chance, slot = float(noise.uniform()), int(noise.integers(5))
        before = pool.pictures.clone()
        shown, place = pool(made, Noise(key))
        assert torch.equal(pool.pictures, before)  # asking changes nothing
        assert float(shown) == published.query(float(i), chance, slot)
        pool.put(made, place)
        assert pool.pictures[:, 0].tolist()[: len(published.pictures)] == published.pictures
        assert int(pool.held) == len(published.pictures)


def test_of_a_full_buffer_half_are_swapped_and_the_first_pass_through() -> None:
    pool = Pool(50, (1,))
    made = torch.arange(48.0)[:, None]
    shown, slot = pool(made, Noise.seeded(0, 48))
    assert torch.equal(shown, made)
    pool.put(made, slot)
    more = torch.arange(100.0, 104.0)[:, None]  # the buffer has room for two of four
    pool.put(more, pool(more, Noise.seeded(1, 4))[1])
    assert pool.pictures[48:, 0].tolist() == [100.0, 101.0]
    assert int(pool.held) == 50
    many = torch.full((4000, 1), -1.0)
    shown, slot = pool(many, Noise.seeded(2, 4000))
    swapped = shown[:, 0] != -1
    assert abs(float(swapped.double().mean()) - 0.5) < 4 * 0.5 / 4000**0.5
    assert torch.equal(swapped, slot >= 0)
    assert set(shown[swapped, 0].tolist()) == set(pool.pictures[:, 0].tolist())  # each place is drawn
    assert torch.equal(pool.eval()(many, Noise.seeded(2, 4000))[0], many)  # nothing old is shown when not training


def test_of_several_in_one_place_the_last_stays() -> None:
    pool, rng = Pool(4, (2,)), random.Random(0)
    pool.put(torch.zeros(4, 2), torch.full((4,), -1))
    expected = [0.0] * 4
    slots = [rng.randrange(-1, 4) for _ in range(30)]
    for i, slot in enumerate(slots):
        if slot >= 0:
            expected[slot] = i + 1.0
    pool.put(torch.arange(1.0, 31.0)[:, None].expand(30, 2), torch.tensor(slots))
    assert pool.pictures[:, 1].tolist() == expected


def test_without_a_buffer_everything_passes() -> None:
    model, batch = cyclegan(pool=0), pairs()
    said = model(batch, "critic_loss")
    model.after_step("critic_loss", said.seen)
    assert model.pool.pictures.shape == (0, 1, 12, 12)
    assert torch.isfinite(said.value)


def test_the_buffer_is_saved_with_the_run(tmp_path: Path) -> None:
    def fit(folder: Path, until: int | None) -> CycleGAN:
        g = torch.Generator().manual_seed(0)
        kinds = [Shuffled(Tensors(torch.rand(12, 1, 12, 12, generator=g)), 4) for _ in range(2)]
        optim = AdamW(1e-3, schedule=Linear())
        trainer = Trainer(6, optim={"generator+back": optim, "critic+critic_back": optim}, save_every=6)
        model = cyclegan(pool=5)
        trainer.fit(model, Data(Unpaired(*kinds)), run=folder, device="cpu", voice=Voice(), until=until)
        return model

    whole = fit(tmp_path / "whole", None)
    fit(tmp_path / "cut", 3)
    cut = fit(tmp_path / "cut", None)
    assert int(whole.pool.held) == 5
    assert len({tuple(p.flatten().tolist()) for p in whole.pool.pictures}) == 5
    for name, t in whole.state_dict().items():
        assert torch.equal(t, cut.state_dict()[name]), name


# ---- nets ----------------------------------------------------------------------------------------------------------


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_papers_nets_have_their_size() -> None:
    with torch.device("meta"):
        unet, resnet = TranslationUNet(3, 3), TranslationResNet(3, 3)
        critics = PatchCritic(6, 64, 3, norm="batch"), PatchCritic(3, 64, 3, norm="batch")
    assert parameters(unet) == 54_413_955 + 64 + 512  # their code has no bias in the first and the innermost layer
    # their norms have no gain and shift and their convolutions a bias: half as much
    norms = sum(parameters(m) for m in resnet.modules() if isinstance(m, nn.InstanceNorm2d))
    assert parameters(resnet) - norms // 2 == 11_378_179
    assert [round(parameters(c) / 1e6, 3) for c in critics] == [2.769, 2.766]


@pytest.mark.parametrize("height", [8, 13, 16])
@pytest.mark.parametrize("width", [9, 28])
def test_nets_keep_every_size(height: int, width: int) -> None:
    x = torch.randn(2, 2, height, width)
    for net in (TranslationUNet(2, 3, 4, 3), TranslationResNet(2, 3, 4, 1)):
        y = net(x, Noise.seeded(0, 2))
        assert y.shape == (2, 3, height, width)
        assert float(y.detach().abs().max()) <= 1


def test_too_small_a_picture_is_a_sentence() -> None:
    with pytest.raises(UserError, match="7 x 9, and a TranslationUNet of depth 3 wants 8"):
        TranslationUNet(1, 1, 4, 3)(torch.zeros(1, 1, 7, 9))
    with pytest.raises(UserError, match="wants 8 pixels"):
        TranslationResNet(1, 1, 4, 1)(torch.zeros(1, 1, 8, 7))
    for wrong in ({"dropout": 1.0}, {"dropout": -0.1}, {"depth": 1}, {"width": 0}):
        with pytest.raises(UserError):
            TranslationUNet(1, 1, **wrong)  # type: ignore[arg-type]


def test_down_to_one_pixel_and_a_batch_of_one() -> None:
    net = TranslationUNet(1, 1, 4, 3)
    assert torch.isfinite(net(torch.randn(1, 1, 8, 8))).all()


@pytest.mark.parametrize("net", [TranslationUNet(1, 1, 4, 3), TranslationResNet(1, 1, 4, 1, dropout=0.5)])
def test_no_picture_sees_another(net: nn.Module) -> None:
    net = copy.deepcopy(net).double().train()
    x = torch.randn(4, 1, 9, 11, dtype=torch.float64)
    whole = net(x, Noise.seeded(0, 4))
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1], Noise.seeded(0, 1, start=i)), whole[i : i + 1])
    torch.manual_seed(0)
    assert torch.equal(net(x, Noise.seeded(0, 4)), whole)  # nothing from the global generator
    assert not torch.allclose(net(x, None), whole)


def test_a_share_is_dropped_and_the_mean_stays() -> None:
    h = torch.ones(500, 40, dtype=torch.float64)
    out = dropped(h, 0.3, Noise.seeded(0, 500))
    assert set(out.unique().tolist()) == {0.0, 1 / 0.7}
    assert abs(float(out.mean()) - 1) < 4 * (0.3 / 0.7 / h.numel()) ** 0.5
    assert dropped(h, 0.3, None) is h


def test_the_conditional_critic_sees_patches_of_seventy() -> None:
    critic = PatchCritic(2, 4, 3).double().eval()
    x = torch.randn(1, 2, 156, 156, dtype=torch.float64, requires_grad=True)
    for p in critic.norms:  # a norm would look at the whole picture
        p.forward = lambda h: h  # type: ignore[method-assign]
    scores = critic(x)
    i = scores.shape[2] // 2
    (g,) = torch.autograd.grad(scores[0, 0, i, i], x)
    for channel in range(2):  # source and picture alike
        rows = (g[0, channel].abs().sum(1) > 0).nonzero()[:, 0]
        assert int(rows.max() - rows.min()) + 1 == 70


# ---- the schedule, and translating ---------------------------------------------------------------------------------


def test_the_rate_is_flat_and_then_falls_to_nothing() -> None:
    rate = Linear()
    assert [rate(s, 200) for s in (1, 100, 150, 200)] == [1.0, 1.0, 0.5, 0.0]
    assert Linear(0.0, 0.2)(5, 10) == pytest.approx(0.6)


def test_translations_leave_the_model_as_it_was_and_do_not_mix() -> None:
    model, source = pix2pix().train(), pairs(5, channels=2)["cond"]["source"]  # type: ignore[index]
    model.critic.eval()  # type: ignore[union-attr]
    made = translated(model, source, chunk=2)
    assert model.training
    assert not model.critic.training  # type: ignore[union-attr]
    torch.testing.assert_close(made, translated(model, source, chunk=5))
    with pytest.raises(UserError, match="Pix2Pix goes one way only"):
        translated(model, source, back=True)
    with pytest.raises(UserError, match="Linear makes no pictures"):
        translated(nn.Linear(2, 2), source)
    told: list[int] = []
    back = translated(cyclegan(), pairs(5)["x"], back=True, chunk=2, progress=told.append)  # type: ignore[arg-type]
    assert (back.shape, told) == ((5, 1, 12, 12), [2, 4, 5])


def test_wrong_settings_are_sentences() -> None:
    for wrong in ({"cycle": -1.0}, {"pool": -1}, {"identity": -0.5}):
        with pytest.raises(UserError, match="0 or more"):
            cyclegan(**wrong)
    with pytest.raises(UserError, match="l1=-1"):
        pix2pix(l1=-1.0)
    for wrong in ({"critic": False, "l1": 0.0}, {"l1": 0.0, "after": 3}, {"after": -1}):
        with pytest.raises(UserError, match="no critic"):
            pix2pix(**wrong)
    with pytest.raises(UserError, match="one height"):
        Pix2Pix(TranslationUNet(1, 1, 4, 3), PatchCritic(2, 4, 1), (1, 8, 8), (1, 12, 12))
    assert (pix2pix().game, cyclegan().game) == (NON_SATURATING, LEAST_SQUARES)
    assert size(pairs()) == 3
