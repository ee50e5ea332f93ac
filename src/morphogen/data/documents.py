"""Texts to learn from: the user's own files and folders, or a known collection by its name.

A document is a file, or what lies between two separators in one ("\\n": each line), or each line of a .jsonl file,
under "text". Empty ones are left out. The two parts are, from the first of these that says so:
    folders train/ and test/ (or val/, valid/, validation/) at the top
    of several documents one in so many is held out, drawn by its content, so that a document that comes twice is in one
    part; of a single one the end of it is held out, by characters
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from ..errors import UserError, unknown
from ..spec import Remembers
from .items import part_named
from .roots import find

SUFFIXES = (".txt", ".md", ".jsonl", ".txt.gz", ".jsonl.gz")
_TEST = ("test", "val", "valid", "validation")


@runtime_checkable
class Texts(Protocol):
    """Where documents come from."""

    def documents(self, part: str) -> Iterator[str]:
        """The documents of "train" or "test", in their order, read anew."""
        ...

    def mark(self) -> str:
        """What decides the documents: a hash of all that is read."""
        ...


class TextFiles(Remembers):
    """The user's own texts, in UTF-8. path: a file, or a folder of .txt, .md and .jsonl files (also .gz), at any depth.

    between: what parts the documents of a file; None takes a file as one. held_out: the share of the test part.
    sha256: of the names and contents, made when this is made. Raises UserError where there is no text, and, on first
    use, where the files are no longer those of `sha256`.
    """

    pins = ("sha256",)

    def __init__(
        self, path: str | Path, *, between: str | None = None, held_out: float = 0.1, sha256: str = ""
    ) -> None:
        if between == "" or not 0 <= held_out < 1:
            raise UserError(f"TextFiles has between={between!r}, held_out={held_out}: give a separator, and 0 to 1.")
        self.path, self.between, self.held_out = Path(path).expanduser(), between, held_out
        self.sha256 = sha256 or self.mark()

    def mark(self) -> str:
        """SHA-256 of the names and contents of the files, and of how they are cut into documents and parts."""
        h = hashlib.sha256(json.dumps([self.between, self.held_out]).encode())
        for file in self._files():
            h.update(f"{file.relative_to(self.path) if file != self.path else ''} ".encode())
            with file.open("rb") as opened:
                h.update(hashlib.file_digest(opened, "sha256").digest())
        return h.hexdigest()

    def documents(self, part: str) -> Iterator[str]:
        """The documents of a part."""
        part_named(part)
        if self.mark() != self.sha256:
            raise UserError(f"The texts in {str(self.path)!r} have changed since the run was made: begin another run.")
        found = self._files()
        tops = {f.relative_to(self.path).parts[0] for f in found} if self.path.is_dir() else set()
        if "train" in tops and tops & set(_TEST) and tops <= {"train", *_TEST}:
            there = ["train"] if part == "train" else _TEST
            for file in found:
                if file.relative_to(self.path).parts[0] in there:
                    yield from _documents(file, self.between)
            return
        every = (d for file in found for d in _documents(file, self.between))
        yield from parted(every, part, self.held_out)

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.exists():
            raise UserError(f"There is no file or folder {str(self.path)!r}: give the path of your texts.")
        found = sorted(f for f in self.path.rglob("*") if f.is_file() and f.name.lower().endswith(SUFFIXES))
        if not found:
            raise UserError(f"There is no text in {str(self.path)!r}: put .txt, .md or .jsonl files there.")
        return found


def parted(documents: Iterator[str], part: str, held_out: float) -> Iterator[str]:
    """The documents of a part: of one its beginning or end, of several those that are drawn."""
    first = list(islice(documents, 2))
    if len(first) == 1:
        cut = int((1 - held_out) * len(first[0]))
        piece = first[0][:cut] if part == "train" else first[0][cut:]
        if piece:
            yield piece
        return
    for source in (first, documents):
        for document in source:
            if (_drawn(document) < held_out) == (part == "test"):
                yield document


def _drawn(document: str) -> float:
    """A number in [0, 1) of a document's content."""
    digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _documents(file: Path, between: str | None) -> Iterator[str]:
    try:
        with (
            gzip.open(file, "rt", encoding="utf-8", newline="")
            if file.name.endswith(".gz")
            else file.open(encoding="utf-8", newline="") as opened
        ):
            if ".jsonl" in file.suffixes:
                for i, line in enumerate(opened):
                    if line.strip():
                        yield from filter(None, [_field(line, file, i)])
                return
            text = opened.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(file)!r} is no text in UTF-8 (byte {error.start}): convert it, or leave it out."
        ) from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{str(file)!r} is cut short or damaged ({error}): compress it again.") from None
    yield from (d for d in ([text] if between is None else text.split(between)) if d)


def _field(line: str, file: Path, i: int) -> str:
    try:
        text = json.loads(line)["text"]
        if isinstance(text, str):
            return text
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f'Line {i + 1} of {str(file)!r} is no document: each line is {{"text": "…"}}.')


# ---- known collections ---------------------------------------------------------------------------------------------


class _Known(NamedTuple):
    """A collection. parts: the files of each part; both the same where they are cut here."""

    parts: Mapping[str, Sequence[str]]
    between: str | None
    held_out: float
    packaged: bool = False


_KNOWN: dict[str, _Known] = {
    "tinyshakespeare": _Known({"train": ["input.txt"], "test": ["input.txt"]}, None, 0.1),
    "names": _Known({"train": ["names.txt"], "test": ["names.txt"]}, "\n", 0.1, packaged=True),
    "wikitext2": _Known({"train": ["valid.txt"], "test": ["test.txt"]}, None, 0.0),
}


class Collection(Remembers):
    """A known collection of texts.

    name: "tinyshakespeare" (1,115,394 characters of Shakespeare, the first nine tenths to train on; Karpathy 2015),
    "names" (32,033 first names; Karpathy 2022, of the US Social Security's; it comes with this package) or "wikitext2"
    (its valid part to train on and its test part, as words with <unk>; Merity et al. 2016, arXiv:1609.07843).
    root: the only folder to look in. Raises UserError, on first use, where its files are not found.
    """

    names: ClassVar[tuple[str, ...]] = tuple(_KNOWN)

    def __init__(self, name: str, *, root: str | Path | None = None) -> None:
        if name not in _KNOWN:
            raise unknown("collection of texts", name, _KNOWN)
        self.name, self.root = name, root

    def where(self) -> tuple[str, Path]:
        """The form of its files and their folder. UserError where they are not found."""
        known = _KNOWN[self.name]
        if known.packaged:
            return "txt", Path(str(files(__package__)))
        wanted = sorted({f for names in known.parts.values() for f in names})
        return find(self.name, {"txt": wanted}, root=self.root, bare=False)

    def documents(self, part: str) -> Iterator[str]:
        """The documents of a part."""
        known, (_, folder) = _KNOWN[self.name], self.where()
        every = (d for f in known.parts[part_named(part)] for d in _documents(folder / f, known.between))
        whole = known.parts["train"] != known.parts["test"]
        yield from every if whole else parted(every, part, known.held_out)

    def mark(self) -> str:
        """SHA-256 of the files' contents."""
        (_, folder), h = self.where(), hashlib.sha256(self.name.encode())
        for name in sorted({f for names in _KNOWN[self.name].parts.values() for f in names}):
            h.update(hashlib.sha256((folder / name).read_bytes()).digest())
        return h.hexdigest()


def texts_of(source: Any) -> Texts:
    """Texts by what a user calls them: texts, the name of a collection, or a path."""
    if isinstance(source, Texts):
        return source
    return Collection(source) if isinstance(source, str) and source in _KNOWN else TextFiles(source)
