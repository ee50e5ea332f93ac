"""Skip-gram with negative sampling on about 10 MB of text, 2 workers: words/s (gensim)."""
import functools
import os
import tempfile

import harness
from harness import Metric, Registry, Work

REG = Registry("word2vec", rounds=5, slice=0.1, budget=300, needs={"": ("gensim",)})


def text():
    """PEER_TEXT=FILE, or words of a Zipf vocabulary made from a fixed seed (about 10 MB)."""
    p = os.environ.get("PEER_TEXT")
    if p:
        words = open(p, encoding="utf8").read().split()
        return words, os.path.basename(p)
    import numpy as np
    rng = np.random.default_rng(0)
    v = 60_000
    pr = 1 / np.arange(1, v + 1); pr /= pr.sum()
    names = ["w%d" % i for i in range(v)]
    ids = rng.choice(v, 1_900_000, p=pr)
    return [names[i] for i in ids], "zipf-60k (made here)"


def build(how):
    from gensim.models import Word2Vec
    words, src = text()
    sents = [words[i:i + 1000] for i in range(0, len(words), 1000)]
    kw = dict(vector_size=100, window=5, negative=5, sg=1, hs=0, min_count=5, sample=1e-3, workers=2, seed=1)
    m = Word2Vec(**kw)
    m.build_vocab(sents)
    raw = len(words)
    if how == "corpus_file":
        f = tempfile.mktemp(suffix=".txt")
        with open(f, "w") as h:
            for s in sents:
                h.write(" ".join(s) + "\n")

        def run():
            m.train(corpus_file=f, total_words=raw, total_examples=len(sents), epochs=1)
    else:
        def run():
            m.train(sents, total_examples=len(sents), epochs=1)
    return Work({"train": Metric(run, "words/s", raw, once=True, warmup=1)},
                dict(text=src, words=raw, bytes=sum(map(len, words)) + raw, vocab=len(m.wv), dim=100, window=5,
                     negative=5, sample=1e-3, workers=2, epochs=1, how=how), ("gensim",))


for how in ("sentences", "corpus_file"):
    REG.add(f"gensim/{how}", functools.partial(build, how))
