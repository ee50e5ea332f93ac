"""Order, restoring, data files, spaces and the table of data sets."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from morphogen import data
from morphogen.core import Items, Place, Source, Space, keys, leaves
from morphogen.data import cifar10, fetch, mnist, roots, table
from morphogen.data.source import permutation
from morphogen.errors import UserError
from morphogen.spec import Asset, Remembers, build, spec


class Slow(Remembers):
    """Items that take an uneven time, so that threads overtake one another."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def take(self, index: torch.Tensor) -> dict:
        time.sleep((int(index[0]) * 7 % 5) / 2000)
        return {"x": index.double() ** 2, "cond": {"label": index % 3}}


class Broken(Slow):
    def take(self, index: torch.Tensor) -> dict:
        if 3 in index:
            raise UserError("Item 3 is damaged: remove it.")
        return super().take(index)


def source(items, batch, *, workers=0, rank=0, ranks=1, seed=0, at=0):
    made = data.Shuffled(items, batch, workers=workers)
    made.start(Place(rank, ranks, seed=seed))
    if at:
        made.restore(json.loads(json.dumps({"position": at})))
    return made


def steps(made, n):
    return [made.next(None, {}) for _ in range(n)]


def same(one, two):
    a, b = dict(leaves(one)), dict(leaves(two))
    return list(a) == list(b) and all(a[k].equal(b[k]) and a[k].dtype == b[k].dtype for k in a)


# ---- order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch"), [(1, 1), (1, 4), (7, 3), (12, 4), (5, 13), (29, 8), (64, 64), (10, 7)])
def test_every_epoch_has_each_item_once(n, batch):
    count = 6 * n // math.gcd(n, batch) if n * batch < 100 else 3 * n
    index = torch.cat([s["index"] for s in steps(source(Slow(n), batch), -(-count // batch) + n)])
    for epoch in range(len(index) // n):
        piece = index[epoch * n : (epoch + 1) * n]
        assert sorted(piece.tolist()) == list(range(n))
        assert piece.equal(permutation(n, 0, epoch))


def test_batch_has_items_keys_and_conditions():
    made = source(Slow(10), 7, seed=3)
    first, second = steps(made, 2)
    for batch, epochs in ((first, [0] * 7), (second, [0] * 3 + [1] * 4)):
        assert batch["x"].equal(batch["index"].double() ** 2)
        assert batch["cond"]["label"].equal(batch["index"] % 3)
        expected = torch.cat([keys(i[None], 3, e) for i, e in zip(batch["index"], epochs, strict=True)])
        assert batch["key"].equal(expected)
        assert batch["index"].dtype == batch["key"].dtype == torch.int64


def test_keys_and_order_differ_by_epoch_and_seed():
    made = source(Slow(50), 50)
    batches = steps(made, 4) + steps(source(Slow(50), 50, seed=1), 1)
    assert len(torch.cat([b["key"] for b in batches]).unique()) == 250
    assert len({tuple(b["index"].tolist()) for b in batches}) == 5


def test_permutations_are_uniform():
    from scipy.stats import chisquare

    drawn = torch.stack([permutation(4, 11, epoch) for epoch in range(6000)])
    code = (drawn * torch.tensor([64, 16, 4, 1])).sum(1)
    _, counts = code.unique(return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_no_batch_and_no_state(workers):
    alone, together = source(Slow(23), 5, seed=2), source(Slow(23), 5, seed=2, workers=workers)
    for _ in range(40):
        assert same(alone.next(None, {}), together.next(None, {}))
        assert alone.state() == together.state()


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_restored_anywhere_it_goes_on_exactly(workers):
    rng = random.Random(workers)
    whole = steps(source(Slow(23), 5, seed=9), 60)
    made = source(Slow(23), 5, seed=9, workers=workers)
    for _ in range(6):  # the same source, forth and back, and with batches already fetched ahead
        at = rng.randrange(50)
        made.restore({"position": at * 5})
        for k in range(at, at + 4):
            assert same(made.next(None, {}), whole[k])
        assert made.state() == {"position": (at + 4) * 5}
    position = json.loads(json.dumps(made.state()))["position"]
    fresh = source(Slow(23), 5, seed=9, workers=workers, at=position)
    assert same(fresh.next(None, {}), whole[position // 5])


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_ranks_together_are_one_process(ranks):
    whole = steps(source(Slow(10), 12, seed=4), 5)
    parts = [steps(source(Slow(10), 12, seed=4, rank=r, ranks=ranks), 5) for r in range(ranks)]
    for step, batch in enumerate(whole):
        for name in ("x", "index", "key"):
            assert torch.cat([p[step][name] for p in parts]).equal(batch[name])


def test_in_order_has_each_item_once_with_fixed_keys():
    three, five = (list(data.in_order(Slow(10), batch, seed=6)) for batch in (3, 5))
    assert [len(b["x"]) for b in three] == [3, 3, 3, 1]
    for name in ("index", "key", "x"):
        assert torch.cat([b[name] for b in three]).equal(torch.cat([b[name] for b in five]))
    assert torch.cat([b["index"] for b in three]).tolist() == list(range(10))
    assert torch.cat([b["key"] for b in three]).equal(keys(torch.arange(10), 6, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_the_device(workers):
    for items in (Slow(10), data.Digits()):  # put together on the processor and sent, or kept there whole
        made = data.Shuffled(items, 4, workers=workers)
        made.start(Place(device=torch.device("meta")))
        assert {t.device.type for batch in steps(made, 4) for _, t in leaves(batch)} == {"meta"}
        assert {t.device.type for _, t in leaves(next(data.in_order(items, 4, seed=0, device="meta")))} == {"meta"}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_default_generator_is_left_alone(workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    steps(source(Slow(10), 4, workers=workers), 5)
    steps(source(data.Digits(), 4, workers=workers), 5)
    list(data.in_order(Slow(5), 2, seed=0))
    assert torch.get_rng_state().equal(before)


def test_mistakes_in_sources_are_one_sentence():
    for make, words in (
        (lambda: data.Shuffled(Slow(3), 0), "batch=0"),
        (lambda: data.Shuffled(Slow(3), 2, workers=-1), "workers=-1"),
        (lambda: source(Slow(0), 2), "Slow holds no items"),
        (lambda: source(Slow(3), 5, rank=1, ranks=4), "take 8"),
        (lambda: list(data.in_order(Slow(0), 2, seed=0)), "holds no items"),
    ):
        with pytest.raises(UserError, match=words):
            make()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_the_items_reaches_the_trainer(workers):
    made = source(Broken(6), 2, workers=workers)
    with pytest.raises(UserError, match="Item 3"):
        steps(made, 3)


def test_workers_end_with_the_process():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch; from morphogen import data\n"
        "s = data.Shuffled(data.Digits(), 8, workers=4); s.next(None, {}); print('done', flush=True)"
    )
    root = str(Path(data.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "done\n"


def test_contracts():
    assert isinstance(source(Slow(3), 2), Source)
    assert isinstance(data.Digits(), Items)
    assert isinstance(data.Tensors(torch.zeros(2, 2)), Items)
    assert isinstance(data.Pictures((1, 8, 8)), Space)
    assert isinstance(data.Points(-1.0, 1.0), Space)
    assert isinstance(data.Fresh(data.moons(), 4), Source)


def test_spec_names_no_folder_and_building_reads_nothing(tmp_path):
    graph = spec(data.Shuffled(data.MNIST(), 64))
    assert json.loads(json.dumps(graph)) == graph
    assert graph["args"]["items"]["args"] == {"part": "train", "root": None}
    again = build(graph)
    assert again.batch == 64
    lost = build(spec(data.CIFAR10("test", root=str(tmp_path / "nowhere"))))  # cheap: no file is looked for
    with pytest.raises(UserError, match="nowhere"):
        len(lost)


# ---- tensors -------------------------------------------------------------------------------------------------------


def test_tensors_from_memory_and_from_files(tmp_path):
    x = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    label = torch.arange(6)
    np.save(tmp_path / "x.npy", x.numpy())
    save_file({"label": label}, tmp_path / "label.safetensors")
    index = torch.tensor([5, 0, 5])
    held = data.Tensors(x, {"label": label}, levels=24).take(index)
    items = data.Tensors(Asset(tmp_path / "x.npy"), {"label": Asset(tmp_path / "label.safetensors")}, levels=24)
    assert same(held, build(spec(items)).take(index))
    torch.testing.assert_close(held["x"], x[index] * 2 / 23 - 1)
    assert held["x"].min() == -1
    assert held["x"].max() == 1
    plain = data.Tensors(torch.randn(4, 2, dtype=torch.float64)).take(torch.tensor([1]))
    assert plain["x"].dtype == torch.float64
    assert plain["cond"] == {}


def test_the_floats_of_a_numpy_file_are_those_of_the_nets(tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 6).reshape(3, 2))  # float64, as numpy makes it
    np.save(tmp_path / "half.npy", np.zeros((3, 2), np.float16))
    np.save(tmp_path / "token.npy", np.arange(3))
    for name, dtype in (("x", torch.float32), ("half", torch.float32), ("token", torch.int64)):
        assert data.Tensors(Asset(tmp_path / f"{name}.npy")).take(torch.tensor([2, 0]))["x"].dtype == dtype
    save_file({"x": torch.zeros(3, 2, dtype=torch.float64)}, tmp_path / "x.safetensors")
    assert data.Tensors(Asset(tmp_path / "x.safetensors")).take(torch.tensor([1]))["x"].dtype == torch.float64


def test_files_of_the_package_are_found_as_attributes():
    code = "import morphogen as mg; assert len(mg.data.digits.Digits('test')) == 360; mg.data.table.names()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_in_tensors_are_one_sentence(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "x.txt").write_text("1 2 3")
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object))
    save_file({"y": torch.zeros(2)}, tmp_path / "y.safetensors")
    x = torch.zeros(3, 2)
    for make, words in (
        (lambda: data.Tensors(x, {"label": torch.zeros(2)}), "3 items in x but 2 in cond.label"),
        (lambda: data.Tensors(x, levels=256), "levels=256"),
        (lambda: data.Tensors(torch.tensor([300]), levels=256), "from 300 to 300"),
        (lambda: data.Tensors(torch.tensor(1.0)), "single number"),
        (lambda: data.Tensors(Asset(tmp_path / "bad.npy")), "cannot be read"),
        (lambda: data.Tensors(Asset(tmp_path / "objects.npy")), r"cannot be read .* numpy\.save\(file, array\)\.$"),
        (lambda: data.Tensors(Asset(tmp_path / "x.txt")), "no known kind"),
        (lambda: data.Tensors(Asset(tmp_path / "y.safetensors")), "no tensor 'x', but y"),
        (lambda: data.Tensors(x, levels=1), "levels=1"),
    ):
        with pytest.raises(UserError, match=words):
            len(make())
    with pytest.raises(UserError, match="Asset"):
        spec(data.Tensors(x))


# ---- where files are -----------------------------------------------------------------------------------------------


def test_roots(tmp_path, monkeypatch):
    monkeypatch.delenv("MORPHOGEN_CACHE", raising=False)
    monkeypatch.delenv("MORPHOGEN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert roots.cache() == tmp_path / "xdg" / "morphogen"
    assert roots.roots() == [tmp_path / "xdg" / "morphogen" / "data"]
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MORPHOGEN_DATA", str(tmp_path / "data"))
    assert roots.roots() == [tmp_path / "data", tmp_path / "cache" / "data"]
    assert roots.roots("x") == [Path("x")]
    for folder in ("data/set", "cache/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/set/a.bin").touch()
    (tmp_path / "cache/data/b.bin").touch()
    forms = {"two": ["a.bin", "b.bin"], "a": ["a.bin"], "b": ["b.bin"]}
    assert roots.find("set", forms) == ("a", tmp_path / "data" / "set")
    assert roots.find("set", {"b": ["b.bin"]}) == ("b", tmp_path / "cache" / "data")
    with pytest.raises(UserError) as said:
        roots.find("set", {"two": ["a.bin", "b.bin"]}, advice="ask for them, and ")
    for words in (str(tmp_path / "data" / "set"), str(tmp_path / "cache"), "a.bin … b.bin (2 files)", "ask for them"):
        assert words in str(said.value)
    with pytest.raises(UserError, match="elsewhere"):  # the other roots are not asked
        roots.find("set", forms, root=tmp_path / "elsewhere")


# ---- MNIST ---------------------------------------------------------------------------------------------------------


def test_mnist_is_mnist(data_root):
    facts = {  # known labels and pixel statistics
        "train": (60_000, [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], 0.1307, 0.3081),
        "test": (10_000, [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], 0.1325, 0.3105),
    }
    for part, (n, first, mean, std) in facts.items():
        items = data.MNIST(part, root=data_root)
        assert len(items) == n
        batch = items.take(torch.arange(n))
        assert batch["x"].shape == (n, 1, 28, 28)
        assert batch["cond"]["label"][:10].tolist() == first
        pixels = (batch["x"] + 1) / 2
        assert pixels.mean().item() == pytest.approx(mean, abs=5e-5)
        assert pixels.std().item() == pytest.approx(std, abs=5e-5)
        assert (batch["x"].min(), batch["x"].max()) == (-1, 1)


def test_mnist_files_are_those_described(data_root):
    for file, sha256 in table.describe("mnist").sha256.items():
        assert hashlib.sha256((data_root / "mnist" / file).read_bytes()).hexdigest() == sha256


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_mnist_unpacked_and_packed(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (3, 28, 28), np.uint8), np.array([3, 1, 4], np.uint8)
    packed, plain = tmp_path / "packed" / "mnist", tmp_path / "plain" / "MNIST" / "raw"
    packed.mkdir(parents=True)
    plain.mkdir(parents=True)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        (packed / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        (plain / name).write_bytes(idx(array))
    for root in ("packed", "plain"):
        batch = data.MNIST(root=tmp_path / root).take(torch.arange(3))
        np.testing.assert_array_equal(((batch["x"][:, 0] + 1) * 127.5).round().numpy(), images)
        assert batch["cond"]["label"].tolist() == [3, 1, 4]
    (packed / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[:2])))
    with pytest.raises(UserError, match="one label"):
        len(data.MNIST(root=tmp_path / "packed"))
    with pytest.raises(UserError, match="t10k-images"):
        len(data.MNIST("test", root=tmp_path / "packed"))


def test_damaged_idx_files_are_one_sentence(tmp_path):
    good = idx(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    packed = gzip.compress(good)
    assert mnist.read_idx(write(tmp_path / "good.gz", packed)).shape == (3, 4, 5)
    broken = bytearray(packed)
    broken[len(broken) // 2] ^= 1
    for name, content, words in (
        ("a.gz", packed[:-20], "cut short"),
        ("b.gz", bytes(broken), "damaged"),
        ("c.gz", good, "damaged"),
        ("d.gz", b"", "begins"),
        ("e", b"\0\0\x0d\x01" + good[4:], "not 00 00 08"),
        ("f", good[:9], "within its header"),
        ("g", good[:-1], "fewer"),
        ("h", good + b"\0", "more"),
        ("i", b"\0\0\x08\x03" + b"\xff" * 12, "announces"),
    ):
        with pytest.raises(UserError, match=words) as said:
            mnist.read_idx(write(tmp_path / name, content))
        assert name in str(said.value)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- CIFAR-10 ------------------------------------------------------------------------------------------------------

MD5 = {  # of the original files, as published
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


@pytest.fixture(scope="module")
def cifar(data_root, tmp_path_factory):
    """A folder of the original CIFAR-10 batches, rebuilt from the archive by our reading of its pixels."""
    if not (data_root / "cifar10" / "cifar-10-webp.zip").is_file():
        pytest.skip("MORPHOGEN_DATA holds no cifar10/cifar-10-webp.zip")
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-py"
    folder.mkdir()
    rows = {part: list(cifar10._from_zip(data_root / "cifar10", part)) for part in ("train", "test")}
    with zipfile.ZipFile(data_root / "cifar10" / "cifar-10-webp.zip") as archive:
        for name, batch in zip(MD5, rows["train"] + rows["test"], strict=True):
            head, tail = archive.read(f"{name}.head"), archive.read(f"{name}.tail")
            (folder / name).write_bytes(head + batch[:, 1:].tobytes() + tail)
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_archive_gives_the_original_files(cifar):
    for name, md5 in MD5.items():
        assert hashlib.md5((cifar / name).read_bytes()).hexdigest() == md5


def test_original_batches_are_read_by_their_layout(cifar, own_cache):
    for part, (n, first) in {"train": (50_000, [6, 9, 9, 4, 1]), "test": (10_000, [3, 8, 8, 0, 6])}.items():
        items = data.CIFAR10(part, root=cifar.parent)  # its SHA-256 is checked: the same rows as from the archive
        assert len(items) == n
        held = items.all(torch.device("cpu"))
        assert held["cond"]["label"][:5].tolist() == first
        assert torch.bincount(held["cond"]["label"]).tolist() == [n // 10] * 10
        if part == "train":
            mean = held["x"].double().mean((0, 2, 3)) / 255
            torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=5e-5, rtol=0)
    batch = items.take(torch.tensor([0]))
    assert batch["x"].shape == (1, 3, 32, 32)
    assert (held["x"][0, :, 0, 0]).tolist() == [158, 112, 49]  # the first pixel of the first test picture


def test_archives_give_the_same_and_the_cache_is_checked(cifar, data_root, own_cache, monkeypatch):
    with tarfile.open(cifar.parent / "cifar-10-python.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(cifar / "test_batch", "cifar-10-batches-py/test_batch")
    (from_tar,) = cifar10._from_tar(cifar.parent, "test")
    (from_batches,) = cifar10._from_batches(cifar, "test")
    np.testing.assert_array_equal(from_tar, from_batches)
    (cifar.parent / "cifar-10-python.tar.gz").unlink()

    items = data.CIFAR10("test", root=data_root)
    assert items.all(torch.device("cpu"))["x"].flatten(1).numpy().tobytes() == from_batches[:, 1:].tobytes()
    (cached,) = (own_cache / "decoded").iterdir()  # one whole file, nothing partial

    def refuse(folder: Path, part: str):
        raise AssertionError("decoded again")

    whole = cached.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(cifar10, "_from_zip", refuse)
        assert len(data.CIFAR10("test", root=data_root)) == 10_000
        for damaged in (whole[:-1], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], b""):
            cached.write_bytes(damaged)
            with pytest.raises(AssertionError, match="decoded again"):
                len(data.CIFAR10("test", root=data_root))
    assert len(data.CIFAR10("test", root=data_root)) == 10_000
    assert cached.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(data_root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "file"))  # no folder can be made below a file
    if not (data_root / "cifar10").is_dir():
        pytest.skip("MORPHOGEN_DATA holds no cifar10")
    assert len(data.CIFAR10("test", root=data_root)) == 10_000


def original(labels: list[int], pixels: bytes) -> bytes:
    """A batch in the layout of the original files, of fewer pictures."""
    listed = b"".join(b"K" + bytes([v]) for v in labels)
    count = b"M" + struct.pack("<H", len(labels)) if len(labels) > 255 else b"K" + bytes([len(labels)])
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05("
        + listed
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t("
        + b"K\x01"
        + count
        + b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + b"K\x00tb\x89T"
        + struct.pack("<I", len(pixels))
        + pixels
        + b"tbU\tfilenamesq\x0c]q\r(U\x05a.pngq\x0eeu."
    )


def test_batches_of_another_layout_are_refused(tmp_path):
    rng = np.random.default_rng(1)
    for n in (3, 300):
        labels, pixels = rng.integers(0, 10, n).tolist(), rng.integers(0, 256, (n, 3072), np.uint8)
        rows = cifar10.parse_batch(original(labels, pixels.tobytes()), "it")
        assert rows[:, 0].tolist() == labels
        np.testing.assert_array_equal(rows[:, 1:], pixels)
    good = original([1, 2, 3], bytes(3 * 3072))
    for bad, words in (
        (good[:-1], "cut short"),
        (good[:5000], "cut short"),
        (good[:300], "pixel block|cut short"),
        (b"", "pixel block"),
        (good.replace(b"u1", b"f8"), "pixel block"),
        (good.replace(b"tb\x89T", b"tb\x88T"), "pixel block"),  # Fortran order
        (good.replace(b"labels", b"lables"), "labels"),
        (good.replace(b"K\x01K\x02K\x03e", b"K\x01K\x02K\x0be"), "labels"),  # there is no class 11
        (original([1, 2], bytes(3 * 3072)), "size"),
        (good.replace(b"K\x01K\x02K\x03e", b"K\x01K\x02e"), "2 labels for 3"),
        (b"\x80\x04" + good[2:], "pixel block"),
    ):
        with pytest.raises(UserError, match=words) as said:
            cifar10.parse_batch(bad, "The file")
        assert "\n" not in str(said.value)


def test_complete_files_with_other_content_are_refused(tmp_path, own_cache):
    write(tmp_path / "test_batch", original([1, 2, 3], bytes(3 * 3072)))
    with pytest.raises(UserError, match="not that of CIFAR-10"):
        len(data.CIFAR10("test", root=tmp_path))
    assert not own_cache.exists()


def test_damaged_archives_are_one_sentence(tmp_path, own_cache):
    strip = io.BytesIO()
    Image.new("RGB", (32, 64)).save(strip, "WEBP", lossless=True)
    png = io.BytesIO()
    Image.new("RGB", (32, 3200)).save(png, "PNG")
    array = io.BytesIO()
    np.save(array, np.zeros(60_000, np.uint8))

    def archive(members: dict[str, bytes]) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return made.getvalue()

    labels = {"labels.npy": array.getvalue()}
    for i, (content, words) in enumerate(
        (
            (b"no archive", "not a zip"),
            (archive({}), "labels.npy"),
            (archive({"labels.npy": b"no array"}), "damaged"),
            (archive(labels), "00.webp"),
            (archive(labels | {"test_batch/00.webp": strip.getvalue()}), "32x64, not 32x3200"),
            (archive(labels | {"test_batch/00.webp": png.getvalue()}), "identify"),  # only WebP is opened
            (archive(labels | {"test_batch/00.webp": bytes((64 << 20) + 1)}), "too large"),
            (archive(labels)[:-30], "not a zip"),
        )
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        write(folder / "cifar-10-webp.zip", content)
        with pytest.raises(UserError, match=words):
            len(data.CIFAR10("test", root=folder))
    for name, content in (("tar", b"no archive"), ("short", gzip.compress(bytes(10_000))[:40])):
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "cifar-10-python.tar.gz", content)
        with pytest.raises(UserError, match="damaged"):
            len(data.CIFAR10("test", root=folder))


# ---- spaces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (3, 256), (1, 17)])
def test_pictures_go_there_and_back(channels, levels, tmp_path):
    space = data.Pictures((channels, 5, 7), levels=levels)
    rng = np.random.default_rng(levels)
    pixels = rng.integers(0, levels, (4, 5, 7, channels), dtype=np.uint8)
    x = torch.stack([space.encode(p) for p in pixels])
    torch.testing.assert_close(x, torch.from_numpy(pixels).permute(0, 3, 1, 2) * 2.0 / (levels - 1) - 1)
    shown = np.stack([np.asarray(p).reshape(5, 7, channels) for p in space.decode(x)])
    np.testing.assert_array_equal(shown, np.round(pixels * (255 / (levels - 1))).astype(np.uint8))
    torch.testing.assert_close(torch.stack([space.encode(p) for p in space.decode(x)]), x, atol=1 / 255, rtol=0)
    paths = space.save(x, tmp_path / "new" / "folder")
    assert [p.name for p in paths] == ["00000.png", "00001.png", "00002.png", "00003.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(paths[3])).reshape(5, 7, channels), shown[3])


def test_decode_cuts_off_and_survives_nan():
    x = torch.tensor([-5.0, -1.0, -0.999, 0.0, 0.999, 1.0, 5.0, math.nan]).reshape(1, 1, 2, 4)
    (picture,) = data.Pictures((1, 2, 4)).decode(x)
    assert np.asarray(picture).flatten().tolist() == [0, 0, 0, 128, 255, 255, 255, 0]


def test_volume_makes_uniform_noise_eight_bits():
    space = data.Pictures((3, 4, 4))
    dims = 3 * 4 * 4
    uniform = -dims * math.log(256 * 2 / 255)  # log-density of noise spread evenly over 256 cells of side 2/255
    assert -(uniform + space.volume) / (dims * math.log(2)) == pytest.approx(8)
    assert data.open("digits").space.volume == pytest.approx(64 * math.log(2 / 16))
    assert data.Points(-1.0, 1.0).volume == 0


def test_show_is_a_grid():
    space = data.Pictures((3, 8, 8))
    x = torch.full((5, 3, 8, 8), -1.0)
    x[1, 0] = 1  # red
    x[4, 2, 0, 7] = 1  # blue, top right
    picture = space.show(x, columns=3)
    assert picture.size == (4 + 3 * 68, 4 + 2 * 68)
    assert picture.getpixel((4, 4)) == (0, 0, 0)
    assert picture.getpixel((4 + 68 + 63, 4 + 63)) == (255, 0, 0)
    assert picture.getpixel((4 + 68 + 63, 4 + 68)) == (0, 0, 255)
    assert picture.getpixel((4 + 68, 4 + 68)) == (0, 0, 0)
    assert picture.getpixel((4 + 2 * 68, 4 + 68)) == picture.getpixel((0, 0))  # the sixth cell is empty
    assert space.show(x).size == (4 + 3 * 68, 4 + 2 * 68)
    assert space.show(x[:1], columns=9).size == (72, 72)
    assert space.show(x, 3, captions=["a very long caption indeed"] * 5).size == (4 + 3 * 68, 4 + 2 * 82)
    for wrong in (lambda: space.show(x[:0]), lambda: space.show(x, 0), lambda: space.show(x[:, :1])):
        with pytest.raises(UserError):
            wrong()


def test_labels_by_name_number_and_list():
    space = data.open("cifar10").space
    assert space.cond(3) == {}
    assert space.cond(2, label="cat")["label"].tolist() == [3, 3]
    assert space.cond(2, label=3)["label"].equal(space.cond(2, label="3")["label"])
    assert space.cond(5, label=["dog", 0, torch.tensor(9)])["label"].tolist() == [5, 0, 9, 5, 0]
    assert space.cond(0, label="cat")["label"].dtype == torch.int64
    for wish, words in (
        ({"label": "catt"}, "did you mean 'cat'"),
        ({"label": 10}, "0 to 9"),
        ({"label": -1}, "0 to 9"),
        ({"label": 1.5}, "neither"),
        ({"label": []}, "empty"),
        ({"lable": "cat"}, "did you mean 'label'"),
    ):
        with pytest.raises(UserError, match=words):
            space.cond(2, **wish)
    with pytest.raises(UserError, match="no classes"):
        data.Pictures((1, 2, 2)).cond(2, label=0)


def test_mistakes_in_pictures_are_one_sentence():
    for make, words in (
        (lambda: data.Pictures((2, 8, 8)), "cannot be drawn"),
        (lambda: data.Pictures((8, 8)), "cannot be drawn"),
        (lambda: data.Pictures((1, 8, 8), levels=1), "1 levels"),
        (lambda: data.Pictures((3, 8, 8)).encode(Image.new("RGB", (9, 8))), "8x9x3 .* not 8x8x3"),
        (lambda: data.Pictures((1, 2, 2)).encode(np.zeros((2, 2))), "float64"),
        (lambda: data.Pictures((1, 2, 2), levels=17).encode(np.full((2, 2), 17)), "0 to 16"),
        (lambda: data.Points(1.0, 1.0), "low < high"),
        (lambda: data.Points(-1.0, 1.0).encode([1.0]), "2 numbers"),
    ):
        with pytest.raises(UserError, match=words):
            make()
    grey = data.Pictures((1, 2, 2)).encode(Image.new("RGB", (2, 2), (255, 255, 255)))
    assert grey.tolist() == [[[1, 1], [1, 1]]]


def test_points_are_drawn_the_right_way_up(tmp_path):
    space = data.Points(-1.0, 1.0)
    corner = torch.tensor([[0.9, 0.95]] * 50)  # right and high
    picture = space.show(corner)
    dark = picture.getpixel((0, 383))
    assert picture.getpixel((363, 9)) != dark
    assert picture.getpixel((9, 9)) == picture.getpixel((363, 363)) == dark
    nodes = space.nodes(96)
    chart = space.chart(-((nodes - torch.tensor([0.9, 0.95])) ** 2).sum(1) / 0.01)
    assert chart.getpixel((363, 9)) != dark
    assert chart.getpixel((9, 9)) == chart.getpixel((363, 363)) == dark
    (path,) = space.save(corner[:2].double(), tmp_path)
    assert path.read_text().split() == ["0.8999999761581421,0.949999988079071"] * 2
    assert space.decode(torch.tensor([[1.0, 2.0]])) == [(1.0, 2.0)]
    assert space.encode((0.5, 1.0)).tolist() == [0.5, 1.0]
    bars = data.Points(-3.0, 3.0, 1).show(data.bumps().sample(5000))
    assert bars.getpixel((256, 380)) != bars.getpixel((2, 2))  # x = 1, the higher bump
    assert space.show(torch.zeros(0, 2)).size == (384, 384)


# ---- the table -----------------------------------------------------------------------------------------------------


def test_names_come_without_torch():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from morphogen import data; data.names(); data.describe('cifar10')\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(data.__file__).parents[2])], check=True, timeout=60)


def test_unknown_names_answer_with_the_nearest():
    for ask in (data.describe, data.open, data.show):
        with pytest.raises(UserError, match="did you mean 'checkerboard'"):
            ask("checkerbord")
    with pytest.raises(AttributeError):
        data.nothing  # noqa: B018
    for name in data.__all__:
        assert getattr(data, name) is not None
    for wrong in (data.Digits, data.MNIST, data.CIFAR10, data.PneumoniaMNIST):
        with pytest.raises(UserError, match="did you mean 'train'"):
            wrong("trian")


@pytest.mark.parametrize("name", table.names())
def test_a_data_set_is_as_described_and_can_be_shown(name, request, own_cache):
    root = None
    if name in fetch.SOURCES or name in ("pneumoniamnist", "emoji", "tinyshakespeare", "wikitext2", "chorales"):
        root = request.getfixturevalue("data_root")
        if name == "fashion-mnist" and not (root / name).is_dir():
            pytest.skip("MORPHOGEN_DATA holds no Fashion-MNIST")
        if name == "pneumoniamnist" and not any((root / f / f"{name}.npz").is_file() for f in ("medmnist", name, ".")):
            pytest.skip("MORPHOGEN_DATA holds no PneumoniaMNIST")
        if name == "emoji" and not (root / "emoji" / "emoji.json").is_file():
            pytest.skip("MORPHOGEN_DATA holds no emoji")
    about, parts = data.describe(name), data.open(name, root)
    assert about.name == name
    if about.unit:  # texts and music
        held = {part: list(parts.documents(part)) for part in ("train", "test")}
        assert {p: sum(map(len, d)) if about.unit == "characters" else len(d) for p, d in held.items()} == about.counts
        folder = data.table.folder_of(name, root) or Path(data.table.__file__).parent
        assert {f: hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in about.sha256} == about.sha256
        sheet = np.asarray(data.show(name, root))
        assert min(sheet.shape[:2]) > 100
        assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 2
        return
    assert {"train": len(parts.train), "test": len(parts.test)} == about.counts
    assert parts.space.shape == about.shape
    assert parts.space.classes == about.classes
    batch = parts.test.take(torch.tensor([len(parts.test) - 1, 0]))
    assert batch["x"].shape == (2, *about.shape)
    assert batch["x"].dtype == torch.float32
    assert 0 <= batch["cond"]["label"].min() <= batch["cond"]["label"].max() < len(about.classes)
    assert build(spec(parts.train)).take(torch.tensor([3]))["x"].equal(parts.train.take(torch.tensor([3]))["x"])
    sheet = data.show(name, root)
    assert min(sheet.size) > min(300, 70 * len(about.classes))
    assert len(np.unique(np.asarray(sheet.resize((50, 50))).reshape(-1, 3), axis=0)) > 5


def test_pneumonia_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(UserError, match=r"'pneumoniamnist' was not found: .*--data-root"):
        len(data.PneumoniaMNIST(root=tmp_path))
    file = tmp_path / "medmnist" / "pneumoniamnist.npz"
    file.parent.mkdir()
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([[0], [1], [1]], np.uint8)
    np.savez(file, train_images=images, train_labels=labels, test_images=images[:1], test_labels=labels[1:2])
    assert data.PneumoniaMNIST("test", root=tmp_path).take(torch.tensor([0]))["cond"]["label"].tolist() == [1]
    whole = file.read_bytes()
    for spoilt in (b"", whole[:300], whole[:-200]):
        file.write_bytes(spoilt)
        with pytest.raises(UserError, match="cut short or damaged"):
            len(data.PneumoniaMNIST(root=tmp_path))
    for other in (
        {"train_images": images.astype(float), "train_labels": labels},
        {"train_images": images[:, :27], "train_labels": labels},
        {"train_images": images, "train_labels": labels[:2]},
        {"train_images": images, "train_labels": labels + 1},
    ):
        np.savez(file, **other)
        with pytest.raises(UserError, match="another set"):
            len(data.PneumoniaMNIST(root=tmp_path))
    np.savez(file, something=images)
    with pytest.raises(UserError, match="damaged"):
        len(data.PneumoniaMNIST(root=tmp_path))


def test_only_some_classes():
    whole = data.Digits("test").take(torch.arange(360))
    few = data.Only(data.Digits("test"), (3, 7))
    expected = torch.isin(whole["cond"]["label"], torch.tensor([3, 7]))
    batch = few.take(torch.arange(len(few)))
    assert len(few) == int(expected.sum())
    assert torch.equal(batch["x"], whole["x"][expected])
    assert torch.equal(batch["cond"]["label"], whole["cond"]["label"][expected])
    assert build(spec(few)).take(torch.tensor([2]))["x"].equal(few.take(torch.tensor([2]))["x"])
    with pytest.raises(UserError, match=r"is of class \(10,\): there are 0, 1"):
        len(data.Only(data.Digits(), (10,)))
    with pytest.raises(UserError, match="has no labels"):
        len(data.Only(data.Tensors(torch.zeros(3, 2)), (0,)))


def test_the_embedded_digits_are_those_described():
    file = Path(data.__file__).with_name("digits.npz")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == table.describe("digits").sha256["digits.npz"]
    assert os.path.getsize(file) < 64_000
