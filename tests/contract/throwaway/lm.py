"""A language model on ragged sequences with two denominators: tokens, and sequences (a length head)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from morphogen import Data, Experiment, Loss, Model, Place, Remembers, Trainer
from morphogen.core import keys
from morphogen.optim import AdamW, Cosine


class Counting(Remembers):
    """Sequences a, a+1, a+2, ... (mod 10) of random length 1 .. 9, padded with zeros: (B, 9) and lengths (B,)."""

    def __init__(self, batch: int = 12) -> None:
        self.batch = batch

    def start(self, place: Place) -> None:
        self.place, self.step = place, 0

    def next(self, actor, heard):
        index = torch.arange(self.batch) + self.batch * self.step
        key = keys(index, self.place.seed)
        self.step += 1
        first, lengths = (key % 10).abs(), 1 + (key >> 8) % 9
        tokens = (first[:, None] + torch.arange(9)) % 10
        inside = torch.arange(9) < lengths[:, None]
        return {"tokens": tokens * inside, "lengths": lengths, "key": key, "index": index}

    def state(self):
        return {"step": self.step}

    def restore(self, state) -> None:
        self.step = state["step"]


class LM(Model):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.head, self.length = nn.Linear(width, 10, bias=False), nn.Linear(width, 1)
        self.head.weight = self.embed.weight  # tied: written once, found twice

    def counts(self, batch):
        return {"tokens": float((batch["lengths"] - 1).sum()), "sequences": float(len(batch["lengths"]))}

    def loss(self, batch) -> Loss:
        tokens, lengths = batch["tokens"], batch["lengths"]
        h, _ = self.cell(self.embed(tokens))  # (B, T, D)
        nll = F.cross_entropy(self.head(h[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")  # (B, T - 1)
        inside = torch.arange(1, tokens.shape[1]) < lengths[:, None]
        said = self.length(h[:, 0]).squeeze(1)
        each = {
            "tokens": (nll * inside).sum() / inside.sum().clamp(min=1),
            "sequences": (said - lengths).square().mean(),
        }
        return Loss(each, logs={"bits": each["tokens"].detach() / 0.6931})


def experiment(steps: int = 40, micro: int | None = None) -> Experiment:
    optim = AdamW(3e-3, schedule=Cosine(warmup=5), weight_decay=0.1)
    return Experiment(
        LM(), Data(Counting()), Trainer(steps, optim=optim, micro=micro, clip=1.0, save_every=7, log_every=10)
    )
