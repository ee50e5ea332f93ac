"""Many processes compute what one computes: losses, gradients, checkpoints, and what comes of a death."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.contract.test_models import MODELS
from tests.system import ranked

HERE = Path(__file__).parent


def start(count: int, *words: str, **env: str) -> list[subprocess.Popen[str]]:
    """Processes of one training, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | env
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=common | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[int, str]]:
    """Exit code and words of each; none is left behind."""
    try:
        return [(p.wait(), out + err) for p in processes for out, err in [p.communicate(timeout=seconds)]]
    finally:
        for p in processes:
            p.kill()


def together(job: str, folder: Path, count: int = 2) -> list[Any]:
    """What each of several processes found."""
    for code, said in ended(start(count, str(HERE / "ranked.py"), job, str(folder))):
        assert code == 0, said
    return [json.loads((folder / f"{job}-{r}.json").read_text()) for r in range(count)]


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def alone(job: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    found: dict[str, Any] = json.loads(json.dumps(job(folder)))
    return found


def apart(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest relative difference of two logs."""
    assert [list(line) for line in one] == [list(line) for line in other]
    numbers = [(a[k], b[k]) for a, b in zip(one, other, strict=True) for k in a]
    assert numbers
    return max(abs(a - b) / max(abs(a), 1e-3) for a, b in numbers)


def test_everyone_is_right_under_autograd(tmp_path: Path) -> None:
    for found in together("calculus", tmp_path):
        assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-11)


@pytest.mark.usefixtures("double")
def test_losses_that_speak_to_all_ranks_are_those_of_one_process(tmp_path: Path) -> None:
    first, second = together("speaking", tmp_path)
    one = alone(ranked.speaking, tmp_path / "alone")
    assert first == second
    mistaken = one.pop("mistaken")
    for name, lines in one.items():
        assert apart(lines, first[name]) < 1e-9, name
    assert apart(mistaken, first["mistaken"]) > 1e-3  # the test can fail: a rank's own ratio is another


@pytest.mark.usefixtures("double")
def test_models_of_the_library_train_alike_on_two_processes(tmp_path: Path) -> None:
    first, _ = together("quick", tmp_path)
    for name, lines in alone(ranked.quick, tmp_path / "alone").items():
        assert apart(lines, first[name]) < 1e-6, name


EXCEPTED = {  # what is drawn from the global generator, or is of each rank's own samples
    "u-net, guided": "dropout",
    "classifier": "batch norm",
    "noise-aware classifier": "batch norm",
}


def test_the_excepted_models_are_those_with_dropout_or_batch_norm() -> None:
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    found = {
        n for n, make in MODELS.items() for m in make().model.modules() if isinstance(m, kinds) and getattr(m, "p", 1)
    }
    assert found == set(EXCEPTED)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_every_model_of_the_library_trains_alike_on_two_processes(tmp_path: Path) -> None:
    first, _ = together("library", tmp_path)
    for name, lines in alone(ranked.library, tmp_path / "alone").items():
        assert name in EXCEPTED or apart(lines, first[name]) < 1e-6, name


# ---- weights in pieces, and checkpoints ----------------------------------------------------------------------------


def numbers(found: Any) -> list[float]:
    """All numbers in what a job found, in order."""
    if isinstance(found, dict):
        return [n for k in found for n in numbers(found[k]) if k not in ("rows", "said")]
    return [n for v in found for n in numbers(v)] if isinstance(found, list) else [found]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of two processes: straight through in `straight`, saved half-way in `half`."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("straight", "half"):
        (folder / name).mkdir()
    together("ended", folder / "straight")
    together("begun", folder / "half")
    return folder


@pytest.mark.usefixtures("double")
def test_weights_in_pieces_train_and_serve_as_whole_ones(runs: Path, tmp_path: Path) -> None:
    """Losses, held-out metrics, averages, and sample, log_prob, encode, decode and act."""
    one = alone(ranked.pieces, tmp_path / "alone")
    first, second = (json.loads((runs / "straight" / f"ended-{r}.json").read_text())["pieces"] for r in (0, 1))
    for name in one:
        rows = [found[name].pop("rows") for found in (one, first, second)]
        assert first[name] == second[name]
        assert numbers(first[name]) == pytest.approx(numbers(one[name]), rel=1e-9, abs=1e-9), name
        assert max(rows[1:]) < 0.75 * rows[0], "each rank holds but a part"
