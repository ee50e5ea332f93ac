"""Many processes compute what one computes: losses, gradients, checkpoints, and what comes of a death."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from morphogen.checkpoint import Checkpoints
from morphogen.core import Place
from morphogen.data import Buckets, Shuffled, Tensors
from morphogen.data.augment import Augmented, Dequantise
from morphogen.data.densities import Fresh, eight_gaussians
from morphogen.data.paired import Unpaired
from morphogen.diffusion.coupling import OptimalTransport
from morphogen.experiment import fit_weights
from morphogen.log import read
from morphogen.parallel import ranks
from morphogen.rl.replay import Replay
from morphogen.rl.rollouts import Rollouts
from tests.contract.test_models import MODELS
from tests.system import ranked
from tests.system.kills import weights

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


def ended(processes: list[subprocess.Popen[str]], seconds: float = 1500) -> list[tuple[int, str]]:
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes found in the quick jobs."""
    return together("first", tmp_path_factory.mktemp("pair"))


def test_everyone_is_right_under_autograd(pair: list[Any]) -> None:
    """Sums, means and gatherings of unequal rows: values, gradients and gradients of gradients of one process."""
    for found in pair:
        assert found["calculus"] == pytest.approx(dict.fromkeys(found["calculus"], 0.0), abs=1e-11)


@pytest.mark.usefixtures("double")
def test_losses_that_speak_to_all_ranks_are_those_of_one_process(pair: list[Any], tmp_path: Path) -> None:
    """VQGAN's adaptive weight, a code book, InfoNCE, ragged denominators, a gradient penalty; in micro-batches too."""
    one, (first, second) = alone(ranked.speaking, tmp_path / "alone"), [found["speaking"] for found in pair]
    assert first == second
    mistaken = one.pop("mistaken")
    for name, lines in one.items():
        assert apart(lines, first[name]) < 1e-9, name
    assert apart(mistaken, first["mistaken"]) > 1e-3  # the test can fail: a rank's own ratio is another


@pytest.mark.usefixtures("double")
def test_models_of_the_library_train_alike_on_two_processes(pair: list[Any], tmp_path: Path) -> None:
    for name, lines in alone(ranked.quick, tmp_path / "alone").items():
        assert apart(lines, pair[0]["quick"][name]) < 1e-6, name


EXCEPTED = {"u-net, guided": "dropout"}  # which is drawn from the global generator of each rank


def test_the_excepted_models_are_those_with_dropout_or_batch_norm() -> None:
    found = {}
    for name, make in MODELS.items():
        for module in make().model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                found[name] = "batch norm"
            if getattr(module, "dropout", 0.0) or (isinstance(module, nn.Dropout) and module.p):
                found[name] = "dropout"
    assert found == EXCEPTED


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_every_model_of_the_library_trains_alike_on_two_processes(tmp_path: Path) -> None:
    first, _ = together("models", tmp_path)
    for name, lines in alone(ranked.models, tmp_path / "alone").items():
        both = [_unscored(lines), _unscored(first[name])]
        assert name in EXCEPTED or _draws(name) or apart(*both) < 1e-6, name


def _draws(name: str) -> bool:
    """Whether each rank draws minibatches from what its own environments have gone through: no batch of one process."""
    source = MODELS[name]().source
    return isinstance(source, Replay) or (isinstance(source, Rollouts) and source.pieces > 1)


def _unscored(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Lines of a log without the mean return of each rank's own finished episodes, which are not equally many."""
    return [{k: v for k, v in line.items() if not k.endswith("score")} for line in lines]


SOURCES: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: Shuffled(_items(10), 4),
    "shuffled, ahead": lambda: Shuffled(_items(10), 4, workers=2),
    "larger than the data": lambda: Shuffled(_items(3), 8),
    "buckets": lambda: Buckets([Shuffled(_items(7), 4), Shuffled(_items(5), 2)]),
    "augmented": lambda: Augmented(Shuffled(_items(10), 4), (Dequantise(16),)),
    "unpaired": lambda: Unpaired(Shuffled(_items(10), 4), Shuffled(_items(7), 4)),
    "fresh": lambda: Fresh(eight_gaussians(), 6),
    "optimal transport": lambda: OptimalTransport(Shuffled(_items(10), 4)),
}


def _items(n: int) -> Tensors:
    return Tensors(torch.arange(2.0 * n).reshape(n, 2))


@pytest.mark.parametrize("name", SOURCES)
def test_ranks_share_the_batch_of_one_process(name: str) -> None:
    """Without gap or overlap, in order; and going on from what any of them has saved."""
    one, *two = (SOURCES[name]() for _ in range(3))
    one.start(Place(seed=3))
    for r, source in enumerate(two):
        source.start(Place(r, 2, seed=3))
    model = ranked.Codes()  # which does not matter
    for step in range(9):
        whole, parts = one.next(model, {}), [source.next(model, {}) for source in two]
        for k in ("x", "index", "key"):
            assert torch.equal(whole[k], torch.cat([part[k] for part in parts])), (step, k)
        if step == 4:
            saved = two[0].state()
            two = [SOURCES[name]() for _ in two]
            for r, source in enumerate(two):
                source.start(Place(r, 2, seed=3))
                source.restore(saved)


# ---- weights in pieces, and checkpoints ----------------------------------------------------------------------------


def numbers(found: Any) -> list[float]:
    """All numbers in what a job found, in order."""
    if isinstance(found, dict):
        return [n for k in found for n in numbers(found[k]) if k not in ("rows", "said")]
    if isinstance(found, str):  # where a picture lies
        return []
    return [n for v in found for n in numbers(v)] if isinstance(found, list) else [found]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Two processes' trainings from beginning to end, with weights in pieces and with what each rank remembers."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, together("ended", folder)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped half-way."""
    folder = tmp_path_factory.mktemp("half")
    together("begun", folder)
    return folder


@pytest.mark.usefixtures("double")
def test_weights_in_pieces_train_and_serve_as_whole_ones(straight: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """Losses, held-out metrics, averages; sample, log_prob, encode, decode, act; a whole critic with a penalty."""
    one, (first, second) = alone(ranked.pieces, tmp_path / "alone"), [found["pieces"] for found in straight[1]]
    for name in one:
        assert {**first[name], "rows": 0} == {**second[name], "rows": 0}
        assert numbers(first[name]) == pytest.approx(numbers(one[name]), rel=1e-9, abs=1e-9), name
        assert first[name]["rows"] < 0.75 * one[name]["rows"] > second[name]["rows"], "each holds but a part"


def test_a_run_of_two_goes_on_with_two_to_the_same_bits(
    straight: tuple[Path, list[Any]], half: Path, tmp_path: Path
) -> None:
    """Weights in pieces, optimisers, averages, sources, buffers and what was heard of each rank."""
    shutil.copytree(half, tmp_path / "two")
    for one, other in zip(straight[1], together("ended", tmp_path / "two"), strict=True):
        told = [found["own"].pop("said") for found in (one, other)]
        assert (told[0] != told[1]) == bool(told[1])  # rank 0 tells of its beginning or its going on, others of nothing
        assert one == other
    for name in (*ranked.IN_PIECES, "own"):
        assert weights(straight[0] / name) == weights(tmp_path / "two" / name)


@pytest.mark.usefixtures("double")
def test_a_run_of_two_goes_on_alone(straight: tuple[Path, list[Any]], half: Path, tmp_path: Path) -> None:
    """Equal losses; and what only two could remember is told."""
    shutil.copytree(half, tmp_path / "one")
    found = json.loads(json.dumps(ranked.ended(tmp_path / "one")))
    assert numbers(found["pieces"]) == pytest.approx(numbers(straight[1][0]["pieces"]), rel=1e-9, abs=1e-9)
    assert "2 processes that each remember another source and queue, and is taken up by 1" in found["own"]["said"][0]


@pytest.mark.usefixtures("double")
def test_a_run_in_pieces_is_loaded_as_any_other(straight: tuple[Path, list[Any]]) -> None:
    """No tensor of a sharded run is in pieces for who loads it; every file is safetensors or JSON."""
    folder, found = straight
    for name in ranked.IN_PIECES:
        checkpoints = Checkpoints(folder / name)
        model = ranked.IN_PIECES[name]().double()
        parts = checkpoints.load(checkpoints.steps()[-1])
        fit_weights(model, parts, 6)
        assert numbers(ranked.doors(model.eval())) == pytest.approx(
            numbers(found[0]["pieces"][name]["live"]), rel=1e-12
        )
        files = [
            p for p in (folder / name).rglob("*") if p.is_file() and "samples" not in p.parts and p.name != ".lock"
        ]
        assert {p.suffix for p in files} <= {".json", ".safetensors", ".jsonl"}


# ---- faults --------------------------------------------------------------------------------------------------------

RECIPE = f"{HERE / 'ranked.py'}:flawed"


def train(*words: str) -> list[str]:
    return ["-m", "morphogen", "train", RECIPE, *words]


def test_pieces_of_single_precision_train_as_one_process(tmp_path: Path) -> None:
    """The other tests of pieces are in double precision, for which PyTorch reduces by another operation."""
    one, two = tmp_path / "one", tmp_path / "two"
    for code, said in [
        *ended(start(2, *train("--run", str(two), "--shard"))),
        *ended(start(1, *train("--run", str(one)))),
    ]:
        assert code == 0, said
    losses = [[json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_mistake_on_one_rank_is_said_once(tmp_path: Path) -> None:
    one, other = ended(start(2, *train("--way", "mistake", "--run", str(tmp_path / "run"))))
    assert one[0] == other[0] == 2
    assert (one[1] + other[1]).count("The picture 'cat.png' cannot be read: mend it.") == 1
    assert "Process 1: The picture" in one[1]


def test_nan_on_one_rank_stops_all_and_names_its_data(tmp_path: Path) -> None:
    one, other = ended(start(2, *train("--way", "nan", "--run", str(tmp_path / "run"))))
    assert one[0] == other[0] == 3
    assert "Step 6, phase 'loss': the first tensor that is not finite is the batch's 'x' itself" in one[1]
    assert "data indices of process 1 46 (1 of 4)" in one[1]  # step 6 of 8 points: rank 1 has 44 to 47
    assert "not finite" not in other[1]
    assert Checkpoints(tmp_path / "run").steps() == [0, 4]


def devices(*words: str) -> subprocess.Popen[str]:
    """`morphogen train … --devices 2`."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *train(*words, "--devices", "2")], **pipes)


def test_a_killed_process_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    """`--devices 2` starts torchrun; SIGKILL of one is told with a good checkpoint; the same command ends the run."""
    run = tmp_path / "run"
    ((code, said),) = ended([devices("--way", "killed", "--run", str(run))])
    assert code == 1
    assert "Process 1 of 2 was killed by SIGKILL; the last checkpoint stands, and the same command continues it" in said
    assert "Traceback" not in said
    assert Checkpoints(run).newest(lambda text: None)[0] == 4
    page = (run / "spec.json").read_text().replace('"killed"', '"none"')
    (run / "spec.json").write_text(page)
    assert ended([devices("--run", str(run))])[0][0] == 0
    assert ended(start(2, *train("--run", str(tmp_path / "straight"))))[0][0] == 0
    assert weights(run) == weights(tmp_path / "straight")


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = devices("--slow", "0.2", "--steps", "40", "--run", str(run))
    while not read(run / "log.jsonl"):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    ((code, said),) = ended([process])
    assert code == 143
    assert said.count("Heard SIGTERM: finishing this step and saving.") == 1
    assert "stopped by SIGTERM; the run is saved; the same command continues it" in said
    step = Checkpoints(run).steps()[-1]
    assert step == read(run / "log.jsonl")[-1]["step"] < 40


@pytest.mark.slow
def test_torchrun_by_hand_joins_and_a_dead_rank_is_told(tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "--",  # else torchrun takes --run for a flag of its own
        "morphogen",
        "train",
        RECIPE,
    ]
    done = subprocess.run([*torchrun, "--run", str(tmp_path / "a")], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert ended(start(2, *train("--run", str(tmp_path / "b"))))[0][0] == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    (code, said), (killed, _) = ended(start(2, *train("--run", str(tmp_path / "c"), "--way", "killed")))
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "Another process of this training has ended without a word" in said


@pytest.mark.slow
def test_a_process_that_is_silent_ends_the_run(tmp_path: Path) -> None:
    """One is stopped, neither dead nor alive: the other does not wait for ever."""
    processes = start(2, *train("--run", str(tmp_path / "run"), "--way", "stopped"))
    code, said = ended(processes[:1])[0]
    processes[1].kill()
    processes[1].communicate()
    assert code == 1
    assert "Process 1 of 2 has been silent for 60 s" in said


def test_a_rank_that_finds_no_store_ends_by_itself(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The rank that holds it may die before the others' watches have reached it."""

    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("the connection is closed")

    def unreachable(*_: Any, **__: Any) -> None:
        raise RuntimeError("the connection is refused")

    left, codes = threading.Event(), []
    monkeypatch.setattr("torch.distributed.TCPStore", unreachable)
    monkeypatch.setattr(ranks, "_address", lambda: ("127.0.0.1", 1))
    for name, seconds in (("_LOOK", 0.01), ("_SILENCE", 0.1), ("_MOMENT", 0.01), ("_GRACE", 0.01)):
        monkeypatch.setattr(ranks, name, seconds)
    monkeypatch.setattr(ranks.os, "_exit", lambda code: (codes.append(code), left.set()))
    ranks.Joined(1, 2, 1, Gone())._watch(left)  # type: ignore[arg-type]
    assert codes == [1]
    assert "Process 0 of 2 has been silent" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_runs_killed_at_random_moments_end_in_the_same_bits(tmp_path: Path, sharded: bool) -> None:
    """Any one rank, from before the ranks meet to the last step; the other a moment later, as by a launcher."""
    words = ("--slow", "0.5", *(("--shard",) if sharded else ()))
    began = time.monotonic()
    assert ended(start(2, *train("--run", str(tmp_path / "straight"), *words)))[0][0] == 0
    whole, chance, run, reached = time.monotonic() - began, random.Random(7), tmp_path / "run", set()
    for life in range(9):
        processes = start(2, *train("--run", str(run), *words))
        if life < 8:
            time.sleep(chance.uniform(0.4, 1) * whole)
            victim = chance.randrange(2)
            processes[victim].kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[1 - victim].wait(5)
            processes[1 - victim].kill()
        codes = [code for code, _ in ended(processes)]
        if (run / "checkpoints").is_dir():
            assert Checkpoints(run).newest(lambda text: pytest.fail(text))
            reached.add(Checkpoints(run).steps()[-1])
        if codes == [0, 0]:
            break
    assert min(reached) < 12  # some died on the way
    assert codes == [0, 0]
    assert weights(run) == weights(tmp_path / "straight")
