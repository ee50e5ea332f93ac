"""Memory that runs out: the batch is taken in smaller pieces, with the same gradient; or one sentence says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from morphogen import Data, Loss, Model, Trainer, UserError
from morphogen.checkpoint import Checkpoints
from morphogen.hooks import Voice
from morphogen.log import read
from morphogen.optim import SGD

from ..contract.throwaway import lm
from .test_trainer import Fit, Line, seeded

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "accelerator": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "machine": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried … bytes."),
    "python": MemoryError,
}


class Said(Voice):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def of_memory(self) -> list[str]:
        return [line for line in self.lines if "emory" in line]


class Hungry(lm.LM):
    """The language model of two denominators, with memory for `room` samples."""

    room = 12
    error = staticmethod(WORDS["machine"])
    touches = False
    whole = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def loss(self, batch) -> Loss:
        said = super().loss(batch)
        if self.touches:
            self.count += 1
        if len(batch["key"]) > self.room:
            raise self.error()
        return said

    def counts(self, batch):
        return {} if self.whole else super().counts(batch)


def hungry(run: Path, room: int, voice: Voice | None = None, until: int | None = None, **dials):
    model = seeded(Hungry).double()
    model.room = room
    for name, value in dials.items():
        setattr(model, name, value)
    trainer = Trainer(4, optim=SGD(0.1), log_every=1, save_every=1)
    return trainer.fit(model, Data(lm.Counting()), run=run, voice=voice or Voice(), until=until)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read(run / "log.jsonl")]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("room", [1, 4, 5, 11])
def test_smaller_pieces_give_the_same_gradient_and_are_said_once(tmp_path, words, room):
    voice = Said()
    roomy = hungry(tmp_path / "roomy", 12)
    tight = hungry(tmp_path / "tight", room, voice, error=WORDS[words])
    assert losses(tmp_path / "tight") == pytest.approx(losses(tmp_path / "roomy"), rel=1e-12)
    for a, b in zip(roomy.model.parameters(), tight.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0)
    assert tight.micro == {1: 1, 4: 3, 5: 3, 11: 6}[room]
    assert len(voice.of_memory()) == 1
    assert f"pieces of {tight.micro}" in voice.of_memory()[0]
    assert "step 1" in voice.of_memory()[0]


def test_a_resumed_run_goes_on_with_the_pieces_that_fit(tmp_path):
    straight = hungry(tmp_path / "straight", 5)
    hungry(tmp_path / "cut", 5, until=2)
    voice = Said()
    again = hungry(tmp_path / "cut", 12, voice)  # there would be room now, and other roundings
    assert again.micro == straight.micro == 3
    assert not voice.of_memory()
    for a, b in zip(again.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_that_say_no_pieces_are_continued(tmp_path):
    hungry(tmp_path, 12, until=2)
    store = Checkpoints(tmp_path)
    parts = store.load(2)
    del parts["loop"]["micro"]
    store.save(2, {k: v for k, v in parts.items() if k != "frozen"}, parts["frozen"])
    assert hungry(tmp_path, 12).step == 4


@pytest.mark.parametrize(
    ("dials", "sentence"),
    [
        ({"room": 0}, "one sample alone does not fit"),
        ({"room": 5, "whole": True}, "over the whole batch at once"),
        ({"room": 5, "touches": True}, "changes buffers"),
    ],
)
def test_where_smaller_pieces_cannot_help_one_sentence_says_so(tmp_path, dials, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        hungry(tmp_path, **dials)
    assert "Memory ran out in phase 'loss'" in str(caught.value)


def test_other_errors_are_not_taken_for_it(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"):
        hungry(tmp_path, 5, error=lambda: RuntimeError("shapes differ"))


def test_a_half_made_gradient_is_forgotten(tmp_path):
    """Memory runs out in the backward pass of a later piece, when the gradients of earlier ones are there."""

    class Late(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, fails):
            ctx.fails = fails
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if ctx.fails:
                raise WORDS["accelerator"]()
            return grad, None

    class Backwards(Fit):
        failing = False
        calls = 0

        def loss(self, batch) -> Loss:
            self.calls += 1
            said = super().loss(batch)
            return said._replace(value=Late.apply(said.value, self.failing and self.calls == 3))

    ends = []
    for failing in (False, True):
        model = seeded(Backwards)
        model.failing = failing
        Trainer(1, optim=SGD(0.1), micro=4).fit(model, Data(Line()), run=tmp_path / str(failing), voice=Voice())
        ends.append([p.detach() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


class Wide(Model):
    """Keeps 8 MB for the backward pass of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 1))

    def loss(self, batch) -> Loss:
        h = (batch["x"] @ self.weight).expand(-1, 1 << 18)
        for _ in range(8):
            h = h.sin()
        return Loss(h.mean())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_real_memory_that_runs_out(tmp_path):
    """128 samples want a gigabyte; the process may take 300 MB more than it has."""
    code = f"""
import resource, torch
from morphogen import Data, Trainer
from morphogen.hooks import voice_for
from tests.system.test_memory import Wide
from tests.system.test_trainer import Line
torch.set_num_threads(1)
has = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has + (300 << 20),) * 2)
done = Trainer(1).fit(Wide(), Data(Line(128)), run={str(tmp_path / "run")!r}, voice=voice_for())
print("pieces", done.micro)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("pieces")[-1]) in (8, 16, 32)
    assert done.stdout.count("Memory ran out") + done.stderr.count("Memory ran out") == 1
