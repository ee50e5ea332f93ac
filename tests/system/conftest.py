"""What commands are tried on: runs, files and folders, made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from morphogen.cli import main

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs, files and folders that commands are tried on."""
    tmp = tmp_path_factory.mktemp("world")
    own = tmp / "tiny.py"
    shutil.copyfile(TINY, own)
    assert main(["train", f"{own}:blurs", "--run", str(tmp / "blurs-0")]) == 0
    reader = tmp / "reader"
    assert main(["train", "digits-classifier", "--run", str(reader), "--epochs", "1", "--width", "4"]) == 0
    (tmp / "broken.py").write_text("import morphogen\n\ndef cats(:\n")
    (tmp / "raises.py").write_text("import morphogen\nunheard_of\n")
    for name in ("json", "scipy"):
        (tmp / f"{name}.py").write_text("def cats(): ...\n")
    (tmp / "my-cats.py").write_text("def cats(): ...\n")
    (tmp / "full").mkdir()
    (tmp / "full" / "holiday.jpg").write_text("")
    page = json.loads((tmp / "blurs-0" / "spec.json").read_text())
    foreign = json.loads(json.dumps(page).replace("tiny:", "elsewhere:"))
    reading = json.loads((reader / "spec.json").read_text())
    made = {"damaged": "{", "future": json.dumps(page | {"format": 99}), "empty": json.dumps(reading)}
    for name, text in (made | {"foreign": json.dumps(foreign)}).items():
        (tmp / name).mkdir()
        (tmp / name / "spec.json").write_text(text)
    return {"tmp": str(tmp), "own": str(own), "run": str(tmp / "blurs-0"), "reader": str(reader)}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written where the tests are started, and no data is found by accident."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MORPHOGEN_DATA", raising=False)
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
