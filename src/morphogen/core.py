"""The contracts: what a model, a source, a space and a capability are. Everything else is built on these.

A `Model` says how it is trained (`phases`, each a loss or an update rule) and what it can do is found by
asking (`can(model, LogProb)`). A `Source` says where batches come from. The trainer knows nothing else.

One batch format: a mapping of names to tensors that share their first dimension B, nested where that helps
(`{"x": (B, ...), "cond": {"label": (B,)}, "key": (B,), "index": (B,)}`). `key` is a 64-bit integer drawn from
(seed, epoch, index): it keys `Noise`, so that a loss is a function of weights and batch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError
from .spec import Remembers

Batch = Mapping[str, Any]  # names to tensors (B, ...) or to further such mappings
State = dict[str, Any]  # nested mappings, lists, numbers, strings and tensors: what a checkpoint can hold
NONE: Mapping[str, Tensor] = MappingProxyType({})


class Loss(NamedTuple):
    """What a phase says of a batch.

    value: a mean over the batch, or one mean per denominator named in `Model.counts`; their sum is differentiated.
    logs:  scalars to report, averaged over pieces and ranks.
    seen:  per sample (B, ...), detached, for `after_step` and for the source; it stays on its rank.
    """

    value: Tensor | Mapping[str, Tensor]
    logs: Mapping[str, Tensor] = NONE
    seen: Mapping[str, Tensor] = NONE


class Phase(NamedTuple):
    """A turn that the trainer differentiates: a bound method of the model, due when `step % every == 0`.

    trains: prefixes of the parameter names that it trains ("" is all). Equal `trains` share one optimiser.
    """

    loss: Callable[[Batch], Loss]
    trains: tuple[str, ...] = ("",)
    every: int = 1


class Update(NamedTuple):
    """A turn that changes weights by its own rule, without a backward pass (k-means, PCA, tabular methods)."""

    rule: Callable[[Batch], Loss]
    every: int = 1


class Net(Remembers, nn.Module):
    """Base of every network: an `nn.Module` that remembers the call that built it. `net(x, cond)` where it has one."""


class Model(Net):
    """Base of every generative model (and of the classifier that judges them). Subclasses are final.

    step: steps finished before the present one began; written by the trainer and saved.
    scaffold: names of the parts that only training needs (critic, teacher): not averaged, exported or served.
    whole: names of the parts that a loss differentiates by itself (a critic with a gradient penalty, the layer of an
    adaptive weight): training on many devices leaves them whole on each.
    lacks: protocols that this instance cannot serve although its class has the methods (a composite sets it).
    discrete: whether `log_prob` and `elbo` are log-probabilities of values that can be counted (levels of pixels,
    codes, tokens), and not densities over real numbers.
    one_law: whether `elbo` bounds the very law of which `log_prob` is the density. A diffusion's does not: one is of
    its reverse process, the other of its probability flow, and only an exact net makes them one.
    """

    step: int = 0
    scaffold: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[tuple[str, ...]] = ()
    lacks: tuple[type, ...] = ()
    discrete: bool = False
    one_law: ClassVar[bool] = True

    def loss(self, batch: Batch) -> Loss:
        """The loss of a model with one phase. A model with several lists them in `phases` instead."""
        raise UserError(f"{type(self).__name__} defines neither loss(batch) nor phases(): write one of them.")

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """What the loss's means are over, known before the forward pass; {} means "never split this batch"."""
        return {"": size(batch)}

    def phases(self) -> Sequence[Phase | Update]:
        """The turns of a step, in order."""
        return (Phase(self.loss),)

    def start(self, batch: Batch) -> None:
        """Called once before step 1 with the first batch (data-dependent initialisation)."""

    def after_step(self, phase: str, seen: Mapping[str, Tensor]) -> None:
        """Called after each turn: what the paper updates without gradients (targets, code books)."""

    def forward(self, batch: Batch, phase: str = "loss") -> Loss:
        """Dispatch to a phase by name: the one door that compilers and data-parallel wrappers see."""
        loss: Loss = getattr(self, phase)(batch)
        return loss


class Place(NamedTuple):
    """Where a source finds itself: its rank among ranks, the device that batches go to, and the run's seed."""

    rank: int = 0
    ranks: int = 1
    device: torch.device = torch.device("cpu")
    seed: int = 0


@runtime_checkable
class Source(Protocol):
    """Where batches come from. Endless; everything it remembers is in `state()`."""

    def start(self, place: Place) -> None:
        """Called once per process before the first `next`, and before `restore`."""

    def next(self, actor: Model, heard: Mapping[str, Loss]) -> Batch:
        """This rank's batch of one step. `heard` is what the last step's phases said, by phase name."""
        ...

    def state(self) -> State:
        """All that is needed to continue exactly. Raise `CannotRestore` with one sentence where that is impossible.

        Where it is so of a part alone, {"cannot": the sentence} stands in its place, and `restore` does without.
        """
        ...

    def restore(self, state: State) -> None:
        """Continue from `state`, whose tensors lie on the device of its place."""


@runtime_checkable
class Lives(Protocol):
    """A source whose batches come of acting. Who asks: the log, since learning curves are over what was lived through.

    env_steps: steps taken so far, of all environments on all ranks.
    """

    @property
    def env_steps(self) -> int: ...


@runtime_checkable
class Wraps(Protocol):
    """A source that makes something of another one's batches."""

    source: Source


def beneath(source: Any, protocol: type) -> Any:
    """The source itself, or the first under whatever wraps it, that serves `protocol`; None where none does."""
    while not isinstance(source, protocol):
        if not isinstance(source, Wraps):
            return None
        source = source.source
    return source


class CannotRestore(Exception):
    """Raised by `Source.state` or `Env.state` in one sentence: what of it is not exact after a resume."""


@runtime_checkable
class Items(Protocol):
    """Recorded data: a finite collection that can be asked for any of its items, in any order."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> dict[str, Any]:
        """The batch of items `index` (B,): names to tensors (B, ...). A pure function of the index."""
        ...


@runtime_checkable
class Space(Protocol):
    """The way between the user's objects and a model's tensors, and back."""

    shape: tuple[int, ...]  # of one x
    volume: float  # log of the volume of one quantisation cell, nats: what bits/dim must subtract

    def encode(self, thing: Any) -> Tensor:
        """One of the user's objects as x of `shape`. Raises UserError for what cannot be one."""
        ...

    def decode(self, x: Tensor) -> list[Any]:
        """The user's objects of a batch x (B, *shape)."""
        ...

    def cond(self, n: int, **wishes: Any) -> dict[str, Tensor]:
        """Conditions of n samples from the user's words: `cond(8, label="cat")` -> {"label": (8,)}."""
        ...

    def show(self, x: Tensor, columns: int | None = None) -> Any:
        """One picture (`PIL.Image.Image`) of the whole batch x (B, ...)."""
        ...

    def save(self, x: Tensor, folder: Any) -> list[Any]:
        """Each sample to a file of its own; the paths."""
        ...


END = "<|end|>"  # the special token that ends a text or a piece, unless it is called otherwise


@runtime_checkable
class Tokens(Protocol):
    """The way between text and the integers 0 .. size - 1 that a language model reads."""

    size: int
    specials: tuple[str, ...]

    def encode(self, text: str) -> Any:
        """The tokens (n,) int32 of a text, as an array of numpy's; special ones never."""
        ...

    def decode(self, ids: Any, *, specials: bool = False) -> str:
        """The text of tokens (n,); special ones are left out, or written by name."""
        ...

    def special(self, name: str) -> int:
        """The integer of a special token."""
        ...


# ---- capabilities: asked for with can(model, Protocol) -------------------------------------------------------------


class Act(NamedTuple):
    """What a policy does: the action (B, ...), what to remember of it, and its memory after it."""

    action: Tensor
    info: Mapping[str, Tensor] = NONE
    memory: Any = None


@runtime_checkable
class Samples(Protocol):
    """Draws new data. Who asks: `draw`, metrics, the command line."""

    def sample(self, n: int, cond: Mapping[str, Tensor] | None = None, *, noise: Noise | None = None) -> Tensor:
        """n samples (n, ...), differentiable where the method allows it. Without noise they are others each time."""
        ...


@runtime_checkable
class Acts(Protocol):
    """A policy: chooses actions for observations. Who asks: rollouts and replays."""

    def act(self, obs: Tensor, memory: Any = None, *, noise: Noise) -> Act:
        """Actions (B, ...) for observations (B, ...), what to remember of them, and the memory (None at the start)."""
        ...


@runtime_checkable
class Greedy(Protocol):
    """A policy that can also act without chance: by the mode of its law, the best of its values, no noise to explore.
    Who asks: `morphogen evaluate` and `play`.

    judged_greedy: whether returns of such acting are what its paper reports (SAC, TD3), or those of its law (PPO).
    """

    judged_greedy: ClassVar[bool]

    def greedy(self, obs: Tensor, memory: Any = None) -> Act:
        """As `act`, without noise."""
        ...


@runtime_checkable
class LogProb(Protocol):
    """Has an exact likelihood. Who asks: bits/dim, preference losses, ratios."""

    def log_prob(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Exact log-density or log-probability (B,), nats."""
        ...


@runtime_checkable
class Bounds(Protocol):
    """Has a lower bound of its likelihood; tables mark it with "≥"."""

    def elbo(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """A lower bound of the log-density (B,), nats."""
        ...


@runtime_checkable
class Importance(Protocol):
    """Can weigh draws of its latents, which makes its bound as tight as one has patience for. Who asks: metrics."""

    def importance(
        self, x: Tensor, cond: Mapping[str, Tensor] | None = None, *, k: int = 1000, noise: Noise | None = None
    ) -> Tensor:
        """Log of the mean of k importance weights (B,), nats: in the mean below the log-density, and rising with k."""
        ...


@runtime_checkable
class Codec(Protocol):
    """A way to latents and back. Who asks: latent priors, interpolation, reconstruction."""

    def encode(self, x: Tensor) -> Any:
        """Latents z of x (B, ...): a tensor (B, ...) or a tuple of them."""
        ...

    def decode(self, z: Any) -> Tensor:
        """Data (B, ...) of latents z."""
        ...


@runtime_checkable
class Infers(Protocol):
    """A codec whose latents have a law given x, and x one given them. Who asks: latent priors, which with the log p(z)
    of any prior have the bound E_q [log p(x|z) − log q(z|x) + log p(z)].
    """

    def infer(self, x: Tensor, cond: Mapping[str, Tensor] | None = None, *, noise: Noise) -> tuple[Tensor, Tensor]:
        """A draw z (B, ...) of q(z|x), and log q(z|x) (B,), nats."""
        ...

    def log_likelihood(self, x: Tensor, z: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """log p(x|z) (B,), nats."""
        ...


@runtime_checkable
class Invertible(Protocol):
    """A codec that loses nothing and has a Jacobian. Who asks: latent priors, for their exact density."""

    def transform(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """z of x, and log |det dz/dx| (B,), nats."""
        ...


@runtime_checkable
class Field(Protocol):
    """Knows the data behind noise. Who asks: solvers, guidance, likelihoods."""

    def denoise(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """E[x_0 | x_t = x] (B, ...), the time (B,) in `cond["t"]`; other views follow from it by algebra."""
        ...


def can(model: Any, protocol: type) -> bool:
    """Whether `model` serves `protocol`: it has the methods, and does not say that it lacks it."""
    return isinstance(model, protocol) and protocol not in getattr(model, "lacks", ())


def parameters(model: Model) -> dict[str, int]:
    """Parameters of each part of the model, a shared one in the first part that has it; they add up to all. Those of a
    model that learns by a rule of its own, such as word vectors, are its saved tables.
    """
    found: dict[str, int] = {}
    for name, p in (dict(model.named_parameters()) or model.state_dict()).items():  # each once
        *path, _ = name.split(".")
        part = ".".join(path[:2]) or name
        found[part] = found.get(part, 0) + p.numel()
    return found


# ---- batches -------------------------------------------------------------------------------------------------------


def leaves(batch: Batch, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch with their dotted names."""
    for name, value in batch.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def each(batch: Batch, f: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The batch with `f` applied to every tensor."""
    return {
        k: each(v, f) if isinstance(v, Mapping) else v if v is None else f(v) for k, v in batch.items()
    }  # None stays: a condition that is not given


def size(batch: Batch) -> int:
    """The number of samples B in a batch."""
    for value in batch.values():
        if isinstance(value, Tensor):
            return value.shape[0]
    for _, value in leaves(batch):
        return value.shape[0]
    raise ValueError("This batch holds no tensor, so it has no size: a source must give at least one (B, ...).")


# ---- randomness is a function --------------------------------------------------------------------------------------

_MASK = (1 << 64) - 1
_GOLDEN, _C1, _C2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64


def _signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z


def fold(*parts: int) -> int:
    """One 63-bit seed from several integers; any change of any part gives an unrelated one.

    Source: the splitmix64 finaliser (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
    """
    h = 0x243F6A8885A308D3  # digits of pi: no short list of small parts meets zero, the finaliser's fixed point
    for part in parts:
        z = (h + (part & _MASK) * _GOLDEN + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * _C1) & _MASK
        z = ((z ^ (z >> 27)) * _C2) & _MASK
        h = z ^ (z >> 31)
    return h >> 1


def _mix(z: Tensor) -> Tensor:
    """The splitmix64 finaliser on int64 tensors (wrapping arithmetic), in place."""
    for shift, factor in ((30, _signed(_C1)), (27, _signed(_C2)), (31, None)):
        z ^= (z >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            z *= factor
    return z


def keys(index: Tensor, *parts: int) -> Tensor:
    """64-bit keys (B,) of items `index` (B,), integers, under the integers `parts` (seed, epoch, ...)."""
    index = index.long()
    if index.is_cpu and index.ndim:  # a number alone is none of numpy's arrays
        words = index.numpy().view(np.uint64) * np.uint64(_GOLDEN) + np.uint64(fold(*parts))
        return torch.from_numpy(_mix_here(words).view(np.int64))
    return _mix(index * _signed(_GOLDEN) + fold(*parts))


# On a CPU the arithmetic is numpy's, whose calls cost a fifth of torch's, and a small batch's noise is all calls. Sums
# and products have the same bits in both; log, sqrt, cos and sin are torch's everywhere.


_30, _27, _31, _C1_here, _C2_here = (np.uint64(c) for c in (30, 27, 31, _C1, _C2))


def _mix_here(z: Any) -> Any:
    """`_mix` on a numpy array of uint64."""
    z ^= z >> _30
    z *= _C1_here
    z ^= z >> _27
    z *= _C2_here
    z ^= z >> _31
    return z


@lru_cache(maxsize=64)
def _ladder_here(n: int) -> Any:
    return np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)  # (n,)


@lru_cache(maxsize=64)
def _ladder(n: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(1, n + 1, device=device) * _signed(_GOLDEN)  # (n,)


def _box_muller(z: Tensor) -> Tensor:
    """Words (B, m) to normals (B, 2m), float64: the high half of a word gives the radius, the low half the angle."""
    radius = (z >> 32).double().add_(2.0**31 + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (z & 0xFFFFFFFF).double().mul_(2 * torch.pi * 2.0**-32)
    return torch.cat((radius * angle.cos(), radius.mul_(angle.sin_())), 1)


def _box_muller_here(z: Tensor, dtype: torch.dtype) -> Tensor:
    """`_box_muller` on a CPU, rounded to `dtype` where that is single precision."""
    words, (b, m) = z.numpy(), z.shape
    radius = (words >> 32) + (2.0**31 + 0.5)
    radius *= 2.0**-32
    shared = torch.from_numpy(radius).log_()
    radius *= -2.0
    shared.sqrt_()
    angle = torch.from_numpy((words & 0xFFFFFFFF) * (2 * torch.pi * 2.0**-32))
    pair = np.empty((b, 2 * m), np.float32 if dtype == torch.float32 else np.float64)
    np.multiply(radius, angle.cos().numpy(), out=pair[:, :m], casting="same_kind")
    np.multiply(radius, angle.sin_().numpy(), out=pair[:, m:], casting="same_kind")
    return torch.from_numpy(pair)


class Noise:
    """Random numbers as a pure function of each sample's key: the same for any batch size, rank or device.

    `Noise(key).normal(3, 8, 8)` is (B, 3, 8, 8), and row i depends on key[i] and on how many draws came before it.
    Numbers are made in integers and float64 and then rounded to `dtype`, so that a float32 and a float64 model
    draw the same noise. Sources: splitmix64 streams; Box & Muller 1958.
    """

    def __init__(self, key: Tensor) -> None:
        self.key, self._draws = key, 0

    @classmethod
    def seeded(cls, seed: int, n: int, *, start: int = 0, device: torch.device | str = "cpu") -> Noise:
        """Noise of n samples numbered from `start` under `seed`."""
        return cls(keys(torch.arange(start, start + n, device=device), seed))

    @classmethod
    def fresh(cls, n: int, device: torch.device | str = "cpu") -> Noise:
        """Noise of n samples, keyed by torch's default generator: other numbers each time."""
        return cls(torch.randint(-(2**63), 2**63 - 1, (n,), device=device))

    @classmethod
    def of(cls, x: Tensor) -> Noise:
        """Noise keyed by the numbers in each x (B, ...): the same x has the same noise, in any batch."""
        with torch.no_grad():
            bits = (x.detach().flatten(1).double() + 0.0).view(torch.int64)  # + 0.0: -0.0 is 0.0
            place = torch.arange(bits.shape[1], device=x.device)
            return cls(keys(keys(bits ^ keys(place)).sum(1)))  # sums wrap

    def __len__(self) -> int:
        return self.key.shape[0]

    def bits(self, n: int) -> Tensor:
        """(B, n) uniform 64-bit integers."""
        offset = (self._draws * 0xD1342543DE82EF95) & _MASK  # draws live far apart in the stream
        self._draws += 1
        if self.key.is_cpu:
            stream = self.key.numpy().view(np.uint64)[:, None] + (_ladder_here(n) + np.uint64(offset))
            return torch.from_numpy(_mix_here(stream).view(np.int64))
        return _mix((self.key + _signed(offset))[:, None] + _ladder(n, self.key.device))

    def uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """(B, *shape) uniform on [0, 1): multiples of 2^-24, exact in float32, rounded in half precision."""
        z = self.bits(_product(shape))
        dtype = dtype or torch.get_default_dtype()
        wide = torch.promote_types(dtype, torch.float32)
        if z.is_cpu:
            w: Any = (z.numpy() >> 40).astype(np.float32 if wide == torch.float32 else np.float64)
            w += 2.0**23
            w *= 2.0**-24
            u = torch.from_numpy(w)
        else:
            u = (z >> 40).to(wide).add_(2.0**23).mul_(2.0**-24)  # signed: -2^23 .. 2^23 - 1, then from 0
        if wide != dtype:  # half precision: rounding must not reach 1
            u = u.clamp_(max=1 - torch.finfo(dtype).eps / 2).to(dtype)
        return u.view(len(self), *shape)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """(B, *shape) standard normal, by Box-Muller on pairs of 32-bit uniforms."""
        n = _product(shape)
        z = self.bits((n + 1) // 2)  # (B, ceil(n / 2))
        dtype = dtype or torch.get_default_dtype()
        pair = _box_muller_here(z, dtype) if z.is_cpu else _box_muller(z)
        if n % 2:
            pair = pair[:, :n].contiguous()
        return pair.to(dtype).view(len(self), *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """(B, *shape) integers uniform on 0 .. high - 1 (high at most 2^24)."""
        if not 1 <= high <= 1 << 24:
            raise ValueError(f"high is {high}; it must lie in 1 .. 2^24")
        return (self.uniform(*shape, dtype=torch.float64) * high).long()

    def categorical(self, logits: Tensor) -> Tensor:
        """Draws (B, ...) from the categorical law of logits (B, ..., K), by inverting its distribution function."""
        probs = logits.double().softmax(-1)
        u = self.uniform(*logits.shape[1:-1], dtype=torch.float64)[..., None]
        if probs.is_cpu:
            below = probs.detach().numpy().cumsum(-1)
            return torch.from_numpy((below <= u.numpy() * below[..., -1:]).sum(-1))
        cdf = probs.cumsum(-1)
        return (cdf <= u * cdf[..., -1:]).sum(-1)  # (B, ...)


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


# ---- all the ranks of a run ----------------------------------------------------------------------------------------


class Everyone:
    """How a method says "over the whole batch": the identity in one process.

    through: who answers where there are several ranks; set by `parallel.join`. Each is right under autograd: the
    gradient that one rank's loss has by another's tensor reaches its owner.
    """

    through: Everyone | None = None

    def sum(self, x: Tensor) -> Tensor:
        """Sum of x over ranks."""
        return x if self.through is None else self.through.sum(x)

    def mean(self, x: Tensor) -> Tensor:
        """Mean of x over ranks."""
        return x if self.through is None else self.through.mean(x)

    def gather(self, x: Tensor) -> Tensor:
        """x (B, ...) of every rank, concatenated in their order; B may differ."""
        return x if self.through is None else self.through.gather(x)

    def any(self, x: Tensor) -> Tensor:
        """Whether x is true on some rank."""
        return x if self.through is None else self.through.any(x)


everyone = Everyone()
