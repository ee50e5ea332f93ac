"""The verbs of the latent space on a linear autoencoder: what they write, measure and tell machines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from morphogen.cli import main
from morphogen.cli.recipe import load_file as load_module
from morphogen.core import Noise
from morphogen.data import Digits
from morphogen.experiment import load
from morphogen.latent.pca import explaining, principal
from morphogen.latent.reconstruct import reconstruct
from morphogen.metrics.psnr import psnr
from morphogen.metrics.rank import auroc

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: plane, of all digits; told, of classes; one and two, that saw one class each; reader, a classifier."""
    tmp = tmp_path_factory.mktemp("latent")
    shutil.copyfile(TINY, tmp / "tiny.py")
    more = {"plane": [], "told": ["--told"], "one": ["--normal", "1"], "two": ["--normal", "2"]}
    for name, flags in more.items():
        assert main(["train", f"{tmp / 'tiny.py'}:plane", "--run", str(tmp / name), *flags]) == 0
    assert main(["train", f"{tmp / 'tiny.py'}:style", "--run", str(tmp / "style")]) == 0
    assert main(["train", "digits-classifier", "--run", str(tmp / "reader"), "--epochs", "2", "--width", "8"]) == 0
    Image.fromarray(np.full((30, 20, 3), 200, np.uint8)).save(tmp / "wide.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4] = 255
    Image.fromarray(mask).save(tmp / "mask.png")
    return tmp


def told(made: Path, capsys: pytest.CaptureFixture[str], words: str) -> dict[str, Any]:
    """The last JSON line of a verb."""
    verb, run, *more = words.split()
    capsys.readouterr()
    more = [w.replace("@", f"{made}/") for w in more]
    assert main([verb, str(made / run), "--with", str(made / "tiny.py"), "--json", *more]) == 0, capsys.readouterr()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    for file in answer["files"]:
        assert Path(file).is_file()
    return answer


def value(answer: dict[str, Any], name: str) -> float:
    found: float = answer["measures"][name]["value"]
    assert answer["measures"][name]["low"] <= found <= answer["measures"][name]["high"]
    return found


def model(made: Path, name: str) -> Any:
    return load(made / name, modules=[load_module(made / "tiny.py")]).model


def test_the_way_between_items_is_that_of_their_latents(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = told(made, capsys, "interpolate plane --ends 3 7 12 --steps 5 --out @way.npy")
    assert answer["way"] == "linear"  # a codec that cannot sample has no prior whose norm to keep
    codec, x = model(made, "plane"), Digits("test").take(torch.tensor([3, 7, 12]))["x"]
    with torch.no_grad():
        ends = codec.decode(codec.encode(x))
    way = torch.from_numpy(np.load(made / "way.npy"))
    assert way.shape == (2, 5, 1, 8, 8)
    assert torch.allclose(way[:, 0], ends[:2], atol=1e-5)
    assert torch.allclose(way[:, 4], ends[1:], atol=1e-5)
    assert torch.allclose(way[:, 2], (ends[:2] + ends[1:]) / 2, atol=1e-5)
    films = told(made, capsys, "interpolate plane --ends 0 @wide.png --film @morph.gif --way spherical")["files"]
    assert films == [str(made / "plane" / "interpolated.png"), str(made / "morph.gif")]
    with Image.open(made / "morph.gif") as film:
        assert film.n_frames == 16  # nine there, seven back
    mixed = [f"interpolate told --ends 7 {other} --steps 2 --out @mixed.npy" for other in ("1", "@wide.png")]
    starts = [np.load(made / "mixed.npy")[0, 0] for words in mixed if told(made, capsys, words)]
    assert np.allclose(*starts, atol=1e-6)  # an item keeps its class beside a picture that has none
    one = told(made, capsys, "interpolate told --ends 0 1 --label 4 --steps 2 --out @told.npy")
    assert one["steps"] == 2
    codec = model(made, "told")
    cond = {"label": torch.tensor([4, 4])}
    with torch.no_grad():
        expected = codec.decode(codec.encode(Digits("test").take(torch.arange(2))["x"], cond), cond)
    assert torch.allclose(torch.from_numpy(np.load(made / "told.npy"))[0], expected, atol=1e-5)


def test_the_latent_space_of_a_gan_is_walked(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gan = model(made, "style")
    words = "interpolate style --ends sample sample --label 3 7 --steps 4 --seed 5 --out @between.npy --film @style.gif"
    for space, way in (("z", "spherical"), ("w", "linear"), ("w+", "linear")):
        answer = told(made, capsys, f"{words} --space {space}")
        assert answer["way"] == way
        found, cond = torch.from_numpy(np.load(made / "between.npy"))[0], {"label": torch.tensor([3, 7])}
        with torch.no_grad():
            ends = gan.decode(gan.draw_z(2, noise=Noise.seeded(5, 2)), cond)
        assert torch.allclose(found[[0, -1]], ends, atol=1e-5)  # samples are not searched for: their latents are known
    answer = told(made, capsys, "interpolate style --ends 4 sample --label 3 --steps 3 --space w+ --extractor @reader")
    assert answer["steps"] == 3
    rebuilt = told(made, capsys, "reconstruct style --n 3 --space w+")
    assert value(rebuilt, "error") < float(Digits("test").take(torch.arange(360))["x"].var())


def test_reconstruction_is_measured_and_the_worst_is_shown(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = told(made, capsys, "reconstruct told --n -1 --show 4")
    batch = Digits("test").take(torch.arange(360))
    exact = reconstruct(model(made, "told"), batch["x"], batch["cond"])
    assert value(answer, "error") == pytest.approx(float(exact.error.mean()), rel=1e-5)
    assert value(answer, "PSNR") == pytest.approx(float(psnr(exact.made, batch["x"], cell=2 / 16).mean()), rel=1e-5)
    assert answer["worst"] == exact.error.argsort(descending=True)[:4].tolist()
    page = json.loads((made / "told" / "reconstruct.json").read_text())
    assert page["measures"] == answer["measures"]
    assert page["machine"]["torch"] == torch.__version__
    assert page["command"].startswith("morphogen reconstruct")
    single = told(made, capsys, "reconstruct told --n 1 --out @deep/one.png")
    assert single["measures"]["error"]["n"] == 1
    own = told(made, capsys, "reconstruct told --pictures @wide.png --label 3")
    assert own["measures"]["error"]["n"] == 1


def test_directions_are_learned_walked_and_measured(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "directions plane --of slant 3 brightness --n 600 --walked 40 --judge @reader --film @walk.gif"
    answer = told(made, capsys, words)
    assert value(answer, "slant: order") > 0.9
    assert value(answer, "slant: change") > 5
    assert value(answer, "brightness: order") > 0.9
    assert 0.1 < value(answer, "slant: class") <= 1
    assert value(answer, "slant: class throughout") <= value(answer, "slant: class")
    vectors = load_file(made / "plane" / "directions.safetensors")
    assert set(vectors) == {"slant", "3", "brightness"}
    codec, whole = model(made, "plane"), Digits("train").take(torch.arange(1437))
    told(made, capsys, "directions plane --of 3 --against 8 --n -1 --walked 3 --steps 3")
    label = whole["cond"]["label"]
    with torch.no_grad():
        z = codec.encode(whole["x"])
    expected = z[label == 3].mean(0) - z[label == 8].mean(0)
    assert torch.allclose(load_file(made / "plane" / "directions.safetensors")["3"], expected, atol=1e-5)


def test_the_map_is_of_the_two_principal_components(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(made, capsys, "map plane --n -1 --out @map.npy")
    with torch.no_grad():
        z = model(made, "plane").encode(Digits("test").take(torch.arange(360))["x"])
    assert np.allclose(np.load(made / "map.npy"), principal(z, 2).encode(z.double()), atol=1e-4)
    assert "% of the variance" in told(made, capsys, "map told --n 2")["how"]
    assert told(made, capsys, "map plane --n 40 --way tsne --out @near.npy")["n"] == 40
    assert np.load(made / "near.npy").shape == (40, 2)


def test_anomalies_of_runs_that_saw_one_class(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = told(made, capsys, "anomaly one --pca --show 3")
    batch, codec = Digits("test").take(torch.arange(360)), model(made, "one")
    score = reconstruct(codec, batch["x"]).error
    assert answer["strangest"] == score.argsort(descending=True)[:3].tolist()
    seen = Digits("train").take(torch.arange(1437))
    ones, strange = seen["x"][seen["cond"]["label"] == 1], batch["cond"]["label"] != 1
    for name, components in {"PCA of the code's size": principal(ones, 12), "PCA of 90 %": explaining(ones)}.items():
        theirs = value(answer, f"AUROC, {name}")
        assert theirs == pytest.approx(auroc(reconstruct(components, batch["x"]).error, strange).value)
        assert f"error of {len(components.axes)} components" in answer["measures"][f"AUROC, {name}"]["how"]
        assert value(answer, f"… above {name}") == pytest.approx(value(answer, "AUROC, error") - theirs)
    other = told(made, capsys, "anomaly two --show 3")
    both = told(made, capsys, "anomaly one --also @two --pca --show 3")
    means = [value(a, "AUROC, error") for a in (answer, other)]
    assert value(both, "AUROC, error") == pytest.approx(sum(means) / 2)
    assert [a["AUROC, error"] for a in both["areas"]] == pytest.approx(means, abs=1e-6)
    plain = told(made, capsys, "anomaly plane --n 30")
    assert "measures" not in plain
    assert len(plain["files"]) == 1
    assert value(told(made, capsys, "anomaly plane --normal 1"), "AUROC, error") == pytest.approx(means[0], abs=1e-6)


@pytest.mark.parametrize("damage", ["scratches --strength 1", "missing --strength 0.3", "blur", "noise"])
def test_restored_items_are_nearer_to_what_they_were(
    made: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    answer = told(made, capsys, f"restore plane --damage {damage} --n 12 --steps 80")
    gained = value(answer, "PSNR, restored") - value(answer, "PSNR, damaged")
    assert gained == pytest.approx(value(answer, "PSNR, gained"))
    assert gained > 1


def test_own_pictures_are_restored(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = told(made, capsys, "restore told --pictures @wide.png --mask @mask.png --steps 5 --out @whole")
    assert answer["files"] == [str(made / "whole" / "wide.png")]
    with Image.open(made / "whole" / "wide.png") as picture:
        pixels = np.asarray(picture)
    assert (pixels[[0, 1, 4, 5, 6, 7]] == 200).all()  # what was intact
    assert not (pixels[2:4] == 200).all()
    assert "projection" in told(made, capsys, "restore plane --pictures @wide.png")["how"]
    assert "fit" in told(made, capsys, "restore plane --pictures @wide.png --damage blur --strength 1 --steps 3")["how"]


def test_own_pictures_may_be_a_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "mine").mkdir()
    for name in ("b", "a"):
        shutil.copyfile(made / "wide.png", made / "mine" / f"{name}.png")
    (made / "void").mkdir()
    for name in ("mine", "void"):
        (made / name / "notes.txt").write_text("no picture")
    answer = told(made, capsys, "restore plane --pictures @mine @wide.png --out @mended")
    assert answer["files"] == [str(made / "mended" / f"{name}.png") for name in ("a", "b", "wide")]
    assert told(made, capsys, "reconstruct plane --pictures @mine @wide.png")["worst"] != [0]
    for verb in ("restore", "reconstruct"):
        words = [verb, str(made / "plane"), "--with", str(made / "tiny.py"), "--pictures", str(made / "void")]
        assert main(words) == 2
        assert "There is no PNG" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_be_is_said_before_the_work(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file lies where the folder is to be."""
    monkeypatch.setattr("morphogen.latent.restore.projected", None)
    monkeypatch.setattr("morphogen.latent.reconstruct.reconstruct", None)
    (made / "taken").write_text("")
    for verb, out in (("restore", "taken/in"), ("restore", "taken/x.png"), ("reconstruct", "taken/x.png")):
        words = [verb, str(made / "plane"), "--with", str(made / "tiny.py"), "--pictures", str(made / "wide.png")]
        assert main([*words, "--out", str(made / out)]) == 2
        assert str(made / "taken") in capsys.readouterr().err.splitlines()[-1]


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    from morphogen.cli import VERBS, Verb
    from morphogen.cli.flags import flags_of

    for name in ("interpolate", "reconstruct", "directions", "map", "anomaly", "restore"):
        verb = VERBS[name]
        assert isinstance(verb, Verb)
        assert main([name, "--help"]) == 0
        assert f"usage: morphogen {name} RUN" in capsys.readouterr().out
        assert all(f.text for f in flags_of(verb.do, skip=("context",), positional=True)), name
