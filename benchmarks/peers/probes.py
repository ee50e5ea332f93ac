"""Small experiments on what a faster library could do on this kind of CPU (no peer involved).

Run like a workload: python probes.py [--peers REGEX].  Each line is one way of doing one thing.
"""
import functools

import harness
from harness import Metric, Registry, Work

REG = Registry("probes", rounds=7, slice=0.3, budget=300)


def linear(how, m=2048, k=384, n=1536):
    """fp32 linear, forward only: MKL (what F.linear uses), oneDNN, oneDNN with bf16 inside."""
    import torch
    import torch.nn.functional as F
    x, w, b = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    if how == "onednn":
        f = lambda: torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    elif how == "medium-precision":
        torch.set_float32_matmul_precision("medium")
        f = lambda: F.linear(x, w, b)
    elif how == "bf16":
        x, w, b = x.bfloat16(), w.bfloat16(), b.bfloat16()
        f = lambda: F.linear(x, w, b)
    else:
        f = lambda: F.linear(x, w, b)

    def run():
        with torch.no_grad():
            return f()
    ref = F.linear(x.double(), w.double(), b.double())
    err = float((run().double() - ref).abs().max() / ref.abs().max())
    return Work({"linear": Metric(run, "GFLOP/s", 2 * m * k * n / 1e9, warmup=3)}, dict(m=m, k=k, n=n, rel_err=err), ("torch",))


for m, k, n in ((2048, 384, 1536), (2048, 1536, 384), (1024, 128, 128), (16, 384, 1536)):
    for h in ("mkl", "onednn", "medium-precision", "bf16"):
        REG.add(f"linear/{h}/{m}x{k}x{n}", functools.partial(linear, h, m, k, n), f"linear {m}x{k}x{n}")


def xent(how, n=2048, v=50304, c=384):
    """head + cross entropy, forward and backward, at the GPT-2 vocabulary."""
    import torch
    import torch.nn.functional as F
    x0, w = torch.randn(n, c), torch.nn.Parameter(torch.randn(v, c) * 0.02)
    y = torch.randint(v, (n,))
    x = x0.requires_grad_(True)

    def full(ac):
        def run():
            w.grad = x.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=ac):
                lg = F.linear(x, w)
                loss = F.cross_entropy(lg, y)
            loss.backward()
        return run

    class Chunked(torch.autograd.Function):
        """The gradient is made chunk by chunk in the forward, so the logits never exist whole."""
        @staticmethod
        def forward(ctx, x, w, y, step, bf):
            gx, gw, tot = torch.empty_like(x), torch.zeros_like(w), 0.0
            ww = w.bfloat16() if bf else w
            gwa = torch.zeros_like(ww) if False else gw
            for i in range(0, len(x), step):
                xi = x[i:i + step].to(ww.dtype)
                lg = F.linear(xi, ww).float() if bf else F.linear(xi, ww)
                yi = y[i:i + step]
                m = lg.amax(1, keepdim=True)
                p = lg.sub_(m).exp_()
                s = p.sum(1, keepdim=True)
                # loss = log s + m - logit_y ; logit_y - m = log p_y
                tot = tot + (s.log().squeeze(1) - p.gather(1, yi[:, None]).squeeze(1).log()).sum()
                p.div_(s).scatter_add_(1, yi[:, None], torch.full((len(yi), 1), -1.0))
                p.mul_(1.0 / len(x))
                pp = p.bfloat16() if bf else p
                gx[i:i + step] = (pp @ ww).float() if bf else pp @ ww
                if bf:
                    gw += (pp.t() @ xi).float()
                else:
                    gw.addmm_(pp.t(), xi)
            ctx.save_for_backward(gx, gw)
            return tot / len(x)

        @staticmethod
        def backward(ctx, g):
            gx, gw = ctx.saved_tensors
            return gx * g, gw * g, None, None, None

    def chunk(step, bf=False):
        def run():
            w.grad = x.grad = None
            Chunked.apply(x, w, y, step, bf).backward()
        return run
    if how.startswith("compile"):
        def f(x, w, y):
            return F.cross_entropy(F.linear(x, w), y)
        fc = torch.compile(f)

        def cr():
            w.grad = x.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in how):
                loss = fc(x, w, y)
            loss.backward()
        run = cr
    else:
        run = {"plain": full(False), "autocast-bf16": full(True), "chunked-128": chunk(128), "chunked-512": chunk(512),
               "chunked-256-bf16": chunk(256, True)}[how]
    return Work({"fwd_bwd": Metric(run, "tokens/s", n, warmup=2, flops=6.0 * n * v * c)}, dict(n=n, vocab=v, width=c), ("torch",))


for h in ("plain", "autocast-bf16", "compile", "compile-bf16", "chunked-128", "chunked-512", "chunked-256-bf16"):
    REG.add(f"xent/{h}", functools.partial(xent, h), "head+cross-entropy")


def opt(how):
    """AdamW on the 10.8M-parameter GPT's tensors."""
    import torch
    shapes = ([(256, 384), (256, 384)] + [(1152, 384), (1152,), (384, 384), (384,), (1536, 384), (1536,), (384, 1536), (384,),
                                          (384,), (384,), (384,), (384,)] * 6 + [(384,), (384,)])
    ps = [torch.nn.Parameter(torch.randn(*s)) for s in shapes]
    if how == "flat-fused":
        flat = torch.nn.Parameter(torch.cat([p.data.flatten() for p in ps]))
        ps = [flat]
    for p in ps:
        p.grad = torch.randn_like(p)
    o = torch.optim.AdamW(ps, lr=1e-4, **({"fused": True} if "fused" in how else {"foreach": how == "foreach"}))
    n = sum(p.numel() for p in ps)
    return Work({"step": Metric(o.step, "params/s", n, warmup=3)}, dict(params=n, tensors=len(ps)), ("torch",))


for h in ("forloop", "foreach", "fused", "flat-fused"):
    REG.add(f"adamw/{h}", functools.partial(opt, h), "adamw")


def decode(how, batch):
    """Greedy decoding with a preallocated KV cache in bare functions: a bound on what eager code can do."""
    import torch
    import torch.nn.functional as F
    torch.manual_seed(0)
    L, H, C, V, S = 6, 6, 384, 256, 272
    dt = torch.bfloat16 if "bf16" in how else torch.float32
    P = lambda *s: (torch.randn(*s) * 0.02).to(dt)
    wte, wpe = P(V, C), P(512, C)
    lin = F.linear
    if "onednn" in how:
        lin = lambda x, w, b: torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    elif "int8" in how:
        memo = {}

        def lin(x, w, b):
            if id(w) not in memo:
                s = w.float().abs().amax(1, keepdim=True) / 127
                memo[id(w)] = (w.float() / s).round().to(torch.int8), s.squeeze(1).bfloat16()
            return torch._weight_int8pack_mm(x, *memo[id(w)]).add_(b)
    blocks = [(P(C), P(C), P(3 * C, C), P(3 * C), P(C, C), P(C), P(C), P(C), P(4 * C, C), P(4 * C), P(C, 4 * C), P(C)) for _ in range(L)]
    if "compile" in how:
        K, Vv = torch.zeros(L, batch, H, S, C // H, dtype=dt), torch.zeros(L, batch, H, S, C // H, dtype=dt)

        def step(tok, pos, mask):
            x = wte[tok] + wpe[pos]
            for i, (g1, b1, wa, ba, wo, bo, g2, b2, w1, c1, w2, c2) in enumerate(blocks):
                h = F.layer_norm(x, (C,), g1, b1)
                q, k, v = F.linear(h, wa, ba).view(batch, 3, H, 1, C // H).unbind(1)
                K[i].index_copy_(2, pos, k); Vv[i].index_copy_(2, pos, v)
                y = F.scaled_dot_product_attention(q, K[i], Vv[i], attn_mask=mask)
                x = x + F.linear(y.reshape(batch, C), wo, bo)
                h = F.gelu(F.linear(F.layer_norm(x, (C,), g2, b2), w1, c1), approximate="tanh")
                x = x + F.linear(h, w2, c2)
            return F.linear(F.layer_norm(x, (C,)), wte).argmax(-1)
        stepc = torch.compile(step)
        ar = torch.arange(S)

        def run():
            with torch.inference_mode():
                tok = torch.zeros(batch, dtype=torch.long)
                for p in range(16, S):
                    tok = stepc(tok, torch.tensor([p]), (ar <= p)[None, None, None])
    else:
        K, Vv = torch.zeros(L, batch, H, S, C // H, dtype=dt), torch.zeros(L, batch, H, S, C // H, dtype=dt)

        def run():
            with torch.inference_mode():
                tok = torch.zeros(batch, dtype=torch.long)
                for p in range(16, S):
                    x = wte[tok] + wpe[p]
                    for i, (g1, b1, wa, ba, wo, bo, g2, b2, w1, c1, w2, c2) in enumerate(blocks):
                        h = F.layer_norm(x, (C,), g1, b1)
                        q, k, v = lin(h, wa, ba).view(batch, 3, H, 1, C // H).unbind(1)
                        K[i, :, :, p:p + 1] = k; Vv[i, :, :, p:p + 1] = v
                        y = F.scaled_dot_product_attention(q, K[i, :, :, :p + 1], Vv[i, :, :, :p + 1])
                        x = lin(y.reshape(batch, C), wo, bo).add_(x)
                        h = F.gelu(lin(F.layer_norm(x, (C,), g2, b2), w1, c1), approximate="tanh")
                        x = x + lin(h, w2, c2)
                    tok = F.linear(F.layer_norm(x, (C,)), wte).argmax(-1)
    return Work({"decode": Metric(run, "tokens/s", batch * 256, warmup=1)}, dict(batch=batch, how=how), ("torch",))


for b in (1, 16):
    for h in ("eager", "eager-onednn", "eager-bf16", "eager-bf16-int8", "compile", "compile-bf16"):
        REG.add(f"decode/{h}/b{b}", functools.partial(decode, h, b), f"decode b{b}")

def env(how):
    """Environment steps alone, random actions: the ceiling of every env-steps/s above."""
    import gymnasium as gym
    import numpy as np
    import torch
    n = 8
    if how == "cartpole-numpy":                     # the same dynamics for all environments at once
        def make(n):
            s = np.random.uniform(-0.05, 0.05, (n, 4)); t = np.zeros(n, int)

            def step(a):
                nonlocal s, t
                x, v, th, w = s.T
                f = np.where(a == 1, 10.0, -10.0)
                c, si = np.cos(th), np.sin(th)
                tmp = (f + 0.05 * w * w * si) / 1.1
                al = (9.8 * si - c * tmp) / (0.5 * (4 / 3 - 0.1 * c * c / 1.1))
                s = np.stack([x + 0.02 * v, v + 0.02 * (tmp - 0.05 * al * c / 1.1), th + 0.02 * w, w + 0.02 * al], 1)
                t = t + 1
                d = (np.abs(s[:, 0]) > 2.4) | (np.abs(s[:, 2]) > 0.2095) | (t >= 500)
                if d.any():
                    s[d] = np.random.uniform(-0.05, 0.05, (d.sum(), 4)); t[d] = 0
                return s, np.ones(n), d
            return step
        st = make(n)

        def run():
            for _ in range(200):
                st(np.random.randint(0, 2, n))
        units = 200 * n
    else:
        name = {"cartpole": "CartPole-v1", "pendulum": "Pendulum-v1", "halfcheetah": "HalfCheetah-v5"}[how.split("-")[0]]
        n = 8 if how.endswith("sync8") else 1
        v = gym.vector.SyncVectorEnv([lambda: gym.make(name)] * n)
        v.reset(seed=0)
        acts = [v.action_space.sample() for _ in range(64)]

        def run():
            for i in range(64):
                v.step(acts[i])
        units = 64 * n
    return Work({"env": Metric(run, "env-steps/s", units, warmup=2)}, dict(how=how, envs=n), ("gymnasium",))


for h in ("cartpole-sync8", "cartpole-numpy", "pendulum-1", "halfcheetah-1", "halfcheetah-sync8"):
    REG.add(f"env/{h}", functools.partial(env, h), "env")


def policy(how):
    """PPO's other costs on CartPole: one action for 8 observations, and one update of a 256-row batch."""
    import numpy as np
    import torch
    from torch import nn
    torch.set_num_threads(1)
    mk = lambda o: nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, o))
    pi, vf = mk(2), mk(1)
    ob = np.random.randn(8, 4).astype("f4")
    if how == "act-categorical":
        def run():
            with torch.no_grad():
                x = torch.as_tensor(ob)
                d = torch.distributions.Categorical(logits=pi(x))
                a = d.sample()
                d.log_prob(a), vf(x), a.numpy()
    elif how == "act-lean":
        def run():
            with torch.inference_mode():
                x = torch.from_numpy(ob)
                lp = torch.log_softmax(pi(x), -1)
                a = (torch.rand(8) > lp[:, 0].exp()).long()
                lp.gather(1, a[:, None]), vf(x), a.numpy()
    elif how == "act-numpy":
        W = [(l.weight.detach().numpy().T.copy(), l.bias.detach().numpy()) for m in (pi, vf) for l in m if isinstance(l, nn.Linear)]

        def run():
            h = np.tanh(ob @ W[0][0] + W[0][1]); h = np.tanh(h @ W[1][0] + W[1][1]); lg = h @ W[2][0] + W[2][1]
            g = np.tanh(ob @ W[3][0] + W[3][1]); g = np.tanh(g @ W[4][0] + W[4][1]); g @ W[5][0] + W[5][1]
            p = 1 / (1 + np.exp(lg[:, 0] - lg[:, 1]))
            (np.random.rand(8) < p).astype(np.int64)
    else:
        o = torch.optim.Adam([*pi.parameters(), *vf.parameters()], lr=1e-4, **({"fused": True} if "fused" in how else {}))
        x, a, adv, ret, old = torch.randn(256, 4), torch.randint(2, (256,)), torch.randn(256), torch.randn(256), torch.randn(256)

        def loss():
            lp_all = torch.log_softmax(pi(x), -1)
            lp = lp_all.gather(1, a[:, None]).squeeze(1)
            r = (lp - old).exp()
            return torch.max(-adv * r, -adv * r.clamp(0.8, 1.2)).mean() + 0.5 * (vf(x).squeeze(1) - ret).pow(2).mean()
        lc = torch.compile(loss) if "compile" in how else loss

        def run():
            o.zero_grad()
            lc().backward()
            torch.nn.utils.clip_grad_norm_([*pi.parameters(), *vf.parameters()], 0.5)
            o.step()
    return Work({"call": Metric(run, "calls/s", 1, warmup=5)}, dict(how=how, torch_threads=1), ("torch",))


for h in ("act-categorical", "act-lean", "act-numpy", "update", "update-fused", "update-fused-compile"):
    REG.add(f"ppo/{h}", functools.partial(policy, h), "ppo parts")

def attention(how, b, h, t, d, causal, dtype):
    """Attention, forward and backward: torch's CPU flash kernel, its plain path, and bmm + softmax by hand."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    dt = torch.bfloat16 if dtype == "bf16" else torch.float32
    q, k, v = (torch.randn(b, h, t, d).to(dt).requires_grad_(True) for _ in range(3))
    g = torch.randn(b, h, t, d).to(dt)
    bias = torch.full((t, t), float("-inf")).triu(1).to(dt) if causal else None

    def byhand(q, k, v):
        s = (q * d ** -0.5) @ k.transpose(-1, -2)
        if causal:
            s = s + bias
        return s.softmax(-1) @ v
    f = torch.compile(byhand) if how == "bmm-compile" else byhand

    def run():
        q.grad = k.grad = v.grad = None
        if how.startswith("bmm"):
            f(q, k, v).backward(g)
        else:
            with sdpa_kernel(SDPBackend.MATH if how == "sdpa-math" else SDPBackend.FLASH_ATTENTION):
                F.scaled_dot_product_attention(q, k, v, is_causal=causal).backward(g)
    return Work({"fwd_bwd": Metric(run, "calls/s", 1, warmup=3, flops=12.0 * b * h * t * t * d)},
                dict(b=b, h=h, t=t, d=d, causal=causal, dtype=dtype), ("torch",))


for shape in ((8, 6, 256, 64, True), (32, 16, 256, 8, False), (32, 1, 256, 128, False)):
    for dtype in ("fp32", "bf16"):
        for how in ("sdpa-flash", "sdpa-math", "bmm", "bmm-compile"):
            tag = "x".join(map(str, shape[:4]))
            REG.add(f"attn/{how}/{dtype}/{tag}", functools.partial(attention, how, *shape, dtype), f"attention {dtype} {tag}")


def gemv(how, batch):
    """The linears of one decoded token (6 layers of 384 wide), weights in turn: what bounds decoding."""
    import torch
    import torch.nn.functional as F
    shapes = [(1152, 384), (384, 384), (1536, 384), (384, 1536)] * 6
    dt = torch.bfloat16 if how.startswith("bf16") else torch.float32
    ws = [torch.randn(o, i).to(dt) for o, i in shapes]
    xs = {i: torch.randn(batch, i).to(dt) for i in (384, 1536)}
    bs = [torch.randn(o).to(dt) for o, _ in shapes]
    if how == "onednn":
        ops = [lambda w=w, x=xs[w.shape[1]], b=b: torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "") for w, b in zip(ws, bs)]
    elif how == "onednn-packed":
        ps = [torch.ops.mkldnn._reorder_linear_weight(w.to_mkldnn(), batch) for w in ws]
        ops = [lambda w=p, x=xs[o.shape[1]], b=b: torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "") for p, o, b in zip(ps, ws, bs)]
    elif how == "mv":
        ops = [lambda w=w, x=xs[w.shape[1]][0], b=b: torch.addmv(b, w, x) for w, b in zip(ws, bs)]
    elif how == "transposed":                       # weights kept (in, out): rows are read whole, threads split columns
        wt = [w.t().contiguous() for w in ws]
        ops = [lambda w=w, x=xs[w.shape[0]], b=b: torch.addmm(b, x, w) for w, b in zip(wt, bs)]
    elif how == "elementwise-sum":
        ops = [lambda w=w, x=xs[w.shape[1]], b=b: (w * x).sum(1) + b for w, b in zip(ws, bs)]
    elif how == "int8-weights":
        q = [(w / w.abs().amax(1, keepdim=True) * 127).round().to(torch.int8) for w in ws]
        sc = [(w.abs().amax(1) / 127).bfloat16() for w in ws]
        xb = {i: x.bfloat16() for i, x in xs.items()}
        ops = [lambda w=w, x=xb[w.shape[1]], s=s: torch._weight_int8pack_mm(x, w, s) for w, s in zip(q, sc)]
    else:
        ops = [lambda w=w, x=xs[w.shape[1]], b=b: F.linear(x, w, b) for w, b in zip(ws, bs)]
    n = sum(w.numel() for w in ws)

    def run():
        with torch.inference_mode():
            for o in ops:
                o()
    return Work({"linears": Metric(run, "tokens/s", batch, warmup=3, flops=2.0 * n * batch)}, dict(params=n, batch=batch), ("torch",))


for b in (1, 16):
    for h in ("linear", "bf16-linear", "onednn", "onednn-packed", "transposed", "int8-weights") + (("mv", "elementwise-sum") if b == 1 else ()):
        REG.add(f"token-linears/{h}/b{b}", functools.partial(gemv, h, b), f"token linears b{b}")

def byhand_sdpa(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kw):
    import torch
    d = q.shape[-1]
    s = (q * (d ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if is_causal:
        s = s + torch.full(s.shape[-2:], float("-inf"), dtype=s.dtype).triu(1)
    if attn_mask is not None:
        s = s + attn_mask
    return s.softmax(-1) @ v


def tricks(base, dtype, what):
    """A peer's own train step with attention by bmm, fused AdamW, oneDNN for fp32 linears: the sum of the above."""
    import importlib

    import torch
    import torch.nn.functional as F
    if "bmm" in what:
        F.scaled_dot_product_attention = byhand_sdpa
    if "fused" in what:
        A = torch.optim.AdamW
        torch.optim.AdamW = lambda p, **kw: A(p, **dict(kw, fused=True))
    if "onednn" in what:
        torch.set_float32_matmul_precision("medium")
    if base == "nanogpt":
        w = importlib.import_module("lm_train").build("nanogpt", dtype, "compile" if "compile" in what else "eager", 256)
    else:
        w = importlib.import_module("unet_train").build("diffusers", "channels_last" if "cl" in what else "eager", dtype)
    w.config["tricks"] = what
    return w


for base in ("nanogpt", "diffusers-unet"):
    for dtype in ("fp32", "bf16"):
        for what in ("", "fused", "bmm", "fused+bmm+onednn") + (("fused+bmm+onednn+compile",) if base == "nanogpt" else ("fused+bmm+onednn+cl",)):
            REG.add(f"tricks/{base}/{dtype}/{what or 'as it is'}", functools.partial(tricks, base, dtype, what), f"tricks {base} {dtype}")
