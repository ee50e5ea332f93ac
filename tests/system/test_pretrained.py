"""`morphogen sample --from FOLDER --prompt TEXT`: a language model of others writes, or says in a sentence why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from morphogen.cli import main
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
    write(gpt2, tmp / "mute", end=end)
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


def test_the_likeliest_text_is_transformers_own(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    for name in ("gpt2", "llama"):
        line = ["sample", "--from", str(world / name), "--prompt", "the dog", "--length", "8", "--temperature", "0"]
        assert main([*line, "--json"]) == 0
        (text,) = json.loads(capsys.readouterr().out)["texts"]
        tokenizer = tokenizers.Tokenizer.from_file(str(world / name / "tokenizer.json"))
        pretrained = read(world / name)
        ids = [pretrained.net.begin] * pretrained.begins + tokenizer.encode("the dog").ids
        model = transformers.AutoModelForCausalLM.from_pretrained(world / name)
        made = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=pretrained.end)
        assert tokenizer.decode(made[0].tolist()) == text


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
    ],
)
def test_mistakes_are_sentences(world: Path, words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", *words.replace("{}", str(world)).split()]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
