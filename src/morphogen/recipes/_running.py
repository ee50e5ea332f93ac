"""What the recipes over running text share: windows of characters, and the model over them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..autoregressive import Autoregressive
    from ..data.corpus import Windows
    from ..data.source import Shuffled
    from ..data.text import Text
    from ..nets.causal import Causal

SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Running(NamedTuple):
    """Text to learn from: every window of `context` characters, and those without overlap of what is held out."""

    train: Shuffled
    test: Windows
    space: Text

    @property
    def codes(self) -> int:
        """How many characters there are."""
        return self.space.tokens.size

    def model(self, net: Causal) -> Autoregressive:
        """The law of windows that a causal net gives."""
        from ..autoregressive import Autoregressive

        return Autoregressive(net, self.space.shape, self.codes)


def running(data: Path | None, context: int, batch: int) -> Running:
    """Tiny Shakespeare, or the user's own texts, all of whose characters are looked for now."""
    from ..data.corpus import Corpus, Windows
    from ..data.documents import Collection, TextFiles, Texts
    from ..data.source import Shuffled
    from ..data.text import Text
    from ..language.tokens import Characters, alphabet_of

    texts: Texts = Collection("tinyshakespeare") if data is None else TextFiles(data)
    every = SHAKESPEARE
    if data is not None:
        every = alphabet_of(d for part in ("train", "test") for d in texts.documents(part))
    tokens = Characters(every)
    train, test = (Corpus(texts, tokens, part) for part in ("train", "test"))
    return Running(Shuffled(Windows(train, context, stride=1), batch), Windows(test, context), Text(tokens, context))
