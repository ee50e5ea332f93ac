"""Films: the frames that were given, each for its time, in the colours that they have."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from morphogen.data.film import film, film_path
from morphogen.errors import UserError


def dot(k, size=(40, 30)):
    """A red dot of a few pixels on the k-th shade of many."""
    picture = Image.new("RGB", size, (200, 255 - 3 * k, 255))
    ImageDraw.Draw(picture).rectangle((k, 5, k + 3, 8), fill=(214, 39, 40))
    return picture


def frames(path):
    with Image.open(path) as gif:
        found = []
        for k in range(gif.n_frames):
            gif.seek(k)
            found.append((np.asarray(gif.convert("RGB")).astype(int), gif.info["duration"]))
        return found


@pytest.mark.parametrize("back", [False, True])
def test_a_gif_holds_its_frames(back, tmp_path):
    shown = [dot(k) for k in range(9)]
    film(shown, tmp_path / "a.gif", 0.05, back=back)
    found = frames(tmp_path / "a.gif")
    order = [*range(9), *range(7, 0, -1)] if back else range(9)
    assert len(found) == len(order)
    for (pixels, _), k in zip(found, order, strict=True):
        assert np.abs(pixels - np.asarray(shown[k]).astype(int)).max() <= 4
    lasts = [time for _, time in found]
    assert lasts == [200 if k == 8 or (back and i == 0) else 50 for i, k in enumerate(order)]


def test_frames_that_are_alike_are_one_that_lasts(tmp_path):
    film([dot(1), dot(1), dot(2)], tmp_path / "a.gif", 0.1, back=False)
    assert [time for _, time in frames(tmp_path / "a.gif")] == [200, 400]


def test_an_mp4_holds_its_frames(tmp_path):
    av = pytest.importorskip("av", reason="mp4 needs PyAV: pip install 'morphogen[film]'")
    shown = [dot(10 * k, (41, 31)) for k in range(4)]  # an odd size loses a line
    film(shown, tmp_path / "a.mp4", 0.1, back=False)
    with av.open(str(tmp_path / "a.mp4")) as container:
        (stream,) = container.streams.video
        assert (stream.width, stream.height, stream.average_rate) == (40, 30, 10)
        found = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]
    assert len(found) == 3 + 4  # the last is held
    for pixels, k in zip(found, [0, 1, 2, 3, 3, 3, 3], strict=True):
        wanted = np.asarray(shown[k]).astype(int)[:30, :40]
        assert np.abs(pixels - wanted).mean() < 12
        assert pixels[6, 10 * k + 1, 0] - pixels[6, 10 * k + 1, 2] > 60  # red, where the dot is


def test_what_cannot_be_a_film(tmp_path):
    for name in ("a.avi", "a", "a.png"):
        with pytest.raises(UserError, match=r"end in \.gif, or in \.mp4"):
            film_path(tmp_path / name)
    with pytest.raises(UserError, match="needs a picture"):
        film([], tmp_path / "a.gif")


def test_without_pyav_the_way_out_is_said():
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from pathlib import Path; from morphogen.data.film import film_path\n"
        "film_path(Path('a.gif'))\n"
        "try: film_path(Path('a.mp4'))\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "pip install 'morphogen[film]', or write a .gif" in done.stdout
