"""Pictures of one folder made into pictures like another's: training by the command line, the verb, and its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from morphogen.cli import main
from morphogen.experiment import load
from morphogen.metrics.translation import translated

FLAGS = ["--size", "16", "--no-source-colour", "--width", "4", "--batch", "2", "--steps", "2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of grey squares (a) and of the same in colour (b); runs on them: pairs, and kinds, unpaired."""
    tmp = tmp_path_factory.mktemp("translate")
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("test", 3)):
        for name in "ab":
            (tmp / name / part).mkdir(parents=True)
        for i in range(n):
            grey = rng.integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(grey).save(tmp / "a" / part / f"s{i}.png")
            Image.fromarray(np.stack((grey, 255 - grey, grey), -1)).save(tmp / "b" / part / f"s{i}.webp", lossless=True)
    Image.new("RGB", (40, 20), (9, 200, 9)).save(tmp / "wide.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(tmp / "cache"))
        folders = ["--source", str(tmp / "a"), "--target", str(tmp / "b")]
        assert main(["train", "translate", "--run", str(tmp / "pairs"), *folders, *FLAGS]) == 0
        assert main(["train", "translate", "--run", str(tmp / "kinds"), *folders, *FLAGS, "--unpaired"]) == 0
        yield tmp


def told(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The last JSON line of a verb."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0, capsys.readouterr()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_training_draws_before_and_after_and_says_what_to_type(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("pairs", "kinds"):
        drawn = sorted((made / run / "samples").glob("*.png"))
        assert [p.name for p in drawn] == ["00000001.png", "00000002.png"]
        with Image.open(drawn[-1]) as sheet:
            assert sheet.width > 3 * 64  # three pictures side by side
    capsys.readouterr()
    assert main(["train", "--run", str(made / "pairs")]) == 0
    assert "morphogen translate" in capsys.readouterr().out


def test_ones_own_pictures_become_files_of_their_names(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made / "out"
    answer = told(capsys, "translate", made / "pairs", "--from", made / "a" / "test", made / "wide.png", "--out", out)
    assert sorted(p.name for p in out.iterdir()) == ["s0.png", "s1.png", "s2.png", "wide.png"]
    assert answer["files"][0] == str(made / "pairs" / "translated.png")
    model = load(made / "pairs", device="cpu").model
    grey = np.asarray(Image.open(made / "a" / "test" / "s1.png"), np.float32)
    # the second of them: its noise is of its place
    sources = torch.zeros(2, 1, 16, 16)
    sources[1, 0] = torch.from_numpy(grey) / 127.5 - 1
    expected = ((translated(model, sources)[1] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    with Image.open(out / "s1.png") as drawn:
        assert drawn.mode == "RGB"
        assert np.abs(np.asarray(drawn).astype(int) - expected.astype(int)).max() <= 1
    page = json.loads((made / "pairs" / "translate.json").read_text())
    assert page["n"] == 4
    assert page["command"].startswith("morphogen translate")


def test_without_a_folder_no_more_is_made_than_is_shown(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = made / "a" / "train"
    assert told(capsys, "translate", made / "pairs", "--from", own, "--n", "2")["n"] == 2
    with Image.open(made / "pairs" / "translated.png") as sheet:
        width = sheet.width
    assert told(capsys, "translate", made / "pairs", "--from", own, "--n", "2", "--out", made / "all")["n"] == 6
    with Image.open(made / "pairs" / "translated.png") as sheet:
        assert sheet.width == width
    assert len(list((made / "all").iterdir())) == 6


def test_a_sheet_has_a_largest_width(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.cli.translate._SHOWN", 1)
    assert told(capsys, "translate", made / "pairs", "--n", "2", "--out", made / "narrow")["n"] == 2
    with Image.open(made / "pairs" / "translated.png") as sheet:
        assert sheet.width == 4 + 4 + 64 + 4 + 4
    assert sorted(p.name for p in (made / "narrow").iterdir()) == ["00000.png", "00001.png"]


def test_a_folder_that_cannot_be_is_said_before_the_work(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.metrics.translation.translated", None)
    for out in ("in", "x.png"):
        assert "wide.png" in refused(capsys, "translate", made / "pairs", "--out", made / "wide.png" / out)


def test_held_out_pictures_are_shown_with_their_truth(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, rows in (("pairs", 3), ("kinds", 2)):  # of kinds without pairs there is no truth
        answer = told(capsys, "translate", made / run, "--n", "2", "--out", made / f"{run}.png")
        assert answer["n"] == 2
        with Image.open(made / f"{run}.png") as sheet:
            assert sheet.height == 4 + rows * (4 + 64 + 4 + 14 + 4)  # gaps, pictures four times as large, captions


def test_what_goes_both_ways_goes_back(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made / "back"
    told(capsys, "translate", made / "kinds", "--back", "--from", made / "b" / "test", "--out", out)
    with Image.open(out / "s0.png") as drawn:
        assert drawn.mode == "L"
    assert "goes one way only" in refused(capsys, "translate", made / "pairs", "--back")


def test_a_translation_is_evaluated(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = told(capsys, "evaluate", made / "pairs", "--n", "3")
    assert set(answer["measures"]) == {"l1", "edge F1"}
    assert answer["n"] == 3
    assert 0 < answer["measures"]["l1"]["value"] < 2
    assert "generator_loss.l1" in answer["heldout"]
    assert told(capsys, "evaluate", made / "kinds", "--n", "3")["measures"] == {}


def test_mistakes_are_sentences(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "morphogen translate" in refused(capsys, "sample", made / "pairs")
    assert "morphogen translate" in refused(capsys, "sample", made / "kinds")
    assert "shows nothing" in refused(capsys, "translate", made / "pairs", "--n", "0")
    assert "There is no picture" in refused(capsys, "translate", made / "pairs", "--from", made / "none.png")
    (made / "empty").mkdir(exist_ok=True)
    assert "There is no PNG" in refused(capsys, "translate", made / "pairs", "--from", made / "empty")
    twice = (made / "a" / "test" / "s0.png", made / "b" / "test" / "s0.webp")
    assert "called 's0'" in refused(capsys, "translate", made / "pairs", "--from", *twice, "--out", made / "both")
    assert not (made / "both").exists()
    reader = made / "reader"
    assert main(["train", "digits-classifier", "--run", str(reader), "--epochs", "1", "--width", "4"]) == 0
    assert "makes no pictures of others" in refused(capsys, "translate", reader)
    assert "reads items of shape" in refused(capsys, "evaluate", made / "pairs", "--judge", reader)
    alone = ["--source", made / "b" / "test", "--target", made / "a" / "train", *FLAGS]
    assert "no partner" in refused(capsys, "train", "translate", "--run", made / "alone", *alone)
    tiny = ["--source", made / "a", "--target", made / "b", "--size", "4", "--unpaired", "--steps", "2"]
    assert "wants" in refused(capsys, "train", "translate", "--run", made / "tiny", *tiny)


def test_a_recipe_is_tried(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "translate", "--source", made / "a", "--target", made / "b", *FLAGS, "--check"]
    assert main([*map(str, words)]) == 0
    assert "translate" in capsys.readouterr().out
