"""The loop: what each of its dials promises, held against a bare loop or a closed form."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch
from torch import nn

from morphogen import EMA, Data, Experiment, HeldOut, Loss, Model, Noise, Phase, Remembers, Trainer, UserError, load
from morphogen.checkpoint import Checkpoints
from morphogen.core import CannotRestore, Update, keys
from morphogen.device import choose_device
from morphogen.hooks import Voice
from morphogen.log import read
from morphogen.optim import SGD, AdamW, Cosine, MuonAdamW, Triangle
from morphogen.replay import NotFinite
from morphogen.train import Stopped, Training

from ..contract.throwaway import gan, lm


class Line(Remembers):
    """y = 2 x_0 - x_1 + noise, 200 recorded points; can be asked to hold one bad number."""

    def __init__(self, batch: int = 16, bad: int = -1, restores: bool = True) -> None:
        self.batch, self.bad, self.restores, self.at = batch, bad, restores, 0

    def start(self, place) -> None:
        self.place, self.at = place, 0

    def __len__(self) -> int:
        return 200

    def take(self, index):
        noise = Noise(keys(index, 7))
        x = noise.normal(2)
        if self.bad >= 0:
            x[index == self.bad, 0] = math.nan
        return {"x": x, "y": x @ torch.tensor([[2.0], [-1.0]]) + 0.1 * noise.normal(1)}

    def next(self, actor, heard):
        index = torch.arange(self.at, self.at + self.batch) % 200
        self.at += self.batch
        return {**self.take(index), "index": index, "key": keys(index, self.place.seed, self.at)}

    def state(self):
        if not self.restores:
            raise CannotRestore("This source starts afresh: its batches are not those it would have given.")
        return {"at": self.at}

    def restore(self, state) -> None:
        self.at = state["at"]


class Fit(Model):
    """Least squares by a small net; counts what is called."""

    recompute_probe: int = 0

    def __init__(self, width: int = 8, root: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        self.root = root

    def loss(self, batch) -> Loss:
        out = self.net(batch["x"])
        if self.root:
            out = (out - self.root).sqrt()  # NaN once the net's output is below `root`
        error = (out - batch["y"]).square()
        return Loss(error.mean(), {"mae": error.detach().sqrt().mean()}, {"error": error.detach()[:, 0]})


def fit(tmp_path, model, trainer, source=None, test=None, **kw) -> Training:
    return trainer.fit(model, Data(source or Line(), test), run=tmp_path / "run", voice=Voice(), **kw)


def seeded(cls, *args, **kw):
    torch.manual_seed(0)
    return cls(*args, **kw)


def test_the_loop_is_the_bare_loop(tmp_path):
    model, twin = seeded(Fit), seeded(Fit)
    fit(tmp_path, model, Trainer(25, optim=AdamW(1e-2)))
    optimiser = torch.optim.AdamW(twin.parameters(), 1e-2, weight_decay=0.0, fused=True)
    source = Line()
    source.start(type("P", (), {"seed": 0}))
    for _ in range(25):
        optimiser.zero_grad()
        twin.loss(source.next(None, {})).value.backward()
        optimiser.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_products_are_as_precise_as_asked_for_and_only_in_training(tmp_path):
    said = []

    class Told(Fit):
        def loss(self, batch):
            said.append(torch.get_float32_matmul_precision())
            return super().loss(batch)

    fit(tmp_path / "a", seeded(Told), Trainer(1, matmul="medium"))
    fit(tmp_path / "b", seeded(Told), Trainer(1))
    assert said == ["medium", "highest"]
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(UserError, match="medium"):
        Trainer(1, matmul="meduim")


@pytest.mark.parametrize("micro", [1, 2, 5, 12])
def test_micro_changes_memory_and_no_gradient(tmp_path, micro):
    """Two denominators and ragged lengths: a mean of the pieces' means would be another loss."""
    losses = {}
    for size in (None, micro):
        model = seeded(lm.LM).double()
        trainer = Trainer(3, optim=SGD(0.1), micro=size, log_every=1)
        fit(tmp_path / str(size), model, trainer, lm.Counting())
        losses[size] = [line["loss"] for line in read(tmp_path / str(size) / "run" / "log.jsonl")]
    assert losses[micro] == pytest.approx(losses[None], rel=1e-12)


def test_a_mean_of_means_is_another_gradient():
    """The naive split fails on the same data, so the test above can fail."""
    model, source = seeded(lm.LM).double(), lm.Counting()
    source.start(type("P", (), {"seed": 0}))
    batch = source.next(None, {})
    whole = sum(model.loss(batch).value.values())
    parts = [sum(model.loss({k: v[i : i + 5] for k, v in batch.items()}).value.values()) for i in (0, 5, 10)]
    assert abs(sum(p * n for p, n in zip(parts, (5, 5, 2), strict=True)) / 12 - whole) > 1e-3


def test_phases_train_their_own_parameters_only(tmp_path):
    model = seeded(gan.GAN)
    data = gan.experiment().data
    training = Training(
        Trainer(10, optim={"critic": SGD(0.1), "generator": SGD(0.0)}), model, data, tmp_path, seed=0,
        device=torch.device("cpu"), voice=Voice(),
    )  # fmt: skip
    training.begin()
    before = {n: p.clone() for n, p in model.named_parameters()}
    training.advance()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.startswith("critic")}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Turns(Fit):
    """Two phases that take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[str, int]] = []

    def phases(self):
        return [Phase(self.first), Phase(self.second, every=3)]

    def first(self, batch) -> Loss:
        self.called.append(("first", self.step))
        return self.loss(batch)

    def second(self, batch) -> Loss:
        self.called.append(("second", self.step))
        return self.loss(batch)

    def after_step(self, phase, seen) -> None:
        assert seen["error"].shape == (16,)
        self.called.append((f"after {phase}", self.step))


def test_a_phase_is_due_when_the_step_divides(tmp_path):
    model = seeded(Turns)
    fit(tmp_path, model, Trainer(7))
    assert [step for name, step in model.called if name == "second"] == [2, 5]  # steps 3 and 6: two and five are done
    assert [step for name, step in model.called if name == "after first"] == list(range(7))


def test_an_optimiser_for_every_phase_or_a_sentence(tmp_path):
    with pytest.raises(
        UserError, match=r"no optimiser for the phase that trains 'generator'.*did you mean 'generater'"
    ):
        fit(tmp_path, gan.GAN(), Trainer(1, optim={"critic": SGD(), "generater": SGD()}), gan.experiment().data.train)


def test_clipping_bounds_the_step(tmp_path):
    model = seeded(Fit)
    before = [p.detach().clone() for p in model.parameters()]
    fit(tmp_path, model, Trainer(1, optim=SGD(1.0, momentum=0.0, nesterov=False), clip=1e-3))
    moved = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(model.parameters(), before, strict=True)))
    assert moved == pytest.approx(1e-3, rel=2e-3)  # the gradient is much longer


def test_schedules():
    cosine = Cosine(warmup=4, floor=0.1)
    assert [cosine(s, 24) for s in (1, 4)] == pytest.approx([0.2, 0.8])
    assert cosine(14, 24) == pytest.approx(0.55)
    assert cosine(24, 24) == pytest.approx(0.1)
    triangle = Triangle(peak=0.25)
    assert [triangle(s, 100) for s in (5, 25, 100)] == pytest.approx([0.2, 1.0, 0.0])
    torch_cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), T_max=10
    )
    for step in range(1, 10):
        torch_cosine.optimizer.step()
        torch_cosine.step()
        assert Cosine()(step, 10) == pytest.approx(torch_cosine.get_last_lr()[0])


def test_the_schedule_moves_the_weights(tmp_path):
    """Plain gradient descent with a triangle: the sum of moves is the sum of scheduled rates times the gradients."""
    model, twin = seeded(Fit), seeded(Fit)
    schedule = Triangle(0.5)
    fit(tmp_path, model, Trainer(8, optim=SGD(0.3, momentum=0.0, nesterov=False, schedule=schedule)))
    source = Line()
    source.start(type("P", (), {"seed": 0}))
    for step in range(1, 9):
        grads = torch.autograd.grad(twin.loss(source.next(None, {})).value, list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), grads, strict=True):
                p -= 0.3 * schedule(step, 8) * g
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_two_kinds_of_optimiser_within_one_phase(tmp_path):
    model = seeded(Fit)
    training = fit(tmp_path, model, Trainer(4, optim=MuonAdamW(1e-2)), until=3)
    kinds = [type(o).__name__ for o in training.turns[0].optimisers]
    assert kinds == ["Muon", "AdamW"]
    straight = {
        k: v.clone()
        for k, v in fit(tmp_path / "b", seeded(Fit), Trainer(4, optim=MuonAdamW(1e-2))).model.state_dict().items()
    }
    resumed = fit(tmp_path, seeded(Fit), Trainer(4, optim=MuonAdamW(1e-2))).model.state_dict()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)


def test_the_average_is_the_closed_form(tmp_path):
    decay, model = 0.5, seeded(Fit)
    training = Training(
        Trainer(6, ema=EMA(decay)), model, Data(Line()), tmp_path, seed=0, device=torch.device("cpu"), voice=Voice()
    )
    training.begin()
    weights = [[p.detach().clone() for p in model.parameters()]]
    for _ in range(6):
        training.advance()
        weights.append([p.detach().clone() for p in model.parameters()])
    expected = weights[0]
    for t, now in enumerate(weights[1:], 1):
        d = min(decay, (1 + t) / (10 + t))
        expected = [d * a + (1 - d) * w for a, w in zip(expected, now, strict=True)]
    live = [p.detach().clone() for p in model.parameters()]
    with training.averaged():
        for p, e in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), live, strict=True))


def test_bf16_trains_close_to_fp32_and_keeps_fp32_weights(tmp_path):
    ends = {}
    for dtype in ("float32", "bfloat16"):
        training = fit(tmp_path / dtype, seeded(Fit, 32), Trainer(60, optim=AdamW(1e-2), dtype=dtype, log_every=60))
        ends[dtype] = read(tmp_path / dtype / "run" / "log.jsonl")[-1]["loss"]
        assert all(p.dtype == torch.float32 for p in training.model.parameters())
    assert ends["bfloat16"] != ends["float32"]
    assert ends["bfloat16"] == pytest.approx(ends["float32"], rel=0.05)


class Deep(Fit):
    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.net[0].recomputable = True


def test_recomputing_activations_changes_no_bit(tmp_path):
    ends = []
    for recompute in (False, True):
        training = fit(tmp_path / str(recompute), seeded(Deep), Trainer(5, recompute=recompute))
        ends.append(list(training.model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_without_a_compiler_it_runs_eagerly_and_says_so_once(tmp_path, monkeypatch):
    import morphogen.device as module

    said: list[str] = []
    voice = Voice()
    voice.say = said.append
    monkeypatch.setattr(module, "_compiles", False)
    Trainer(2, compile=True).fit(seeded(Fit), Data(Line()), run=tmp_path / "r", voice=voice)
    assert sum("eagerly" in s for s in said) == 1


# ---- NaN and Inf ---------------------------------------------------------------------------------------------------


def test_a_bad_number_in_the_data_is_named(tmp_path):
    with pytest.raises(NotFinite, match=r"Step 3, phase 'loss'.*the batch's 'x' itself; data indices 37 \(1 of 16\)"):
        fit(tmp_path, seeded(Fit), Trainer(20, save_every=1), Line(bad=37))
    assert Checkpoints(tmp_path / "run").steps()[-1] == 2
    for t in Checkpoints(tmp_path / "run").load(2)["model"].values():
        assert t.isfinite().all()


def test_a_bad_number_from_the_weights_is_named(tmp_path):
    model = seeded(Fit)
    with torch.no_grad():
        model.net[2].weight[0, 0] = math.inf
    with pytest.raises(NotFinite, match=r"Step 1, phase 'loss'.*the output of 'net.2'"):
        fit(tmp_path, model, Trainer(20))


def test_a_bad_loss_names_the_samples(tmp_path):
    model = seeded(Fit, root=-0.2)
    with torch.no_grad():
        below = [int(i) for i in range(16) if model.net(Line().take(torch.arange(16))["x"])[i] < -0.2]
    assert below
    with pytest.raises(NotFinite, match=rf"the loss, all module outputs being finite; data indices {below[0]}"):
        fit(tmp_path, model, Trainer(20))


@pytest.mark.parametrize("optim", [AdamW(1e-2), MuonAdamW(1e-2)])
def test_the_late_reading_keeps_bad_numbers_out_of_the_weights(tmp_path, optim):
    """As on an accelerator: the flag is read one turn late, the update of the bad turn is switched off meanwhile."""
    model = seeded(Fit)
    training = Training(
        Trainer(20, optim=optim), model, Data(Line(bad=37)), tmp_path, seed=0, device=torch.device("cpu"), voice=Voice()
    )
    training.begin()
    training._cpu = False
    training.advance()
    training.advance()
    good = [p.detach().clone() for p in model.parameters()]
    training.advance()  # holds the bad number; nothing is read yet
    assert all(p.isfinite().all() for p in model.parameters())
    if isinstance(optim, AdamW):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), good, strict=True))
    with pytest.raises(NotFinite, match=r"Step 3, .*data indices 37"):
        training.advance()


def test_a_detached_loss_is_a_sentence(tmp_path):
    class Detached(Fit):
        def loss(self, batch) -> Loss:
            return Loss((self.net[0](batch["x"]) * self.net[2].bias.detach()).mean())

    class Gone(Fit):
        def phases(self):
            return [Phase(self.loss, ("nett",))]

    with pytest.raises(UserError, match="no trained part 'nett': did you mean 'net'"):
        fit(tmp_path, Gone(), Trainer(1))


# ---- held-out data, early stopping, hooks --------------------------------------------------------------------------


def test_heldout_best_gap_and_early_stopping(tmp_path):
    trainer = Trainer(
        400, optim=AdamW(3e-2), heldout=HeldOut(every=10, metric="mae", patience=3), save_every=1000, keep=1
    )
    training = fit(tmp_path, seeded(Fit, 64), trainer, Line(batch=8), Line())
    lines = [line for line in read(tmp_path / "run" / "log.jsonl") if "heldout" in line]
    values = [line["heldout"]["mae"] for line in lines]
    best = min(range(len(values)), key=values.__getitem__)
    assert training.best["step"] == lines[best]["step"]
    assert training.best["value"] == pytest.approx(min(values))
    assert all("gap" in line for line in lines)
    assert training.best["step"] in Checkpoints(tmp_path / "run").steps()
    assert training.step < 400
    assert training.step == training.best["step"] + 30


def test_heldout_noise_is_fixed(tmp_path):
    training = fit(tmp_path, seeded(Fit), Trainer(1, heldout=HeldOut(every=1)), Line(), Line())
    rule = training.trainer.heldout
    a, b = (rule.measure(training.model, Line(), 0, torch.device("cpu")) for _ in range(2))
    assert a == b
    whole = training.model.loss(Line().take(torch.arange(200))).value.item()
    assert a["loss"] == pytest.approx(whole, rel=1e-6)  # 200 is no multiple of 64: weighted by size


class Penal(Fit):
    """Its loss differentiates by its input, as a gradient penalty does."""

    def loss(self, batch) -> Loss:
        x = batch["x"].requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return Loss((slope.norm(dim=1) - 1).square().mean())


def test_heldout_keeps_no_graph_and_lets_a_loss_differentiate_itself():
    """A graph of a held-out batch, which is larger than a training batch, is memory for nothing."""
    kept: list[int] = []
    for cls in (Fit, Penal):
        model = seeded(cls)
        model.net[0].bias.requires_grad_(False)
        truth = model.loss(Line().take(torch.arange(200))).value.item()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            found = HeldOut(batch=200).measure(model, Line(), 0, torch.device("cpu"))
        assert found["loss"] == pytest.approx(truth, rel=1e-6)
        assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
        assert cls is Penal or not kept
    assert kept  # the penalty's own


def test_an_unknown_metric_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no held-out metric 'mea': did you mean 'mae'"):
        fit(tmp_path, Fit(), Trainer(1, heldout=HeldOut(every=1, metric="mea")), Line(), Line())


class Meddler(Remembers):
    """A hook that draws from every generator and leaves the model in another mode."""

    every = 1

    def __call__(self, training) -> None:
        torch.randn(100)
        training.model.train()


class Noisy(Fit):
    """Draws from the global generator."""

    def loss(self, batch) -> Loss:
        return Loss((self.net(batch["x"] + torch.randn_like(batch["x"])) - batch["y"]).square().mean())


def test_a_hook_cannot_change_training(tmp_path):
    ends = []
    for hooks in ((), (Meddler(),)):
        training = fit(tmp_path / str(len(hooks)), seeded(Noisy), Trainer(6, hooks=hooks))
        ends.append(list(training.model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


# ---- runs ----------------------------------------------------------------------------------------------------------


def test_the_resumed_log_is_the_straight_log(tmp_path):
    for name, until in (("straight", None), ("broken", 33)):
        trainer = Trainer(50, save_every=100, log_every=20)
        for stop in filter(None, (until, 50)):
            fit(tmp_path / name, seeded(Fit), trainer, until=stop)
    logs = [[(x["step"], x["loss"]) for x in read(tmp_path / n / "run" / "log.jsonl")] for n in ("straight", "broken")]
    assert logs[0] == logs[1]


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    fit(tmp_path, seeded(Fit), Trainer(50, save_every=20, log_every=5), until=40)
    run = tmp_path / "run"
    path = Checkpoints(run).path(40) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with open(run / "log.jsonl", "a") as f:
        f.write('{"step": 45, "lo')
    said: list[str] = []
    voice = Voice()
    voice.say = said.append
    Trainer(50, save_every=20, log_every=5).fit(seeded(Fit), Data(Line()), run=run, voice=voice)
    assert any("Skipped the damaged checkpoint of step 40: model.safetensors has" in s for s in said)
    assert any("after step 20 of 50" in s for s in said)
    steps = [x["step"] for x in read(run / "log.jsonl")]
    assert steps == sorted(set(steps))
    Checkpoints(run).verify(40)


def test_a_source_that_cannot_restore_says_so(tmp_path):
    fit(tmp_path, seeded(Fit), Trainer(20), Line(restores=False), until=10)
    said: list[str] = []
    voice = Voice()
    voice.say = said.append
    Trainer(20).fit(seeded(Fit), Data(Line(restores=False)), run=tmp_path / "run", voice=voice)
    assert any("Not exact after this resume: This source starts afresh" in s for s in said)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, signum):
    class Killer(Meddler):
        every = 7

        def __call__(self, training) -> None:
            os.kill(os.getpid(), signum)

    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, seeded(Fit), Trainer(50, hooks=(Killer(),)))
    assert stopped.value.signum == signum
    assert Checkpoints(tmp_path / "run").steps()[-1] == 7


def test_another_experiment_in_the_same_folder_is_named(tmp_path):
    Experiment(Fit(), Data(Line()), Trainer(2)).train(tmp_path / "r", voice=Voice())
    with pytest.raises(UserError, match=r"model\.width: 8 there, 9 here"):
        Experiment(Fit(width=9), Data(Line()), Trainer(2)).train(tmp_path / "r", voice=Voice())
    with pytest.raises(UserError, match=r"seed: 0 there, 1 here"):
        Experiment(Fit(), Data(Line()), Trainer(2)).train(tmp_path / "r", seed=1, voice=Voice())


def test_a_run_is_loaded_with_averaged_weights(tmp_path):
    run = Experiment(seeded(Fit), Data(Line()), Trainer(9, ema=EMA(0.9))).train(tmp_path / "r", voice=Voice())
    parts = Checkpoints(tmp_path / "r").load(9)
    for name, p in run.model.named_parameters():
        assert torch.equal(p, parts["average"][name])
        assert not torch.equal(p, parts["model"][name])
    assert not run.model.training
    assert run.step == 9
    with pytest.raises(UserError, match=r"Step 4 of .* cannot be loaded"):
        load(tmp_path / "r", checkpoint=4, modules=[__import__("sys").modules[__name__]])


class Filters(Fit):
    """A filter whose weights lie channels last in memory, as its user may wish."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def loss(self, batch) -> Loss:
        x = Noise(batch["index"]).normal(3, 4, 4)
        return Loss((self.filter(x).flatten(1).mean(1, keepdim=True) - batch["y"]).square().mean())

    def phases(self):
        return [Phase(self.loss, ("filter",))]


def test_resume_is_exact_for_weights_that_lie_channels_last(tmp_path):
    """Fused AdamW walks weights and moments together in memory: moments restored with other strides are wrong."""
    straight = fit(tmp_path / "a", seeded(Filters), Trainer(8)).model.state_dict()
    fit(tmp_path / "b", seeded(Filters), Trainer(8), until=4)
    resumed = fit(tmp_path / "b", seeded(Filters), Trainer(8)).model.state_dict()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)


class Frozen(Fit):
    """Half of it is not trained, and a buffer that is."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)
        self.register_buffer("steps", torch.zeros(()))

    def after_step(self, phase, seen) -> None:
        self.steps += 1


def test_frozen_tensors_are_written_once(tmp_path):
    training = fit(tmp_path, seeded(Frozen), Trainer(9, save_every=3, keep=2))
    store = Checkpoints(tmp_path / "run")
    assert len(list(store.frozen.iterdir())) == 1
    parts = store.load(9)
    assert set(parts["frozen"]) == {"net.0.weight", "net.0.bias"}
    assert parts["model"]["steps"] == 9
    assert training.model.net[0].weight.equal(parts["frozen"]["net.0.weight"])
    assert store.steps() == [6, 9]


def test_tied_weights_are_written_once(tmp_path):
    fit(tmp_path, seeded(lm.LM), Trainer(2), lm.Counting())
    from safetensors.torch import load_file

    store = Checkpoints(tmp_path / "run")
    names = set(load_file(store.path(2) / "model.safetensors"))
    assert not {"embed.weight", "head.weight"} <= names
    assert {"embed.weight", "head.weight"} <= set(store.load(2)["model"])


def test_a_folder_where_nothing_was_begun_is_free(tmp_path):
    """A first try that fails before its first step does not hold the folder against the corrected second one."""
    with pytest.raises(UserError, match="optimiser for the phase"):
        Experiment(Fit(), Data(Line()), Trainer(2, optim={"nett": SGD()})).train(tmp_path / "r", voice=Voice())
    run = Experiment(Fit(), Data(Line()), Trainer(2)).train(tmp_path / "r", voice=Voice())
    assert run.step == 2
    with pytest.raises(UserError, match="no best checkpoint"):
        load(tmp_path / "r", checkpoint="best", modules=[__import__("sys").modules[__name__]])


def test_two_processes_cannot_train_into_one_folder(tmp_path):
    first = Training(Trainer(9), seeded(Fit), Data(Line()), tmp_path, seed=0, device=torch.device("cpu"), voice=Voice())
    first.begin()
    with pytest.raises(UserError, match="Another process is training into"):
        Trainer(9).fit(seeded(Fit), Data(Line()), run=tmp_path, voice=Voice())
    first.loop(9)
    Trainer(9).fit(seeded(Fit), Data(Line()), run=tmp_path, voice=Voice())


def test_an_absent_device_is_a_sentence():
    with pytest.raises(UserError, match="'cuda:99' is not on this machine: use cpu"):
        choose_device("cuda:99")


def test_the_log_is_json_lines(tmp_path):
    fit(tmp_path, seeded(Fit), Trainer(10, log_every=4))
    lines = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [4, 8, 10]
    assert {"loss", "grad_norm", "mae", "steps_per_s", "seconds"} <= set(lines[0])


# ---- what a reviewer broke -----------------------------------------------------------------------------------------


def live(tmp_path, model, trainer, source=None, *, late: bool = False) -> Training:
    """A training that has begun; `late`: its flags are read one turn late, as on an accelerator."""
    training = Training(
        trainer, model, Data(source or Line()), tmp_path, seed=0, device=torch.device("cpu"), voice=Voice()
    )
    training.begin()
    training._cpu = not late
    return training


def test_the_late_reading_with_clipping_keeps_bad_numbers_out_too(tmp_path):
    """The bad norm is itself the factor that the gradients are clipped by."""
    training = live(tmp_path, seeded(Fit), Trainer(20, optim=MuonAdamW(1e-2), clip=1.0), Line(bad=37), late=True)
    for _ in range(3):
        training.advance()
    assert all(p.isfinite().all() for p in training.model.parameters())


class Pair(Fit):
    """Two phases with parameters of their own; the first looks at the step."""

    def __init__(self, bad_step: int = 3) -> None:
        super().__init__()
        self.other, self.bad_step = nn.Linear(2, 1), bad_step

    def phases(self):
        return [Phase(self.first, ("net",)), Phase(self.second, ("other",))]

    def first(self, batch) -> Loss:
        bad = math.nan if self.step + 1 == self.bad_step else 1.0
        return Loss((self.net(batch["x"]) - batch["y"]).square().mean() * bad)

    def second(self, batch) -> Loss:
        return Loss((self.other(batch["x"]) - batch["y"]).square().mean())


def test_a_turn_read_late_is_replayed_as_it_was(tmp_path):
    """It is read in another phase's turn, or in another step: what is trained and the step are the bad turn's."""
    training = live(tmp_path, seeded(Pair), Trainer(9), late=True)
    training.advance()
    training.advance()
    with pytest.raises(NotFinite, match=r"Step 3, phase 'first'.*the loss, all module outputs being finite"):
        training.advance()


class Schedule(Fit):
    def loss(self, batch) -> Loss:
        return Loss(super().loss(batch).value * (math.nan if self.step == 2 else 1.0))


def test_a_turn_read_a_step_late_is_replayed_at_its_own_step(tmp_path):
    training = live(tmp_path, seeded(Schedule), Trainer(9), late=True)
    for _ in range(3):
        training.advance()
    with pytest.raises(NotFinite, match=r"Step 3, phase 'loss'.*the loss, all module outputs being finite"):
        training.advance()


class Mixed(Fit):
    """A phase, then an update by rule, either of which may go bad."""

    def __init__(self, bad: str) -> None:
        super().__init__()
        self.bad = bad

    def phases(self):
        return [Phase(self.loss), Update(self.rule)]

    def loss(self, batch) -> Loss:
        return Loss(super().loss(batch).value * (math.nan if self.bad == "loss" else 1.0))

    def rule(self, batch) -> Loss:
        return Loss(torch.tensor(math.nan if self.bad == "rule" else 1.0))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("bad", "sentence"), [("loss", "Step 1, phase 'loss'.*the loss"), ("rule", "Step 1, update")])
def test_updates_are_watched_like_phases(tmp_path, late, bad, sentence):
    training = live(tmp_path, seeded(Mixed, bad), Trainer(9), late=late)
    with pytest.raises(NotFinite, match=sentence):
        training.loop(2)


class Queue(Line):
    """A source whose state is the very memory that it goes on in."""

    def start(self, place) -> None:
        super().start(place)
        self.count = torch.zeros((), dtype=torch.int64)

    def next(self, actor, heard):
        self.at = int(self.count)
        self.count += self.batch
        return super().next(actor, heard)

    def state(self):
        return {"count": self.count}

    def restore(self, state) -> None:
        self.count = state["count"]


def test_the_start_uses_up_no_batch(tmp_path):
    source = Queue()
    live(tmp_path, seeded(Started), Trainer(1), source)
    assert source.state()["count"] == 0


def test_held_out_dials_without_held_out_data_are_mentioned(tmp_path):
    said: list[str] = []
    voice = Voice()
    voice.say = said.append
    Trainer(1, heldout=HeldOut()).fit(Fit(), Data(Line()), run=tmp_path / "r", voice=voice)
    assert any("no held-out data" in s for s in said)


def test_a_failed_step_leaves_every_parameter_trainable(tmp_path):
    model = seeded(Pair)
    with pytest.raises(NotFinite):
        fit(tmp_path, model, Trainer(9))
    assert all(p.requires_grad for p in model.parameters())


class Wide(Fit):
    """One phase that trains a part, though its loss reaches all."""

    def phases(self):
        return [Phase(self.loss, ("net.2",))]


def test_what_no_phase_trains_gathers_no_gradient(tmp_path):
    model = fit(tmp_path, seeded(Wide), Trainer(3)).model
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class Steep(Fit):
    def loss(self, batch) -> Loss:
        return Loss(super().loss(batch).value * 1e3)


def test_an_update_that_overflows_is_never_saved(tmp_path):
    """Loss and gradients are finite, the weights after the step are not."""
    with pytest.raises(NotFinite, match="Step 1: the update of 'net"):
        fit(tmp_path, seeded(Steep), Trainer(9, optim=SGD(1e38, momentum=0.0), save_every=1))
    store = Checkpoints(tmp_path / "run")
    assert store.steps() == [0]
    assert all(t.isfinite().all() for t in store.load(0)["model"].values())


class Sparse(Fit):
    """Two denominators; of "rare" most samples have none, and a mean over none is NaN."""

    def counts(self, batch):
        return {"all": len(batch["x"]), "rare": float(self.rare(batch).sum())}

    def rare(self, batch):
        return batch["index"] % 16 == 3

    def loss(self, batch) -> Loss:
        error = (self.net(batch["x"]) - batch["y"])[:, 0].square()
        return Loss({"all": error.mean(), "rare": error[self.rare(batch)].mean()})


class Rare(Sparse):
    def rare(self, batch):
        return batch["index"] == 3


@pytest.mark.parametrize("micro", [None, 4])
def test_a_denominator_of_zero_weighs_nothing(tmp_path, micro):
    for cls in (Sparse, Rare):
        model = fit(tmp_path / cls.__name__, seeded(cls), Trainer(3, micro=micro)).model
        assert all(p.isfinite().all() for p in model.parameters())
        found = HeldOut(batch=10).measure(model, Line(), 0, torch.device("cpu"))
        batch = {**Line().take(torch.arange(200)), "index": torch.arange(200)}
        assert found["loss"] == pytest.approx(sum(v.item() for v in model.loss(batch).value.values()), rel=1e-5)


class Never(Fit):
    """Never to be split, with a loss of two parts."""

    def counts(self, batch):
        return {}

    def loss(self, batch) -> Loss:
        error = (self.net(batch["x"]) - batch["y"]).square()
        return Loss({"a": error.mean(), "b": 2 * error.mean()})


def test_what_is_never_split_can_be_measured(tmp_path):
    training = fit(tmp_path, seeded(Never), Trainer(2, micro=3, heldout=HeldOut(every=1)), test=Line())
    found = training.trainer.heldout.measure(training.model, Line(), 0, torch.device("cpu"))
    assert found["loss"] == pytest.approx(1.5 * found["loss.b"])


class Unnamed(Sparse):
    def counts(self, batch):
        return {"al": 1.0, "rare": 1.0}


def test_a_mean_without_a_denominator_is_a_sentence():
    with pytest.raises(UserError, match="no denominator 'all': did you mean 'al'"):
        HeldOut().measure(Unnamed(), Line(), 0, torch.device("cpu"))


@pytest.mark.parametrize("dials", [{"every": 0}, {"batch": 0}, {"limit": 0}, {"patience": 0}])
def test_measuring_nothing_is_refused(dials):
    with pytest.raises(UserError, match="HeldOut's"):
        HeldOut(**dials)


def test_dials_that_do_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="clip"):
        Trainer(1, clip=0.0)
    hook = Meddler()
    hook.every = 0
    with pytest.raises(UserError, match="Meddler"):
        Trainer(1, hooks=(hook,))

    class Zero(Fit):
        def phases(self):
            return [Phase(self.loss, every=0)]

    with pytest.raises(UserError, match=r"'loss' of Zero.*every"):
        fit(tmp_path, Zero(), Trainer(1))


class Started(Fit):
    """Data-dependent and random initialisation."""

    def start(self, batch) -> None:
        with torch.no_grad():
            self.net[2].bias.fill_(100.0 + batch["y"].mean())
            self.net[0].weight.copy_(torch.randn_like(self.net[0].weight))


def test_the_start_is_a_function_of_the_seed_and_the_average_begins_after_it(tmp_path):
    ends = []
    for ambient in (1, 2):
        model = seeded(Started)
        torch.manual_seed(ambient)
        ends.append(live(tmp_path / str(ambient), model, Trainer(1, ema=EMA(0.9))))
    assert torch.equal(ends[0].model.net[0].weight, ends[1].model.net[0].weight)
    for training in ends:
        for name, p in training.model.named_parameters():
            assert torch.equal(training.average.mean[name], p)


class Tied(Fit):
    def __init__(self) -> None:
        super().__init__(2)
        self.again = nn.Linear(2, 2)
        self.again.weight = self.net[0].weight

    def loss(self, batch) -> Loss:
        return Loss((self.net(self.again(batch["x"])) - batch["y"]).square().mean())


def test_tied_weights_are_loaded_averaged(tmp_path):
    run = Experiment(seeded(Tied), Data(Line()), Trainer(9, ema=EMA(0.9))).train(tmp_path / "r", voice=Voice())
    parts = Checkpoints(tmp_path / "r").load(9)
    assert run.model.again.weight is run.model.net[0].weight
    assert torch.equal(run.model.again.weight, parts["average"]["net.0.weight"])


class Odd(Fit):
    """Tensors of every kind that a model may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.none = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(0, 3))
        self.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.fine = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("queue", torch.zeros(0, 2))
        self.register_buffer("row", torch.arange(6.0).view(2, 3)[1])

    def loss(self, batch) -> Loss:
        scale = self.scale + self.none.sum() + self.wave.abs().sum() + self.fine.sum().float()
        return Loss((self.net(batch["x"]) * scale - batch["y"]).square().mean())

    def after_step(self, phase, seen) -> None:
        self.count += 1
        self.flags[self.count % 3] ^= True
        self.row += self.scale.detach()


@pytest.mark.parametrize("dials", [{}, {"dtype": "bfloat16"}, {"micro": 5, "clip": 0.1}, {"recompute": True}])
def test_tensors_of_every_kind_resume_exactly(tmp_path, dials):
    ends = []
    for name, stops in (("straight", (9,)), ("broken", (1, 4, 9))):
        for until in stops:
            trainer = Trainer(9, optim=AdamW(1e-2, schedule=Cosine(2), weight_decay=0.1), ema=EMA(0.9), **dials)
            training = fit(tmp_path / name, seeded(Odd), trainer, until=until)
        ends.append([*training.model.state_dict().values(), *training.average.mean.values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_weights_of_another_version_are_a_sentence(tmp_path):
    run = tmp_path / "run"
    fit(tmp_path, seeded(Fit), Trainer(2), until=1)
    with pytest.raises(UserError, match=r"step 1 .* do not fit Fit .*net\.0\.weight"):
        Trainer(2).fit(Fit(9), Data(Line()), run=run, voice=Voice())


def test_a_checkpoint_that_is_none_is_a_sentence(tmp_path):
    Experiment(Fit(), Data(Line()), Trainer(2)).train(tmp_path / "r", voice=Voice())
    here = [__import__("sys").modules[__name__]]
    with pytest.raises(UserError, match="no checkpoint 'bset': did you mean 'best'"):
        load(tmp_path / "r", checkpoint="bset", modules=here)
    (tmp_path / "r" / "spec.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "r", modules=here)


class Last(Meddler):
    every = 1000

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, training) -> None:
        self.steps.append(training.step)


def test_stopping_early_is_an_end_like_any_other(tmp_path):
    hook = Last()
    trainer = Trainer(
        400, optim=SGD(0.0), heldout=HeldOut(every=10, patience=2), hooks=(hook,), log_every=1000, save_every=1000
    )
    training = fit(tmp_path, seeded(Fit), trainer, test=Line())
    assert training.step == 30
    assert hook.steps == [30]
    assert [x["step"] for x in read(tmp_path / "run" / "log.jsonl") if "grad_norm" in x] == [30]


def test_what_is_heard_and_seen_holds_no_graph(tmp_path):
    class Attached(Fit):
        def loss(self, batch) -> Loss:
            error = (self.net(batch["x"]) - batch["y"]).square()
            return Loss(error.mean(), seen={"error": error[:, 0]})

    for micro in (None, 4):
        training = fit(tmp_path / str(micro), Attached(), Trainer(2, micro=micro))
        assert not training.heard["loss"].seen["error"].requires_grad
