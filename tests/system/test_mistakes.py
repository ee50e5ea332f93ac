"""What users get wrong, and what they are told: every row of mistakes.jsonl, at the command line or in Python.

A row says what is `wrong`, what is `typed` (or called in `python`), what the one sentence `says` of it, and, where
there is one, the right suggestion `near`: the nearest valid thing, or what to do next. Names in braces are made by the
fixtures `world` and `wrongs`: {run} a generator of the user's own, {reader} a classifier, {flow}, {digits} diffusions
without classes and with them, {agent} an agent, {plane} a codec, {own} and {faulty} files of recipes, {tmp} the folder
of all. `beside` marks answers that stand below other lines (notes of a training); `fault` makes the system refuse;
`absent` names the device that must not be here.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from morphogen.cli import main

HERE = Path(__file__).parent
ROWS = [json.loads(line) for line in (HERE / "mistakes.jsonl").read_text(encoding="utf-8").splitlines()]
SHARE = 0.95  # of the rows with a right suggestion that must say it


def _spoilt(tmp: Path, name: str, page: Any, checkpoints: Path | None = None) -> None:
    """A run folder whose spec.json is `page`: bytes, text or JSON."""
    (tmp / name).mkdir()
    raw = page if isinstance(page, bytes) else page.encode() if isinstance(page, str) else json.dumps(page).encode()
    (tmp / name / "spec.json").write_bytes(raw)
    if checkpoints is not None:
        shutil.copytree(checkpoints, tmp / name / "checkpoints")


def _damaged_runs(tmp: Path, reader: Path) -> None:
    page = json.loads((reader / "spec.json").read_text())
    text, there = json.dumps(page), reader / "checkpoints"
    graph = page["experiment"]
    _spoilt(tmp, "list", [1, 2])
    _spoilt(tmp, "binary", bytes(range(256)))
    _spoilt(tmp, "headless", page | {"experiment": {**graph, "args": {"model": graph["args"]["model"]}}}, there)
    _spoilt(tmp, "hollow", "")
    _spoilt(tmp, "past", page | {"format": 0})
    _spoilt(tmp, "unheard", text.replace(":ResNet", ":ResNett"), there)
    _spoilt(tmp, "argument", text.replace('"width"', '"widht"'), there)
    _spoilt(tmp, "lacking", text.replace("morphogen.nets.resnet:", "morphogen.flows.glow9:"), there)
    _spoilt(tmp, "foreignclass", text.replace("morphogen.nets.resnet:ResNet", "posix:system"), there)
    _spoilt(tmp, "dangling", page | {"experiment": {**graph, "args": {**graph["args"], "model": {"ref": 77}}}}, there)
    _spoilt(tmp, "seedword", page | {"seed": "seven"}, there)
    _spoilt(tmp, "number", page | {"experiment": 7}, there)
    asset = {"class": "morphogen.spec:Asset", "args": {"path": "gone.npy", "sha256": ""}}
    _spoilt(tmp, "assetless", page | {"experiment": {**graph, "args": {**graph["args"], "data": asset}}}, there)
    _spoilt(tmp, "garbled", page, there)
    (tmp / "garbled" / "log.jsonl").write_bytes(b"\xff\x00 no log\n{{{\n")
    _spoilt(tmp, "misfit", text.replace('"width": 4', '"width": 5'), there)
    for name in ("cut", "flipped", "manifest"):
        shutil.copytree(reader, tmp / name)
    for file in (tmp / "cut").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    for file in (tmp / "flipped").rglob("*.safetensors"):
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    for file in (tmp / "manifest").rglob("manifest.json"):
        file.write_text("{}\n")
    (tmp / "folderspec" / "spec.json").mkdir(parents=True)


def _bad_files(tmp: Path) -> None:
    (tmp / "table.csv").write_text("x,label\n1,cat\n2\n")
    (tmp / "cats.ipynb").write_text("{}")
    (tmp / "imports.py").write_text("import no_such_package\n")
    (tmp / "tabs.py").write_text("def cats():\n        x = 1\n\treturn x\n")
    (tmp / "bytes.py").write_bytes(b"\x00\xff\xfe")
    (tmp / "hollow.py").write_text("")
    (tmp / "text.npy").write_text("1 2 3")
    np.save(tmp / "objects.npy", np.array([{1: 2}, None], dtype=object), allow_pickle=True)
    np.save(tmp / "words.npy", np.array(["cat", "dog"]))
    np.save(tmp / "short.npy", np.zeros((100, 2), np.float32))
    (tmp / "short.npy").write_bytes((tmp / "short.npy").read_bytes()[:200])
    (tmp / "empty.npy").write_bytes(b"")
    (tmp / "text.safetensors").write_text("x = 3")
    save_file({"pixels": torch.zeros(3, 2)}, tmp / "pixels.safetensors")
    save_file({"x": torch.zeros(3, 2), "z": torch.zeros(3, 2)}, tmp / "narrow.safetensors")
    (tmp / "folder.png").mkdir()
    (tmp / "file").write_text("")
    (tmp / "loop").symlink_to(tmp / "loop")
    for name in ("diskfull.png", "diskfull.npy"):
        (tmp / name).symlink_to("/dev/full")
    for name in ("lone", "captions", "halves/train", "halves/test", "halves/extra"):
        (tmp / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp / name / "0.png")
    (tmp / "captions" / "0.txt").symlink_to("nowhere")
    (tmp / "sets").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp / "sets" / name).write_bytes(b"\x00\x00\x08\x03\x00\x00")
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp / "sets" / name).write_bytes(b"\x00\x00\x08\x03\x00\x00")
    with tarfile.open(tmp / "sets" / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())


@pytest.fixture(scope="session")
def wrongs(world: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The world, with all that is wrong in it."""
    tmp = tmp_path_factory.mktemp("wrongs")
    shutil.copytree(world["tmp"], tmp, dirs_exist_ok=True)
    shutil.copyfile(HERE / "faulty.py", tmp / "faulty.py")
    for name, line in {
        "flow": "points-diffusion --steps 2 --width 8 --depth 1 --batch 4",
        "digits": "digits-diffusion --steps 2 --width 8 --batch 4",
        "agent": "gridworld --world grid4 --steps 2",
    }.items():
        assert main([*shlex.split(f"train {line} --run"), str(tmp / name)]) == 0
    assert main(["train", f"{tmp / 'faulty.py'}:good", "--run", str(tmp / "flowless")]) == 0
    assert main(["train", f"{tmp / 'tiny.py'}:plane", "--run", str(tmp / "plane")]) == 0
    _bad_files(tmp)
    _damaged_runs(tmp, tmp / "reader")
    from morphogen.checkpoint import claim

    (tmp / "held").mkdir()
    (tmp / "held" / "assets").mkdir()
    with claim(tmp / "held"):
        yield {k: v.replace(world["tmp"], str(tmp)) for k, v in world.items()} | {
            "faulty": str(tmp / "faulty.py"),
            **{name: str(tmp / name) for name in ("flow", "digits", "agent", "flowless", "plane")},
        }


def test_every_mistake_is_answered_by_one_sentence(wrongs: dict[str, str], tmp_path: Path) -> None:
    """In a process of its own, since nobody but our tests has every argument's type checked."""
    env = {k: v for k, v in os.environ.items() if k != "MORPHOGEN_DATA"}
    env |= {"PYTHONPATH": str(HERE.parents[1] / "src"), "MORPHOGEN_CACHE": str(tmp_path / "cache")}
    typing = [sys.executable, HERE / "wrong.py", HERE / "mistakes.jsonl", json.dumps(wrongs)]
    done = subprocess.run(typing, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(ROWS)
    failed, silent, suggested = [], [], 0
    for row, answer in zip(ROWS, told, strict=True):
        if answer is None:  # the device that must be absent is here
            continue
        said, what = answer["said"], row.get("typed") or row["python"]
        faults = answer["faults"] + [f"says no {words!r}" for words in row["says"] if words not in said]
        if faults:
            failed.append(f"{what}: {', '.join(faults)}\n    {said}")
        if "near" in row:
            suggested += row["near"] in said
            if row["near"] not in said:
                silent.append(f"{what}: suggests no {row['near']!r}\n    {said}")
    share = suggested / (suggested + len(silent))
    print("", *silent, f"mistakes={len(ROWS) - len(failed)}", f"suggested={share}", sep="\n")
    if failed:
        pytest.fail(f"{len(failed)} of {len(ROWS)}:\n" + "\n".join(failed), pytrace=False)
    assert share >= SHARE


def test_the_table_is_what_it_says() -> None:
    asked = [row.get("typed") or row.get("python") for row in ROWS]
    assert len(set(asked)) == len(asked) >= 400
    allowed = {"wrong", "typed", "python", "says", "near", "beside", "fault", "absent", "code", "env", "error"}
    for row in ROWS:
        assert set(row) <= allowed
        assert row["wrong"]
        assert row["says"] or row.get("near")
