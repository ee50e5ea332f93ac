r"""Word vectors by prediction: skip-gram and CBOW, with negative sampling or hierarchical softmax.

Of a word i and those around it, within a window b ~ uniform{1 .. w} drawn for each i,

    skip-gram    u_j of each word j around it predicts word i            CBOW    their mean predicts word i

and what predicts, h, says of a word o

    negative sampling       log σ(h·v_o) + Σ_k log σ(−h·v_k),   k words drawn from P(k) ∝ count(k)^(3/4)
    hierarchical softmax    Σ_{n on o's path} log σ(±h·v_n)     a sum over the inner nodes of a Huffman tree

Before that, a word of frequency f is left out with probability 1 − (√(t/f) + t/f), and rare words are not in the
vocabulary at all. The rate α falls linearly to 10⁻⁴ of itself. With enough dimensions skip-gram's u·v is the pointwise
mutual information log P(j, i) / (P(j) P_n(i)), minus log k.

Mikolov, Chen, Corrado & Dean 2013, arXiv:1301.3781; Mikolov et al. 2013, arXiv:1310.4546; Levy & Goldberg 2014, "Neural
word embedding as implicit matrix factorization" (the optimum, of the law that negatives are drawn from); Ji et al.
2016, arXiv:1604.04661 (negatives that neighbours share, which makes products of matrices of it). Departures: a step
learns of thousands of words at once; a row at which more than `cap` pairs pull is moved by their sum times cap / pairs,
so that nothing overshoots, which leaves the optimum where it is. Negatives are shared by a block of neighbouring words
and weighted to count as k each; a word is not kept from being its own negative. CBOW's gradient is that of its mean
(Irsoy, Benton & Stratos 2021, arXiv:2012.15332: the published code lacks its division).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Batch, Loss, Model, Noise, Update, everyone
from ..errors import UserError
from ..spec import Asset, Remembers


class Columns(NamedTuple):
    """What n blocks of p predictors each are held against. rows (n, c) of the table, weight (n, p, c), label (n, c)."""

    rows: Tensor
    weight: Tensor
    label: Tensor


# ---- what is predicted ---------------------------------------------------------------------------------------------


@runtime_checkable
class Output(Protocol):
    """How likely a word is, given what predicts it. block: neighbouring words that are one product."""

    block: int

    def table(self, counts: Tensor) -> dict[str, Tensor]:
        """Buffers that it needs of the vocabulary's counts (V,); "outer" is the table of vectors' number of rows."""
        ...

    def columns(self, held: Mapping[str, Tensor], target: Tensor, weight: Tensor, noise: Noise) -> Columns:
        """What h (n, p, d) is held against where it predicts target (n, q), weight (n, p, q) times each."""
        ...


class NegativeSampling(Remembers):
    """Tell a word from k that are drawn. k: of them for each. power: of the counts. shared: drawn for `block` words."""

    def __init__(self, k: int = 5, *, power: float = 0.75, shared: int = 16, block: int = 16) -> None:
        if min(k, shared, block) < 1 or not 0 <= power <= 1:
            raise UserError(
                f"NegativeSampling has k={k}, shared={shared}, block={block}, power={power}: give 1 or more of each,"
                " and a power from 0 to 1."
            )
        self.k, self.power, self.shared, self.block = k, power, shared, block

    def table(self, counts: Tensor) -> dict[str, Tensor]:
        """The law of negatives as sums (V,)."""
        law = torch.where(counts > 0, counts.double() ** self.power, 0.0)
        return {"rows": torch.tensor(len(counts)), "law": (law / law.sum()).cumsum(0)}

    def columns(self, held: Mapping[str, Tensor], target: Tensor, weight: Tensor, noise: Noise) -> Columns:
        """The words themselves, label 1, and `shared` negatives, which count as k for each of them."""
        n, p, _ = weight.shape
        u = noise.uniform(n // len(noise) * self.shared, dtype=torch.float64).view(n, self.shared)
        negative = torch.searchsorted(held["law"], u, right=True).clamp(max=len(held["law"]) - 1)
        each = weight.sum(2, keepdim=True) * (self.k / self.shared)
        label = torch.cat((torch.ones_like(target), torch.zeros_like(negative)), 1)
        return Columns(
            torch.cat((target, negative), 1),
            torch.cat((weight, each.expand(n, p, self.shared)), 2),
            label.to(weight.dtype),
        )


class HierarchicalSoftmax(Remembers):
    """A word as a path of yes and no through a Huffman tree of the counts: an exact law, Σ_o p(o | h) = 1."""

    block = 1  # all pairs of a block are computed, near or not, and each is as many products as its path is long

    def table(self, counts: Tensor) -> dict[str, Tensor]:
        """Each word's path (V, L): its inner nodes, −1 beyond the root, and the sides it takes."""
        path, side = huffman(counts.tolist())
        return {"rows": torch.tensor(max(1, len(counts) - 1)), "path": path, "side": side}

    def columns(self, held: Mapping[str, Tensor], target: Tensor, weight: Tensor, noise: Noise) -> Columns:
        """The nodes on the words' paths; the label is 1 where the path goes left."""
        path, side = held["path"][target], held["side"][target]  # (n, q, L)
        each = weight[..., None] * (path >= 0)[:, None].to(weight.dtype)  # (n, p, q, L)
        return Columns(path.clamp(min=0).flatten(1), each.flatten(2), (1 - side).to(weight.dtype).flatten(1))


def huffman(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of each word the inner nodes (V, L) from its leaf up to the root, −1 beyond it, and the sides (V, L) 0 or 1.

    No prefix code is shorter on average (Huffman 1952). Of equal counts the older node goes first.
    """
    v = len(counts)
    heap = [(int(c), i) for i, c in enumerate(counts)]
    heapq.heapify(heap)
    parent, side = np.zeros(2 * v - 1, np.int64), np.zeros(2 * v - 1, np.int64)
    for node in range(v, 2 * v - 1):
        (a, i), (b, j) = heapq.heappop(heap), heapq.heappop(heap)
        parent[i] = parent[j] = node
        side[j] = 1
        heapq.heappush(heap, (a + b, node))
    root, at, path, sides = 2 * v - 2, np.arange(v), [], []
    while (at != root).any():
        path.append(np.where(at != root, parent[at] - v, -1))
        sides.append(np.where(at != root, side[at], 0))
        at = np.where(at != root, parent[at], root)
    return torch.from_numpy(np.stack(path, 1)), torch.from_numpy(np.stack(sides, 1))


# ---- what predicts -------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Blocks of text. centre (n, t) and around (n, t + 2w) words, near (n, t, t + 2w) 1 where one sees the other."""

    centre: Tensor
    around: Tensor
    near: Tensor


@runtime_checkable
class Predictor(Protocol):
    """What of a window predicts what."""

    def targets(self, window: Window) -> tuple[Tensor, Tensor]:
        """Words (n, q) that are predicted, and by which of the predictors (n, p, q)."""
        ...

    def predict(self, table: Tensor, window: Window) -> Tensor:
        """The predictors h (n, p, d), from the vectors (V, d)."""
        ...

    def back(self, window: Window, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Words (n, q), their shares (n, q, d) of the slope (n, p, d) by h, and the part each has in h (n, q, p)."""
        ...


class SkipGram(Remembers):
    """Each of the words around a word predicts it."""

    def targets(self, window: Window) -> tuple[Tensor, Tensor]:
        """The word itself, for each that is near it."""
        return window.centre, window.near.transpose(1, 2)

    def predict(self, table: Tensor, window: Window) -> Tensor:
        """The vectors of those around."""
        return _rows(table, window.around)

    def back(self, window: Window, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All of it is the word's that predicts."""
        return window.around, slope, torch.eye(slope.shape[1], dtype=slope.dtype, device=slope.device)[None]


class CBOW(Remembers):
    """The mean of the words around a word predicts it."""

    def targets(self, window: Window) -> tuple[Tensor, Tensor]:
        """The word itself, where there is any around it."""
        some = window.near.any(2).to(window.near.dtype)
        return window.centre, torch.diag_embed(some)

    def predict(self, table: Tensor, window: Window) -> Tensor:
        """The mean of the vectors around."""
        return _mean(window) @ _rows(table, window.around)

    def back(self, window: Window, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each of those around has its share of the mean."""
        share = _mean(window).transpose(1, 2)
        return window.around, share @ slope, share


def _mean(window: Window) -> Tensor:
    return window.near / window.near.sum(2, keepdim=True).clamp(min=1)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).view(*index.shape, -1)  # a fifth of the time of table[index]


# ---- the model -----------------------------------------------------------------------------------------------------


class Word2Vec(Model):
    """Word vectors; `inner` (V, width) are the ones that are used. Batches: x (B, T), words of running text.

    counts: how often each word of the vocabulary comes, (V,) or an `Asset` of such a .npy; one that counts 0, such as
    what stands for unknown words, is taken out of the text, and its vector is 0. steps: over which the rate
    falls. window: words on either side, at most. alpha: the rate at first. subsample: t, above which a frequency makes
    a word be left out at times; None leaves none out. cap: pairs that may pull at a row in one step at full rate.
    """

    def __init__(
        self,
        counts: Sequence[int] | Asset,
        steps: int,
        width: int = 100,
        *,
        predictor: Predictor = SkipGram(),  # noqa: B008  (immutable)
        output: Output = NegativeSampling(),  # noqa: B008
        window: int = 5,
        alpha: float = 0.025,
        subsample: float | None = 1e-3,
        cap: float = 32.0,
    ) -> None:
        super().__init__()
        if min(steps, width, window) < 1 or not alpha > 0 or not cap > 0 or (subsample is not None and subsample <= 0):
            raise UserError(
                "Word2Vec needs steps, width and window of 1 or more, and alpha, cap and subsample above 0."
            )
        number = _counts(counts)
        self.steps, self.width, self.window, self.alpha, self.cap = steps, width, window, alpha, cap
        self.predictor, self.output = predictor, output
        held = output.table(number)
        inner, met = (torch.rand(len(number), width) - 0.5) / width, number > 0
        self.register_buffer("inner", inner.masked_fill(~met[:, None], 0.0))
        self.register_buffer("outer", torch.zeros(int(held.pop("rows")), width))
        self._held = list(held)
        for name, value in held.items():
            self.register_buffer(name, value, persistent=False)
        f = number.double() / number.sum()
        keep = torch.ones_like(f) if subsample is None else (subsample / f).sqrt() + subsample / f
        self.register_buffer("keep", torch.where(met, keep.clamp(max=1), 0.0), persistent=False)

    inner: Tensor
    outer: Tensor
    keep: Tensor

    def phases(self) -> list[Update]:
        """One turn: the gradient in closed form, of the rows that are met."""
        return [Update(self.learn)]

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """A batch is learnt from at once."""
        return {}

    @torch.no_grad()
    def learn(self, batch: Batch) -> Loss:
        """Move the rows of the words that are met; the mean of −log-likelihood over the pairs. UserError for no row."""
        if not len(batch["x"]):
            raise UserError("Word2Vec learns from running text, and this batch has no row: give one or more.")
        noise = Noise(batch["key"])
        window = self._windows(batch["x"], batch.get("lengths"), noise)
        target, weight = self.predictor.targets(window)
        met = weight.sum()
        held = {name: getattr(self, name) for name in self._held}
        rows, weight, label = self.output.columns(held, target, weight, noise)
        h, v = self.predictor.predict(self.inner, window), _rows(self.outer, rows)
        score = h @ v.transpose(1, 2)  # (n, p, c)
        error = label[:, None] - score.sigmoid()  # minus the slope of −log-likelihood by the score
        nll = -(weight * (1 - error.abs()).clamp(min=1e-7).log()).sum()  # |error| is what was not given
        error *= weight
        words, slope, share = self.predictor.back(window, error @ v)
        pairs = weight.sum(2)  # (n, p)
        self._move(self.inner, words, slope, (share @ pairs[..., None])[..., 0])
        self._move(self.outer, rows, error.transpose(1, 2) @ h, weight.sum(1))
        nll, pairs = everyone.sum(torch.stack((nll, met))).unbind()
        return Loss(nll / pairs.clamp(min=1), logs={"alpha": torch.tensor(self._rate())})

    def _rate(self) -> float:
        return self.alpha * max(1e-4, 1 - self.step / self.steps)

    def _move(self, table: Tensor, rows: Tensor, slope: Tensor, pairs: Tensor) -> None:
        """Add the slopes (n, q, d) of rows (n, q), those of all ranks, each row's sum held back beyond `cap` pairs."""
        rows, pairs = everyone.gather(rows.flatten()), everyone.gather(pairs.flatten())
        slope = everyone.gather(slope.flatten(0, 1))
        mass = pairs.new_zeros(len(table)).index_add_(0, rows, pairs)
        held = (self.cap / mass.clamp(min=self.cap)).mul_(self._rate())
        table.index_add_(0, rows, slope * held[rows][:, None])

    def _windows(self, x: Tensor, lengths: Tensor | None, noise: Noise) -> Window:
        """Blocks of what is left of each row of x (B, T) after subsampling."""
        (b, t), block = x.shape, self.output.block
        at = torch.arange(t, device=x.device)
        kept = noise.uniform(t, dtype=torch.float64) < self.keep[x]
        size = noise.integers(self.window, t) + 1
        if lengths is not None:
            kept &= at < lengths[:, None]
        order = kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # what is kept first, in its order
        left, w = kept.sum(1, keepdim=True), self.window
        whole = max(1, -(-int(left.max()) // block)) * block  # a uniform draw is the same in a longer row of them
        text = F.pad(x.gather(1, order), (w, whole - t + w))  # (B, w + whole + w)
        size = F.pad(size, (0, whole - t)).reshape(b, -1, block, 1)
        place = torch.arange(-w, whole + w, device=x.device)
        there = (place >= 0) & (place < left)  # (B, w + whole + w)
        around = text.unfold(1, block + 2 * w, block)  # (B, blocks, block + 2 w)
        seen = there.unfold(1, block + 2 * w, block)
        far = (torch.arange(block + 2 * w, device=x.device) - w) - torch.arange(block, device=x.device)[:, None]
        near = (far.abs() <= size) & (far != 0) & seen[:, :, None] & seen[:, :, w : w + block, None]
        centre = around[:, :, w : w + block]
        return Window(centre.flatten(0, 1), around.flatten(0, 1), near.flatten(0, 1).to(self.inner.dtype))


def _counts(counts: Sequence[int] | Asset) -> Tensor:
    try:
        held = np.load(counts.path, allow_pickle=False) if isinstance(counts, Asset) else np.array(counts)
    except (ValueError, EOFError, OSError) as error:
        where = f"The file {str(counts.path)!r}" if isinstance(counts, Asset) else "What was given"
        raise UserError(f"{where} holds no counts of words ({str(error)[:80]}): write them with numpy.save.") from None
    if not isinstance(held, np.ndarray) or held.dtype.kind not in "iu" or held.ndim != 1 or len(held) < 2:
        raise UserError("Word vectors need counts of 2 words or more, whole numbers (V,) in the words' order.")
    if int(held.min()) < 0 or int((held > 0).sum()) < 2:
        raise UserError("Word vectors need counts of 2 words or more that are met, and none below 0.")
    return torch.from_numpy(held.astype(np.int64))
