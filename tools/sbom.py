"""The software bill of materials of a release, as CycloneDX JSON: made by `cyclonedx-bom` from the lock, which says of
each package its version and the SHA-256 of its files, and completed by what the lock says beside it: who needs whom,
and what only extras bring.

    python tools/sbom.py requirements.txt requirements-all.txt dist/morphogen.cdx.json

The same lock gives the same bytes. Nothing is asked of any network.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "morphogen"


def needed_by(lock: str) -> dict[str, set[str]]:
    """Who asks for each package of a lock, by its comments "# via …"; the project itself among them."""
    needs: dict[str, set[str]] = {}
    name = ""
    for line in lock.splitlines():
        if package := re.match(r"([a-z0-9-]+)==", line):
            name = package[1]
            needs[name] = set()
        elif comment := re.match(r"    #(?: via)?\s+(?!via$)(.+)", line):
            who = comment[1].removesuffix(" (pyproject.toml)")
            if not who.startswith("-"):  # a file of constraints needs nothing
                needs[name].add(who)
    return needs


def made(lock: Path) -> dict[str, Any]:
    """The tool's own account of a lock."""
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "requirements",
        str(lock),
        "--pyproject",
        str(ROOT / "pyproject.toml"),
    ]
    command += ["--mc-type", "library", "--sv", "1.6", "--of", "JSON", "--output-reproducible"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\ncyclonedx_py failed: its output is above.")
    page: dict[str, Any] = json.loads(done.stdout)
    return page


def completed(page: dict[str, Any], base: str, whole: str) -> dict[str, Any]:
    """The page with references by name and version, edges between them, and a scope of each component."""
    needs, required = needed_by(whole), needed_by(base)
    root = page["metadata"]["component"]
    refs = {c["name"]: c["purl"] for c in page["components"]} | {PROJECT: root["bom-ref"]}
    for component in page["components"]:
        component["bom-ref"] = component["purl"]
        component["scope"] = "required" if component["name"] in required else "optional"
        del component["description"]  # the lock's lines once more
    edges: dict[str, set[str]] = {ref: set() for ref in refs.values()}
    for name, users in needs.items():
        for user in users:
            edges[refs[user]].add(refs[name])
    page["dependencies"] = [{"ref": ref, "dependsOn": sorted(of)} for ref, of in sorted(edges.items())]
    page["components"].sort(key=lambda c: c["bom-ref"])
    return page


def main(base: Path, whole: Path, target: Path) -> None:
    """Write the page of `whole`, once the standard's own schema finds no fault in it."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    page = completed(made(whole), base.read_text(encoding="utf-8"), whole.read_text(encoding="utf-8"))
    text = json.dumps(page, indent=1, sort_keys=True) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"The SBOM breaks its standard: {fault}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"{target}: {len(page['components'])} components, CycloneDX {page['specVersion']}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
