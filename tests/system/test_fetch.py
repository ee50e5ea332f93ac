"""Downloads: against a server of our own that cuts, lies, and forgets."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphogen import data
from morphogen.cli import main
from morphogen.data import fetch
from morphogen.errors import UserError

WHOLE = np.random.default_rng(0).integers(0, 256, 1_000_003, np.uint8).tobytes()


class Server(http.server.ThreadingHTTPServer):
    """Gives `files`. cut: closes a connection after so many bytes. ranges: whether it can begin in the middle."""

    files: dict[str, bytes]
    cut: int | None = None
    ranges = True
    asked: list[tuple[str, str | None, int]]


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        name, wish = self.path.rpartition("/")[2], self.headers.get("Range")
        body = server.files.get(name)
        if body is None:
            self.send_error(404)
            return
        begin = int(wish.removeprefix("bytes=").removesuffix("-")) if wish and server.ranges else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        sent = body[begin:] if server.cut is None else body[begin : begin + server.cut]
        server.asked.append((name, wish, len(sent)))
        with contextlib.suppress(ConnectionError):  # of what is too long not all is taken
            self.wfile.write(sent)

    def log_message(self, *given: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Answers)
    made.files, made.asked = {"a.bin": WHOLE, "b.bin": b"second"}, []
    base = f"http://127.0.0.1:{made.server_port}/x/"
    remotes = tuple(fetch.Remote(base + n, hashlib.sha256(c).hexdigest(), len(c)) for n, c in made.files.items())
    monkeypatch.setitem(fetch.SOURCES, "mnist", remotes)
    monkeypatch.setattr(fetch, "_PATIENCE", 5.0)
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_files_arrive_whole_and_once(server, tmp_path):
    told: list[int] = []
    folder = fetch.get("mnist", tmp_path, told.append)
    assert folder == tmp_path / "mnist"
    assert (folder / "a.bin").read_bytes() == WHOLE
    assert names(folder) == ["a.bin", "b.bin"]
    assert told == sorted(told)
    assert told[-1] == len(WHOLE) + 6
    before = list(server.asked)
    fetch.get("mnist", tmp_path)
    assert server.asked == before  # what is there is not fetched again
    (folder / "a.bin").write_bytes(b"damaged")
    fetch.get("mnist", tmp_path)
    assert (folder / "a.bin").read_bytes() == WHOLE
    assert server.asked[len(before) :] == [("a.bin", None, len(WHOLE))]


def test_a_cut_download_goes_on_from_there(server, tmp_path):
    server.cut = 300_000
    for cuts in (1, 2, 3):
        with pytest.raises(UserError, match=f"{300_000 * cuts:,} of {len(WHOLE):,} bytes are kept") as said:
            fetch.get("mnist", tmp_path)
        assert "\n" not in str(said.value)
        assert names(tmp_path / "mnist") == ["a.bin.partial"]
    fetch.get("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.bin").read_bytes() == WHOLE
    assert sum(sent for name, _, sent in server.asked if name == "a.bin") == len(WHOLE)  # no byte came twice
    assert [wish for _, wish, _ in server.asked] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-", None]


def test_a_server_without_ranges_sends_the_whole_again(server, tmp_path):
    server.cut = 300_000
    with pytest.raises(UserError, match="300,000 of"):
        fetch.get("mnist", tmp_path)
    server.cut, server.ranges = None, False
    fetch.get("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.bin").read_bytes() == WHOLE


@pytest.mark.parametrize("kind", ["one bit", "longer", "shorter", "another rest"])
def test_another_content_is_refused_and_nothing_is_left(kind, server, tmp_path):
    if kind == "another rest":  # what the server has changed between two tries
        server.cut = 300_000
        with pytest.raises(UserError):
            fetch.get("mnist", tmp_path)
        server.cut = None
    changed = bytearray(WHOLE)
    changed[700_000] ^= 1
    server.files["a.bin"] = {"longer": WHOLE + b"x" * 5_000_000, "shorter": WHOLE[:-1]}.get(kind, bytes(changed))
    words = "999,999|1,000,002 of" if kind == "shorter" else "another SHA-256 .* nothing of it was kept"
    with pytest.raises(UserError, match=words):
        fetch.get("mnist", tmp_path)
    assert names(tmp_path / "mnist") == (["a.bin.partial"] if kind == "shorter" else [])
    assert not (tmp_path / "mnist" / "a.bin").exists()
    server.files["a.bin"] = WHOLE
    fetch.get("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.bin").read_bytes() == WHOLE


def test_a_whole_partial_file_of_unknown_content_is_not_trusted(server, tmp_path):
    for content in (bytes(len(WHOLE)), bytes(len(WHOLE) + 9), bytes(len(WHOLE) - 9)):
        (tmp_path / "mnist").mkdir(exist_ok=True)
        (tmp_path / "mnist" / "a.bin.partial").write_bytes(content)
        if len(content) < len(WHOLE):
            with pytest.raises(UserError, match="another SHA-256"):
                fetch.get("mnist", tmp_path)
        fetch.get("mnist", tmp_path)
        assert (tmp_path / "mnist" / "a.bin").read_bytes() == WHOLE
        (tmp_path / "mnist" / "a.bin").unlink()


def test_without_a_network_it_is_one_sentence(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fetch.SOURCES, "mnist", (fetch.Remote("http://127.0.0.1:9/a.bin", "0" * 64, 10),))
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path))
    assert main(["data", "get", "mnist"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for words in ("a.bin", "127.0.0.1:9", "no network", str(tmp_path / "data" / "mnist")):
        assert words in err
    assert names(tmp_path / "data" / "mnist") == []
    server.files.clear()
    monkeypatch.undo()


def test_the_server_knows_no_such_file(server, tmp_path):
    server.files.clear()
    with pytest.raises(UserError, match="the server said 404"):
        fetch.get("mnist", tmp_path)
    assert names(tmp_path / "mnist") == []


def test_names(tmp_path):
    for name, words in (("mnits", "did you mean 'mnist'"), ("digits", "needs no files"), ("rings", "needs no files")):
        with pytest.raises(UserError, match=words):
            fetch.get(name, tmp_path)
    for name, remotes in fetch.SOURCES.items():
        assert all(r.url.startswith("https://") and len(r.sha256) == 64 and r.size > 4000 for r in remotes), name


def test_the_command_fetches_and_says_what_is_next(server, tmp_path, capsys):
    assert main(["data", "get", "mnist", "--data-root", str(tmp_path), "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == {"event": "fetched", "name": "mnist", "folder": str(tmp_path / "mnist"), "bytes": len(WHOLE) + 6}
    assert main(["data", "get", "mnist", "--data-root", str(tmp_path)]) == 0
    assert "morphogen data show mnist --data-root" in capsys.readouterr().out


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_nothing_is_fetched_unasked_and_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MORPHOGEN_DATA", raising=False)
    monkeypatch.setattr("socket.socket.connect", None)
    for name in fetch.SOURCES:
        with pytest.raises(UserError, match=f"`morphogen data get {name}`"):
            len(data.open(name).train)


def test_fashion_is_not_mistaken_for_mnist(tmp_path):
    """Both have files of the same names: the clothes are looked for in folders of their own alone."""
    files = {}
    for k, folder in enumerate(("", "fashion-mnist", "mnist")):
        images, labels = np.full((2, 28, 28), k, np.uint8), np.array([k, k], np.uint8)
        for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
            files[Path(folder) / f"{name}.gz"] = gzip.compress(idx(array))
    first = tmp_path / "first"
    for path, content in files.items():
        (first / path).parent.mkdir(parents=True, exist_ok=True)
        (first / path).write_bytes(content)
    take = torch.tensor([0])
    assert data.FashionMNIST(root=first).take(take)["cond"]["label"].item() == 1
    assert data.MNIST(root=first).take(take)["cond"]["label"].item() == 2
    with pytest.raises(UserError, match="data get fashion-mnist"):
        len(data.FashionMNIST(root=first / "mnist"))
    assert data.open("fashion-mnist").space.classes[8] == "bag"
