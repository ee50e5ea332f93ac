"""A training step of DiT-S/2 on 32x32x4 latents, batch 4: ours through the Trainer, and diffusers' class.

Both learn DDPM's noise with half of their eight outputs, fused AdamW, and drop a tenth of the labels. Ours is `ddpm`
through the Trainer (keyed noise, log, NaN watch), diffusers' net stands in a bare loop; each eager and compiled.
diffusers' net is built first, with the same embedding of time and class in every block, and its weights are copied
into ours; loss and gradients on the same draws must agree before anything is timed. Its many embeddings make it larger
by 7 million parameters but by hardly any products: both need the same FLOPs, counted with attention as plain
products, and the ratio of times is that of useful FLOP/s.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import Absent, Check, Gate, Metric, Registry, Work, count_flops, nparams, shared, smoking

BATCH, ITEMS, SIZE, CHANNELS, CLASSES, LR = 4, 512, 32, 4, 1000, 1e-4
REG = Registry(
    "dit_train",
    rounds=9,
    slice=1.0,
    budget=240,
    rtol=2e-3,  # of a gradient, summed in another order
    needs={"diffusers": ("diffusers",)},
    pairs=[
        (f"morphogen/{mode}/{dtype}", f"diffusers/{peer}/{dtype}", bound)
        for dtype, bound in (("fp32", 1 / 1.1), ("bf16", 1 / 1.2))
        for mode in ("eager", "compile")
        for peer in ("eager", "compile")
    ],
)


def sizes() -> tuple[int, int, int]:
    """Width, depth, heads."""
    return (48, 2, 3) if smoking() else (384, 12, 6)


def latents() -> tuple[Any, Any]:
    """Data (N, CHANNELS, SIZE, SIZE) and labels (N,)."""
    import torch

    g = torch.Generator().manual_seed(3)
    return torch.randn(ITEMS, CHANNELS, SIZE, SIZE, generator=g), torch.randint(CLASSES, (ITEMS,), generator=g)


def draws() -> tuple[Any, Any]:
    """Noise and step numbers 0 to 999 of the batch that both sides are checked on."""
    import torch

    g = torch.Generator().manual_seed(4)
    return torch.randn(BATCH, CHANNELS, SIZE, SIZE, generator=g), torch.tensor([0, 250, 500, 999])[:BATCH]


def kept() -> Any:
    """ᾱ of DDPM's chain (1000,)."""
    import torch

    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)


def cast(dtype: str) -> Any:
    import torch

    return torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def useful_flops(fn: Any) -> float:
    """FLOPs with attention as plain products: the counter does not see torch's fused kernel for CPUs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return count_flops(fn)


def checked(net: Any, predict: Any, names: Mapping[str, str]) -> Check:
    """Loss and gradients of `net` on the draws, `predict(x, t, label)` being the noise it says."""
    import torch.nn.functional as F

    (x, label), (z, t) = latents(), draws()
    alpha = kept()[t].view(-1, 1, 1, 1)
    training = net.training
    net.eval()  # labels are dropped by neither
    loss = F.mse_loss(predict(alpha.sqrt() * x[:BATCH] + (1 - alpha).sqrt() * z, t, label[:BATCH]), z)
    loss.backward()
    said = {"loss": [loss.item()]}
    for title, name in names.items():
        grad = net.get_parameter(name).grad
        said[f"gradient of {title}"] = [grad.norm().item(), *grad.flatten()[::29].tolist()]
    net.zero_grad(set_to_none=True)
    net.train(training)
    return said


def diffusers(mode: str, dtype: str) -> Work:
    import torch
    import torch.nn.functional as F
    from diffusers import DiTTransformer2DModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    width, depth, heads = sizes()
    net: Any = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=depth,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    )
    first = net.transformer_blocks[0].norm1.emb.state_dict()
    for block in net.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # as the authors'
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, shared() / "diffusers.safetensors")
    net.train()
    opt = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)
    (x, label), chain = latents(), kept()

    def predict(x: Any, t: Any, label: Any) -> Any:
        return net(x, timestep=t, class_labels=label, return_dict=False)[0][:, :CHANNELS]

    def backward() -> None:
        i, t = torch.randint(ITEMS, (BATCH,)), torch.randint(1000, (BATCH,))
        z, alpha = torch.randn(BATCH, CHANNELS, SIZE, SIZE), chain[t].view(-1, 1, 1, 1)
        with cast(dtype):
            said = predict(alpha.sqrt() * x[i] + (1 - alpha).sqrt() * z, t, label[i])
        F.mse_loss(said.float(), z).backward()

    def step() -> None:
        backward()
        opt.step()
        opt.zero_grad(set_to_none=True)

    names = {
        "the first layer": "pos_embed.proj.weight",
        "the last layer": "proj_out_2.weight",
        "a modulation": "transformer_blocks.0.norm1.linear.bias",
        "a feed-forward net": f"transformer_blocks.{depth - 1}.ff.net.2.weight",
    }
    flops = useful_flops(backward)
    net.zero_grad(set_to_none=True)
    check = (lambda: checked(net, predict, names)) if (mode, dtype) == ("eager", "fp32") else None
    if mode == "compile":
        net.compile()
    config = {
        "params": nparams(net),
        "batch": BATCH,
        "size": SIZE,
        "dtype": dtype,
        "mode": mode,
        "optim": "AdamW fused",
    }
    metrics = {"train": Metric(step, "images/s", BATCH, flops=flops, warmup=2)}
    return Work(metrics, config, ("torch", "diffusers"), check=check)


def morphogen(mode: str, dtype: str) -> Work:
    import torch
    from safetensors.torch import load_file

    from morphogen.core import Model, keys
    from morphogen.data.items import Tensors
    from morphogen.data.source import Shuffled
    from morphogen.diffusion import ddpm
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.nets.dit import DiT
    from morphogen.optim import AdamW
    from morphogen.spec import Remembers
    from morphogen.train import Trainer

    width, depth, heads = sizes()
    dit = DiT(CHANNELS, outputs=2 * CHANNELS, width=width, depth=depth, heads=heads, classes=CLASSES)
    if (file := shared() / "diffusers.safetensors").exists():
        sys.path.append(str(Path(__file__).resolve().parents[2]))
        from tests.parity.test_dit import translated  # the one table of names

        dit.load_state_dict(translated(load_file(file)))
    elif not smoking():
        raise Absent("diffusers' net was not built, so there are no weights to copy: make bench-env")

    class Noise(Remembers, torch.nn.Module):
        """The half of a DiT's outputs that says the noise."""

        def __init__(self) -> None:
            super().__init__()
            self.dit = dit

        def forward(self, x: Any, cond: Any) -> Any:
            return self.dit(x, cond)[:, :CHANNELS]

    class Gated(Shuffled):
        """The usual source, which stands still between slices."""

        def next(self, actor: Model | None = None, heard: Any = None) -> Any:
            gate.step()
            return super().next(actor, heard)

    gate, net = Gate(), Noise()
    x, label = latents()
    model = ddpm(net, (CHANNELS, SIZE, SIZE))
    batch = {"x": x[:BATCH], "cond": {"label": label[:BATCH]}, "key": keys(torch.arange(BATCH), 7)}

    def backward() -> None:
        value = model.loss(batch).value
        assert isinstance(value, torch.Tensor)
        value.backward()

    def train() -> None:
        trainer = Trainer(
            10**9,
            optim=AdamW(LR),
            log_every=50,
            save_every=10**9,
            dtype="bfloat16" if dtype == "bf16" else "float32",
            compile=mode == "compile",
        )
        source = Gated(Tensors(x, {"label": label}), BATCH)
        trainer.fit(model, Data(source), run=tempfile.mkdtemp(), device="cpu", voice=Voice())

    names = {
        "the first layer": "dit.first.weight",
        "the last layer": "dit.last.weight",
        "a modulation": "dit.blocks.0.modulation.bias",
        "a feed-forward net": f"dit.blocks.{depth - 1}.mlp.outer.weight",
    }
    flops = useful_flops(backward)
    model.zero_grad(set_to_none=True)
    # in bf16 the two round differently, compiled ones too; that they are the same net is shown in fp32
    same = (lambda: checked(net, lambda x, t, y: net(x, {"t": t, "label": y}), names)) if (mode, dtype) == (
        "eager", "fp32"
    ) else None  # fmt: skip
    config = {
        "params": nparams(net),
        "batch": BATCH,
        "size": SIZE,
        "dtype": dtype,
        "mode": mode,
        "optim": "AdamW fused",
    }
    metrics = {"train": Metric(lambda: gate.run(1), "images/s", BATCH, flops=flops, warmup=2)}
    return Work(metrics, config, ("torch", "morphogen"), check=same, main=train)


for dtype in ("fp32", "bf16"):
    for mode in ("eager", "compile"):
        for side in (diffusers, morphogen):
            small = (mode, dtype) == ("eager", "fp32")
            REG.add(f"{side.__name__}/{mode}/{dtype}", functools.partial(side, mode, dtype), dtype, smoke=small)
