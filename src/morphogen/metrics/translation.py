r"""What a translation of pictures is worth: against the truth, where there is one, and by what a judge reads in it.

    precision  share of the found edges that have a true edge within `within` pixels, along each axis
    recall     share of the true edges that have a found one so near
    edge F1    2 precision · recall / (precision + recall)

`kept` is the share of translations that a judge reads as the class of their source; `shuffled` is the same for sources
that were handed on by one place, which shows what chance would keep.

Martin, Fowlkes & Malik 2004, "Learning to detect natural image boundaries using local brightness, color, and texture
cues" (edges within a tolerance). Departure: an edge may be near to several others, where they assign each to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import Items, Noise
from ..errors import UserError
from .classification import accuracy
from .frechet import frechet_distance
from .judge import Judge, read
from .likelihood import mean_of
from .measure import Measure

Edges = Callable[[Tensor], Tensor]  # pictures (B, C, H, W) -> where they have edges (B, H, W) bool


@runtime_checkable
class Translates(Protocol):
    """A model that makes pictures of others. Who asks: evaluation, the command line, sheets."""

    source_shape: tuple[int, ...]

    def translate(self, source: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Pictures (B, ...) of source pictures (B, *source_shape)."""
        ...


@runtime_checkable
class BothWays(Protocol):
    """One that can also go back. Who asks: the command line."""

    shape: tuple[int, ...]

    def translate_back(self, x: Tensor) -> Tensor:
        """Source pictures (B, *source_shape) of pictures (B, *shape)."""
        ...


def is_paired(items: Items) -> bool:
    """Whether the x of items with a source is what should be made of it."""
    return bool(getattr(items, "paired", True))


@torch.no_grad()
def translated(
    model: nn.Module,
    source: Float[Tensor, " n *shape"],
    *,
    back: bool = False,
    seed: int = 0,
    chunk: int = 50,
    progress: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, " n *made"]:
    """The translations (n, ...) of all sources on the CPU, made where the model is, in evaluation mode.

    The i-th is a function of its source, the seed and i. back: source pictures of pictures.
    Raises UserError for a model that makes no pictures of others, or does not go back.
    """
    if not isinstance(model, BothWays if back else Translates):
        what = "goes one way only" if isinstance(model, Translates) else "makes no pictures of others"
        raise UserError(f"A {type(model).__name__} {what}: give a Pix2Pix or a CycleGAN (which goes both ways).")
    device, modes = next(model.parameters()).device, {m: m.training for m in model.modules()}
    model.eval()
    made = []
    try:
        for begin in range(0, len(source), chunk):
            part = source[begin : begin + chunk].to(device)
            noise = Noise.seeded(seed, len(part), start=begin, device=device)
            made.append((model.translate_back(part) if back else model.translate(part, noise=noise)).cpu())
            progress(begin + len(part))
    finally:
        for m, mode in modes.items():
            m.training = mode
    return torch.cat(made)


def edge_f1(found: Bool[Tensor, "b h w"], true: Bool[Tensor, "b h w"], *, within: int = 1) -> Float[Tensor, " b"]:
    """Edge F1 (B,), float64: 1 where neither has an edge, 0 where one of them has none."""
    hits, near = (_share(a, b, within) for a, b in ((found, true), (true, found)))  # precision, recall
    f1 = 2 * hits * near / (hits + near).clamp(min=1e-12)
    neither = ~found.flatten(1).any(1) & ~true.flatten(1).any(1)
    return torch.where(neither, 1.0, f1)


def _share(edges: Tensor, others: Tensor, within: int) -> Tensor:
    """The share of edges (B,) with one of the others within so many pixels; 0 where there are no edges."""
    wide = F.max_pool2d(others[:, None].float(), 2 * within + 1, 1, within)[:, 0] > 0
    return (edges & wide).flatten(1).sum(1).double() / edges.flatten(1).sum(1).clamp(min=1)


def evaluate_translations(
    made: Float[Tensor, " n *shape"],
    truth: Float[Tensor, " n *shape"],
    *,
    edges: Edges,
    paired: bool = True,
    judge: Judge | None = None,
    label: Int[Tensor, " n"] | None = None,
    real: Float[Tensor, " m *shape"] | None = None,
    seen: Float[Tensor, " k *shape"] | None = None,
) -> dict[str, Measure]:
    """Translations of held-out sources, in order:

        l1        mean absolute error of pixels in [-1, 1], against the truth (where items are paired)
        edge F1   of the translations' edges against the truth's, within a pixel (where items are paired)
        judge     share of the true pictures that the judge reads right (with labels, which are the sources')
        kept      share of the translations that it reads as the source's class
        shuffled  the same, the sources handed on by one place
        frechet   Fréchet distance, on the judge's features, of the translations from real pictures
        floor     the same of as many training pictures

    truth: what should be made. edges: what finds edges. real: held-out pictures of the wanted kind (default: truth).
    """
    found: dict[str, Measure] = {}
    if paired:
        error = (made.double() - truth.double()).abs().flatten(1).mean(1)
        found["l1"] = mean_of(error, "mean absolute error of pixels in [-1, 1], normal interval")
        scores = torch.cat(
            [edge_f1(edges(a), edges(b)) for a, b in zip(made.split(500), truth.split(500), strict=True)]
        )
        found["edge F1"] = mean_of(scores, "edges within a pixel of the truth's, mean over items, normal interval")
    if judge is None:
        return found
    drawn, held = read(judge, made), read(judge, truth if real is None else real)
    if label is not None:
        if paired:
            found["judge"] = accuracy(read(judge, truth).label, label, "true pictures read right by the judge")
        found["kept"] = accuracy(drawn.label, label, "translations read as their source's class")
        found["shuffled"] = accuracy(drawn.label.roll(1), label, "translations of other sources read so")
    away = frechet_distance(drawn.features, held.features)
    found["frechet"] = away._replace(how=f"translations from held-out pictures, {away.how}")
    if seen is not None:
        least = frechet_distance(read(judge, seen).features, held.features)
        found["floor"] = least._replace(how=f"training pictures from held-out ones, {least.how}")
    return found
