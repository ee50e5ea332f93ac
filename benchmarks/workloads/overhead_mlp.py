"""What the Trainer costs: MLP 2 -> 256 -> 2, batch 256, AdamW, a log line every 50 steps, beside a bare loop.

The bare loop is what one writes by hand: a permutation per epoch, fused AdamW, the loss read every 50 steps. The
Trainer does its usual work: keyed order, NaN watch, gradient norm, log file. Both must end in the same weights
when given the same batches.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import Check, Gate, Metric, Registry, Work

BATCH, ITEMS, WIDTH, EVERY, LR = 256, 65_536, 256, 50, 1e-3
STEPS = 400  # of a call
REG = Registry("overhead_mlp", rounds=25, slice=0.4, rtol=1e-5, pairs=[("morphogen", "loop", 1.15)])


def given() -> dict[str, Any]:
    """Data (N, 2), targets (N, 2) and initial weights, the same for both sides."""
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    x = rng.standard_normal((ITEMS, 2)).astype("float32")
    y = np.stack([np.sin(x[:, 0] * 2), x[:, 0] * x[:, 1]], 1).astype("float32")
    shapes = ((WIDTH, 2), (WIDTH,), (2, WIDTH), (2,))
    weights = [torch.tensor(rng.standard_normal(s) * 0.1, dtype=torch.float32) for s in shapes]
    return {"x": torch.tensor(x), "y": torch.tensor(y), "weights": weights}


def fixed_batches(x: Any, y: Any, n: int) -> list[tuple[Any, Any]]:
    """The batches that both sides are checked on."""
    return [(x[i * BATCH : (i + 1) * BATCH], y[i * BATCH : (i + 1) * BATCH]) for i in range(n)]


def loop() -> Work:
    import torch
    import torch.nn.functional as F
    from torch import nn

    g = given()
    x, y = g["x"], g["y"]

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.Sequential(nn.Linear(2, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2))
        with torch.no_grad():
            for p, w in zip(net.parameters(), g["weights"], strict=True):
                p.copy_(w)
        return net, torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def train(net: nn.Module, opt: torch.optim.Optimizer, batches: Iterator[tuple[Any, Any]], steps: int) -> None:
        for i in range(steps):
            xb, yb = next(batches)
            loss = F.mse_loss(net(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            if (i + 1) % EVERY == 0:
                log.write(json.dumps({"step": i, "loss": loss.item()}) + "\n")

    def endless() -> Iterator[tuple[Any, Any]]:
        while True:
            order = torch.randperm(ITEMS)
            for i in range(0, ITEMS, BATCH):
                index = order[i : i + BATCH]
                yield x[index], y[index]

    log = (Path(tempfile.mkdtemp()) / "log.jsonl").open("w", buffering=1)
    net, opt = fresh()
    batches = endless()

    def check() -> Check:
        net, opt = fresh()
        train(net, opt, iter(fixed_batches(x, y, 5)), 5)
        return {f"weights {i}": p.detach().flatten().tolist() for i, p in enumerate(net.parameters())}

    return Work(
        {"train": Metric(lambda: train(net, opt, batches, STEPS), "steps/s", STEPS, warmup=2)},
        {"width": WIDTH, "batch": BATCH, "optim": "AdamW fused", "log every": EVERY},
        ("torch",),
        check=check,
    )


def morphogen() -> Work:
    import torch
    import torch.nn.functional as F

    from morphogen.core import Batch, Loss, Model, Place, State
    from morphogen.data.items import Tensors
    from morphogen.data.source import Shuffled
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.nets.mlp import MLP
    from morphogen.optim import AdamW
    from morphogen.spec import Remembers
    from morphogen.train import Trainer

    g = given()

    class Regression(Model):
        def __init__(self) -> None:
            super().__init__()
            self.net = MLP(2, 2, WIDTH, depth=1)
            with torch.no_grad():
                for p, w in zip(self.parameters(), g["weights"], strict=True):
                    p.copy_(w)

        def loss(self, batch: Batch) -> Loss:
            return Loss(F.mse_loss(self.net(batch["x"]), batch["cond"]["y"]))

    class Fixed(Remembers):
        """The checked batches, in their order; a `Source`."""

        def __init__(self) -> None:
            self.at, self.batches = 0, fixed_batches(g["x"], g["y"], 5)

        def start(self, place: Place) -> None: ...

        def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
            x, y = self.batches[self.at]
            self.at += 1
            return {"x": x, "cond": {"y": y}}

        def state(self) -> State:
            return {"at": self.at}

        def restore(self, state: State) -> None:
            self.at = state["at"]

    class Gated(Shuffled):
        """The usual source, which stands still between slices."""

        def next(self, actor: Model | None = None, heard: Mapping[str, Loss] | None = None) -> Batch:
            gate.step()
            return super().next(actor, heard)

    def fit(steps: int, source: Any) -> Model:
        model = Regression()
        trainer = Trainer(steps, optim=AdamW(LR), log_every=EVERY, save_every=10**9)
        trainer.fit(model, Data(source), run=tempfile.mkdtemp(), device="cpu", voice=Voice())
        return model

    def check() -> Check:
        return {f"weights {i}": p.detach().flatten().tolist() for i, p in enumerate(fit(5, Fixed()).parameters())}

    gate = Gate()
    return Work(
        {"train": Metric(lambda: gate.run(STEPS), "steps/s", STEPS, warmup=2)},
        {"width": WIDTH, "batch": BATCH, "optim": "AdamW fused", "log every": EVERY},
        ("torch", "morphogen"),
        check=check,
        main=lambda: fit(10**9, Gated(Tensors(g["x"], {"y": g["y"]}), BATCH)),
    )


REG.add("loop", loop, smoke=True)
REG.add("morphogen", morphogen, smoke=True)
