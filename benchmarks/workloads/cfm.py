"""Flow matching on 2-D moons, an MLP of 4 layers of 256: training steps, those with exact minibatch optimal transport,
and samples by 100 Euler steps.

Ours is `rectified_flow` through the Trainer (keyed order and noise, log, NaN watch); the peers' losses stand in a bare
loop. All have the same net and fused AdamW. Ours has data at t = 0 and a velocity towards noise, the peers have data
at t = 1 and a velocity towards data: the check turns the weights round, and compares loss and gradient on our draws.
With optimal transport it compares the cost of the plan too. There torchcfm draws pairs of its plan with replacement, as
its paper does, and plans in the step; ours uses each pair of the plan once, and plans beside the step.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from harness import Check, Gate, Metric, Registry, Work, nparams, shared, smoking

BATCH, DRAWN, WIDTH, LR, STEPS = 256, 1024, 256, 1e-3, 100
REG = Registry(
    "cfm",
    rounds=15,
    slice=0.5,
    budget=200,
    rtol=1e-4,
    needs={"torchcfm": ("torchcfm",), "flow_matching": ("flow_matching",)},
    pairs=[
        ("morphogen", "torchcfm", 1.0),
        ("morphogen", "flow_matching", 1.0),
        ("morphogen", "plain", None),
        ("morphogen sampler", "plain", None),
        ("morphogen OT", "torchcfm OT", 1 / 1.3),
    ],
)
CONFIG = {"batch": BATCH, "width": WIDTH, "drawn": DRAWN, "optim": "AdamW fused", "euler steps": STEPS}


def moons() -> Any:
    """Two half circles with noise 0.05 (N, 2), standardised."""
    import torch

    n = 2_000 if smoking() else 100_000
    g = torch.Generator().manual_seed(0)
    angle = torch.rand(n, generator=g) * torch.pi
    upper = torch.arange(n) % 2 == 0
    x = torch.stack([angle.cos(), angle.sin()], 1)
    x = torch.where(upper[:, None], x, torch.tensor([1.0, 0.5]) - x)
    x += 0.05 * torch.randn(n, 2, generator=g)
    return (x - x.mean(0)) / x.std(0)


def weights() -> list[Any]:
    """Weights and biases of the peers' net, layer by layer."""
    import torch

    g = torch.Generator().manual_seed(1)
    shapes = [(WIDTH, 3), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (2, WIDTH), (2,)]
    return [torch.randn(s, generator=g) * (2 / s[-1]) ** 0.5 * (1.0 if len(s) == 2 else 0.1) for s in shapes]


def turned(w: list[Any]) -> list[Any]:
    """Weights with which our net at t is minus the peers' net at 1 − t; its own inverse."""
    first, bias, *rest = w
    flipped = first.clone()
    flipped[:, 2] = -first[:, 2]
    return [flipped, bias + first[:, 2], *rest[:-2], -rest[-2], -rest[-1]]


def morphogen(part: str) -> Work:
    """Ours, training, training with optimal transport or sampling, a worker each: a second thread that computes beside
    the Trainer's brings a second pool of OpenMP threads, and with more threads than cores both wait asleep instead of
    awake (1.4 times slower).
    """
    import torch

    from morphogen.core import Loss, Model, Noise, Source, keys
    from morphogen.data.items import Tensors
    from morphogen.data.source import Shuffled
    from morphogen.diffusion import Diffusion, rectified_flow
    from morphogen.diffusion.coupling import OptimalTransport, assign
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.nets.mlp import MLP
    from morphogen.optim import AdamW
    from morphogen.spec import Remembers
    from morphogen.train import Trainer

    x = moons()

    def fresh() -> Diffusion:
        model = rectified_flow(MLP(2, 2, WIDTH, depth=3, scalars=("t",)), (2,), scale=1.0)
        with torch.no_grad():
            for p, w in zip(model.parameters(), turned(weights()), strict=True):
                p.copy_(w)
        return model

    class Gated(Remembers):
        """A source which stands still between slices."""

        def __init__(self, source: Source) -> None:
            self.start, self.state, self.restore = source.start, source.state, source.restore
            self.source = source

        def next(self, actor: Model, heard: Mapping[str, Loss]) -> Any:
            gate.step()
            return self.source.next(actor, heard)

    def check() -> Check:
        model, key = fresh(), keys(torch.arange(BATCH), 7)
        noise = Noise(key)
        t, z = model.density(noise, model.path, x.dtype), noise.normal(2, dtype=x.dtype)
        torch.stack([t, *z.T, *x[:BATCH].T]).numpy().tofile(shared() / "draws")
        batch, cost = {"x": x[:BATCH], "key": key}, {}
        if part == "OT":
            batch["z"] = z[torch.from_numpy(assign(batch["x"], z))]
            cost = {"cost": [(batch["x"] - batch["z"]).square().sum(1).mean().item()]}
        loss = model.loss(batch).value
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        # seen from the peers' side: their bias feeds our bias alone, their time column our bias and our time column
        g = [p.grad for p in model.parameters()]
        first = g[0].clone()
        first[:, 2] = g[1] - g[0][:, 2]
        told = [first, g[1], *g[2:-2], -g[-2], -g[-1]]
        return {"loss": [loss.item()], **cost} | {
            f"gradient {i}": v.flatten()[::7].tolist() for i, v in enumerate(told)
        }

    def train() -> None:
        trainer = Trainer(10**9, optim=AdamW(LR), log_every=50, save_every=10**9)
        source: Source = Shuffled(Tensors(x), BATCH)
        source = Gated(OptimalTransport(source) if part == "OT" else source)
        trainer.fit(model, Data(source), run=tempfile.mkdtemp(), device="cpu", voice=Voice())

    @torch.no_grad()
    def sample() -> None:
        frozen.sample(DRAWN, noise=Noise.seeded(0, DRAWN), steps=STEPS)

    gate, model, frozen = Gate(), fresh(), fresh().eval()
    metrics = {
        "train": Metric(lambda: gate.run(50), "steps/s", 50, warmup=2),
        "sample": Metric(sample, "samples/s", DRAWN, warmup=2),
    }
    return Work(
        {"train" if part == "OT" else part: metrics["train" if part == "OT" else part]},
        CONFIG | {"params": nparams(model)},
        ("torch", "morphogen"),
        check=check,
        main=None if part == "sample" else train,
    )


def losses(which: str) -> Callable[[Any, Any, Any, Any], Any]:
    """A peer's loss of (net, data, noise, time)."""
    if which in ("torchcfm", "torchcfm OT"):
        from torchcfm.conditional_flow_matching import (
            ConditionalFlowMatcher,
            ExactOptimalTransportConditionalFlowMatcher,
        )

        kinds = {"torchcfm": ConditionalFlowMatcher, "torchcfm OT": ExactOptimalTransportConditionalFlowMatcher}
        matcher = kinds[which](sigma=0.0)

        def torchcfm(net: Any, x1: Any, x0: Any, t: Any) -> Any:
            t, x_t, u = matcher.sample_location_and_conditional_flow(x0, x1, t=t)
            return ((net(x_t, t) - u) ** 2).mean()

        return torchcfm
    if which == "flow_matching":
        from flow_matching.path import AffineProbPath
        from flow_matching.path.scheduler import CondOTScheduler

        path = AffineProbPath(scheduler=CondOTScheduler())

        def flow_matching(net: Any, x1: Any, x0: Any, t: Any) -> Any:
            s = path.sample(t=t, x_0=x0, x_1=x1)
            return ((net(s.x_t, s.t) - s.dx_t) ** 2).mean()

        return flow_matching

    def plain(net: Any, x1: Any, x0: Any, t: Any) -> Any:
        return ((net(x0 + t[:, None] * (x1 - x0), t) - (x1 - x0)) ** 2).mean()

    return plain


def peer(which: str) -> Work:
    import numpy as np
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (3, WIDTH, WIDTH, WIDTH)
            hidden = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
            self.net = nn.Sequential(*hidden, nn.Linear(WIDTH, 2))
            with torch.no_grad():
                for p, w in zip(self.parameters(), weights(), strict=True):
                    p.copy_(w)

        def forward(self, x: Any, t: Any) -> Any:
            return self.net(torch.cat([x, t.expand(len(x))[:, None]], 1))

    x, net, loss_of = moons(), Net(), losses(which)
    frozen = Net().eval()
    opt = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def step() -> None:
        x1 = x[torch.randint(len(x), (BATCH,))]
        loss_of(net, x1, torch.randn_like(x1), torch.rand(BATCH)).backward()
        opt.step()
        opt.zero_grad(set_to_none=True)

    def train() -> None:
        for _ in range(50):
            step()

    @torch.no_grad()
    def sample() -> None:
        """Euler's rule: what each of the peers does, or leaves to the user."""
        z, dt = torch.randn(DRAWN, 2), 1 / STEPS
        for i in range(STEPS):
            z = z + dt * frozen(z, torch.tensor(i * dt))

    def check() -> Check:
        t, z0, z1, x0, x1 = torch.from_numpy(np.fromfile(shared() / "draws", np.float32).reshape(5, BATCH))
        fresh, data, noise, cost = Net(), torch.stack([x0, x1], 1), torch.stack([z0, z1], 1), {}
        if which == "torchcfm OT":  # its plan, each pair once
            from torchcfm.optimal_transport import OTPlanSampler

            noise = noise[torch.from_numpy(OTPlanSampler("exact").get_map(noise, data).argmax(0))]
            cost = {"cost": [(data - noise).square().sum(1).mean().item()]}
        loss = losses(which.removesuffix(" OT"))(fresh, data, noise, 1 - t)
        loss.backward()
        grads = {f"gradient {i}": p.grad.flatten()[::7].tolist() for i, p in enumerate(fresh.parameters())}
        return {"loss": [loss.item()], **cost} | grads

    metrics = {"train": Metric(train, "steps/s", 50, warmup=2)}
    if which == "plain":
        metrics["sample"] = Metric(sample, "samples/s", DRAWN, warmup=2)
    versions = {"torchcfm": ("torchcfm",), "torchcfm OT": ("torchcfm", "POT"), "flow_matching": ("flow-matching",)}.get(
        which, ()
    )
    return Work(metrics, CONFIG | {"params": nparams(net)}, ("torch", *versions), check=check)


REG.add("morphogen", functools.partial(morphogen, "train"), smoke=True)
REG.add("morphogen sampler", functools.partial(morphogen, "sample"), smoke=True)
REG.add("plain", functools.partial(peer, "plain"), smoke=True)
REG.add("torchcfm", functools.partial(peer, "torchcfm"))
REG.add("flow_matching", functools.partial(peer, "flow_matching"))
REG.add("morphogen OT", functools.partial(morphogen, "OT"), "OT", smoke=True)
REG.add("torchcfm OT", functools.partial(peer, "torchcfm OT"), "OT")
