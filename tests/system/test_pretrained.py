"""`morphogen sample --from FOLDER --prompt TEXT`: a language model of others writes, or says in a sentence why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from morphogen.autoregressive.generate import Generated
from morphogen.cli import main
from morphogen.cli.pretrained import Shown
from morphogen.interop import read, write
from morphogen.nets.causal import CausalTransformer
from morphogen.nets.transformer import Design

tokenizers = pytest.importorskip("tokenizers")

WORDS = "the cat sat on the mat and the dog sat on the cat äöü "


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 and a Llama that know nothing, with a tokenizer of 300 tokens; a folder without one."""
    from morphogen.language.subwords import byte_bpe

    tmp = tmp_path_factory.mktemp("pretrained")
    (tmp / "words").mkdir()
    words = byte_bpe([WORDS] * 3, tmp / "words" / "tokenizer.json", size=280)
    end = words.special(words.specials[0])
    torch.manual_seed(0)
    small = {"width": 16, "depth": 1, "heads": 2, "begin": end}
    gpt2 = CausalTransformer(words.size, (24,), **small, tied=True)
    llama = CausalTransformer(
        words.size, (24,), **small, rotary=100.0,
        design=Design(norm="rms", gated=True, activation="silu", bias=False, kv_heads=1),
    )  # fmt: skip
    with torch.no_grad():
        gpt2.embed.weight.mul_(20)
    write(gpt2, tmp / "gpt2", end=end, tokenizer=tmp / "words")
    write(llama, tmp / "llama", end=end, tokenizer=tmp / "words")
    write(llama, tmp / "told", end=end, tokenizer=tmp / "words")  # its tokenizer puts a symbol before every text
    read_by = tokenizers.Tokenizer.from_file(str(tmp / "words" / "tokenizer.json"))
    read_by.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{words.specials[0]} $A", special_tokens=[(words.specials[0], end)]
    )
    read_by.save(str(tmp / "told" / "tokenizer.json"))
    write(gpt2, tmp / "mute", end=end)
    wide = CausalTransformer(  # a table with more rows than words, as is usual, whose last row is the likeliest
        words.size + 40, (24,), **small, tied=True
    )
    with torch.no_grad():
        wide.embed.weight[: words.size] = gpt2.embed.weight
        wide.embed.weight[words.size :] = 50 * torch.randn(40, 16)
    write(wide, tmp / "wide", end=end, tokenizer=tmp / "words")
    write(wide, tmp / "outside", end=words.size + 3, tokenizer=tmp / "words")
    return tmp


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_text_goes_on_from_its_prompt(world: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sample", "--from", str(world / name), "--prompt", "the cat ä", "--length", "9", "--seed", "3"]
    assert main(line) == 0
    live = capsys.readouterr().out
    assert live.startswith("the cat ä")
    assert main([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["texts"] == [live.removesuffix("\n")]  # the same whether it is shown as it comes or at the end
    assert main([*line, "--n", "3", "--out", str(world / "out" / "texts.txt")]) == 0
    texts = (world / "out" / "texts.txt").read_text(encoding="utf-8")
    assert texts.startswith(live.removesuffix("\n"))  # the first of three is the one alone
    assert len(set(texts.split("\n\n"))) == 3


def test_weights_in_eight_bits_are_asked_for(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sample", "--from", str(world / "gpt2"), "--prompt", "the cat", "--n", "2", "--weights", "int8"]
    assert main([*line, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["texts"]) == 2


def test_the_likeliest_text_is_transformers_own(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    texts = {}
    for name in ("gpt2", "llama", "told"):
        line = ["sample", "--from", str(world / name), "--prompt", "the dog", "--length", "8", "--temperature", "0"]
        assert main([*line, "--json"]) == 0
        (text,) = json.loads(capsys.readouterr().out)["texts"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(world / name)
        ids = tokenizer("the dog", return_tensors="pt").input_ids
        end = read(world / name).end
        assert (int(ids[0, 0]) == end) == (name == "told")
        model = transformers.AutoModelForCausalLM.from_pretrained(world / name)
        made = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=end)
        assert tokenizer.decode(made[0], skip_special_tokens=True) == text
        texts[name] = text
    assert texts["llama"] != texts["told"]  # else nothing was shown


@pytest.mark.parametrize("name", ["wide", "outside"])
def test_rows_that_are_no_words_are_never_drawn(world: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sample", "--from", str(world / name), "--prompt", "the cat", "--length", "15", "--n", "8"]
    assert main([*line, "--json"]) == 0
    texts = json.loads(capsys.readouterr().out)["texts"]
    assert all(t.startswith("the cat") for t in texts)
    assert (len(set(texts)) > 4) == (name == "wide")  # the end, which no word says, is likely and stays


class Words:
    """Words of a fixed spelling, each a piece of bytes, which counts how many it was asked to spell."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces, self.spelled = pieces, 0

    def decode(self, ids: list[int], *, specials: bool = False) -> str:
        self.spelled += len(ids)
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")


def test_a_text_is_shown_as_it_comes_in_a_time_that_grows_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    words: Any = Words(
        [b"a", "é".encode()[:1], "é".encode()[1:], *("\U0001f680".encode()[i : i + 1] for i in range(4)), b""]
    )
    ids = [0, 1, 2, 7, 0, 3, 4, 5, 6, 0, 1, 2] * 80
    shown, seen = Shown(words, ids[:3], end=99), ""
    for n in range(4, len(ids) + 1):
        shown.tell(Generated(torch.tensor([ids[:n]]), torch.tensor([n])))
        seen += capsys.readouterr().out
        whole = b"".join(words.pieces[i] for i in ids[:n])
        assert whole.decode("utf-8", "ignore") == seen  # all that is whole, and nothing that is not
    assert words.spelled < 20 * len(ids)
    shown.tell(Generated(torch.tensor([[*ids, 99]]), torch.tensor([len(ids) + 1])))
    shown.end(seen)
    assert capsys.readouterr().out == "\n"


def test_without_a_prompt_a_text_begins(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--from", str(world / "gpt2"), "--length", "99", "--top-k", "5", "--top-p", "0.9"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["sample", "--from", str(world / "gpt2"), "--help"]) == 0
    assert "--min-p" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--from {}/none", "no config.json"),
        ("--from {}/mute --prompt a", "no tokenizer.json"),
        ("{}/run --from {}/gpt2", "exclude each other"),
        ("{}/run --prompt hello", "is no run folder"),
        ("--prompt hello", "RUN is missing"),
        ("--from {}/gpt2 --n 0", "take 1 or more"),
        ("--from {}/gpt2 --out picture.png", "name a FILE.txt"),
        ("--from {}/gpt2 --temperatur 1", "did you mean '--temperature'"),
        ("--from {}/gpt2 --prompt " + "xyzq" * 9, "shorten it"),
        ("--from {}/gpt2 --prompt a --temperature -1", "temperature of -1"),
        ("--from {}/gpt2 --prompt a --length 0", "--length 0 asks for nothing"),
        ("--from {}/gpt2 --prompt a --device cuda:99", "is not on this machine"),
        ("--from {}/gpt2 --prompt a --label cat --columns 3", "--label and --columns would change nothing"),
        ("--from {}/gpt2 --prompt a --weights int4", "int8"),
        ("--from {}/gpt2 --prompt a --ema 0.9", "--ema would change nothing"),
        ("--from {}/gpt2 --prompt a --checkpoint best", "--checkpoint would change nothing"),
        ("--from {}/gpt2 --prompt a --film f.png --solvers heun --weak r", "--weak and --solvers and --film would"),
        ("--from {}/gpt2 --prompt a --with f.py", "--with would change nothing"),
        ("--from {}/gpt2 --prompt a --negative cat", "--negative would change nothing"),
    ],
)
def test_mistakes_are_sentences(world: Path, words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", *words.replace("{}", str(world)).split()]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
