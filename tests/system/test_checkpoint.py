"""No truncation and no flipped bit of a checkpoint goes unseen; states come back as they went in."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch

from morphogen import UserError
from morphogen.checkpoint import Checkpoints, Damaged, pack, unpack, write

FLIPS = int(os.environ.get("MORPHOGEN_FLIPS", "10000"))


def small(run: Path, step: int = 5, keep: int = 2) -> Checkpoints:
    store = Checkpoints(run, keep)
    x = torch.randn(3, 2)
    parts = {
        "model": {"w": x, "tied": x, "half": torch.ones(2, dtype=torch.bfloat16)},
        "loop": {"step": step, "none": None},
    }
    store.save(step, parts, {"f": torch.arange(4.0)})
    return store


def files(store: Checkpoints, step: int) -> list[Path]:
    return [*store.path(step).iterdir(), *store.frozen.iterdir()]


def test_states_come_back(tmp_path):
    state = {
        "a": [1, 2.5, None, True, "x"],
        "t": torch.arange(6).reshape(2, 3),
        "m": {"": torch.zeros(0, 3)},
        "bits": 1e-300,
    }
    tensors: dict[str, torch.Tensor] = {}
    again = unpack(json.loads(json.dumps(pack(state, tensors))), tensors)
    assert again["a"] == state["a"]
    assert torch.equal(again["t"], state["t"])
    assert again["m"][""].shape == (0, 3)
    with pytest.raises(TypeError, match="the state x is a set"):
        pack({"x": {1}}, {})


def test_views_tied_and_transposed_tensors_come_back(tmp_path):
    base = torch.randn(4, 6)
    parts = {"m": {"whole": base, "row": base[1], "t": base.T, "same": base}}
    store = Checkpoints(tmp_path)
    store.save(1, parts, {})
    again = store.load(1)["m"]
    for name, value in parts["m"].items():
        assert torch.equal(again[name], value), name


def test_every_truncation_is_detected(tmp_path):
    store = small(tmp_path)
    for path in files(store, 5):
        whole = path.read_bytes()
        for n in range(len(whole)):
            path.write_bytes(whole[:n])
            with pytest.raises(Damaged):
                store.verify(5)
        path.write_bytes(whole)
        path.write_bytes(whole + b"\0")
        with pytest.raises(Damaged):
            store.verify(5)
        path.unlink()
        with pytest.raises(Damaged):
            store.verify(5)
        path.write_bytes(whole)
    store.verify(5)


def test_random_bit_flips_are_detected(tmp_path):
    store = small(tmp_path)
    rng = random.Random(0)
    paths = files(store, 5)
    original = {p: p.read_bytes() for p in paths}
    sizes = [len(original[p]) for p in paths]
    for _ in range(FLIPS):
        path = rng.choices(paths, sizes)[0]
        whole = bytearray(original[path])
        at = rng.randrange(len(whole))
        whole[at] ^= 1 << rng.randrange(8)
        path.write_bytes(whole)
        with pytest.raises(Damaged):
            store.verify(5)
        path.write_bytes(original[path])
    store.verify(5)


def test_the_newest_sound_one_is_taken_and_the_others_are_said(tmp_path):
    store = small(tmp_path, 5, keep=3)
    small(tmp_path, 6, keep=3)
    small(tmp_path, 7, keep=3)
    (store.path(7) / "state.json").unlink()
    (store.path(6) / "manifest.json").write_text("{}")
    said: list[str] = []
    found = store.newest(said.append)
    assert found is not None
    assert found[0] == 5
    assert len(said) == 2
    assert "step 7: state.json is missing" in said[0]
    (store.path(5) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="Every checkpoint in"):
        store.newest(said.append)
    assert Checkpoints(tmp_path / "elsewhere").newest(said.append) is None


def test_keep_and_best(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        store.save(step, {"m": {"w": torch.tensor([float(step)])}}, {"f": torch.tensor([step // 4])}, best=2)
    assert store.steps() == [2, 5, 6]
    assert len(list(store.frozen.iterdir())) == 2  # one that step 2 needs, one that 5 and 6 need
    store.save(7, {"m": {}}, {}, best=7)
    assert store.steps() == [6, 7]
    assert not [p for p in store.folder.iterdir() if p.name.startswith(".")]


def test_a_damaged_checkpoint_is_replaced(tmp_path):
    store = small(tmp_path)
    (store.path(5) / "model.safetensors").unlink()
    small(tmp_path)
    store.verify(5)


def test_leftovers_of_a_kill_do_not_disturb(tmp_path):
    store = small(tmp_path)
    (store.folder / ".partial-00000006").mkdir()
    (store.folder / ".partial-00000006" / "model.safetensors").write_bytes(b"torn")
    (store.folder / ".stale-00000004").mkdir()
    assert store.steps() == [5]
    small(tmp_path, 6)
    store.verify(6)


def test_write_replaces_in_one_step(tmp_path):
    write(tmp_path / "a.json", "old")
    write(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
