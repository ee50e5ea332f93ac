"""`morphogen sample --from FOLDER --prompt TEXT`: text from a language model that transformers has saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, unknown
from .context import Context
from .flags import Flag, flags_of

if TYPE_CHECKING:
    from ..autoregressive.generate import Generated
    from ..core import Model, Net
    from ..language.tokens import Vocabulary


def own_flags() -> tuple[str, list[Flag]]:
    """The options of drawing text."""
    from ..autoregressive import Autoregressive

    return "options of the drawing:", flags_of(Autoregressive.sample, skip=("n", "cond", "noise", "guidance"))


def sample(
    context: Context,
    folder: Path,
    prompt: str,
    *,
    n: int,
    length: int,
    seed: int,
    out: Path | None,
    weights: str | None,
    device: str | None,
) -> None:
    """Draw n texts that go on from the prompt; one comes as it is drawn."""
    import numpy as np
    import torch

    from ..autoregressive import Autoregressive, decode
    from ..core import Noise
    from ..device import choose_device
    from ..interop import read
    from ..language.subwords import Subwords
    from ..spec import Asset

    if out is not None and out.suffix != ".txt":
        raise UserError(f"--out {out} is no text: name a FILE.txt.")
    options = context.options(own_flags()[1], "a language model")
    where = choose_device(device)
    model = read(folder, device=where)
    lighten(model.net, weights)
    if model.tokenizer is None:
        raise UserError(
            f"{str(folder)!r} holds no tokenizer.json, so its text cannot be read: save the tokenizer there too."
        )
    words = Subwords(Asset(model.tokenizer))
    ids = np.array([*words.before, *words.encode(prompt)])
    if len(ids) and not 0 <= ids.min() <= ids.max() < model.net.codes:
        raise UserError(f"The tokenizer in {str(folder)!r} is not that of the model: it has more tokens.")
    begin = not len(ids)
    if begin and model.net.begin is None:
        raise UserError("This model has nothing that begins a text: give a --prompt to go on from.")
    assert model.net.length is not None
    room = model.net.length + 1 - begin - len(ids)
    if room < 1:
        raise UserError(f"The prompt has {len(ids)} tokens, and this model reads {model.net.length}: shorten it.")
    rules = decode.rules(
        repetition_penalty=options.get("repetition", 1.0),
        tau=options.get("temperature", 1.0),
        k=options.get("top_k"),
        p=options.get("top_p"),
        m=options.get("min_p"),
        mass=options.get("typical"),
    )
    if len(model.ends) > 1:
        rules.insert(0, lambda logits, seen: decode.merged(logits, model.ends))
    if words.size < model.net.codes:  # a table with more rows than there are words: those are no symbols
        none = torch.arange(model.net.codes, device=where) >= words.size
        none[torch.tensor(model.ends, dtype=torch.long, device=where)] = False
        rules.insert(0, lambda logits, seen: logits.masked_fill(none, -torch.inf))
    law = Autoregressive(model.net, (model.net.length,), model.net.codes, end=model.end)
    rows = torch.from_numpy(ids).long().to(where).expand(n, -1)
    live = n == 1 and out is None and not context.tell.machine
    shown = Shown(words, ids.tolist(), model.end)
    drawn = law.generate(
        rows,
        steps=min(length, room),
        rules=rules,
        noise=Noise.seeded(seed, n, device=where),
        begin=begin,
        hear=shown.tell if live else None,
    )
    texts = []
    for row, k in zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True):
        ended = k > len(ids) and row[k - 1] == model.end
        texts.append(words.decode(row[: k - ended]))
    if live:
        shown.end(texts[0])
        return
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    fields = {"n": n, "seed": seed, "prompt": prompt, "texts": texts, "files": [] if out is None else [str(out)]}
    said = f"{n} texts (seed {seed}) drawn to {out}" if out is not None else "\n\n".join(texts)
    context.tell.answer("sampled", fields, said)


def lighten(model: Net | Model, weights: str | None) -> None:
    """Put a model's weights into the form that is asked for; None: they stay as they are."""
    from ..nets import int8

    if weights not in (None, "int8"):
        raise unknown("form of weights", str(weights), ("int8",))
    if weights is not None:
        int8(model)


class Shown:
    """A text that appears as it is drawn, whole characters at a time; each symbol is read once, and the new text is
    what the last few symbols say more than those of them that were shown.

    ids: of the prompt. end: the symbol that ends a text, which says nothing.
    """

    def __init__(self, words: Vocabulary, ids: list[int], end: int | None) -> None:
        self.words, self.ids, self.over = words, list(ids), end
        self.since, self.upto = 0, 0  # the symbols that are read again, and up to where they were shown
        self.said: list[str] = []

    def tell(self, drawn: Generated) -> None:
        """What is new of the first row."""
        symbol = int(drawn.tokens[0, len(self.ids)])
        if symbol == self.over:
            return
        self.ids.append(symbol)
        before = self.words.decode(self.ids[self.since : self.upto])
        text = self.words.decode(self.ids[self.since :])
        if len(text) > len(before) and not text.endswith("\ufffd"):  # which may be half a character
            self._write(text[len(before) :])
            self.since, self.upto = self.upto, len(self.ids)

    def end(self, text: str) -> None:
        """The rest."""
        said = "".join(self.said)
        self._write(text[len(said) :] + "\n" if text.startswith(said) else f"\n{text}\n")

    def _write(self, text: str) -> None:
        self.said.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()
