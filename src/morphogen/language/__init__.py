"""Language: tokens, chat templates and word vectors. The models that speak are `autoregressive`."""

from __future__ import annotations

from .chat import CHATML, Chat
from .glove import GloVe
from .tokens import END, Bytes, Characters, Vocabulary, Words, alphabet_of, learn_words
from .vectors import Vectors
from .word2vec import CBOW, HierarchicalSoftmax, NegativeSampling, SkipGram, Word2Vec

__all__ = [
    *("CBOW", "CHATML", "END", "Bytes", "Characters", "Chat", "GloVe", "HierarchicalSoftmax", "NegativeSampling"),
    *("SkipGram", "Vectors", "Vocabulary", "Word2Vec", "Words", "alphabet_of", "learn_words"),
]
