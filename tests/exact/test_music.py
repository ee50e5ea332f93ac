"""Music: frames, text, tokens and MIDI are one another's inverse; an archive is read; pieces are seen and saved."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from morphogen.core import Space, Tokens
from morphogen.data.corpus import Corpus, Sequences
from morphogen.data.documents import Texts
from morphogen.data.midi import Frame, read_midi, write_midi
from morphogen.data.music import END, Chorales, MidiFiles, Music, Notes, written
from morphogen.errors import UserError
from morphogen.spec import build, spec

mido = pytest.importorskip("mido")
NOTES = Notes()


def any_piece(seed: int) -> list[Frame]:
    """Steps of 0 to 5 notes, some held and some silent, the first and the last too."""
    r = random.Random(seed)
    frames: list[Frame] = []
    for _ in range(r.choice((0, 1, 2, 17, 60))):
        again = bool(frames) and r.random() < 0.3
        frames.append(frames[-1] if again else tuple(sorted(r.sample(range(128), r.choice((0, 0, 1, 3, 5))))))
    return frames


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("steps", [1, 4])
def test_tokens_and_midi_and_back(seed: int, steps: int, tmp_path: Path) -> None:
    piece = any_piece(seed)
    ids = NOTES.encode(written(piece))
    assert NOTES.frames(ids) == piece
    assert NOTES.frames(NOTES.of(piece)) == piece
    assert NOTES.decode(ids) == written(piece)
    file = write_midi(piece, tmp_path / "a.mid", steps=steps, tempo=77)
    assert read_midi(file, steps=steps) == piece
    again = write_midi(read_midi(file, steps=steps), tmp_path / "b.mid", steps=steps, tempo=77)
    assert again.read_bytes() == file.read_bytes()
    if piece and any(piece):
        fine = read_midi(file, steps=2 * steps)
        assert fine[::2] == piece  # a step is two finer ones
        assert fine[1::2] == piece


def test_a_midi_file_of_others_is_read(tmp_path: Path) -> None:
    """Running status, notes that end by velocity 0, are struck twice or never end; drums; two tracks; odd ticks."""
    one = mido.MidiTrack([
        mido.Message("note_on", note=60, velocity=9, time=0), mido.Message("note_on", note=64, velocity=9, time=0),
        mido.Message("note_on", note=60, velocity=0, time=96), mido.Message("note_on", note=60, velocity=9, time=0),
        mido.Message("note_off", note=64, time=96), mido.Message("note_off", note=99, time=0),
    ])  # fmt: skip
    two = mido.MidiTrack([
        mido.Message("note_on", channel=9, note=36, velocity=9, time=0),
        mido.Message("note_on", channel=3, note=48, velocity=9, time=192),
        mido.MetaMessage("end_of_track", time=96),
    ])  # fmt: skip
    made = mido.MidiFile(ticks_per_beat=96)
    made.tracks += [one, two]
    made.save(tmp_path / "o.mid")
    assert read_midi(tmp_path / "o.mid") == [(60, 64), (60, 64), (48, 60)]


def test_what_is_no_midi_is_named(tmp_path: Path) -> None:
    whole = write_midi([(60,), (62,)], tmp_path / "w.mid").read_bytes()
    for i, data in enumerate((b"", b"MThd", b"RIFFxxxx", whole[:30], whole[:14] + b"\xff" * 40)):
        (tmp_path / f"{i}.mid").write_bytes(data)
        with pytest.raises(UserError, match="is no MIDI file"):
            read_midi(tmp_path / f"{i}.mid")
    with pytest.raises(UserError, match="There is no file"):
        read_midi(tmp_path / "none.mid")
    with pytest.raises(UserError, match="0 to 127"):
        write_midi([(128,)], tmp_path / "x.mid")
    with pytest.raises(UserError, match="a divisor"):
        write_midi([(60,)], tmp_path / "x.mid", steps=7)
    for text in ("60 x", "128", "-1", "6.5", "²"):
        with pytest.raises(UserError, match="Step 1 is"):
            NOTES.encode(text)
    with pytest.raises(UserError, match="no token of music"):
        NOTES.frames([130])
    with pytest.raises(UserError, match="no special token"):
        NOTES.special("end")


def test_a_whole_archive_is_read(data_root: Path, tmp_path: Path) -> None:
    archive = data_root / "nottingham" / "nottingham-midi-abc.tar.xz"
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".mid")]
        assert len(members) == 1034
        for member in members[::40]:
            (tmp_path / Path(member.name).name).write_bytes(io.BytesIO(tar.extractfile(member).read()).getvalue())
    texts = MidiFiles(tmp_path, steps=4)
    assert isinstance(texts, Texts)
    train, test = list(texts.documents("train")), list(texts.documents("test"))
    assert len(train) + len(test) == len(members[::40])
    assert all(len(NOTES.encode(d)) > 100 for d in train)
    assert spec(build(spec(texts))) == spec(texts)
    next(iter(tmp_path.glob("*.mid"))).write_bytes(b"other")
    with pytest.raises(UserError, match="have changed"):
        list(texts.documents("train"))


def test_one_piece_is_cut_by_steps(tmp_path: Path) -> None:
    piece: list[Frame] = [(60 + i % 12,) for i in range(50)]
    texts = MidiFiles(write_midi(piece, tmp_path / "a.mid"), steps=1, held_out=0.2)
    (train,), (test,) = texts.documents("train"), texts.documents("test")
    assert train + test == written(piece)
    assert len(NOTES.frames(NOTES.encode(test))) == 10
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no MIDI file in"):
        MidiFiles(tmp_path / "none")


def test_pieces_lie_in_parts_as_texts_do(tmp_path: Path) -> None:
    (tmp_path / "train" / "more").mkdir(parents=True)
    (tmp_path / "Test").mkdir()
    (tmp_path / "val").mkdir()
    for i, name in enumerate(("train/a.mid", "train/more/b.MID", "val/c.Midi")):
        write_midi([(60 + i,)], tmp_path / "x.mid", steps=1)
        (tmp_path / "x.mid").rename(tmp_path / name)
    texts = MidiFiles(tmp_path, steps=1)
    assert list(texts.documents("train")) == ["60\n", "61\n"]
    assert list(texts.documents("test")) == ["62\n"]
    (tmp_path / "val" / "c.Midi").rename(tmp_path / "val" / "d.mid")  # another name is another set
    with pytest.raises(UserError, match="have changed"):
        list(texts.documents("train"))


def test_one_piece_in_a_folder_is_cut_by_steps(tmp_path: Path) -> None:
    write_midi([(60 + i % 12,) for i in range(50)], tmp_path / "a.mid")
    texts = MidiFiles(tmp_path, steps=1, held_out=0.03)
    (train,), (test,) = texts.documents("train"), texts.documents("test")
    assert len(train.splitlines()) == 48
    assert train.endswith("\n")
    assert test.count("\n") == 2


def test_music_without_notes_is_told_when_it_is_made(tmp_path: Path) -> None:
    write_midi([(), (), ()], tmp_path / "rest.mid")
    with pytest.raises(UserError, match=r"no note in .*rest\.mid"):
        MidiFiles(tmp_path / "rest.mid")
    write_midi([(60,)], tmp_path / "short.mid")
    with pytest.raises(UserError, match=r"no note in the test part of .*short\.mid"):
        MidiFiles(tmp_path / "short.mid", steps=1)
    with pytest.raises(UserError, match="no file or folder"):
        MidiFiles(tmp_path / "none")


def test_the_chorales_are_all_there(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path))
    texts = Chorales("valid", root=data_root)
    assert len(list(texts.documents("train"))) == 229
    assert len(list(texts.documents("test"))) == 76
    texts = Chorales(root=data_root)
    assert len(list(texts.documents("test"))) == 77
    for part in ("train", "test"):
        items = Sequences(Corpus(texts, NOTES, part, end=END), 1024)
        assert max(items.lengths()) < 1024  # none is cut
    with pytest.raises(UserError, match="held out are"):
        Chorales("dev")


def test_pieces_are_seen_saved_and_counted(tmp_path: Path) -> None:
    assert isinstance(NOTES, Tokens)
    space = Music(12, steps=2)
    assert isinstance(space, Space)
    assert spec(build(spec(space))) == spec(space)
    piece: list[Frame] = [(60, 64), (60,), (), (72,)]
    ids = [*NOTES.of(piece).tolist(), NOTES.special(END)]
    x = torch.tensor([ids + [0] * (12 - len(ids)), [60, 62, 64, 128, 65] + [129] * 7])
    assert space.decode(x) == ["60 64\n60\n\n72\n", "60 62 64\n65\n"]
    assert [space.units(row) for row in x] == [4, 2]
    paths = space.save(x, tmp_path / "out")
    assert read_midi(paths[0], steps=2) == piece
    assert read_midi(paths[1], steps=2) == [(60, 62, 64), (65,)]
    pixels = np.asarray(space.show(x, 1))
    assert (pixels == (31, 119, 180)).all(-1).any()
    assert space.encode("60 64\n").tolist() == [60, 64, 128]
    with pytest.raises(UserError, match="no music"):
        space.show(x[:0])
    assert np.asarray(space.show(torch.full((1, 12), 129))).size  # a piece of nothing
