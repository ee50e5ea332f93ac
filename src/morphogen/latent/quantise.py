r"""Code books: from vectors z_e (B, d, ..) to codes k (B, ..), integers, and back to code vectors z_q.

    book e (K, d):       k = argmin_j |z_e - e_j|²,    z_q = e_k
    by gradient          + |sg(z_e) - e_k|² + β |z_e - sg(e_k)|²
    by moving average    N_k <- γ N_k + (1 - γ) n_k,   e_k <- e_k + (1 - γ) (Σ z_e - n_k e_k) / N_k       + β |..|²
    residual             each book quantises what the books before it have left over; z_q is the sum

sg is "without gradient"; straight through, the gradient of z_q goes on to z_e as it is. |..|² is a mean over positions
and coordinates; n_k counts the vectors z_e whose nearest is e_k, over all ranks. The moving average is the paper's
(m_k <- γ m_k + (1 - γ) Σ z_e, e_k = m_k / N_k), written so that an unused e_k stays where it is.

van den Oord, Vinyals & Kavukcuoglu 2017, "Neural discrete representation learning", arXiv:1711.00937. Restarts of dead
codes: Dhariwal et al. 2020, "Jukebox", arXiv:2005.00341. Residual: Zeghidour et al. 2021, "SoundStream",
arXiv:2107.03312; of pictures Lee et al. 2022, arXiv:2203.01941. Quantisers without a book: `scalar.py`.
Departures: books begin as k-means of the first batch; a code is dead below a share of the uniform rate, not below a
number of uses; residual books after the first hold the origin, so that no book adds error.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Net, Noise, everyone
from ..errors import UserError

PIECE = 1 << 22  # distances held at a time


class Quantised(NamedTuple):
    """What a quantiser makes of z_e (B, dim, *size).

    z:     the code vectors (B, dim, *size); their gradient goes straight through to z_e.
    codes: (B, *size) int64, or (B, depth, *size) of residual codes.
    loss:  the mean that training adds, one number.
    """

    z: Tensor
    codes: Tensor
    loss: Tensor


# ---- formulas ------------------------------------------------------------------------------------------------------


def nearest(z: Float[Tensor, "n d"], book: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """argmin_j |z - e_j|², the first of equals."""
    z, book = z.detach(), book.detach()
    centre = book.mean(0)  # far from the origin the digits would go to what all have in common
    book = book - centre
    half = 0.5 * book.square().sum(1)  # |z - e|² = |z|² + 2 (|e|² / 2 - z e)
    pieces = (z - centre).split(max(1, PIECE // len(book)))
    return torch.cat([torch.addmm(half, piece, book.T, alpha=-1).argmin(1) for piece in pieces])


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """z_q, whose gradient is z's."""
    return z_q.detach() + (z - z.detach())


def commitment(z: Tensor, z_q: Tensor) -> Tensor:
    """|z - sg(z_q)|², the mean over positions and coordinates: draws z to its code."""
    return (z - z_q.detach()).square().mean()


def averaged(
    book: Float[Tensor, "k d"],
    used: Float[Tensor, " k"],
    counts: Float[Tensor, " k"],
    sums: Float[Tensor, "k d"],
    decay: float,
) -> tuple[Tensor, Tensor]:
    """(e, N) after a step of moving average: `counts` n of the vectors of each code, `sums` Σ z_e."""
    used = decay * used + (1 - decay) * counts
    share = (1 - decay) / used.clamp(min=torch.finfo(used.dtype).tiny)
    return book + share[:, None] * (sums - counts[:, None] * book), used


def perplexity(used: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    """exp of the entropy of how often each code is used: K where all are alike, 1 where there is only one."""
    p = used / used.sum(-1, keepdim=True)
    many: Tensor = torch.special.entr(p).sum(-1).exp()
    return many


def rows(z: Float[Tensor, "b d *size"]) -> Float[Tensor, "n d"]:
    """The vectors of all positions, sample by sample."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


# ---- quantisers ----------------------------------------------------------------------------------------------------


class Quantiser(Net):
    """Base: z (B, dim, *size) <-> codes.

    dim:   channels of z. codes: size of the alphabet. depth: codes a position; None makes no axis of them.
    whole: whether the loss is of the whole batch, which then cannot be cut.
    """

    depth: int | None = None
    whole: bool = False

    def __init__(self, dim: int, codes: int) -> None:
        super().__init__()
        if dim < 1 or codes < 1:
            raise UserError(f"A quantiser of {codes} codes of {dim} numbers is empty: give 1 or more of each.")
        self.dim, self.codes = dim, codes

    @abstractmethod
    def quantise(self, z: Float[Tensor, "b d *size"]) -> Quantised:
        """The codes of z, in its own precision, at least single."""

    @abstractmethod
    def vectors(self, codes: Int[Tensor, " b *size"]) -> Float[Tensor, "b d *_"]:
        """The code vectors (B, dim, *size) of codes."""

    def forward(self, z: Float[Tensor, "b d *size"]) -> Quantised:
        """The codes of z. Raises UserError where z has other channels."""
        if z.shape[1] != self.dim:
            raise UserError(
                f"This {type(self).__name__} quantises {self.dim} channels and was given {z.shape[1]}: let the encoder"
                f" end in {self.dim}."
            )
        with torch.autocast(z.device.type, enabled=False):  # half precision would mistake near codes for one another
            return self.quantise(z.to(torch.promote_types(z.dtype, torch.float32)))

    def start(self, z: Float[Tensor, "b d *size"], noise: Noise) -> None:
        """Begin from the first batch's z, before step 1."""

    @abstractmethod
    def update(self, z: Float[Tensor, "b d *size"], codes: Int[Tensor, " b *_"], noise: Noise) -> None:
        """What follows a step that gave z these codes."""

    @abstractmethod
    def usage(self) -> Float[Tensor, "n k"]:
        """How often each code was used of late, a row for each code book: what the log's perplexity is of."""


class Counted(Quantiser):
    """Base of the quantisers with one code a position: how often each is used, a moving average with `decay`."""

    used: Tensor

    def __init__(self, dim: int, codes: int, decay: float) -> None:
        super().__init__(dim, codes)
        if not 0 <= decay < 1:
            raise UserError(f"A quantiser's decay is {decay}: give one from 0 to below 1, such as 0.99.")
        self.decay = decay
        self.register_buffer("used", torch.ones(codes))

    @torch.no_grad()
    def update(self, z: Float[Tensor, "b d *size"], codes: Int[Tensor, " b *_"], noise: Noise) -> None:
        self.used.lerp_(self.uses(codes), 1 - self.decay)

    def uses(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, " k"]:
        """How often each code is among these, over all ranks."""
        return everyone.sum(torch.bincount(codes.flatten(), minlength=self.codes).to(self.used))

    def usage(self) -> Float[Tensor, "n k"]:
        return self.used[None]


class _CodeBook(Counted):
    """A table of code vectors (codes, dim), nearest first served.

    beta:    weight of the commitment of z to its code.
    restart: a code that is used at less than this share of the uniform rate begins anew, at one of the batch's z;
             0 lets it be.
    origin:  whether code 0 stays at the origin, so that quantising never leaves more of a vector than there was.
    """

    book: Tensor
    free: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        beta: float = 0.25,
        restart: float = 0.1,
        origin: bool = False,
    ) -> None:
        super().__init__(dim, codes, decay)
        if beta < 0 or not 0 <= restart < 1:
            raise UserError(
                f"A code book was given beta={beta} and restart={restart}: give a weight of 0 or more, and a share"
                " from 0 to below 1."
            )
        self.beta, self.restart = beta, restart
        self.register_buffer("free", torch.ones(codes, 1), persistent=False)
        if origin:
            self.free[0] = 0.0

    @property
    def table(self) -> Float[Tensor, "k d"]:
        """The code vectors."""
        return self.book * self.free

    def vectors(self, codes: Int[Tensor, " b *size"]) -> Float[Tensor, "b d *size"]:
        return F.embedding(codes, self.table).movedim(-1, 1)

    def quantise(self, z: Float[Tensor, "b d *size"]) -> Quantised:
        codes = nearest(rows(z), self.table.to(z.dtype)).view(z.shape[0], *z.shape[2:])
        z_q = self.vectors(codes).to(z.dtype)
        return Quantised(straight_through(z, z_q), codes, self.loss(z, z_q))

    def loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        """What training adds for z with the code vectors z_q."""
        return self.beta * commitment(z, z_q)

    @torch.no_grad()
    def start(self, z: Float[Tensor, "b d *size"], noise: Noise, rounds: int = 10) -> None:
        """K-means: codes at vectors of the first batch, chosen by its keys, and some rounds of Lloyd's."""
        vectors = everyone.gather(rows(z)).to(self.book)
        drawn = _drawn(vectors, noise, self.codes)
        book = torch.cat((drawn, self.book[len(drawn) :]))
        for _ in range(rounds):
            codes = nearest(vectors, book * self.free)
            counts = torch.bincount(codes, minlength=self.codes).to(book)
            sums = torch.zeros_like(book).index_add_(0, codes, vectors)
            book = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], book)
            self.used.copy_(counts)
        self.book.copy_(book)

    @torch.no_grad()
    def update(self, z: Float[Tensor, "b d *size"], codes: Int[Tensor, " b *_"], noise: Noise) -> None:
        vectors = rows(z).to(self.book)
        self.move(vectors, codes.flatten())
        if self.restart:
            dead = (self.used < self.restart * self.used.mean()) & self.free[:, 0].bool()
            fresh = _drawn(everyone.gather(vectors), noise, self.codes)
            turn = dead.cumsum(0)  # the first dead code is given the first vector, and so on while there are any
            dead &= turn <= len(fresh)
            self.book.copy_(torch.where(dead[:, None], fresh[(turn - 1).clamp(0, len(fresh) - 1)], self.book))
            self.used.copy_(torch.where(dead, self.used.mean(), self.used))

    def move(self, vectors: Float[Tensor, "n d"], codes: Int[Tensor, " n"]) -> None:
        """What the vectors of a step, of these codes, do to the book and its count."""
        self.used.lerp_(self.uses(codes), 1 - self.decay)


class GradientCodeBook(_CodeBook):
    """A code book that is trained: its loss draws each code to its vectors. Arguments as `EMACodeBook`'s."""

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        beta: float = 0.25,
        restart: float = 0.1,
        origin: bool = False,
    ) -> None:
        super().__init__(codes, dim, decay=decay, beta=beta, restart=restart, origin=origin)
        self.book = nn.Parameter(torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))

    def loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        return (z.detach() - z_q).square().mean() + super().loss(z, z_q)


class EMACodeBook(_CodeBook):
    """A code book of moving averages: each code is that of the vectors that it was nearest to.

    codes, dim: shape of the table. decay: of the averages. beta, restart, origin: see `_CodeBook`.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        beta: float = 0.25,
        restart: float = 0.1,
        origin: bool = False,
    ) -> None:
        super().__init__(codes, dim, decay=decay, beta=beta, restart=restart, origin=origin)
        self.register_buffer("book", torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))

    def move(self, vectors: Float[Tensor, "n d"], codes: Int[Tensor, " n"]) -> None:
        counts, sums = self.uses(codes), everyone.sum(torch.zeros_like(self.book).index_add_(0, codes, vectors))
        book, used = averaged(self.book, self.used, counts, sums, self.decay)
        self.book.copy_(book)
        self.used.copy_(used)


def _drawn(vectors: Float[Tensor, "n d"], noise: Noise, most: int) -> Float[Tensor, "m d"]:
    """Up to `most` of the vectors of all ranks, drawn by the keys of each rank's own samples."""
    lots = noise.bits(len(vectors) // len(everyone.gather(noise.key)))  # (B, positions)
    return vectors[everyone.gather(lots.flatten()).topk(min(most, len(vectors)), largest=False).indices]


class ResidualVQ(Quantiser):
    """`depth` moving-average books of `codes` vectors each: codes (B, depth, *size), the coarse one first.

    Every book after the first keeps the origin as its code 0, so that the error never rises with the depth.
    codes, dim, decay, beta, restart: of each book.
    """

    depth: int

    def __init__(
        self, codes: int, dim: int, depth: int, *, decay: float = 0.99, beta: float = 0.25, restart: float = 0.1
    ) -> None:
        super().__init__(dim, codes)
        if depth < 1:
            raise UserError(f"A residual quantiser of depth {depth} has no book: give 1 or more.")
        self.depth = depth
        self.stack = nn.ModuleList(
            EMACodeBook(codes, dim, decay=decay, beta=beta, restart=restart, origin=k > 0) for k in range(depth)
        )

    @property
    def books(self) -> list[EMACodeBook]:
        """The books, coarse to fine."""
        return [book for book in self.stack if isinstance(book, EMACodeBook)]

    def quantise(self, z: Float[Tensor, "b d *size"]) -> Quantised:
        left, codes, losses = z, [], []
        for book in self.books:
            said = book.quantise(left)
            left = left - said.z.detach()
            codes.append(said.codes)
            losses.append(said.loss)
        return Quantised(straight_through(z, (z - left)), torch.stack(codes, 1), torch.stack(losses).sum())

    def vectors(self, codes: Int[Tensor, "b n *size"]) -> Float[Tensor, "b d *size"]:
        """The code vectors of codes (B, n, *size), n up to the depth: fewer are coarser."""
        parts = [book.vectors(k) for book, k in zip(self.books, codes.unbind(1), strict=False)]
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def start(self, z: Float[Tensor, "b d *size"], noise: Noise) -> None:
        for book in self.books:
            book.start(z, noise)
            z = z - book.quantise(z).z

    @torch.no_grad()
    def update(self, z: Float[Tensor, "b d *size"], codes: Int[Tensor, "b n *size"], noise: Noise) -> None:
        for book, k in zip(self.books, codes.unbind(1), strict=True):
            left = z - book.vectors(k).to(z)
            book.update(z, k, noise)
            z = left

    def usage(self) -> Float[Tensor, "n k"]:
        return torch.cat([book.usage() for book in self.books])
