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
    import torch

    from ..autoregressive import Autoregressive, decode
    from ..core import Noise
    from ..interop import read
    from ..language.subwords import Subwords
    from ..spec import Asset

    if out is not None and out.suffix != ".txt":
        raise UserError(f"--out {out} is no text: name a FILE.txt.")
    options = context.options(own_flags()[1], "a language model")
    model = read(folder, device=device or "cpu")
    lighten(model.net, weights)
    if model.tokenizer is None:
        raise UserError(
            f"{str(folder)!r} holds no tokenizer.json, so its text cannot be read: save the tokenizer there too."
        )
    words = Subwords(Asset(model.tokenizer))
    ids = words.encode(prompt)
    if len(ids) and not 0 <= ids.min() <= ids.max() < model.net.codes:
        raise UserError(f"The tokenizer in {str(folder)!r} is not that of the model: it has more tokens.")
    begin = model.begins or not len(ids)
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
    law = Autoregressive(model.net, (model.net.length,), model.net.codes, end=model.end)
    rows = torch.from_numpy(ids).long().to(device or "cpu").expand(n, -1)
    live = n == 1 and out is None and not context.tell.machine
    shown = Shown(words)
    drawn = law.generate(
        rows,
        steps=min(length, room),
        rules=rules,
        noise=Noise.seeded(seed, n, device=device or "cpu"),
        begin=begin,
        hear=shown.tell if live else None,
    )
    texts = [words.decode(row[:k].cpu().numpy()) for row, k in zip(drawn.tokens, drawn.lengths.tolist(), strict=True)]
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
    """A text that appears as it is drawn, whole characters at a time."""

    def __init__(self, words: Vocabulary) -> None:
        self.words, self.said = words, ""

    def tell(self, drawn: Generated) -> None:
        """What is new of the first row."""
        text = self.words.decode(drawn.tokens[0, : int(drawn.lengths[0])].cpu().numpy())
        if text.startswith(self.said) and not text.endswith("\ufffd"):
            sys.stdout.write(text[len(self.said) :])
            sys.stdout.flush()
            self.said = text

    def end(self, text: str) -> None:
        """The rest."""
        sys.stdout.write(text[len(self.said) :] + "\n" if text.startswith(self.said) else "\n" + text + "\n")
        sys.stdout.flush()
