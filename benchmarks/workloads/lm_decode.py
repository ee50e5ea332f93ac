"""Greedy decoding of 256 symbols after a prompt of 16, batch 1 and 16, beside transformers' `generate` and others.

The net is that of lm_train with 512 positions, in evaluation mode, with the same weights; the symbols must be the same
before anything is timed. transformers decodes with its default cache, its static one, and that compiled; ours with its
static cache of cells, without a compiler. `bf16` are the same weights in half precision, where the symbols may differ.
"""

from __future__ import annotations

import functools
from typing import Any

from harness import Metric, Registry, Work, checkout, import_file, nparams, smoking
from lm_train import hf_net, our_net, shared, sizes

PROMPT, VOCAB = 16, 256
REG = Registry(
    "lm_decode",
    rounds=5,
    slice=0.3,
    budget=420,
    needs={"hf": ("transformers",), "xtransformers": ("x_transformers",)},
    pairs=[
        ("morphogen/b1", "hf-dynamic/b1", 1 / 2),
        ("morphogen/b1", "hf-static-compile/b1", 1 / 1.6),
        ("morphogen/b16", "hf-dynamic/b16", 1 / 2.5),
        ("morphogen/b16", "hf-static-compile/b16", 1 / 1.6),
        ("morphogen/bf16/b1", "hf-dynamic/bf16/b1", 1 / 2),
        ("morphogen/bf16/b16", "hf-dynamic/bf16/b16", 1 / 2.5),
        ("morphogen/b1", "naive/b1", None),
    ],
)


def new() -> int:
    return 8 if smoking() else 256


def positions() -> int:
    return PROMPT + new() if smoking() else 512


def prompt(batch: int) -> Any:
    import torch

    return torch.randint(VOCAB, (batch, PROMPT), generator=torch.Generator().manual_seed(5))


def work(net: Any, batch: int, dtype: str, decode: Any, versions: tuple[str, ...]) -> Work:
    """A side whose `decode()` gives the symbols after the prompt (batch, new)."""
    import torch

    layers, heads, width, _ = sizes()

    def run() -> Any:
        with torch.no_grad():
            made = decode()
        assert made.shape == (batch, new()), made.shape
        return made

    config = {"batch": batch, "prompt": PROMPT, "new": new(), "vocab": VOCAB, "dtype": dtype, "layers": layers}
    config |= {"heads": heads, "width": width, "positions": positions(), "params": nparams(net)}
    check = (lambda: {"symbols": run().flatten().tolist()}) if dtype == "fp32" else None
    flops = 2.0 * layers * 12 * width**2 * batch * new()  # every symbol multiplies every weight by every row

    def timed() -> None:
        run()

    metrics = {"decode": Metric(timed, "tokens/s", batch * new(), warmup=1, flops=flops)}
    return Work(metrics, config, ("torch", *versions), check=check)


def transformers(mode: str, batch: int, dtype: str) -> Work:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = hf_net(VOCAB, positions())
    state = {k: v.contiguous() for k, v in net.state_dict().items() if k != "lm_head.weight"}
    file = shared() / f"gpt2-{VOCAB}.safetensors"
    if not file.exists():
        save_file(state, file)
    net = net.eval().to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    net.config.use_cache = True
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    options: dict[str, Any] = {"max_new_tokens": new(), "min_new_tokens": new(), "do_sample": False, "use_cache": True}
    if mode != "dynamic":
        options["cache_implementation"] = "static"
    if mode == "static-compile":
        from transformers.generation import CompileConfig

        how = CompileConfig(mode="default", fullgraph=False, dynamic=False)
        how._compile_all_devices = True
        options["compile_config"] = how
    x = prompt(batch)
    mask = torch.ones_like(x)
    return work(
        net,
        batch,
        dtype,
        lambda: net.generate(input_ids=x, attention_mask=mask, **options)[:, PROMPT:],
        ("transformers",),
    )


def morphogen(batch: int, dtype: str, cached: bool = True) -> Work:
    import torch

    from morphogen.autoregressive.generate import generate, greedy

    net = our_net(VOCAB, positions()).eval().to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    x = prompt(batch)
    if cached:
        return work(
            net, batch, dtype,
            lambda: generate(net, x, steps=new(), choose=greedy, codes=VOCAB, begin=False).tokens[:, PROMPT:],
            ("morphogen",),
        )  # fmt: skip

    def naive() -> Any:  # a whole pass for each symbol, as without a cache
        known = x
        for _ in range(new()):
            logits, _ = net.step(known, begin=False)
            known = torch.cat((known, logits[:, -1].argmax(-1, keepdim=True)), 1)
        return known[:, PROMPT:]

    return work(net, batch, dtype, naive, ("morphogen",))


def xtransformers(batch: int) -> Work:
    import torch
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    torch.manual_seed(0)
    layers, heads, width, _ = sizes()
    net = TransformerWrapper(
        num_tokens=VOCAB,
        max_seq_len=positions(),
        tie_embedding=True,
        attn_layers=Decoder(dim=width, depth=layers, heads=heads, attn_flash=True),
    )
    wrapped, x = AutoregressiveWrapper(net).eval(), prompt(batch)
    side = work(
        net, batch, "fp32", lambda: wrapped.generate(x, new(), temperature=0.0, cache_kv=True), ("x-transformers",)
    )
    side.check = None  # weights of its own
    return side


def nanogpt(batch: int) -> Work:
    module = import_file(f"{checkout('nanogpt')}/model.py", "nanogpt_model")
    layers, heads, width, _ = sizes()
    net = module.GPT(
        module.GPTConfig(
            block_size=positions(), vocab_size=VOCAB, n_layer=layers, n_head=heads, n_embd=width, dropout=0.0, bias=True
        )
    ).eval()
    x = prompt(batch)
    side = work(net, batch, "fp32", lambda: net.generate(x, new(), top_k=1)[:, PROMPT:], ())
    side.check = None  # weights of its own
    return side


for b in (1, 16):
    group, small = f"b{b}", b == 1
    for kind in ("dynamic", "static", "static-compile"):
        REG.add(f"hf-{kind}/b{b}", functools.partial(transformers, kind, b, "fp32"), group)
    REG.add(f"hf-dynamic/bf16/b{b}", functools.partial(transformers, "dynamic", b, "bf16"), group)
    REG.add(f"xtransformers/b{b}", functools.partial(xtransformers, b), group)
    REG.add(f"morphogen/b{b}", functools.partial(morphogen, b, "fp32"), group, smoke=small)
    REG.add(f"morphogen/bf16/b{b}", functools.partial(morphogen, b, "bf16"), group)
    if b == 1:  # 86 s a call at 16
        REG.add("naive/b1", functools.partial(morphogen, b, "fp32", False), group, smoke=True)
        REG.add("nanogpt-nocache/b1", functools.partial(nanogpt, b), group)
