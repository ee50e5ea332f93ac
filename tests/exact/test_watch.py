"""Each sign against trainings made by hand, of which it is known what it must see; the hook, its log, and resuming."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from morphogen import Data, HeldOut, Loss, Model, Noise, Phase, Trainer, UserError
from morphogen.alarms import told
from morphogen.core import NONE
from morphogen.data.digits import Digits
from morphogen.data.items import Tensors
from morphogen.data.source import Shuffled
from morphogen.heldout import Quality
from morphogen.hooks import JsonLines, Voice
from morphogen.log import read
from morphogen.optim import SGD
from morphogen.spec import Remembers, build, spec
from morphogen.watch import Collapse, Dead, Leak, Memorisation, Oscillation, StrongCritic, Unheard, Watch, WeakCritic
from morphogen.watch.series import turn

# ---- does a series go round?


def wave(period: float, phase: float, n: int = 100, damping: float = 0.0) -> list[float]:
    return [math.sin(2 * math.pi * (i / period + phase)) * math.exp(-damping * i) for i in range(n)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("period", [8, 13.5, 20, 40])
def test_a_wave_goes_round(period, seed):
    generator = torch.Generator().manual_seed(seed)
    phase, noise = float(torch.rand((), generator=generator)), 0.3 * torch.randn(100, generator=generator)
    found = turn([v + 0.01 * i + float(e) for i, (v, e) in enumerate(zip(wave(period, phase), noise, strict=True))])
    assert found is not None
    assert found.length == pytest.approx(period, rel=0.15)
    assert found.half < -0.6
    assert found.whole > 0.6
    assert 0.7 < found.kept < 1.4


@pytest.mark.parametrize("damping", [0.03, 0.06])
def test_a_wave_that_comes_to_rest_is_told_from_one_that_does_not(damping):
    shrinking, growing = turn(wave(16, 0.2, damping=damping)), turn(wave(16, 0.2, damping=-damping))
    assert shrinking is not None
    assert growing is not None
    assert shrinking.kept < 0.7 < 1.4 < growing.kept
    assert max(growing.half, shrinking.half) < -0.8  # each lag has its own norms; the best line takes a little


def test_noise_and_drift_seldom_go_round():
    generator, hits, series = torch.Generator().manual_seed(0), 0, 0
    for memory in (0.0, 0.5, 0.9, 1.0):
        for _ in range(100):
            x, values = 0.0, []
            for e in torch.randn(100, generator=generator).tolist():
                x = memory * x + e
                values.append(x)
            found, series = turn(values), series + 1
            hits += found is not None and min(-found.half, found.whole) >= Oscillation().correlation
    assert hits <= 0.01 * series
    assert turn([1.0] * 50) is None
    assert turn([0.1 * i for i in range(50)]) is None
    assert turn(wave(8, 0.0, 20)) is None  # too short to tell
    assert turn([*wave(8, 0.0, 60), math.inf]) is None


# ---- a training by hand


class Played(Model):
    """Says what it is told to: `critic` of scores and norms by step, `draws` of samples."""

    scaffold = ("critic",)

    def __init__(self, draws: str = "truth", scores: str = "even", still: bool = False) -> None:
        super().__init__()
        self.critic, self.other = nn.Linear(1, 1), nn.Linear(1, 1)
        self.draws, self.scores, self.still = draws, scores, still

    def phases(self) -> list[Phase]:
        return [
            Phase(self.critic_loss, ("other" if self.still else "critic",)),
            Phase(self.generator_loss, ("other",)),
        ]

    def critic_loss(self, batch) -> Loss:
        real, fake, right = {
            "even": (0.1, -0.1, 0.5),
            "sure": (9.0, -9.0, 1.0),
            "behind": (-1.0, 3.0, 0.1),
            "round": (math.sin(self.step / 8), 0.0, 0.5),
        }[self.scores]
        part = self.other if self.still else self.critic
        logs = {"real": torch.tensor(real), "fake": torch.tensor(fake), "right": torch.tensor(right)}
        return Loss(part.weight.square().sum() + 1, logs)

    def generator_loss(self, batch) -> Loss:
        dead = 0.0 if self.scores == "dead" else 1.0
        return Loss((dead * self.other.weight).square().sum() + 1)

    def sample(self, n, cond=None, *, noise=None):
        z = Noise(noise.key).normal(2)
        if self.draws == "point":
            return 0 * z
        if self.draws == "far":
            return z + 100
        if self.draws == "some":
            return torch.cat((0.1 * z[:, :1], z[:, 1:] * 0.1), 1)
        if self.draws == "copies":
            return items("train").take(Noise(noise.key).integers(40))["x"] + 1e-4 * z
        return z


class Dead_(Played):
    """No gradient reaches its generator."""

    def critic_loss(self, batch) -> Loss:
        return Loss(self.critic.weight.square().sum())

    def generator_loss(self, batch) -> Loss:
        return Loss(0 * self.other.weight.sum())


class Late(Played):
    """Its critic has no turn in the first steps."""

    def __init__(self, after: int = 1000, still: bool = False) -> None:
        super().__init__(still=still)
        self.after = after

    def critic_loss(self, batch) -> Loss:
        waits = Loss(0 * (self.critic.weight + self.other.weight).sum())
        return waits if self.step < self.after else super().critic_loss(batch)


def items(part: str, n: int = 40) -> Tensors:
    return Tensors(Noise.seeded(1 if part == "train" else 2, n).normal(2))


def looked(tmp_path, model, watch, *, steps=60, train=None, test=None, log_every=2, voice=None, until=None):
    torch.manual_seed(0)
    data = Data(Shuffled(train or items("train"), 8), items("test", 400) if test is None else test)
    trainer = Trainer(steps, optim=SGD(0.01, 0.0), hooks=(watch,), log_every=log_every, save_every=1000)
    run = tmp_path / "run"
    trainer.fit(model, data, run=run, voice=voice or Voice(), device="cpu", until=until)
    return read(run / "log.jsonl")


def signs(lines) -> list[str]:
    return [t.alarm.sign for t in told(lines)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: Played(), []),
        (lambda: Played("point"), ["dead gradients", "mode collapse"]),
        (lambda: Dead_(), ["dead gradients"]),
        (lambda: Played("far", "sure"), ["critic too strong"]),
        (lambda: Played("truth", "sure"), []),  # sure of itself, and yet the samples are good
        (lambda: Played("truth", "behind"), ["critic does not learn"]),
        (lambda: Played(still=True), ["critic does not learn"]),
        (lambda: Late(), []),
        (lambda: Late(after=20, still=True), ["critic does not learn"]),
        (lambda: Played(scores="round"), ["oscillation"]),
        (lambda: Played("some"), ["mode collapse"]),
        (lambda: Played("copies"), ["memorisation"]),
    ],
)  # fmt: skip
def test_a_sign_is_seen(model, expected, tmp_path):
    steps = 400 if expected == ["oscillation"] else 60
    assert (
        signs(looked(tmp_path, model(), Watch(steps // 4), steps=steps, log_every=4 if steps > 60 else 2)) == expected
    )


def test_data_of_one_kind_are_named(tmp_path):
    narrow = Tensors(0.05 * Noise.seeded(3, 400).normal(2) + 1)
    assert signs(looked(tmp_path, Played(), Watch(15, (Collapse(),)), train=narrow)) == ["mode collapse of the data"]


# ---- told once


class Moody(Remembers):
    """A sign that is seen at the looks of a list, for a cause of its own."""

    def __init__(self, causes: list[str | None]) -> None:
        self.causes = causes

    def __call__(self, look):
        from morphogen.watch import Alarm

        cause = self.causes[look.step - 1]
        return cause and Alarm("mood", f"a step {look.step}", cause, "wait")


class Hears(Voice):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("causes", "patience", "expected"),
    [
        ([None, "a", "a", "a", "a", "a"], 2, [(3, "a", None)]),
        ([None, "a", "a", None, "a", "a"], 2, [(3, "a", 4), (6, "a", None)]),
        (["a", None, "a", None, "a", None], 2, []),
        (["a", None, "a", "a", None, None], 1, [(1, "a", 2), (3, "a", 5)]),
        ([None, "a", "a", "b", "b", "b"], 2, [(3, "a", 4), (4, "b", None)]),
        (["a", "a", "a", "a", None, "a"], 3, [(3, "a", 5)]),
    ],
)
def test_an_alarm_is_told_once_and_again_when_it_changes(causes, patience, expected, tmp_path):
    voice = Hears()
    watch = Watch(1, (Moody(causes),), patience=patience)
    lines = looked(tmp_path, Played(), watch, steps=6, voice=voice)
    assert [(t.step, t.alarm.cause, t.over) for t in told(lines)] == expected
    said = [text for text in voice.said if text.startswith("step")]
    assert sum("mood: a step" in text for text in said) == len(expected)
    assert sum("mood is over" in text for text in said) == sum("over" in line for line in lines)
    assert all("Likely cause: " in text and "What to change: wait" in text for text in said if "mood:" in text)


@pytest.mark.parametrize("until", [1, 3, 5])
def test_a_resumed_watch_tells_what_the_straight_one_tells(until, tmp_path):
    causes = [None, "a", "a", None, "a", "a"]
    watch = Watch(1, (Moody(causes), Collapse()))
    straight = looked(tmp_path / "straight", Played("some"), watch, steps=6)
    looked(tmp_path / "broken", Played("some"), watch, steps=6, until=until)
    broken = looked(tmp_path / "broken", Played("some"), watch, steps=6)
    timeless = [[line for line in lines if "steps_per_s" not in line] for lines in (straight, broken)]
    assert timeless[0] == timeless[1]
    assert sum("watch" in line for line in straight) == 6


def test_a_watch_changes_nothing(tmp_path):
    weights = []
    for name, watch in (("with", Watch(3)), ("without", Watch(3, ()))):
        torch.manual_seed(1)
        model = Played("some")
        looked(tmp_path / name, model, watch, steps=9)
        weights.append(model.state_dict())
        assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_machines_hear_an_alarm_in_parts(tmp_path, capsys):
    looked(tmp_path, Played(), Watch(1, (Moody(["a"] * 3),)), steps=3, voice=JsonLines())
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (alarm,) = [e for e in events if e["event"] == "alarm"]
    assert alarm == {
        "event": "alarm",
        "step": 2,
        "sign": "mood",
        "evidence": "a step 2",
        "cause": "a",
        "change": "wait",
    }


def test_what_a_log_does_not_hold_is_no_alarm():
    assert told([{"alarm": 3}, {"alarm": {"sign": "x"}}, {"over": "x"}, {}]) == []


def test_a_watch_is_remembered_and_checked():
    watch = Watch(7, (Dead(), Leak(kept=0.1)), n=30)
    again = build(spec(watch))
    assert (again.every, again.n, [type(s) for s in again.signs]) == (7, 30, [Dead, Leak])
    assert spec(Watch())["args"]["signs"] is None
    with pytest.raises(UserError, match="n of 20 or more"):
        Watch(n=5)


class Silent(Model):
    """Has one loss, and cannot sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def loss(self, batch) -> Loss:
        return Loss(self.net(batch["x"]).square().mean())


def test_without_samples_or_held_out_data_it_looks_at_the_log(tmp_path):
    assert signs(looked(tmp_path / "a", Silent(), Watch(10))) == []
    data = Data(Shuffled(items("train"), 8))
    Trainer(4, hooks=(Watch(2),)).fit(Silent(), data, run=tmp_path / "b", voice=Voice(), device="cpu")
    assert sum("watch" in line for line in read(tmp_path / "b" / "log.jsonl")) == 2


# ---- what conditions are worth


class Table(Model):
    """Learns a place for each label, and tells points by their distance from it."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(labels, 2))

    def loss(self, batch) -> Loss:
        return Loss((self.place[batch["cond"]["label"]] - batch["x"]).square().sum(1).mean())


def labelled(seed: int, kind: str, n: int = 200) -> Tensors:
    label = Noise.seeded(seed, n).integers(4)
    x = Noise.seeded(seed + 7, n).normal(2) * 0.3 + torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])[label]
    return Tensors(
        x, {"label": torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if kind == "id" else label}
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "expected"), [("class", []), ("id", ["label leak"])])
def test_a_condition_that_names_the_item_leaks(kind, expected, seed, tmp_path):
    torch.manual_seed(0)
    data = Data(Shuffled(labelled(seed, kind), 50), labelled(seed + 100, kind))
    trainer = Trainer(200, optim=SGD(0.5 if kind == "class" else 5.0, 0.0), hooks=(Watch(50, (Leak(),)),))
    trainer.fit(Table(200), data, run=tmp_path / "run", voice=Voice(), device="cpu")
    lines = read(tmp_path / "run" / "log.jsonl")
    assert signs(lines) == expected
    there, here = [line["watch"]["worth"]["loss"] for line in lines if "watch" in line][-1]
    if kind == "class":  # E |m_c' - m_c|² over pairs of items; the places are the classes' means
        assert there == pytest.approx(here, abs=0.6)
        assert there == pytest.approx(2 * (1 - 0.0), abs=0.5)
    else:
        assert there > 1
        assert abs(here) < 0.5


# ---- with a judge


class Quadrants(nn.Module):
    """Reads which of four classes a point is of."""

    def features(self, x):
        return x

    def predict(self, x):
        centres = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
        return (-(x[:, None] - centres).square().sum(2) / 0.1).softmax(1)


class Draws(Model):
    """Points of the class asked for; or of another one, of any, or of three of four."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.w = how, nn.Parameter(torch.ones(()))

    def loss(self, batch) -> Loss:
        return Loss(self.w.square())

    def sample(self, n, cond=None, *, noise=None):
        label = (cond or NONE)["label"]
        asked = {"asked": label, "next": (label + 1) % 4, "any": noise.integers(4), "three": label.clamp(max=2)}[
            self.how
        ]
        centres = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
        return centres[asked] + 0.3 * noise.normal(2)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("asked", []), ("next", ["label ignored"]), ("any", []), ("three", ["mode collapse"])],
)
def test_a_judge_reads_classes(how, expected, tmp_path):
    """What is drawn in any class whatever was asked for does not hear the label, and so is no failure of it."""
    watch = Watch(2, (Unheard(), Collapse()), judge=Quadrants())
    assert (
        signs(looked(tmp_path, Draws(how), watch, steps=6, train=labelled(5, "class"), test=labelled(6, "class")))
        == expected
    )


def test_thresholds_stand_where_the_page_says_they_do():
    assert (StrongCritic().gap, WeakCritic().right, Memorisation().share, Dead().spread) == (8.0, 0.4, 0.2, 1e-3)


# ---- the best checkpoint by samples


class Sours(Model):
    """Its loss falls for ever, while its samples are best at step 20."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.best = nn.Parameter(torch.zeros(())), 20

    def loss(self, batch) -> Loss:
        return Loss(-self.w + batch["x"].sum() * 0)

    def sample(self, n, cond=None, *, noise=None):
        return noise.normal(2) + 0.1 * (self.w.round() - self.best).abs()


@pytest.mark.parametrize(("metric", "better"), [("frechet", "min"), ("density", "max")])
def test_the_best_is_kept_by_samples_and_not_by_the_loss(metric, better, tmp_path):
    rule = HeldOut(every=5, metric=metric, better=better, also=Quality(200), patience=3)
    trainer = Trainer(100, optim=SGD(1.0, 0.0), heldout=rule, save_every=1000, log_every=1000)
    data = Data(Shuffled(items("train"), 8), items("test", 300))
    training = trainer.fit(Sours(), data, run=tmp_path / "run", voice=Voice(), device="cpu")
    lines = [line for line in read(tmp_path / "run" / "log.jsonl") if "heldout" in line]
    assert training.best["step"] == 20
    assert training.step == 35
    assert 20 in training.checkpoints.steps()
    losses = [line["heldout"]["loss"] for line in lines]
    assert losses == sorted(losses, reverse=True)
    at_best = lines[3]["heldout"]
    assert set(at_best) == {"loss", "frechet", "precision", "recall", "density", "coverage"}
    assert at_best["frechet"] < 0.1
    assert lines[0]["heldout"]["frechet"] == pytest.approx(2 * 1.5**2, rel=0.25)  # |m - m'|², two coordinates
    assert build(spec(rule)).also.n == 200


def test_quality_with_a_judge_counts_what_was_asked_for(tmp_path):
    test, device = labelled(6, "class"), torch.device("cpu")
    found = {how: Quality(150, Quadrants())(Draws(how), test, 0, device) for how in ("asked", "next")}
    assert found["asked"]["agreement"] > 0.9
    assert found["next"]["agreement"] < 0.1
    again = Quality(150, Quadrants())(Draws("asked"), test, 0, device)
    assert again == found["asked"]  # the same noise, the same items
    with pytest.raises(UserError, match="says nothing"):
        Quality(5, k=5)
    with pytest.raises(UserError, match="cannot sample"):
        Quality(20)(Silent(), test, 0, device)


def test_quality_of_real_digits_is_that_of_two_draws_of_one_law():
    class Copies(Model):
        def sample(self, n, cond=None, *, noise=None):
            return Digits("train").take(noise.integers(1437))["x"]

    found = Quality(360)(Copies(), Digits("test"), 0, torch.device("cpu"))
    assert found["coverage"] > 0.9
    assert found["precision"] > 0.8
