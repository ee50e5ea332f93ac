"""Latents on the disk, codecs out of finished runs, and runs that need neither any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import morphogen as mg
from morphogen.cli import main
from morphogen.data import Digits, Encoded, Tensors
from morphogen.experiment import frozen, load
from morphogen.latent import Latent
from morphogen.spec import build, spec

from . import halves
from .halves import Drawing, Halves, Signs, experiment, of_codec, prior

pytestmark = pytest.mark.usefixtures("elsewhere")


HERE = [halves]


def trained(codec: mg.Model, run: Path = Path("codec")) -> Path:
    of_codec(codec).train(run)
    return run


def files(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.glob("checkpoints/*6/*.safetensors")}


# ---- a codec out of a finished run ---------------------------------------------------------------------------------


def test_a_frozen_model_is_the_one_for_sampling() -> None:
    run = trained(Halves())
    model, loaded = frozen(run, modules=HERE), load(run, modules=HERE).model
    x = Digits("test").take(torch.arange(5))["x"]
    assert torch.equal(model.encode(x), loaded.encode(x))
    live = frozen(run, modules=HERE, ema="live")
    assert not torch.equal(live.encode(x), loaded.encode(x))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    again = build(json.loads(json.dumps(spec(model))), modules=HERE)
    assert torch.equal(again.encode(x), model.encode(x))


@pytest.mark.parametrize("codec", [Signs, Drawing])
def test_a_run_needs_no_other(codec: type[Halves]) -> None:
    run = trained(codec())
    fresh = build(spec(experiment(frozen(run, modules=HERE))), modules=HERE, seed=0)
    fresh.train("whole")
    fresh = build(spec(experiment(frozen(run, modules=HERE))), modules=HERE, seed=0)
    fresh.train("cut", until=3)
    shutil.rmtree(run)
    shutil.rmtree("cache")  # weights and latents
    page = json.loads(Path("cut/spec.json").read_text())
    again = build(page["experiment"], modules=HERE, assets=Path("cut/assets"), seed=0)
    again.train("cut")
    assert files(Path("cut")) == files(Path("whole"))
    shutil.move("cut", "moved")
    loaded = load("moved", modules=HERE)
    cond = {"label": torch.arange(4)}
    drawn = mg.draw(loaded.model, 4, cond, options={"guidance": 2.0})
    assert torch.equal(drawn, mg.draw(load("whole", modules=HERE).model, 4, cond, options={"guidance": 2.0}))
    assert drawn.shape == (4, 1, 8, 8)


def test_frozen_weights_are_written_once() -> None:
    done = experiment(frozen(trained(Halves()), modules=HERE)).train("run")
    assert len(list(Path("run/frozen").iterdir())) == 1
    assert len(list(Path("run/assets").iterdir())) == 1
    names = {n for p in Path("run").glob("checkpoints/*/model.safetensors") for n in _names(p)}
    assert "prior.net.last.weight" in names
    assert not any("codec.up" in n for n in names)
    assert {"mean", "std"} <= names
    assert float(done.model.std) > 0


def _names(path: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_weights_that_do_not_fit_are_refused() -> None:
    model = frozen(trained(Halves()), modules=HERE)
    weights = mg.spec.arguments(model)["weights"]
    with pytest.raises(mg.UserError, match="do not fit Halves"):
        mg.with_weights(Halves(dim=4), weights)
    Path("no.safetensors").write_text("nothing")
    with pytest.raises(mg.UserError, match="holds no weights"):
        mg.with_weights(Halves(), mg.Asset("no.safetensors"))
    with pytest.raises(mg.UserError, match="no run"):
        frozen("nowhere")


# ---- latents on the disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [Halves, Signs])
def test_cached_latents_are_those_made_on_the_way(codec: type[Halves]) -> None:
    torch.manual_seed(0)
    made = codec()
    index = torch.tensor([3, 0, 1400, 3])
    batch = {"key": torch.arange(4)}
    x = Digits("train").take(index)
    held = Encoded(Digits("train"), made, batch=100)
    model = Latent(made, prior(made))
    direct = model.loss({**batch, **x}).value
    assert torch.allclose(model.loss({**batch, **held.take(index)}).value, direct, atol=1e-6)
    assert len(held) == len(Digits("train"))
    assert torch.equal(held.take(index)["cond"]["label"], x["cond"]["label"])
    if codec is Signs:
        assert held.take(index)["latent"].dtype == torch.uint8
        assert torch.equal(held.take(index)["latent"][:, 0], made.encode(x["x"]))


def test_training_on_cached_latents_is_training_on_the_way() -> None:
    run = trained(Signs())
    experiment(frozen(run, modules=HERE), encoded=True).train("cached")
    torch.manual_seed(0)
    for name, encoded in (("cached-0", True), ("on-the-way", False)):
        made = experiment(frozen(run, modules=HERE), encoded=encoded)
        build(spec(made), modules=HERE, seed=0).train(name)
    ours, theirs = files(Path("cached-0"))["model.safetensors"], files(Path("on-the-way"))["model.safetensors"]
    assert ours == theirs  # integers: to the last bit


def test_latents_are_made_once_and_a_kill_costs_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphogen.data.encoded._PART", 500)
    codec, calls = Halves(), []
    encode = Halves.encode

    def counted(self: Halves, x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 8:  # in the third part
            raise KeyboardInterrupt
        return encode(self, x)

    monkeypatch.setattr(Halves, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        len(Encoded(Digits("train"), codec, batch=200))
    items = Encoded(Digits("train"), codec, batch=200)
    total = len(items)
    assert sum(calls[8:]) == total - 1000  # two parts were there
    calls.clear()
    again = Encoded(Digits("train"), codec)
    assert torch.equal(again.take(torch.arange(total))["latent"], items.take(torch.arange(total))["latent"])
    assert not calls
    damaged = sorted(again.folder().iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = Encoded(Digits("train"), codec)
    assert torch.equal(again.take(torch.arange(total))["latent"], items.take(torch.arange(total))["latent"])
    assert sum(calls) == 500


def test_another_codec_or_other_data_have_other_latents() -> None:
    torch.manual_seed(0)
    codec, other = Halves(), Halves()
    wide = Halves(wide=2.0)
    wide.load_state_dict(codec.state_dict())
    folders = {
        Encoded(Digits("train"), codec).folder(),
        Encoded(Digits("train"), other).folder(),
        Encoded(Digits("train"), wide).folder(),
        Encoded(Digits("test"), codec).folder(),
        Encoded(Tensors(torch.zeros(3, 1, 8, 8)), codec).folder(),
        Encoded(Tensors(torch.ones(3, 1, 8, 8)), codec).folder(),
    }
    assert len(folders) == 6
    assert Encoded(Digits("train"), codec).folder() in folders


def test_a_codec_that_has_changed_is_refused() -> None:
    codec = Halves()
    items = Encoded(Digits("train"), codec)
    graph = spec(items)
    assert graph["args"]["sha256"] == items.sha256
    with torch.no_grad():
        codec.up.weight.add_(1)
    with pytest.raises(mg.UserError, match="not the one that these latents were made with"):
        len(items)
    with pytest.raises(mg.UserError, match="not the one"):  # a spec holds no weights of a codec that was only in memory
        len(build(graph, modules=HERE, seed=1))


def test_draws_are_of_the_law_and_of_each_item_alone() -> None:
    torch.manual_seed(0)
    codec = Drawing()
    items = Encoded(Digits("train"), codec, draws=64)
    latents = items.take(torch.arange(20))["latent"]
    mean = codec.encode(Digits("train").take(torch.arange(20))["x"]).detach()
    assert latents.shape == (20, 64, 6)
    assert float((latents - mean[:, None]).std()) == pytest.approx(0.1, rel=0.03)
    assert len({round(float(v), 6) for v in latents[:, :, 0].flatten()}) > 1200
    with pytest.raises(mg.UserError, match="one latent of each x"):
        Encoded(Digits("train"), Halves(), draws=2)
    with pytest.raises(mg.UserError, match="no codec"):
        Encoded(Digits("train"), prior(codec))


def test_data_without_an_item_are_empty() -> None:
    assert len(Encoded(Tensors(torch.zeros(0, 1, 8, 8)), Halves())) == 0


# ---- commands ------------------------------------------------------------------------------------------------------


def test_commands_work_on_such_runs(tmp_path: Path) -> None:
    shutil.copyfile(halves.__file__, "halves.py")
    assert main(["train", "halves.py:codec", "--run", "codec"]) == 0
    assert main(["train", "halves.py:prior_of", "--codec", "codec", "--run", "run"]) == 0
    shutil.rmtree("codec")
    here = ["--with", "halves.py"]
    assert main(["train", "--run", "run", *here]) == 0  # it is finished
    assert main(["sample", "run", "--n", "6", "--label", "3", "--guidance", "2", "--steps", "3", *here]) == 0
    assert main(["train", "digits-classifier", "--run", "judge", "--epochs", "1", "--width", "4"]) == 0
    assert main(["evaluate", "run", "--n", "20", "--judge", "judge", *here]) == 0
    page = json.loads(Path("run/evaluation.json").read_text())
    assert {"agreement", "memorised"} <= set(page["measures"])
