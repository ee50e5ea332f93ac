"""Files that are not what they should be: a million of them, none of which may crash or hang the program.

    python -m tests.system.malformed --n 1000000
    python -m tests.system.malformed --only 4711         one of them again, with its traceback

Input number i is a function of i: a file of a small sound run, or a picture, archive, table or array, that is flipped,
cut, spliced, or changed in its structure (other types, huge numbers, deep nesting, a key twice, names that lead out of
the folder). It is read in the way that the product reads it, in a worker with a cap on its memory, watched from
outside. Where a hash holds a file, it is made again over what was changed, so that what lies behind is reached.

Counted: crashes (the worker died, or an exception that is not among those that the reader documents), hangs (no answer
in LIMIT seconds), and escapes (a file outside the worker's own folder was opened, listed, made or removed).

What a spec asks for is made: a net of a billion layers is begun. So numbers of things that are made one by one (LOOPED)
are kept below a few thousand here.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image

import morphogen as mg
from morphogen import checkpoint, posthoc
from morphogen.checkpoint import Checkpoints, Damaged
from morphogen.data import Shuffled, Tensors, album, decode, files, items, said
from morphogen.data.decode import Bad
from morphogen.errors import UserError
from morphogen.experiment import read_spec
from morphogen.hooks import Voice
from morphogen.log import Log, read
from morphogen.spec import build

from .lives import asked, tell

LIMIT = 20  # seconds of one input
MEMORY = 3 << 30  # bytes of address space that a worker may take beside what it begins with
LOOPED = {"depth", "layers", "blocks", "widths", "hidden", "heads", "n", "frequencies"}
DEEP = 20_000
STRINGS = (
    "", ".", "..", "/", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, "../" * 40, "NaN", "1e999", ":", "²",
    "morphogen.spec:Asset", "morphogen.cli:main", "os:system", "morphogen.__main__:x", "morphogen.:",
    "{outside}", "{outside}/checkpoints/00000003/model.safetensors", "../../../outside/spec.json",
    "../../../../outside/checkpoints/00000003/model.safetensors",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 2, 7, 2000, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, math.inf, math.nan, True)
TOKENS = (
    b"99999999999999999999999",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"{}",
    b"[]",
    b'""',
    b"true",
    b"\xff\xfe",
    b"\0",
)


# ---- how bytes and graphs are spoilt -------------------------------------------------------------------------------


def spoil(raw: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Bytes with one to four damages."""
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        n = len(made)
        at, end = sorted((rng.randrange(n + 1), rng.randrange(n + 1)))
        match rng.randrange(9):
            case 0 if n:
                for _ in range(rng.choice((1, 1, 3, 20))):
                    made[rng.randrange(n)] ^= 1 << rng.randrange(8)
            case 1:
                del made[at:]
            case 2:
                del made[at : min(end, at + 64)]
            case 3:
                other = rng.choice(others)
                begin = rng.randrange(len(other) + 1)
                made[at:at] = other[begin : begin + rng.choice((1, 4, 64, 4096))]
            case 4:
                made[at : at + 8] = rng.randbytes(rng.choice((1, 2, 8, 40)))
            case 5:
                made[at:at] = made[at : min(end, at + 200)] * rng.choice((1, 2, 50))
            case 6:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1), rng.randrange(1 << 8 * size)))
                made[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
            case 7:
                found = list(re.finditer(rb"-?\d+|\w+", bytes(made[:20_000])))
                if found:
                    word = rng.choice(found)
                    made[word.start() : word.end()] = rng.choice(TOKENS)
            case 8 if rng.random() < 0.02:
                made[at:at] = rng.choice((b"[", b'{"a":', b"(", b"\0")) * DEEP
    return bytes(made)


def places(node: Any, above: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Where a graph can be changed: (mapping or list, key)."""
    if above is not None:
        yield above, key
    for k, v in list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()):
        yield from places(v, node, k)


def twist(graph: Any, rng: random.Random, outside: str) -> str:
    """The text of a graph with one to three changes of its structure."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        there = list(places(graph))
        if not there:
            break
        above, key = rng.choice(there)
        match rng.randrange(8):
            case 0:
                above[key] = rng.choice(STRINGS).replace("{outside}", outside)
            case 1 | 2:
                numbers = [n for n in NUMBERS if abs(n) <= 2000] if key in LOOPED or isinstance(key, int) else NUMBERS
                above[key] = rng.choice(numbers)
            case 3:
                above[key] = rng.choice(
                    (None, [], {}, [[]], {"tuple": []}, {"ref": 0}, {"dict": {}}, {"path": outside})
                )
            case 4:
                del above[key]
            case 5:
                other, name = rng.choice(there)
                if (isinstance(other, dict) and name in other) or (isinstance(other, list) and name < len(other)):
                    above[key] = json.loads(json.dumps(other[name]))
            case 6 if isinstance(above, dict):
                above[rng.choice((*above, *STRINGS[:12], "class", "args", "id", "ref"))] = above.pop(key)
            case 7:
                inner: Any = above[key]
                for _ in range(rng.choice((1, 3, 300))):
                    inner = rng.choice(([inner], {"a": inner}, {"tuple": [inner]}))
                above[key] = inner
    try:
        text = json.dumps(graph)
    except (RecursionError, ValueError):
        text = "[" * DEEP
    if rng.random() < 0.05:  # a key twice
        text = re.sub(r'"(\w+)":', r'"\1": 3, "\1":', text, count=rng.choice((1, 5)))
    return text


# ---- what is read --------------------------------------------------------------------------------------------------


class World:
    """A small run and other sound files, and the readers of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outside = folder, str(folder.parent / "outside")
        self.run = folder / "run"
        np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32))
        self.experiment = self.fresh()
        self.experiment.train(self.run, seed=1, voice=Voice())
        shutil.copytree(self.run, self.outside)  # what lies outside is sound: only where it lies forbids it
        self.page = json.loads((self.run / "spec.json").read_bytes())
        self.store = Checkpoints(self.run)
        self.at = self.store.path(3)
        self.manifest = json.loads((self.at / "manifest.json").read_text().rpartition("\n")[0].rpartition("\n")[0])
        self.state = json.loads((self.at / "state.json").read_bytes())
        self.log = (self.run / "log.jsonl").read_bytes()
        self.snapshot = next((self.run / "snapshots").iterdir())
        self.pictures = list(_pictures())
        self.archives = list(_archives(self.pictures))
        self.tables = _TABLES
        self.arrays = [_npy(a) for a in (np.zeros((3, 2)), np.arange(4), np.ones((2, 1, 3), np.float16))]
        self.tensors = safetensors.torch.save({"x": torch.zeros(3, 2), "z": torch.ones(3, 2)})
        self.sound = {p: p.read_bytes() for p in self.run.rglob("*") if p.is_file()}
        self.touched: list[Path] = []
        self.index = self._index()
        self.readers = dict(_READERS)

    def fresh(self) -> mg.Experiment:
        """The experiment of the run."""
        net = mg.nets.MLP(2, 2, 4, 1, scalars=("t",))
        trainer = mg.Trainer(3, ema=[mg.EMA(0.9), mg.PowerEMA((0.1,))], save_every=1, keep=1, log_every=1)
        data = mg.Data(Shuffled(Tensors(mg.Asset(self.folder / "x.npy")), 4))
        return mg.Experiment(mg.diffusion.rectified_flow(net, (2,)), data, trainer)

    def _index(self) -> bytes:
        entry = {
            "name": "a/0.png",
            "bytes": 3,
            "sha256": "0" * 64,
            "height": 4,
            "width": 6,
            "part": "train",
            "label": 0,
        }
        entry |= {"caption": "a cat", "cond": {"age": 3.0}, "bad": ""}
        lines = [{"classes": ["a"], "conditions": ["age"]}, entry, entry | {"name": "a/1.png", "part": "test"}]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()

    def put(self, path: Path, raw: bytes | str) -> None:
        """Write a file of the run, until it is mended."""
        self.touched.append(path)
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8", "replace"))

    def mend(self, all: bool = False) -> None:
        """Put the run's files back: those that were touched, or all."""
        for path in self.sound if all else self.touched:
            raw = self.sound[path]
            if not path.is_file() or path.read_bytes() != raw:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)
        self.touched.clear()

    def sealed(self, body: str) -> None:
        """Write a manifest whose own hash holds."""
        raw = body.encode("utf-8", "surrogatepass")
        self.put(self.at / "manifest.json", raw + b"\n" + hashlib.sha256(raw).hexdigest().encode() + b"\n")

    def replace(self, name: str, raw: bytes) -> None:
        """Write a file of the checkpoint, and the manifest that holds it."""
        manifest = json.loads(json.dumps(self.manifest))
        manifest["files"][name] |= {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        self.put(self.at / name, raw)
        self.sealed(json.dumps(manifest))


def _pictures() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for form, mode, extra in (
        ("PNG", "RGB", {}), ("PNG", "P", {}), ("PNG", "LA", {}), ("PNG", "I;16", {}), ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {}), ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
    ):  # fmt: skip
        picture = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).convert("L" if mode == "I;16" else mode)
        exif = Image.Exif()
        exif[274] = 6
        made = io.BytesIO()
        picture.save(made, form, exif=exif.tobytes(), **extra)
        yield made.getvalue()


def _archives(pictures: list[bytes]) -> Iterator[tuple[str, bytes]]:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", method) as archive:
            archive.writestr("a/0.png", pictures[0])
            archive.writestr("b/1.jpg", pictures[4])
        yield ".zip", made.getvalue()
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=form) as archive:
            for name, raw in (("a/0.png", pictures[0]), ("b/" + "long" * (30 if form else 9) + "é.jpg", pictures[4])):
                entry = tarfile.TarInfo(name)
                entry.size = len(raw)
                archive.addfile(entry, io.BytesIO(raw))
        yield ".tar", made.getvalue()


_TABLES = (
    (".csv", b'file_name,label,caption,age\na/0.png,cat,"one, two",3\nb/1.jpg,dog,"x ""y""",-4.5\n'),
    (
        ".jsonl",
        b'{"file_name": "a/0.png", "label": 1, "age": 3}\n{"file": "b/1.jpg", "text": "x", "label": 2, "age": 4}\n',
    ),
    (".csv", b"\xef\xbb\xbffile,text\r\na/0.png,\xc3\xa9\r\nb/1.jpg,x\r\n"),
)


def _npy(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


# Each reads one input; what it may raise is what the reader is documented to. A name's share of the inputs follows it.


def _spec_graph(w: World, rng: random.Random) -> None:
    page = json.loads(json.dumps(w.page))
    graph = page["experiment"] if rng.random() < 0.9 else page
    text = twist(graph, rng, w.outside)
    if graph is not page:
        text = json.dumps(page | {"experiment": 0}).replace('"experiment": 0', f'"experiment": {text}')
    w.put(w.run / "spec.json", text)
    page = read_spec(w.run)
    build(page["experiment"], assets=w.run / "assets", seed=1)


def _spec_bytes(w: World, rng: random.Random) -> None:
    w.put(w.run / "spec.json", spoil(w.sound[w.run / "spec.json"], rng, [w.log, w.index]))
    graph = read_spec(w.run)["experiment"]
    if _within(graph):
        build(graph, assets=w.run / "assets", seed=1)


def _within(node: Any, key: str = "") -> bool:
    """Whether no number of things that are made one by one is beyond a few thousand (LOOPED), however it came there."""
    if isinstance(node, dict):
        return all(_within(v, k if k in LOOPED else key) for k, v in node.items())
    if isinstance(node, list):
        return all(_within(v, key) for v in node)
    return key not in LOOPED or not isinstance(node, int | float) or abs(node) <= 2000


def _loads(w: World, rng: random.Random) -> None:
    page = json.loads(json.dumps(w.page))
    twist(page["experiment"], rng, w.outside)
    w.put(w.run / "spec.json", json.dumps(page))
    if rng.random() < 0.5:
        w.replace("state.json", twist(json.loads(json.dumps(w.state)), rng, w.outside).encode("utf-8", "replace"))
    mg.load(w.run)


def _resumes(w: World, rng: random.Random) -> None:
    if rng.random() < 0.5:
        w.replace("state.json", twist(json.loads(json.dumps(w.state)), rng, w.outside).encode("utf-8", "replace"))
    else:
        w.put(w.run / "log.jsonl", spoil(w.log, rng, [w.index]))
    try:
        w.fresh().trainer.fit(w.fresh().model, w.fresh().data, run=w.run, seed=1, voice=Voice())
    finally:
        w.mend(all=True)


def _manifest_graph(w: World, rng: random.Random) -> None:
    w.sealed(twist(json.loads(json.dumps(w.manifest)), rng, w.outside))
    w.store.newest(lambda text: None)


def _manifest_bytes(w: World, rng: random.Random) -> None:
    raw = w.sound[w.at / "manifest.json"]
    if rng.random() < 0.5:
        w.put(w.at / "manifest.json", spoil(raw, rng, [w.log]))
    else:
        w.sealed(spoil(raw.rpartition(b"\n")[0].rpartition(b"\n")[0], rng, [w.log]).decode("utf-8", "replace"))
    w.store.newest(lambda text: None)


def _state_graph(w: World, rng: random.Random) -> None:
    w.replace("state.json", twist(json.loads(json.dumps(w.state)), rng, w.outside).encode("utf-8", "replace"))
    w.store.newest(lambda text: None)


def _state_bytes(w: World, rng: random.Random) -> None:
    w.replace("state.json", spoil(w.sound[w.at / "state.json"], rng, [w.log, w.index]))
    w.store.newest(lambda text: None)


def _weights(w: World, rng: random.Random) -> None:
    w.replace("model.safetensors", spoil_tensors(w.sound[w.at / "model.safetensors"], rng, [w.tensors, w.log]))
    w.store.newest(lambda text: None)


def spoil_tensors(raw: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A safetensors file spoilt: anywhere, or in its header, whose length is then set right."""
    if rng.random() < 0.4:
        return spoil(raw, rng, others)
    n = struct.unpack("<Q", raw[:8])[0]
    head = raw[8 : 8 + n]
    if rng.random() < 0.6:
        head = twist(json.loads(head), rng, "/outside").encode("utf-8", "replace")
    else:
        head = spoil(head, rng, others)
    return struct.pack("<Q", len(head)) + head + raw[8 + n :]


def _snapshots(w: World, rng: random.Random) -> None:
    w.put(w.snapshot, spoil_tensors(w.sound[w.snapshot], rng, [w.tensors]))
    posthoc.Snapshots(w.run).read(int(w.snapshot.stem))


def _logs(w: World, rng: random.Random) -> None:
    raw = spoil(w.log, rng, [w.index, w.sound[w.at / "state.json"]])
    if rng.random() < 0.5:
        lines = w.log.splitlines()
        i = rng.randrange(len(lines))
        lines[i] = twist([json.loads(lines[i])], rng, w.outside)[1:-1].encode("utf-8", "replace")
        raw = b"\n".join(lines) + b"\n"
    w.put(w.run / "log.jsonl", raw)
    read(w.run / "log.jsonl")
    log = Log(w.run / "log.jsonl")
    log.open(after=2)
    log.close()


def _decodes(w: World, rng: random.Random) -> None:
    raw = spoil(rng.choice(w.pictures), rng, w.pictures)
    if rng.random() < 0.3:
        decode.measure(raw, 1_000_000)
    decode.decode(raw, rng.choice(((3, 8, 8), (1, 4, 6))), rng.choice(("crop", "pad", "stretch")), 1_000_000)


def _unpacks(w: World, rng: random.Random) -> None:
    suffix, raw = rng.choice(w.archives)
    path = w.folder / f"archive{suffix}"
    path.write_bytes(spoil(raw, rng, [r for _, r in w.archives]))
    found = files.opened(path)
    for name in found.names():
        found.stamp(name)
        try:
            found.read(name)
        except Bad:
            continue


def _reads_table(w: World, rng: random.Random) -> None:
    suffix, raw = rng.choice(w.tables)
    path = w.folder / f"table{suffix}"
    path.write_bytes(spoil(raw, rng, [r for _, r in w.tables]))
    names = ["a/0.png", "b/1.jpg"]
    told, _ = said.told(files.opened(w.folder / "run"), dict.fromkeys(names, 1), names, path)
    said.classes_of(told)
    said.conditions_of(told)


def _reads_index(w: World, rng: random.Random) -> None:
    raw = spoil(w.index, rng, [w.log])
    if rng.random() < 0.6:
        lines = w.index.splitlines()
        i = rng.randrange(len(lines))
        lines[i] = twist([json.loads(lines[i])], rng, w.outside)[1:-1].encode("utf-8", "replace")
        raw = b"\n".join(lines) + b"\n"
    path = w.folder / "index.jsonl"
    path.write_bytes(raw)
    made = album.Album(w.run, mg.Asset(path), size=(4, 4), among=((4, 4), (4, 6)))
    made.space()
    made.holds("test")
    made._cond(made._wanted())


def _arrays(w: World, rng: random.Random) -> None:
    path = w.folder / "array.npy"
    path.write_bytes(spoil(rng.choice(w.arrays), rng, w.arrays))
    made = Tensors(mg.Asset(path))
    if len(made):
        made.take(torch.tensor([0]))


def _tensor_files(w: World, rng: random.Random) -> None:
    path = w.folder / "given.safetensors"
    path.write_bytes(spoil_tensors(w.tensors, rng, [w.sound[w.snapshot]]))
    made = items.Pairs(mg.Asset(path)) if rng.random() < 0.5 else Tensors(mg.Asset(path))
    if len(made):
        made.take(torch.tensor([0]))


class Reader(NamedTuple):
    """A way in. share: of the inputs, relative to the others."""

    act: Callable[[World, random.Random], None]
    share: int
    raises: tuple[type[Exception], ...] = (UserError,)


_READERS = {
    "spec": Reader(_spec_graph, 12), "spec bytes": Reader(_spec_bytes, 8), "load": Reader(_loads, 1),
    "resume": Reader(_resumes, 1), "manifest": Reader(_manifest_graph, 8), "manifest bytes": Reader(_manifest_bytes, 6),
    "state": Reader(_state_graph, 6), "state bytes": Reader(_state_bytes, 4), "weights": Reader(_weights, 10),
    "snapshots": Reader(_snapshots, 6, (Damaged,)), "log": Reader(_logs, 10), "pictures": Reader(_decodes, 30, (Bad,)),
    "archives": Reader(_unpacks, 12), "tables": Reader(_reads_table, 14), "index": Reader(_reads_index, 8),
    "npy": Reader(_arrays, 10), "tensors": Reader(_tensor_files, 10),
}  # fmt: skip


# ---- the worker ----------------------------------------------------------------------------------------------------


class Fence:
    """Files outside the folders that may be touched are noted. Rust's opens, which Python does not hear of, too."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self.folders, self.up, self.escaped = folders, False, list[str]()
        sys.addaudithook(self.hear)
        for module, name in ((checkpoint, "load_file"), (posthoc, "safe_open"), (items, "safe_open")):
            setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kw: Any) -> Any:
            self.see(path)
            return real(path, *args, **kw)

        return call

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Python's audit hook."""
        if self.up and (event == "open" or event.startswith(("os.", "shutil.", "subprocess.", "socket."))):
            for path in args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self.see(path)

    def see(self, path: Any) -> None:
        """Note a path that leads out."""
        if self.up and isinstance(path, str | bytes | os.PathLike):
            real = os.path.realpath(os.fsdecode(path).replace("\0", ""))
            if not real.startswith(self.folders):
                self.escaped.append(real)


class Shared:
    """What a worker and its watcher see of one another: the input under way, and counts."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4096)

    def get(self, i: int) -> int:
        return int(struct.unpack_from("=q", self.memory, 8 * i)[0])

    def set(self, i: int, value: int) -> None:
        struct.pack_into("=q", self.memory, 8 * i, value)

    def add(self, i: int) -> None:
        self.set(i, self.get(i) + 1)


_NOW, _CRASHES, _ESCAPES, _REFUSED, _TAKEN = range(5)


def one(world: World, i: int, fence: Fence, names: list[str], shared: Shared, debug: bool = False) -> None:
    """Read input i."""
    rng = random.Random(i)
    name = rng.choice(names)
    reader = world.readers[name]
    try:
        fence.up = True
        reader.act(world, rng)
        shared.add(_TAKEN)
        if debug:
            print(f"input {i} ({name}) was taken", file=sys.stderr)
    except reader.raises:
        shared.add(_REFUSED)
        if debug:
            traceback.print_exc()
    except Exception as error:
        shared.add(_CRASHES)
        if debug:
            traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        print(f"input {i} ({name}): {type(error).__name__} at {where}: {str(error)[:150]}", file=sys.stderr, flush=True)
    finally:
        fence.up = False
    if fence.escaped:
        shared.add(_ESCAPES)
        print(f"input {i} ({name}): touched {fence.escaped[0]}", file=sys.stderr, flush=True)
        fence.escaped.clear()
    world.mend()


def work(world: World, begin: int, end: int, names: list[str], shared: Shared) -> None:
    """Read the inputs from begin to end in this process, which is a worker for good."""
    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    warnings.simplefilter("ignore")
    python = (sys.prefix, sys.base_prefix, str(Path(mg.__file__).parents[2]), "/proc/", "/sys/", "/usr/", "/dev/null")
    sys.path[:] = [p for p in sys.path if os.path.realpath(p).startswith(python)]  # an import lists them all
    fence = Fence((str(world.folder), *python))
    for i in range(begin, end):
        shared.set(_NOW, i)
        one(world, i, fence, names, shared)
    shared.set(_NOW, end)


def campaign(n: int, folder: Path, *, begin: int = 0, only: str = "") -> dict[str, Any]:
    """Read `n` inputs; only: names of readers, by comma."""
    inner = folder / "inside"
    inner.mkdir(parents=True)
    world, shared = World(inner), Shared()
    names = [name for name, r in world.readers.items() for _ in range(r.share) if not only or name in only.split(",")]
    began, at, deaths, hangs = time.perf_counter(), begin, 0, 0
    while at < begin + n:
        worker = os.fork()
        if worker == 0:
            try:
                work(world, at, begin + n, names, shared)
                os._exit(0)
            finally:
                os._exit(1)
        ended, seen, since = 0, -1, time.monotonic()
        while not ended:
            time.sleep(0.02)
            ended, status = os.waitpid(worker, os.WNOHANG)
            if shared.get(_NOW) != seen:
                seen, since = shared.get(_NOW), time.monotonic()
            elif not ended and time.monotonic() - since > LIMIT:
                os.kill(worker, signal.SIGKILL)
                os.waitpid(worker, 0)
                hangs += 1
                print(f"input {seen}: no answer in {LIMIT} s", file=sys.stderr, flush=True)
                break
        else:
            if status:
                deaths += 1
                print(f"input {shared.get(_NOW)}: the worker ended with {status}", file=sys.stderr, flush=True)
        at = shared.get(_NOW) + (at < begin + n and shared.get(_NOW) < begin + n)
        world.mend(all=True)
    seconds = time.perf_counter() - began
    counted = {"crashes": shared.get(_CRASHES) + deaths, "hangs": hangs, "escapes": shared.get(_ESCAPES)}
    told = {"refused": shared.get(_REFUSED), "taken": shared.get(_TAKEN)}
    return {"inputs": n, **counted, **told, "per_second": round(n / seconds)}


if __name__ == "__main__":
    told = asked("malformed", n=1_000_000, begin=0, readers="", only=-1)
    os.environ["MORPHOGEN_CACHE"] = told.folder + "/inside/cache"
    if told.only < 0:
        tell(campaign(told.n, Path(told.folder), begin=told.begin, only=told.readers), told.record)
    else:
        (inner := Path(told.folder, "inside")).mkdir()
        chosen = [n for n, r in _READERS.items() for _ in range(r.share) if told.readers in ("", n)]
        one(World(inner), told.only, Fence(("/",)), chosen, Shared(), debug=True)
