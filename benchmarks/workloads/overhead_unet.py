"""What the Trainer costs on a real net: a U-Net of 10 million parameters on 32x32x3, beside a bare loop.

Both sides train our U-Net to predict noise (linear path, batch 8) with fused AdamW; the bare loop draws with torch's
generator and knows nothing of keys, logs or NaN. Both must end in the same weights when given the same noised batches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from harness import Check, Gate, Metric, Registry, Work, count_flops, nparams, smoking

BATCH, ITEMS, SIZE, EVERY, LR = 8, 512, 32, 50, 1e-4
REG = Registry("overhead_unet", rounds=31, slice=0.8, budget=270, rtol=1e-4, pairs=[("morphogen", "loop", 1.02)])


def unet() -> Any:
    """The net, with the same random weights whoever makes it."""
    import torch

    from morphogen.nets.unet import UNet

    torch.manual_seed(0)
    widths = (16, 16) if smoking() else (64, 128, 128, 160)
    net = UNet(3, widths=widths, depth=2, attention=(1,))
    with torch.no_grad():
        for p in net.parameters():  # none left at zero: every gradient is alive from the first step
            p.add_(torch.randn_like(p), alpha=0.02)
    return net


def images() -> Any:
    """Data (N, 3, SIZE, SIZE)."""
    import torch

    return torch.rand(ITEMS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def fixed_batches(x: Any) -> list[dict[str, Any]]:
    """Clean data, noise and times that both sides are checked on."""
    import torch

    g = torch.Generator().manual_seed(2)
    draws = (
        (x[i : i + BATCH], torch.randn(BATCH, 3, SIZE, SIZE, generator=g), torch.rand(BATCH, generator=g))
        for i in (0, BATCH)
    )
    return [{"x": x, "z": z, "t": t} for x, z, t in draws]


def fingerprint(net: Any) -> Check:
    """The weights after training, thinned out."""
    return {f"weights {i}": p.detach().flatten()[::97].tolist() for i, p in enumerate(net.parameters())}


def noised(net: Any, x: Any, z: Any, t: Any) -> Any:
    """The mean squared error of the predicted noise."""
    import torch.nn.functional as F

    time = t.view(-1, 1, 1, 1)
    return F.mse_loss(net((1 - time) * x + time * z, {"t": t}), z)


def loop() -> Work:
    import torch

    x, net = images(), unet()
    opt = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)
    said = []

    def train(net: Any, opt: Any, x: Any, z: Any, t: Any) -> None:
        noised(net, x, z, t).backward()
        opt.step()
        opt.zero_grad(set_to_none=True)

    def step() -> None:
        batch = x[torch.randint(ITEMS, (BATCH,))]
        loss = noised(net, batch, torch.randn_like(batch), torch.rand(BATCH))
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        said.append(loss.detach())
        if len(said) == EVERY:
            torch.stack(said).mean().item()
            said.clear()

    def check() -> Check:
        fresh = unet()
        adam = torch.optim.AdamW(fresh.parameters(), lr=LR, weight_decay=0.0, fused=True)
        for b in fixed_batches(x):
            train(fresh, adam, **b)
        return fingerprint(fresh)

    flops = count_flops(lambda: train(net, opt, **fixed_batches(x)[0]))
    config = {"params": nparams(net), "batch": BATCH, "size": SIZE, "optim": "AdamW fused", "log every": EVERY}
    return Work({"train": Metric(step, "steps/s", flops=flops, warmup=2)}, config, ("torch",), check=check)


def morphogen() -> Work:
    from morphogen.core import Batch, Loss, Model, Noise, Place, State
    from morphogen.data.items import Tensors
    from morphogen.data.source import Shuffled
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.optim import AdamW
    from morphogen.spec import Remembers
    from morphogen.train import Trainer

    x = images()

    class Denoiser(Model):
        """Predicts the noise of a batch; a batch may bring its own draws, to be checked on."""

        def __init__(self) -> None:
            super().__init__()
            self.net = unet()

        def loss(self, batch: Batch) -> Loss:
            if "z" in batch:
                return Loss(noised(self.net, batch["x"], batch["z"], batch["t"]))
            noise = Noise(batch["key"])
            return Loss(noised(self.net, batch["x"], noise.normal(3, SIZE, SIZE), noise.uniform()))

    class Fixed(Remembers):
        """The checked batches, in their order; a `Source`."""

        def __init__(self) -> None:
            self.at, self.batches = 0, fixed_batches(x)

        def start(self, place: Place) -> None: ...

        def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
            self.at += 1
            return self.batches[self.at - 1]

        def state(self) -> State:
            return {"at": self.at}

        def restore(self, state: State) -> None:
            self.at = state["at"]

    class Gated(Shuffled):
        """The usual source, which stands still between slices."""

        def next(self, actor: Model | None = None, heard: Mapping[str, Loss] | None = None) -> Batch:
            gate.step()
            return super().next(actor, heard)

    def fit(steps: int, source: Any) -> Any:
        model = Denoiser()
        trainer = Trainer(steps, optim=AdamW(LR), log_every=EVERY, save_every=10**9)
        trainer.fit(model, Data(source), run=tempfile.mkdtemp(), device="cpu", voice=Voice())
        return model.net

    gate = Gate()
    config = {"params": nparams(unet()), "batch": BATCH, "size": SIZE, "optim": "AdamW fused", "log every": EVERY}
    return Work(
        {"train": Metric(lambda: gate.run(1), "steps/s", warmup=2)},
        config,
        ("torch", "morphogen"),
        check=lambda: fingerprint(fit(2, Fixed())),
        main=lambda: fit(10**9, Gated(Tensors(x), BATCH)),
    )


REG.add("loop", loop, smoke=True)
REG.add("morphogen", morphogen, smoke=True)
