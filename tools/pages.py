"""Check the guide and every other page: links lead somewhere, and Python blocks run.

A page's ```python blocks run in order in one process (each sees what the ones before it made), in a scratch folder;
what they write is thrown away. A block that must not run is marked ```python no-run, and says why in the text.
Only links within the repository are followed: files, folders and headings.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(?P<fence>```+)(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<target>[^()\s]+)\)|!\[[^\]\n]*\]\((?P<picture>[^()\s]+)\)")
CODE = re.compile(r"`[^`\n]*`")
LIMIT = 300  # seconds for all the blocks of a page


def pages(root: Path) -> list[Path]:
    """Every Markdown page that belongs to the project, in a fixed order."""
    skipped = {"runs", "node_modules", "dist", "build"}
    found = (p for p in root.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(root).parts))
    return sorted(p for p in found if p.relative_to(root).parts[0] not in skipped)


def anchors(text: str) -> set[str]:
    """The names that a page's headings can be linked by, as the usual Markdown viewers make them."""
    names: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        name, n = plain, 0
        while name in names:
            n += 1
            name = f"{plain}-{n}"
        names.add(name)
    return names


def dead_links(page: Path, root: Path) -> Iterator[str]:
    """One sentence for each link of a page that leads nowhere."""
    text = page.read_text(encoding="utf-8")
    where = page.relative_to(root)
    for match in LINK.finditer(CODE.sub("", FENCE.sub("", text))):
        target = match["target"] or match["picture"]
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.is_relative_to(root):
            yield f"{where}: the link {target!r} leaves the repository."
        elif not file.exists():
            yield f"{where}: the link {target!r} leads to no file."
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            yield f"{where}: {name or 'this page'} has no heading {anchor!r}."


def blocks(text: str) -> list[tuple[int, str]]:
    """The (line, code) of a page's Python blocks that run."""
    return [
        (text.count("\n", 0, match.start("body")) + 1, match["body"])
        for match in FENCE.finditer(text)
        if match["info"].split() == ["python"]
    ]


def run(page: Path, root: Path) -> str | None:
    """Run the Python blocks of a page; the end of what they said where one fails."""
    found = blocks(page.read_text(encoding="utf-8"))
    if not found:
        return None
    lines: list[str] = []
    for line, code in found:  # keep the page's line numbers in tracebacks
        lines += [""] * (line - 1 - len(lines)) + code.splitlines()
    name = page.relative_to(root).as_posix()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH")]))}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / f"{page.stem.lower()}.py"  # as a reader would: pasted into a file
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, script.name], cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return f"{name}: its Python blocks took more than {LIMIT} s."
    if done.returncode:
        return f"{name}: its Python blocks fail:\n{done.stderr[-2000:]}"
    print(f"{name}: {len(found)} Python block{'s' * (len(found) > 1)} ran in {time.monotonic() - began:.1f} s")
    return None


def main() -> None:
    """Exit with 1 and the faults where there are any."""
    found = [fault for page in pages(ROOT) for fault in dead_links(page, ROOT)]
    found += [fault for page in pages(ROOT) if (fault := run(page, ROOT))]
    if found:
        sys.exit("\n".join(found))
    print(f"{len(pages(ROOT))} pages: every link leads somewhere, every Python block runs")
    print(f"blocks={sum(len(blocks(page.read_text(encoding='utf-8'))) for page in pages(ROOT))}")


if __name__ == "__main__":
    main()
