"""Texts as tokens on the disk, and as items: windows of one long row, or a document each.

The tokens are made once: one file in the cache folder, mapped into memory, named by the hash of the texts and of how
they are read, and there only when it is whole. All documents follow one another in it, each with what ends it, so that
windows of it waste nothing: every token is in a window, and only the last window may be shorter.

    Windows      tokens [i stride, i stride + length) of the row
    Sequences    a document each, of one token or more and `longest` at the most
    ByLength     sequences in batches of about as many tokens, each of about one length: little is padding, and every
                 token counts as much as any other

Batches are x (B, T) int64 and, where they may differ, lengths (B,) int64; what lies beyond a length is 0, and no token.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core import Batch, Loss, Model, Place, State, Tokens
from ..errors import UserError
from ..spec import Remembers, assets, spec
from .documents import Texts, texts_of
from .items import part_named
from .roots import cache, keep
from .source import Buckets, Shuffled

_VERSION = 2  # of what the files hold, and of how texts are read
_making = threading.RLock()


class Row(NamedTuple):
    """A part's tokens (n,), mapped from its file, and where each document begins in them, n at the end (D + 1,)."""

    tokens: NDArray[Any]
    starts: NDArray[np.int64]


class Corpus(Remembers):
    """A part of texts as tokens.

    texts: such as `TextFiles(path)` or `Collection("tinyshakespeare")`, or their path or name. tokens: how they are
    read. part: "train" or "test". end: the special token that ends each document; None where they run on.
    """

    def __init__(
        self, texts: Texts | str | Path, tokens: Tokens, part: str = "train", *, end: str | None = None
    ) -> None:
        self.texts, self.tokens, self.part, self.end = texts_of(texts), tokens, part_named(part), end
        self._end = None if end is None else tokens.special(end)
        self._row: Row | None = None

    def row(self) -> Row:
        """The tokens; made now where they are not in the cache. Raises UserError where there is nothing in the part."""
        with _making:
            if self._row is None:
                folder = self.folder()
                self._row = self._mapped(folder) or self._made(folder)
            return self._row

    def folder(self) -> Path:
        """Where they are kept."""
        graph = spec(self.tokens)
        for asset in assets(graph):
            asset["path"] = ""  # wherever it lies: its hash counts
        about = [_VERSION, self.texts.mark(), graph, self.part, self.end]
        return cache() / "tokens" / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def _kind(self) -> type[np.generic]:
        return np.uint16 if self.tokens.size <= 1 << 16 else np.int32

    def _mapped(self, folder: Path) -> Row | None:
        """The row in a folder; None where it is not whole."""
        try:
            starts = np.load(folder / "starts.npy", allow_pickle=False)
            size = (folder / "tokens.bin").stat().st_size
        except (OSError, ValueError, EOFError):
            return None
        if (
            starts.ndim != 1
            or starts.dtype != np.int64
            or len(starts) < 2
            or size != starts[-1] * self._kind().itemsize
        ):
            return None
        return Row(np.memmap(folder / "tokens.bin", self._kind, "r"), starts)

    def _made(self, folder: Path) -> Row:
        starts = [0]

        def write(file: Any) -> None:
            for document in self.texts.documents(self.part):
                ids = self.tokens.encode(document).astype(self._kind)
                if self._end is not None:
                    ids = np.append(ids, self._kind(self._end))
                if len(ids):
                    file.write(ids.tobytes())
                    starts.append(starts[-1] + len(ids))
            if starts[-1] == 0:
                raise UserError(
                    f"There is nothing in the {self.part} part of these texts: give more of them, or folders train/ and"
                    " test/."
                )

        shutil.rmtree(folder, ignore_errors=True)  # what a kill or a damaged disk has left
        keep(folder / "tokens.bin", write)
        keep(folder / "starts.npy", lambda file: np.save(file, np.array(starts, np.int64), allow_pickle=False))
        made = self._mapped(folder)
        assert made is not None
        return made


class Windows(Remembers):
    """`Items` of x (B, length): windows of a corpus, one every `stride` tokens (by default `length`: each token once).

    With a stride of 1 every window there is, as a language model is trained on; then there are none of another length,
    unless the whole is shorter. Batches have lengths (B,) where the last window may be shorter, or documents have ends:
    a window may hold several.
    """

    def __init__(self, corpus: Corpus, length: int, *, stride: int | None = None) -> None:
        if length < 1 or (stride is not None and not 1 <= stride <= length):
            raise UserError(f"Windows have length={length}, stride={stride}: give 1 or more, and a stride up to that.")
        self.corpus, self.length, self.stride = corpus, length, stride or length

    def __len__(self) -> int:
        return 1 + max(0, -(-(len(self.corpus.row().tokens) - self.length) // self.stride))

    def take(self, index: Tensor) -> dict[str, Any]:
        """Windows `index` (B,)."""
        tokens = self.corpus.row().tokens
        begin = index.cpu().numpy() * self.stride
        if self.stride == 1 and self.corpus.end is None and len(tokens) >= self.length:
            return {"x": _gathered(tokens, begin, self.length, None).to(index.device)}
        lengths = np.minimum(self.length, len(tokens) - begin)
        return _ragged(tokens, begin, lengths, self.length, index.device)


class Sequences(Remembers):
    """`Items` of x (B, longest) and lengths (B,): documents of a corpus.

    longest: longer ones are cut there. above, upto: only documents whose length, after that, lies in (above, upto], and
    x is (B, upto).
    """

    def __init__(self, corpus: Corpus, longest: int, *, above: int = 0, upto: int | None = None) -> None:
        self.corpus, self.longest, self.above, self.upto = corpus, longest, above, longest if upto is None else upto
        if not 0 <= above < self.upto <= longest:
            raise UserError(f"There is no document of a length in ({above}, {self.upto}] where longest is {longest}.")
        self._own: NDArray[np.int64] | None = None  # which documents

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each item (N,)."""
        return np.diff(self.corpus.row().starts).clip(max=self.longest)[self._which()]

    def __len__(self) -> int:
        return len(self._which())

    def take(self, index: Tensor) -> dict[str, Any]:
        """Documents `index` (B,)."""
        row, own = self.corpus.row(), self._which()[index.cpu().numpy()]
        begin = row.starts[own]
        lengths = (row.starts[own + 1] - begin).clip(max=self.longest)
        return _ragged(row.tokens, begin, lengths, self.upto, index.device)

    def _which(self) -> NDArray[np.int64]:
        """The documents that are items (N,)."""
        if self._own is None:
            every = np.diff(self.corpus.row().starts).clip(max=self.longest)
            self._own = np.flatnonzero((every > self.above) & (every <= self.upto))
        return self._own


def _gathered(tokens: NDArray[Any], begin: NDArray[np.int64], width: int, lengths: NDArray[np.int64] | None) -> Tensor:
    """Rows (B, width) of tokens, each from its beginning; 0 beyond its length."""
    at = begin[:, None] + np.arange(width)  # (B, width)
    if lengths is None:
        return torch.from_numpy(tokens[at].astype(np.int64))
    found = tokens[at.clip(max=len(tokens) - 1)].astype(np.int64)
    return torch.from_numpy(np.where(np.arange(width) < lengths[:, None], found, 0))


def _ragged(
    tokens: NDArray[Any], begin: NDArray[np.int64], lengths: NDArray[np.int64], width: int, device: torch.device
) -> dict[str, Any]:
    x = _gathered(tokens, begin, width, lengths)
    return {"x": x.to(device), "lengths": torch.from_numpy(lengths.astype(np.int64)).to(device)}


class ByLength(Remembers):
    """A `Source` of documents in batches of about `tokens` tokens, each of documents between two of the `edges`.

    longest: longer documents are cut there. edges: lengths that part the documents (default: into four equal lots). A
    batch of bucket k has round(tokens / mean length of k) documents, so that a token is one of as many in whichever
    bucket it is, and the mean over a batch's tokens is without bias; batches come in an order drawn anew each epoch.
    Raises UserError on first use where there is no document, or for edges that leave a bucket empty.
    """

    def __init__(
        self, corpus: Corpus, longest: int, tokens: int, *, edges: Sequence[int] = (), workers: int = 0
    ) -> None:
        if longest < 1 or tokens < 1:
            raise UserError(f"ByLength has longest={longest}, tokens={tokens}: give 1 or more of each.")
        self.corpus, self.longest, self.tokens, self.edges, self.workers = corpus, longest, tokens, edges, workers
        self._own: Buckets | None = None

    @property
    def buckets(self) -> Buckets:
        """The documents by their lengths. Reads the corpus."""
        if self._own is None:
            self._own = Buckets(self._made())
        return self._own

    def _made(self) -> list[Shuffled]:
        lengths = Sequences(self.corpus, self.longest).lengths()
        if not len(lengths):
            raise UserError("There is no document to learn from: give texts that are not empty.")
        quarters = np.unique(np.quantile(lengths, (0.25, 0.5, 0.75), method="lower"))
        chosen = list(self.edges) or [int(q) for q in quarters if q < lengths.max()]
        bounds = [0, *chosen, int(lengths.max())]
        sources = []
        for low, high in zip(bounds, bounds[1:]):  # noqa: B905, RUF007
            own = lengths[(lengths > low) & (lengths <= high)]
            if not len(own):
                raise UserError(f"No document has a length in ({low}, {high}]: give edges between {chosen or bounds}.")
            items = Sequences(self.corpus, self.longest, above=low, upto=high)
            sources.append(Shuffled(items, max(1, round(self.tokens / float(own.mean()))), workers=self.workers))
        return sources

    def start(self, place: Place) -> None:
        """Take one's place among the ranks, at the beginning of the stream. Reads the corpus."""
        self.buckets.start(place)

    def next(self, actor: Model | None = None, heard: Mapping[str, Loss] | None = None) -> Batch:
        """The next step's batch of this rank."""
        return self.buckets.next(actor, heard)

    def state(self) -> State:
        """Where the stream is."""
        return self.buckets.state()

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self.buckets.restore(state)
