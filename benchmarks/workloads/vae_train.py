"""A VAE of 28x28 pictures of two values, pythae's MLP and its convolutional nets: training, beside pythae's trainer and
a minimal loop.

All have the same layers, 16 latents, batches of 128 and AdamW. Ours is `VAE` through the Trainer (keyed order and
noise, log, NaN watch). The minimal loop is what one writes by hand: the data a tensor, a permutation an epoch, one
layer for means and log-variances, cross entropy of logits, the fused optimiser. pythae's is its model, its data set and
its trainer as they come: two heads, a sigmoid and the cross entropy of probabilities, a loader that collates samples.
The check holds losses and gradients of all against one another, from the same weights, pictures and noise.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from typing import Any

from harness import Check, Gate, Metric, Registry, Work, nparams, shared, smoking

BATCH, LATENT = 128, 16
LR = 1e-6  # so small that no picture is learnt by heart: gradients of sure pixels are denormal numbers, which are slow
STEPS = {"mlp": 50, "conv": 2}  # of a call
REG = Registry(
    "vae_train",
    rounds=21,
    slice=1.0,
    budget=280,
    rtol=2e-4,
    needs={"pythae": ("pythae",)},
    pairs=[
        ("morphogen/mlp", "pythae/mlp", 1 / 1.25),
        ("morphogen/conv", "pythae/conv", 1 / 1.05),
        ("morphogen/mlp", "loop/mlp", 1.05),
        ("morphogen/conv", "loop/conv", 1.05),
    ],
)


def pictures(kind: str) -> Any:
    """Data (N, 1, 28, 28) of zeros and ones."""
    import torch

    n = 2 * BATCH if smoking() else BATCH * (50 if kind == "mlp" else 5)
    return (torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def nets(kind: str) -> tuple[Any, Any]:
    """Encoder (B, 1, 28, 28) -> (B, 2 LATENT) and decoder (B, LATENT) -> logits (B, 784), always alike."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if kind == "mlp":
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 2 * LATENT))
        return encoder, nn.Sequential(nn.Linear(LATENT, 512), nn.ReLU(), nn.Linear(512, 784))
    top = 32 if smoking() else 128
    down = [
        layer
        for a, b in ((1, top), (top, 2 * top), (2 * top, 4 * top), (4 * top, 8 * top))
        for layer in (nn.Conv2d(a, b, 4, 2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
    ]
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(8 * top, 2 * LATENT))
    up = [
        layer
        for a, b, more in ((8 * top, 4 * top, 0), (4 * top, 2 * top, 1))
        for layer in (nn.ConvTranspose2d(a, b, 3, 2, padding=1, output_padding=more), nn.BatchNorm2d(b), nn.ReLU())
    ]
    last = nn.ConvTranspose2d(2 * top, 1, 3, 2, padding=1, output_padding=1)
    with torch.no_grad():
        last.weight.mul_(0.1)  # logits of 28, as they come, are a probability of 1 and a clipped logarithm in pythae
    first = (nn.Linear(LATENT, 8 * top * 16), nn.Unflatten(1, (8 * top, 4, 4)))
    return encoder, nn.Sequential(*first, *up, last, nn.Flatten())


def fingerprint(loss: Any, *nets: Any) -> Check:
    """The loss, and the gradients thinned out; those of a bias before a batch norm are zero but for rounding."""
    found = {"loss": [loss.item()]}
    for i, net in enumerate(nets):
        for name, p in net.named_parameters():
            if float(p.grad.abs().max()) > 1e-4:
                found[f"gradient {i} {name}"] = p.grad.flatten()[::173].tolist()
    return found


def config(kind: str, *nets: Any) -> dict[str, Any]:
    params = sum(nparams(net) for net in nets)
    return {"params": params, "batch": BATCH, "images": len(pictures(kind)), "latent": LATENT, "optim": "AdamW"}


def morphogen(kind: str) -> Work:
    import torch

    from morphogen.core import NONE, Batch, Loss, Model, Net, Noise, keys
    from morphogen.data.items import Tensors
    from morphogen.data.source import Shuffled
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.latent.likelihood import Bernoulli
    from morphogen.latent.posterior import Diagonal
    from morphogen.latent.vae import VAE
    from morphogen.optim import AdamW
    from morphogen.train import Trainer

    class Part(Net):
        """A net that takes conditions and reads none."""

        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any, cond: Mapping[str, Any] = NONE) -> Any:
            return self.net(x)

    def fresh() -> VAE:
        encoder, decoder = nets(kind)
        return VAE(Diagonal(Part(encoder), LATENT), Part(decoder), Bernoulli((1, 28, 28), 0.0, 1.0))

    class Gated(Shuffled):
        """The usual source, which stands still between slices."""

        def next(self, actor: Model | None = None, heard: Mapping[str, Loss] | None = None) -> Batch:
            gate.step()
            return super().next(actor, heard)

    def check() -> Check:
        key, model = keys(torch.arange(BATCH), 7), fresh()
        Noise(key).normal(LATENT).numpy().tofile(shared() / f"noise-{kind}")
        loss = model.loss({"x": x[:BATCH], "key": key}).value
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        return fingerprint(loss, model.posterior.encoder.net, model.decoder.net)

    def train() -> None:
        trainer = Trainer(10**9, optim=AdamW(LR), log_every=50, save_every=10**9)
        trainer.fit(fresh(), Data(Gated(Tensors(x), BATCH)), run=tempfile.mkdtemp(), device="cpu", voice=Voice())

    x, gate, steps = pictures(kind), Gate(), STEPS[kind]
    return Work(
        {"train": Metric(lambda: gate.run(steps), "images/s", steps * BATCH, warmup=2)},
        config(kind, *nets(kind)),
        ("torch", "morphogen"),
        check=check,
        main=train,
    )


def loop(kind: str) -> Work:
    import torch
    import torch.nn.functional as F

    def loss_of(encoder: Any, decoder: Any, x: Any, eps: Any) -> Any:
        mean, log_var = encoder(x).chunk(2, 1)
        logits = decoder(mean + (0.5 * log_var).exp() * eps)
        bce = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="none").sum(1)
        return (bce + 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)).mean()

    def train() -> None:
        for _ in range(steps):
            index = next(batches)
            loss_of(encoder, decoder, x[index], torch.randn(BATCH, LATENT)).backward()
            opt.step()
            opt.zero_grad(set_to_none=True)

    def endless() -> Any:
        while True:
            yield from torch.randperm(len(x)).split(BATCH)

    def check() -> Check:
        eps = torch.from_file(str(shared() / f"noise-{kind}"), size=BATCH * LATENT).view(BATCH, LATENT)
        parts = nets(kind)
        loss = loss_of(*parts, x[:BATCH], eps)
        loss.backward()
        return fingerprint(loss, *parts)

    x, steps, batches = pictures(kind), STEPS[kind], endless()
    encoder, decoder = nets(kind)
    params = [*encoder.parameters(), *decoder.parameters()]
    opt = torch.optim.AdamW(params, lr=LR, weight_decay=0.0, fused=True)
    metric = Metric(train, "images/s", steps * BATCH, warmup=2)
    return Work({"train": metric}, config(kind, encoder, decoder) | {"optim": "AdamW fused"}, ("torch",), check=check)


def pythae(kind: str) -> Work:
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    def fresh() -> Any:
        """pythae's model with the weights of `nets`: its layers come in their order, with two heads for the one."""
        settings = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
        if kind == "mlp":
            model = VAE(settings)
        else:
            from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST

            model = VAE(settings, Encoder_Conv_VAE_MNIST(settings), Decoder_Conv_AE_MNIST(settings))
        encoder, decoder = nets(kind)
        *trunk, weight, bias = encoder.parameters()
        given = [*trunk, weight[:LATENT], bias[:LATENT], weight[LATENT:], bias[LATENT:]]
        with torch.no_grad():
            for mine, theirs in ((given, model.encoder), (list(decoder.parameters()), model.decoder)):
                for p, w in zip(theirs.parameters(), mine, strict=True):
                    p.copy_(w)
        return model

    def check() -> Check:
        model = fresh()
        eps = torch.from_file(str(shared() / f"noise-{kind}"), size=BATCH * LATENT).view(BATCH, LATENT)
        model._sample_gauss = lambda mu, std: (mu + eps * std, eps)
        loss = model({"data": x[:BATCH]}).loss
        loss.backward()
        encoder, decoder = nets(kind)  # the gradients laid out as theirs
        *trunk, m, mb, v, vb = [p.grad for p in model.encoder.parameters()]
        grads = [*trunk, torch.cat((m, v)), torch.cat((mb, vb))], [p.grad for p in model.decoder.parameters()]
        for net, found in zip((encoder, decoder), grads, strict=True):
            for p, g in zip(net.parameters(), found, strict=True):
                p.grad = g
        return fingerprint(loss, encoder, decoder)

    x = pictures(kind)
    images = x[: STEPS[kind] * BATCH]
    settings = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        num_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        optimizer_cls="AdamW",
        optimizer_params={"weight_decay": 0.0},
        no_cuda=True,
    )
    model = fresh()
    data = BaseDataset(images, torch.zeros(len(images)))
    trainer = BaseTrainer(model=model, train_dataset=data, training_config=settings)
    trainer.prepare_training()
    metric = Metric(lambda: trainer.train_step(1), "images/s", len(images), warmup=2)
    return Work({"train": metric}, config(kind, model), ("torch", "pythae"), check=check)


for kind in ("mlp", "conv"):
    REG.add(f"morphogen/{kind}", functools.partial(morphogen, kind), kind, smoke=True)
    REG.add(f"loop/{kind}", functools.partial(loop, kind), kind, smoke=True)
    REG.add(f"pythae/{kind}", functools.partial(pythae, kind), kind)
