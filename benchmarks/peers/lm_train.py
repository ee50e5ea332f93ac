"""GPT-2-style decoder, forward + backward + AdamW: tokens/s.  (nanoGPT, HF GPT-2, x-transformers)"""
import contextlib
import functools
import os

import harness
from harness import Metric, Registry, Work

L, H, C, T, B = 6, 6, 384, 256, 8
REG = Registry("lm_train", rounds=5, slice=3.0, budget=330, needs={"hf": ("transformers",), "xtransformers": ("x_transformers",)})


def nanogpt_model(vocab, block=T):
    path = harness.checkout("nanogpt")
    mod = harness.import_file(os.path.join(path, "model.py"), "nanogpt_model")
    m = mod.GPT(mod.GPTConfig(block_size=block, vocab_size=vocab, n_layer=L, n_head=H, n_embd=C,
                              dropout=0.0, bias=True))
    return m, (lambda m, x, y: m(x, y)[1]), (), {"commit": harness.git_version(path)}


def hf_model(vocab, block=T):
    from transformers import GPT2Config, GPT2LMHeadModel
    cfg = GPT2Config(vocab_size=vocab, n_positions=block, n_embd=C, n_layer=L, n_head=H,
                     resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa",
                     bos_token_id=None, eos_token_id=None, use_cache=False)
    m = GPT2LMHeadModel(cfg)
    import torch.nn.functional as F

    def loss(m, x, y):
        lg = m(input_ids=x).logits
        return F.cross_entropy(lg.reshape(-1, lg.shape[-1]), y.reshape(-1))
    return m, loss, ("transformers",), {"attn": m.config._attn_implementation}


def xt_model(vocab, block=T):
    from x_transformers import Decoder, TransformerWrapper
    import torch.nn.functional as F
    m = TransformerWrapper(num_tokens=vocab, max_seq_len=block, tie_embedding=True,
                           attn_layers=Decoder(dim=C, depth=L, heads=H, attn_flash=True))

    def loss(m, x, y):
        lg = m(x)
        return F.cross_entropy(lg.reshape(-1, lg.shape[-1]), y.reshape(-1))
    return m, loss, ("x-transformers",), {"attn_flash": True}


MODELS = {"nanogpt": nanogpt_model, "hf": hf_model, "xtransformers": xt_model}


def build(which, dtype, mode, vocab):
    import torch
    torch.manual_seed(0)
    m, loss_fn, vers, extra = MODELS[which](vocab)
    m.train()
    opt = torch.optim.AdamW(m.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    x = torch.randint(vocab, (B, T)); y = torch.randint(vocab, (B, T))
    ac = (lambda: torch.autocast("cpu", torch.bfloat16)) if dtype == "bf16" else contextlib.nullcontext

    def fb(mm):
        opt.zero_grad(set_to_none=True)
        with ac():
            loss = loss_fn(mm, x, y)
        loss.backward()
        return loss
    flops = harness.count_flops(lambda: fb(m)) if which == "nanogpt" else 0
    mm = torch.compile(m) if mode == "compile" else m

    def step():
        fb(mm)
        opt.step()
    return Work({"train": Metric(step, "tokens/s", B * T, flops=flops, warmup=2)},
                dict(params=harness.nparams(m), layers=L, heads=H, width=C, block=T, vocab=vocab, batch=B,
                     dtype=dtype, mode=mode, optim="AdamW (torch default)", **extra), ("torch",) + vers)


for vocab in (256, 50304):
    for dtype in ("fp32", "bf16"):
        for which in MODELS:
            for mode in ("eager", "compile"):
                REG.add(f"{which}/{mode}/{dtype}/v{vocab}",
                        functools.partial(build, which, dtype, mode, vocab), f"v{vocab}/{dtype}")
