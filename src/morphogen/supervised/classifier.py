r"""A classifier: reads which class an image is of. The judge and the feature extractor of the metrics.

    loss = -Σ_k q_k log softmax(F(x))_k,     q = (1 - s) onehot(label) + s / K      (label smoothing s)

With a `path` (α, σ) it is trained on noisy images and told the time, so that it can guide a diffusion by the gradient
of its log-probability (Dhariwal & Nichol 2021, arXiv:2105.05233, section 4):

    x_t = α(t) x + σ(t) z,   t ~ U(0, 1) or as `times` says,  z ~ N(0, I);    F is given x_t / sqrt(α² + σ²) and 1000 t.

Label smoothing: Szegedy et al. 2016, "Rethinking the inception architecture", arXiv:1512.00567.
Departure from Dhariwal & Nichol: the input is scaled to the order of the data, so that paths whose noise is large
(variance exploding) need no other net.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NONE, Batch, Loss, Model, Noise, size
from ..errors import UserError
from ..nets.resnet import Reader

STEPS = 1000.0  # the net is told 1000 t: sinusoids are made for step numbers


@runtime_checkable
class Noising(Protocol):
    """What the classifier asks of a path: how much signal and noise there is at times t (B,) in [0, 1]."""

    def alpha(self, t: Tensor) -> float | Tensor: ...
    def sigma(self, t: Tensor) -> float | Tensor: ...


@runtime_checkable
class Times(Protocol):
    """What the classifier asks of a time density: one time (B,) in [0, 1] per key of the noise."""

    def __call__(self, noise: Noise, path: Any, dtype: torch.dtype) -> Tensor: ...


class Classifier(Model):
    """p(label | x) of images x (B, C, H, W), or of noisy ones at `cond["t"]`.

    net:       reads x; given `cond["t"]` (B,) where there is a path.
    smoothing: share of the label's probability that training spreads over all classes.
    augment:   what is done to the images in training, in order, keyed by each sample's own key.
    path:      noises the images in training. Without one the images are clean and there is no time.
    times:     the density of the noised images' times; uniform on [0, 1] where it is not given.
    """

    def __init__(
        self,
        net: Reader,
        *,
        smoothing: float = 0.0,
        augment: tuple[Callable[[Tensor, Noise], Tensor], ...] = (),
        path: Noising | None = None,
        times: Times | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise UserError(f"A Classifier was given smoothing={smoothing}: give a share from 0 to below 1.")
        self.net, self.smoothing, self.augment, self.path, self.times = net, smoothing, augment, path, times
        self._mixes = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())

    def start(self, batch: Batch) -> None:
        """Let the net see the first images."""
        self.net.start(batch["x"])

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The samples; a batch is never split where batch norms mix them."""
        return {} if self._mixes else {"": float(size(batch))}

    def loss(self, batch: Batch) -> Loss:
        """Mean cross entropy of the labels (nats); logs the accuracy."""
        x, label = batch["x"], _label(batch["cond"])
        noise = Noise(batch["key"])
        if self.training:
            for change in self.augment:
                x = change(x, noise)
        cond: Mapping[str, Tensor] = NONE
        if self.path is not None:
            t = noise.uniform(dtype=x.dtype) if self.times is None else self.times(noise, self.path, x.dtype)  # (B,)
            z = noise.normal(*x.shape[1:], dtype=x.dtype)
            x = _like(self.path.alpha(t), x) * x + _like(self.path.sigma(t), x) * z
            cond = {"t": t}
        scores = self._scores(x, cond)
        value = F.cross_entropy(scores, label, label_smoothing=self.smoothing)
        right = (scores.detach().argmax(1) == label).to(value.dtype)
        return Loss(value, {"accuracy": right.mean()})

    def predict(self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b classes"]:
        """p(label = k | x) of every class, (B, classes). x is at time `cond["t"]` (B,); clean where that is missing."""
        return self._scores(x, cond).softmax(1)

    def features(self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE) -> Float[Tensor, "b features"]:
        """The net's penultimate layer (B, D). x is at time `cond["t"]` (B,); clean where that is missing."""
        return self.net.features(*self._scaled(x, cond))

    def maps(self, x: Float[Tensor, " b *shape"], cond: Mapping[str, Tensor] = NONE) -> list[Tensor]:
        """What the net sees on its way (B, C, *size), level by level. x is at time `cond["t"]` (B,), or clean."""
        return self.net.maps(*self._scaled(x, cond))

    def log_label(
        self, x: Float[Tensor, " b *shape"], t: float | Tensor, cond: Mapping[str, Tensor]
    ) -> Float[Tensor, " b"]:
        """The log-probability (B,), nats, that x at time t, a number or (B,), is of class `cond["label"]` (B,).

        Differentiable in x: what `diffusion.guide.classified` asks for. It is no density of x, so the classifier does
        not serve `LogProb`. A classifier of clean images takes no notice of t.
        """
        when = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        logp = self._scores(x, {"t": when}).log_softmax(1)
        return logp.gather(1, _label(cond)[:, None])[:, 0]

    def _scores(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        scores: Tensor = self.net(*self._scaled(x, cond))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))  # the softmax of bfloat16 is coarse

    def _scaled(self, x: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What the net is given of x at `cond["t"]`: the label is what it is to find, so it is not shown."""
        if self.path is None:
            return x, NONE
        t = cond["t"] if "t" in cond else x.new_zeros(len(x))
        return x / torch.hypot(_like(self.path.alpha(t), x), _like(self.path.sigma(t), x)), {"t": STEPS * t}


def _like(scale: float | Tensor, x: Tensor) -> Tensor:
    """scale, one number or (B,), with as many axes as x (B, ...)."""
    return torch.as_tensor(scale, dtype=x.dtype, device=x.device).reshape(-1, *(1,) * (x.ndim - 1))


def _label(cond: Mapping[str, Tensor] | None) -> Tensor:
    if cond is None or cond.get("label") is None:
        raise UserError('A Classifier needs the classes: give a cond with "label" (B,).')
    label: Tensor = cond["label"]
    return label
