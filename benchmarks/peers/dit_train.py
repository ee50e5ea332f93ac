"""DiT-S/2 (12 layers, 6 heads, 384 wide, patch 2) on 32x32x4 latents, AdamW step: images/s."""
import contextlib
import functools

import harness
from harness import Metric, Registry, Work

B = 4
REG = Registry("dit_train", rounds=5, slice=1.0, budget=240, needs={"": ("diffusers",)})


def build(which, mode, dtype):
    import torch
    import torch.nn.functional as F
    torch.manual_seed(0)
    if which == "diffusers-dit":
        from diffusers import DiTTransformer2DModel
        m = DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8,
                                  num_layers=12, sample_size=32, patch_size=2, num_embeds_ada_norm=1000)
    else:
        from diffusers import Transformer2DModel
        m = Transformer2DModel(num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8,
                               num_layers=12, sample_size=32, patch_size=2, norm_type="ada_norm_zero",
                               num_embeds_ada_norm=1000, attention_bias=True, activation_fn="gelu-approximate",
                               norm_elementwise_affine=False)
    m.train()
    opt = torch.optim.AdamW(m.parameters(), lr=1e-4)
    x0 = torch.randn(B, 4, 32, 32)
    y = torch.randint(1000, (B,))
    acp = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    ac = (lambda: torch.autocast("cpu", torch.bfloat16)) if dtype == "bf16" else contextlib.nullcontext

    def fb(mm):
        t = torch.randint(1000, (B,))
        e = torch.randn_like(x0)
        a = acp[t].view(-1, 1, 1, 1)
        opt.zero_grad(set_to_none=True)
        with ac():
            out = mm(a.sqrt() * x0 + (1 - a).sqrt() * e, timestep=t, class_labels=y, return_dict=False)[0]
            loss = F.mse_loss(out[:, :4].float(), e)
        loss.backward()
    flops = harness.count_flops(lambda: fb(m))
    mm = torch.compile(m) if mode == "compile" else m

    def step():
        fb(mm)
        opt.step()
    return Work({"train": Metric(step, "images/s", B, flops=flops, warmup=2)},
                dict(params=harness.nparams(m), batch=B, latent="32x32x4", layers=12, heads=6, width=384, patch=2,
                     dtype=dtype, mode=mode), ("torch", "diffusers"))


for dtype in ("fp32", "bf16"):
    for mode in ("eager", "compile"):
        REG.add(f"diffusers-dit/{mode}/{dtype}", functools.partial(build, "diffusers-dit", mode, dtype), dtype)
REG.add("diffusers-transformer2d/eager/fp32", functools.partial(build, "t2d", "eager", "fp32"), "fp32")
