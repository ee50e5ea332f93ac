"""`morphogen doctor` finds what is well and what is not, and says nothing of who asks."""

from __future__ import annotations

import json
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from morphogen.cli import doctor, main


@pytest.fixture(autouse=True)
def _elsewhere(elsewhere: None) -> None:
    """Every command here starts in an empty folder."""


def asked(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """The exit status, and the fields of the answer."""
    code = main(["doctor", *words, "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    return code, json.loads(line)


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with room, whatever this one has."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 0, 10**12))


def test_a_sound_machine_is_well(healthy: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = asked(capsys=capsys)
    assert (code, told["well"], told["to_do"]) == (0, True, [])
    assert told["versions"]["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert told["packages"]["torch"].startswith(torch.__version__)
    assert told["packages"]["scipy"].endswith(("imports (extra ot)", "imports (extra scale)"))
    assert told["data"]["digits"] == "comes with the package"
    assert told["data"]["mnist"].startswith("not found")  # which is no fault
    assert {"cpu", "cores", "open files"} <= set(told["machine"])
    assert set(told["devices"]) == set(told["self-test"])
    assert "equal to the last bit" in told["self-test"]["cpu"]
    assert {p.name for p in Path().iterdir()} <= {"cache"}  # trials are made in the cache folder, and removed
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("All is well.\n")
    for room, facts in told.items():
        for name in facts if isinstance(facts, dict) else ():
            assert f"\n  {name}" in text, (room, name)


def test_nobody_is_named(
    healthy: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home" / "ada.l"
    (home / "sets" / "ada.l").mkdir(parents=True)
    elsewhere = tmp_path / "data" / "ada.l" / "runs"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "ada.l")
    monkeypatch.setenv("LOGNAME", "ada.l")
    monkeypatch.setenv("MORPHOGEN_CACHE", str(home / "cache"))
    assert main(["doctor", "--folder", str(elsewhere)]) == 0
    text = capsys.readouterr().out
    assert "ada.l" not in text
    assert "~/cache" in text
    assert "/data/USER/runs" in text
    assert doctor.private("/srv/ada.lovelace/ada.l") == "/srv/ada.lovelace/USER"  # another's name is not hers


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 10**12, 3 * 10**6))
    code, told = asked(capsys=capsys)
    assert code == 1
    assert "Only 3 MB are free for 'runs': free some space." in told["to_do"]
    assert main(["doctor"]) == 1
    assert "To do:\n  - Only 3 MB are free" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_said(healthy: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    code, told = asked("--folder", "file/runs", capsys=capsys)
    assert code == 1
    assert "cannot be written" in told["disk"]["runs"]


def test_few_open_files_are_said(
    healthy: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (64, 64))
    code, told = asked(capsys=capsys)
    assert code == 1
    assert "ulimit -n 4096" in told["to_do"][0]


def test_a_broken_or_missing_package_is_said(
    healthy: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wishes = [
        "torch>=2",
        "tqdm",
        "never-heard-of>=1",
        "also-unheard; extra == 'x'",
        "colorama; sys_platform == 'win32'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wishes)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, told = asked(capsys=capsys)
    assert code == 1
    assert told["packages"]["also-unheard"] == "not installed (extra x)"  # which is no fault
    assert "colorama" not in told["packages"]
    assert any(line.startswith("never-heard-of is missing: pip install") for line in told["to_do"])
    assert any(line.startswith("tqdm is installed but does not import") for line in told["to_do"])


def _perturbed(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Break one thing of the many that the self-test does."""
    from morphogen import experiment
    from morphogen.checkpoint import Checkpoints

    if what == "load":
        load = experiment.load

        def other(*args: Any, **options: Any) -> Any:
            run = load(*args, **options)
            with torch.no_grad():
                next(run.model.parameters()).add_(1e-6)
            return run

        monkeypatch.setattr(experiment, "load", other)
    if what == "draw":
        count = iter(range(100))
        draw = experiment.draw
        monkeypatch.setattr(experiment, "draw", lambda *args, **options: draw(*args, **options) + next(count))
    if what == "resume":
        loaded = Checkpoints.load

        def changed(self: Checkpoints, step: int) -> Any:
            parts = loaded(self, step)
            if step == 1:
                next(iter(parts["model"].values())).add_(1e-6)
            return parts

        monkeypatch.setattr(Checkpoints, "load", changed)
    if what == "train":
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: 1 / 0)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("load", "loaded weights are not those"),
        ("resume", "resumed weights are not those"),
        ("draw", "the same samples drawn twice differ"),
        ("train", "ZeroDivisionError"),
    ],
)
def test_the_self_test_finds_what_is_broken(what: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    to_do: list[str] = []
    _perturbed(monkeypatch, what)
    assert says in doctor.self_test("cpu", to_do)
    assert "open an issue" in to_do[0]
