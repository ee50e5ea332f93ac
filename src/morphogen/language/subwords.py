"""Pieces of words, learned from texts: Hugging Face's `tokenizers` behind the face of `Vocabulary`.

    byte_bpe    merges of the commonest neighbours, from bytes on (`bpe.py` is the same to read)      exact
    unigram     the likeliest split under a law of pieces that are independent, from bytes on          exact
    wordpiece   the longest piece first, "##" before what goes on, spaces and the unknown lost         as BERT has it

Sennrich, Haddow & Birch 2016, "Neural machine translation of rare words with subword units", arXiv:1508.07909; Radford
et al. 2019, "Language models are unsupervised multitask learners" (BPE of bytes); Kudo 2018, "Subword regularization",
arXiv:1804.10959 (unigram); Schuster & Nakajima 2012, "Japanese and Korean voice search" (WordPiece); Devlin et al.
2019, "BERT", arXiv:1810.04805.

What is learned is a `tokenizer.json`, which `transformers` reads too, and `Subwords` reads theirs.
Departures: special names inside a text are text. Bytes that are no UTF-8 have tokens, the single bytes' own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk import write
from ..errors import UserError
from ..spec import Asset
from .bpe import BYTES, SIGNS
from .tokens import _SAMPLE, END, Ids, Vocabulary, _named, _text


class Subwords(Vocabulary):
    """The tokens of a `tokenizer.json`: learned here, or of a published model.

    file: the tokenizer. `specials` are those that it says are special, in the order of their integers, wherever those
    are. Needs the package `tokenizers`: pip install morphogen[language]. Raises UserError for a file that is none.
    """

    def __init__(self, file: Asset) -> None:
        self.file = file
        library = _library()
        try:
            text = file.path.read_text(encoding="utf-8")
            page = json.loads(text)
            self._tokenizer = library.Tokenizer.from_str(text)
            every = [(int(t["id"]), str(t["content"]), bool(t["special"])) for t in page.get("added_tokens", ())]
        except Exception as error:  # its reader raises the bare class
            raise UserError(
                f"{str(file.path)!r} is no tokenizer ({str(error)[:80]}): give a tokenizer.json, such as byte_bpe"
                " writes."
            ) from None
        self._tokenizer.encode_special_tokens = True  # special names inside a text are text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = {name: i for i, name, special in sorted(every) if special}
        self._whole = {i: name for i, name, special in every if not special}  # words that are tokens as they are
        self.specials = tuple(self._special)
        self.size = 1 + max(self._tokenizer.get_vocab(True).values(), default=-1)  # there may be gaps
        self.kind = str(page["model"].get("type", ""))
        self.exact = _exact(page, self._tokenizer)
        self._bytes = np.array([self._tokenizer.token_to_id(s) for s in BYTES]) if self.exact else None  # (256,)

    def special(self, name: str) -> int:
        if name not in self._special:
            return super().special(name)
        return self._special[name]

    @property
    def before(self) -> tuple[int, ...]:
        """The special tokens that a published tokenizer puts before every text, such as Llama's <s>."""
        plain, whole = (self._tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
        begins = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return tuple(whole[:begins])

    def encode(self, text: str) -> Ids:
        if self.exact and not text.isascii():
            return self.encode_bytes(text.encode("utf-8", "surrogatepass"))
        return self._encode(text)

    def _encode(self, text: str) -> Ids:
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        except Exception as error:  # it raises the bare class, and of half a surrogate pair a TypeError
            raise UserError(
                f"The tokenizer {str(self.file.path)!r} cannot say {text[:_SAMPLE]!r}{'…' * (len(text) > _SAMPLE)}"
                f" ({str(error)[:80]}): leave it out, or take tokens of bytes."
            ) from None

    def encode_bytes(self, data: bytes) -> Ids:
        """The tokens (n,) of any bytes. Raises UserError where these tokens are not `exact`."""
        if self._bytes is None:
            raise UserError(f"Tokens of {self.kind} are of text, and not of bytes: take byte_bpe or unigram.")
        parts: list[Any] = []
        for i, run in enumerate(_runs(data)):  # text and what is none, in turn
            parts.append(self._bytes[np.frombuffer(run, np.uint8)] if i % 2 else self._encode(run.decode()))
        return np.concatenate(parts).astype(np.int32)

    def decode(self, ids: Sequence[int] | NDArray[Any], *, specials: bool = False) -> str:
        found = self._checked(ids)
        if self._bytes is None:
            return str(self._tokenizer.decode(found.tolist(), skip_special_tokens=not specials))
        names, parts, held = {i: n for n, i in self._special.items()}, [], []
        for i in [*found.tolist(), -1]:
            if i >= 0 and i not in names:
                held.append(i)
                continue
            if i < 0 or specials:
                parts += [_text(self._joined(held)), names.get(i, "")]
                held = []
        return "".join(parts)

    def decode_bytes(self, ids: Sequence[int] | NDArray[Any]) -> bytes:
        """The bytes of tokens, special ones left out. Raises UserError where these tokens are not `exact`."""
        if self._bytes is None:
            raise UserError(f"Tokens of {self.kind} are of text, and not of bytes: take byte_bpe or unigram.")
        special = set(self._special.values())
        return self._joined([i for i in self._checked(ids).tolist() if i not in special])

    def _joined(self, ids: list[int]) -> bytes:
        return b"".join(self._spelled(i) for i in ids)

    def _spelled(self, i: int) -> bytes:
        if i in self._whole:
            return self._whole[i].encode()
        return bytes(SIGNS[s] for s in self._tokenizer.id_to_token(i) or "")


def _runs(data: bytes) -> list[bytes]:
    """Bytes cut into runs of UTF-8 and of what is none, in turn, text first (and maybe empty)."""
    runs: list[bytes] = []
    while True:
        try:
            data.decode()
            return [*runs, data]
        except UnicodeDecodeError as error:
            good, bad, data = data[: error.start], data[error.start : error.end], data[error.end :]
            if runs and not good:
                runs[-1] += bad
            else:
                runs += [good, bad]


def _exact(page: dict[str, Any], tokenizer: Any) -> bool:
    """Whether every text comes back from its tokens as it was: bytes are read and written, and nothing is changed."""
    reads, writes = page.get("pre_tokenizer") or {}, page.get("decoder") or {}
    greedy = any(t.get("lstrip") or t.get("rstrip") for t in page.get("added_tokens", ()) if not t["special"])
    plain = page.get("normalizer") is None and not reads.get("add_prefix_space", True) and not greedy
    level = reads.get("type") == writes.get("type") == "ByteLevel"
    return plain and level and all(tokenizer.token_to_id(s) is not None for s in BYTES)


# ---- learning ------------------------------------------------------------------------------------------------------


def byte_bpe(
    texts: Iterable[str], file: str | Path, *, size: int, specials: Sequence[str] = (END,), least: int = 2
) -> Subwords:
    """Learn byte-level BPE: `size` tokens, 256 of them bytes. least: how often two neighbours must come to be merged.

    Writes `file`, a tokenizer.json. Raises UserError for a size without room for all bytes.
    """
    library, names = _library(), _named(specials)
    _room(size, 256 + len(names))
    made = library.Tokenizer(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, min_frequency=least, special_tokens=list(names), initial_alphabet=BYTES, show_progress=False
    )
    return _learned(_of_bytes(made), trainer, _whole(texts), Path(file))


def unigram(texts: Iterable[str], file: str | Path, *, size: int, specials: Sequence[str] = (END,)) -> Subwords:
    """Learn a unigram law of pieces of bytes, of about `size`. Writes `file`. Raises UserError as `byte_bpe` does."""
    library, names = _library(), _named(specials)
    _room(size, 256 + len(names))
    made = library.Tokenizer(library.models.Unigram())
    trainer = library.trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(names), initial_alphabet=BYTES, show_progress=False, unk_token=None
    )
    some = filter(None, _whole(texts))
    if (first := next(some, None)) is None:
        raise UserError("There is no text to learn tokens from: give some.")
    return _learned(_of_bytes(made), trainer, chain((first,), some), Path(file))


def wordpiece(
    texts: Iterable[str],
    file: str | Path,
    *,
    size: int,
    specials: Sequence[str] = ("[PAD]", "[CLS]", "[SEP]", "[MASK]"),
    lower: bool = True,
    least: int = 2,
) -> Subwords:
    """Learn WordPiece as BERT has it, of `size` tokens at most. lower: read text in lower case, without accents.

    Writes `file`. What has no pieces is "[UNK]", and spaces are not kept. Raises UserError for a size without room for
    all characters.
    """
    library, names = _library(), _named(specials)
    made = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = library.normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece(prefix="##", cleanup=False)
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=least, special_tokens=["[UNK]", *names], show_progress=False
    )
    return _learned(made, trainer, _whole(texts), Path(file), most=size)


def _whole(texts: Iterable[str]) -> Iterator[str]:
    """Texts without what is half a surrogate pair, as a cut emoji of a JSON file leaves it: it is no UTF-8."""
    for text in texts:
        yield text if text.isascii() else text.encode("utf-8", "ignore").decode()


def _of_bytes(made: Any) -> Any:
    library = _library()
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    return made


def _room(size: int, least: int) -> None:
    if size < least:
        raise UserError(
            f"{size} tokens have no room for all bytes and the special ones: give a size of {least} or more."
        )


def _learned(made: Any, trainer: Any, texts: Iterable[str], file: Path, *, most: int | None = None) -> Subwords:
    made.train_from_iterator(texts, trainer)
    if most is not None and (size := made.get_vocab_size()) > most:
        raise UserError(f"{most} tokens have no room for all characters of these texts: give a size of {size} or more.")
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, made.to_str(pretty=True))
    return Subwords(Asset(file))


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "Tokens of subwords need the package tokenizers: `pip install morphogen[language]`, or take Characters or"
            " Bytes, which need nothing."
        ) from None
    return tokenizers
