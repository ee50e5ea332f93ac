"""`morphogen data`: what data sets there are, a look at one, and fetching one."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..data import table
from ..errors import UserError
from .context import Context, data_root
from .tell import columns


def list_(context: Context) -> None:
    """List the data sets that are known by name."""
    rows = [("name", "train", "test", "shape", "classes", "what it is")]
    for name in table.names():
        about = table.describe(name)
        shape = "x".join(map(str, about.shape)) or about.unit
        counts = [f"{about.counts[part]:,}" for part in ("train", "test")]
        rows.append((name, counts[0], counts[1], shape, str(len(about.classes) or "–"), about.summary))
        if context.tell.machine:
            context.tell.answer("data", about._asdict(), "")
    if not context.tell.machine:
        context.tell.say(columns(rows))


def show(
    context: Context, name: str, *, out: Path | None = None, columns: int = 12, data_root: Path | None = None
) -> None:
    """Draw a sheet of a data set as it was read, and say what it is.

    name: a data set (`morphogen data list`). out: the picture to write (default: NAME.png here).
    columns: pictures in a row. data_root: the folder that holds the data sets.
    """
    about = table.describe(name)
    path = out or Path(f"{name}.png")
    picture_path(path)
    with _root(data_root):
        sheet = table.show(name, columns=columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    of = f" {about.unit}" if about.unit else ""
    counts = ", ".join(f"{n:,}{of} to {'train on' if part == 'train' else part}" for part, n in about.counts.items())
    text = (
        f"{name}: {about.summary}; {counts}\n  source   {about.citation}\n  licence  {about.licence}\n  sheet    {path}"
    )
    context.tell.answer("data", {**about._asdict(), "sheet": str(path)}, text)


def get(context: Context, name: str, *, data_root: Path | None = None) -> None:
    """Fetch the files of a data set from the network, each held to its SHA-256; go on where a connection was cut.

    name: mnist, fashion-mnist or cifar10. data_root: the folder of data sets to put it into (default: the cache
    folder's).
    """
    from ..data import fetch

    total = sum(remote.size for remote in fetch.sources(name))
    with context.tell.progress("B", total) as told:
        folder = fetch.get(name, data_root, told)
    following = f"morphogen data show {name}" + (f" --data-root {shlex.quote(str(data_root))}" if data_root else "")
    text = f"{name} is in {folder}: {total:,} bytes, each file of the right SHA-256.\nNext:\n  {following}"
    context.tell.answer("fetched", {"name": name, "folder": str(folder), "bytes": total}, text)


_root = data_root


def picture_path(path: Path, also: str = "") -> None:
    """Raise UserError unless the path can be a picture's. also: what else there is to end in."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"{str(path)!r} is no picture's name: let it end in .png, .jpg or .webp{also}.")
