"""Checkpoints of transformers, read and written: logits to 2e-5 under padding, published sizes (oracle A7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphogen.errors import UserError
from morphogen.interop import gpt2, llama, read, write
from morphogen.language import Characters, contextual
from morphogen.nets.causal import CausalTransformer
from morphogen.nets.positions import ALiBi
from morphogen.nets.transformer import Design

from ..exact.test_nets import awake

transformers = pytest.importorskip("transformers")

LLAMA: dict[str, Any] = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {"vocab_size": 41, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
CONFIGS: dict[str, Any] = {
    "GPT-2": lambda: transformers.GPT2Config(**GPT2, bos_token_id=40, eos_token_id=40),
    "GPT-2, other sizes": lambda: transformers.GPT2Config(
        **{**GPT2, "n_embd": 20, "n_head": 5, "n_layer": 3},
        n_inner=11,
        activation_function="relu",
        layer_norm_epsilon=1e-3,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "GPT-2, untied": lambda: transformers.GPT2Config(
        **GPT2, tie_word_embeddings=False, bos_token_id=40, eos_token_id=40
    ),
    "Llama": lambda: transformers.LlamaConfig(**LLAMA),
    "Llama, tied, wide heads, biases": lambda: transformers.LlamaConfig(
        **{**LLAMA, "num_key_value_heads": 1},
        head_dim=10,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    ),
    "Llama, linear": lambda: transformers.LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
    ),
    "Llama 3": lambda: transformers.LlamaConfig(
        **LLAMA,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "Mistral": lambda: transformers.MistralConfig(**LLAMA, sliding_window=5),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """One of theirs, every weight random."""
    torch.manual_seed(0)
    return awake(transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval(), 3)


def saved(model: nn.Module, folder: Path, **more: object) -> Path:
    model.save_pretrained(folder, **more)
    return folder


def theirs(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Logits, places told by the mask, as their own `generate` tells them."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=x, attention_mask=mask, position_ids=places).logits


def test_logits_are_theirs_under_padding_at_both_sides(model: nn.Module, tmp_path: Path) -> None:
    codes = model.config.vocab_size
    pretrained = read(saved(model, tmp_path))
    n, lengths = 13, torch.tensor([13, 1, 6, 9])
    x = torch.randint(codes, (4, n))
    right = (torch.arange(n) < lengths[:, None]).long()
    left = right.flip(1)
    shifted = torch.stack([row.roll(n - int(k)) for row, k in zip(x, lengths, strict=True)])
    said, _ = pretrained.net.step(x, lengths=lengths, begin=False)
    for tokens, mask in ((x, right), (shifted, left)):
        expected = theirs(model, tokens, mask)
        for i, k in enumerate(lengths.tolist()):
            there = expected[i][mask[i].bool()]
            torch.testing.assert_close(said[i, :k], there, rtol=0, atol=2e-5)
    begin = pretrained.net.begin
    if begin is not None:  # the whole pass, with what begins a sequence: every symbol has a probability
        spelled = torch.cat((torch.full((4, 1), begin), x[:, :-1]), 1)
        expected = theirs(model, spelled, torch.ones_like(spelled))
        torch.testing.assert_close(pretrained.net(x), expected, rtol=0, atol=2e-5)


def test_what_is_written_is_what_was_read(model: nn.Module, tmp_path: Path) -> None:
    """transformers loads it, says the same, and the weights are the same bits under the same names."""
    pretrained = read(saved(model, tmp_path / "theirs"))
    folder = write(pretrained.net, tmp_path / "ours", end=pretrained.end)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(again) is type(model)
    state = model.state_dict()
    assert {k: tuple(v.shape) for k, v in again.state_dict().items()} == {k: tuple(v.shape) for k, v in state.items()}
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, state[name]), name
    x = torch.randint(model.config.vocab_size, (2, 11))
    torch.testing.assert_close(again(x).logits, model(x).logits, rtol=0, atol=2e-5)
    config = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        if name not in ("n_ctx", "rope_theta", "dtype", "embd_pdrop", "attn_pdrop"):
            assert getattr(again.config, name, value) == getattr(model.config, name, value), name


def test_gradients_are_theirs(model: nn.Module, tmp_path: Path) -> None:
    net = read(saved(model, tmp_path)).net
    if net.begin is None:
        pytest.skip("a whole pass needs what begins a sequence, and this configuration has nothing")
    x = torch.randint(model.config.vocab_size, (2, 7))
    net(x).square().mean().backward()
    spelled = torch.cat((torch.full((2, 1), net.begin), x[:, :-1]), 1)
    model(spelled).logits.square().mean().backward()
    mine = {k: p.grad for k, p in net.named_parameters()}
    names = llama if "llama" in model.config.model_type or "mistral" in model.config.model_type else gpt2
    grads = {k: p.grad for k, p in model.named_parameters()}
    for name, expected in names.ours(grads, net).items():
        if name not in ("start", "last.bias"):
            torch.testing.assert_close(mine[name], expected, rtol=1e-4, atol=1e-5)


def test_many_files_and_other_dtypes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(CONFIGS["Llama"]()).eval()
    saved(model, tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    x = torch.randint(37, (1, 5))
    said, _ = read(tmp_path / "many").net.step(x, begin=False)
    torch.testing.assert_close(said, model(x).logits.detach(), rtol=0, atol=2e-5)
    half = read(saved(model.bfloat16(), tmp_path / "half"), dtype=torch.bfloat16).net
    assert half.embed.weight.dtype == torch.bfloat16
    assert read(tmp_path / "half").net.embed.weight.dtype == torch.float32
    again = transformers.AutoModelForCausalLM.from_pretrained(write(half, tmp_path / "again"))
    assert again.dtype == torch.bfloat16


def test_what_is_written_over_several_files_is_read_back_by_both(tmp_path: Path) -> None:
    """The file with all weights is the one that is read; what was there of another net goes."""
    torch.manual_seed(0)
    saved(transformers.LlamaForCausalLM(CONFIGS["Llama"]()), tmp_path / "old", max_shard_size="4KB")
    new = read(saved(transformers.LlamaForCausalLM(CONFIGS["Llama"]()), tmp_path / "new")).net
    x = torch.randint(37, (1, 5))
    expected, _ = new.step(x, begin=False)
    single = (write(new, tmp_path / "single") / "model.safetensors").read_bytes()
    (tmp_path / "old" / "model.safetensors").write_bytes(single)  # as it is when a write is cut off
    assert torch.equal(read(tmp_path / "old").net.step(x, begin=False)[0], expected)
    write(new, tmp_path / "old", end=5)
    assert {p.name for p in (tmp_path / "old").iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(read(tmp_path / "old").net.step(x, begin=False)[0], expected)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old").eval()
    torch.testing.assert_close(again(x).logits.detach(), expected, rtol=0, atol=2e-5)
    assert read(tmp_path / "old").ends == (5,)
    assert again.generation_config.eos_token_id == 5


def test_vectors_of_texts_are_theirs(tmp_path: Path) -> None:
    """GPT-2's own of each token, where a text stands at the first place, and Llama's after what begins a sequence."""
    torch.manual_seed(0)
    tokens, texts = Characters("abcdefgh"), ["abc", "hgfedcbah", "e"]
    for name, begin in (("GPT-2", False), ("Llama", True)):
        model = awake(transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval(), 3)
        net = read(saved(model, tmp_path / name)).net
        found = contextual.read(net, tokens, texts, begin=begin)
        for text, vectors in zip(texts, found, strict=True):
            ids = [net.begin] * begin + tokens.encode(text).tolist()
            said = model.base_model(torch.tensor([ids])).last_hidden_state[0, begin:]
            torch.testing.assert_close(vectors, said.detach(), rtol=0, atol=2e-5)


def test_a_text_ends_as_transformers_ends_it(tmp_path: Path) -> None:
    saved(transformers.LlamaForCausalLM(CONFIGS["Llama"]()), tmp_path)
    file = tmp_path / "generation_config.json"
    for page, ends in (({"eos_token_id": [7, 3, 7]}, (7, 3)), ({"eos_token_id": 4}, (4,)), ({}, (2,))):
        file.write_text(json.dumps(page))
        assert read(tmp_path).ends == ends
    file.unlink()
    assert read(tmp_path).ends == (2,)
    for text in ("[]", "{", '{"eos_token_id": "x"}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"generation_config\.json"):
            read(tmp_path)


def test_published_sizes() -> None:
    """On the meta device: no memory is touched."""
    of_gpt2 = {"vocab_size": 50257, "n_positions": 1024, "bos_token_id": 50256}
    sizes = {
        124_439_808: (gpt2, {**of_gpt2, "n_embd": 768, "n_layer": 12, "n_head": 12}),
        354_823_168: (gpt2, {**of_gpt2, "n_embd": 1024, "n_layer": 24, "n_head": 16}),
        1_557_611_200: (gpt2, {**of_gpt2, "n_embd": 1600, "n_layer": 48, "n_head": 25}),
        6_738_415_616: (
            llama,
            {
                "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                "num_attention_heads": 32, "bos_token_id": 1,
            },
        ),
    }  # fmt: skip
    for n, (kind, config) in sizes.items():
        with torch.device("meta"):
            net = kind.net_of(config)
        assert sum(p.numel() for p in net.parameters()) == n


def test_the_tokenizers_files_come_along(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = CausalTransformer(7, (8,), width=8, depth=1, heads=2, tied=True, begin=6)
    (tmp_path / "from").mkdir()
    for name in ("tokenizer.json", "merges.txt", "README.md"):
        (tmp_path / "from" / name).write_text("{}")
    write(net, tmp_path / "to", tokenizer=tmp_path / "from" / "tokenizer.json", end=6)
    found = {p.name for p in (tmp_path / "to").iterdir()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json", "merges.txt"}
    assert read(tmp_path / "to").tokenizer == tmp_path / "to" / "tokenizer.json"
    assert read(tmp_path / "to").end == 6


def test_mistakes_are_said(tmp_path: Path) -> None:
    config = CONFIGS["GPT-2"]().to_dict()
    model = transformers.GPT2LMHeadModel(CONFIGS["GPT-2"]())

    def refused(words: str, **changes: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=words):
            read(tmp_path)

    with pytest.raises(UserError, match="no config"):
        read(tmp_path / "nowhere")
    refused("is missing")
    saved(model, tmp_path)
    refused("did you mean 'gpt2'", model_type="gpt-2")
    refused("names no model_type", model_type=None)
    refused("did you mean 'gelu'", activation_function="gelu_old")
    refused("not those of their configuration", n_embd=48)
    refused("lack", n_layer=3)
    refused("scales its scores", scale_attn_by_inverse_layer_idx=True)
    refused("quantised", quantization_config={"bits": 4})
    refused("did you mean 'llama'", model_type="lama")
    (tmp_path / "model.safetensors").write_bytes(b"12345678 nothing")
    refused("no whole file")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused("is a pickle")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read(tmp_path)
    with pytest.raises(UserError, match="known are default"):
        llama.net_of({**LLAMA, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}})
    small = {"width": 8, "depth": 1, "heads": 2, "tied": True, "begin": 1}
    for net, words in (
        (CausalTransformer(7, (8,), width=8, depth=1, heads=2), "learned vector"),
        (CausalTransformer(7, (8,), **small, design=Design(qk_norm=True)), "plain heads"),
        (CausalTransformer(7, (8,), **small, design=Design(gated=True)), "no gate"),
        (CausalTransformer(7, (8,), **small, positions=ALiBi()), "learned positions"),
        (CausalTransformer(7, (8,), **small, rotary=10.0), "RMS norms"),
    ):
        with pytest.raises(UserError, match=words):
            write(net, tmp_path / "out")
    good = CausalTransformer(7, (8,), **small)
    (tmp_path / "file").write_text("")
    with torch.device("meta"):
        empty = CausalTransformer(7, (8,), **small)
    for net, folder, options, words in (
        (good, "out", {"end": 7}, "no symbol of this net"),
        (good, "out", {"tokenizer": tmp_path / "nowhere"}, "holds no tokenizer"),
        (good, "out", {"tokenizer": tmp_path / "nowhere" / "tokenizer.json"}, "holds no tokenizer"),
        (good, "file", {}, "is a file"),
        (empty, "out", {}, "no weights yet"),
    ):
        with pytest.raises(UserError, match=words):
            write(net, tmp_path / folder, **options)
    assert not (tmp_path / "out").exists()


WRONG: list[Any] = ["x", [], {}, -1, 0.5, 1e300, float("nan"), float("inf"), True]
ASKED = {
    "GPT-2": ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon",
              "activation_function", "tie_word_embeddings", "scale_attn_weights"),
    "Llama": ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers",
              "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_act",
              "attention_bias", "rope_theta", "rope_parameters"),
}  # fmt: skip
FINE = {  # what is no mistake, or is another's: the sentence is then of the weights, or there is none
    "layer_norm_epsilon": (0.5, 1e300), "rms_norm_eps": (0.5, 1e300), "rope_theta": (0.5, 1e300),
    "tie_word_embeddings": (True,), "scale_attn_weights": (True,), "attention_bias": (True,),
    "activation_function": ("x",), "hidden_act": ("x",), "rope_parameters": ([], {}), "eos_token_id": ([], -1),
    "bos_token_id": (-1,),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_a_damaged_configuration_is_told_by_file_and_key(name: str, tmp_path: Path) -> None:
    saved(transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()), tmp_path)
    file, whole = tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text())
    if name == "Llama":
        whole |= {"rope_theta": whole.pop("rope_parameters")["rope_theta"]}
    for key in (*ASKED[name], "eos_token_id", "bos_token_id"):
        for value in [v for v in WRONG if v not in FINE.get(key, ()) and not (v is True and True in FINE.get(key, ()))]:
            file.write_text(json.dumps({**whole, key: value}))
            with pytest.raises(UserError) as said:
                read(tmp_path)
            assert "config.json" in str(said.value), (key, value)
            assert f"'{key}'" in str(said.value), (key, value)
    for key in ASKED[name][:5]:
        file.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        if key not in ("n_inner", "max_position_embeddings"):
            with pytest.raises(UserError, match=rf"config.json' lacks '{key}'"):
                read(tmp_path)
    heads = "n_head" if name == "GPT-2" else "num_attention_heads"
    for changes, words in (
        (
            {heads: 7, "num_key_value_heads": 7, "head_dim": None},
            "describes no net that can be made: A width of 24",
        ),
        ({"vocab_size": 1 << 31, "n_embd": 1 << 20, "hidden_size": 1 << 20, heads: 2}, "config.json|configuration"),
    ):
        file.write_text(json.dumps({**whole, **changes}))
        with pytest.raises(UserError, match=words):
            read(tmp_path)
    for text in ("[]", "3", "null", "[" * 100_000, '{"model_type": 3}', "\ud83d"):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match=r"config\.json"):
            read(tmp_path)


@pytest.mark.parametrize(
    "page",
    ["{", "[]", "{}", "null", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}',
     '{"weight_map": {"a": "../model.safetensors"}}', '{"weight_map": {"a": "/etc/passwd"}}',
     '{"weight_map": {"a": "x\\u0000y"}}', '{"weight_map": {"a": ""}}', '{"weight_map": ["a"]}'],
)  # fmt: skip
def test_a_damaged_index_is_told(page: str, tmp_path: Path) -> None:
    saved(transformers.GPT2LMHeadModel(CONFIGS["GPT-2"]()), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(page)
    with pytest.raises(UserError, match=r"model.safetensors.index.json"):
        read(tmp_path)


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(transformers.GPT2LMHeadModel(CONFIGS["GPT-2"]()), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    (name,) = (k for k in whole if k.endswith("h.1.mlp.c_fc.weight"))
    for change, words in (
        (lambda w: w.to(torch.int8), "is int8"),
        (lambda w: w > 0, "is bool"),
        (lambda w: w.to(torch.complex64), "is complex64"),
        (lambda w: w.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
        (lambda w: w.index_fill(0, torch.tensor([3]), torch.nan), "holds NaN or Inf"),
        (lambda w: w.double() * 1e300, "holds NaN or Inf"),  # in the precision that it is wanted in
        (lambda w: w[0], "not those of their configuration"),
    ):
        save_file({**whole, name: change(whole[name]).contiguous()}, file, {"format": "pt"})
        with pytest.raises(UserError, match=words):
            read(tmp_path)
