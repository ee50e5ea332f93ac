"""Progressive growing: at α = 0 the nets are the smaller ones, at 1 the new block alone; cut in every stage."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from morphogen.adversarial.losses import NON_SATURATING
from morphogen.adversarial.penalties import R1
from morphogen.adversarial.progressive import Growth, ProgressiveGAN, shrunk
from morphogen.core import Noise, keys
from morphogen.data.items import Tensors
from morphogen.data.source import Shuffled
from morphogen.errors import UserError
from morphogen.experiment import Data, Experiment
from morphogen.hooks import Voice
from morphogen.log import read
from morphogen.nets.conv import doubled, halved
from morphogen.nets.progressive import GrowingCritic, GrowingGenerator, Stage
from morphogen.optim import AdamW
from morphogen.spec import Asset, build, spec
from morphogen.testing.case import changed
from morphogen.train import Trainer

SHAPE, WIDTHS = (1, 14, 15), (6, 5, 4)  # 4x4, 8x8, 16x16


def nets(classes: int | None = None) -> tuple[GrowingGenerator, GrowingCritic]:
    torch.manual_seed(1)
    generator = GrowingGenerator(SHAPE, WIDTHS, latent=7, classes=classes).double()
    return generator, GrowingCritic(SHAPE, WIDTHS, classes=classes).double()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the ends of a fade --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_at_alpha_zero_the_nets_are_those_of_the_size_below(level: int, seed: int) -> None:
    generator, critic = nets()
    z, x = randn(5, 7, seed=seed), randn(5, 1, 4 << level, 4 << level, seed=seed)
    small = generator(z, stage=Stage(level - 1))
    assert torch.allclose(generator(z, stage=Stage(level, 0.0)), doubled(small))
    assert torch.allclose(critic(x, stage=Stage(level, 0.0)), critic(halved(x), stage=Stage(level - 1)))


@pytest.mark.parametrize("level", [1, 2])
def test_at_alpha_one_the_old_way_is_not_used(level: int) -> None:
    generator, critic = nets()
    z, x = randn(5, 7), randn(5, 1, 4 << level, 4 << level)
    before = generator(z, stage=Stage(level)), critic(x, stage=Stage(level))
    with torch.no_grad():
        for net in (generator, critic):
            for old in net.images[:level]:
                old.weight.fill_(9.0)
    assert torch.equal(generator(z, stage=Stage(level)), before[0])
    assert torch.equal(critic(x, stage=Stage(level)), before[1])
    with torch.no_grad():
        generator.images[level].weight.zero_()
        generator.images[level].bias.fill_(0.25)  # type: ignore[union-attr]
    assert torch.equal(generator(z, stage=Stage(level)), torch.full((5, 1, 4 << level, 4 << level), 0.25).double())


@pytest.mark.parametrize("alpha", [0.25, 0.8])
def test_between_a_generator_is_the_mixture_of_both(alpha: float) -> None:
    generator, _ = nets()
    z = randn(3, 7)
    old, new = doubled(generator(z, stage=Stage(0))), generator(z, stage=Stage(1))
    assert torch.allclose(generator(z, stage=Stage(1, alpha)), (1 - alpha) * old + alpha * new)


def test_real_pictures_are_shrunk_and_faded_as_the_nets_are() -> None:
    x = randn(2, 1, 16, 16)
    assert torch.equal(shrunk(x, Stage(2)), x)
    assert torch.allclose(shrunk(x, Stage(0)), x.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)))
    small = halved(x)
    assert torch.allclose(shrunk(x, Stage(1, 0.0)), doubled(halved(small)))
    assert torch.allclose(shrunk(x, Stage(1, 0.3)), 0.7 * doubled(halved(small)) + 0.3 * small)
    assert torch.equal(shrunk(x, Stage(1, 1.0)), small)


def test_feature_vectors_are_normed_and_weights_keep_the_variance() -> None:
    torch.manual_seed(0)
    wide = GrowingGenerator((1, 8, 8), (256, 256), latent=128)
    h = wide.first(torch.nn.functional.normalize(torch.randn(64, 128), dim=1) * 128**0.5)
    assert float(h.detach().var()) == pytest.approx(2 / 16, rel=0.1)
    x = wide(torch.randn(64, 128), stage=Stage(1))
    assert float(x.detach().square().mean()) == pytest.approx(1, rel=0.5)  # of features of mean square 1


# ---- growth --------------------------------------------------------------------------------------------------------


def test_growth_goes_through_every_stage_in_order() -> None:
    growth = Growth(stable=3, fade=4)
    stages = [growth.stage(step, 3) for step in range(30)]
    assert stages[:3] == [Stage(0)] * 3
    assert [s.level for s in stages[3:10]] == [1] * 7
    assert [s.alpha for s in stages[3:8]] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [s.level for s in stages[10:17]] == [2] * 7
    assert set(stages[17:]) == {Stage(2)}
    grown = [s.level + s.alpha for s in stages]
    assert all(b >= a for a, b in itertools.pairwise(grown))
    assert all(0 < s.alpha <= 1 for s in stages)


@pytest.mark.parametrize(("stable", "fade"), [(0, 5), (5, 0), (0, 0)])
def test_growth_without_one_of_both(stable: int, fade: int) -> None:
    growth = Growth(stable, fade)
    stages = [growth.stage(step, 3) for step in range(40)]
    assert stages[-1] == Stage(2)
    assert stages[0].level == (0 if stable else 1 if fade else 2)
    if not fade:
        assert all(s.alpha == 1 for s in stages)
    assert growth.stage(7, 1) == Stage(0)


def test_bad_arguments_are_told() -> None:
    with pytest.raises(UserError, match="0 steps or more"):
        Growth(-1, 3)
    with pytest.raises(UserError, match="give both the same"):
        ProgressiveGAN(GrowingGenerator(SHAPE, WIDTHS), GrowingCritic(SHAPE, WIDTHS, classes=3), Growth(1, 1))
    with pytest.raises(UserError, match="drift"):
        ProgressiveGAN(*nets(), Growth(1, 1), drift=-1.0)


# ---- the model -----------------------------------------------------------------------------------------------------


def model(classes: int | None = None, **more: object) -> ProgressiveGAN:
    torch.manual_seed(2)
    generator = GrowingGenerator(SHAPE, WIDTHS, latent=7, classes=classes)
    growth = more.pop("growth", Growth(3, 3))
    return ProgressiveGAN(generator, GrowingCritic(SHAPE, WIDTHS, classes=classes), growth, **more)  # type: ignore[arg-type]


def batch(n: int = 4, classes: int = 0) -> dict[str, object]:
    found: dict[str, object] = {"x": randn(n, *SHAPE).float(), "key": keys(torch.arange(n), 5)}
    return found | ({"cond": {"label": torch.arange(n) % classes}} if classes else {})


def test_samples_have_the_shape_of_the_data_in_every_stage() -> None:
    gan = model()
    for gan.step in range(18):
        x = gan.sample(3, noise=Noise.seeded(0, 3))
        assert x.shape == (3, *SHAPE)
        if gan.step < 3:  # 4x4 pixels, enlarged: the picture is the middle of 16x16
            assert torch.equal(x[:, :, 3:7, 4:8], x[:, :, 3:4, 4:5].expand(-1, -1, 4, 4))


def test_only_what_is_grown_is_trained() -> None:
    gan = model()
    for gan.step, level in ((0, 0), (4, 1), (17, 2)):
        gan.zero_grad()
        gan.critic_loss(batch()).value.backward()
        gan.generator_loss(batch()).value.backward()
        for net in (gan.generator, gan.critic):
            used = [p.grad is not None for p in net.blocks.parameters()]
            assert used == [True] * 4 * level + [False] * 4 * (2 - level)
            ways = [image.weight.grad is not None for image in net.images]
            assert ways == [k == level or (gan.step == 4 and k == 0) for k in range(3)]


def test_drift_is_the_mean_square_of_the_real_scores() -> None:
    with_drift, without = model(drift=0.5, penalties=()), model(drift=0.0, penalties=())
    x = torch.nn.functional.pad(batch()["x"], (0, 1, 1, 1), value=-1.0)  # type: ignore[arg-type]
    real = without.critic(shrunk(x, Stage(0)), stage=Stage(0))
    more = with_drift.critic_loss(batch()).value - without.critic_loss(batch()).value
    assert torch.allclose(more, 0.5 * real.square().mean(), rtol=1e-4)


def test_other_games_and_classes() -> None:
    gan = model(3, game=NON_SATURATING, penalties=(R1(1.0),), drift=0.0)
    said = gan.critic_loss(batch(4, 3))
    assert {"real", "fake", "right", "r1"} <= set(said.logs)
    said.value.backward()
    a = gan.sample(9, noise=Noise.seeded(0, 9))
    assert torch.equal(a, gan.sample(9, noise=Noise.seeded(0, 9)))
    asked = [gan.sample(9, {"label": torch.full((9,), k)}, noise=Noise.seeded(0, 9)) for k in range(3)]
    assert int(torch.stack([(a - x).flatten(1).abs().amax(1) < 1e-6 for x in asked]).sum()) == 9


# ---- cut and continued in every stage ------------------------------------------------------------------------------


def experiment(folder: Path, steps: int) -> Experiment:
    import numpy as np

    np.save(folder / "x.npy", randn(20, *SHAPE).float().numpy())
    trainer = Trainer(steps, optim={"generator": AdamW(1e-3), "critic": AdamW(1e-3)}, save_every=99, log_every=1)
    return Experiment(model(growth=Growth(2, 2)), Data(Shuffled(Tensors(Asset(folder / "x.npy")), 4)), trainer)


def test_a_run_goes_on_exactly_from_every_stage(tmp_path: Path) -> None:
    steps = 11  # 2 at 4x4, 2 + 2 at 8x8, 2 + 2 at 16x16, and one more
    graph = spec(experiment(tmp_path, steps))
    straight = build(graph, seed=0).train(tmp_path / "straight", seed=1, device="cpu", voice=Voice()).model
    for cut in (1, 3, 5, 7, 9):  # within each stage, and where the nets grow
        run = tmp_path / f"cut-{cut}"
        build(graph, seed=0).train(run, seed=1, device="cpu", voice=Voice(), until=cut)
        again = build(graph, seed=9).train(run, seed=1, device="cpu", voice=Voice()).model
        assert changed(straight.state_dict(), again.state_dict()) == []
    told = [line["critic_loss.grown"] for line in read(tmp_path / "straight" / "log.jsonl") if "loss" in str(line)]
    assert told[:4] == pytest.approx([1.0, 1.0, 1 + 1 / 3, 1 + 2 / 3])
    assert told[-1] == pytest.approx(3.0)
