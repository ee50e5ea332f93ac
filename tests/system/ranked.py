"""Models that speak to all ranks, and what one of several processes is asked to do: see test_parallel.py.

    python tests/system/ranked.py JOB FOLDER

with the environment that a launcher sets. A job writes what it found to FOLDER/JOB-RANK.json.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen.core import Batch, Loss, Model, Noise, Phase, everyone
from morphogen.data.densities import Drawn, Fresh, eight_gaussians
from morphogen.hooks import Voice
from morphogen.log import read
from morphogen.optim import AdamW

# ---- models --------------------------------------------------------------------------------------------------------


class Adaptive(Model):
    """VQGAN's weight: the critic's pull is scaled by a ratio of two gradients' norms at the last layer."""

    scaffold = ("critic",)

    def __init__(self, width: int = 12, alone: bool = False) -> None:
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Linear(2, width), nn.Tanh()), nn.Linear(width, 2)
        self.critic = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        self.alone = alone  # the mistake: each rank's own ratio

    def counts(self, batch: Batch) -> dict[str, float]:
        return {}

    def phases(self) -> list[Phase]:
        return [Phase(self.rebuild, ("body", "last")), Phase(self.judge, ("critic",))]

    def rebuild(self, batch: Batch) -> Loss:
        made = self.last(self.body(batch["x"]))
        error, pull = (made - batch["x"]).square().mean(), -self.critic(made).mean()
        one, two = (torch.autograd.grad(v, self.last.weight, retain_graph=True)[0] for v in (error, pull))
        if not self.alone:
            one, two = everyone.mean(one), everyone.mean(two)
        weight = (one.norm() / (two.norm() + 1e-4)).clamp(0, 1e4)
        return Loss(error + weight * pull, {"weight": weight})

    def judge(self, batch: Batch) -> Loss:
        made = self.last(self.body(batch["x"])).detach()
        return Loss(F.softplus(-self.critic(batch["x"])).mean() + F.softplus(self.critic(made)).mean())


class CodeBook(Model):
    """A code book that follows the encoder by moving averages of counts and sums over the whole batch."""

    def __init__(self, codes: int = 5, decay: float = 0.8) -> None:
        super().__init__()
        self.encoder, self.decoder, self.decay = nn.Linear(2, 3), nn.Linear(3, 2), decay
        self.register_buffer("book", torch.randn(codes, 3))
        self.register_buffer("count", torch.ones(codes))
        self.register_buffer("total", self.book.clone())

    def loss(self, batch: Batch) -> Loss:
        z = self.encoder(batch["x"])
        code = torch.cdist(z, self.book).argmin(1)
        q = self.book[code]
        made = self.decoder(z + (q - z).detach())
        value = (made - batch["x"]).square().mean() + 0.25 * (z - q).square().mean()
        return Loss(value, seen={"z": z.detach(), "code": code})

    def after_step(self, phase: str, seen: dict[str, Tensor]) -> None:
        chosen = F.one_hot(seen["code"], len(self.book)).to(seen["z"])
        count, total = everyone.sum(chosen.sum(0)), everyone.sum(chosen.T @ seen["z"])
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        self.book.copy_(self.total / (self.count[:, None] + 1e-5))


class Contrast(Model):
    """InfoNCE over the whole batch, with a learnt temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 4), nn.Linear(2, 4)
        self.heat = nn.Parameter(torch.zeros(()))

    def counts(self, batch: Batch) -> dict[str, float]:
        return {}

    def loss(self, batch: Batch) -> Loss:
        x = batch["x"]
        near = x + 0.1 * Noise(batch["key"]).normal(2, dtype=x.dtype)
        a, b = F.normalize(self.one(x), dim=1), F.normalize(self.two(near), dim=1)
        index, others = batch["index"], everyone.gather(batch["index"])
        right = (others[None] == index[:, None]).double().argmax(1)
        forth = F.cross_entropy(a @ everyone.gather(b).T * self.heat.exp(), right)
        back = F.cross_entropy(b @ everyone.gather(a).T * self.heat.exp(), right)
        return Loss((forth + back) / 2, {"heat": self.heat.detach().exp()})


class Ragged(Model):
    """Two denominators, one of which some rank does not have; its mean over nothing is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.spare = nn.Linear(2, 1)  # never used: no rank has its gradient

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"rare": float((batch["cond"]["label"] == 0).sum()), "all": float(len(batch["x"]))}

    def loss(self, batch: Batch) -> Loss:
        out, rare = self.net(batch["x"]).squeeze(1), batch["cond"]["label"] == 0
        return Loss({"rare": ((out - 3).square() * rare).sum() / rare.sum(), "all": out.square().mean()})


class Penalty(Model):
    """A critic whose loss differentiates it: a gradient penalty at points between data and noise."""

    whole = ("critic",)

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 1))
        self.maker = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 2))

    def phases(self) -> list[Phase]:
        return [Phase(self.judge, ("critic",)), Phase(self.make, ("maker",), every=2)]

    def judge(self, batch: Batch) -> Loss:
        x, noise = batch["x"], Noise(batch["key"])
        fake = self.maker(noise.normal(2, dtype=x.dtype)).detach()
        u = noise.uniform(1, dtype=x.dtype)
        between = (u * x + (1 - u) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        return Loss((self.critic(fake) - self.critic(x)).mean() + 10 * penalty, {"penalty": penalty.detach()})

    def make(self, batch: Batch) -> Loss:
        noise = Noise(batch["key"]).normal(2, dtype=batch["x"].dtype)
        return Loss(-self.critic(self.maker(noise)).mean())

    def sample(self, n: int, cond: Any = None, *, noise: Noise | None = None) -> Tensor:
        return self.maker((noise or Noise.seeded(0, n)).normal(2))


SPEAKING: dict[str, tuple[Callable[[], Model], int]] = {  # and the size of the batch
    "adaptive weight": (Adaptive, 12),
    "code book": (CodeBook, 12),
    "contrastive": (Contrast, 12),
    "ragged": (Ragged, 4),
    "gradient penalty": (Penalty, 12),
}
MICRO = {"code book": 2, "ragged": 1, "gradient penalty": 4}  # samples of a piece, beside the ranks


def trained(model: Model, source: Any, run: Path, *, micro: int | None = None, steps: int = 4) -> list[dict[str, Any]]:
    """The lines of the log, one a step, of a training in double precision."""
    trainer = mg.Trainer(steps, optim=AdamW(1e-2), micro=micro, log_every=1, save_every=steps)
    trainer.fit(model, mg.Data(source), run=run, seed=3, voice=Voice())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read(run / "log.jsonl")]


def speaking(folder: Path) -> dict[str, Any]:
    """Each of the models above, trained."""
    found = {}
    for name, (make, batch) in SPEAKING.items():
        for micro in (None, MICRO.get(name)):
            torch.manual_seed(0)
            model = make().double()
            lines = trained(model, Fresh(eight_gaussians(), batch), folder / f"{name}-{micro}", micro=micro)
            found[f"{name}, {micro}"] = lines
    torch.manual_seed(0)
    found["mistaken"] = trained(Adaptive(alone=True).double(), Fresh(eight_gaussians(), 12), folder / "mistaken")
    return found


def models(folder: Path, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The models of the battery, trained."""
    models = importlib.import_module("tests.contract.test_models").MODELS
    found = {}
    for name in only or models:
        torch.manual_seed(0)
        made = models[name]()
        source = vars(made.source).get("source", made.source)
        if "batch" in vars(source):
            source.batch += source.batch % 2
        single = name == "ppo of 60 lines"  # as its source makes
        model = made.model.float() if single else made.model.double()
        found[name] = trained(model, made.source, folder / name, steps=3)
    return found


QUICK = (
    *("improved ddpm, the bound alone", "energy model", "gan", "k-means", "language model", "ppo with a memory", "a2c"),
    *("vqgan", "vq-vae", "vq-vae, lfq", "info-vae", "pix2pix", "cyclegan"),
    "stylegan2, conditional, augmented",
)


def quick(folder: Path) -> dict[str, Any]:
    """A few of the library's models."""
    return models(folder, QUICK)


# ---- what each rank remembers --------------------------------------------------------------------------------------


class Rollouts(Fresh):
    """A source whose ranks remember different things: the sum of all that they gave; a batch follows from it."""

    def start(self, place: mg.Place) -> None:
        super().start(place)
        self.sum = torch.zeros(2)

    def next(self, actor: Any = None, heard: Any = None) -> Batch:
        batch = super().next(actor, heard)
        self.sum = self.sum + batch["x"].sum(0)
        seen = heard["loss"].seen["x"].sum() if heard else 0.0
        return {**batch, "x": batch["x"] + 0.01 * self.sum.tanh() + 0.01 * seen}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "sum": self.sum}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.sum = state["sum"]


class Queue(Model):
    """A model with a queue of each rank's own last samples, and a count that all ranks share."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.register_buffer("queue", torch.zeros(6, 2))
        self.register_buffer("count", torch.zeros(()))

    def loss(self, batch: Batch) -> Loss:
        z = self.net(batch["x"])
        return Loss(
            (z - batch["x"]).square().mean() + 0.1 * (z.mean(0) - self.queue.mean(0)).square().sum(),
            seen={"x": z.detach()},
        )

    def after_step(self, phase: str, seen: dict[str, Tensor]) -> None:
        self.queue.copy_(torch.cat([self.queue, seen["x"]])[-6:])
        self.count += everyone.sum(seen["x"].abs().sum())


def remembering(folder: Path, until: int | None = None, steps: int = 6) -> dict[str, Any]:
    """A training whose ranks have a source, a buffer and what they heard of their own."""
    said: list[str] = []

    class Noting(Voice):
        def say(self, text: str) -> None:
            said.append(text)

    torch.manual_seed(0)
    trainer = mg.Trainer(steps, optim=AdamW(1e-2), log_every=1, save_every=3)
    data = mg.Data(Rollouts(eight_gaussians(), 12))
    training = trainer.fit(Queue(), data, run=folder / "own", seed=3, voice=Noting(), until=until)
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read(folder / "own" / "log.jsonl")]
    return {"lines": lines, "said": said, "queue": training.model.queue.tolist(), "count": float(training.model.count)}


def begun(folder: Path) -> dict[str, Any]:
    """Both of the above, the first half."""
    return {"pieces": pieces(folder, until=3), "own": remembering(folder, until=3)}


def ended(folder: Path) -> dict[str, Any]:
    """Both of the above, to their end."""
    return {"pieces": pieces(folder), "own": remembering(folder)}


# ---- what goes wrong on one rank -------------------------------------------------------------------------------------


class Flawed(Fresh):
    """Points of a plane, of which rank 1's go wrong at a step."""

    def __init__(self, batch: int, way: str, at: int, slow: float) -> None:
        super().__init__(eight_gaussians(), batch)
        self.way, self.at, self.slow = way, at, slow

    def next(self, actor: Any = None, heard: Any = None) -> Batch:
        batch, step = super().next(actor, heard), self._position // self.batch
        time.sleep(self.slow)
        if step == self.at and self._place.rank == 1:
            if self.way == "mistake":
                raise mg.UserError("The picture 'cat.png' cannot be read: mend it.")
            if self.way == "nan":
                batch["x"][2] = torch.nan
            if self.way in ("killed", "stopped"):
                os.kill(os.getpid(), signal.SIGKILL if self.way == "killed" else signal.SIGSTOP)
        return batch


def flawed(
    steps: int = 12, way: str = "none", at: int = 6, slow: float = 0.0, batch: int = 8, micro: int = 0
) -> mg.Experiment:
    """Points, which go wrong.

    steps: how many. way: mistake, nan, killed, stopped or none. at: the step. slow: seconds a step waits. batch: points
    a step. micro: points a piece.
    """
    trainer = mg.Trainer(steps, optim=AdamW(1e-2), save_every=4, log_every=1, ema=mg.EMA(0.9), micro=micro or None)
    return mg.Experiment(Codes(), mg.Data(Flawed(batch, way, at, slow)), trainer)


# ---- jobs ----------------------------------------------------------------------------------------------------------


def calculus(folder: Path) -> dict[str, Any]:
    """What `everyone` gives, and the gradients of losses that go through it, beside those of one process."""
    from morphogen.parallel import join

    ranks = join()
    worst: dict[str, float] = {}
    for trial in range(5):
        noise = torch.Generator().manual_seed(trial)
        rows = [2 + trial, 1, 3][: ranks.count]  # ranks have different numbers of rows
        whole = torch.randn(sum(rows), 3, generator=noise)
        mixing = torch.randn(sum(rows), sum(rows), generator=noise)
        begin = sum(rows[: ranks.rank])
        mine = slice(begin, begin + rows[ranks.rank])

        def one(r: int, everything: Tensor, own: Tensor, total: Tensor, weights: Tensor = mixing) -> Tensor:
            """Rank r's loss: of its own rows, of all, and of a sum over ranks; no two ranks have the same."""
            pulled = (weights[: len(own)] @ everything.tanh() * own).sum()
            return pulled * (r + 1) + (total.exp() * own[:1]).sum() / (r + 2)

        x = whole.clone().requires_grad_()
        parts = x.split(rows)
        totals = sum(p.sin().sum(0) for p in parts)
        expected = sum(one(r, x, p, totals) for r, p in enumerate(parts))
        (want,) = torch.autograd.grad(expected, x, create_graph=True)
        (want2,) = torch.autograd.grad(want.square().sum(), x)

        own = whole[mine].clone().requires_grad_()
        said = one(ranks.rank, everyone.gather(own), own, everyone.sum(own.sin().sum(0)))
        (got,) = torch.autograd.grad(said, own, create_graph=True)
        (got2,) = torch.autograd.grad(got.square().sum(), own)
        found = {
            "value": (everyone.sum(said.detach()) - expected).abs(),
            "gradient": (got - want[mine]).abs(),
            "second": (got2 - want2[mine]).abs(),
            "mean": (everyone.mean(own.detach().sum()) - whole.sum() / ranks.count).abs(),
            "gather": (everyone.gather(own.detach()) - whole).abs(),
            "any": (everyone.any(torch.tensor([ranks.rank == 0, False])) != torch.tensor([True, False])).double(),
            "bools": (everyone.gather(own.detach() > 0) != (whole > 0)).double(),
            "none": (everyone.gather(own[:0].detach())).double().sum(),
        }
        worst = {k: max(worst.get(k, 0.0), float(v.max() if v.numel() else v.sum())) for k, v in found.items()}
    return worst


# ---- weights in pieces ---------------------------------------------------------------------------------------------


class Codes(Model):
    """An autoencoder with a density, of layers whose rows do not divide evenly, one of them tied, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(2, 5), nn.Linear(5, 2)
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.width = nn.Parameter(torch.zeros(()))
        self.still = nn.Parameter(torch.ones(5), requires_grad=False)

    def encode(self, x: Tensor) -> Tensor:
        return self.down(x).tanh() * self.still

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        return -0.5 * (self.decode(self.encode(x)) - x).square().sum(1) / self.width.exp() - self.width

    def act(self, obs: Tensor, memory: Any = None, *, noise: Noise) -> mg.Act:
        return mg.Act(noise.categorical(self.head(self.encode(obs))))

    def sample(self, n: int, cond: Any = None, *, noise: Noise | None = None) -> Tensor:
        return self.decode((noise or Noise.seeded(0, n)).normal(5))

    def loss(self, batch: Batch) -> Loss:
        label = batch["cond"]["label"] % 7
        guess = F.cross_entropy(self.head(self.encode(batch["x"]) + self.embed(label)), label)
        return Loss(guess - self.log_prob(batch["x"]).mean(), seen={"label": label})


class Corner(mg.Remembers):
    """A space that shows points as dots."""

    shape, volume = (2,), 0.0

    def show(self, x: Tensor, columns: int | None = None) -> Any:
        from PIL import Image

        return Image.fromarray((x.flatten()[:4].reshape(2, 2).sigmoid() * 255).to(torch.uint8).numpy())


def transformer() -> Model:
    return mg.diffusion.edm(mg.nets.DiT(1, width=16, depth=2, heads=2, patch=4, classes=10, sinusoid=16), (1, 8, 8))


IN_PIECES: dict[str, Callable[[], Model]] = {"codes": Codes, "penalty": Penalty, "transformer": transformer}


def doors(model: Model) -> dict[str, Any]:
    """What the model's methods say, numbers of every one."""
    x = torch.linspace(-1, 1, 12).reshape(6, 2)
    said = {}
    with torch.no_grad():
        if isinstance(model, Codes):
            said["encode"], said["log_prob"] = model.encode(x), model.log_prob(x)
            said["decode"] = model.decode(said["encode"])
            said["act"] = model.act(x, noise=Noise.seeded(1, 6)).action
        said["draw"] = mg.draw(model, 3, seed=5)
    return {k: v.double().flatten().tolist() for k, v in said.items()}


def pieces(folder: Path, until: int | None = None) -> dict[str, Any]:
    """Each of them trained with its weights in pieces where there are several ranks, averaged, measured and drawn."""
    from morphogen.data import Digits, Shuffled
    from morphogen.parallel import join

    found = {}
    for name, make in IN_PIECES.items():
        torch.manual_seed(0)
        model = make().double()
        ring = name != "transformer"
        source = Fresh(eight_gaussians(), 12) if ring else Shuffled(Digits("train"), 8)
        test = Drawn(eight_gaussians(), 30) if ring else None
        heldout = mg.HeldOut(every=2, batch=10, metric="judge.loss" if name == "penalty" else "loss") if ring else None
        hooks = (mg.SampleGrid(every=2, n=4),) if ring else ()
        trainer = mg.Trainer(
            6, optim=AdamW(1e-2), ema=mg.EMA(0.9), clip=1.0, heldout=heldout, hooks=hooks, log_every=1, save_every=3
        )
        run, count = folder / name, join().count
        data = mg.Data(source, test, Corner() if ring else None)
        training = trainer.fit(model, data, run=run, seed=3, voice=Voice(), shard=count > 1, until=until)
        lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read(run / "log.jsonl")]
        with training.aside():
            averaged = doors(training.model)
        rows = sum(p.numel() for t in training.turns for p in t.params)
        found[name] = {"lines": lines, "averaged": averaged, "live": doors(training.model), "rows": rows}
    return found


TIMES = ("steps_per_s", "seconds", "at_seconds")


def alike(folder: Path) -> dict[str, Any]:
    """What is to be the same on one process and on two."""
    return {"speaking": speaking(folder / "speaking"), "quick": quick(folder / "quick")}


def first(folder: Path) -> dict[str, Any]:
    """The same, and what only several ranks can be asked."""
    return {"calculus": calculus(folder), **alike(folder)}


def main(job: str, folder: Path) -> None:
    from morphogen.parallel import end, join

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    ranks = join()
    found = globals()[job](folder)
    (folder / f"{job}-{ranks.rank}.json").write_text(json.dumps(found))
    end(0)  # gloo's threads may still hold tensors, and abort an interpreter that ends by itself


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
