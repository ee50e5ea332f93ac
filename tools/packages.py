"""Build wheel and sdist in a scratch folder and check what they hold: every module and data file of the package,
the marker of its types, the licence, the entry point; in the sdist also what is needed to test it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt")


def build(folder: Path) -> tuple[Path, Path]:
    """(wheel, sdist), the wheel built from the sdist, as an installer would."""
    env = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_QUIET": "2"}
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout + "\npython -m build failed: its output is above.")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


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
    if "morphogen = morphogen.cli:main" not in entry:
        found.append("The wheel defines no command `morphogen`.")
    with tarfile.open(sdist) as t:
        inside = {n.partition("/")[2] for n in t.getnames()}
    found += [f"The sdist lacks {n}." for n in IN_SDIST if n not in inside]
    found += [f"The sdist lacks src/{n}." for n in sorted(sources()) if f"src/{n}" not in inside]
    if not any(n.startswith("tests/") for n in inside):
        found.append("The sdist lacks the tests.")
    return found


def main() -> None:
    """Exit with 1 and the faults where there are any."""
    with tempfile.TemporaryDirectory() as folder:
        wheel, sdist = build(Path(folder))
        found = faults(wheel, sdist)
        size = wheel.stat().st_size
        name = wheel.name
    if found:
        sys.exit("\n".join(found))
    print(f"{name}: {len(sources())} files, {size / 1024:.0f} kB; the sdist holds the same and the tests")


if __name__ == "__main__":
    main()
