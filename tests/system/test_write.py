"""Text from the command line: trained on a file of one's own, gone on from a prompt, measured; music as MIDI."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
import torch

from morphogen.cli import main
from morphogen.data.corpus import Corpus, Sequences, Windows
from morphogen.data.documents import TextFiles
from morphogen.data.text import Text
from morphogen.errors import UserError
from morphogen.language.subwords import byte_bpe
from morphogen.language.tokens import END, Bytes, Characters, Vocabulary, alphabet_of
from morphogen.metrics.language import ratio, sequences


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of names-gpt on a file of one's own."""
    folder = tmp_path_factory.mktemp("write")
    file = folder / "own.txt"
    file.write_text("\n".join(f"{a}{b}{c}" for a in "bdklmnr" for b in "aeiou" for c in "nstxy"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(folder / "cache"))
        run = folder / "run"
        small = ["--steps", "60", "--width", "32", "--depth", "1", "--longest", "6", "--batch", "32", "--lr", "0.01"]
        assert call("train", "names-gpt", "--data", str(file), "--run", str(run), "--device", "cpu", *small) == 0
        yield run


def call(*words: str) -> int:
    try:
        return int(main(list(words)) or 0)
    except SystemExit as end:
        return int(end.code or 0)


def test_texts_go_on_from_a_prompt(names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call("sample", str(names), "--prompt", "ba", "--n", "5", "--temperature", "0.8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ba") and len(line) <= 6 for line in lines[:5])
    assert "5 texts" in lines[-1]
    assert (names / "drawn-0.txt").read_text(encoding="utf-8").split("\n\n")[0] == lines[0]
    assert call("sample", str(names), "--n", "3", "--out", str(names / "each"), "--json") == 0
    texts = json.loads(capsys.readouterr().out.splitlines()[-1])["texts"]
    assert [(names / "each" / f"{i:05d}.txt").read_text(encoding="utf-8") for i in range(3)] == texts
    assert call("sample", str(names), "--n", "4", "--out", str(names / "p.png")) == 0
    assert call("sample", str(names), "--prompt", "da", "--length", "1", "--json") == 0
    (text,) = json.loads(capsys.readouterr().out.splitlines()[-1])["texts"]
    assert len(text) <= 3
    assert text.startswith("da")
    assert (names / "p.png").stat().st_size > 100


def test_a_sample_does_not_depend_on_how_many_there_are(names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []
    for n in (2, 7):
        capsys.readouterr()
        assert call("sample", str(names), "--prompt", "k", "--n", str(n), "--seed", "5", "--json") == 0
        drawn.append(json.loads(capsys.readouterr().out.splitlines()[-1])["texts"])
    assert drawn[1][:2] == drawn[0]


def test_prompts_that_cannot_be_gone_on_from(names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt, said in (("bananas", "7 tokens"), ("banana", "give a shorter one"), ("Ä", "no 'Ä'")):
        assert call("sample", str(names), "--prompt", prompt) == 2
        assert said in capsys.readouterr().err


def test_a_run_of_text_is_measured_by_its_probability(names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call("evaluate", str(names), "--json") == 0
    page = json.loads((names / "evaluation.json").read_text(encoding="utf-8"))
    found = {k: m["value"] for k, m in page["measures"].items()}
    assert found["nats/token"] == pytest.approx(page["heldout"]["loss"], rel=1e-5)  # a mean over all tokens, both
    assert found["perplexity"] == pytest.approx(math.exp(found["nats/token"]))
    assert found["nats/character"] == pytest.approx(found["nats/token"] * 4 / 3)  # three letters and an end
    assert found["nats/token"] < 1.5  # of 17 letters and an end 2.9


class Uniform(torch.nn.Module):
    """Every token is as likely as any other."""

    def lengths(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x),), x.shape[1])

    def log_prob(self, x: torch.Tensor, cond: object = None, lengths: torch.Tensor | None = None) -> torch.Tensor:
        return -math.log(257) * (self.lengths(x) if lengths is None else lengths)


def test_the_perplexity_of_a_uniform_law_is_the_size_of_its_alphabet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("é" * 10 + "abc\n" + "x" * 7, encoding="utf-8")
    tokens = Bytes(specials=(END,))
    corpus = Corpus(TextFiles(tmp_path / "a.txt", held_out=0), tokens)
    for items in (Windows(corpus, 6), Windows(corpus, 100)):  # the last is shorter, or the only one
        found = sequences(Uniform(), items, Text(tokens, 100))
        assert found["perplexity"].value == pytest.approx(257)
    nats = 31 * math.log(257)
    assert found["nats/character"].value == pytest.approx(nats / 21)
    lines = Corpus(TextFiles(tmp_path / "a.txt", between="\n", held_out=0), tokens, end=END)
    found = sequences(Uniform(), Sequences(lines, 40), Text(tokens, 40, end=END), chunk=1)
    assert found["bits/character"].value == pytest.approx(32 * math.log2(257) / 20)
    with pytest.raises(UserError, match="no law of sequences"):
        sequences(torch.nn.Linear(1, 1), Windows(corpus, 6))


@pytest.mark.parametrize("kind", ["bytes", "subwords", "characters"])
def test_characters_are_counted_wherever_windows_are_cut(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nats a character are those of all tokens over all characters, whatever the window, with ends or without."""
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    lines = ["文字は三バイトです", "é", "plain", "\U0001f680 🚀", "ひらがな"] * 3
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    texts = TextFiles(tmp_path / "a.txt", between="\n", held_out=0)
    tokens: Vocabulary = Bytes(specials=(END,))
    if kind == "characters":
        tokens = Characters(alphabet_of(lines), specials=(END,))
    if kind == "subwords":
        pytest.importorskip("tokenizers")
        tokens = byte_bpe(lines, tmp_path / "tokenizer.json", size=270)
    for end in (None, END):
        corpus = Corpus(texts, tokens, end=end)
        true = len(corpus.row().tokens) * math.log(257) / sum(map(len, texts.documents("train")))
        for length in (1, 2, 3, 5, 8, 64):
            found = sequences(Uniform(), Windows(corpus, length), Text(tokens, length, end=end))
            assert found["nats/character"].value == pytest.approx(true)


def test_a_ratio_has_the_interval_of_a_ratio() -> None:
    torch.manual_seed(0)
    inside = 0
    for _ in range(400):
        n = torch.randint(1, 9, (60,)).double()
        cost = n * 2 + n.sqrt() * torch.randn(60, dtype=torch.float64)
        found = ratio(cost, n, "")
        inside += found.low < 2 < found.high
    assert 0.92 < inside / 400 < 0.98
    constant = ratio(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0]), "")
    assert (constant.low, constant.value, constant.high) == (2, 2, 2)


def test_chorales_are_written_as_midi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mido")
    from morphogen.data.midi import read_midi

    if "MORPHOGEN_DATA" not in os.environ:
        pytest.skip("the chorales are files, and MORPHOGEN_DATA names no folder of them")
    run, small = str(tmp_path / "run"), ["--width", "8", "--depth", "1", "--longest", "60", "--tokens", "120"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
        assert call("train", "chorales-lstm", "--steps", "2", "--run", run, "--device", "cpu", *small) == 0
        assert call("sample", run, "--n", "2", "--prompt", "48 60 64\n", "--out", str(tmp_path / "out")) == 0
        assert read_midi(tmp_path / "out" / "00001.mid")[0] == (48, 60, 64)
        assert call("evaluate", run, "--likelihood", "4") == 0
    assert "nats/frame" in json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))["measures"]


def test_word_vectors_are_mapped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.txt").write_text("The cat sat on the mat, and the dog's log. " * 60, encoding="utf-8")
    run, small = str(tmp_path / "run"), ["--epochs", "1", "--width", "4", "--least", "1", "--batch", "1"]
    words = ["word-vectors", "--data", str(tmp_path / "own.txt"), "--run", run, "--device", "cpu", *small]
    assert call("train", *words) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["parameters"] == 2 * 9 * 4
    told = capsys.readouterr()
    assert "Word2Vec (72 parameters)" in told.err + told.out
    told = told.out
    assert f"morphogen map {run}" in told
    assert "morphogen evaluate" not in told
    assert call("evaluate", run) == 2
    assert f"`morphogen map {run}` draws them" in capsys.readouterr().err
    assert call("map", run, "--n", "-1") == 0
    assert "8 words in 4 dimensions" in capsys.readouterr().out  # of the text, and no <unk>
    assert (tmp_path / "run" / "map.png").stat().st_size > 500
    assert call("map", run, "--n", "1") == 2
    assert "--n 300" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "name", "content", "says"),
    [
        ("names-gpt", "a.txt", b"", "There is no text in"),
        ("shakespeare-gpt", "a.txt", b"x", "There is no text in the train part"),
        ("names-gpt", "a.txt", b"x\n", "There is no text in the train part"),
        ("word-vectors", "a.txt", b"so few words", "--least 1"),
        ("chorales-lstm", "a.mid", b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0", "There is no note in"),
    ],
)
def test_too_little_is_told_before_a_run_is_begun(
    recipe: str, name: str, content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.endswith("mid"):
        pytest.importorskip("mido")
    (tmp_path / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
        assert call("train", recipe, "--data", str(tmp_path / name), "--run", str(tmp_path / "run")) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_guidance_that_has_nothing_to_pull_to_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
        small = ["--steps", "1", "--width", "8", "--depth", "1", "--batch", "2", "--device", "cpu"]
        assert call("train", "names-gpt", "--run", run, *small) == 0
        assert call("sample", run, "--n", "1", "--guidance", "2") == 2
    assert "--label" in capsys.readouterr().err
