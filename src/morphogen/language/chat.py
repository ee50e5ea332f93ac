"""Chat templates: how messages become one text, and which of it the model is to learn.

A template is written in Jinja, as published checkpoints bring theirs (`chat_template.jinja`, or in
tokenizer_config.json), and is given `messages`, each {"role": …, "content": …}, and `add_generation_prompt`. Jinja is
there wherever torch is. It runs in its sandbox, without a loader: a template may loop and join, and reaches no file,
module or attribute that begins with "_", and changes nothing that it is given. Nothing of it is worked out before it is
asked for a text, and products and powers are held to what a text could need. What it can do is loop for long; templates
are trusted as far as that.

What a model learns of a chat are its own replies and what ends them. They are found without knowing the template: with
the messages before it as a chat of their own that asks for a reply, what the whole has more is the reply. A template
for which the one does not begin the other (it cuts what it strips, or adds a date) is refused, and not guessed at.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, unknown
from ..spec import Remembers
from .tokens import Ids, Vocabulary

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant")
CHATML = (  # OpenAI 2023, "Chat markup language"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LARGE = 1 << 20  # items of a text, or bits of a number, that a product may have
_OPEN, _SHUT = "\ue000", "\ue001"  # private characters: around the user's own text while a template is filled in


class Chat(Remembers):
    """A chat template.

    template: in Jinja. names: further names that it is given, such as {"bos_token": "<s>"}. roles: who may speak. date:
    what day it is, such as "2026-11-27", for a template that writes it (`strftime_now`); no clock is read, so that the
    same chat has the same tokens tomorrow. Raises UserError for a template that cannot be read, and for no date.
    """

    def __init__(
        self,
        template: str = CHATML,
        names: Mapping[str, str] | None = None,
        *,
        roles: Sequence[str] = ROLES,
        date: str | None = None,
    ) -> None:
        self.template, self.names, self.roles, self.date = template, dict(names or {}), tuple(roles), date
        self._given: dict[str, Any] = {**self.names}
        if date is not None:
            try:
                self._given["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
            except ValueError:
                raise UserError(f'{date!r} is no date: give one such as "2026-11-27".') from None
        try:
            self._made = _inside().from_string(template)
        except Exception as error:  # Jinja's own, and of a template without end Python's: SyntaxError, MemoryError, …
            raise UserError(f"This chat template cannot be read: {_said(error)}.") from None

    def text(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """The text of messages. ask: with what begins the model's reply. UserError for messages that are none."""
        for i, m in enumerate(messages):
            if not isinstance(m, Mapping) or not isinstance(m.get("content"), str):
                raise UserError(f'Message {i + 1} is {str(m)[:60]!r}: give {{"role": "user", "content": "…"}}.')
            if m.get("role") not in self.roles:
                raise unknown(f"role (of message {i + 1})", str(m.get("role")), self.roles)
        given = [dict(m) for m in messages]
        try:
            return str(self._made.render(messages=given, add_generation_prompt=ask, **self._given))
        except UserError:
            raise
        except Exception as error:  # of what it is given a template raises whatever it meets
            hint = ': give the day, date="2026-11-27"' if self.date is None and "strftime_now" in str(error) else ""
            raise UserError(f"The chat template does not take these messages ({_said(error)}){hint}.") from None

    def replies(self, messages: Sequence[Message], *, who: str = "assistant") -> list[tuple[int, int]]:
        """Where in the text the model's own words are: (start, end) of each reply, with what ends it.

        Raises UserError where the text of the first messages does not begin that of all.
        """
        whole, found = self.text(messages), []
        for i, m in enumerate(messages):
            if m["role"] != who:
                continue
            before, after = self.text(messages[:i], ask=True), self.text(messages[: i + 1])
            if not whole.startswith(after) or not after.startswith(before):
                raise UserError(
                    f"In this chat template the text up to message {i + 1} does not begin the text of all, so what is"
                    " the model's own cannot be told: take a template that only adds, such as CHATML."
                )
            found.append((len(before), len(after)))
        return found

    def encode(self, messages: Sequence[Message], tokens: Vocabulary, *, ask: bool = False) -> tuple[Ids, Ids]:
        """The tokens (n,) of messages, and 1 where the model is to learn them, else 0 (n,).

        The template's own special names become special tokens; in what people wrote the same signs stay text.
        """
        text, own = self.text(messages, ask=ask), [] if ask else self.replies(messages)
        quoted = _quoted(self, messages, ask, text)
        cuts = sorted({0, len(text), *(at for span in own + quoted for at in span)})
        ids, learned = [], []
        for start, end in zip(cuts, cuts[1:]):  # noqa: B905, RUF007
            said = any(a <= start and end <= b for a, b in quoted)
            part = tokens.encode(text[start:end]) if said else _with_specials(text[start:end], tokens)
            ids.append(part)
            learned.append(np.full(len(part), any(a <= start and end <= b for a, b in own), np.int32))
        return np.concatenate([np.zeros(0, np.int32), *ids]), np.concatenate([np.zeros(0, np.int32), *learned])


def published(config: str | Path, *, date: str | None = None) -> Chat:
    """The chat template of a checkpoint: of its folder or its tokenizer_config.json. A chat_template.jinja beside that
    is the template, as for transformers. date: see `Chat`. Raises UserError where there is none.
    """
    path = Path(config)
    path = path / "tokenizer_config.json" if path.is_dir() else path
    beside = path.parent / "chat_template.jinja"
    page: Any = {}
    try:
        if path.is_file() or not beside.is_file():
            page = json.loads(path.read_text(encoding="utf-8"))
        template = beside.read_text(encoding="utf-8") if beside.is_file() else page["chat_template"]
        names = {k: v["content"] if isinstance(v, dict) else v for k, v in page.items() if k.endswith("_token") and v}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{str(config)!r} holds no chat template: give a checkpoint's folder or its tokenizer_config.json."
        ) from None
    if not isinstance(template, str):
        raise UserError(f"{str(config)!r} holds several chat templates: give one, as Chat(template).")
    return Chat(template, {k: v for k, v in names.items() if isinstance(v, str)}, date=date)


def _quoted(chat: Chat, messages: Sequence[Message], ask: bool, text: str) -> list[tuple[int, int]]:
    """Where in the text what people wrote is: found by marking it. A template that looks into it may say otherwise
    then, and that is refused.
    """
    marked = [{**m, "content": f"{_OPEN}{m['content']}{_SHUT}"} for m in messages]
    with_marks = chat.text(marked, ask=ask)
    if any(mark in text for mark in (_OPEN, _SHUT)):
        raise UserError("These messages hold the private characters U+E000 or U+E001: leave them out.")
    if with_marks.replace(_OPEN, "").replace(_SHUT, "") != text:
        raise UserError(
            "This chat template changes what was written (it strips or cuts it), so its own signs cannot be told from"
            " the user's: strip the messages first, or take a template that leaves them, such as CHATML."
        )
    found, start, at = [], 0, 0
    for c in with_marks:
        if c == _OPEN:
            start = at
        elif c == _SHUT:
            found.append((start, at))
        else:
            at += 1
    return found


def _with_specials(text: str, tokens: Vocabulary) -> Ids:
    """Tokens (n,) of a template's own text, in which special names are special tokens."""
    if not tokens.specials:
        return tokens.encode(text)
    longest = sorted(tokens.specials, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest)) + ")", text)
    made = [np.array([tokens.special(p)], np.int32) if i % 2 else tokens.encode(p) for i, p in enumerate(parts) if p]
    return np.concatenate([np.zeros(0, np.int32), *made])


# ---- the sandbox ---------------------------------------------------------------------------------------------------


def _inside() -> Any:
    """Where a template runs."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Inside(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _size(operator, left, right) > _LARGE:
                raise UserError(f"The chat template asks for {operator!r} of more than a text could need.")
            return super().call_binop(context, operator, left, right)

    made = Inside(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols"])
    made.globals = {"raise_exception": _refuse, "range": made.globals["range"], "namespace": Namespace}
    made.filters["tojson"] = _tojson
    return made


def _size(operator: str, left: Any, right: Any) -> float:
    """About how many bits or items a product or a power has."""
    bits = [abs(v).bit_length() if isinstance(v, int) else 0 for v in (left, right)]
    if operator == "**":
        return bits[0] * abs(right) if isinstance(right, int) else 0
    for several, times in ((left, right), (right, left)):
        if isinstance(several, str | list | tuple | bytes) and isinstance(times, int):
            return len(several) * times
    return sum(bits)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """A value as JSON, as it is: Jinja's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise UserError(f"The chat template refuses these messages: {message}")


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:120]
