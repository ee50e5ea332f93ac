"""A training step of a GPT-2-like decoder, 6 layers of 384, context 256, batch 8, beside nanoGPT and transformers.

All have the same weights (transformers' are built first), the same symbols before the same symbols, and fused AdamW.
Ours is `Autoregressive(CausalTransformer)` through the Trainer (keyed order, log, NaN watch) with `matmul="medium"`.
`loop` is nanoGPT's design written by hand in forty lines, for where its repository is not at hand (--checkout
nanogpt=PATH). Loss and gradients must agree before anything is timed, in every precision and compiled. A vocabulary of
50,304 is `lm_large`'s.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from harness import (
    Check,
    Gate,
    Metric,
    Registry,
    Work,
    checkout,
    count_flops,
    git_version,
    import_file,
    nparams,
    shared,
    smoking,
)

BATCH, BEGIN, LR = 8, 0, 3e-4
REG = Registry(
    "lm_train",
    rounds=5,
    slice=2.0,
    budget=50,
    rtol=2e-3,  # of a gradient, summed in another order
    needs={"hf": ("transformers",), "xtransformers": ("x_transformers",)},
    pairs=[
        (f"morphogen/{mode}/{dtype}", f"{peer}/{theirs}/{dtype}", bound)
        for dtype, bound in (("fp32", 1 / 1.15), ("bf16", 1 / 1.2))
        for mode in ("eager", "compile")
        for peer in ("hf", "loop", "nanogpt")
        for theirs in ("eager", "compile")
    ],
)
HALF = 0.03  # of a gradient whose factors are rounded to bfloat16


def sizes() -> tuple[int, int, int, int]:
    """Layers, heads, width, context."""
    return (2, 2, 32, 16) if smoking() else (6, 6, 384, 256)


def cast(dtype: str) -> Any:
    import torch

    return torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def symbols(vocab: int) -> Any:
    """Data (N, context)."""
    import torch

    return torch.randint(vocab, (32 * BATCH, sizes()[3]), generator=torch.Generator().manual_seed(3))


def shifted(x: Any) -> Any:
    """What a net reads to say x: what begins, then all but the last."""
    import torch

    return torch.cat((torch.full_like(x[:, :1], BEGIN), x[:, :-1]), 1)


def folder(vocab: int) -> Path:
    """Where the weights that all copy are."""
    made = shared() / f"gpt2-{vocab}"
    made.mkdir(exist_ok=True)
    return made


def weights(vocab: int) -> Any:
    from safetensors.torch import load_file

    return load_file(folder(vocab) / "model.safetensors")


def hf_net(vocab: int, positions: int | None = None) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, heads, width, context = sizes()
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_positions=positions or context,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            activation_function="gelu",
            attn_implementation="sdpa",
            bos_token_id=BEGIN,
            eos_token_id=None,
            use_cache=False,
        )
    )


def hf(vocab: int) -> tuple[Any, Any, tuple[str, ...], dict[str, Any]]:
    from safetensors.torch import save_file

    net = hf_net(vocab)
    state = {k: v.contiguous() for k, v in net.state_dict().items() if k != "lm_head.weight"}
    save_file(state, folder(vocab) / "model.safetensors")
    return net, (lambda net, x, y: entropy(net(input_ids=x).logits, y)), ("transformers",), {}


def entropy(logits: Any, y: Any) -> Any:
    import torch.nn.functional as F

    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


def linear(state: Any) -> Any:
    """transformers' matrices (inputs, outputs) as those of linear layers."""
    return {k: v.T if ".c_" in k and k.endswith("weight") else v for k, v in state.items()}


def nanogpt(vocab: int) -> tuple[Any, Any, tuple[str, ...], dict[str, Any]]:
    path = checkout("nanogpt")
    module = import_file(os.path.join(path, "model.py"), "nanogpt_model")
    layers, heads, width, context = sizes()
    net = module.GPT(
        module.GPTConfig(
            block_size=context, vocab_size=vocab, n_layer=layers, n_head=heads, n_embd=width, dropout=0.0, bias=True
        )
    )
    net.load_state_dict(linear(weights(vocab)), strict=False)
    return net, (lambda net, x, y: net(x, y)[1]), (), {"commit": git_version(path)}


def loop(vocab: int) -> tuple[Any, Any, tuple[str, ...], dict[str, Any]]:
    import torch
    import torch.nn.functional as F
    from torch import nn

    layers, heads, width, context = sizes()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            q, k, v = self.attn["c_attn"](self.ln_1(x)).view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn["c_proj"](y.transpose(1, 2).reshape(b, t, width))
            return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
            self.h = nn.ModuleList(Block() for _ in range(layers))
            self.ln_f = nn.LayerNorm(width)

        def forward(self, x: Any) -> Any:
            y = self.wte(x) + self.wpe.weight[: x.shape[1]]
            for block in self.h:
                y = block(y)
            return F.linear(self.ln_f(y), self.wte.weight)

    net = GPT()
    net.load_state_dict({k.removeprefix("transformer."): v for k, v in linear(weights(vocab)).items()})
    assert torch.is_tensor(net.wte.weight)
    return net, (lambda net, x, y: entropy(net(x), y)), (), {}


def xtransformers(vocab: int) -> tuple[Any, Any, tuple[str, ...], dict[str, Any]]:
    from x_transformers import Decoder, TransformerWrapper

    layers, heads, width, context = sizes()
    net = TransformerWrapper(
        num_tokens=vocab,
        max_seq_len=context,
        tie_embedding=True,
        attn_layers=Decoder(dim=width, depth=layers, heads=heads, attn_flash=True),
    )
    return net, (lambda net, x, y: entropy(net(x), y)), ("x-transformers",), {"weights": "its own"}


PEERS = {"hf": hf, "loop": loop, "nanogpt": nanogpt, "xtransformers": xtransformers}


def fingerprint(loss: Any, table: Any, norm: Any, qkv: Any) -> Check:
    """The loss and some gradients, thinned out."""
    found = {"loss": [loss.item()]}
    for name, grad in {"the table": table, "the last norm": norm, "the first attention": qkv}.items():
        found[f"gradient of {name}"] = [grad.norm().item(), *grad.flatten()[:: max(1, grad.numel() // 40)].tolist()]
    return found


def config(net: Any, vocab: int, dtype: str, mode: str, **more: Any) -> dict[str, Any]:
    layers, heads, width, context = sizes()
    sizes_ = {"layers": layers, "heads": heads, "width": width, "context": context, "vocab": vocab}
    return {
        "params": nparams(net),
        "batch": BATCH,
        "dtype": dtype,
        "mode": mode,
        **sizes_,
        "optim": "AdamW fused",
        **more,
    }


def build(which: str, dtype: str, mode: str, vocab: int) -> Work:
    """One of the peers in a bare loop."""
    import torch

    torch.manual_seed(0)
    net, loss_of, versions, more = PEERS[which](vocab)
    net.train()
    optim = torch.optim.AdamW(net.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    x = symbols(vocab)

    def backward(model: Any, y: Any) -> Any:
        with cast(dtype):
            loss = loss_of(model, shifted(y), y)
        loss.backward()
        return loss

    compiled = torch.compile(net) if mode == "compile" else net

    def check() -> Check:
        loss = backward(compiled, x[:BATCH])
        grads = {k: p.grad for k, p in net.named_parameters()}
        optim.zero_grad(set_to_none=True)
        table = next(v for k, v in grads.items() if k.endswith("wte.weight"))
        norm = next(v for k, v in grads.items() if k.endswith("ln_f.weight"))
        qkv = next(v for k, v in grads.items() if k.endswith("h.0.attn.c_attn.weight"))
        return fingerprint(loss, table, norm, qkv.T if which == "hf" else qkv)

    flops = count_flops(lambda: backward(net, x[:BATCH])) if which == "hf" else 0
    optim.zero_grad(set_to_none=True)

    def step() -> None:
        backward(compiled, x[torch.randint(len(x), (BATCH,))])
        optim.step()
        optim.zero_grad(set_to_none=True)

    metrics = {"train": Metric(step, "tokens/s", BATCH * x.shape[1], flops=flops, warmup=2)}
    return Work(
        metrics,
        config(net, vocab, dtype, mode, **more),
        ("torch", *versions),
        check=None if which == "xtransformers" else check,
        rtol=HALF if dtype == "bf16" else None,
    )


def our_net(vocab: int, positions: int | None = None) -> Any:
    """Ours with transformers' weights, where they were built."""
    from morphogen.interop import read
    from morphogen.interop.gpt2 import net_of

    layers, heads, width, context = sizes()
    told = {
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_positions": positions or context,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "activation_function": "gelu",
        "bos_token_id": BEGIN,
    }
    if not (folder(vocab) / "model.safetensors").exists():  # without transformers there is nobody to agree with
        return net_of(told)
    (folder(vocab) / "config.json").write_text(json.dumps(told))
    return read(folder(vocab)).net


def morphogen(dtype: str, mode: str, vocab: int) -> Work:
    import torch

    from morphogen.autoregressive import Autoregressive
    from morphogen.core import Batch, Loss, Model, keys
    from morphogen.data.items import Tensors
    from morphogen.data.source import Shuffled
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.optim import AdamW
    from morphogen.train import Trainer

    torch.manual_seed(0)
    net, x, gate = our_net(vocab), symbols(vocab), Gate()
    model = Autoregressive(net, (x.shape[1],), vocab).train()

    class Gated(Shuffled):
        """The usual source, which stands still between slices."""

        def next(self, actor: Model | None = None, heard: Any = None) -> Batch:
            gate.step()
            return super().next(actor, heard)

    def check() -> Check:
        if mode == "compile":
            net.compile()
        with cast(dtype):
            said: Loss = model.loss({"x": x[:BATCH], "key": keys(torch.arange(BATCH))})
        assert isinstance(said.value, torch.Tensor)
        said.value.backward()
        grads = {k: p.grad for k, p in net.named_parameters()}
        found = fingerprint(
            said.value, grads["embed.weight"], grads["norm.weight"], grads["blocks.0.attention.qkv.weight"]
        )
        model.zero_grad(set_to_none=True)
        return found

    def train() -> None:
        trainer = Trainer(
            10**9,
            optim=AdamW(LR, betas=(0.9, 0.95), weight_decay=0.1),
            log_every=50,
            save_every=10**9,
            dtype="bfloat16" if dtype == "bf16" else "float32",
            compile=mode == "compile",
            matmul="medium",
        )
        trainer.fit(model, Data(Gated(Tensors(x), BATCH)), run=tempfile.mkdtemp(), device="cpu", voice=Voice())

    metrics = {"train": Metric(lambda: gate.run(1), "tokens/s", BATCH * x.shape[1], warmup=2)}
    return Work(
        metrics,
        config(net, vocab, dtype, mode),
        ("torch", "morphogen"),
        check=check,
        rtol=HALF if dtype == "bf16" else None,
        main=train,
    )


for dtype in ("fp32", "bf16"):
    for which in PEERS:
        for mode in ("eager", "compile") if which in ("loop", "nanogpt") else ("eager",):
            REG.add(f"{which}/{mode}/{dtype}", functools.partial(build, which, dtype, mode, 256), dtype)
    for mode in ("eager", "compile"):
        side = functools.partial(morphogen, dtype, mode, 256)
        REG.add(f"morphogen/{mode}/{dtype}", side, dtype, smoke=(dtype, mode) == ("fp32", "eager"))
