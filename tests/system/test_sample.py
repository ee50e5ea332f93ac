"""`morphogen sample`: what its flags ask for is done, or refused in a sentence before anything is drawn."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from morphogen.cli import main, walk
from morphogen.cli.sample import knows_labels
from morphogen.core import Noise
from morphogen.data import Shuffled
from morphogen.data.densities import Fresh, eight_gaussians
from morphogen.data.digits import Digits, space
from morphogen.diffusion import Diffusion, Sampler, edm, flow_matching, gaussian, rectified_flow
from morphogen.diffusion import path as P
from morphogen.diffusion.adaptive import Dopri5
from morphogen.diffusion.chain import LearnedVariance, improved_ddpm
from morphogen.diffusion.field import EDM
from morphogen.diffusion.grid import GRIDS, Karras, LogSNR, chosen
from morphogen.diffusion.guide import autoguided, guided
from morphogen.diffusion.presets import PRESETS
from morphogen.diffusion.solve import heun
from morphogen.diffusion.solvers import SOLVERS
from morphogen.diffusion.weight import LogNormal
from morphogen.errors import UserError
from morphogen.experiment import Data, Experiment, load
from morphogen.hooks import SampleGrid, Voice
from morphogen.nets.mlp import MLP
from morphogen.nets.patch import Patched
from morphogen.nets.unet import UNet
from morphogen.optim import AdamW
from morphogen.train import Trainer


def trained(path: Path, model: Diffusion | LearnedVariance, data: Data, *, asks: bool = False) -> None:
    hooks = (SampleGrid(every=9, n=2, options={"guidance": 1.0}, wishes={"label": [0, 1]}),) if asks else ()
    trainer = Trainer(2, optim=AdamW(1e-3), save_every=2, hooks=hooks)
    Experiment(model, data, trainer).train(path, seed=0, voice=Voice())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs that have hardly learned: digits, a worse one, one without classes, other paths and shapes, a chain."""
    tmp = tmp_path_factory.mktemp("sample")
    assert main(shlex.split(f"train digits-classifier --epochs 1 --width 4 --run {tmp / 'reader'}")) == 0
    digits = Data(Shuffled(Digits("train"), 8), space=space())
    unet = {"widths": (8,), "attention": ()}
    for name, preset in (("run", rectified_flow), ("weak", rectified_flow), ("edm", edm)):
        trained(tmp / name, preset(UNet(1, classes=10, **unet), (1, 8, 8)), digits, asks=True)
    trained(tmp / "plain", rectified_flow(UNet(1, **unet), (1, 8, 8)), digits, asks=True)
    net = UNet(1, outputs=2, classes=10, **unet)
    trained(tmp / "chain", improved_ddpm(net, (1, 8, 8), steps=12), digits)
    points = Data(Fresh(eight_gaussians(), 8), space=eight_gaussians().space())
    trained(tmp / "flow", flow_matching(MLP(2, 2, 8, 1, scalars=("t",), classes=8), (2,)), points)
    named = ("run", "weak", "edm", "reader", "plain", "chain", "flow")
    return {name: str(tmp / name) for name in named} | {"tmp": str(tmp)}


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The options of every drawing that was begun."""
    from morphogen import experiment

    seen: list[dict[str, object]] = []
    draw = experiment.draw

    def noted(model, n, cond=None, *, options=None, **rest):  # type: ignore[no-untyped-def]
        seen.append({**(options or {}), "cond": cond})
        return draw(model, n, cond, options=options, **rest)

    monkeypatch.setattr(experiment, "draw", noted)
    return seen


MISTAKES = [
    ("{run} --prompt hello", ["--prompt", "--from FOLDER"]),
    ("{run} --length 3", ["--length", "write text or music"]),
    ("{run} --steps 0", ("0 steps", "at least 1")),
    ("{run} --steps -4", ("-4 steps",)),
    ("{flow} --steps 0 --solver heun", ("0 steps",)),
    ("{run} --film strip", ("'strip'", ".png")),
    ("{run} --film strip.npy", ("'strip.npy'", ".png")),
    ("{run} --weak {reader} --guidance 2", ("Classifier", "same preset")),
    ("{run} --weak {flow} --guidance 2", ("(2,)", "(1, 8, 8)")),
    ("{run} --weak {edm} --guidance 2", ("Exploding", "Linear", "same preset")),
    ("{run} --weak {weak}", ("--weak", "guidance 1", "--guidance 2")),
    ("{run} --label 3 --negative 4", ("--negative", "guidance 1")),
    ("{run} --label 3 --rescale 0.5", ("--rescale", "guidance 1")),
    ("{run} --label 3 --interval 0.2 0.8", ("--interval", "guidance 1")),
    ("{run} --weak {weak} --rescale 0.5", ("--weak and --rescale do",)),
    ("{run} --weak {weak} --negative 4 --guidance 2", ("--weak and --negative", "one of them")),
    ("{run} --interval 0.8 0.2 --guidance 2", ("--interval 0.8 0.2", "LOW below HIGH")),
    ("{run} --interval 2 3 --guidance 2", ("--interval 2 3",)),
    ("{run} --solver heun --solvers heun ddim", ("--solver heun and --solvers",)),
    ("{run} --solvers heun ddim heun", ("'heun' twice",)),
    ("{run} --solvers heun dimd", ("did you mean 'ddim'",)),
    ("{run} --label none --negative 4 --guidance 2", ("--negative", "--label")),
    ("{plain} --label 3", ("without classes", "--label")),
    ("{plain} --class 3", ("without classes",)),
    ("{plain} --negative 3 --guidance 2", ("without classes", "--negative")),
    ("{chain} --weak {chain} --guidance 2", ("--weak is not for LearnedVariance",)),
    ("{reader} --film f.png", ("Classifier cannot sample", "morphogen evaluate")),
]


@pytest.mark.parametrize(("typed", "says"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_what_would_do_nothing_is_a_sentence(typed, says, world, drawings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(f"sample {typed} --n 2 --out out.png".format(**world))) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    for words in says:
        assert words in sentence
    assert not list(tmp_path.iterdir())
    assert all("steps" in said and said["steps"] < 1 for said in drawings)  # the model itself refuses those


@pytest.mark.parametrize(
    "typed",
    [
        "--weak {weak} --guidance 2 --steps 2",
        "--label 3 --negative 4 --guidance 2 --rescale 0.5 --interval 0.2 0.8 --steps 2",
        "--solvers heun ddim --steps 2 --film film.png",
        "--grid logsnr --solver dpmpp-2m --steps 3",
    ],
)
def test_what_does_something_is_done(typed, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(f"sample {{run}} {typed} --n 2 --out out.png".format(**world))) == 0
    assert (tmp_path / "out.png").exists()
    assert ("film" in typed) == (tmp_path / "film.png").exists()


def test_labels_are_asked_of_nets_that_know_them(world, drawings, tmp_path, capsys):
    nets = [MLP(2, 2, 8, 1, scalars=("t",), classes=c) for c in (0, 3)]
    unets = [Patched(UNet(4, widths=(8,), attention=(), classes=c)) for c in (0, 3)]
    for off, on in (nets, unets):
        assert (knows_labels(rectified_flow(off, (2,))), knows_labels(rectified_flow(on, (2,)))) == (False, True)
    assert knows_labels(rectified_flow(torch.nn.Linear(2, 2), (2,)))  # a net of the user's: who can say
    for name, cond in (("plain", None), ("run", [0, 1, 2])):
        assert main(["sample", world[name], "--n", "3", "--steps", "1", "--out", str(tmp_path / "o.png")]) == 0
        said = drawings[-1]["cond"]
        assert (said if said is None else said["label"].tolist()) == cond
        assert ("no class" in capsys.readouterr().out) == (cond is None)


# ---- how many steps ------------------------------------------------------------------------------------------------


class Counted(MLP):
    calls = 0

    def forward(self, x, cond):  # type: ignore[no-untyped-def]
        self.calls += 1
        return super().forward(x, cond)


@pytest.mark.parametrize("preset", PRESETS)
def test_another_solver_takes_steps_enough(preset):
    net = Counted(2, 2, 4, 1, scalars=("t",))
    model = PRESETS[preset](net, (2,), scale=1.0)
    with torch.no_grad():
        model.sample(1, solver="heun")
    adaptive = model.sampler.solver.intervals is not None
    assert net.calls >= 10
    assert not adaptive or net.calls in (99, 100)  # 50 steps; the last may be Euler's
    ends: list[float] = []
    with torch.no_grad():
        model.sample(1, solver=Dopri5(rtol=0.1, atol=0.1), watch=lambda t, x: ends.append(t))
        assert len(ends) == 2
        ends.clear()
        model.sample(1, steps=3, solver="heun", watch=lambda t, x: ends.append(t))
        assert len(ends) == 4
    with pytest.raises(UserError, match="0 steps"):
        model.sample(1, steps=0)


# ---- the film ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "frames"),
    [("{flow}", 10), ("{run} --solver dopri5", 10), ("{run} --solvers dopri5 euler", 10), ("{run} --steps 3", 4),
     ("{run} --solvers euler dopri5", 10), ("{flow} --steps 2", 3), ("{chain}", 10), ("{chain} --solver dopri5", 10)],
)  # fmt: skip
def test_a_film_shows_the_way(words, frames, world, tmp_path, monkeypatch):
    reels: list[walk.Film] = []
    strip = walk.Film.strip
    monkeypatch.setattr(walk.Film, "strip", lambda reel, run: (reels.append(reel), strip(reel, run))[1])
    film, out = tmp_path / "film.png", tmp_path / "o.png"
    assert main(shlex.split(f"sample {words} --n 12 --film {film} --out {out}".format(**world))) == 0
    (reel,) = reels
    rows = 12 if "flow" in words else walk.ROWS
    assert {len(x) for _, x in reel.states} == {rows}
    assert min(len(reel.states), walk.FRAMES) == frames
    assert Image.open(film).width > frames * 60


# ---- grids and paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [P.Linear(), P.Cosine(), P.ZeroTerminal(P.LinearBetas()), P.VP()], ids=type)
def test_logsnr_by_name_is_for_every_path(path):
    times = chosen("logsnr", Karras(), path)(path, 7)
    start = 1.0 if path.alpha(1.0) else 0.999
    assert times[0] == pytest.approx(start)
    assert (times.diff() < 0).all()
    torch.testing.assert_close(times, LogSNR(start)(path, 7))


def test_karras_by_name_is_on_the_scale_of_the_model():
    net, high = MLP(2, 2, 4, 1, scalars=("t",)), 320.0
    model = Diffusion(net, (2,), P.Exploding(high), EDM(2.0), LogNormal(), Sampler(heun, Karras(0.01, high), 18))
    ends: list[float] = []
    with torch.no_grad():
        named = model.sample(2, noise=Noise.seeded(0, 2), grid="karras", steps=4, watch=lambda t, x: ends.append(t))
        assert torch.equal(named, model.sample(2, noise=Noise.seeded(0, 2), steps=4))
    assert model.path.sigma(ends[0]) == pytest.approx(high)
    own = Karras(0.01, 9.0)
    assert chosen("karras", own, model.path) is own
    assert chosen(None, own, model.path) is own
    assert chosen("karras", LogSNR(), model.path) is GRIDS["karras"]


def test_weak_fields_are_on_the_same_path():
    def at(path: P.Path):  # type: ignore[no-untyped-def]
        return gaussian(path, 0.0, 0.5)

    autoguided(at(P.Linear()), at(P.Linear(1e-6)), 2.0)  # a difference that nobody sees
    with pytest.raises(UserError, match=r"Exploding, has other settings.*160.* there and 80"):
        autoguided(at(P.Exploding(80.0)), at(P.Exploding(160.0)), 2.0)
    with pytest.raises(UserError, match="VP, is not the field's, SubVP"):
        autoguided(at(P.SubVP()), at(P.VP()), 2.0)  # the same α at all times
    with pytest.raises(UserError, match="pulls nowhere"):
        guided(at(P.VP()), 2.0, interval=(0.5, 0.5))


# ---- the chain with learned variances ------------------------------------------------------------------------------


def test_a_chain_can_be_watched_on_any_grid(world):
    model = load(world["chain"], device="cpu").model
    assert isinstance(model, LearnedVariance)
    for grid, first in ((None, 1.0), ("trailing", 1.0), ("leading", 10 / 12), ("uniform", 1.0)):
        seen: list[tuple[float, torch.Tensor]] = []
        with torch.no_grad():
            x = model.sample(2, noise=Noise.seeded(0, 2), steps=4, grid=grid, watch=lambda t, x: seen.append((t, x)))  # noqa: B023
        assert [len(seen), seen[0][0], seen[-1][0]] == [5, pytest.approx(first), 0.0]
        assert torch.equal(seen[-1][1], x)
        assert torch.equal(seen[0][1], Noise.seeded(0, 2).normal(1, 8, 8))


def test_reflow_says_why_it_refuses_a_chain(world, capsys):
    assert main(["reflow", world["chain"], "--n", "2"]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert "its chain draws noise on the way" in sentence


# ---- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "chain"])
def test_help_lists_every_name(name, world, capsys):
    assert main(["sample", world[name], "--help"]) == 0
    words = re.sub(r"-\n +", "-", capsys.readouterr().out).replace(",", " ").split()  # a line may end in a hyphen
    assert set(SOLVERS) | set(GRIDS) <= set(words)
