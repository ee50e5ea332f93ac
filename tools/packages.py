"""Build wheel and sdist and check what they hold: every module and data file of the package, the marker of its types,
the licence, the entry point; in the sdist also what is needed to test it. Then build both again from the unpacked
sdist, in another folder, with other times, rights, language and time zone: not a byte may differ.

    python tools/packages.py         in a scratch folder
    python tools/packages.py dist    and keep them there, with their SHA-256 in SHA256SUMS
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_SDIST = (
    "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "Makefile", "constraints.txt",
    "requirements.txt", "requirements-all.txt",
)  # fmt: skip
EPOCH = "1580601600"  # 2 February 2020, the time of every file in a package: hatchling's own, whatever a shell has set


def build(source: Path, folder: Path, surroundings: Mapping[str, str] | None = None, umask: int = -1) -> list[Path]:
    """[wheel, sdist] of the tree `source`, the wheel built from the sdist, as an installer would."""
    env = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_QUIET": "2", "SOURCE_DATE_EPOCH": EPOCH}
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(source)]
    done = subprocess.run(
        command,
        env=env | (surroundings or {}),
        umask=umask,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stdout + "\npython -m build failed: its output is above.")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return [wheel, sdist]


def rebuild(sdist: Path, folder: Path) -> list[Path]:
    """[wheel, sdist] built from an unpacked sdist, in surroundings as unlike the first as a machine allows."""
    with tarfile.open(sdist) as packed:
        packed.extractall(folder / "elsewhere", filter="data")
    (source,) = (folder / "elsewhere").iterdir()
    for path in source.rglob("*"):
        os.utime(path, (86400, 86400 * 365))
        path.chmod(
            path.stat().st_mode & 0o700
        )  # whether a file is a program is its content, who else may read it is not
    return build(source, folder, {"TZ": "Pacific/Chatham", "LC_ALL": "C", "PYTHONHASHSEED": "7"}, umask=0o077)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources() -> set[str]:
    """Files of the package as the working tree has them, relative to src/."""
    package = ROOT / "src" / "morphogen"
    files = (p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(ROOT / "src").as_posix() for p in files}


def faults(wheel: Path, sdist: Path) -> list[str]:
    """One sentence for everything that is missing from, or too much in, the two packages."""
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
        entry = next((z.read(n).decode() for n in names if n.endswith("dist-info/entry_points.txt")), "")
    held = {n for n in names if ".dist-info/" not in n}
    found = [f"The wheel lacks {n}." for n in sorted(sources() - held)]
    found += [f"The wheel holds {n}, which is no file of src/." for n in sorted(held - sources())]
    if "morphogen/py.typed" not in held:
        found.append("The wheel lacks morphogen/py.typed, so type checkers would ignore its types.")
    if not any(".dist-info/" in n and n.endswith("LICENSE") for n in names):
        found.append("The wheel lacks its LICENSE.")
    if "morphogen = morphogen.__main__:run" not in entry:
        found.append("The wheel defines no command `morphogen`.")
    with tarfile.open(sdist) as t:
        inside = {n.partition("/")[2] for n in t.getnames()}
    found += [f"The sdist lacks {n}." for n in IN_SDIST if n not in inside]
    found += [f"The sdist lacks src/{n}." for n in sorted(sources()) if f"src/{n}" not in inside]
    if not any(n.startswith("tests/") for n in inside):
        found.append("The sdist lacks the tests.")
    return found


def main(keep: Path | None = None) -> None:
    """Exit with 1 and the faults where there are any."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        wheel, sdist = built = build(ROOT, Path(first))
        found = faults(wheel, sdist)
        again = rebuild(sdist, Path(second))
        found += [f"{a.name} built twice differs." for a, b in zip(built, again, strict=True) if sha256(a) != sha256(b)]
        if found:
            sys.exit("\n".join(found))
        size = wheel.stat().st_size
        sums = "".join(f"{sha256(path)}  {path.name}\n" for path in built)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for path in built:
                shutil.copy(path, keep)
            (keep / "SHA256SUMS").write_text(sums)
    print(f"{wheel.name}: {len(sources())} files, {size / 1024:.0f} kB; the sdist holds the same and the tests")
    print("built again from the sdist, elsewhere, the bytes are the same:\n" + sums, end="")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
