"""DPO step (TRL) and LoRA fine-tuning (PEFT) of a tiny random GPT-2 (4 layers, 256 wide)."""
import functools
import tempfile

import harness
from harness import Metric, Registry, Work

V, T = 512, 128
REG = Registry("post_train", rounds=5, slice=0.4, budget=300, needs={"": ("transformers",), "trl": ("trl",), "peft": ("peft",)})


def gpt2():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=256, n_embd=256, n_layer=4, n_head=4, resid_pdrop=0.0,
                                      embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", bos_token_id=0,
                                      eos_token_id=1, pad_token_id=2))


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    vocab = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}
    vocab.update({f"w{i}": i for i in range(4, V)})
    t = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                   unk_token="<unk>")


def words(n, g):
    import torch
    return " ".join(f"w{int(i)}" for i in torch.randint(4, V, (n,), generator=g))


def dpo(how):
    import copy

    import torch
    import torch.nn.functional as F
    B, P, C, STEPS = 8, 32, 96, 5
    m, tok = gpt2(), tokenizer()
    g = torch.Generator().manual_seed(0)
    rows = [dict(prompt=words(P, g), chosen=" " + words(C - 1, g), rejected=" " + words(C - 1, g)) for _ in range(64)]
    cfg = dict(pairs_per_step=B, prompt=P, completion=C, params=harness.nparams(m), how=how)
    if how == "trl":
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
        a = DPOConfig(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=B, max_steps=STEPS, logging_steps=1000,
                      save_strategy="no", report_to=[], use_cpu=True, bf16=False, max_length=256, disable_tqdm=True,
                      gradient_checkpointing=False, learning_rate=1e-5, dataloader_pin_memory=False)
        tr = DPOTrainer(model=m, ref_model=copy.deepcopy(m), args=a, train_dataset=Dataset.from_list(rows),
                        processing_class=tok)
        cfg["optim"] = str(a.optim)

        def run():
            tr.train()
        vers = ("torch", "trl", "transformers", "accelerate")
    else:
        ref = copy.deepcopy(m).eval().requires_grad_(False)
        opt = torch.optim.AdamW(m.parameters(), lr=1e-5)
        enc = [(tok(r["prompt"] + r["chosen"] + " </s>")["input_ids"], tok(r["prompt"] + r["rejected"] + " </s>")["input_ids"])
               for r in rows]
        x = torch.tensor([c for c, _ in enc] + [r for _, r in enc])     # equal lengths by construction
        n = len(rows)

        def logp(mm, ids):
            lg = mm(input_ids=ids, use_cache=False).logits[:, P - 1:-1]
            return -F.cross_entropy(lg.transpose(1, 2), ids[:, P:], reduction="none").sum(-1)

        def run():
            for s in range(STEPS):
                i = torch.randint(n, (B,))
                ids = torch.cat([x[i], x[n + i]])
                opt.zero_grad(set_to_none=True)
                with torch.no_grad():
                    r = logp(ref, ids)
                d = logp(m, ids) - r
                (-F.logsigmoid(0.1 * (d[:B] - d[B:])).mean()).backward()
                torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
                opt.step()
        vers = ("torch", "transformers")
    return Work({"train": Metric(run, "steps/s", STEPS, warmup=1, once=True)}, cfg, vers)


def lora(how):
    import torch
    B, STEPS = 8, 8
    m = gpt2()
    m.config.use_cache = False
    x = torch.randint(4, V, (B * STEPS, T))
    vers = ("torch", "transformers")
    if "full" not in how:
        from peft import LoraConfig, get_peft_model
        m = get_peft_model(m, LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True,
                                         task_type="CAUSAL_LM"))
        vers += ("peft",)
    tr = sum(p.numel() for p in m.parameters() if p.requires_grad)
    cfg = dict(batch=B, block=T, trainable=tr, params=harness.nparams(m), rank=8, target="c_attn", how=how)
    if "trainer" in how:
        from transformers import Trainer, TrainingArguments
        a = TrainingArguments(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=B, max_steps=STEPS,
                              logging_steps=1000, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
                              dataloader_pin_memory=False)
        ds = [dict(input_ids=r, labels=r) for r in x]
        t = Trainer(model=m, args=a, train_dataset=ds)
        cfg["optim"] = str(a.optim)
        vers += ("accelerate",)

        def run():
            t.train()
    else:
        opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-4)
        m.train()

        def run():
            for s in range(STEPS):
                xb = x[s * B:(s + 1) * B]
                opt.zero_grad(set_to_none=True)
                m(input_ids=xb, labels=xb).loss.backward()
                opt.step()
    return Work({"train": Metric(run, "tokens/s", STEPS * B * T, warmup=1, once=True)}, cfg, vers)


REG.add("trl/dpo", functools.partial(dpo, "trl"), "dpo")
REG.add("plain-loop/dpo", functools.partial(dpo, "plain"), "dpo")
REG.add("peft/lora", functools.partial(lora, "peft"), "lora")
REG.add("peft+hf-trainer/lora", functools.partial(lora, "peft+trainer"), "lora")
REG.add("plain-loop/full-finetune", functools.partial(lora, "full"), "lora")
