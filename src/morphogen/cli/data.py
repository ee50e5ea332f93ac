"""`morphogen data`: what data sets there are, a look at one, and fetching one."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ..data import table as sets
from ..errors import UserError
from .context import Context, data_root
from .tell import columns


def list_(context: Context) -> None:
    """List the data sets that are known by name."""
    rows = [("name", "train", "test", "shape", "classes", "what it is")]
    for name in sets.names():
        about = sets.describe(name)
        shape = "x".join(map(str, about.shape)) or about.unit
        counts = [f"{about.counts[part]:,}" for part in ("train", "test")]
        rows.append((name, counts[0], counts[1], shape, str(len(about.classes) or "–"), about.summary))
        if context.tell.machine:
            context.tell.answer("data", about._asdict(), "")
    if not context.tell.machine:
        context.tell.say(columns(rows))


def show(
    context: Context,
    name: str,
    *,
    out: Path | None = None,
    columns: int = 12,
    table: Path | None = None,
    data_root: Path | None = None,
) -> None:
    """Draw a sheet of a data set, or of your own pictures, as it was read, and say what it is.

    name: a data set (`morphogen data list`), or a folder, .zip or .tar of pictures. out: the picture to write (default:
    NAME.png here). columns: pictures in a row. table: of your own pictures, what is said of them (default: metadata.csv
    or .jsonl among them). data_root: the folder that holds the data sets.
    """
    if name not in sets.names() and (os.sep in name or Path(name).expanduser().exists()):
        _own(context, Path(name).expanduser(), out, columns, table)
        return
    about = sets.describe(name)
    if table is not None:
        raise UserError(f"--table is of pictures of your own, and {name} is a data set by name: leave it out.")
    path = out or Path(f"{name}.png")
    picture_path(path)
    with _root(data_root):
        sheet = sets.show(name, columns=columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    of = f" {about.unit}" if about.unit else ""
    counts = ", ".join(f"{n:,}{of} to {'train on' if part == 'train' else part}" for part, n in about.counts.items())
    text = (
        f"{name}: {about.summary}; {counts}\n  source   {about.citation}\n  licence  {about.licence}\n  sheet    {path}"
    )
    context.tell.answer("data", {**about._asdict(), "sheet": str(path)}, text)


def _own(context: Context, folder: Path, out: Path | None, columns: int, table: Path | None) -> None:
    """The same of the user's own pictures."""
    from ..data.survey import survey

    path = out or Path(f"{folder.resolve().stem}.png")
    picture_path(path)
    if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"The sheet {str(path)!r} would lie among the pictures themselves: name another place (--out).")
    found, sheet = survey(folder, table=table, columns=columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    train, test = found.counts["train"], found.counts["test"]
    sizes = [f"{height}x{width}" for height, width in (found.smallest, found.median, found.largest)]
    rows = [
        ("classes", _some([f"{k} {n:,}" for k, n in found.classes.items()], "none: what learns of them is told none"))
    ]
    rows.append(("also said", _some([*(["captions"] if found.captions else []), *found.conditions], "nothing")))
    rows.append(("sizes", f"{sizes[0]} to {sizes[2]}, in the middle {sizes[1]} (height x width)"))
    rows.append(
        ("bad", _some([f"{k!r} ({why})" for k, why in found.bad.items()], "none of those whose header was read"))
    )
    rows.append(("sheet", str(path)))
    following = f"morphogen train pictures-diffusion --data {shlex.quote(str(folder))}"
    following += f" --table {shlex.quote(str(table))}" if table else ""
    lines = "\n".join(f"  {what:<9} {text}" for what, text in rows)
    text = f"{folder}: {train:,} pictures to train on, {test:,} test\n{lines}\nNext:\n  {following}"
    context.tell.answer("data", {"name": str(folder), **found._asdict(), "sheet": str(path)}, text)


def _some(words: list[str], none: str, most: int = 12) -> str:
    return ", ".join([*words[:most], *(["…"] if len(words) > most else [])]) or none


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
