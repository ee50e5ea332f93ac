"""Models with one fault each. A model here is an honest one of `good.py` with the one method that is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core import Act, Batch, Loss, Noise, Phase, Update, size

from .good import GAN, PCA, Bigram, Cond, Coupling, Denoiser, Gaussian, KMeans, Points, Policy, Table, Teacher

# ---- sources -------------------------------------------------------------------------------------------------------


class ScalarInBatch(Points):
    def items(self, noise: Noise) -> dict[str, Any]:
        return {**super().items(noise), "temperature": torch.tensor(1.0)}


class KeysOfWrongType(Points):
    def next(self, actor: Any, heard: Any) -> Batch:
        batch = super().next(actor, heard)
        return {**batch, "key": batch["key"].float()}


class ForgetsItsPlace(Points):
    def restore(self, state: dict[str, Any]) -> None:
        self.step = 0


# ---- losses --------------------------------------------------------------------------------------------------------


class LossOfEachSample(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.log_prob(batch["x"]))  # (B,)


class UnnamedDenominator(Bigram):
    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {"symbols": super().counts(batch)["symbols"]}


class SeenWithGraph(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        logp = self.log_prob(batch["x"])
        return Loss(-logp.mean(), seen={"logp": logp})


class LogOfNegative(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        return Loss(super().loss(batch).value + batch["x"].log().mean())


class GradientOfRootOfZero(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        return Loss(super().loss(batch).value + self.mean.square().sum().sqrt())  # mean starts at zero


class CountsItsCalls(Gaussian):
    calls = 0

    def loss(self, batch: Batch) -> Loss:
        self.calls += 1
        return Loss(super().loss(batch).value / self.calls)


class WritesToItsBatch(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.log_prob(batch["x"].clamp_(-1, 1)).mean())


class NoiseWithoutKeys(Denoiser):
    def loss(self, batch: Batch) -> Loss:
        x = batch["x"]
        t, z = torch.rand(len(x)), torch.randn_like(x)
        velocity = self.net(torch.lerp(x, z, t[:, None]), {**batch["cond"], "t": t})
        return Loss((velocity - (z - x)).square().mean())


class UpdateWithoutKeys(KMeans):
    def phases(self) -> tuple[Update, ...]:
        return (Update(self.jitter),)

    def jitter(self, batch: Batch) -> Loss:
        return self.assign({**batch, "x": batch["x"] + 1e-3 * torch.randn_like(batch["x"])})


class SeedsEveryone(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        torch.manual_seed(0)
        return super().sample(n, cond, noise=noise)


class ChangesDefaultType(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return super().sample(n, cond, noise=noise).float()


# ---- gradients -----------------------------------------------------------------------------------------------------


class DetachedLoss(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.log_prob(batch["x"]).mean().detach())


class DetachedPart(Coupling):
    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        hidden = self.net[:2](x[:, :1]).detach()  # the first layer never learns
        log_s, shift = self.net[2](hidden).unbind(1)
        z = torch.stack([x[:, 0], (x[:, 1] - shift) * (-log_s).exp()], 1)
        return -0.5 * z.square().sum(1) - float(np.log(2 * np.pi)) - log_s


class OtherPhasesGradient(GAN):
    def phases(self) -> tuple[Phase, ...]:
        return Phase(self.critic_loss, ("generator",)), Phase(self.generator_loss, ("critic",))


class MisspelledPart(GAN):
    def phases(self) -> tuple[Phase, ...]:
        return Phase(self.critic_loss, ("critics",)), Phase(self.generator_loss, ("generator",))


class TrainedByNobody(GAN):
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self.generator_loss, ("generator",)),)


class ClipsInItsLoss(GAN):
    def critic_loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            for p in self.critic.parameters():
                p.clamp_(-0.5, 0.5)  # Wasserstein's clipping, in the wrong place
        return super().critic_loss(batch)


class UphillGradient(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        value = super().loss(batch).value
        return Loss(2 * value.detach() - value)


class UpdateAway(KMeans):
    def assign(self, batch: Batch) -> Loss:
        loss = super().assign(batch)
        self.centres *= 2.0
        return loss


class UpdateOfNothing(KMeans):
    def assign(self, batch: Batch) -> Loss:
        return Loss(torch.cdist(batch["x"], self.centres).amin(1).mean())


# ---- sizes and denominators ----------------------------------------------------------------------------------------


class PairsUp(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        a, b = batch["x"].view(-1, 2, 2).unbind(1)  # wants an even number
        return Loss(-self.log_prob(a).mean() / 2 - self.log_prob(b).mean() / 2)


class Squeezes(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.log_prob(batch["x"].squeeze()).mean())


class SpreadOverBatch(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        logp = self.log_prob(batch["x"])
        return Loss(-logp.mean() + 0.1 * logp.std())  # NaN for one sample


class CountsPadding(Bigram):
    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {**super().counts(batch), "symbols": batch["tokens"].numel()}


class CountsLongest(Bigram):
    def counts(self, batch: Batch) -> Mapping[str, float]:
        return {**super().counts(batch), "symbols": float(batch["length"].max())}


class SumsItsLoss(Table):
    def loss(self, batch: Batch) -> Loss:
        return Loss(-self.log_prob(batch["x"]).sum())


class CentresItsBatch(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        x = batch["x"]
        return Loss(-self.log_prob(x - 0.5 * x.mean(0)).mean())


class GradientPerPiece(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        value = super().loss(batch).value
        return Loss(value.detach() + (value - value.detach()) * size(batch))  # as if it were a sum


# ---- samples -------------------------------------------------------------------------------------------------------


class SamplesDouble(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        return super().sample(n, cond, noise=noise).double()


class SamplesExtraDimension(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        return super().sample(n, cond, noise=noise)[:, None]


class SamplesWithoutNoiseKeyword(Gaussian):
    def sample(self, n: int, cond: Cond = None) -> Tensor:  # type: ignore[override]
        return super().sample(n, cond)


class OwnRandomness(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        return self.mean + self.log_scale.exp() * torch.randn(n, 2)


class AlwaysTheSameNoise(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        return super().sample(n, cond, noise=Noise.seeded(0, n))


class SharedNoise(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        return super().sample(1, cond, noise=Noise((noise or Noise.seeded(0, n)).key[:1])).expand(n, -1)


class PartlySharedNoise(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        noise = noise or Noise.seeded(0, n)
        return super().sample(n, cond, noise=noise) + Noise(noise.key[:1]).normal(2)


class SharedCondition(Denoiser):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None, steps: int = 4) -> Tensor:
        x = super().sample(n, cond, noise=noise, steps=steps)
        return x if cond is None else x + cond["label"].float().mean()


class StandardisesSamples(Gaussian):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        x = super().sample(n, cond, noise=noise)
        return x - 0.1 * x.mean(0)


class CountsItsSamples(Gaussian):
    def __init__(self, dim: int = 2) -> None:
        super().__init__(dim)
        self.register_buffer("drawn", torch.zeros(()))

    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        self.drawn += n
        return super().sample(n, cond, noise=noise)


class StaysInEvaluation(Denoiser):
    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None, steps: int = 4) -> Tensor:
        self.eval()
        return super().sample(n, cond, noise=noise, steps=steps)


# ---- likelihoods and codecs ----------------------------------------------------------------------------------------


class MeanLogProb(Table):
    def loss(self, batch: Batch) -> Loss:
        return Loss(-super().log_prob(batch["x"]).mean() / 2)

    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        return super().log_prob(x, cond).mean()


class ColumnElbo(PCA):
    def elbo(self, x: Tensor, cond: Cond = None) -> Tensor:
        return super().elbo(x, cond)[:, None]


class FlatCode(PCA):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z).flatten()

    def sample(self, n: int, cond: Cond = None, *, noise: Noise | None = None) -> Tensor:
        noise = noise or Noise.seeded(0, n)
        return super().decode(noise.normal()) + self.log_sigma.exp() * noise.normal(2)


class NarrowField(Denoiser):
    def denoise(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return super().denoise(x, cond)[:, :1]


class GlobalDice(Policy):
    def act(self, obs: Tensor, memory: Any = None, *, noise: Noise) -> Act:
        return Act(torch.multinomial(self.logits(obs).softmax(1), 1)[:, 0])


class InfoOfBatch(Policy):
    def act(self, obs: Tensor, memory: Any = None, *, noise: Noise) -> Act:
        act = super().act(obs, memory, noise=noise)
        return act._replace(info={"logp": act.info["logp"].mean()})


class DensityOfBatch(Gaussian):
    def loss(self, batch: Batch) -> Loss:
        return Loss(-super().log_prob(batch["x"]).mean())

    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        return super().log_prob(x - 0.1 * x.mean(0), cond)


class WrongLogDeterminant(Coupling):
    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        log_s = self.net(x[:, :1])[:, 0]
        return super().log_prob(x, cond) + 2 * log_s  # the sign of the determinant; invisible at the identity


class ForgottenConstant(Gaussian):
    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        return super().log_prob(x, cond) + 0.5 * float(np.log(2 * np.pi))


class UnnormalisedTable(Table):
    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        a, b = x.unbind(1)
        return self.first.log_softmax(0)[a] + self.second.log_softmax(0)[a, b]  # over the wrong dimension


class BoundWithoutKL(PCA):
    def elbo(self, x: Tensor, cond: Cond = None) -> Tensor:
        m = (x - self.mu) @ self.v
        kl = 0.5 * (m.square() + (2 * self.log_s).exp() - 1 - 2 * self.log_s)
        return super().elbo(x, cond) + 2 * kl  # its sign


# ---- what is written down ------------------------------------------------------------------------------------------


class GrowsItsArgument(Gaussian):
    def __init__(self, widths: list[int]) -> None:
        super().__init__(2)
        widths.append(8)
        self.net = nn.Sequential(*(nn.Linear(2, w) for w in widths[:1]))
        self.net.requires_grad_(False)


class DrawsFromNumpy(Gaussian):
    def __init__(self) -> None:
        super().__init__(2)
        self.mean.data = torch.as_tensor(np.random.randn(2), dtype=torch.float32)


class DrawsFromPython(Gaussian):
    def __init__(self) -> None:
        super().__init__(2)
        self.mean.data += random.random()


class TakesALambda(Gaussian):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__(2)
        self.f = f


class UnsavedAverage(Gaussian):
    """A running mean in a plain attribute."""

    def __init__(self) -> None:
        super().__init__(2)
        self.centre = torch.zeros(2)

    def loss(self, batch: Batch) -> Loss:
        pull = (self.mean - self.centre).square().sum()
        return Loss(super().loss(batch).value + pull, seen={"x": batch["x"]})

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        self.centre = 0.9 * self.centre + 0.1 * seen["x"].mean(0)


class UnsavedBuffer(UnsavedAverage):
    """The same in a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        del self.centre
        self.register_buffer("centre", torch.zeros(2), persistent=False)


class HiddenStepCounter(Teacher):
    """The target moves every second step, by a count of its own that a checkpoint does not hold."""

    count = 0

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        self.count += 1
        if self.count % 2 == 0:
            super().after_step(phase, seen)
