"""Skip-gram with negative sampling on about 10 MB of text, two threads: words a second, beside gensim.

Words are counted as they stand in the text, before frequent ones are left out, on both sides. All sides learn the same
words with the same settings: 100 numbers a word, a window of 5, 5 negatives, subsampling at 1e-3. gensim's two workers
write over one another, so no two of its runs end alike: what is checked is the vocabulary and its counts.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import harness
from harness import Check, Metric, Registry, Work

WIDTH, WINDOW, NEGATIVE, SAMPLE, LEAST = 100, 5, 5, 1e-3, 5
ROW, BATCH = 512, 16  # words of a row of ours, rows of a step
REG = Registry(
    "word2vec",
    rounds=5,
    slice=0.1,
    budget=300,
    needs={"gensim": ("gensim",)},
    pairs=[("morphogen", "gensim/sentences", None)],
)


@functools.cache
def text() -> tuple[Any, str]:
    """Words as integers by their rank (n,): of PEER_TEXT=FILE, or of a Zipf vocabulary made from a fixed seed."""
    import numpy as np

    if p := os.environ.get("PEER_TEXT"):
        words = Path(p).read_text(encoding="utf8").split()
        _, first, ids, counts = np.unique(words, return_index=True, return_inverse=True, return_counts=True)
        rank = np.empty(len(counts), np.int64)
        rank[np.lexsort((first, -counts))] = np.arange(len(counts))
        return rank[ids], Path(p).name
    v = 60_000
    p_ = 1 / np.arange(1, v + 1)
    n = 50_000 if harness.smoking() else 1_900_000
    return np.random.default_rng(0).choice(v, n, p=p_ / p_.sum()), "zipf-60k (made here)"


def counted(ids: Any) -> tuple[Any, Check]:
    """The counts of the words that come often enough, and what both sides must agree on."""
    import numpy as np

    counts = np.bincount(ids)
    kept = np.sort(counts[counts >= LEAST])[::-1]
    return counts, {"vocabulary": [float(len(kept))], "counts": [float(c) for c in kept[:50]]}


def gensim(how: str) -> Work:
    from gensim.models import Word2Vec

    ids, source = text()
    words = [f"w{i}" for i in ids.tolist()]
    sents = [words[i : i + 1000] for i in range(0, len(words), 1000)]
    settings = {"window": WINDOW, "negative": NEGATIVE, "min_count": LEAST, "sample": SAMPLE, "workers": 2}
    m = Word2Vec(vector_size=WIDTH, sg=1, hs=0, seed=1, **settings)
    m.build_vocab(sents)
    more: dict[str, Any] = {"total_examples": len(sents), "epochs": 1}
    if how == "corpus_file":
        f = tempfile.mktemp(suffix=".txt")
        Path(f).write_text("".join(" ".join(s) + "\n" for s in sents))
        more |= {"corpus_file": f, "total_words": len(words)}
    counts = sorted((m.wv.get_vecattr(w, "count") for w in m.wv.index_to_key), reverse=True)
    found = {"vocabulary": [float(len(counts))], "counts": [float(c) for c in counts[:50]]}

    def run() -> None:
        m.train(**more) if "corpus_file" in more else m.train(sents, **more)

    return Work(
        {"train": Metric(run, "words/s", len(words), once=True, warmup=1)},
        {"text": source, "words": len(words), "vocabulary": len(m.wv), "width": WIDTH, "workers": 2, "how": how},
        ("gensim",),
        check=lambda: found,
    )


def morphogen() -> Work:
    import numpy as np
    import torch

    from morphogen.data.items import Tensors
    from morphogen.data.source import Shuffled
    from morphogen.experiment import Data
    from morphogen.hooks import Voice
    from morphogen.language.word2vec import NegativeSampling, SkipGram, Word2Vec
    from morphogen.train import Trainer

    ids, source = text()
    counts, found = counted(ids)
    number = np.cumsum(counts >= LEAST) - 1  # of the words that stay
    kept = torch.from_numpy(number[ids[counts[ids] >= LEAST]])
    rows = kept[: len(kept) // ROW * ROW].view(-1, ROW)
    steps = max(1, len(rows) // BATCH)
    model = Word2Vec(
        counts[counts >= LEAST].tolist(), steps, WIDTH, predictor=SkipGram(), output=NegativeSampling(NEGATIVE),
        window=WINDOW, subsample=SAMPLE,
    )  # fmt: skip

    def run() -> int:
        trainer = Trainer(steps, log_every=50, save_every=10**9)
        run = tempfile.mkdtemp()
        trainer.fit(model, Data(Shuffled(Tensors(rows), BATCH)), run=run, device="cpu", voice=Voice())
        return round(len(ids) * steps * BATCH * ROW / len(kept))  # words as they stood in the text

    return Work(
        {"train": Metric(run, "words/s", len(ids), once=True, warmup=1)},
        {
            "text": source,
            "words": len(ids),
            "vocabulary": int((counts >= LEAST).sum()),
            "width": WIDTH,
            "batch": BATCH * ROW,
        },
        ("torch", "morphogen"),
        check=lambda: found,
    )


REG.add("morphogen", morphogen, smoke=True)
for _how in ("sentences", "corpus_file"):
    REG.add(f"gensim/{_how}", functools.partial(gensim, _how))
