"""What this machine can do at most: GEMM and conv FLOP/s, memory bandwidth, Python and op overhead."""
import functools

import harness
from harness import Metric, Registry, Work

REG = Registry("limits", rounds=7, slice=0.3, budget=240)


def gemm(m, k, n, dtype):
    import torch
    dt = getattr(torch, dtype)
    a, b = torch.randn(m, k).to(dt), torch.randn(n, k).to(dt)
    import torch.nn.functional as F
    f = 2.0 * m * n * k
    return Work({"gemm": Metric(lambda: F.linear(a, b), "GFLOP/s", f / 1e9, warmup=3)},
                dict(m=m, k=k, n=n, dtype=dtype), ("torch",))


def conv(c, hw, b, dtype, cl):
    import torch
    import torch.nn.functional as F
    dt = getattr(torch, dtype)
    x, w = torch.randn(b, c, hw, hw).to(dt), torch.randn(c, c, 3, 3).to(dt)
    if cl:
        x, w = x.to(memory_format=torch.channels_last), w.to(memory_format=torch.channels_last)
    f = 2.0 * 9 * c * c * hw * hw * b

    def run():
        with torch.no_grad():
            F.conv2d(x, w, padding=1)
    return Work({"conv3x3": Metric(run, "GFLOP/s", f / 1e9, warmup=3)},
                dict(channels=c, hw=hw, batch=b, dtype=dtype, channels_last=cl), ("torch",))


def copy(mb):
    import torch
    x = torch.ones(mb * 2 ** 18)
    y = torch.ones_like(x)
    return Work({"copy": Metric(lambda: y.copy_(x), "GB/s (read+write)", 2 * x.numel() * 4 / 1e9, warmup=3),
                 "read": Metric(lambda: x.sum(), "GB/s (read)", x.numel() * 4 / 1e9, warmup=3)}, dict(mb=mb), ("torch",))


def gemv(n):
    """A decoder's step at batch 1: one row against a weight matrix too big for the caches in turn."""
    import torch
    import torch.nn.functional as F
    ws = [torch.randn(n, n) for _ in range(max(1, (256 << 20) // (4 * n * n)))]
    x = torch.randn(1, n)

    def run():
        for w in ws:
            F.linear(x, w)
    return Work({"gemv": Metric(run, "GB/s (weights)", sum(w.numel() for w in ws) * 4 / 1e9, warmup=2)}, dict(n=n),
                ("torch",))


def ops():
    import torch
    a = torch.ones(8)
    r = torch.ones(8, requires_grad=True)

    def add():
        for _ in range(1000):
            torch.add(a, a)

    def back():
        for _ in range(200):
            (r * a).sum().backward()
    ps = [torch.zeros(64, 64, requires_grad=True) for _ in range(100)]
    for p in ps:
        p.grad = torch.ones_like(p)
    o = {k: torch.optim.AdamW(ps, lr=0.0, **kw) for k, kw in
         dict(adamw_forloop=dict(foreach=False), adamw_foreach=dict(foreach=True), adamw_fused=dict(fused=True)).items()}
    ms = {"add_op": Metric(add, "ops/s", 1000, warmup=2), "mul_sum_backward": Metric(back, "calls/s", 200, warmup=2)}
    for k, v in o.items():
        ms[k + "_100x4096"] = Metric(v.step, "tensors/s", 100, warmup=2)
    big = [torch.zeros(1024, 1024, requires_grad=True) for _ in range(30)]
    for p in big:
        p.grad = torch.ones_like(p)
    o2 = {k: torch.optim.AdamW(big, lr=0.0, **kw) for k, kw in
          dict(adamw_forloop=dict(foreach=False), adamw_foreach=dict(foreach=True), adamw_fused=dict(fused=True)).items()}
    for k, v in o2.items():
        ms[k + "_30x1M"] = Metric(v.step, "params/s", 30 * 2 ** 20, warmup=2)
    return Work(ms, {}, ("torch",))


for d in ("float32", "bfloat16"):
    for m, k, n in ((2048, 2048, 2048), (4096, 4096, 4096), (2048, 384, 1536), (2048, 1536, 384), (2048, 384, 50304)):
        REG.add(f"gemm/{m}x{k}x{n}/{d}", functools.partial(gemm, m, k, n, d), "gemm")
    for cl in (False, True):
        REG.add(f"conv/128ch-16x16-b32/{d}/{'channels_last' if cl else 'nchw'}", functools.partial(conv, 128, 16, 32, d, cl), "conv")
        REG.add(f"conv/64ch-32x32-b32/{d}/{'channels_last' if cl else 'nchw'}", functools.partial(conv, 64, 32, 32, d, cl), "conv")
REG.add("memory/512MB", functools.partial(copy, 512), "memory")
REG.add("memory/8MB(L3)", functools.partial(copy, 8), "memory")
REG.add("gemv/384", functools.partial(gemv, 384), "memory")
REG.add("gemv/1536", functools.partial(gemv, 1536), "memory")
REG.add("ops", ops, "ops")
