"""`morphogen reflow` and the pairs it leaves: each x belongs to its z, and the second round is straighter."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from morphogen.cli import main
from morphogen.core import Noise, Place
from morphogen.data import Pairs, Shuffled, Tensors
from morphogen.data.densities import Fresh, eight_gaussians
from morphogen.diffusion import Diffusion, gaussian, rectified_flow
from morphogen.diffusion.field import Mixture
from morphogen.diffusion.path import Linear
from morphogen.diffusion.solve import heun, solve
from morphogen.errors import UserError
from morphogen.experiment import Data, Experiment, load
from morphogen.hooks import Voice
from morphogen.nets.mlp import MLP
from morphogen.optim import AdamW, Cosine
from morphogen.spec import Asset, spec
from morphogen.train import Trainer

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow of eight Gaussians that has hardly learned."""
    path = tmp_path_factory.mktemp("reflow") / "run"
    net = MLP(2, 2, 16, 2, scalars=("t",), classes=8)
    experiment = Experiment(
        rectified_flow(net, (2,), scale=1.0),
        Data(Fresh(eight_gaussians(), 16), space=eight_gaussians().space()),
        Trainer(3, optim=AdamW(1e-2), save_every=3),
    )
    experiment.train(path, seed=1, voice=Voice())
    return path


def test_each_sample_belongs_to_its_noise(run, tmp_path, capsys):
    out = tmp_path / "deep" / "pairs.safetensors"
    words = ["reflow", str(run), "--n", "70", "--seed", "5", "--solver", "heun", "--steps", "7", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["event"], said["n"], said["file"], said["step"]) == ("reflowed", 70, str(out), 3)
    made = load_file(out)
    model = load(run, device="cpu").model
    assert isinstance(model, Diffusion)
    assert torch.equal(made["z"], Noise.seeded(5, 70).normal(2))
    with torch.no_grad():
        x = solve(model, made["z"], model.sampler.grid(model.path, 7), step=heun)
    torch.testing.assert_close(made["x"], x, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made["x"], x.roll(1, 0), atol=1e-2)
    with safe_open(out, "pt") as file:
        note = json.loads(file.metadata()["reflow"])
    told = {"label": [], "options": {"solver": "heun", "steps": 7}}
    assert note == {"run": str(run), "step": 3, "ema": "live", "seed": 5, **told}


def test_conditions_go_with_the_pairs_and_more_pairs_change_none(run, tmp_path):
    made = []
    for n in (3, 66):
        out = tmp_path / f"{n}.safetensors"
        assert main(["reflow", str(run), "--n", str(n), "--label", "1", "6", "--steps", "3", "--out", str(out)]) == 0
        made.append(load_file(out))
    few, many = made
    assert few["cond.label"].tolist() == [1, 6, 1]
    assert torch.equal(few["z"], many["z"][:3])
    torch.testing.assert_close(few["x"], many["x"][:3], rtol=0, atol=0)


def test_what_reflow_refuses(run, tmp_path, capsys):
    blurs = tmp_path / "blurs"
    own = tmp_path / "tiny.py"
    own.write_text(TINY.read_text(encoding="utf-8"))
    assert main(["train", f"{own}:blurs", "--run", str(blurs), "--steps", "1"]) == 0
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    out = str(tmp_path / "new.safetensors")
    cases = [
        ([str(run), "--n", "0", "--out", out], "takes nothing|asks for nothing"),
        ([str(run), "--out", str(there)], "is there already"),
        ([str(run), "--out", str(tmp_path / "pairs.npy")], "no .safetensors file"),
        ([str(run), "--out", out, "--solver", "ancestral"], "draws noise on the way"),
        ([str(run), "--out", out, "--solver", "huen"], "did you mean 'heun'"),
        ([str(blurs), "--out", out, "--with", str(own)], "Blurs"),
    ]
    for words, said in cases:
        capsys.readouterr()
        assert main(["reflow", *words]) == 2, words
        text = capsys.readouterr().err.strip()
        assert "\n" not in text
        assert any(part in text for part in said.split("|")), text
    assert there.read_text() == "mine"
    assert not Path(out).exists()
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_is_there_whole_or_not_at_all(run, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    out = tmp_path / "pairs.safetensors"
    monkeypatch.setattr("morphogen.disk.os.replace", full)
    assert main(["reflow", str(run), "--n", "2", "--steps", "2", "--out", str(out)]) == 2
    assert not out.exists()
    monkeypatch.undo()
    assert main(["reflow", str(run), "--n", "2", "--steps", "2", "--out", str(out)]) == 0


def test_pairs_are_items(tmp_path):
    path = tmp_path / "pairs.safetensors"
    held = {"x": torch.randn(9, 2), "z": torch.randn(9, 2), "cond.label": torch.arange(9)}
    save_file(held, path)
    source = Shuffled(Pairs(Asset(path)), 4)
    source.start(Place())
    batch = source.next()
    for i, k in enumerate(batch["index"]):
        assert torch.equal(batch["x"][i], held["x"][k])
        assert torch.equal(batch["z"][i], held["z"][k])
        assert batch["cond"]["label"][i] == k
    assert spec(source)["args"]["items"]["args"]["file"]["args"]["sha256"] == Asset(path).sha256
    bad = {
        "do not match": held | {"z": torch.randn(9, 3)},
        "in x but 8 in cond.label": held | {"cond.label": torch.arange(8)},
        "holds x": {"x": held["x"]},
        "holds cond.label, label, x, z": held | {"label": torch.arange(9)},
    }
    for said, tensors in bad.items():
        save_file(tensors, path)
        with pytest.raises(UserError, match=said):
            len(Pairs(Asset(path)))
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="holds no pairs"):
        len(Pairs(Asset(path)))


def test_the_recipe_takes_pairs(tmp_path, capsys):
    path = tmp_path / "pairs.safetensors"
    save_file({"x": torch.rand(40, 1, 8, 8), "z": torch.randn(40, 1, 8, 8), "cond.label": torch.arange(40) % 10}, path)
    words = ["train", "digits-diffusion", "--pairs", str(path), "--steps", "1", "--width", "8", "--batch", "8"]
    assert main([*words, "--guidance", "1", "--run", str(tmp_path / "second")]) == 0
    (asset,) = (tmp_path / "second" / "assets").iterdir()
    assert asset.read_bytes() == path.read_bytes()
    assert main([*words, "--preset", "edm", "--run", str(tmp_path / "third")]) == 2
    assert "take --preset rectified_flow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "dials"),
    [
        ("points-diffusion", ["--preset", "rectified_flow", "--density", "moons", "--depth", "1"]),
        ("digits-diffusion", []),
    ],
)
def test_the_next_command_that_it_says_trains_the_next_round(recipe, dials, tmp_path, capsys):
    small = ["--steps", "1", "--width", "8", "--batch", "8"]
    run, out = tmp_path / "first", tmp_path / "my pairs.safetensors"
    assert main(["train", recipe, *dials, *small, "--run", str(run)]) == 0
    capsys.readouterr()
    assert main(["reflow", str(run), "--n", "8", "--steps", "1", "--out", str(out), "--json"]) == 0
    (following,) = json.loads(capsys.readouterr().out.splitlines()[-1])["next"]
    words = shlex.split(following)
    assert words[0] == "morphogen"
    assert ("moons" in words) == ("moons" in dials)
    assert main([*words[1:], *small, "--run", str(tmp_path / "second")]) == 0


# ---- the theorem ---------------------------------------------------------------------------------------------------


def transport(x: torch.Tensor, z: torch.Tensor, power: float) -> float:
    return (x - z).norm(dim=1).pow(power).mean().item()


@pytest.mark.parametrize("name", ["gaussian", "two", "eight"])
def test_a_round_never_costs_more_and_keeps_both_laws(name):
    """Liu et al. 2022, theorem 3.5: for every convex cost; with the exact field, so that the round is the theorem's."""
    fields = {
        "gaussian": gaussian(Linear(), [2.0, -1.0], 0.5),
        "two": Mixture(Linear(), [[2.0, 0.0], [-2.0, 1.0]], [0.3, 0.6], [1.0, 2.0]),
        "eight": Mixture(Linear(), [[3 * c, 3 * s] for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))], [0.2] * 4),
    }
    field, n = fields[name], 2000
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, 2, dtype=torch.float64, generator=g)
    real = field.sample(n, g)
    x = solve(field, z, torch.linspace(1, 0, 101), step=heun)
    for power in (1.0, 2.0, 4.0):
        assert transport(x, z, power) < transport(real, z, power), power
    se = real.std(0) / n**0.5
    assert ((x.mean(0) - real.mean(0)).abs() < 6 * se).all()
    assert torch.allclose(torch.cov(x.T), torch.cov(real.T), atol=0.35)
    if name == "gaussian":  # the flow of Gaussians is the optimal map, x = m + s z
        torch.testing.assert_close(x, torch.tensor([2.0, -1.0]) + 0.5 * z, rtol=0, atol=1e-3)


def learn(source, run: Path) -> Diffusion:
    torch.manual_seed(0)
    model = rectified_flow(MLP(1, 1, 64, 2, scalars=("t",)), (1,), scale=1.0)
    trainer = Trainer(800, optim=AdamW(4e-3, schedule=Cosine()), save_every=800)
    trainer.fit(model, Data(source), run=run, device="cpu", voice=Voice())
    return model.eval()


def test_the_second_round_needs_one_step(tmp_path):
    """Two modes in one dimension, learned: one Euler step of the first round lands between them; the second does not,
    with paths that are nearly straight and end in the law of the first.
    """
    field = Mixture(Linear(), [[2.0], [-2.0]], [0.6, 0.6])
    first = learn(Shuffled(Tensors(field.sample(4000, torch.Generator().manual_seed(0)).float()), 256), tmp_path / "1")
    z = Noise.seeded(3, 4000).normal(1)
    with torch.no_grad():
        save_file({"x": solve(first, z, FINE, step=heun), "z": z}, tmp_path / "pairs.safetensors")
    second = learn(Shuffled(Pairs(Asset(tmp_path / "pairs.safetensors")), 256), tmp_path / "2")
    start = Noise.seeded(7, 4000).normal(1)
    with torch.no_grad():
        ends = [solve(model, start, FINE, step=heun) for model in (first, second)]
        once = [solve(model, start, [1.0, 0.0]) for model in (first, second)]
        bends = [bend(model, start, end) for model, end in zip((first, second), ends, strict=True)]
    errors = [(a - b).abs().mean().item() for a, b in zip(once, ends, strict=True)]
    assert errors[0] > 1.0, errors
    assert errors[1] < 0.3 * errors[0], errors
    assert bends[1] < 0.2 * bends[0], bends
    moved = (ends[0].sort(0).values - ends[1].sort(0).values).abs().mean().item()  # W1 of what the two rounds draw
    assert moved < 0.1
    assert (ends[1] - start).square().mean() <= 1.02 * (ends[0] - start).square().mean()  # what rounds cost


FINE = torch.linspace(1, 0, 51)


def bend(model: Diffusion, z: torch.Tensor, x: torch.Tensor) -> float:
    """The mean over the path of |(z − x) − u|²: 0 for straight lines."""
    left, state = [], z
    for t, s in itertools.pairwise(FINE.tolist()):
        left.append((z - x - model.velocity(state, t)).square().mean())
        state = solve(model, state, [t, s], step=heun)
    return float(torch.stack(left).mean())
