"""Training by Ray actors: a local Ray of two workers, which die and are replaced; and what is refused, without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from morphogen import UserError, cluster
from morphogen.checkpoint import Checkpoints, digest
from morphogen.cli import main
from morphogen.cli.rank import order
from morphogen.cli.train import _without
from morphogen.log import read

ROOT = Path(__file__).resolve().parents[2]
OWN = Path(__file__).with_name("mortal.py")


def typed(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as a user types it."""
    command = [sys.executable, "-m", "morphogen", *map(str, words)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=800)


def trained(run: Path) -> tuple[int, str, list[tuple[int, float]]]:
    """The last step, the hash of all weights and of what the optimiser keeps, and the losses."""
    store = Checkpoints(run)
    step = store.steps()[-1]
    parts = store.load(step)
    tensors = dict(parts["model"])
    for i, optim in parts["optim"].items():
        for name, state in optim["state"].items():
            tensors |= {f"{i}.{name}.{k}": v for k, v in state.items() if not isinstance(v, int | float)}
    losses = {line["step"]: line["loss"] for line in read(run / "log.jsonl") if "loss" in line}
    return step, digest(tensors), sorted(losses.items())


@pytest.mark.timeout(900)
def test_workers_that_die_are_replaced_and_the_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """Rank 1's process is killed in step 5, rank 0's actor in step 10; beside it, torchrun and no death."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`)")
    deaths = ["--deaths", "1:5:process", "0:10:actor"]
    memory = tmp_path / "memory"
    memory.mkdir()
    words = ["train", f"{OWN}:mortal", "--memory", memory, *deaths, "--devices", "2", "--device", "cpu", "--run"]
    done = typed(*words, tmp_path / "ray", "--on", "ray")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in memory.iterdir()) == ["0-10-actor", "1-5-process"]
    assert "Worker 1 of 2 was lost (killed by SIGKILL): replacing it." in done.stderr
    assert "Worker 0 of 2 was lost (its node or its actor is gone): replacing it." in done.stderr
    assert "without a word" not in done.stderr
    assert "after step 3 of 12" in done.stderr
    assert "after step 9 of 12" in done.stderr
    assert done.stdout.startswith("Finished after 12 of 12 steps")
    assert "--on ray" in json.loads((tmp_path / "ray" / "result.json").read_text())["command"]
    straight = typed(*words, tmp_path / "straight")  # the marks of the deaths are there
    assert straight.returncode == 0, straight.stderr
    assert trained(tmp_path / "ray") == trained(tmp_path / "straight")
    assert not list((tmp_path / "ray").glob(".seen-*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_users_mistake_is_one_sentence_from_the_first_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`)")
    done = typed("train", f"{OWN}:mortal", "--memory", tmp_path, "--fault", "--on", "ray", "--run", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.strip() == "mortal.py, line 43: ValueError: cats are not dogs (--debug shows the traceback)."
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_of_its_own_asks_for_a_token(tmp_path: Path) -> None:
    """Who connects with the token may, who has another or none may not."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`)")
    knock = "import sys, ray\nray.init(address=sys.argv[1], logging_level='ERROR')\nprint('in')"
    serve = (
        "import json, os, subprocess, sys\nfrom morphogen.cluster import _connected\n"
        "with _connected(None) as ray:\n"
        "    address, answers = ray.get_runtime_context().gcs_address, []\n"
        "    for given in ({}, {'RAY_AUTH_TOKEN': 'another'}, {'RAY_AUTH_TOKEN': None, 'RAY_AUTH_MODE': 'disabled'}):\n"
        "        env = {k: v for k, v in (os.environ | given).items() if v}\n"
        "        done = subprocess.run([sys.executable, '-c', sys.argv[1], address], env=env, capture_output=True)\n"
        "        answers.append(b'in' in done.stdout.split())\n"
        "print(json.dumps([answers, os.path.exists(os.path.expanduser('~/.ray'))]))"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", serve, knock], env=env, capture_output=True, text=True, timeout=800)
    assert json.loads(done.stdout.splitlines()[-1]) == [[True, False, False], False], done.stderr


# ---- without Ray ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["ray://head", "ray://head:x", "head:10001", "https://head:1", "Ray", "ray://:1", ""])
def test_what_is_no_cluster_is_said(on: str) -> None:
    with pytest.raises(UserError, match="is no cluster: give ray://HOST:PORT"):
        cluster.address(on)


def test_addresses() -> None:
    assert cluster.address("ray") is None
    assert cluster.address("ray://10.0.0.7:10001") == "ray://10.0.0.7:10001"


NEVER = cluster.Order(["-c", "raise SystemExit"], "", "/", Path("/nowhere"))


@pytest.mark.parametrize(
    ("on", "environment", "said"),
    [
        ("ray", {"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is 'disabled'"),
        ("ray://10.0.0.7:10001", {}, "wants its token: set RAY_AUTH_TOKEN"),
        ("ray", {"RAY_AUTH_TOKEN": "x"}, "Ray by"),
        ("ray://nowhere", {}, "is no cluster"),
    ],
)
def test_what_a_cluster_needs_is_said(
    on: str, environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what the call sets is undone
        monkeypatch.delenv(name)
    for name, value in {"HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError) as error:
        cluster.train(on, 1, NEVER, lambda *_: None, lambda _: None)
    assert said.replace("Ray by", "which is not installed: pip install 'morphogen[cluster]'") in str(error.value)


class Cluster:
    """What `cluster.train` sees of Ray. Actors carry out calls at once, `fate` first: it may raise."""

    def __init__(self, fate: Callable[[int, str], None]) -> None:
        kinds = ("RayActorError", "RayTaskError", "GetTimeoutError")
        self.exceptions = SimpleNamespace(**{kind: type(kind, (Exception,), {}) for kind in kinds})
        self.fate, self.placed = fate, list[int]()

    def get(self, answer: Callable[[], Any], timeout: float | None = None) -> Any:
        assert timeout is not None or "hear" in answer.__name__
        return answer()

    def wait(self, answers: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return answers[:num_returns], answers[num_returns:]

    def place(self, rank: int) -> Any:
        self.placed.append(rank)
        about = {"node": "here", "port": 1, "version": cluster.__version__, "auth": "token"}
        told = {"about": about, "leave": 7, "sees": True, "clear": None, "start": None, "hear": ([], 0)}

        def method(name: str) -> Any:
            def answer() -> Any:
                self.fate(rank, name)
                return told[name]

            answer.__name__ = name
            return SimpleNamespace(remote=lambda *_: answer)

        return SimpleNamespace(**{name: method(name) for name in told})


def trained_on(stub: Cluster, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    @contextlib.contextmanager
    def placed(*_: Any) -> Iterator[Any]:
        yield [stub.place(0), stub.place(1)], stub.place

    monkeypatch.setattr(cluster, "_connected", lambda _: contextlib.nullcontext(stub))
    monkeypatch.setattr(cluster, "_placed", placed)
    said: list[str] = []
    return cluster.train("ray", 2, NEVER, lambda *_: None, said.append), said


@pytest.mark.parametrize("call", ["about", "leave", "sees", "clear", "start"])
def test_an_actor_that_dies_before_its_process_is_started_is_replaced(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = 0 if call in ("leave", "clear") else 1  # these are asked of the first alone
    deaths = iter([True])

    def fate(rank: int, name: str) -> None:
        if (rank, name) == (dead, call) and next(deaths, False):
            raise stub.exceptions.RayActorError

    stub = Cluster(fate)
    status, said = trained_on(stub, monkeypatch)
    assert status == 0
    assert said == [f"Worker {dead} of 2 was lost (its node or its actor is gone): replacing it."]
    assert stub.placed == [0, 1, dead]


@pytest.mark.parametrize(
    ("error", "said"), [("RayActorError", "3rd time"), ("GetTimeoutError", "no room for worker 1")]
)
def test_a_worker_that_has_no_place_is_not_waited_for_for_ever(
    error: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fate(rank: int, name: str) -> None:
        if (rank, name) == (1, "about"):
            raise getattr(stub.exceptions, error)

    stub = Cluster(fate)
    with pytest.raises(UserError, match=said):
        trained_on(stub, monkeypatch)


def test_the_command_line_says_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (
        ["--on", "https://head"],
        ["--on=head:1"],
        ["--on", "ray", "--devices", "0"],
        ["--on", "ray", "--check"],
    ):
        assert main(["train", f"{OWN}:mortal", "--memory", str(tmp_path), "--run", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [s.partition(":")[0] for s in said] == [
        "--on 'https", "--on 'head", "--devices 0 is too few", "--check tries a recipe on this machine",
    ]  # fmt: skip


def test_words_lose_a_flag_and_its_value() -> None:
    words = ["train", "a", "--on", "ray", "--only", "x", "--on=ray", "--run", "r"]
    assert _without(words, "--on") == ["train", "a", "--only", "x", "--run", "r"]
    assert _without(["--run"], "--run") == []


def test_an_order_holds_the_users_files_by_their_text(tmp_path: Path) -> None:
    own, other = tmp_path / "own.py", tmp_path / "other.py"
    own.write_text("def cats(): ...\n")
    other.write_text("x = 'ü'\n")
    words = ["train", f"{own}:cats", "--with", str(other), f"--with={own}", "--note", "own.py:cats", "--lr", "-1e-3"]
    page = json.loads(order(words, [other, own], ["typed"]))
    assert page["words"] == [
        "train", "<file 1>:cats", "--with", "<file 0>", "--with=<file 1>", "--note", "own.py:cats", "--lr", "-1e-3",
    ]  # fmt: skip
    assert [f["text"] for f in page["files"]] == [other.read_text(), own.read_text()]
    assert page["typed"] == ["typed"]


def rank(page: str) -> subprocess.Popen[str]:
    """A rank as its actor starts it; its input is left open."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-m", "morphogen.cli.rank"], env=env, text=True, **pipes)
    child.stdin.write(page + "\n")
    child.stdin.flush()
    return child


def test_a_rank_runs_files_that_its_machine_lacks_or_has_otherwise(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("raise ValueError('the driver means this')\n")
    page = order(["train", str(own)], [own], ["train", "mine"])
    for text in (None, "raise ValueError('not this')\n"):
        own.unlink() if text is None else own.write_text(text)
        child = rank(page)
        assert child.wait(60) == 2
        assert "own.py, line 1: ValueError: the driver means this" in child.stderr.read()


def test_a_rank_whose_actor_is_gone_goes_too(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("import time\nprint('here', flush=True)\ntime.sleep(600)\n")
    child = rank(order(["train", str(own)], [own], []))
    assert child.stdout.readline() == "here\n"
    child.stdin.close()
    assert child.wait(30) == -signal.SIGKILL
