"""Small versions of the campaigns (docs/faults.md), what they must find where planted, and what they have found."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen import UserError, checkpoint
from morphogen.checkpoint import Checkpoints, Damaged, save_tensors
from morphogen.data import decode
from morphogen.disk import make, sync_names, write
from morphogen.experiment import read_spec
from morphogen.log import read
from morphogen.spec import build

from . import cuts, malformed, orders, resumes, syscalls, trap

trapped = pytest.mark.skipif(bool(trap.missing()), reason=trap.missing() or "a compiler is here")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.delenv("MORPHOGEN_DATA", raising=False)
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def memory():
    """A folder on a disk of memory, where there is one: what is synced thousands of times."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


# ---- the campaigns -------------------------------------------------------------------------------------------------


@trapped
def test_any_system_call_may_fail(memory):
    found = syscalls.campaign(5, memory, seed=4)
    assert found["calls"] > 1500
    assert found["cases"] == 5
    assert found["refused"] > 0
    assert found["wrong"] == 0


@trapped
def test_the_trap_sees_the_calls_of_rust(memory):
    """Which libc never hears of: safetensors gives its file its name by a call of its own."""
    names = {c.name for c in syscalls.Campaign(memory).begins if ".tmp" in c.paths[0] and "safetensors" in c.paths[1]}
    assert names == {"renameat"}


@trapped
@pytest.mark.parametrize(
    ("plant", "least"),
    [("", 0), *(pytest.param(*p, marks=pytest.mark.slow) for p in (("files", 20), ("folders", 5), ("late", 1)))],
)
def test_power_cuts_leave_a_readable_run_and_planted_faults_do_not(memory, plant, least):
    found = cuts.campaign(150 if plant else 90, memory, plant=plant, continued=0.0 if plant else 0.02)
    assert found["cuts"] >= 50
    assert found["different"] == 0
    assert found["unreadable"] == 0 if not plant else found["unreadable"] >= least


def test_a_disk_of_the_model_keeps_what_was_synced_and_no_more():
    home, rng = Path("/h"), random.Random(0)

    def call(name: str, *args: int, paths: tuple[str, str] = ("", ""), result: int = 0, **kw: Any) -> trap.Call:
        return trap.Call(name, (*args, 0, 0, 0, 0)[:4], paths, result, kw.get("at", 0), kw.get("data", b""))

    writing = [
        call("open", 0, os.O_CREAT, paths=("/h/a", ""), result=5),
        call("write", 5, result=4, data=b"abcd"),
        call("fsync", 5),
        call("write", 5, result=2, at=4, data=b"ef"),
        call("rename", paths=("/h/a", "/h/b")),
    ]
    for ordered in (False, True):
        found = set()
        for _ in range(300):
            disk = cuts.Disk(home, ordered)
            for c in writing:
                disk.play(c)
            folder = Path(os.environ["MORPHOGEN_CACHE"]) / str(len(os.listdir(make_(ordered))))
            disk.cut(rng, folder)
            found.add(tuple((p.name, p.read_bytes()) for p in sorted(folder.iterdir())))
        names = {tuple(n for n, _ in files) for files in found}
        assert names == ({("a",), ("b",)} if ordered else {(), ("a",), ("b",)})  # the journal went with the fsync
        contents = {data for files in found for _, data in files}
        assert {b"abcd", b"abcdef"} < contents
        assert all(c.startswith(b"abcd") and c[4:] in (b"", b"e", b"ef", b"\0\0", b"e\0") for c in contents)


def make_(ordered: bool) -> Path:
    folder = Path(os.environ["MORPHOGEN_CACHE"])
    make(folder)
    return folder


def test_resuming_after_any_step_is_the_straight_run(memory):
    found = resumes.campaign(3, memory, ["gan", "ppo"])
    assert found["resumes"] == 6
    assert found["different"] == 0


def test_a_resume_that_forgets_is_found(memory, monkeypatch):
    monkeypatch.setattr("morphogen.train.restore_optimiser", lambda *args: None)
    assert resumes.campaign(4, memory, ["gan"])["different"] > 0


def test_data_come_in_one_order(memory):
    found = orders.campaign(2000, memory, resumes=2)
    assert found["indices"] >= 6_000
    assert found["different"] == 0


def test_malformed_files_are_sentences(memory, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))  # as a recipe of one's own leaves its folder there
    found = malformed.campaign(800, memory)
    assert (found["crashes"], found["hangs"], found["escapes"]) == (0, 0, 0)
    assert found["refused"] > 200
    assert found["taken"] > 50


def test_a_reader_that_crashes_hangs_dies_or_escapes_is_found(memory, monkeypatch):
    def act(world: malformed.World, rng: random.Random) -> None:
        match rng.randrange(20):
            case 0:
                raise KeyError("x")
            case 1:
                os.abort()
            case 2:
                Path(world.outside, "spec.json").read_bytes()
            case 3:
                bytearray(2 * malformed.MEMORY)
            case 4 if not (world.folder / "slept").exists():
                (world.folder / "slept").touch()
                __import__("time").sleep(60)

    monkeypatch.setattr(malformed, "LIMIT", 2)
    monkeypatch.setattr(malformed, "_READERS", {"planted": malformed.Reader(act, 1)})
    found = malformed.campaign(60, memory)
    assert found["crashes"] >= 3
    assert found["hangs"] == 1
    assert found["escapes"] >= 1


# ---- any JSON, any bytes -------------------------------------------------------------------------------------------

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(malformed.STRINGS),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6), v, max_size=4),
    max_leaves=12,
)
NODE = st.recursive(
    ANY,
    lambda v: (
        st.fixed_dictionaries(
            {"class": st.sampled_from(("morphogen.optim:AdamW", "morphogen.train:Trainer")), "args": v}
        )
        | st.fixed_dictionaries({"tuple": st.lists(v, max_size=3)})
        | st.fixed_dictionaries({"dict": st.dictionaries(st.text(max_size=4), v, max_size=3)})
        | st.fixed_dictionaries({"ref": st.integers(0, 2)})
    ),
    max_leaves=8,
)
quickly = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run with one checkpoint."""
    made = Checkpoints(tmp_path_factory.mktemp("any") / "run")
    made.save(1, {"model": {"w": torch.ones(2)}, "loop": {"best": {}}}, {"f": torch.zeros(1)})
    return made


def sealed(store: Checkpoints, manifest: Any) -> None:
    body = json.dumps(manifest).encode()
    (store.path(1) / "manifest.json").write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n")


@quickly
@given(NODE)
def test_any_graph_is_built_or_refused(graph):
    with contextlib.suppress(UserError):
        build(graph)


@quickly
@given(ANY | st.fixed_dictionaries({"format": st.just(1), "seed": ANY, "experiment": ANY}))
def test_any_page_is_a_spec_or_refused(store, page):
    write(store.run / "spec.json", json.dumps(page))
    with contextlib.suppress(UserError):
        read_spec(store.run)


@quickly
@given(ANY | st.fixed_dictionaries({"files": st.dictionaries(st.text(max_size=4), ANY, max_size=3)}))
def test_any_manifest_is_refused(store, manifest):
    sealed(store, manifest)
    with pytest.raises(UserError, match="damaged"):
        store.newest(lambda text: None)


@quickly
@given(st.lists(ANY, max_size=4))
def test_any_log_is_read_as_lines_of_a_log(store, lines):
    write(store.run / "log.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    assert all(isinstance(x, dict) and isinstance(x.get("step", 0), int) for x in read(store.run / "log.jsonl"))


@quickly
@given(st.binary(max_size=200), st.sampled_from((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP")))
def test_any_bytes_are_a_picture_or_bad(raw, head):
    with contextlib.suppress(decode.Bad):
        decode.decode(head + raw, (3, 4, 4))


# ---- what was found and mended -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../../secret", "{absolute}", "..", ".", "a/b", "", None, 3])
def test_a_manifest_names_no_file_outside_the_run(tmp_path, monkeypatch, name):
    """Its own hash is no secret: whoever writes the file can make it hold."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret")
    store = Checkpoints(tmp_path / "run")
    store.save(1, {"model": {"w": torch.ones(2)}}, {})
    file = str(secret) if name == "{absolute}" else name
    entry = {"file": file, "size": 8, "sha256": hashlib.sha256(b"a secret").hexdigest()}
    sealed(store, {"step": 1, "files": {"model.safetensors": entry}})
    read: list[Path] = []
    monkeypatch.setattr(checkpoint, "hash_file", lambda path: read.append(path) or "")
    with pytest.raises(Damaged):
        store.load(1)
    assert not [p for p in read if store.run not in p.parents]


def test_frozen_tensors_stay_while_a_manifest_cannot_be_read(tmp_path, monkeypatch):
    """For a moment, by a disk's error: what that checkpoint needs is then not known."""
    store = Checkpoints(tmp_path, keep=2)
    store.save(1, {"model": {}}, {"f": torch.zeros(1)})
    real = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "manifest.json" and path.parent.name == "00000001":
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    store.save(2, {"model": {}}, {"f": torch.ones(1)})
    monkeypatch.undo()
    assert torch.equal(store.load(1)["frozen"]["f"], torch.zeros(1))
    store.save(3, {"model": {}}, {"f": torch.ones(1)})
    assert len(list(store.frozen.iterdir())) == 1


def test_what_the_system_refuses_of_safetensors_is_an_error_of_the_system(tmp_path):
    """A file may not grow beyond a limit: what a full disk is like, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(OSError, match="File too large") as raised:
            save_tensors({"x": torch.zeros(10_000)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename == str(tmp_path / "x.safetensors")


def test_folders_that_look_like_numbers_are_none(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, {"model": {}}, {})
    (store.folder / "²").mkdir()
    assert store.steps() == [1]


def test_folders_are_made_down_to_the_disk(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr("morphogen.disk.sync", synced.append)
    make(tmp_path / "a" / "b")
    make(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_what_a_killed_life_named_is_synced_by_the_next(tmp_path, monkeypatch):
    run = tmp_path / "run"
    make(run / "assets")
    synced: list[Path] = []
    monkeypatch.setattr("morphogen.disk.sync", synced.append)
    write(run / "spec.json", "{}")
    sync_names(run)
    assert synced == [run, tmp_path, run, run / "assets"]
