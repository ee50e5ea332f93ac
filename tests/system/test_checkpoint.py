"""No truncation and no flipped bit of a checkpoint goes unseen; states come back as they went in."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from morphogen import UserError, checkpoint
from morphogen.checkpoint import Checkpoints, Damaged, pack, unpack
from morphogen.disk import write

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


def test_names_that_look_alike_stay_apart(tmp_path):
    one, two, three, four = (torch.full((2,), float(i)) for i in range(4))
    state = {"a": {"b": one}, "a.b": two, "": {"c": three}, "c": four, "__metadata__": torch.ones(1)}
    store = Checkpoints(tmp_path)
    store.save(1, {"m": state}, {})
    again = store.load(1)["m"]
    assert torch.equal(again["a"]["b"], one)
    assert torch.equal(again["a.b"], two)
    assert torch.equal(again[""]["c"], three)
    assert torch.equal(again["c"], four)
    assert torch.equal(again["__metadata__"], torch.ones(1))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:-1] + b"\xff", lambda raw: b""])
def test_damaged_frozen_tensors_are_not_made_the_truth(tmp_path, damage):
    """A later checkpoint finds the file of the same name there already: it must not take the hash of what it finds."""
    store = small(tmp_path, 5)
    (path,) = store.frozen.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Damaged):
        store.verify(5)
    small(tmp_path, 6)
    assert torch.equal(store.load(6)["frozen"]["f"], torch.arange(4.0))


def test_a_damaged_checkpoint_is_not_counted_among_those_kept(tmp_path):
    store = small(tmp_path, 3)
    small(tmp_path, 4)
    (store.path(4) / "model.safetensors").write_bytes(b"")
    store = Checkpoints(tmp_path, 2)
    assert store.newest(lambda text: None)[0] == 3
    store.save(7, {"m": {}}, {})
    assert store.steps() == [3, 7]


def test_leftovers_of_kills_are_cleared_away(tmp_path):
    store = small(tmp_path)
    for name in (".partial-00000006", ".stale-00000004"):
        (store.folder / name).mkdir()
        (store.folder / name / "model.safetensors").write_bytes(b"torn")
    small(tmp_path, 8)
    assert {p.name for p in store.folder.iterdir()} == {"00000005", "00000008"}


def test_a_file_that_the_disk_refuses_to_read_is_damaged(tmp_path, monkeypatch):
    store = small(tmp_path, 5)
    small(tmp_path, 6)
    real = checkpoint.hash_file

    def refuse(path: Path) -> str:
        if "00000006" in str(path) and path.suffix == ".safetensors":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(checkpoint, "hash_file", refuse)
    said: list[str] = []
    assert store.newest(said.append)[0] == 5
    assert "Input/output error" in said[0]


CALLS = [(os, "fsync"), (os, "rename"), (os, "replace"), (os, "open"), (shutil, "rmtree"), (checkpoint, "save_file")]


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("best", [None, 5])
@pytest.mark.parametrize(("module", "name"), CALLS, ids=lambda x: getattr(x, "__name__", x))
def test_a_full_disk_at_any_moment_leaves_a_sound_checkpoint(tmp_path, monkeypatch, keep, best, module, name):
    """The n-th call of one kind fails, for every n: the last or the new checkpoint loads, and saving again works."""

    def attempt(store: Checkpoints, step: int) -> None:
        tensors = {"w": torch.full((3,), float(step)), "v": torch.ones(2)}
        store.save(step, {"model": tensors, "loop": {"step": step}}, {"f": torch.tensor([step])}, best)

    n = 0
    while True:
        store = Checkpoints(tmp_path / str(n), keep)
        attempt(store, 4)
        attempt(store, 5)
        calls, real, limit = 0, getattr(module, name), n

        def failing(*args, real=real, limit=limit, **kw):
            nonlocal calls
            calls += 1
            if calls == limit + 1:
                raise OSError(28, "No space left on device")
            return real(*args, **kw)

        monkeypatch.setattr(module, name, failing)
        try:
            attempt(store, 6)
            failed = False
        except OSError:
            failed = True
        monkeypatch.setattr(module, name, real)
        step, parts = store.newest(pytest.fail)
        assert step in (5, 6)
        assert parts["model"]["w"][0] == parts["frozen"]["f"][0] == step
        attempt(store, 7)
        assert store.newest(pytest.fail)[0] == 7
        assert store.steps()[-keep:] == [5, 6, 7][-keep:] or failed
        assert not [p for p in store.folder.iterdir() if p.name.startswith(".")]
        if not failed:
            break
        n += 1
