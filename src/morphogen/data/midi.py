"""MIDI files as steps of sounding notes, and back: through mido, which is imported when it is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError

Frame = tuple[int, ...]  # MIDI numbers that sound in a step, ascending; 60 is the middle C
_TICKS = 480  # a beat
_LONGEST = 100_000  # steps that a file may have


def write_midi(frames: Sequence[Frame], file: str | Path, *, steps: int = 1, tempo: float = 90.0) -> Path:
    """Write steps of notes. steps: of a beat. tempo: beats a minute. A note that goes on is held, not struck again."""
    mido = _library()
    if steps < 1 or not 4 <= tempo <= 1000 or _TICKS % steps:
        raise UserError(
            f"MIDI of steps={steps} a beat at {tempo} beats a minute: give a divisor of {_TICKS}, 4 to 1000."
        )
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo))])
    sounding: set[int] = set()
    waited = 0
    for frame in [*frames, ()]:
        now = set(frame)
        if not all(0 <= n <= 127 for n in now):
            raise UserError(f"A note is a MIDI number 0 to 127, and a step here is {sorted(now)}.")
        for kind, notes in (("note_off", sorted(sounding - now)), ("note_on", sorted(now - sounding))):
            for note in notes:
                track.append(mido.Message(kind, note=note, velocity=80 if kind == "note_on" else 0, time=waited))
                waited = 0
        sounding, waited = now, waited + _TICKS // steps
    track.append(mido.MetaMessage("end_of_track", time=waited - _TICKS // steps))  # a rest at the end counts
    made = mido.MidiFile(type=0, ticks_per_beat=_TICKS)
    made.tracks.append(track)
    path = Path(file)
    made.save(path)
    return path


def read_midi(file: str | Path, *, steps: int = 1) -> list[Frame]:
    """The notes that sound at each step of a beat, drums left out. Raises UserError for what is no MIDI file."""
    mido = _library()
    try:
        opened = mido.MidiFile(file, clip=True)
        if opened.ticks_per_beat <= 0:
            raise ValueError("its time is in frames of film")
        spans, end = _spans(mido.merge_tracks(opened.tracks))
    except FileNotFoundError:
        raise UserError(f"There is no file {str(file)!r}: give the path of a MIDI file.") from None
    except Exception as error:  # of a damaged file mido raises whatever it meets
        raise UserError(f"{str(file)!r} is no MIDI file ({str(error)[:80] or type(error).__name__}).") from None
    tick = opened.ticks_per_beat / steps
    count = math.ceil(end / tick - 1e-9)
    if count > _LONGEST:
        raise UserError(f"{str(file)!r} is {count:,} steps long, and at most {_LONGEST:,} are read: take fewer a beat.")
    sounds: list[set[int]] = [set() for _ in range(count)]
    for note, start, stop in spans:
        for step in range(math.ceil(start / tick - 1e-9), math.ceil(stop / tick - 1e-9)):
            sounds[step].add(note)
    return [tuple(sorted(s)) for s in sounds]


def _spans(messages: Any) -> tuple[list[tuple[int, int, int]], int]:
    """(note, first tick, tick after the last) of all notes, and the last tick of all."""
    now, found = 0, []
    on: dict[tuple[int, int], int] = {}
    for message in messages:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == 9:
            continue
        key = message.channel, message.note
        if key in on:
            found.append((message.note, on.pop(key), now))
        if message.type == "note_on" and message.velocity > 0:
            on[key] = now
    return [*found, *((note, start, now) for (_, note), start in on.items())], now


def _library() -> Any:
    try:
        import mido
    except ImportError:
        raise UserError("MIDI files need the package mido: `pip install morphogen[music]`.") from None
    return mido
