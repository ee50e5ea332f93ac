"""Language: tokens, chat templates and word vectors. The models that speak are `autoregressive`."""

from __future__ import annotations

from .chat import CHATML, Chat
from .tokens import END, Bytes, Characters, Vocabulary, Words, alphabet_of, learn_words

__all__ = ["CHATML", "END", "Bytes", "Characters", "Chat", "Vocabulary", "Words", "alphabet_of", "learn_words"]
