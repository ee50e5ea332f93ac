"""Agents at the command line: what their episodes come to, over one run and over seeds."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from morphogen.cli import main
from morphogen.metrics.returns import interquartile_mean


def run(typed: str) -> int:
    return main(shlex.split(typed))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of a small world, and the first again as if of another experiment."""
    tmp = tmp_path_factory.mktemp("agents")
    for seed in range(3):
        assert run(f"train gridworld --world grid4 --steps 4 --seed {seed} --run {tmp / str(seed)}") == 0
    shutil.copytree(tmp / "0", tmp / "3")
    page = (tmp / "3" / "spec.json").read_text()
    (tmp / "3" / "spec.json").write_text(page.replace('"gamma": 0.99', '"gamma": 0.5'))
    return [tmp / str(seed) for seed in range(4)]


@pytest.fixture(autouse=True)
def _here(elsewhere: None) -> None:
    """In a folder of its own."""


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_agent_is_measured_by_fresh_episodes(seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"evaluate {seeds[0]} --limit 40 --n 50 --json") == 0
    told = answers(capsys)[-1]
    page = json.loads((seeds[0] / "evaluation.json").read_text())
    assert told == {"event": "evaluated", **page}
    assert (page["acting"], page["environment"], page["episodes"], page["limit"]) == ("greedy", "grid4", 50, 40)
    assert len(page["returns"]) == len(page["lengths"]) == 50
    assert page["measures"]["return"]["value"] == pytest.approx(sum(page["returns"]) / 50)
    assert page["measures"]["return_iqm"]["value"] == pytest.approx(float(interquartile_mean(page["returns"])))
    assert all(r == -n for r, n in zip(page["returns"], page["lengths"], strict=True))  # a move costs 1
    assert page["rated"]["best"] == pytest.approx(-2)
    assert page["measures"]["return"]["value"] <= page["rated"]["best"] + 0.5
    report = (seeds[0] / "report.html").read_text()
    assert "50 episodes of grid4, greedy" in report
    assert "Known returns: best -2" in report
    assert run(f"evaluate {seeds[0]} --limit 40 --n 50 --sample") == 0
    assert "sampling actions" in capsys.readouterr().out
    again = json.loads((seeds[0] / "evaluation.json").read_text())
    assert again["acting"] == "sampled"
    assert again["returns"] != page["returns"]


def test_seeds_are_scores(seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    three = " ".join(map(str, seeds[:3]))
    assert run(f"evaluate {three} --limit 40 --n 20 --json") == 0
    page = answers(capsys)[-1]
    each = [json.loads((path / "evaluation.json").read_text()) for path in seeds[:3]]
    scores = [e["measures"]["return"]["value"] for e in each]
    assert page["runs"] == [str(path) for path in seeds[:3]]
    assert page["measures"]["return"]["value"] == pytest.approx(sum(scores) / 3)
    assert page["measures"]["return"]["n"] == 3
    assert page["measures"]["return"]["low"] == pytest.approx(min(scores))
    assert page["measures"]["return"]["high"] == pytest.approx(max(scores))
    assert run(f"evaluate {three} --limit 40 --n 20") == 0
    assert "3 runs, 20 episodes each of grid4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("{0} {3}", "gamma"),
        ("{0} {1} {0}", "seed 0"),
        ("{0} {1} --ema 0.9 0.99", "one average"),
        ("{0} --judge {0}", "--judge"),
        ("{0} --n 0", "no interval of episodes"),
        ("{0} --n 1", "no interval of episodes"),
        ("{0} --n -1", "--n -1"),
        ("{0} --importance 1000", "--importance"),
        ("{0} --bogus 3", "no flag of Control '--bogus'"),
        ("{0} {1} --greedily", "did you mean '--greedy'"),
        ("{0} --limit 0", "--limit 0"),
        ("{0} --greedy --sample", "exclude each other"),
    ],
)
def test_what_cannot_be_compared_or_played_is_said(
    typed: str, says: str, seeds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"evaluate {typed.format(*seeds)}") == 2
    assert says in capsys.readouterr().err


def test_check_plays_an_agent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train gridworld --world grid4 --steps 4 --check") == 0
    assert "ok  play" in capsys.readouterr().out


# ---- films ---------------------------------------------------------------------------------------------------------


def frames(path: Path) -> list[tuple[Image.Image, int]]:
    with Image.open(path) as gif:
        found = []
        for k in range(gif.n_frames):
            gif.seek(k)
            found.append((gif.convert("RGB"), gif.info["duration"]))
        return found


def test_a_film_shows_every_step_of_the_episode_to_its_end(
    seeds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"play {seeds[0]} --sample --seed 3 --film --limit 60 --json") == 0
    told = answers(capsys)[-1]
    path = seeds[0] / "play-3.gif"
    assert told["files"] == [str(path)]
    (steps,) = told["lengths"]
    assert told["returns"] == [-steps]
    assert told["acting"] == "sampled"
    found = frames(path)
    assert sum(time for _, time in found) == 30 * steps + 130  # before the first step and after each, the last held
    end = found[-1][0]
    red = [(x, y) for x in range(end.width) for y in range(end.height) if end.getpixel((x, y)) == (214, 39, 40)]
    middle = (sum(x for x, _ in red) / len(red), sum(y for _, y in red) / len(red))
    assert (int(middle[0] // 56), int(middle[1] // 56)) in ((0, 0), (3, 3))  # in a corner, where it ends
    assert run(f"play {seeds[0]} --sample --seed 3 --limit 60") == 0
    assert f"return {-steps}, {steps} steps" in capsys.readouterr().out


def test_a_sheet_of_several(seeds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = tmp_path / "deep" / "sheet.gif"
    assert (
        run(f"play {seeds[1]} --sample --episodes 4 --film {film} --limit 30 --size 100 --fps 10 --every 2 --json") == 0
    )
    lengths = answers(capsys)[-1]["lengths"]
    assert len(lengths) == 4
    found = frames(film)
    assert found[0][0].size == (2 * 104 + 4, 2 * 104 + 4)
    shown = {*range(0, max(lengths) + 1, 2), *lengths}  # every other step, and those at which one ends
    assert sum(time for _, time in found) == 100 * (len(shown) + 3)  # alike ones are stored as one; the last is held
    assert 2 <= len(found) <= len(shown)
    assert run(f"play {seeds[1]} --sample --episodes 3 --limit 30") == 0
    assert "3 episodes of grid4" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["CartPole-v1", "HalfCheetah-v5"])
def test_gymnasium_is_filmed_too(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By pygame; MuJoCo by OpenGL, and by lines of our own where there is none."""
    pytest.importorskip("mujoco" if "v5" in name else "pygame", reason="needs pip install 'morphogen[rl]'")
    own = tmp_path / "dices.py"
    own.write_text(DICES)
    assert run(f"train {own}:dices --name {name} --run {tmp_path / 'run'}") == 0
    capsys.readouterr()
    assert run(f"play {tmp_path / 'run'} --with {own} --film {tmp_path / 'a.gif'} --limit 6 --json") == 0
    assert answers(capsys)[-1]["environment"] == name
    found = frames(tmp_path / "a.gif")
    assert 2 <= len(found) <= 7
    assert found[0][0].width == 320
    assert run(f"play {tmp_path / 'run'} --with {own} --greedy --limit 6") == 2
    assert "no way to act without chance" in capsys.readouterr().err


DICES = '''
"""An agent that throws dice."""
import torch
import morphogen as mg
from morphogen.core import Act, Loss
from morphogen.rl.env import Choice, Gymnasium
from morphogen.rl.rollouts import Online


class Dice(mg.Model):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.space, self.weight = Gymnasium(name, 1).action, torch.nn.Parameter(torch.zeros(()))

    def act(self, obs, memory=None, *, noise):
        if isinstance(self.space, Choice):
            return Act(noise.integers(self.space.n))
        return Act(noise.uniform(*self.space.shape))

    def loss(self, batch):
        return Loss(self.weight * batch["reward"].mean())


def dices(name: str = "CartPole-v1") -> mg.Experiment:
    """Dice.

    name: of the environment.
    """
    return mg.Experiment(Dice(name), mg.Data(Online(Gymnasium(name, 2))), mg.Trainer(1))
'''


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("{0} --film a.avi", "end in .gif, or in .mp4"),
        ("{0} --film --episodes 100", "36 at most"),
        ("{0} --episodes 0", "--episodes 0"),
        ("{0} --fps 0", "--fps 0"),
        ("{0} --film --size 100000", "2048 pixels at most"),
        ("{0} --greedy --sample", "exclude each other"),
    ],
)
def test_what_cannot_be_played_is_said(
    typed: str, says: str, seeds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"play {typed.format(*seeds)}") == 2
    assert says in capsys.readouterr().err
