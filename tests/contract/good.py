"""Tiny honest models of several kinds, and the sources that feed them: the battery passes them all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.core import Act, Batch, Loss, Model, Net, Noise, Phase, Place, Update, keys, size
from morphogen.spec import Remembers

Cond = Mapping[str, Tensor] | None


# ---- sources -------------------------------------------------------------------------------------------------------


class Stream(Remembers):
    """Base of the sources below: batch s holds the samples s B to s B + B of an endless stream, each a function of its
    key.
    """

    def __init__(self, batch: int = 12) -> None:
        self.batch = batch

    def start(self, place: Place) -> None:
        self.place, self.step = place, 0

    def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
        index = torch.arange(self.batch) + self.batch * self.step
        self.step += 1
        key = keys(index, self.place.seed)
        return {**self.items(Noise(key)), "key": key, "index": index}

    def items(self, noise: Noise) -> dict[str, Any]:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class Points(Stream):
    """Correlated Gaussian points (B, 2) with labels 0 .. 2, one mean each."""

    def items(self, noise: Noise) -> dict[str, Any]:
        label = noise.integers(3)
        z = noise.normal(2)
        x = z @ torch.tensor([[0.9, 0.3], [0.0, 0.6]]) + torch.stack([label - 1.0, 0.5 * label], 1)
        return {"x": x, "cond": {"label": label}}


class Pairs(Stream):
    """Pairs of symbols (B, 2) in 0 .. 2; the second is the first or its successor."""

    def items(self, noise: Noise) -> dict[str, Any]:
        first = noise.integers(3)
        return {"x": torch.stack([first, (first + noise.integers(2)) % 3], 1)}


class Ragged(Stream):
    """Sequences (B, 6) of symbols in 0 .. 3 that count up, of lengths 1 .. 6, padded with zeros."""

    def items(self, noise: Noise) -> dict[str, Any]:
        length = 1 + noise.integers(6)
        tokens = (noise.integers(4)[:, None] + torch.arange(6)) % 4
        return {"tokens": tokens * (torch.arange(6) < length[:, None]), "length": length}


class Deeds(Stream):
    """Observations (B, 2), actions 0 .. 2 taken at random, and how much better than expected each was."""

    def items(self, noise: Noise) -> dict[str, Any]:
        return {"obs": noise.normal(2), "action": noise.integers(3), "advantage": noise.normal()}


# ---- densities -----------------------------------------------------------------------------------------------------


class Gaussian(Model):
    """An axis-aligned Gaussian by maximum likelihood."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def loss(self, batch: Batch) -> Loss:
        logp = self.log_prob(batch["x"])
        return Loss(-logp.mean(), logs={"nats": logp.mean().detach()}, seen={"logp": logp.detach()})

    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        z = (noise or Noise.seeded(0, n)).normal(*self.mean.shape)
        return self.mean + self.log_scale.exp() * z

    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        z = (x - self.mean) * (-self.log_scale).exp()
        return (-0.5 * z.square() - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(1)


class Coupling(Model):
    """One affine coupling on the plane that starts as the identity (Dinh et al. 2017): flow, density and codec."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 2))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.log_prob(batch["x"]).mean())

    def encode(self, x: Tensor) -> Tensor:
        log_s, shift = self.net(x[:, :1]).unbind(1)
        return torch.stack([x[:, 0], (x[:, 1] - shift) * (-log_s).exp()], 1)

    def decode(self, z: Tensor) -> Tensor:
        log_s, shift = self.net(z[:, :1]).unbind(1)
        return torch.stack([z[:, 0], z[:, 1] * log_s.exp() + shift], 1)

    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        log_s = self.net(x[:, :1])[:, 0]
        return -0.5 * self.encode(x).square().sum(1) - math.log(2 * math.pi) - log_s

    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        return self.decode((noise or Noise.seeded(0, n)).normal(2))


class Table(Model):
    """p(a) p(b | a) over pairs of three symbols, each a table of logits: every x can be listed."""

    def __init__(self, symbols: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(symbols)), nn.Parameter(torch.zeros(symbols, symbols))

    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.log_prob(batch["x"]).mean() / 2)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {"": batch["x"].numel()}  # symbols, not pairs

    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        a, b = x.unbind(1)
        return self.first.log_softmax(0)[a] + self.second.log_softmax(1)[a, b]

    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        noise = noise or Noise.seeded(0, n)
        a = noise.categorical(self.first.expand(n, -1))
        return torch.stack([a, noise.categorical(self.second[a])], 1)


class PCA(Model):
    """Probabilistic PCA with one latent number (Tipping & Bishop 1999) as a VAE: exact density, sampled bound, codec.

    x = mu + w z + sigma e; q(z | x) = N(v . (x - mu), s^2), free to be wrong. With unkeyed draws in `elbo`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.w = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor([0.7, 0.3]))
        self.v, self.log_s = nn.Parameter(torch.tensor([0.5, 0.2])), nn.Parameter(torch.tensor(-0.3))
        self.log_sigma = nn.Parameter(torch.tensor(-0.2))

    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.bound(batch["x"], Noise(batch["key"]).normal()).mean())

    def bound(self, x: Tensor, e: Tensor) -> Tensor:
        """The evidence bound (B,) with the draws e (B,)."""
        m = (x - self.mu) @ self.v  # (B,)
        z = m + self.log_s.exp() * e
        r = (x - self.mu - z[:, None] * self.w) * (-self.log_sigma).exp()  # (B, 2)
        reconstruction = (-0.5 * r.square() - self.log_sigma - 0.5 * math.log(2 * math.pi)).sum(1)
        return reconstruction - 0.5 * (m.square() + (2 * self.log_s).exp() - 1 - 2 * self.log_s)

    def elbo(self, x: Tensor, cond: Cond = None) -> Tensor:
        return self.bound(x, torch.randn(len(x)))

    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        cov = torch.outer(self.w, self.w) + (2 * self.log_sigma).exp() * torch.eye(2)
        r = x - self.mu
        return -0.5 * ((r @ cov.inverse()) * r).sum(1) - 0.5 * cov.logdet() - math.log(2 * math.pi)

    def encode(self, x: Tensor) -> Tensor:
        return (x - self.mu) @ self.v

    def decode(self, z: Tensor) -> Tensor:
        return self.mu + z[:, None] * self.w

    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        noise = noise or Noise.seeded(0, n)
        return self.decode(noise.normal()) + self.log_sigma.exp() * noise.normal(2)


# ---- other kinds ---------------------------------------------------------------------------------------------------


class Mind(Net):
    """A conditional net: (x (B, 2), {"t": (B,), "label": (B,)}) to (B, 2), with dropout, starting from zero."""

    def __init__(self, width: int = 16, labels: int = 3) -> None:
        super().__init__()
        self.label = nn.Embedding(labels, width)
        self.into, self.out = nn.Linear(3, width), nn.Linear(width, 2)
        self.dropout = nn.Dropout(0.1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        h = self.into(torch.cat([x, cond["t"][:, None]], 1)) + self.label(cond["label"])
        return self.out(self.dropout(F.silu(h)))


class Denoiser(Model):
    """Flow matching on a straight path, conditional on a label (Lipman et al. 2023): a field, and a slow sampler."""

    def __init__(self, net: Mind) -> None:
        super().__init__()
        self.net = net

    def loss(self, batch: Batch) -> Loss:
        x, noise = batch["x"], Noise(batch["key"])
        t, z = noise.uniform(), noise.normal(2)
        x_t = torch.lerp(x, z, t[:, None])
        error = (self.net(x_t, {**batch["cond"], "t": t}) - (z - x)).square().mean(1)  # (B,)
        return Loss(error.mean(), seen={"t": t, "error": error.detach()})

    def denoise(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return x - cond["t"][:, None] * self.net(x, cond)

    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None, steps: int = 4) -> Tensor:
        cond = cond or {"label": torch.zeros(n, dtype=torch.long)}
        x = (noise or Noise.seeded(0, n)).normal(2)
        for k in range(steps, 0, -1):
            x = x - self.net(x, {**cond, "t": torch.full((n,), k / steps)}) / steps
        return x


class GAN(Model):
    """Two phases, each with parameters of its own; a critic with spectral normalisation, lazy by half."""

    scaffold = ("critic",)

    def __init__(self, latent: int = 2, width: int = 8) -> None:
        super().__init__()
        self.latent = latent
        self.generator = nn.Sequential(nn.Linear(latent, width), nn.Tanh(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def phases(self) -> tuple[Phase, ...]:
        return Phase(self.critic_loss, ("critic",)), Phase(self.generator_loss, ("generator",), every=2)

    def critic_loss(self, batch: Batch) -> Loss:
        fake = self.sample(size(batch), noise=Noise(batch["key"])).detach()
        return Loss(F.softplus(-self.critic(batch["x"])).mean() + F.softplus(self.critic(fake)).mean())

    def generator_loss(self, batch: Batch) -> Loss:
        return Loss(F.softplus(-self.critic(self.sample(size(batch), noise=Noise(batch["key"])))).mean())

    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        return self.generator((noise or Noise.seeded(0, n)).normal(self.latent))


class BatchNormGAN(GAN):
    """A generator with batch statistics: its batches are never split."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(2, width)
        self.generator = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))

    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {}


class KMeans(Model):
    """Mini-batch k-means (Sculley 2010) as an update by its own rule: no gradient anywhere."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(k, 2))
        self.register_buffer("met", torch.zeros(k))

    def start(self, batch: Batch) -> None:
        self.centres.copy_(batch["x"][: len(self.centres)])

    def phases(self) -> tuple[Update, ...]:
        return (Update(self.assign),)

    def assign(self, batch: Batch) -> Loss:
        x = batch["x"]
        near = self.encode(x)
        loss = (x - self.centres[near]).square().sum(1).mean()
        n = torch.bincount(near, minlength=len(self.centres)).to(x)
        self.met += n
        self.centres += (torch.zeros_like(self.centres).index_add_(0, near, x) - n[:, None] * self.centres) / (
            self.met[:, None].clamp(min=1)
        )
        return Loss(loss, seen={"near": near})

    def encode(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres).argmin(1)

    def decode(self, z: Tensor) -> Tensor:
        return self.centres[z]


class Teacher(Model):
    """A regression onto a slow copy of itself and onto x: a target in `after_step`, and schedules read from `step`."""

    scaffold = ("target",)

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net, self.target = (nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)) for _ in range(2))
        self.target.load_state_dict(self.net.state_dict())
        self.target.requires_grad_(False)

    def loss(self, batch: Batch) -> Loss:
        x = batch["x"]
        pull = min(1.0, self.step / 10)
        slow = self.target(x + 0.1 * Noise(batch["key"]).normal(2))
        return Loss((self.net(x) - x).square().mean() + pull * (self.net(x) - slow).square().mean())

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)


class Bigram(Model):
    """Next symbols and lengths of ragged sequences: two denominators, one of which a piece may lack."""

    def __init__(self) -> None:
        super().__init__()
        self.after, self.length = nn.Embedding(4, 4), nn.Embedding(4, 6)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {"symbols": float((batch["length"] - 1).sum()), "sequences": size(batch)}

    def loss(self, batch: Batch) -> Loss:
        tokens, length = batch["tokens"], batch["length"]
        nll = F.cross_entropy(self.after(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")  # (B, 5)
        inside = torch.arange(1, 6) < length[:, None]
        symbols = (nll * inside).sum() / inside.sum().clamp(min=1)
        return Loss({"symbols": symbols, "sequences": F.cross_entropy(self.length(tokens[:, 0]), length - 1)})


class Policy(Model):
    """A softmax policy by the score-function gradient (Williams 1992); each action remembers its log-probability."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(2, 3)

    def loss(self, batch: Batch) -> Loss:
        logp = self.logits(batch["obs"]).log_softmax(1).gather(1, batch["action"][:, None])[:, 0]
        return Loss(-(logp * batch["advantage"]).mean())

    def act(self, obs: Tensor, memory: Any = None, *, noise: Noise) -> Act:
        logits = self.logits(obs)
        action = noise.categorical(logits)
        return Act(action, {"logp": logits.log_softmax(1).gather(1, action[:, None])[:, 0]})
