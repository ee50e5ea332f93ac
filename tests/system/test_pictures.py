"""The user's own pictures: what is found, what is said of it, how it is decoded and kept, and what is refused."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from morphogen import data
from morphogen.cli import main
from morphogen.core import Items, Place, Source, keys
from morphogen.data import album, decode, files, listing
from morphogen.data.source import permutation
from morphogen.errors import UserError
from morphogen.spec import build, spec


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(seed: int, height: int = 9, width: int = 9, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(array: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    made = io.BytesIO()
    Image.fromarray(array).save(made, form, **options)
    return made.getvalue()


def write(folder: Path, **contents: bytes) -> Path:
    return fill(folder, contents)


def fill(folder: Path, contents: dict[str, bytes | str]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def many(n: int, folder: str = "") -> dict[str, bytes | str]:
    return {f"{folder}{i:03d}.png": encoded(pixels(i)) for i in range(n)}


def opened(folder: Path, part: str = "train", **how: Any) -> data.Album:
    return data.Album(folder, data.index(folder), part, **{"size": (9, 9), **how})


def everything(folder: Path, **how: Any) -> list[listing.Entry]:
    return [e for part in ("train", "test") for e in opened(folder, part, **how).entries()]


def names(folder: Path) -> list[str]:
    return sorted(e.name for e in listing.read(data.index(folder)).entries)


def labels(folder: Path) -> dict[str, str]:
    found = listing.read(data.index(folder))
    return {e.name: found.classes[e.label] for e in found.entries}


# ---- pixels --------------------------------------------------------------------------------------------------------


def test_pixels_and_labels_arrive_as_they_are(tmp_path):
    arrays = {f"{'cat' if i % 2 else 'a dog'}/{i}.png": pixels(i) for i in range(41)}
    folder = fill(tmp_path / "my pictures", {name: encoded(a) for name, a in arrays.items()})
    seen = []
    for part in ("train", "test"):
        items = opened(folder, part)
        assert isinstance(items, Items)
        entries = items.entries()
        assert len(items) == len(entries) > 0
        batch = items.take(torch.arange(len(items)))
        for x, label, entry in zip(batch["x"], batch["cond"]["label"], entries, strict=True):
            expected = torch.from_numpy(arrays[entry.name]).permute(2, 0, 1).float() / 127.5 - 1
            torch.testing.assert_close(x, expected)
            assert items.classes[label] == entry.name.partition("/")[0]
        seen += [e.name for e in entries]
    assert items.classes == ("a dog", "cat")
    assert sorted(seen) == sorted(arrays)
    assert items.space().shape == (3, 9, 9)
    assert build(spec(items)).take(torch.tensor([0]))["x"].equal(items.take(torch.tensor([0]))["x"])


@pytest.mark.parametrize(("height", "width"), [(30, 30), (17, 40), (40, 17), (1, 50), (5, 5), (1, 1)])
@pytest.mark.parametrize("fit", decode.FITS)
def test_pictures_are_made_to_fit(height, width, fit):
    """Held against Pillow's own words for each, on a picture of one colour and on a random one."""
    plain = decode.decode(encoded(np.full((height, width, 3), 90, np.uint8)), (3, 8, 12), fit)
    assert plain.shape == (3, 8, 12)
    inside = plain == 90
    assert inside.all() if fit != "pad" else (inside | (plain == 255)).all()
    picture = Image.fromarray(pixels(3, height, width))
    found = decode.decode(encoded(np.asarray(picture)), (3, 8, 12), fit)
    lanczos = Image.Resampling.LANCZOS
    if fit == "stretch":
        expected = picture.resize((12, 8), lanczos)
    elif fit == "crop":
        expected = ImageOps.fit(picture, (12, 8), lanczos)
    elif min(height, width) > 1:
        expected = ImageOps.pad(picture, (12, 8), lanczos, color=(255, 255, 255))
    else:
        return  # Pillow's own rounds such a picture away
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_as_their_exif_says(orientation):
    upright = pixels(1, 8, 12)
    stored = Image.fromarray(upright)
    transpose = Image.Transpose
    turned = {
        1: stored,
        2: stored.transpose(transpose.FLIP_LEFT_RIGHT),
        3: stored.transpose(transpose.ROTATE_180),
        4: stored.transpose(transpose.FLIP_TOP_BOTTOM),
        5: stored.transpose(transpose.TRANSPOSE),
        6: stored.transpose(transpose.ROTATE_90),
        7: stored.transpose(transpose.TRANSVERSE),
        8: stored.transpose(transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(np.asarray(turned), exif=exif)
    assert decode.measure(file) == (8, 12)
    np.testing.assert_array_equal(decode.decode(file, (3, 8, 12)), upright.transpose(2, 0, 1))


def test_every_mode_becomes_colour_or_grey():
    grey, colour = pixels(1, channels=1), pixels(2)
    alpha = np.dstack([colour, np.where(np.indices((9, 9))[0] < 4, 0, 255).astype(np.uint8)])
    on_white = np.where(alpha[..., 3:] == 0, 255, colour)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    palette = Image.fromarray(colour).quantize(256)
    see_through = Image.fromarray(np.zeros((9, 9), np.uint8), "P")
    see_through.putpalette([10, 20, 30])
    saved = {}
    for name, picture, options in (
        ("grey", Image.fromarray(grey), {}),
        ("deep", deep, {}),
        ("palette", palette, {}),
        ("see-through", see_through, {"transparency": 0}),
        ("alpha", Image.fromarray(alpha), {}),
        ("grey and alpha", Image.fromarray(np.dstack([grey, alpha[..., 3]])), {}),
        ("one bit", Image.fromarray(grey).convert("1"), {}),
    ):
        file = io.BytesIO()
        picture.save(file, "PNG", **options)
        saved[name] = file.getvalue()
    three = {name: decode.decode(file, (3, 9, 9)).transpose(1, 2, 0) for name, file in saved.items()}
    for name in ("grey", "deep"):
        np.testing.assert_array_equal(three[name], np.repeat(grey[:, :, None], 3, 2))
    np.testing.assert_array_equal(three["palette"], np.asarray(palette.convert("RGB")))
    assert (three["see-through"] == 255).all()
    np.testing.assert_array_equal(three["alpha"], on_white)
    assert (three["grey and alpha"][:4] == 255).all()
    np.testing.assert_array_equal(three["grey and alpha"][4:], np.repeat(grey[4:, :, None], 3, 2))
    np.testing.assert_array_equal(decode.decode(saved["grey"], (1, 9, 9))[0], grey)
    cmyk = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), (200, 40, 40), np.uint8)).convert("CMYK").save(cmyk, "JPEG", quality=100)
    assert np.abs(decode.decode(cmyk.getvalue(), (3, 9, 9)).reshape(3, -1).mean(1) - (200, 40, 40)).max() < 6


def test_of_an_animation_the_first_picture_is_taken():
    frames = [Image.fromarray(pixels(i)) for i in range(3)]
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        file = io.BytesIO()
        frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=50, **options)
        assert Image.open(file).n_frames == 3
        np.testing.assert_array_equal(decode.decode(file.getvalue(), (3, 9, 9)), pixels(0).transpose(2, 0, 1))


def test_a_large_jpeg_is_about_the_same_picture_though_it_is_decoded_small():
    smooth = np.asarray(Image.fromarray(pixels(5, 6, 6)).resize((900, 700), Image.Resampling.BICUBIC))
    file = encoded(smooth, "JPEG", quality=95)
    exact = ImageOps.fit(Image.open(io.BytesIO(file)), (32, 32), Image.Resampling.LANCZOS)
    found = decode.decode(file, (3, 32, 32)).transpose(1, 2, 0)
    assert np.abs(found.astype(int) - np.asarray(exact)).mean() < 1.5


# ---- a cap before decoding -----------------------------------------------------------------------------------------


def bomb(edge: int = 13_000) -> bytes:
    """A PNG of edge x edge black pixels, in less than 500 KB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + (edge + 7) // 8)  # one bit a pixel: the decoder makes a byte of it
    body = b"".join(packer.compress(row) for _ in range(edge)) + packer.flush()
    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_bomb_is_never_decoded(tmp_path, monkeypatch, recwarn, capsys):
    small = bomb()
    assert len(small) < 500_000
    folder = fill(tmp_path / "p", {**many(120), "bomb.png": small})
    loaded = []
    load = ImageFile.ImageFile.load

    def watched(picture: Image.Image) -> Any:
        loaded.append(picture.size)
        return load(picture)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    tracemalloc.start()
    kept = everything(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == 120
    assert (13_000, 13_000) not in loaded
    assert (9, 9) in loaded  # the watch works
    assert peak < 50 << 20
    assert [w for w in recwarn if "bomb" in str(w.message)] == []
    assert (
        "1 of them left out: 'bomb.png' (it has 13,000 x 13,000 pixels, more than 64,000,000)"
        in capsys.readouterr().err
    )
    with pytest.raises(decode.Bad, match="13,000"):
        decode.decode(small, (3, 9, 9))
    with pytest.raises(decode.Bad, match="more than"):
        decode.measure(bomb(20_000))  # which Pillow itself refuses


def test_the_cap_is_the_users(tmp_path):
    folder = fill(tmp_path / "p", many(3))
    assert [bool(e.bad) for e in listing.read(data.index(folder, pixels=81)).entries] == [False] * 3
    assert [bool(e.bad) for e in listing.read(data.index(folder, pixels=80)).entries] == [True] * 3
    with pytest.raises(UserError, match="out of range"):
        data.index(folder, pixels=0)
    (folder / "000.png").write_bytes(encoded(pixels(0, 9, 10)))
    assert len(everything(fill(tmp_path / "q", many(100)))) == 100
    with pytest.raises(UserError, match=r"'000.png' \(it has 10 x 9 pixels, more than 81\)"):
        len(data.Album(folder, data.index(folder, pixels=81), size=(9, 9)))


# ---- bad files -----------------------------------------------------------------------------------------------------

WHOLE = encoded(pixels(77, 40, 40))
BROKEN = {
    "empty": b"",
    "text": b"this is no picture",
    "cut": WHOLE[: len(WHOLE) // 2],
    "flipped": WHOLE[:200] + bytes([WHOLE[200] ^ 255]) + WHOLE[201:],
    "gif": encoded(pixels(1), "GIF"),
    "header alone": WHOLE[:33],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_bad_file_in_a_hundred_is_named_and_left_out(kind, tmp_path, capsys):
    folder = fill(tmp_path / "p", {**many(99), "bad one.png": BROKEN[kind]})
    kept = everything(folder)
    assert sorted(e.name for e in kept) == sorted(many(99))
    err = capsys.readouterr().err
    assert "1 of them left out: 'bad one.png' (it is" in err
    whole = torch.cat(
        [opened(folder, part).take(torch.arange(len(opened(folder, part))))["x"] for part in ("train", "test")]
    )
    expected = torch.stack([torch.from_numpy(pixels(int(e.name[:3]))).permute(2, 0, 1) for e in kept])
    torch.testing.assert_close(whole, expected / 127.5 - 1)  # nobody's pixels moved to another's place


def test_more_bad_files_stop(tmp_path):
    folder = fill(tmp_path / "p", {**many(99), "bad.png": b"", "worse.png": b"x"})
    with pytest.raises(UserError, match=r"More than 1 % .* 'bad.png' \(it is empty\); 'worse.png' \(it is no PNG"):
        everything(folder)
    (folder / "worse.png").unlink()
    assert len(everything(folder)) == 99  # mended


def test_links_and_pipes(tmp_path, capsys):
    folder = fill(tmp_path / "p", many(98))
    fill(tmp_path / "elsewhere", {"far.png": encoded(pixels(500))})
    (folder / "linked.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (folder / "nowhere.png").symlink_to(tmp_path / "gone.png")
    assert len(everything(folder)) == 99
    assert "'nowhere.png' (it is a link that leads nowhere)" in capsys.readouterr().err
    (folder / "nowhere.png").unlink()
    os.mkfifo(folder / "pipe.png")
    assert len(everything(folder)) == 99
    assert "'pipe.png' (it is no regular file)" in capsys.readouterr().err
    (folder / "loop").symlink_to(folder)
    with pytest.raises(UserError, match=r"loop' is a link to a folder"):
        data.index(folder)


def test_unreadable_and_too_large(tmp_path, monkeypatch):
    folder = fill(tmp_path / "p", many(2))
    monkeypatch.setattr(files, "LARGEST", 10)
    assert ["larger" in e.bad for e in listing.read(data.index(folder)).entries] == [True, True]


# ---- names, classes, parts -----------------------------------------------------------------------------------------


def test_odd_names_and_folders_in_folders(tmp_path):
    contents = {
        "Zoë/ein Bild.PNG": encoded(pixels(0)),
        "Zoë/deep/er/猫.jpeg": encoded(pixels(1), "JPEG"),
        "b\n/line\nbreak.png": encoded(pixels(2)),
        "b\n/'quote\".webp": encoded(pixels(3), "WEBP"),
        "b\n/same.png": encoded(pixels(4)),
        "b\n/same.jpg": encoded(pixels(5), "JPEG"),
        ".hidden/x.png": b"",
        "Zoë/._x.png": b"",
        "Zoë/.DS_Store": b"",
        "readme.md": "hello",
    }
    folder = fill(tmp_path / "p", contents)
    found = labels(folder)
    assert set(found) == set(list(contents)[:6])
    assert set(found.values()) == {"Zoë", "b\n"}
    assert found["Zoë/deep/er/猫.jpeg"] == "Zoë"
    assert len(everything(folder)) == 6
    raw = os.fsencode(folder) + b"/Zo\xc3\xab/\xff.png"  # a name that is no UTF-8
    Path(os.fsdecode(raw)).write_bytes(encoded(pixels(6)))
    assert len(everything(folder)) == 7


def test_order_is_of_the_names_and_not_of_the_disk(tmp_path, monkeypatch):
    contents = many(30)
    one = fill(tmp_path / "one", contents)
    two = fill(tmp_path / "two", dict(reversed(contents.items())))
    first = data.index(one).sha256
    assert data.index(two).sha256 == first
    walk = os.walk
    monkeypatch.setattr(files.os, "walk", lambda *a, **k: ((w, d[::-1], f[::-1]) for w, d, f in walk(*a, **k)))
    assert data.index(one).sha256 == first


def test_a_common_folder_is_no_class(tmp_path):
    assert labels(fill(tmp_path / "p", {"x/y/a/1.png": WHOLE, "x/y/b/2.png": WHOLE})) == {
        "x/y/a/1.png": "a",
        "x/y/b/2.png": "b",
    }
    for contents in ({"a/1.png": WHOLE, "a/2.png": WHOLE}, {"1.png": WHOLE}):
        found = listing.read(data.index(fill(tmp_path / str(len(contents)), contents)))
        assert found.classes == ()
    with pytest.raises(UserError, match=r"'stray.png' lies beside folders"):
        data.index(fill(tmp_path / "q", {"a/1.png": WHOLE, "b/1.png": WHOLE, "stray.png": WHOLE}))


def test_parts(tmp_path):
    found = listing.read(data.index(fill(tmp_path / "p", many(400)))).entries
    test = {e.name for e in found if e.part == "test"}
    assert 8 <= len(test) <= 35  # one in twenty
    for name in list(many(400))[::2]:
        (tmp_path / "p" / name).unlink()
    fewer = {e.name for e in listing.read(data.index(tmp_path / "p")).entries if e.part == "test"}
    assert fewer == {n for n in test if (tmp_path / "p" / n).exists()}  # the others' parts stayed
    given = fill(tmp_path / "q", {"train/a/1.png": WHOLE, "train/b/2.png": WHOLE, "val/a/3.png": WHOLE})
    assert labels(given) == {"train/a/1.png": "a", "train/b/2.png": "b", "val/a/3.png": "a"}
    assert [e.part for e in listing.read(data.index(given)).entries] == ["train", "train", "test"]
    with pytest.raises(UserError, match="test and val lie beside train"):
        data.index(fill(given, {"test/a/4.png": WHOLE}))


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "val"), ("training", "Testing")])
def test_parts_are_known_however_they_are_written(train, test, tmp_path):
    contents = {f"{part}/{c}/{i}.png": WHOLE for part in (train, test) for c in "ab" for i in range(2)}
    found = listing.read(data.index(fill(tmp_path / "p", contents)))
    assert found.classes == ("a", "b")
    assert [e.part for e in found.entries] == ["train" if e.name.startswith(train) else "test" for e in found.entries]


@pytest.mark.parametrize("extra", ["extra/a/0.png", "0.png"])
def test_what_lies_beside_both_parts_is_named(extra, tmp_path):
    contents = {f"x/{part}/{c}/0.png": WHOLE for part in ("train", "test") for c in "ab"}
    name = extra.partition("/")[0]
    with pytest.raises(UserError, match=rf"'x/{name}' lies beside train and test"):
        data.index(fill(tmp_path / "p", {**contents, f"x/{extra}": WHOLE}))
    (tmp_path / "p" / "x" / extra).unlink()
    assert listing.read(data.index(tmp_path / "p")).classes == ("a", "b")


def test_what_is_not_read_is_told(tmp_path, capsys):
    contents = {**many(3), **{f"{i}.gif": b"" for i in range(50)}, **{f"{i}.BMP": b"" for i in range(20)}}
    folder = fill(tmp_path / "p", contents)
    data.index(folder)
    assert f"Not read of {str(folder)!r}: 70 other files (.gif 50, .bmp 20).\n" in capsys.readouterr().err
    names = "".join(f"{i:03d}.png,x\n" for i in range(3))
    fill(folder, {"labels.csv": f"file_name,label\n{names}", "000.txt": "a", "001.txt": "b", "002.txt": "c"})
    data.index(folder)
    err = capsys.readouterr().err
    assert "71 other files (.gif 50, .bmp 20, .csv 1): 'labels.csv' is one where it is named as the table, or" in err
    data.index(folder, table=folder / "labels.csv")
    assert "73 other files (.gif 50, .bmp 20, .txt 3).\n" in capsys.readouterr().err  # the table has said all
    (folder / "labels.csv").rename(folder / "Metadata.CSV")
    assert listing.read(data.index(folder)).classes == ("x",)
    clean = fill(tmp_path / "q", {**many(1), ".hidden": ""})
    capsys.readouterr()
    data.index(clean)
    assert "Not read" not in capsys.readouterr().err


@pytest.mark.parametrize("where", ["", "cats/"])
def test_pictures_beside_a_shard_are_not_passed_over(where, tmp_path):
    folder = fill(tmp_path / "p", many(3, where))
    tarred(folder / "old.tar", {"old/0.png": WHOLE})
    with pytest.raises(UserError, match=rf"holds the shard 'old.tar' and pictures such as '{where}00\d.png' beside"):
        data.index(folder)
    (folder / "old.tar").unlink()
    assert len(names(folder)) == 3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_pictures_are_trained_on(n, tmp_path):
    folder = fill(tmp_path / "p", many(n))
    items = opened(folder)
    assert len(items) >= 1
    assert items.take(torch.tensor([0]))["x"].shape == (1, 3, 9, 9)
    assert items.take(torch.tensor([0]))["cond"] == {}
    rest = opened(folder, "test")
    assert len(items) + len(rest) == n
    assert rest.holds("test") == len(rest)


# ---- tables --------------------------------------------------------------------------------------------------------


def test_tables_say_labels_captions_and_conditions(tmp_path, capsys):
    rows = [
        {"file_name": "a.png", "label": "10", "caption": "eine, Katze", "age": "3", "who": "me"},
        {"file_name": "sub/b.png", "label": "9", "caption": 'ein "Hund"', "age": "4.5", "who": "5"},
    ]
    pictures = {"a.png": encoded(pixels(0)), "sub/b.png": encoded(pixels(1))}
    csv = 'file_name,label,caption,age,who\na.png,10,"eine, Katze",3,me\nsub/b.png,9,"ein ""Hund""",4.5,5\n'
    lines = "\n".join(json.dumps(r) for r in rows)
    beside = {f"{r['file_name'][:-4]}.json": json.dumps({"age": r["age"], "who": r["who"]}) for r in rows}
    beside |= {f"{r['file_name'][:-4]}.cls": r["label"] for r in rows}
    beside |= {f"{r['file_name'][:-4]}.txt": r["caption"] + "\n" for r in rows}
    found = []
    for i, table in enumerate(({"metadata.csv": "\ufeff" + csv}, {"metadata.jsonl": lines}, beside)):
        asset = data.index(fill(tmp_path / str(i), {**pictures, **table}))
        assert "'who' is left out: for 'a.png' it is 'me'" in capsys.readouterr().err
        found.append(listing.read(asset))
    assert found[0] == found[1] == found[2]
    assert found[0].classes == ("9", "10")
    assert found[0].conditions == ("age",)
    (tmp_path / "table.csv").write_text(csv)
    folder = fill(tmp_path / "named", pictures)
    items = data.Album(folder, data.index(folder, table=tmp_path / "table.csv"), size=(9, 9))
    batch = items.take(torch.arange(len(items)))
    by_name = {e.name: i for i, e in enumerate(items.entries())}
    assert batch["cond"]["label"][by_name["a.png"]] == 1
    assert batch["cond"]["age"][by_name["sub/b.png"]] == 4.5
    assert items.captions[by_name["sub/b.png"]] == 'ein "Hund"'


@pytest.mark.parametrize(
    "table",
    [
        "File_Name,Label, age \na.png, x,3\nsub/b.png,y ,4\n",
        "file_name;label;age\na.png;x;3\nsub/b.png;y;4\n",
        "file_name\tlabel\tage\na.png\tx\t3\nsub/b.png\ty\t4\n",
        ",file,label,age\n0,a.png,x,3\n1,sub/b.png,y,4\n",
        "file_name,label,age\n./a.png,x,3\nsub\\b.png,y,4\n",
        "file_name,label,age,mass\r\n\r\na.png,x,3,1e300\r\nsub//b.png,y,4,1\r\n",
    ],
)
def test_tables_as_other_programs_write_them(table, tmp_path):
    folder = fill(tmp_path / "p", {"a.png": WHOLE, "sub/b.png": WHOLE, "metadata.csv": table})
    found = listing.read(data.index(folder))
    assert found.classes == ("x", "y")
    assert found.conditions == ("age",)
    assert [(e.label, e.cond) for e in found.entries] == [(0, {"age": 3.0}), (1, {"age": 4.0})]
    (folder / "metadata.csv").rename(tmp_path / "t.tsv")
    assert listing.read(data.index(folder, table=tmp_path / "t.tsv")) == found


def test_a_condition_is_finite_in_single_precision(tmp_path, capsys):
    table = "file_name,mass,year\na.png,1e39,3.4e38\nb.png,1,-3.4e38\n"
    folder = fill(tmp_path / "p", {"a.png": WHOLE, "b.png": WHOLE, "metadata.csv": table})
    listed = data.index(folder)
    assert "'mass' is left out: for 'a.png' it is '1e39'" in capsys.readouterr().err
    cond = data.Album(folder, listed, size=(9, 9)).read()["cond"]
    assert set(cond) == {"year"}
    assert cond["year"].isfinite().all()


def test_mistakes_in_tables_are_one_sentence(tmp_path):
    pictures = {"a.png": WHOLE, "b.png": WHOLE}
    for i, (contents, words) in enumerate(
        (
            ({"metadata.csv": "file_name,label\na.png,x\n"}, r"no line of 'b.png'"),
            ({"metadata.csv": "file_name,label\na.png,x\nb.pgn,y\n"}, r"line 3 .* did you mean 'b.png'"),
            ({"metadata.csv": "file_name,label\na.png,x\na.png,y\n"}, r"two lines of 'a.png', the second is 3"),
            ({"metadata.csv": "file_name,label\na.png\nb.png,y\n"}, r"Line 2 .* not as many fields"),
            ({"metadata.csv": "image,label\na.png,x\n"}, r"Line 2 .* no file_name \(it has 'image', 'label'\)"),
            ({"metadata.csv": "file_name,label\n ,x\n"}, r"Line 2 .* no file_name"),
            ({"metadata.csv": "file_name,label,Label\na.png,x,y\n"}, "two columns of the label"),
            ({"metadata.jsonl": '{"file_name": "a.png", "text": "x", "caption": "y"}'}, "Line 1 .* of the caption"),
            ({"metadata.csv": 'file_name,label\na.png,"' + "x" * 140_000}, "no CSV"),
            ({"metadata.csv": "file_name,label\na.png,x\nb.png,\n"}, r"'a.png' has a label and 'b.png' has none"),
            ({"metadata.csv": b"file_name,label\n\xff\xfe,x\n"}, "not UTF-8"),
            ({"metadata.jsonl": "{}\n[]"}, r"Line 1 .* no file_name"),
            ({"metadata.jsonl": "[1]"}, r"Line 1 .* no JSON object"),
            ({"metadata.jsonl": "{", "metadata.csv": ""}, "both metadata.csv and metadata.jsonl"),
            ({"metadata.csv": "file_name,t\na.png,1\nb.png,2\n"}, r"'t' has a name that nets use"),
            ({"a.json": "[]"}, r"'a.json' is no JSON object"),
            ({"a.txt": "one"}, r"'a.png' has a caption and 'b.png' has none"),
        )
    ):
        with pytest.raises(UserError, match=words) as said:
            data.index(fill(tmp_path / str(i), {**pictures, **contents}))
        assert "\n" not in str(said.value)
    with pytest.raises(UserError, match="does not exist"):
        data.index(tmp_path / "0", table=tmp_path / "no.csv")


@pytest.mark.parametrize("name", ["a.txt", "a.cls", "a.json", "metadata.csv"])
def test_a_file_beside_pictures_that_cannot_be_read_is_named(name, tmp_path):
    folder = fill(tmp_path / "p", {"a.png": WHOLE})
    (folder / name).symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"'{name}' in .* but it is a link that leads nowhere"):
        data.index(folder)
    path = zipped(tmp_path / "p.zip", {"a.png": WHOLE})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "caption")
    damaged = path.read_bytes()
    at = damaged.rindex(b"caption")
    path.write_bytes(damaged[:at] + b"C" + damaged[at + 1 :])
    with pytest.raises(UserError, match=rf"'{name}' in .* but it cannot be unpacked"):
        data.index(path)


# ---- archives ------------------------------------------------------------------------------------------------------


def zipped(path: Path, contents: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def test_a_member_without_a_name_is_left_out(tmp_path):
    path = zipped(tmp_path / "a.zip", {"x/0.txt": b"one", "Q": b"two"})
    damaged = path.read_bytes()
    at = damaged.rindex(b"PK\1\2")  # the last member of the directory: its name has one letter
    damaged = damaged[: at + 28] + b"\0\0" + damaged[at + 30 : at + 46] + damaged[at + 47 :]
    end = damaged.rindex(b"PK\5\6")
    size = int.from_bytes(damaged[end + 12 : end + 16], "little") - 1
    path.write_bytes(damaged[: end + 12] + size.to_bytes(4, "little") + damaged[end + 16 :])
    assert [i.filename for i in zipfile.ZipFile(path).infolist()] == ["x/0.txt", ""]
    assert list(files.opened(path).names()) == ["x/0.txt"]


def tarred(path: Path, contents: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            body = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return path


def test_a_folder_a_zip_and_shards_give_the_same_items(tmp_path):
    contents = {f"{'ab'[i % 2]}/{i:03d}.png": encoded(pixels(i)) for i in range(40)}
    folder = fill(tmp_path / "folder", contents)
    archive = zipped(tmp_path / "z.zip", contents)
    single = tarred(tmp_path / "t.tar", contents)
    listed = list(contents.items())
    (tmp_path / "shards").mkdir()
    for i in range(4):
        tarred(tmp_path / "shards" / f"{i}.tar", dict(listed[10 * i : 10 * i + 10]))
    expected = opened(folder)
    x = expected.take(torch.arange(len(expected)))
    for path in (archive, single, tmp_path / "shards"):
        items = opened(path)
        found = items.take(torch.arange(len(items)))
        order = [e.name.rpartition(".tar/")[2] for e in items.entries()]
        at = torch.tensor([order.index(e.name) for e in expected.entries()])
        assert len(items) == len(expected)
        assert found["x"][at].equal(x["x"])
        assert found["cond"]["label"][at].equal(x["cond"]["label"])


def test_webdataset_samples(tmp_path):
    (tmp_path / "w").mkdir()
    for shard in range(2):
        contents: dict[str, bytes | str] = {}
        for i in range(3):
            key = f"{i:04d}"
            contents |= {f"{key}.jpg": encoded(pixels(i), "JPEG"), f"{key}.cls": str(shard), f"{key}.txt": f"no {i}"}
        tarred(tmp_path / "w" / f"train-{shard}.tar", contents)
    found = listing.read(data.index(tmp_path / "w"))
    assert found.classes == ("0", "1")
    assert [(e.name, e.label, e.caption) for e in found.entries] == [
        (f"train-{s}.tar/{i:04d}.jpg", s, f"no {i}") for s in range(2) for i in range(3)
    ]


def test_bad_archives_are_one_sentence(tmp_path):
    good = {"a.png": WHOLE}
    for i, (path, words) in enumerate(
        (
            (zipped(tmp_path / "up.zip", {"../a.png": WHOLE}), r"'../a.png', a path that leads out"),
            (zipped(tmp_path / "deep.zip", {"x/../../a.png": WHOLE}), "leads out"),
            (zipped(tmp_path / "root.zip", {"/a.png": WHOLE}), "leads out"),
            (zipped(tmp_path / "dos.zip", {"..\\a.png": WHOLE}), "leads out"),
            (tarred(tmp_path / "up.tar", {"../a.png": WHOLE}), "leads out"),
            (fill(tmp_path, {"text.zip": "no zip"}) / "text.zip", "damaged"),
            (fill(tmp_path, {"text.tar": "no tar"}) / "text.tar", "damaged"),
            (tarred(tmp_path / "packed.tar", good, "w:gz"), "plain tar"),
            (tarred(tmp_path / "packed.tar.gz", good, "w:gz"), "neither a folder nor"),
            (zipped(tmp_path / "none.zip", {"a.gif": WHOLE}), "no PNG, JPEG or WebP picture .* 1 other file"),
            (fill(tmp_path / "none", {".x": ""}), "no PNG, JPEG or WebP picture"),
            (tmp_path / "absent", "There is no folder"),
        )
    ):
        with pytest.raises(UserError, match=words) as said:
            data.index(path)
        assert "\n" not in str(said.value), i
    zipped(tmp_path / "twice.zip", good)
    with zipfile.ZipFile(tmp_path / "twice.zip", "a") as twice, pytest.warns(UserWarning, match="Duplicate"):
        twice.writestr("a.png", WHOLE)
    with pytest.raises(UserError, match="twice"):
        data.index(tmp_path / "twice.zip")
    cut = tarred(tmp_path / "cut.tar", {"a.png": WHOLE, "b.png": bytes(5000)})
    cut.write_bytes(cut.read_bytes()[: 512 + 512 * (-(-len(WHOLE) // 512)) + 700])
    with pytest.raises(UserError, match="cut short"):
        data.index(cut)
    link = tarfile.TarInfo("b.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tarred(tmp_path / "link.tar", good), "a") as archive:
        archive.addfile(link)
    with pytest.raises(UserError, match=r"'b\.png', a link"):
        data.index(tmp_path / "link.tar")
    assert not (tmp_path.parent / "a.png").exists()


# ---- the index remembers -------------------------------------------------------------------------------------------


def test_a_file_that_changed_after_the_index_is_named(tmp_path):
    folder = fill(tmp_path / "p", many(5))
    listed = data.index(folder)
    good = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(encoded(pixels(99)))
    with pytest.raises(UserError, match=r"'003.png' .* has changed since it was indexed"):
        len(data.Album(folder, listed, size=(9, 9)))
    (folder / "003.png").unlink()
    with pytest.raises(UserError, match=r"'003.png' .* no longer there"):
        len(data.Album(folder, listed, size=(9, 9)))
    (folder / "003.png").write_bytes(good)
    assert len(data.Album(folder, listed, size=(9, 9))) + len(data.Album(folder, listed, "test", size=(9, 9))) == 5


def test_files_that_did_not_change_are_not_read_again_and_others_are(tmp_path, monkeypatch):
    folder = fill(tmp_path / "p", many(6))
    real = time.time_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: real() + 3_000_000_000)  # the files are old enough to be trusted
    first = data.index(folder)
    read: list[str] = []
    take = files._Folder.read
    monkeypatch.setattr(files._Folder, "read", lambda self, name: read.append(name) or take(self, name))
    assert data.index(folder).sha256 == first.sha256
    assert read == []
    path = folder / "002.png"
    before = path.stat()
    changed = bytearray(path.read_bytes())
    changed[60] ^= 1
    time.sleep(0.02)  # a tick of the file system's clock
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time of writing are as before
    assert data.index(folder).sha256 != first.sha256
    assert read == ["002.png"]


def test_files_changed_just_now_are_read_again(tmp_path):
    folder = fill(tmp_path / "p", many(2))
    first = data.index(folder)
    found = (folder / "000.png").stat()
    body = bytearray((folder / "000.png").read_bytes())
    body[60] ^= 1
    (folder / "000.png").write_bytes(body)
    os.utime(folder / "000.png", ns=(found.st_atime_ns, found.st_mtime_ns))
    assert data.index(folder).sha256 != first.sha256


# ---- the decoded cache ---------------------------------------------------------------------------------------------


def cached(own_cache: Path) -> bytes:
    (path,) = (own_cache / "decoded").glob("*.bin")
    return path.read_bytes()


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, monkeypatch):
    contents = {f"{i:03d}.png": encoded(pixels(i, 3 + 17 * i % 40, 5 + 13 * i % 50)) for i in range(110)}
    folder = fill(tmp_path / "p", {**contents, "050x.png": b"bad"})
    found = []
    for workers in (0, 1, 2, 4):
        monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / f"cache{workers}"))
        len(opened(folder, workers=workers))
        found.append(cached(tmp_path / f"cache{workers}"))
    assert len(found[0]) == 110 * 3 * 9 * 9
    assert found[0] == found[1] == found[2] == found[3]


def test_it_is_decoded_once(tmp_path, own_cache, monkeypatch):
    folder = fill(tmp_path / "p", many(8))
    listed = data.index(folder)
    first = data.Album(folder, listed, size=(9, 9)).take(torch.tensor([2]))["x"]
    monkeypatch.setattr(album, "decode", None)
    for path in folder.iterdir():
        path.unlink()
    assert data.Album(folder, listed, size=(9, 9)).take(torch.tensor([2]))["x"].equal(first)
    monkeypatch.undo()
    monkeypatch.setenv("MORPHOGEN_CACHE", str(own_cache))
    for other in ({"size": (8, 9)}, {"colour": False}, {"fit": "pad"}):  # another transform, another cache
        with pytest.raises(UserError, match="no longer there"):
            len(data.Album(folder, listed, **{"size": (9, 9), **other}))


@pytest.mark.parametrize("at", [0, 1, 5, 19, 20])
@pytest.mark.parametrize("noted", [True, False])
def test_an_interrupted_decoding_goes_on(at, noted, tmp_path, own_cache, monkeypatch):
    """Killed after `at` pictures, with a note after each or none yet: the same bytes, and no picture decoded twice."""
    folder = fill(tmp_path / "p", many(20))
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "straight"))
    len(opened(folder))
    straight = cached(tmp_path / "straight")
    monkeypatch.setenv("MORPHOGEN_CACHE", str(own_cache))
    monkeypatch.setattr(album, "_NOTED", 1 if noted else 1 << 30)
    real, count = decode.decode, 0

    def failing(*given: Any) -> Any:
        nonlocal count
        if count == at:
            raise KeyboardInterrupt
        count += 1
        return real(*given)

    monkeypatch.setattr(album, "decode", failing)
    if at < 20:
        with pytest.raises(KeyboardInterrupt):
            len(opened(folder, workers=0))
        assert list((own_cache / "decoded").glob("*.bin")) == []
        for partial in (own_cache / "decoded").glob("*.partial"):
            with partial.open("ab") as file:
                file.write(b"half a row")  # of a picture that was being written
    before = count
    at = -1
    len(opened(folder, workers=0))
    assert cached(own_cache) == straight
    assert count == (20 if noted or before == 20 else before + 20)


def test_two_at_once_decode_once(tmp_path, own_cache, monkeypatch):
    folder = fill(tmp_path / "p", many(30))
    listed = data.index(folder)
    count, real = [], decode.decode
    monkeypatch.setattr(album, "decode", lambda *given: count.append(1) or real(*given))
    albums = [data.Album(folder, listed, size=(9, 9), workers=1) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(data.Album.entries, albums))
    assert found[0] == found[1] == found[2]
    assert len(count) == 30
    assert len(cached(own_cache)) == 30 * 243


def test_a_damaged_memory_of_what_was_seen_is_nothing_worse(tmp_path, own_cache, monkeypatch):
    folder = fill(tmp_path / "p", many(3))
    real = time.time_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: real() + 3_000_000_000)
    first = data.index(folder)
    (memory,) = (own_cache / "indexed").glob("*.seen.json")
    held = json.loads(memory.read_bytes())
    for content in ("", "[]", "{", "null", '{"000.png": 1}', json.dumps({k: [v[0], {}] for k, v in held.items()})):
        memory.write_text(content)
        assert data.index(folder).sha256 == first.sha256


def test_what_is_damaged_or_of_another_length_is_decoded_again(tmp_path, own_cache):
    folder = fill(tmp_path / "p", many(6))
    len(opened(folder))
    whole = cached(own_cache)
    (path,) = (own_cache / "decoded").glob("*.bin")
    (note,) = (own_cache / "decoded").glob("*.json")
    for spoil in (
        lambda: path.write_bytes(whole[:-1]),
        lambda: path.unlink(),
        lambda: note.write_bytes(b"{"),
        lambda: note.write_bytes(b'{"done": 99, "bad": {}}'),
        lambda: note.unlink(),
    ):
        spoil()
        len(opened(folder))
        assert cached(own_cache) == whole


def test_a_full_disk_is_said_before(tmp_path, monkeypatch):
    folder = fill(tmp_path / "p", many(2))
    usage = type(album.shutil.disk_usage("/"))
    monkeypatch.setattr(album.shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(UserError, match=r"need 486 bytes and .* has 10"):
        len(opened(folder))


def test_speed_is_said(tmp_path, capsys):
    len(opened(fill(tmp_path / "p", many(12))))
    err = capsys.readouterr().err
    assert "Decoded 12 pictures," in err
    assert "pictures/s" in err
    assert "Indexing: 100%" in err


def test_mistakes_in_albums_are_one_sentence(tmp_path):
    folder = fill(tmp_path / "p", many(2))
    for how, words in (
        ({"fit": "cropp"}, "did you mean 'crop'"),
        ({"size": (0, 9)}, "1 to 8192"),
        ({"among": ((8, 8),)}, "not among"),
        ({"workers": -1}, "workers=-1"),
        ({"part": "trian"}, "did you mean 'train'"),
    ):
        with pytest.raises(UserError, match=words):
            opened(folder, **how)
    (tmp_path / "no.jsonl").write_text("[]")
    from morphogen.spec import Asset

    with pytest.raises(UserError, match="no index"):
        data.Album(folder, Asset(tmp_path / "no.jsonl"))


@pytest.mark.parametrize("number", [10**30, 7, "NaN", "Infinity", True])
def test_a_condition_of_an_index_is_a_finite_float(tmp_path, number):
    from morphogen.spec import Asset

    folder = fill(tmp_path / "p", many(2))
    rows = "".join(f"{name},1.5\n" for name in names(folder))
    (folder / "metadata.csv").write_text("file_name,age\n" + rows)
    said = data.index(folder).path.read_text()
    assert '"age": 1.5' in said
    (tmp_path / "other.jsonl").write_text(said.replace('"age": 1.5', f'"age": {json.dumps(number).strip(chr(34))}'))
    with pytest.raises(UserError, match="no index"):
        data.Album(folder, Asset(tmp_path / "other.jsonl"))


# ---- aspect buckets ------------------------------------------------------------------------------------------------

SHAPES = ((8, 8), (8, 16), (16, 8))


def bucketed(tmp_path: Path) -> tuple[Path, list[data.Album]]:
    sizes = [(20, 20), (10, 30), (40, 10), (19, 21), (11, 20)]
    contents = {f"{i:03d}.png": encoded(pixels(i, *sizes[i % 5])) for i in range(45)}
    folder = fill(tmp_path / "p", contents)
    listed = data.index(folder)
    return folder, [data.Album(folder, listed, size=s, among=SHAPES) for s in SHAPES]


def test_each_picture_is_in_the_bucket_of_its_aspect(tmp_path):
    folder, albums = bucketed(tmp_path)
    found = {e.name: a.size for a in albums for e in a.entries()}
    train = [e for e in listing.read(albums[0].index).entries if e.part == "train"]
    assert len(found) == len(train) == sum(map(len, albums))
    for e in train:
        expected = {(20, 20): (8, 8), (10, 30): (8, 16), (40, 10): (16, 8), (19, 21): (8, 8), (11, 20): (8, 16)}
        assert found[e.name] == expected[e.height, e.width]
    assert folder.is_dir()


def test_buckets_give_each_item_once_an_epoch_and_restore_anywhere(tmp_path):
    _, albums = bucketed(tmp_path)

    def made() -> data.Buckets:
        source = data.Buckets([data.Shuffled(a, 1) for a in albums])
        source.start(Place(seed=3))
        return source

    n = sum(map(len, albums))
    source = made()
    assert isinstance(source, Source)
    batches, states = [], []
    for _ in range(2 * n):
        states.append(json.loads(json.dumps(source.state())))
        batches.append(source.next(None, {}))
    for epoch in range(2):
        seen = {(tuple(b["x"].shape[1:]), int(b["index"])) for b in batches[epoch * n : (epoch + 1) * n]}
        assert len(seen) == n
    shapes = [tuple(b["x"].shape[2:]) for b in batches]
    assert shapes[:n] != shapes[n:]  # the order is drawn anew
    assert shapes[:n] != sorted(shapes[:n])
    for at in (0, 7, n - 1, n, n + 5):
        fresh = made()
        fresh.restore(states[at])
        for batch in batches[at : at + 4]:
            found = fresh.next(None, {})
            assert found["x"].equal(batch["x"])
            assert found["key"].equal(batch["key"])
    assert spec(build(spec(source))) == spec(source)


def test_ranks_have_the_same_bucket_and_together_the_batch(tmp_path):
    _, albums = bucketed(tmp_path)

    def made(rank: int, ranks: int) -> data.Buckets:
        source = data.Buckets([data.Shuffled(a, 4) for a in albums])
        source.start(Place(rank, ranks, seed=1))
        return source

    whole, parts = made(0, 1), [made(r, 2) for r in range(2)]
    for _ in range(12):
        batch = whole.next(None, {})
        assert torch.cat([p.next(None, {})["x"] for p in parts]).equal(batch["x"])
    with pytest.raises(UserError, match="no source"):
        data.Buckets([])


def test_an_empty_bucket_has_no_turn(tmp_path):
    """Of square pictures alone: the batches are those of their bucket, on ranks and after a restore too."""
    folder = fill(tmp_path / "p", many(30))
    listed = data.index(folder)
    albums = [data.Album(folder, listed, size=s, among=SHAPES) for s in SHAPES[::-1]]
    assert [len(a) > 0 for a in albums] == [False, False, True]

    def made(rank: int = 0, ranks: int = 1) -> data.Buckets:
        source = data.Buckets([data.Shuffled(a, 4) for a in albums])
        source.start(Place(rank, ranks, seed=1))
        return source

    alone = data.Shuffled(albums[2], 4)
    alone.start(Place(seed=1))
    whole, parts = made(), [made(r, 2) for r in range(2)]
    for _ in range(20):
        state = json.loads(json.dumps(whole.state()))
        batch = whole.next(None, {})
        assert batch["x"].equal(alone.next()["x"])
        assert torch.cat([p.next(None, {})["x"] for p in parts]).equal(batch["x"])
        again = data.Buckets([data.Shuffled(a, 4) for a in albums])
        again.restore(state)  # without a start, it is at seed 0
        fresh = made()
        fresh.restore(state)
        assert fresh.next(None, {})["x"].equal(batch["x"])
    with pytest.raises(UserError, match="none of 2 buckets"):
        data.Buckets([data.Shuffled(a, 4) for a in albums[:2]]).next(None, {})


def test_crops_lie_everywhere_and_follow_their_keys():
    from morphogen.core import Noise

    x = torch.arange(5 * 6.0).reshape(1, 1, 5, 6).expand(400, 1, 5, 6)
    found = data.Crop((3, 4))(x, Noise(keys(torch.arange(400), 0)))
    assert found.shape == (400, 1, 3, 4)
    corner = found[:, 0, 0, 0]
    assert found.equal((corner[:, None, None] + torch.arange(3)[:, None] * 6 + torch.arange(4))[:, None])
    assert sorted(corner.unique().tolist()) == [float(6 * r + c) for r in range(3) for c in range(3)]
    alone = data.Crop((3, 4))(x[:1], Noise(keys(torch.tensor([77]), 0)))
    assert alone[0].equal(found[77])
    assert data.Crop((5, 6))(x, Noise(keys(torch.arange(400), 0))).equal(x)
    for make in (lambda: data.Crop((0, 4)), lambda: data.Crop((6, 6))(x, Noise(keys(torch.arange(400), 0)))):
        with pytest.raises(UserError):
            make()
    assert permutation(3, 0, 0).shape == (3,)


# ---- a look at them --------------------------------------------------------------------------------------------------


def test_pictures_are_looked_at_before_a_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {
        f"{c}/{i:03d}.png": encoded(np.full((20 + i, 30, 3), 90 * k, np.uint8))
        for k, c in enumerate("ab")
        for i in range(30)
    }
    fill(
        tmp_path / "my pets",
        {**contents, "b/bad.png": b"x", "b/cut.png": encoded(pixels(3, 25, 25))[:200], "b/a.gif": b""},
    )
    assert main(["data", "show", "my pets", "--columns", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    page = json.loads(out.splitlines()[-1])
    assert "Not read of 'my pets': 1 other file (.gif 1)." in err
    held = sum(e.part == "test" for e in listing.read(data.index("my pets")).entries if e.name in contents)
    assert page["classes"] == {"a": 30, "b": 31}  # the damaged one is no row's, and was not decoded
    assert page["counts"]["test"] in (held, held + 1)
    assert (page["smallest"], page["largest"]) == ([20, 30], [49, 30])
    assert page["bad"] == {"b/bad.png": "it is no PNG, JPEG or WebP"}
    with Image.open("my pets.png") as sheet:
        across, down = 64 + 4, 64 + 14 + 4
        assert sheet.size == (4 + 3 * across, 4 + 2 * down)
        assert [sheet.getpixel((4 + 32, 4 + 32 + r * down)) for r in range(2)] == [(0, 0, 0), (90, 90, 90)]
    capsys.readouterr()
    assert main(["data", "show", "my pets", "--columns", "40", "--out", "wide.png"]) == 0
    said = capsys.readouterr().out
    assert "a 30, b 30" in said
    assert "'b/cut.png' (it is damaged" in said
    assert "morphogen train pictures-diffusion --data 'my pets'" in said
    with Image.open("wide.png") as sheet:
        assert sheet.width == 4 + 40 * across
    monkeypatch.chdir(tmp_path / "my pets")
    assert main(["data", "show", "."]) == 2
    assert "among the pictures themselves" in capsys.readouterr().err
    assert not Path("my pets.png").exists()


def test_pictures_without_classes_are_looked_at_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i:03d}.png,a thing,{i}\n" for i in range(5))
    (tmp_path / "t.csv").write_text("file_name,caption,age\n" + rows)
    path = zipped(tmp_path / "p.zip", many(5))
    assert main(["data", "show", str(path), "--table", "t.csv", "--columns", "2"]) == 0
    said = capsys.readouterr().out
    assert "also said captions, age" in said
    assert "--table t.csv" in said
    with Image.open("p.png") as sheet:
        assert sheet.height == 4 + 3 * (64 + 14 + 4)
    for words, answer in (
        ([str(path), "--columns", "0"], "0 columns"),
        (["./nothing"], "There is no folder"),
        (["digits", "--table", "t.csv"], "--table is of pictures"),
        ([str(zipped(tmp_path / "b.zip", {"a.png": b""}))], "'a.png' (it is empty)"),
    ):
        assert main(["data", "show", *words]) == 2
        assert answer in capsys.readouterr().err.splitlines()[-1]


# ---- the recipe ----------------------------------------------------------------------------------------------------

SMALL = ["--size", "8", "--steps", "2", "--width", "8", "--batch", "4", "--device", "cpu"]


def test_one_command_trains_on_a_folder_and_a_change_is_named_on_resume(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = fill(tmp_path / "my pets", {**many(8, "train/cat/"), **many(8, "train/dog/"), **many(4, "test/cat/")})
    command = ["train", "pictures-diffusion", "--data", "my pets", *SMALL, "--run", "run"]
    assert main(command) == 0, capsys.readouterr().err
    capsys.readouterr()
    page = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert page["recipe"]["arguments"]["data"] == "my pets"
    assert main(["sample", "run", "--n", "2", "--label", "dog", "--steps", "2", "--out", "s.png"]) == 0
    assert main(command) == 0  # it is done, and nothing has changed
    capsys.readouterr()
    changed = folder / "train" / "cat" / "003.png"
    changed.write_bytes(encoded(pixels(1234)))
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "another experiment" in err
    assert "train/cat/003.png" in err
    changed.unlink()
    assert main(command) == 2
    assert "train/cat/003.png" in capsys.readouterr().err
    assert main(["train", "pictures-diffusion", *SMALL]) == 2
    assert "--data" in capsys.readouterr().err
