"""Texts as tokens on the disk: nothing wasted, nothing twice, an order that is a function, batches without bias."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphogen.core import Items, Place, Source, Space
from morphogen.data.corpus import ByLength, Corpus, Sequences, Windows
from morphogen.data.documents import Collection, TextFiles, Texts, texts_of
from morphogen.data.source import Shuffled, in_order
from morphogen.data.text import Text
from morphogen.errors import UserError
from morphogen.language import END, Bytes, Characters, Words, learn_words
from morphogen.language.subwords import byte_bpe
from morphogen.spec import build, spec

BYTES = Bytes(specials=(END,))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path if path.suffix else path.with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return folder


def whole(corpus: Corpus) -> bytes:
    return bytes(corpus.row().tokens.astype(np.uint8).tobytes())


# ---- texts ---------------------------------------------------------------------------------------------------------


def test_a_file_is_cut_by_characters_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "".join(chr(0x100 + i % 300) for i in range(997)) + "\nend"
    file = some(tmp_path, a=text) / "a.txt"
    texts = TextFiles(file, held_out=0.1)
    assert isinstance(texts, Texts)
    (train,), (test,) = list(texts.documents("train")), list(texts.documents("test"))
    assert train + test == text
    assert len(train) == int(0.9 * len(text))
    assert list(TextFiles(file, held_out=0).documents("test")) == []


def test_documents_are_lines_files_and_json(tmp_path: Path) -> None:
    folder = some(tmp_path / "d", b="x\n\ny", a__c="z\n")
    (folder / "e.jsonl").write_text('{"text": "one\\ntwo"}\n\n{"text": ""}\n{"text": "three", "n": 1}\n')
    (folder / "no.bin").write_bytes(b"\xff")
    assert list(TextFiles(folder, held_out=0).documents("train")) == ["z\n", "x\n\ny", "one\ntwo", "three"]
    assert list(TextFiles(folder, between="\n", held_out=0).documents("train")) == ["z", "x", "y", "one\ntwo", "three"]
    parts = some(tmp_path / "p", train__a="1", train__b="2", valid__c="3")
    assert list(TextFiles(parts).documents("train")) == ["1", "2"]
    assert list(TextFiles(parts).documents("test")) == ["3"]
    with pytest.raises(UserError, match=r"'README\.txt' beside the folders"):
        TextFiles(some(parts, README="what this is"))


def test_documents_that_come_twice_are_in_one_part(tmp_path: Path) -> None:
    lines = [f"line {i % 300}" for i in range(600)]
    texts = TextFiles(some(tmp_path, a="\n".join(lines)) / "a.txt", between="\n", held_out=0.2)
    train, test = list(texts.documents("train")), list(texts.documents("test"))
    assert sorted(train + test) == sorted(lines)
    assert not set(train) & set(test)
    assert 60 <= len(test) <= 180


def test_texts_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        TextFiles(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text in"):
        TextFiles(tmp_path / "empty")
    (tmp_path / "bad.txt").write_bytes(b"ab\xffc")
    with pytest.raises(UserError, match=r"no text in UTF-8 \(byte 2\)"):
        list(TextFiles(tmp_path / "bad.txt").documents("train"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(UserError, match="Line 2 of"):
        list(TextFiles(tmp_path / "bad.jsonl").documents("train"))
    with pytest.raises(UserError, match="did you mean 'names'"):
        Collection("name")
    with pytest.raises(UserError, match="held_out=1"):
        TextFiles(tmp_path / "bad.txt", held_out=1.0)
    with pytest.raises(UserError, match=r"no text in .*nothing\.txt"):
        TextFiles(some(tmp_path, nothing="") / "nothing.txt")
    one = some(tmp_path, one="x") / "one.txt"  # told when it is made, and not when a run has begun
    for share, part in ((0.1, "train"), (0.99, "train")):
        with pytest.raises(UserError, match=rf"no text in the {part} part of .*one\.txt"):
            TextFiles(one, held_out=share)
    with pytest.raises(UserError, match=r"no text in the test part of .*few\.txt"):
        TextFiles(some(tmp_path, few="a\nb\n") / "few.txt", between="\n", held_out=1e-9)
    with pytest.raises(UserError, match="nothing in the test part"):
        Corpus(TextFiles(one, held_out=0), BYTES, "test").row()
    wordless = TextFiles(some(tmp_path / "q", train__a="a", test__b="?"))
    with pytest.raises(UserError, match="nothing in the test part"):
        Corpus(wordless, Words(learn_words(["a"], tmp_path / "words.txt"), pattern="a"), "test").row()
    whole = gzip.compress(b"a long text, " * 100)
    for i, data in enumerate(
        (whole[:40], b"\x1f\x8b no", whole[:20] + b"\xff" * 30 + whole[50:], whole[:-4] + b"abcd")
    ):
        (tmp_path / f"{i}.TXT.GZ").write_bytes(data)
        with pytest.raises(UserError, match="cut short or damaged"):
            TextFiles(tmp_path / f"{i}.TXT.GZ")


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_endings_may_be_written_in_any_case(spell: Any, tmp_path: Path) -> None:
    lines = b'{"text": "one"}\n{"text": "two"}\n'
    for name, content in ((".jsonl", lines), (".jsonl.gz", gzip.compress(lines)), (".txt.gz", gzip.compress(b"three"))):
        (tmp_path / f"a{spell(name)}").write_bytes(content)
    assert sorted(TextFiles(tmp_path, held_out=0).documents("train")) == ["one", "one", "three", "two", "two"]
    (tmp_path / "x.jsonl.txt").write_bytes(lines)
    assert list(TextFiles(tmp_path / "x.jsonl.txt", held_out=0).documents("train")) == [lines.decode()]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_line_ends_and_marks_are_no_letters_unless_every_byte_counts(pack: Any, tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbfone\r\ntwo\rthree\n\xef\xbb\xbf\xc3\xa9"
    name = "a.txt" if pack is bytes else "a.txt.gz"
    (tmp_path / name).write_bytes(pack(raw))
    assert list(TextFiles(tmp_path / name, held_out=0).documents("train")) == ["one\ntwo\nthree\n\ufeffé"]
    assert list(TextFiles(tmp_path / name, between="\n", held_out=0).documents("train"))[:2] == ["one", "two"]
    exact = TextFiles(tmp_path / name, held_out=0, exact=True)
    assert whole(Corpus(exact, BYTES)) == raw
    assert exact.sha256 != TextFiles(tmp_path / name, held_out=0).sha256
    assert build(spec(exact)).exact
    line = '{"text": "a\\r\\nb"}\r\n'.encode("utf-8-sig")
    (tmp_path / "b.jsonl").write_bytes(line)
    assert list(TextFiles(tmp_path / "b.jsonl", held_out=0).documents("train")) == ["a\nb"]
    (tmp_path / "b.jsonl").write_bytes(line[3:])
    assert list(TextFiles(tmp_path / "b.jsonl", held_out=0, exact=True).documents("train")) == ["a\r\nb"]


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = some(tmp_path, a="hello there " * 20) / "a.txt"
    os.utime(file, (1e9, 1e9))
    digest, calls = hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: calls.append(1) or digest(*a))
    texts = TextFiles(file)
    for _ in range(2):
        for part in ("train", "test"):
            Corpus(build(spec(texts)), BYTES, part).row()
    assert len(calls) == 1
    file.write_text("other there " * 20)  # of the same size, and of now: it is looked at each time
    with pytest.raises(UserError, match="have changed since"):
        list(texts.documents("train"))
    file.write_text("again there " * 20)
    assert TextFiles(file).sha256 != texts.sha256


def test_a_changed_file_is_another_experiment(tmp_path: Path) -> None:
    file = some(tmp_path, a="hello") / "a.txt"
    corpus = Corpus(TextFiles(file, held_out=0), BYTES)
    graph = spec(corpus)
    assert len(build(graph).row().tokens) == 5
    file.write_text("other")
    assert spec(Corpus(TextFiles(file, held_out=0), BYTES)) != graph
    with pytest.raises(UserError, match="have changed since"):
        list(build(graph).texts.documents("train"))


def test_names_come_with_the_package() -> None:
    texts = texts_of("names")
    train, test = list(texts.documents("train")), list(texts.documents("test"))
    assert len(train) + len(test) == 32_033
    assert 2900 < len(test) < 3500
    assert set("".join(train)) == set("abcdefghijklmnopqrstuvwxyz")
    assert not set(train) & set(test)


def test_shakespeare_is_cut_as_everybody_cuts_it(data_root: Path) -> None:
    texts = Collection("tinyshakespeare", root=data_root)
    (train,), (test,) = texts.documents("train"), texts.documents("test")
    assert (len(train), len(test)) == (1_003_854, 111_540)
    assert len(set(train)) == 65


# ---- tokens on the disk --------------------------------------------------------------------------------------------


def test_the_row_is_the_tokens_of_all_documents(tmp_path: Path) -> None:
    texts = TextFiles(some(tmp_path, a="one\ntwo\nthree") / "a.txt", between="\n", held_out=0)
    for end in (None, END):
        corpus = Corpus(texts, BYTES, end=end)
        row, sizes = corpus.row(), [len(d) + (end is not None) for d in ("one", "two", "three")]
        assert row.starts.tolist() == [0, *np.cumsum(sizes).tolist()]
        assert row.tokens.dtype == np.uint16
        wanted = [i for d in ("one", "two", "three") for i in [*d.encode(), *([256] if end else [])]]
        assert row.tokens.tolist() == wanted


def test_the_cache_is_named_by_all_that_decides_it_and_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = some(tmp_path, a="abcabc" * 50) / "a.txt"
    texts = TextFiles(file)
    corpora = [
        Corpus(texts, BYTES), Corpus(texts, BYTES, "test"), Corpus(texts, BYTES, end=END), Corpus(texts, Bytes()),
        Corpus(texts, Characters("abc")), Corpus(texts, Characters("cba")),
        Corpus(TextFiles(file, held_out=0.2), BYTES),
        Corpus(texts, byte_bpe(["abc"], tmp_path / "t.json", size=260)),
    ]  # fmt: skip
    assert len({c.folder() for c in corpora}) == len(corpora)
    folder, before = corpora[0].folder(), whole(corpora[0])
    encode, calls = Bytes.encode, []
    monkeypatch.setattr(Bytes, "encode", lambda self, text: calls.append(1) or encode(self, text))
    assert whole(Corpus(texts, BYTES)) == before
    assert not calls  # it was there
    for harm in ("tokens.bin", "starts.npy"):
        (folder / harm).write_bytes((folder / harm).read_bytes()[:-3])
        assert whole(Corpus(texts, BYTES)) == before
        assert len(calls) == 1
        calls.clear()

    def dies(self: Bytes, text: str) -> Any:
        raise KeyboardInterrupt

    (folder / "starts.npy").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Bytes, "encode", dies)
        with pytest.raises(KeyboardInterrupt):
            Corpus(texts, BYTES).row()
        assert not (folder / "tokens.bin").exists()
    assert whole(Corpus(texts, BYTES)) == before


# ---- windows and sequences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "length"), [(1, 1), (1, 5), (5, 5), (6, 5), (17, 5), (20, 5), (3, 1)])
def test_windows_waste_nothing(n: int, length: int, tmp_path: Path) -> None:
    text = bytes(range(65, 65 + n)).decode()
    corpus = Corpus(TextFiles(some(tmp_path, a=text) / "a.txt", held_out=0), BYTES)
    items = Windows(corpus, length)
    assert isinstance(items, Items)
    taken = items.take(torch.arange(len(items)))
    assert taken["x"].dtype == torch.int64
    lengths = taken.get("lengths", torch.full((len(items),), length))
    found = [row[:k].tolist() for row, k in zip(taken["x"], lengths.tolist(), strict=True)]
    assert [i for row in found for i in row] == list(text.encode())
    assert all(len(row) == length for row in found[:-1])
    beyond = torch.arange(length) >= lengths[:, None]
    assert not taken["x"][beyond].any()


def test_every_window_there_is(tmp_path: Path) -> None:
    corpus = Corpus(TextFiles(some(tmp_path, a="abcdefg") / "a.txt", held_out=0), BYTES)
    items = Windows(corpus, 3, stride=1)
    assert [bytes(r).decode() for r in items.take(torch.arange(5))["x"].tolist()] == ["abc", "bcd", "cde", "def", "efg"]
    assert len(items) == 5
    assert "lengths" not in items.take(torch.tensor([0]))
    ended = Corpus(TextFiles(tmp_path / "a.txt", held_out=0), BYTES, end=END)
    assert Windows(ended, 3, stride=1).take(torch.arange(2))["lengths"].tolist() == [3, 3]  # past an end too
    short = Windows(corpus, 9, stride=1)
    assert short.take(torch.zeros(1, dtype=torch.long))["lengths"].tolist() == [7]
    half = Windows(corpus, 4, stride=2)
    assert [len(half), half.take(torch.tensor([2]))["lengths"].item()] == [3, 3]
    for wrong in ({"length": 0}, {"length": 3, "stride": 4}, {"length": 3, "stride": 0}):
        with pytest.raises(UserError, match="Windows have"):
            Windows(corpus, **wrong)


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    corpus = Corpus(TextFiles(some(tmp_path, a="abcdefghijklm") / "a.txt", held_out=0), BYTES)

    def stream(seed: int, skip: int = 0) -> list[list[list[int]]]:
        source = Shuffled(Windows(corpus, 3, stride=1), 4)
        source.start(Place(seed=seed))
        if skip:
            source.restore({"position": 4 * skip})
        return [source.next()["x"].tolist() for _ in range(6 - skip)]

    assert stream(0) == stream(0)
    assert stream(0)[4:] == stream(0, skip=4)
    assert stream(0) != stream(1)
    first = [bytes(r).decode() for batch in stream(0)[:3] for r in batch][:11]
    assert len(set(first)) == 11  # an epoch has every window once


def named(tmp_path: Path, lengths: list[int]) -> Corpus:
    lines = "\n".join("abcdefgh"[i % 8] * n for i, n in enumerate(lengths))
    return Corpus(TextFiles(some(tmp_path, lines=lines) / "lines.txt", between="\n", held_out=0), BYTES, end=END)


def test_sequences_are_documents_with_lengths(tmp_path: Path) -> None:
    corpus = named(tmp_path, [1, 5, 2, 9])
    items = Sequences(corpus, 6)
    taken = items.take(torch.tensor([3, 0]))
    assert taken["lengths"].tolist() == [6, 2]  # the end counts, and the longest is cut
    assert taken["x"].tolist() == [[100] * 6, [97, 256, 0, 0, 0, 0]]
    among = Sequences(corpus, 6, above=2, upto=5)
    assert among.lengths().tolist() == [3]
    assert among.take(torch.tensor([0]))["x"].shape == (1, 5)
    with pytest.raises(UserError, match="no document of a length"):
        Sequences(corpus, 6, above=4, upto=3)
    batches = list(in_order(items, 3, seed=0))
    assert [b["lengths"].tolist() for b in batches] == [[2, 6, 3], [6]]


def epochs(source: Any, steps: int) -> Iterator[dict[str, Any]]:
    source.start(Place(seed=3))
    for _ in range(steps):
        yield source.next()


def test_buckets_pad_little_and_weigh_every_token_alike(tmp_path: Path) -> None:
    """Under the mean over a batch's tokens, a token's weight is 1 / its batch's tokens: over many epochs the weights of
    short and of long documents must agree; in batches of as many documents they would not.
    """
    rng = np.random.default_rng(0)
    corpus = named(tmp_path, [int(n) for n in rng.integers(1, 60, 1500)])
    source = ByLength(corpus, 64, tokens=512)
    assert isinstance(source, Source)
    assert spec(build(spec(source))) == spec(source)
    steps = sum(-(-len(s.items) // s.batch) for s in source.buckets.sources)
    weight, tokens, seen, padded = Counter[int](), Counter[int](), 0, 0
    for batch in epochs(source, 8 * steps):
        lengths = batch["lengths"]
        total = int(lengths.sum())
        seen, padded = seen + total, padded + batch["x"].numel()
        for n in lengths.tolist():
            weight[n] += n / total
            tokens[n] += n
    assert seen / padded > 0.75
    per = {side: sum(weight[n] for n in side) / sum(tokens[n] for n in side) for side in (range(2, 20), range(40, 62))}
    short, long = per.values()
    assert abs(short / long - 1) < 0.05
    with pytest.raises(UserError, match="No document has a length"):
        ByLength(corpus, 64, tokens=512, edges=(1,)).start(Place())


# ---- the space -----------------------------------------------------------------------------------------------------


def test_texts_are_shown_saved_and_cut_at_their_end(tmp_path: Path) -> None:
    space = Text(BYTES, 8, end=END)
    assert isinstance(space, Space)
    assert spec(build(spec(space))) == spec(space)
    x = torch.tensor([[104, 105, 256, 120, 0, 0, 0, 0], [256] + [65] * 7, list(b"\xc3\xa9 ok\n\t!")])
    assert space.decode(x) == ["hi", "", "é ok\n\t!"]
    assert space.encode("hi").tolist() == [104, 105]
    paths = space.save(x, tmp_path / "out")
    assert [p.read_text(encoding="utf-8") for p in paths] == ["hi", "", "é ok\n\t!"]
    picture = space.show(x)
    assert np.asarray(picture).min() < 100  # ink
    assert space.show(x, 1).size[1] > picture.size[1]
    with pytest.raises(UserError, match="9 tokens"):
        space.encode("123456789")
    with pytest.raises(UserError, match="a string"):
        space.encode(3)
    with pytest.raises(UserError, match="no text to show"):
        space.show(x[:0])
    assert space.cond(2) == {}
    assert json.dumps(spec(space))
