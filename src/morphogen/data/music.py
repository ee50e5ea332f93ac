"""Music as tokens: what sounds in each step, note by note from the lowest, then a sign that the step is over.

    "60 64 67\\n60 64 67\\n\\n59 62 67\\n"      three steps with notes and one of silence, as text and as it is read
    60 64 67 | 60 64 67 | | 59 62 67 | end     as tokens: 128 notes, the sign, and what ends a piece

A step has one spelling only, so that the probability of its tokens is at most that of its notes, and the loss of a
model that is sure of the order is the music's own. Nats a step are those of all its tokens, whatever their number.

The chorales are J. S. Bach's as Boulanger-Lewandowski, Bengio & Vincent 2012 cut them: "Modeling temporal dependencies
in high-dimensional sequences", arXiv:1206.6392.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..core import END
from ..errors import UserError
from ..spec import Remembers
from .documents import Files, content
from .items import part_named
from .midi import Frame, read_midi, write_midi
from .roots import find
from .space import Picture, grid
from .text import Text

_PITCHES, _STEP = 128, 128  # tokens 0 .. 127 are notes


class Notes(Remembers):
    """The tokens of music: notes 0 to 127 as MIDI numbers them, 128 the end of a step, 129 what ends a piece."""

    size = 130
    specials = (END,)

    def encode(self, text: str) -> NDArray[np.int32]:
        """The tokens (n,) of steps, a line each: numbers of notes, such as "60 64 67". UserError for what is none."""
        return self.of(_frames(text))

    def of(self, frames: Sequence[Frame]) -> NDArray[np.int32]:
        """The tokens (n,) of steps of notes."""
        return np.array([t for frame in frames for t in (*sorted(set(frame)), _STEP)], np.int32)

    def frames(self, ids: Any) -> list[Frame]:
        """The steps of tokens (n,), special ones left out; notes after the last end of a step are one more."""
        found: list[Frame] = []
        notes: set[int] = set()
        for i in [int(i) for i in ids]:
            if i == _STEP:
                found.append(tuple(sorted(notes)))
                notes = set()
            elif 0 <= i < _PITCHES:
                notes.add(i)
            elif not 0 <= i < self.size:
                raise UserError(f"{i} is no token of music: there are 0 to {self.size - 1}.")
        return [*found, tuple(sorted(notes))] if notes else found

    def decode(self, ids: Any, *, specials: bool = False) -> str:
        """The steps of tokens (n,), a line each; an end by its name where it is wanted."""
        end = f"{END}\n" if specials and any(int(i) == _STEP + 1 for i in ids) else ""
        return written(self.frames(ids)) + end

    def special(self, name: str) -> int:
        """The integer of what ends a piece."""
        if name != END:
            raise UserError(f"Music has no special token {name!r}, but {END!r} only.")
        return _STEP + 1


def written(frames: Sequence[Frame]) -> str:
    """Steps as text, a line each."""
    return "".join(" ".join(map(str, frame)) + "\n" for frame in frames)


def _frames(text: str) -> list[Frame]:
    lines = text.split("\n")
    if lines and not lines[-1].strip():
        lines.pop()
    found = []
    for i, line in enumerate(lines):
        words = line.split()
        if not all(w.isascii() and w.isdigit() and int(w) < _PITCHES for w in words):
            raise UserError(f'Step {i + 1} is {line[:40]!r}: give MIDI numbers 0 to 127, such as "60 64 67".')
        found.append(tuple(sorted({int(w) for w in words})))
    return found


# ---- pieces --------------------------------------------------------------------------------------------------------


class Chorales(Remembers):
    """Bach's chorales, 229 to train on and 76 or 77 held out, as `Texts` for `Notes`.

    held_out: "valid" (76) or "test" (77). fine: steps of a sixteenth, and not of a quarter. root: the only folder to
    look in. Raises UserError, on first use, where the file is not found.
    """

    def __init__(self, held_out: str = "test", *, fine: bool = False, root: str | Path | None = None) -> None:
        if held_out not in ("valid", "test"):
            raise UserError(f'The chorales that are held out are "valid" or "test", and not {held_out!r}.')
        self.held_out, self.fine, self.root = held_out, fine, root

    def where(self) -> tuple[str, Path]:
        """The form of its file and the folder. UserError where it is not found."""
        return find("jsb_chorales", {"json": [self._name()]}, root=self.root, folders=("JSB-Chorales-dataset",))

    def _name(self) -> str:
        return f"jsb-chorales-{'16th' if self.fine else 'quarter'}.json"

    def documents(self, part: str) -> Iterator[str]:
        """The pieces of a part, as text."""
        file = self.where()[1] / self._name()
        try:
            pieces = json.loads(file.read_text(encoding="utf-8"))[self.held_out if part_named(part) == "test" else part]
            for piece in pieces:
                yield written([tuple(sorted({int(n) for n in step if n == n and n >= 0})) for step in piece])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{str(file)!r} is damaged ({error}): fetch it again.") from None

    def mark(self) -> str:
        """SHA-256 of the file, and which part is held out."""
        return hashlib.sha256(content(self.where()[1] / self._name()) + self.held_out.encode()).hexdigest()


class MidiFiles(Files):
    """The user's own MIDI files as `Texts` for `Notes`: a file, or a folder of them, at any depth, in parts as texts
    are (folders train/ and test/, or so many that are drawn); of a single piece the end is held out, by whole steps.

    steps: of a beat. held_out: the share of the test part. sha256: of names and contents, made when this is made.
    Raises UserError where there is no note, in the whole or in a part, and where the files are no longer those.
    """

    suffixes = (".mid", ".midi")
    kind, held, advice = "MIDI file", "note", "a .mid file"

    def __init__(self, path: str | Path, *, steps: int = 4, held_out: float = 0.1, sha256: str = "") -> None:
        if steps < 1 or not 0 <= held_out < 1:
            raise UserError(f"MidiFiles has steps={steps}, held_out={held_out}: give 1 or more, and 0 to 1.")
        self.steps = steps
        super().__init__(path, held_out, sha256)

    def how(self) -> list[Any]:
        """The steps of a beat, and the share."""
        return [self.steps, self.held_out]

    def read(self, file: Path) -> Iterator[str]:
        """The piece of a file, as text, where it has a note."""
        piece = written(read_midi(file, steps=self.steps))
        yield from [piece] if piece.strip() else []

    def cut(self, document: str) -> int:
        """Where the last steps begin."""
        lines = document.splitlines(keepends=True)
        return sum(map(len, lines[: round((1 - self.held_out) * len(lines))]))


# ---- the space -----------------------------------------------------------------------------------------------------


class Music(Text):
    """The `Space` of music: x (length,), tokens of `Notes`; samples are MIDI files and piano rolls.

    steps: of a beat, and tempo: beats a minute, of the files that are written.
    """

    def __init__(self, length: int, *, steps: int = 1, tempo: float = 90.0) -> None:
        super().__init__(Notes(), length, end=END)
        self.steps, self.tempo = steps, tempo

    unit = "frame"

    def units(self, row: Tensor) -> int:
        """How many steps are in the tokens (n,) of a row, the one that is not over counted too."""
        ids = self.whole(row)
        return int((ids == _STEP).sum()) + int(len(ids) > 0 and ids[-1] != _STEP)

    def show(self, x: Tensor, columns: int | None = None) -> Picture:
        """A piano roll of each piece x (B, T): steps to the right, notes upwards, an octave's line at each C."""
        pieces = [Notes().frames(self.whole(row)) for row in x.detach().cpu()]
        if not pieces:
            raise UserError("There is no music to show: give at least one piece.")
        heard = [n for piece in pieces for frame in piece for n in frame] or [60]
        low, high = min(heard) // 12 * 12, -(-(max(heard) + 1) // 12) * 12
        return grid([_roll(piece, low, high, max(1, *map(len, pieces), 1)) for piece in pieces], columns or 1)

    def save(self, x: Tensor, folder: str | Path) -> list[Path]:
        """Each piece of x (B, T) as 00000.mid and so on, in `folder`; the paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = enumerate(x.detach().cpu())
        return [
            write_midi(Notes().frames(self.whole(row)), folder / f"{i:05d}.mid", steps=self.steps, tempo=self.tempo)
            for i, row in rows
        ]


def _roll(piece: Sequence[Frame], low: int, high: int, steps: int) -> Picture:
    roll = np.full((high - low, steps, 3), 250, np.uint8)
    roll[[n - low for n in range(low, high) if n % 12 == 0]] = 225
    for step, frame in enumerate(piece):
        for note in frame:
            roll[note - low, step] = (31, 119, 180)
    scale = max(2, min(8, 900 // steps))
    picture = Image.fromarray(roll[::-1].copy())
    return picture.resize((steps * scale, (high - low) * 3), Image.Resampling.NEAREST)
