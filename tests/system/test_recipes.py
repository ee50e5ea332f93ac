"""Every shipped recipe: it builds small, its spec builds it again, and it takes a training step on its data."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from morphogen.adversarial.gan import GAN
from morphogen.adversarial.progressive import ProgressiveGAN
from morphogen.adversarial.stylegan import StyleGAN2
from morphogen.adversarial.translate import CycleGAN
from morphogen.cli.flags import flags_of
from morphogen.core import Acts, Noise, can
from morphogen.data.encoded import Encoded
from morphogen.data.items import Pairs, Tensors
from morphogen.data.source import Shuffled
from morphogen.errors import UserError
from morphogen.experiment import Data, Experiment, import_recipe
from morphogen.hooks import Voice
from morphogen.recipes import about, names
from morphogen.spec import Asset, arguments, build, call, spec
from morphogen.train import Trainer

SMALL: dict[str, dict[str, Any]] = {
    "acrobot-ppo": {"experience": 8, "envs": 2, "length": 4, "epochs": 1, "pieces": 2, "width": 8},
    "cartpole-a2c": {"experience": 16, "envs": 2, "length": 4, "width": 8},
    "cartpole-ppo": {"experience": 8, "envs": 2, "length": 4, "epochs": 1, "pieces": 2, "width": 8},
    "cartpole-recurrent": {"experience": 8, "envs": 2, "length": 4, "epochs": 1, "memory": 4, "width": 8},
    "cartpole-reinforce": {"experience": 16, "envs": 2, "length": 4, "width": 8},
    "halfcheetah-ppo": {"experience": 8, "envs": 2, "length": 4, "epochs": 1, "pieces": 2, "width": 8},
    "hopper-ppo": {"experience": 8, "envs": 2, "length": 4, "epochs": 1, "pieces": 2, "width": 8},
    "lunarlander-ppo": {"experience": 8, "envs": 2, "length": 4, "epochs": 1, "pieces": 2, "width": 8},
    "cartpole-dqn": {"steps": 2, "width": 8, "envs": 2, "warmup": 4, "batch": 4},
    "catch-dqn": {"steps": 2, "width": 8, "filters": 2, "envs": 2, "warmup": 4, "batch": 4, "duelling": True},
    "chorales-lstm": {"steps": 2, "width": 8, "depth": 1, "tokens": 400},
    "chorales-transformer": {"steps": 2, "width": 16, "depth": 1, "tokens": 400},
    "chorales-wavenet": {"steps": 2, "width": 8, "tokens": 400},
    "cifar-bpd": {"steps": 2, "width": 32, "depth": 1, "batch": 2},
    "cifar-classifier": {"epochs": 0.00009, "width": 8, "batch": 2},
    "cifar-edm": {"steps": 2, "width": 32, "batch": 2},
    "emoji-classifier": {"epochs": 0.002, "width": 4, "batch": 1, "size": 32},
    "emoji-pix2pix": {"steps": 2, "width": 4, "batch": 2, "size": 32},
    "digits-classifier": {"epochs": 1, "width": 4, "batch": 718},
    "digits-diffusion": {"steps": 2, "width": 8, "batch": 4},
    "digits-dit": {"steps": 2, "width": 24, "depth": 1, "batch": 4},
    "gridworld": {"steps": 2, "world": "grid4", "learners": 2},
    "lq-ddpg": {"steps": 2, "width": 8, "envs": 2, "warmup": 4, "batch": 4},
    "lq-td3": {"steps": 2, "width": 8, "envs": 2, "warmup": 4, "batch": 4},
    "mnist-bpd": {"steps": 2, "width": 8, "batch": 2},
    "mnist-classifier": {"epochs": 0.00009, "width": 4, "batch": 2},
    "mnist-codes": {"steps": 2, "width": 16, "depth": 1, "batch": 2},
    "mnist-diffusion": {"steps": 2, "width": 8, "batch": 2},
    "mnist-cyclegan": {"steps": 2, "width": 4, "blocks": 1, "batch": 2},
    "mnist-edges": {"steps": 2, "width": 4, "batch": 2},
    "mnist-dit": {"steps": 2, "width": 64, "depth": 1, "batch": 2},
    "mnist-gan": {"steps": 2, "width": 16, "batch": 2},
    "mnist-ladder": {"steps": 2, "width": 8, "depth": 1, "latents": (3, 2), "batch": 2},
    "mnist-latent-flow": {"steps": 2, "width": 8, "depth": 1, "batch": 2},
    "mnist-progressive": {"steps": 2, "width": 2, "batch": 4},
    "digits-stacked": {"steps": 2, "width": 8, "batch": 2},
    "mnist-stacked": {"steps": 2, "width": 16, "batch": 2},
    "mnist-stylegan": {"steps": 2, "width": 2, "batch": 4},
    "mnist-vae": {"steps": 2, "width": 8, "depth": 1, "latent": 3, "batch": 2},
    "mnist-vqgan": {"steps": 2, "width": 8, "codes": 4, "batch": 2},
    "mnist-vqvae": {"steps": 2, "width": 8, "codes": 4, "batch": 2},
    "names-gpt": {"steps": 2, "width": 16, "depth": 1, "batch": 4},
    "one-class": {"steps": 2, "width": 8, "batch": 4},
    "pendulum-ddpg": {"steps": 2, "width": 8, "envs": 2, "warmup": 4, "batch": 4},
    "pendulum-sac": {"steps": 2, "width": 8, "envs": 2, "warmup": 4, "batch": 4},
    "pendulum-td3": {"steps": 2, "width": 8, "envs": 2, "warmup": 4, "batch": 4},
    "pictures-diffusion": {"steps": 2, "size": 8, "width": 8, "batch": 2},
    "points-diffusion": {"steps": 2, "width": 8, "depth": 1, "batch": 8},
    "points-gan": {"steps": 2, "width": 8, "depth": 1, "batch": 8},
    "shakespeare-gpt": {"steps": 2, "width": 16, "depth": 1, "context": 16, "batch": 2},
    "shakespeare-lstm": {"steps": 2, "width": 8, "depth": 1, "context": 16, "batch": 2},
    "word-vectors": {"epochs": 1, "width": 4, "least": 1, "batch": 1},
    "translate": {"steps": 2, "width": 4, "batch": 2, "size": 16},
}


@pytest.fixture(scope="module", autouse=True)
def own_pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Pictures for the recipe that takes any, and a cache of their own."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        path = folder / ("test" if i % 3 == 0 else "train") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (40 * i, 0, 99)).save(path)
    (folder.parent / "own.txt").write_text("the cat sat on the mat and the dog sat on the log " * 60)
    SMALL["word-vectors"]["data"] = folder.parent / "own.txt"
    SMALL["pictures-diffusion"]["data"] = SMALL["translate"]["source"] = SMALL["translate"]["target"] = folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, of in (("mnist-codes", "mnist-vqvae"), ("mnist-latent-flow", "mnist-vae")):
            SMALL[name]["codec"] = a_codec(of, tmp_path_factory.mktemp("codec") / of)
        yield


def a_codec(name: str, run: Path) -> Path:
    """The run of a recipe's codec, taken for a step over pictures of its own."""
    run.parent.mkdir(exist_ok=True)
    save_file({"x": torch.randint(2, (4, 1, 28, 28))}, run.parent / "own.safetensors")
    x = Tensors(Asset(run.parent / "own.safetensors"), levels=2)
    Experiment(made(name).model, Data(Shuffled(x, 4)), Trainer(1)).train(run, device="cpu", voice=Voice())
    return run


FLOWS = ("flow_matching", "rectified_flow", "stochastic_interpolant")


def presets(name: str) -> list[str]:
    """The presets that a recipe names, [] where it has no choice."""
    hint = get_type_hints(import_recipe(name)).get("preset")
    return list(getattr(hint, "__args__", ()))


CASES = [(name, preset) for name in names() for preset in presets(name) or [""]]


def made(name: str, **more: Any) -> Experiment:
    return import_recipe(name)(**{**SMALL[name], **more})


def step(experiment: Experiment, run: Path) -> None:
    """One training step with nothing around it: no held-out items, no pictures."""
    if isinstance(items := getattr(experiment.data.train, "items", None), Encoded):  # to encode all takes a while
        few = items.items.take(torch.arange(6))
        items.items = Tensors(few["x"], few["cond"])
    trainer = call(type(experiment.trainer), {**arguments(experiment.trainer), "heldout": None, "hooks": ()})
    assert trainer.steps == 2  # the first of two, since a schedule ends at a rate of 0
    before = [p.detach().clone() for p in experiment.model.state_dict().values()]
    trainer.fit(experiment.model, experiment.data, run=run, seed=0, device="cpu", voice=Voice(), until=1)
    after = list(experiment.model.state_dict().values())
    assert all(bool(p.isfinite().all()) for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


def needs(name: str) -> None:
    """Skip where the data of a recipe are not at hand."""
    if (
        name.startswith(("mnist", "cifar", "one-class", "emoji", "chorales", "shakespeare"))
        and "MORPHOGEN_DATA" not in os.environ
    ):
        pytest.skip(f"{name} reads files, and MORPHOGEN_DATA names no folder of them")


@pytest.mark.parametrize("name", names())
def test_every_flag_is_explained_and_alone(name: str) -> None:
    """None without help, and none whose help runs on into that of another."""
    flags = flags_of(import_recipe(name))
    heads = re.compile(rf"(?:^|[.;:)] |, )(?:{'|'.join(f.name for f in flags)}): ")
    assert {f.name: f.text for f in flags if not f.text or heads.search(f.text)} == {}


def test_all_are_small_here_and_described() -> None:
    assert set(SMALL) == set(names()) == set(about())
    assert all(text.endswith(".") for text in about().values())


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_recipe_builds_and_its_spec_builds_it_again(name: str, preset: str) -> None:
    experiment = made(name, **({"preset": preset} if preset else {}))
    assert isinstance(experiment, Experiment)
    if not can(experiment.model, Acts):  # whose data is what comes of its actions
        assert experiment.data.test is not None
        assert experiment.data.space is not None
    if isinstance(experiment.model, GAN | StyleGAN2 | ProgressiveGAN | CycleGAN):  # whose losses say nothing of samples
        assert experiment.trainer.heldout is not None
        assert experiment.trainer.heldout.metric in ("frechet", "coverage")
    graph = spec(experiment)
    again = build(graph, seed=0)
    assert spec(again) == graph
    shapes = {k: v.shape for k, v in experiment.model.state_dict().items()}
    assert {k: v.shape for k, v in again.model.state_dict().items()} == shapes


@pytest.mark.parametrize("name", names())
def test_a_recipe_takes_a_step(name: str, tmp_path: Path) -> None:
    needs(name)
    step(made(name), tmp_path)


@pytest.mark.parametrize("preset", presets("points-diffusion"))
def test_every_preset_learns_points(preset: str, tmp_path: Path) -> None:
    step(made("points-diffusion", preset=preset), tmp_path)


@pytest.mark.parametrize("preset", presets("points-diffusion"))
def test_optimal_transport_is_for_flows(preset: str, tmp_path: Path) -> None:
    if preset in FLOWS:
        pytest.importorskip("scipy")
        step(made("points-diffusion", preset=preset, coupling="optimal"), tmp_path)
        return
    with pytest.raises(UserError, match="no longer independent") as refused:
        made("points-diffusion", preset=preset, coupling="optimal")
    assert preset in str(refused.value)


@pytest.mark.parametrize("game", ["r3gan", "wgan-gp", "non-saturating"])
def test_every_game_learns_points(game: str, tmp_path: Path) -> None:
    step(made("points-gan", game=game), tmp_path)


def test_both_nets_learn_digits(tmp_path: Path) -> None:
    needs("mnist-gan")
    step(made("mnist-gan", net="r3gan"), tmp_path)


PAIRED = [("digits-diffusion", (1, 8, 8)), ("mnist-diffusion", (1, 28, 28)), ("points-diffusion", (2,))]


@pytest.mark.parametrize(("name", "shape"), PAIRED)
def test_pairs_take_the_place_of_the_data(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    noise = Noise.seeded(0, 12)
    file = tmp_path / "pairs.safetensors"
    tensors = {"x": noise.normal(*shape), "z": noise.normal(*shape)}
    save_file(tensors | {"cond.label": torch.arange(12) % 10}, file)
    experiment = made(name, preset="rectified_flow", pairs=file)
    assert isinstance(experiment.data.train, Shuffled)
    assert isinstance(experiment.data.train.items, Pairs)
    assert experiment.trainer.heldout is None
    assert spec(build(spec(experiment))) == spec(experiment)
    if name != "mnist-diffusion" or "MORPHOGEN_DATA" in os.environ:
        step(experiment, tmp_path / "run")
    with pytest.raises(UserError, match="Pairs straighten a flow"):
        made(name, preset="edm", pairs=file)
    assert "pairs" in inspect.signature(import_recipe(name)).parameters


def test_pairs_are_a_coupling_already(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a coupling already"):
        made("points-diffusion", preset="rectified_flow", coupling="optimal", pairs=tmp_path / "p.safetensors")


@pytest.mark.parametrize("name", ["mnist-codes", "mnist-latent-flow"])
def test_a_prior_is_given_a_codec_of_its_kind(name: str) -> None:
    other = {"mnist-codes": "mnist-latent-flow", "mnist-latent-flow": "mnist-codes"}[name]
    with pytest.raises(UserError, match=SMALL[name]["codec"].name):
        made(name, codec=SMALL[other]["codec"])
