"""Pairs of pictures: edges by the definition, halves without a common item, partners by name, emoji, edge F1."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from morphogen.core import Place
from morphogen.data.album import Album
from morphogen.data.digits import Digits
from morphogen.data.edges import drawn_edges, edges, thick_grey, thick_negative
from morphogen.data.emoji import CATEGORIES, Emoji
from morphogen.data.items import Tensors
from morphogen.data.listing import index
from morphogen.data.paired import Derived, Every, Matched, Together, Unpaired
from morphogen.data.source import Shuffled
from morphogen.errors import UserError
from morphogen.metrics.translation import edge_f1, evaluate_translations, is_paired

# ---- edges ---------------------------------------------------------------------------------------------------------


def by_definition(grey: list[list[float]], level: float) -> list[list[bool]]:
    """Edges of one picture, a pixel at a time."""
    h, w = len(grey), len(grey[0])

    def at(i: int, j: int) -> float:
        return grey[min(max(i, 0), h - 1)][min(max(j, 0), w - 1)]

    def gradient(i: int, j: int) -> tuple[float, float]:
        across = sum(k * (at(i + d, j + 1) - at(i + d, j - 1)) for d, k in ((-1, 1), (0, 2), (1, 1)))
        down = sum(k * (at(i + 1, j + d) - at(i - 1, j + d)) for d, k in ((-1, 1), (0, 2), (1, 1)))
        return across / 8, down / 8

    def steep(i: int, j: int) -> float:
        return math.hypot(*gradient(i, j)) if 0 <= i < h and 0 <= j < w else 0.0

    found = []
    for i in range(h):
        row = []
        for j in range(w):
            across, down = gradient(i, j)
            k = round(math.atan2(down, across) / (math.pi / 4)) % 4
            di, dj = ((0, 1), (1, 1), (1, 0), (1, -1))[k]
            here = steep(i, j)
            row.append(here >= level and here >= steep(i + di, j + dj) and here > steep(i - di, j - dj))
        found.append(row)
    return found


@pytest.mark.parametrize("shape", [(7, 9), (1, 5), (12, 3)])
def test_edges_are_their_definition(shape: tuple[int, int]) -> None:
    x = torch.rand(6, 2, *shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1
    found = edges(x)
    for picture, mine in zip(x.double().mean(1), found, strict=True):
        theirs = torch.tensor(by_definition(picture.tolist(), 0.25))
        assert int((theirs != mine).sum()) == 0
    assert found.any()


def test_edges_of_what_is_known() -> None:
    x = torch.full((4, 1, 8, 8), -1.0)
    x[1, :, :, 4:] = 1  # a step: of two columns alike, the first
    x[2, :, 3:, :] = -0.6  # a step of a fifth of the whole: below the level
    x[3] = 0.3
    found = edges(x)
    assert found.sum((1, 2)).tolist() == [0, 8, 0, 0]
    assert bool(found[1, :, 3].all())
    assert torch.equal(edges(-x)[1], found[1])  # the sign does not matter
    drawn = drawn_edges(x)
    assert drawn.shape == (4, 1, 8, 8)
    assert drawn.unique().tolist() == [-1.0, 1.0]
    assert edges(x[:0]).shape == (0, 8, 8)


def test_thick_negatives() -> None:
    x = torch.full((1, 1, 5, 5), -1.0)
    x[0, 0, 2, 2] = 0.5
    y = thick_negative(x)
    assert torch.equal(thick_grey(x), -y / 2)
    assert y[0, 0, 1:4, 1:4].unique().tolist() == [-0.5]
    assert int((y == 1).sum()) == 25 - 9


# ---- edge F1 -------------------------------------------------------------------------------------------------------


def maps(*pixels: tuple[int, int]) -> Tensor:
    out = torch.zeros(1, 8, 8, dtype=torch.bool)
    for i, j in pixels:
        out[0, i, j] = True
    return out


def test_edge_f1_by_hand() -> None:
    line, far = maps(*((i, 2) for i in range(8))), maps(*((i, 6) for i in range(8)))
    assert float(edge_f1(line, line)) == 1
    assert float(edge_f1(line, far)) == 0
    assert float(edge_f1(line, line.roll(1, 2))) == 1  # within a pixel
    assert float(edge_f1(line, line.roll(2, 2))) == 0
    assert float(edge_f1(line, line.roll(2, 2), within=2)) == 1
    assert float(edge_f1(line, line.roll(1, 2), within=0)) == 0
    assert float(edge_f1(maps(), maps())) == 1
    assert float(edge_f1(maps(), line)) == float(edge_f1(line, maps())) == 0
    # one of two found is near; one of three true is near: P = 1/2, R = 1/3, F = 2/5
    assert float(edge_f1(maps((0, 0), (4, 4)), maps((0, 1), (7, 0), (7, 7)))) == pytest.approx(0.4)


def test_translations_are_measured() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(40, 1, 8, 8, generator=g) * 2 - 1
    same = evaluate_translations(truth, truth, edges=edges)
    assert (same["l1"].value, same["edge F1"].value) == (0.0, 1.0)
    off = evaluate_translations(truth + 0.25, truth, edges=edges)
    assert off["l1"].value == pytest.approx(0.25, rel=1e-5)
    label = torch.arange(40) % 4

    class Reads:
        """Reads the class off the first pixel."""

        def predict(self, x: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(x[:, 0, 0, 0].round().long().clamp(0, 3), 4).float()

        def features(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3]

    marked = truth.clone()
    marked[:, 0, 0, 0] = label
    found = evaluate_translations(marked, marked, edges=edges, judge=Reads(), label=label, seen=marked + 1)
    assert [found[k].value for k in ("judge", "kept", "shuffled")] == [1.0, 1.0, 0.0]
    assert found["frechet"].value == pytest.approx(0, abs=1e-8)
    assert found["floor"].value == pytest.approx(3, rel=1e-4)
    alone = evaluate_translations(marked, truth, edges=edges, paired=False, judge=Reads(), label=label)
    assert set(alone) == {"kept", "shuffled", "frechet"}


# ---- pairs ---------------------------------------------------------------------------------------------------------


def test_a_change_makes_pairs_both_ways() -> None:
    some = torch.tensor([0, 5, 9])
    plain, there, back = (
        Digits("test"),
        Derived(Digits("test"), thick_negative),
        Derived(Digits("test"), thick_negative, reverse=True),
    )
    x = plain.take(some)
    a, b = there.take(some), back.take(some)
    assert torch.equal(a["x"], x["x"])
    assert torch.equal(a["cond"]["source"], thick_negative(x["x"]))
    assert torch.equal(b["x"], a["cond"]["source"])
    assert torch.equal(b["cond"]["source"], x["x"])
    assert torch.equal(a["cond"]["label"], x["cond"]["label"])
    assert (len(there), is_paired(there)) == (360, True)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_halves_share_nothing_and_leave_nothing_out(n: int) -> None:
    items = Tensors(torch.arange(float(n))[:, None])
    halves = [Every(items, 2, k) for k in range(2)]
    taken = [h.take(torch.arange(len(h)))["x"][:, 0].tolist() for h in halves]
    assert sorted(taken[0] + taken[1]) == list(range(n))
    with pytest.raises(UserError):
        Every(items, 2, 2)


def test_unpaired_kinds_have_orders_of_their_own_and_resume() -> None:
    kinds = [Shuffled(Tensors(torch.arange(float(50))[:, None] + 100 * k), 7) for k in range(2)]
    stream = Unpaired(*kinds)
    stream.start(Place(seed=3))
    batches = [stream.next() for _ in range(20)]
    met = {(float(a), float(b)) for batch in batches for a, b in zip(batch["cond"]["source"], batch["x"], strict=True)}
    assert len(met) > 100  # no fixed partners, although both have as many items
    assert all(0 <= a < 50 and 100 <= b < 150 for a, b in met)
    state = stream.state()
    following = stream.next()
    again = Unpaired(*(Shuffled(k.items, 7) for k in kinds))
    again.start(Place(seed=3))
    again.restore(state)
    resumed = again.next()
    assert torch.equal(resumed["x"], following["x"])
    assert torch.equal(resumed["cond"]["source"], following["cond"]["source"])
    with pytest.raises(UserError, match="of 7 and of 8"):
        Unpaired(kinds[0], Shuffled(kinds[1].items, 8))


def test_the_shorter_kind_says_how_many_there_are() -> None:
    both = Together(Tensors(torch.zeros(3, 1)), Tensors(torch.ones(5, 1)))
    assert (len(both), is_paired(both)) == (3, False)
    batch = both.take(torch.tensor([2, 0]))
    assert (batch["x"].tolist(), batch["cond"]["source"].tolist()) == ([[1.0], [1.0]], [[0.0], [0.0]])


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a, pictures of 40 brightnesses; b, the same under the same names, one brighter, as JPEG and PNG; c, fewer."""
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    for name in "abc":
        (tmp_path / name).mkdir()
    for i in range(40):
        Image.new("L", (9, 8), 5 * i).save(tmp_path / "a" / f"p{i}.png")
        Image.new("L", (9, 8), 5 * i + 1).save(tmp_path / "b" / f"p{i}.{'webp' if i % 2 else 'png'}", lossless=True)
    Image.new("L", (9, 8), 7).save(tmp_path / "c" / "other.png")
    return tmp_path


def albums(folder: Path, size: int = 8) -> list[Album]:
    listed = index(folder)
    return [Album(folder, listed, part, size=(size, size), colour=False) for part in ("train", "test")]


def test_partners_are_found_by_name_whatever_their_ending_and_part(folders: Path) -> None:
    sources, targets = albums(folders / "a"), albums(folders / "b")
    total = 0
    for target in targets:
        items = Matched(sources, target)
        assert len(items) == len(target)
        if len(items):
            batch = items.take(torch.arange(len(items)).flip(0))
            a, b = (((t[:, 0, 0, 0] + 1) * 127.5).round() for t in (batch["cond"]["source"], batch["x"]))
            assert torch.equal(a + 1, b)
            total += len(items)
    assert total == 40


@pytest.mark.parametrize("name", ["p7", "p39"])
def test_a_pair_of_which_one_is_bad_is_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for i in range(120):
            Image.new("L", (8, 8), 2 * i + (folder == "b")).save(tmp_path / folder / f"p{i}.png")
    whole = sum(len(Matched(albums(tmp_path / "a"), target)) for target in albums(tmp_path / "b"))
    assert whole == 120
    for folder in "ab":
        (tmp_path / folder / f"{name}.png").write_bytes(b"broken")
        capsys.readouterr()
        total = 0
        for target in albums(tmp_path / "b"):
            items = Matched(albums(tmp_path / "a"), target)
            batch = items.take(torch.arange(len(items)))
            a, b = (((t[:, 0, 0, 0] + 1) * 127.5).round() for t in (batch["cond"]["source"], batch["x"]))
            assert torch.equal(a + 1, b)
            total += len(items)
        assert total == 119
        Image.new("L", (8, 8), 2 * int(name[1:])).save(tmp_path / folder / f"{name}.png")  # for b, a is whole again
        said = f"Pairs left out, as their sources are bad: 1 ('{name}')." in capsys.readouterr().err
        assert said == (folder == "a")


def test_who_has_no_partner_is_named(folders: Path) -> None:
    with pytest.raises(UserError, match=r"'other' in .* has no partner"):
        len(Matched(albums(folders / "a"), albums(folders / "c")[0]))
    with pytest.raises(UserError, match="one size"):
        len(Matched(albums(folders / "a", 4), albums(folders / "b")[0]))
    shutil.copy(folders / "a" / "p1.png", folders / "a" / "p2.jpg")
    Image.new("L", (9, 8), 7).save(folders / "a" / "p2.jpg")
    with pytest.raises(UserError, match="called 'p2'"):
        len(Matched(albums(folders / "a"), albums(folders / "b")[0]))


# ---- emoji ---------------------------------------------------------------------------------------------------------


def test_the_emoji_are_split_by_item(data_root: Path) -> None:
    parts = {p: Emoji(p, root=data_root / "emoji") for p in ("train", "valid", "test")}
    assert {p: len(e) for p, e in parts.items()} == {"train": 1011, "valid": 126, "test": 126}
    batch = parts["test"].take(torch.arange(126))
    assert batch["x"].shape == batch["cond"]["source"].shape == (126, 3, 64, 64)
    assert batch["x"].min() == -1
    assert batch["cond"]["source"].max() == 1
    assert float((batch["x"][:, :, 0, 0] == 1).float().mean()) > 0.9  # corners are paper
    assert int(batch["cond"]["label"].max()) < len(CATEGORIES)
    other = Emoji("test", style="google", root=data_root / "emoji").take(torch.arange(126))
    assert torch.equal(other["x"], batch["cond"]["source"])
    assert torch.equal(other["cond"]["source"], batch["x"])
    seen = {p.numpy().tobytes() for p in parts["train"].all(torch.device("cpu"))["x"]}
    shared = sum(p.numpy().tobytes() in seen for p in parts["test"].all(torch.device("cpu"))["x"])
    assert shared <= 2  # a few emoji look alike to the bit
    small = Emoji("test", size=16, root=data_root / "emoji").take(torch.arange(126))["x"]
    mean = torch.nn.functional.avg_pool2d(batch["x"], 4)
    assert float((small - mean).abs().max()) <= 1 / 127.5


def test_emoji_that_are_damaged_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not found"):
        len(Emoji(root=tmp_path))
    for style in ("google", "twitter"):
        Image.new("RGBA", (128, 128), (9, 9, 9, 0)).save(tmp_path / f"sheet_{style}_64.png")
    entry = {"unified": "1F600", "category": "People", "has_img_google": True, "has_img_twitter": True}
    table = [entry | {"unified": f"{i}", "sheet_x": i // 2, "sheet_y": i % 2} for i in range(4)]
    (tmp_path / "emoji.json").write_text(json.dumps(table))
    assert bool((Emoji(root=tmp_path).take(torch.tensor([0, 3]))["x"] == 1).all())  # nothing is laid on white
    for page in ("{", "[]", "[{}]", json.dumps([table[0] | {"category": "Weapons"}])):
        (tmp_path / "emoji.json").write_text(page)
        with pytest.raises(UserError, match="not the table"):
            len(Emoji(root=tmp_path))
    (tmp_path / "emoji.json").write_text(json.dumps([table[0] | {"sheet_x": 2}]))
    with pytest.raises(UserError, match="too small"):
        len(Emoji(root=tmp_path))
    (tmp_path / "sheet_google_64.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="damaged"):
        len(Emoji(root=tmp_path))
    for wrong in ({"part": "trian"}, {"style": "apple"}, {"size": 48}):
        with pytest.raises(UserError):
            Emoji(**wrong)  # type: ignore[arg-type]
