"""Texts to learn from: the user's own files and folders, or a known collection by its name.

A document is a file, or what lies between two separators in one ("\\n": each line), or each line of a .jsonl file,
under "text". Empty ones are left out. The two parts are, from the first of these that says so:
    folders train/ and test/ (or val/, valid/, validation/) at the top, and nothing else there
    of several documents one in so many is held out, drawn by its content, so that a document that comes twice is in one
    part; of a single one the end of it is held out, by characters
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from ..errors import UserError, unknown
from ..spec import Remembers
from .items import part_named
from .roots import find

_TEST = ("test", "val", "valid", "validation")
_SETTLED = 2.0  # seconds: a file that was written before then has another time if it is written again
_hashes: dict[tuple[str, int, int, int], bytes] = {}


@runtime_checkable
class Texts(Protocol):
    """Where documents come from."""

    def documents(self, part: str) -> Iterator[str]:
        """The documents of "train" or "test", in their order, read anew."""
        ...

    def mark(self) -> str:
        """What decides the documents: a hash of all that is read."""
        ...


def content(file: Path) -> bytes:
    """The SHA-256 of a file's content; it is read once, until its size or its time is another."""
    about = os.stat(file)
    key = (str(file.absolute()), about.st_ino, about.st_size, about.st_mtime_ns)
    if key not in _hashes:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").digest()
        if not 0 <= time.time() - about.st_mtime < _SETTLED:
            _hashes[key] = found
        return found
    return _hashes[key]


class Files(Remembers):
    """Base of the user's own files, one or a folder of them at any depth, as documents in two parts.

    A subclass says which files they are, how one is read, and where a single document is cut. held_out: the share of
    the test part. sha256: of the names and contents, and of how they are read, made when this is made.
    Raises UserError where there are no such files or nothing is in them or in a part, and, on first use, where they are
    no longer those of `sha256`.
    """

    pins = ("sha256",)
    suffixes: ClassVar[tuple[str, ...]]  # in lower case, however the file's name is written
    kind: ClassVar[str]  # what a folder of them is searched for
    held: ClassVar[str]  # what a document holds
    advice: ClassVar[str]

    def __init__(self, path: str | Path, held_out: float, sha256: str) -> None:
        self.path, self.held_out = Path(path).expanduser(), held_out
        self.sha256 = sha256 or self.mark()
        if not sha256:
            self._check()

    @abstractmethod
    def read(self, file: Path) -> Iterator[str]:
        """The documents of a file, none of them empty."""

    @abstractmethod
    def how(self) -> list[Any]:
        """What decides, beside the files, which documents there are, for the hash."""

    def cut(self, document: str) -> int:
        """Where in a single document what is held out begins."""
        return int((1 - self.held_out) * len(document))

    def mark(self) -> str:
        """SHA-256 of the names and contents of the files, and of how they are cut into documents and parts."""
        h = hashlib.sha256(json.dumps(self.how()).encode())
        for file in self._files():
            h.update(f"{file.relative_to(self.path) if file != self.path else ''} ".encode() + content(file))
        return h.hexdigest()

    def documents(self, part: str) -> Iterator[str]:
        """The documents of a part."""
        part_named(part)
        if self.mark() != self.sha256:
            raise UserError(f"The files in {str(self.path)!r} have changed since the run was made: begin another run.")
        found = self._files()
        if folders := self._folders(found):
            there = ["train"] if part == "train" else _TEST
            for file, folder in zip(found, folders, strict=True):
                if folder in there:
                    yield from self.read(file)
            return
        yield from parted((d for file in found for d in self.read(file)), part, self.held_out, self.cut)

    def _folders(self, found: Sequence[Path]) -> list[str]:
        """The folder of its part that each file is in; nothing where folders say nothing of parts.

        Raises UserError for a file beside these folders, of which nobody says whose it is.
        """
        tops = [] if self.path.is_file() else [f.relative_to(self.path).parts[0] for f in found]
        if "train" not in tops or not set(tops) & set(_TEST):
            return []
        if other := sorted(set(tops) - {"train", *_TEST}):
            raise UserError(
                f"{str(self.path)!r} holds {other[0]!r} beside the folders of its parts: put it into train/ or test/,"
                " or elsewhere."
            )
        return tops

    def _check(self) -> None:
        """Raise UserError where there is nothing in the files, or in a part that is wanted."""
        found = self._files()
        if not any(True for file in found for _ in islice(self.read(file), 1)):
            raise UserError(f"There is no {self.held} in {str(self.path)!r}: give {self.advice} that holds some.")
        for part in ("train", "test") if self.held_out or self._folders(found) else ("train",):
            if next(self.documents(part), None) is None:
                raise UserError(
                    f"There is no {self.held} in the {part} part of {str(self.path)!r}: give more of it, or folders"
                    " train/ and test/."
                )

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.exists():
            raise UserError(f"There is no file or folder {str(self.path)!r}: give the path of your {self.kind}.")
        found = sorted(f for f in self.path.rglob("*") if f.name.lower().endswith(self.suffixes) and f.is_file())
        if not found:
            raise UserError(f"There is no {self.kind} in {str(self.path)!r}: give {self.advice}, or a folder of such.")
        return found


class TextFiles(Files):
    """The user's own texts, in UTF-8. path: a file, or a folder of .txt, .md and .jsonl files (also .gz), at any depth.

    between: what parts the documents of a file; None takes a file as one. held_out: the share of the test part. exact:
    take what stands in the files as it is, which tokens of bytes then give back byte by byte; otherwise every end of a
    line (CRLF, CR) is read as "\\n", and a mark of the byte order at the beginning is no part of the text.
    sha256: of the names and contents, made when this is made. Raises UserError where there is no text, in the whole or
    in a part, and, on first use, where the files are no longer those of `sha256`.
    """

    suffixes = (".txt", ".md", ".jsonl", ".txt.gz", ".md.gz", ".jsonl.gz")
    kind, held, advice = "text", "text", "a .txt, .md or .jsonl file in UTF-8"

    def __init__(
        self,
        path: str | Path,
        *,
        between: str | None = None,
        held_out: float = 0.1,
        exact: bool = False,
        sha256: str = "",
    ) -> None:
        if between == "" or not 0 <= held_out < 1:
            raise UserError(f"TextFiles has between={between!r}, held_out={held_out}: give a separator, and 0 to 1.")
        self.between, self.exact = between, exact
        super().__init__(path, held_out, sha256)

    def how(self) -> list[Any]:
        """The separator and the share, and whether line ends are kept."""
        return [self.between, self.held_out, *(["exact"] if self.exact else [])]

    def read(self, file: Path) -> Iterator[str]:
        """The documents of a file."""
        return _documents(file, self.between, self.exact)


def parted(
    documents: Iterator[str], part: str, held_out: float, cut: Callable[[str], int] | None = None
) -> Iterator[str]:
    """The documents of a part: of one its beginning or end, of several those that are drawn. cut: where that one's end
    begins, by default by characters.
    """
    first = list(islice(documents, 2))
    if len(first) == 1:
        at = int((1 - held_out) * len(first[0])) if cut is None else cut(first[0])
        piece = first[0][:at] if part == "train" else first[0][at:]
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


def _documents(file: Path, between: str | None, exact: bool = False) -> Iterator[str]:
    """The documents of a text file; see `TextFiles`."""
    name = file.name.lower()
    form: dict[str, Any] = {"encoding": "utf-8" if exact else "utf-8-sig", "newline": "" if exact else None}
    try:
        with gzip.open(file, "rt", **form) if name.endswith(".gz") else file.open(**form) as opened:
            if name.removesuffix(".gz").endswith(".jsonl"):
                for i, line in enumerate(opened):
                    if line.strip():
                        text = _field(line, file, i)
                        yield from filter(None, [text if exact else text.replace("\r\n", "\n").replace("\r", "\n")])
                return
            text = opened.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(file)!r} is no text in UTF-8 (byte {error.start}): convert it, or leave it out."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
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
        every = (d for f in known.parts[part_named(part)] for d in _documents(folder / f, known.between, exact=True))
        whole = known.parts["train"] != known.parts["test"]
        yield from every if whole else parted(every, part, known.held_out)

    def mark(self) -> str:
        """SHA-256 of the files' contents."""
        (_, folder), h = self.where(), hashlib.sha256(self.name.encode())
        for name in sorted({f for names in _KNOWN[self.name].parts.values() for f in names}):
            h.update(content(folder / name))
        return h.hexdigest()


def texts_of(source: Any) -> Texts:
    """Texts by what a user calls them: texts, the name of a collection, or a path."""
    if isinstance(source, Texts):
        return source
    return Collection(source) if isinstance(source, str) and source in _KNOWN else TextFiles(source)
