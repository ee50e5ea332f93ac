"""Greedy decoding of 256 symbols after a prompt of 16, batch 1 and 16, beside transformers' `generate` and others.

The net is that of lm_train with 512 positions, in evaluation mode, with the same weights; the symbols must be the same
before anything is timed. transformers decodes with its default cache, its static one, and that compiled; ours with its
static cache of cells, without a compiler. `bf16` are the same weights in half precision, where the symbols may differ;
`int8` are ours in eight bits, the rest in half precision. `limit` decodes nothing: for each step it reads as many bytes
as there are in the weights and, on average, in the cache, once, at what a sum over them takes here. No decoder that
reads them for each symbol is quicker, so ours' ratio to it is the distance to what memory allows.
"""

from __future__ import annotations

import functools
from typing import Any

from harness import Metric, Registry, Work, checkout, import_file, nparams, smoking
from lm_train import folder, hf_net, our_net, sizes

PROMPT, VOCAB = 16, 256
REG = Registry(
    "lm_decode",
    rounds=5,
    slice=0.3,
    budget=420,
    needs={"hf": ("transformers",), "xtransformers": ("x_transformers",)},
    pairs=[
        *[
            (f"morphogen{dtype}/b{b}", f"hf-{mode}{dtype}/b{b}", bound)
            for b, default in ((1, 1 / 2), (16, 1 / 2.5))
            for dtype in ("", "/bf16")
            for mode, bound in (("dynamic", default), ("static-compile", 1 / 1.6))
        ],
        *[(f"morphogen{dtype}/b{b}", f"limit{dtype}/b{b}", None) for b in (1, 16) for dtype in ("", "/bf16", "/int8")],
        ("morphogen/int8/b1", "morphogen/bf16/b1", None),
        ("morphogen/int8/b16", "morphogen/bf16/b16", None),
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
    file = folder(VOCAB) / "model.safetensors"
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
    from morphogen.nets import int8

    net = our_net(VOCAB, positions()).eval().to(torch.float32 if dtype == "fp32" else torch.bfloat16)
    if dtype == "int8":
        net = int8(net)
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


def limit(batch: int, dtype: str) -> Work:
    """Reading what a decoder must read."""
    import torch

    layers, _, width, _ = sizes()
    weight, number = {"fp32": (4, 4), "bf16": (2, 2), "int8": (1, 2)}[dtype]
    weights = weight * (layers * 12 * width**2 + VOCAB * width)
    cache = number * batch * layers * width * (2 * PROMPT + new())  # keys and values, halfway
    bytes_ = weights + cache
    what = torch.ones(bytes_ // 4)

    def run() -> None:
        for _ in range(new()):
            what.sum()

    config = {"batch": batch, "new": new(), "dtype": dtype, "bytes": bytes_, "of weights": weights}
    return Work({"decode": Metric(run, "tokens/s", batch * new(), warmup=1)}, config, ("torch",))


for b in (1, 16):
    group, small = f"b{b}", b == 1
    for kind in ("dynamic", "static", "static-compile"):
        REG.add(f"hf-{kind}/b{b}", functools.partial(transformers, kind, b, "fp32"), group)
    for kind in ("dynamic", "static-compile"):
        REG.add(f"hf-{kind}/bf16/b{b}", functools.partial(transformers, kind, b, "bf16"), group)
    REG.add(f"xtransformers/b{b}", functools.partial(xtransformers, b), group)
    REG.add(f"morphogen/b{b}", functools.partial(morphogen, b, "fp32"), group, smoke=small)
    REG.add(f"morphogen/bf16/b{b}", functools.partial(morphogen, b, "bf16"), group)
    REG.add(f"morphogen/int8/b{b}", functools.partial(morphogen, b, "int8"), group, smoke=small)
    for dtype, name in (("fp32", ""), ("bf16", "/bf16"), ("int8", "/int8")):
        REG.add(f"limit{name}/b{b}", functools.partial(limit, b, dtype), group, smoke=small)
    if b == 1:  # 86 s a call at 16
        REG.add("naive/b1", functools.partial(morphogen, b, "fp32", False), group, smoke=True)
        REG.add("nanogpt-nocache/b1", functools.partial(nanogpt, b), group)
