"""Word vectors of your own texts, by skip-gram with negative sampling or its kin."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..experiment import Data, Experiment


def word_vectors(
    data: Path,
    predictor: Literal["skip-gram", "cbow"] = "skip-gram",
    output: Literal["negatives", "tree"] = "negatives",
    epochs: float = 5.0,
    width: int = 100,
    window: int = 5,
    least: int = 5,
    alpha: float = 0.025,
    batch: int = 16,
) -> Experiment:
    """word2vec learns vectors of the words of your texts, in lower case; `morphogen map` draws them.

    data: a text file of yours, or a folder of them. predictor: what is predicted: the word by each around it, or by
    their mean. output: told from five negatives, or by a path through a tree. epochs: passes over the text. width:
    numbers of a vector. window: words on either side. least: words that come more seldom are left out. alpha: the
    learning rate at first. batch: rows of 512 words a step.
    """
    import hashlib

    import numpy as np

    from ..data.corpus import Corpus, Windows
    from ..data.documents import TextFiles
    from ..data.roots import cache, keep
    from ..data.source import Shuffled, steps_of
    from ..data.text import Text
    from ..language.tokens import Words, learn_words
    from ..language.word2vec import CBOW, HierarchicalSoftmax, NegativeSampling, SkipGram, Word2Vec
    from ..spec import Asset
    from ..train import Trainer

    pattern = r"[^\W_]+(?:['’-][^\W_]+)*|<unk>"
    texts = TextFiles(data, held_out=0.05)
    about = f"2 {texts.sha256} {least} {pattern}"  # 2: what stands for rarer words counts 0
    mark = hashlib.sha256(about.encode()).hexdigest()[:16]
    learned = learn_words(
        texts.documents("train"), cache() / "words" / f"{mark}.txt", least=least, lower=True, pattern=pattern
    )
    words = Words(learned, lower=True, pattern=pattern)
    train, test = (Windows(Corpus(texts, words, part), 512) for part in ("train", "test"))
    counts = np.bincount(train.corpus.row().tokens, minlength=words.size)
    counts[words.words.index(words.unknown)] = 0  # rarer words are taken out of the text
    file = cache() / "words" / f"{mark}.npy"
    keep(file, lambda opened: np.save(opened, counts, allow_pickle=False))
    steps = steps_of(epochs, len(train), batch)
    model = Word2Vec(
        Asset(file),
        steps,
        width,
        predictor={"skip-gram": SkipGram, "cbow": CBOW}[predictor](),
        output={"negatives": NegativeSampling, "tree": HierarchicalSoftmax}[output](),
        window=window,
        alpha=alpha,
    )
    trainer = Trainer(steps, save_every=max(1, steps // 4), log_every=20)
    return Experiment(model, Data(Shuffled(train, batch), test, Text(words, 512)), trainer)
