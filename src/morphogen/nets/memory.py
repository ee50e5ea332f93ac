"""What a causal transformer has seen: keys and values in cells that are made once, and who of them a query sees.

Row b has seen `used[b]` symbols; cell j holds the latest place p < used with p ≡ j modulo the number of cells:

    p_j = (used − 1) − ((used − 1 − j) mod cells),    below 0: empty

so where there are as many cells as places p_j = j, and where there are fewer (a window) the oldest is written over.
Rows may be of different lengths, go back (a rejected draft) and change places (beams); what a cell holds that is too
old or not yet written is told by p_j alone, and hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from .positions import Positions, Turn


class Sight(NamedTuple):
    """What all attentions of one pass share.

    turn: cos and sin that turn queries and keys. bias: added to the scores, or a mask that is True where one sees.
    causal: without a bias, the queries are the last of the keys, and look back only.
    """

    turn: Turn | None = None
    bias: Tensor | None = None  # (B or 1, heads or 1, N, M)
    causal: bool = False


EVERYWHERE = Sight()  # every position looks at every other


def sight(
    at: Int[Tensor, "*b n"],
    seen: Int[Tensor, "*b m"],
    positions: Positions | None,
    heads: int,
    d: int,
    *,
    visible: Bool[Tensor, "*c n m"] | None = None,
    causal: bool = False,
) -> Sight:
    """The sight of queries at `at` over keys at `seen`. visible: which of them; `causal`: those before."""
    turn = None if positions is None else positions.turn(at, d)
    bias = None if positions is None else positions.bias(at, seen, heads)
    if bias is None:
        return Sight(turn, None if visible is None else _headed(visible), causal)
    if visible is None and causal:
        visible = seen[..., None, :] <= at[..., :, None]
    if bias.ndim == 3:
        bias = bias[None]
    return Sight(turn, bias if visible is None else bias.masked_fill(~_headed(visible), -torch.inf), False)


def _headed(visible: Tensor) -> Tensor:
    """(N, M) or (B, N, M) with a dimension for the heads."""
    return visible[None, None] if visible.ndim == 2 else visible[:, None]


class Memory:
    """Keys and values that the `depth` attentions of a net have seen.

    room: places in all. window: a query sees itself and the window − 1 before it; cells are then no more than that, and
    `slack` more that one may go back by. A pass is `look`, then each layer's `extend`, then `advance`.
    """

    def __init__(self, depth: int, room: int, *, window: int | None = None, slack: int = 0) -> None:
        self.room, self.window, self.slack = room, window, slack
        self.cells = room if window is None else min(room, window + slack)
        self.used: int | Tensor = 0  # places seen, of all rows alike or (B,)
        self.most = 0  # the largest of them, or more
        self.layers = [Layer(self) for _ in range(depth)]
        self.context: list[tuple[Tensor, Tensor]] = []  # keys and values of what each layer looks across to, if it does
        self.across: Tensor | None = None  # which of these are there (B, M)
        self.now = Pass(0)

    def look(
        self,
        b: int,
        n: int,
        positions: Positions | None,
        heads: int,
        d: int,
        device: torch.device,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Tensor, Sight]:
        """The places (N,) or (B, N) of the next n symbols of b rows, of which the first `lengths` are there, and what
        they see. Raises UserError where there is no room for them.
        """
        if self.most + n > self.room:
            raise UserError(f"This memory has room for {self.room} symbols, and {self.most + n} came: ask for fewer.")
        used = self.used
        if isinstance(used, int) and used + n <= self.cells:
            at, seen = torch.arange(used, used + n, device=device), torch.arange(used + n, device=device)
            near = None if self.window is None or used + n <= self.window else _visible(at, seen, self.window)
            self.now = Pass(n, lengths)
            return at, sight(at, seen, positions, heads, d, visible=near, causal=True)
        start = torch.full((b,), used, device=device) if isinstance(used, int) else used
        at = start[:, None] + torch.arange(n, device=device)  # (B, N)
        if n == 1:
            seen = self._places(start + 1)[:, : self.most + 1]
        else:
            seen = torch.cat((self._places(start)[:, : self.most], at), 1)
        self.now = Pass(n, lengths, start)
        return at, sight(at, seen, positions, heads, d, visible=_visible(at, seen, self.window))

    def advance(self) -> None:
        """The pass is over, and its symbols have been seen."""
        n, lengths, start = self.now
        if start is None and lengths is None:
            assert isinstance(self.used, int)
            self.used += n
        else:
            self.used = (self.used if start is None else start) + (n if lengths is None else lengths)
        self.most = self.most + n if lengths is None else int(torch.as_tensor(self.used).max())

    def back(self, used: Int[Tensor, " b"]) -> None:
        """Forget what is beyond the first `used` places of each row.

        Raises UserError where what lies before them has been written over.
        """
        if self.cells < self.room and len(used) and int((torch.as_tensor(self.used) - used).max()) > self.slack:
            raise UserError(f"A memory with a window goes back {self.slack} places at most: make it with more slack.")
        self.used, self.most = used, int(used.max()) if len(used) else 0

    def rows(self, index: Int[Tensor, " r"]) -> Memory:
        """The memory of these rows; a row may be there twice."""
        other = Memory(0, self.room, window=self.window, slack=self.slack)
        other.most = self.most
        other.used = self.used if isinstance(self.used, int) else self.used[index]
        other.layers = [layer.rows(other, index) for layer in self.layers]
        other.context = [(k[index], v[index]) for k, v in self.context]
        other.across = None if self.across is None else self.across[index]
        return other

    def _places(self, used: Int[Tensor, " b"]) -> Int[Tensor, "b cells"]:
        """p_j of each cell, see the module's head."""
        last = used[:, None] - 1
        return last - (last - torch.arange(self.cells, device=used.device)) % self.cells

    def taken(self) -> Tensor:
        """Where each cell's content comes from (B, cells): itself, or cells + i of the i-th symbol of this pass."""
        n, lengths, start = self.now
        assert start is not None
        place = self._places(start + (n if lengths is None else lengths))
        cell = torch.arange(self.cells, device=place.device)
        return torch.where(place >= start[:, None], place - start[:, None] + self.cells, cell)


class Pass(NamedTuple):
    """The symbols that a memory is being shown: how many, how many of each row are there, and where rows begin."""

    n: int
    lengths: Tensor | None = None
    start: Tensor | None = None  # (B,); None: all rows alike, and the next cells are free


class Layer:
    """The cells of one attention in a memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.cells: tuple[Tensor, Tensor] | None = None  # keys, values (B, heads, cells, d), once there are any

    def extend(self, k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"]) -> tuple[Tensor, Tensor]:
        """Put the symbols of this pass into their cells; all keys and values (B, heads, M, d) that `look` spoke of."""
        memory, n = self.memory, k.shape[2]
        if self.cells is None:
            self.cells = _room(k, memory.cells), _room(v, memory.cells)
        (ks, vs), start = self.cells, memory.now.start
        if start is None:
            used = memory.used
            assert isinstance(used, int)
            ks.narrow(2, used, n).copy_(k)
            vs.narrow(2, used, n).copy_(v)
            return ks.narrow(2, 0, used + n), vs.narrow(2, 0, used + n)
        if n == 1:
            row, cell = torch.arange(len(k), device=k.device), start % memory.cells
            ks[row, :, cell], vs[row, :, cell] = k[:, :, 0], v[:, :, 0]
            return ks[:, :, : memory.most + 1], vs[:, :, : memory.most + 1]
        taken = memory.taken()[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        self.cells = torch.cat((ks, k), 2).gather(2, taken), torch.cat((vs, v), 2).gather(2, taken)
        return torch.cat((ks[:, :, : memory.most], k), 2), torch.cat((vs[:, :, : memory.most], v), 2)

    def rows(self, memory: Memory, index: Tensor) -> Layer:
        """These rows, in another memory."""
        other = Layer(memory)
        other.cells = None if self.cells is None else (self.cells[0][index], self.cells[1][index])
        return other


def _room(first: Tensor, cells: int) -> Tensor:
    """Empty cells for what is shaped like `first` (B, heads, N, d)."""
    return first.new_zeros(*first.shape[:2], cells, first.shape[3])


def _visible(at: Tensor, seen: Tensor, window: int | None) -> Tensor:
    """(*b, N, M): a query sees its own place and those before it, of a window the last."""
    apart = at[..., :, None] - seen[..., None, :]
    there = (apart >= 0) & (seen[..., None, :] >= 0)
    return there if window is None else there & (apart < window)


def past(n: int, positions: Positions | None, heads: int, d: int, window: int | None, device: torch.device) -> Sight:
    """The sight of a whole sequence of n that looks back, without a memory."""
    at = torch.arange(n, device=device)
    near = None if window is None or n <= window else _visible(at, at, window)
    return sight(at, at, positions, heads, d, visible=near, causal=True)
