"""VAE on 28x28 images, MLP and conv: images/s.  pythae's trainer against plain loops on the same nets."""
import functools
import tempfile

import harness
from harness import Metric, Registry, Work

B = 128
REG = Registry("vae_train", rounds=5, slice=0.3, budget=240, needs={"pythae": ("pythae",)})


def build(kind, how):
    import torch
    import torch.nn.functional as F
    from pythae.models import VAE, VAEConfig
    torch.manual_seed(0)
    n = 6400 if kind == "mlp" else 640
    x = torch.rand(n, 1, 28, 28)
    cfg = VAEConfig(input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce")
    if kind == "mlp":
        m = VAE(cfg)
    else:
        from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST
        m = VAE(cfg, encoder=Encoder_Conv_VAE_MNIST(cfg), decoder=Decoder_Conv_AE_MNIST(cfg))
    vers = ("torch", "pythae")
    if how == "pythae-trainer":
        from pythae.data.datasets import BaseDataset
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        tc = BaseTrainerConfig(output_dir=tempfile.mkdtemp(), num_epochs=1, per_device_train_batch_size=B,
                               learning_rate=1e-3, optimizer_cls="AdamW", no_cuda=True)
        tr = BaseTrainer(model=m, train_dataset=BaseDataset(x, torch.zeros(n)), training_config=tc)
        tr.prepare_training()

        def run():
            tr.train_step(1)
    else:
        from torch.utils.data import DataLoader, TensorDataset
        opt = torch.optim.AdamW(m.parameters(), lr=1e-3, **({"fused": True} if "fused" in how else {}))
        dl = DataLoader(TensorDataset(x), batch_size=B, shuffle=True)
        enc, dec = m.encoder, m.decoder
        m.train()

        def loss(xb):
            o = enc(xb)
            mu, lv = o.embedding, o.log_covariance
            z = mu + torch.exp(0.5 * lv) * torch.randn_like(mu)
            r = dec(z)["reconstruction"]
            bce = F.binary_cross_entropy(r.flatten(1), xb.flatten(1), reduction="none").sum(-1)
            kl = -0.5 * (1 + lv - mu ** 2 - lv.exp()).sum(-1)
            return (bce + kl).mean()
        lossc = torch.compile(loss) if "compile" in how else loss

        def batches():
            if "dataloader" in how:
                for (xb,) in dl:
                    yield xb
            else:
                p = torch.randperm(n)
                for i in range(0, n - B + 1, B):
                    yield x[p[i:i + B]]

        def run():
            for xb in batches():
                opt.zero_grad(set_to_none=True)
                lossc(xb).backward()
                opt.step()
    return Work({"train": Metric(run, "images/s", n, warmup=1)},
                dict(params=harness.nparams(m), batch=B, images=n, kind=kind, how=how, latent=16), vers)


for kind in ("mlp", "conv"):
    for how in ("pythae-trainer", "plain-dataloader", "plain-tensor", "plain-tensor-fused", "plain-tensor-compile"):
        REG.add(f"{how}/{kind}", functools.partial(build, kind, how), kind)
