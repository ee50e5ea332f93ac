"""A recipe whose ranks die on the way, each where it is told to, and once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import nn

import morphogen as mg
from morphogen.data import Digits, Shuffled
from morphogen.optim import AdamW


class Mortal(mg.Model):
    """Blurs of digits. deaths: "RANK:STEP:WHO" of each, WHO being "process" or "actor", the process's parent."""

    def __init__(self, deaths: tuple[str, ...], memory: str) -> None:
        super().__init__()
        self.deaths, self.memory = deaths, memory
        self.mean = nn.Parameter(torch.randn(10, 1, 8, 8))

    def loss(self, batch: mg.core.Batch) -> mg.Loss:
        for death in self.deaths:
            rank, step, who = death.split(":")
            mark = Path(self.memory, death.replace(":", "-"))
            if os.environ.get("RANK") == rank and self.step + 1 == int(step) and not mark.exists():
                mark.touch()
                os.kill(os.getppid() if who == "actor" else os.getpid(), signal.SIGKILL)
                signal.pause()
        noise = mg.Noise(batch["key"]).normal(1, 8, 8)
        return mg.Loss((batch["x"] + 0.1 * noise - self.mean[batch["cond"]["label"]]).square().mean())


def mortal(memory: str, deaths: tuple[str, ...] = (), steps: int = 12, fault: bool = False) -> mg.Experiment:
    """Blurs of digits, by ranks that die.

    memory: a folder for what has happened. deaths: RANK:STEP:WHO of each. fault: raise while it is built.
    """
    if fault:
        raise ValueError("cats are not dogs")
    data = mg.Data(Shuffled(Digits("train"), 16))
    return mg.Experiment(Mortal(deaths, memory), data, mg.Trainer(steps, optim=AdamW(0.05), save_every=3, log_every=1))
