"""Greedy decode of 256 new tokens from a 16-token prompt, batch 1 and 16: tokens/s."""
import functools

import harness
import lm_train
from harness import Metric, Registry, Work

PROMPT, NEW, BLOCK, VOCAB = 16, 256, 512, 256
REG = Registry("lm_decode", rounds=5, slice=0.3, budget=420, needs={"hf": ("transformers",), "xtransformers": ("x_transformers",)})


def build(which, batch, dtype="fp32", vocab=VOCAB):
    import torch
    torch.manual_seed(0)
    x = torch.randint(vocab, (batch, PROMPT))
    cfg = dict(batch=batch, prompt=PROMPT, new=NEW, vocab=vocab, dtype=dtype, layers=lm_train.L, heads=lm_train.H,
               width=lm_train.C, positions=BLOCK)
    vers = ("torch",)
    if which.startswith("hf"):
        m, _, v, e = lm_train.hf_model(vocab, BLOCK)
        m.config.use_cache = True
        m.generation_config.eos_token_id = None
        m.generation_config.pad_token_id = 0
        kw = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=True)
        if which == "hf-static":
            kw["cache_implementation"] = "static"
        elif which == "hf-static-compile":
            from transformers.generation import CompileConfig
            cc = CompileConfig(mode="default", fullgraph=False, dynamic=False)
            cc._compile_all_devices = True
            kw.update(cache_implementation="static", compile_config=cc)
        mask = torch.ones_like(x)

        def gen():
            return m.generate(input_ids=x, attention_mask=mask, **kw)
    elif which == "xtransformers":
        m, _, v, e = lm_train.xt_model(vocab, BLOCK)
        from x_transformers import AutoregressiveWrapper
        w = AutoregressiveWrapper(m)
        w.eval()

        def gen():
            return w.generate(x, NEW, temperature=0.0, cache_kv=True)
    else:
        m, _, v, e = lm_train.nanogpt_model(vocab, BLOCK)

        def gen():
            return m.generate(x, NEW, top_k=1)
    m.eval()
    if dtype == "bf16":
        m = m.to(torch.bfloat16)

    def run():
        with torch.no_grad():
            out = gen()
        assert out.shape[1] in (NEW, NEW + PROMPT), out.shape
    cfg.update(e, params=harness.nparams(m))
    # every token reads every weight once and multiplies each by every row of the batch
    return Work({"decode": Metric(run, "tokens/s", batch * NEW, warmup=1,
                                  flops=2.0 * lm_train.L * 12 * lm_train.C ** 2 * batch * NEW)}, cfg, vers + v)


for b in (1, 16):
    for w in ("hf-dynamic", "hf-static", "hf-static-compile", "xtransformers", "nanogpt-nocache"):
        if b == 16 and w == "nanogpt-nocache":
            continue                      # 86 s a call (48 tokens/s, measured once): too slow to interleave
        REG.add(f"{w}/b{b}", functools.partial(build, w, b), f"b{b}")
    REG.add(f"hf-dynamic/bf16/b{b}", functools.partial(build, "hf-dynamic", b, "bf16"), f"b{b}")
