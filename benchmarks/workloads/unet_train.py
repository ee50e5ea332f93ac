"""A training step of a U-Net of 10 million parameters on 32x32x3, batch 32: ours, and diffusers' with the same weights.

The net predicts the noise of DDPM's linear chain; fused AdamW. diffusers' net is built first and its weights are
copied into ours; loss and the gradients of the first and the last layer must agree before anything is timed. diffusers
runs in three modes, of which the fastest counts: as it is, in channels_last, compiled. Ours runs as it is.

The unit is the useful GFLOP: what the net costs as its authors write it, convolution by convolution, counted by torch
on diffusers' net for the two that share weights. So nets of other sizes stand beside them: that of
denoising-diffusion-pytorch, and EDM's where a checkout is given.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from pathlib import Path
from typing import Any

from harness import Absent, Check, Metric, Registry, Work, count_flops, nparams, shared, smoking
from unets import NETS

BATCH, SIZE, GROUPS = 32, 32, 32
MODES = ("eager", "channels_last", "compiled")
DTYPES = ("fp32", "bf16")
REG = Registry(
    "unet_train",
    rounds=9,
    slice=1.5,
    budget=240,
    rtol=2e-3,  # of a gradient, summed in another order
    needs={"diffusers": ("diffusers",)},
    pairs=[(f"morphogen/{d}", f"diffusers/{d}/{mode}", 1 / 1.3) for d in DTYPES for mode in MODES]
    + [(f"morphogen/{d}", f"ddp/{d}", 1 / 1.2) for d in DTYPES]
    + [(f"morphogen/{d}", f"edm/{d}", 1.0) for d in DTYPES],
)


def widths() -> tuple[int, ...]:
    return (32, 32) if smoking() else (64, 128, 128, 160)


def diffusers_net() -> tuple[Any, Any]:
    """Diffusers' net with its weights written for ours, and how to call it."""
    import torch
    from diffusers import UNet2DModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    levels = range(len(widths()))
    net = UNet2DModel(
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=widths(),
        down_block_types=tuple("AttnDownBlock2D" if i == 1 else "DownBlock2D" for i in levels),
        up_block_types=tuple("AttnUpBlock2D" if i == 1 else "UpBlock2D" for i in reversed(levels)),
        attention_head_dim=32,
        norm_num_groups=GROUPS,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        dropout=0.0,
    )
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, shared() / "diffusers.safetensors")
    return net, lambda x, t: net(x, t, return_dict=False)[0]


def our_net() -> tuple[Any, Any]:
    """Our net with diffusers' weights, and how to call it."""
    from safetensors.torch import load_file

    from morphogen.nets.unet import UNet

    net = UNet(3, widths=widths(), depth=2, attention=(1,), head=32, groups=GROUPS, eps=1e-6)
    if (file := shared() / "diffusers.safetensors").exists():
        sys.path.append(str(Path(__file__).resolve().parents[2]))
        from tests.parity.test_unet import translated  # the one table of names

        net.load_state_dict(translated(load_file(file)))
    elif not smoking():
        raise Absent("diffusers' net was not built, so there are no weights to copy: make bench-env")
    return net, lambda x, t: net(x, {"t": t})


def other_net(name: str) -> tuple[Any, Any]:
    """A peer's net of its own shape, and how to call it."""
    net, call, _, _ = NETS[name]()
    return net, lambda x, t: call(net, x, t)


def build(which: str, dtype: str, mode: str = "eager") -> Work:
    import torch
    import torch.nn.functional as F

    nets = {"diffusers": diffusers_net, "morphogen": our_net}
    net, call = nets[which]() if which in nets else other_net(which)
    net.train()
    opt = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    layout = torch.channels_last if mode == "channels_last" else torch.preserve_format
    net.to(memory_format=layout)
    g = torch.Generator().manual_seed(3)
    x = torch.rand(BATCH, 3, SIZE, SIZE, generator=g) * 2 - 1
    held = torch.randn(BATCH, 3, SIZE, SIZE, generator=g), torch.randint(1000, (BATCH,), generator=g)

    def loss(z: Any, t: Any) -> Any:
        alpha = kept[t].view(-1, 1, 1, 1)
        cast = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()
        with cast:
            said = call((alpha.sqrt() * x + (1 - alpha).sqrt() * z).to(memory_format=layout), t)
        return F.mse_loss(said.float(), z)

    def backward() -> None:
        loss(torch.randn_like(x), torch.randint(1000, (BATCH,))).backward()

    def step() -> None:
        backward()
        opt.step()
        opt.zero_grad(set_to_none=True)

    def check() -> Check:
        value = loss(*held)
        value.backward()
        said = {"loss": [value.item()]}
        ends = {"first": "conv_in", "last": "conv_out"}
        for ours, theirs in ends.items():
            grad = net.get_parameter(f"{theirs if which == 'diffusers' else ours}.weight").grad
            said[f"gradient of the {ours} layer"] = [grad.norm().item(), *grad.flatten()[::13].tolist()]
        net.zero_grad(set_to_none=True)
        return said

    flops = count_flops(backward)
    net.zero_grad(set_to_none=True)
    count = shared() / "diffusers.flops"
    if which == "diffusers":
        count.write_text(json.dumps(flops))
    elif which == "morphogen" and count.exists():
        flops = json.loads(count.read_text())  # the same net: what we save by algebra does not count as work
    if mode == "compiled":
        net.compile()
    config = {"params": nparams(net), "batch": BATCH, "size": SIZE, "dtype": dtype, "optim": "AdamW fused"}
    config |= {"mode": mode, "gflop_a_picture": flops / BATCH / 1e9}
    versions = ("torch", {"ddp": "denoising-diffusion-pytorch"}.get(which, which))
    # in bf16 the two round differently; that they are the same net is shown in fp32
    same = check if dtype == "fp32" and which in nets else None
    metric = Metric(step, "useful GFLOP/s", flops / 1e9, flops=flops, warmup=2)
    return Work({"train": metric}, config, versions, check=same)


for dtype in DTYPES:
    for mode in MODES:
        build_theirs = functools.partial(build, "diffusers", dtype, mode)
        REG.add(f"diffusers/{dtype}/{mode}", build_theirs, dtype, smoke=dtype == "fp32" and mode == "eager")
    for which in ("morphogen", "ddp", "edm"):
        smoke = dtype == "fp32" and which == "morphogen"
        REG.add(f"{which}/{dtype}", functools.partial(build, which, dtype), dtype, smoke=smoke)
