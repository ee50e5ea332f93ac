"""What is shipped and what it does where it is installed: the lock, the bill of materials, and that nothing reaches or
writes outside. Each check is shown planted breaches, which it must find.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE, WHOLE = ((ROOT / f"requirements{kind}.txt").read_text(encoding="utf-8") for kind in ("", "-all"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


def name_of(requirement: str) -> str:
    """The normalised name at the beginning of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


# ---- the lock ------------------------------------------------------------------------------------------------------


def pins(lock: str) -> dict[str, tuple[str, list[str]]]:
    """Of each package of a lock its version and the SHA-256 of its files. Refuses a line that it does not know."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in lock.replace("\\\n", "").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        package = re.fullmatch(r"([a-z0-9-]+)==([\w.+]+)( ; [^;]+?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        assert package, f"no exact version with hashes: {line[:80]}"
        found[package[1]] = package[2], re.findall(r"sha256:(\w+)", package[4])
    return found


def faults(lock: str, wanted: list[str], constraints: str) -> list[str]:
    """One sentence for each thing that is wrong with a lock."""
    locked = pins(lock)
    found = [f"{name_of(w)} is missing" for w in wanted if name_of(w) not in locked]
    for line in constraints.splitlines():
        if "==" in line and not line.startswith("#"):
            name, version = name_of(line), line.partition("==")[2]
            if name in locked and locked[name][0] != version:
                found.append(f"{name} is {locked[name][0]}, constraints.txt says {version}")
    return found + [f"it names a host: {word}" for word in re.findall(r"\S*(?:://|index-url|find-links)\S*", lock)]


EXTRAS = [w for extra in PROJECT["optional-dependencies"].values() for w in extra]


@pytest.mark.parametrize(("lock", "wanted"), [(BASE, []), (WHOLE, EXTRAS)], ids=["base", "extras"])
def test_the_lock_pins_every_dependency_by_hash(lock: str, wanted: list[str]) -> None:
    assert faults(lock, [*PROJECT["dependencies"], *wanted], CONSTRAINTS) == []


def test_the_two_locks_agree() -> None:
    assert pins(BASE).items() <= pins(WHOLE).items()


A = "a==1 --hash=sha256:" + "0" * 64
BROKEN = {
    "a dependency is missing": (f"{A}\n", ["a", "b>=2"], "", "b is missing"),
    "another version than the constraints'": (f"{A}\n", ["a"], "A==2", "constraints.txt says 2"),
    "an index is named": (f"# --index-url=file://x\n{A}\n", ["a"], "", "names a host"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_faults_of_a_lock_are_found(case: str) -> None:
    lock, wanted, constraints, said = BROKEN[case]
    (found,) = faults(lock, wanted, constraints)
    assert said in found


@pytest.mark.parametrize("line", ["a==1", "a>=1 --hash=sha256:" + "0" * 64, "a @ file:///x", A[:-1], "-e ."])
def test_a_line_without_version_or_hash_is_refused(line: str) -> None:
    with pytest.raises(AssertionError, match="no exact version"):
        pins(line + "\n")


# ---- the bill of materials -----------------------------------------------------------------------------------------


def tool(name: str) -> Any:
    """A file of tools/ as a module."""
    found = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_who_needs_whom_is_read_from_the_lock() -> None:
    needs = tool("sbom").needed_by(WHOLE)
    assert set(needs) == set(pins(WHOLE))
    assert {u for users in needs.values() for u in users} <= {*needs, "morphogen"}
    assert all(needs.values())  # nothing is there that nobody asked for
    direct = {name for name, users in needs.items() if "morphogen" in users}
    assert direct == {name_of(w) for w in [*PROJECT["dependencies"], *EXTRAS]}
    assert needs["jinja2"] == {"torch"}
    assert needs["markupsafe"] == {"jinja2"}


def test_the_bill_of_materials_is_whole_and_keeps_its_standard(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom is not installed (make release installs it)")
    pages = []
    for target in (tmp_path / "a.json", tmp_path / "b.json"):
        tool("sbom").main(ROOT / "requirements.txt", ROOT / "requirements-all.txt", target)
        pages.append(target.read_bytes())
    assert pages[0] == pages[1]
    page = json.loads(pages[0])
    listed = {c["name"]: c for c in page["components"]}
    assert {n: (c["version"], hashes_of(c)) for n, c in listed.items()} == {
        n: (v, sorted(h)) for n, (v, h) in pins(WHOLE).items()
    }
    assert {n for n, c in listed.items() if c["scope"] == "required"} == set(pins(BASE))
    refs = {c["bom-ref"] for c in listed.values()} | {page["metadata"]["component"]["bom-ref"]}
    assert {d["ref"] for d in page["dependencies"]} == refs
    assert {r for d in page["dependencies"] for r in d["dependsOn"]} < refs


def hashes_of(component: dict[str, Any]) -> list[str]:
    return sorted(h["content"] for r in component["externalReferences"] for h in r.get("hashes", []))


# ---- nothing is asked of a network, nothing is written outside -----------------------------------------------------


def outside(tmp: Path, steps: dict[str, str], also: tuple[str, ...] = ()) -> tuple[dict[str, list[str]], bool]:
    """What each step did outside of tmp/run and tmp/cache, and whether the kernel watched too (see fence.py)."""
    for folder in ("home", "temporary", "run", "cache", "start"):
        (tmp / folder).mkdir()
    inside = [str(tmp / folder) for folder in ("run", "cache", *also)]
    env = {
        "PATH": os.environ["PATH"], "HOME": str(tmp / "home"), "TMPDIR": str(tmp / "temporary"),
        "MORPHOGEN_CACHE": str(tmp / "cache"), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # Python's own memory of modules lies beside them
    }  # fmt: skip
    command = [sys.executable, str(HERE / "fence.py"), json.dumps({"inside": inside, "steps": steps})]
    done = subprocess.run(command, cwd=tmp / "start", env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    page = json.loads(done.stdout.splitlines()[-1])
    found = {k: v["did"] + [f"raised: {v['raised']}"] * bool(v["raised"]) for k, v in page["steps"].items()}
    left = [f"left: {p}" for folder in ("home", "temporary", "start") for p in (tmp / folder).rglob("*")]
    return {step: did + left for step, did in found.items()}, page["kernel"]


def typed(*words: str | Path) -> str:
    """The code that types a command."""
    return f"from morphogen.cli import main\nassert main({[str(w) for w in words]!r}) == 0"


def test_import_train_sample_evaluate_and_load_stay_inside(tmp_path: Path) -> None:
    """A whole life of a run, heard by the audit hook, and fenced by the kernel where it can be."""
    own, run, judge = HERE / "tiny.py", tmp_path / "run" / "blurs", tmp_path / "run" / "judge"
    everything = (
        "import importlib, pkgutil, morphogen\n"
        "for m in pkgutil.walk_packages(morphogen.__path__, 'morphogen.'):\n"
        "    m.name.endswith('__main__') or importlib.import_module(m.name)"
    )
    steps = {
        "import": everything,
        "train": typed("train", f"{own}:blurs", "--run", run, "--steps", "4"),
        "train a judge": typed("train", "digits-classifier", "--run", judge, "--epochs", "1", "--width", "4"),
        "check": typed("train", f"{own}:blurs", "--check"),
        "sample": typed("sample", run, "--with", own, "--n", "4", "--out", run / "four.png"),
        "evaluate": typed("evaluate", run, "--with", own, "--n", "20", "--judge", judge, "--likelihood", "4"),
        "verify": typed("runs", "verify", run, "--with", own, "--steps", "2"),
        "report": typed("runs", "report", run),
        "load": f"import tiny\nrun = morphogen.load({str(run)!r}, modules=[tiny])\nmorphogen.draw(run.model, 2)",
    }
    found, _ = outside(tmp_path, steps)
    assert found == {step: [] for step in steps}
    assert not list((tmp_path / "cache" / "trials").iterdir())


@pytest.mark.slow
def test_compiled_training_leaves_headers_alone_outside(tmp_path: Path) -> None:
    """torch.compile starts a compiler; compiled headers torch keeps in the temporary folder, whatever it is told."""
    code = (
        "import torch\nfrom morphogen.device import choose_device, compiler_works\nchoose_device('cpu')\n"
        "assert compiler_works()\nnet = torch.nn.Linear(4, 4)\nnet.compile()\nnet(torch.ones(2, 4)).sum().backward()"
    )
    found, _ = outside(tmp_path, {"compile": code}, also=("temporary",))
    known = (
        "starts: subprocess.Popen",
        f"left: {tmp_path}/temporary/torchinductor_",
        f"writes: os.mkdir {tmp_path}/start",
    )
    assert [d for d in found["compile"] if not d.startswith(known)] == []
    assert not list((tmp_path / "start").iterdir())
    assert list((tmp_path / "cache" / "compiled").rglob("*.so"))


PLANTED = {
    "a connection": "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
    "a question of names": "import socket\nsocket.gethostbyname('localhost')",
    "a datagram": "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    "a server": "import socket\nsocket.socket().bind(('127.0.0.1', 0))",
    "a page": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/', timeout=1)",
    "a program": "import subprocess\nsubprocess.run(['true'])",
    "a shell": "import os\nos.system('true')",
    "a file": "open('x', 'w')",
    "a file, low down": "import os\nos.open('x', os.O_CREAT | os.O_WRONLY)",
    "a file, appended to": "from pathlib import Path\nPath.home().joinpath('x').open('a')",
    "a folder": "from pathlib import Path\nPath.home().joinpath('.morphogen').mkdir()",
    "a temporary file": "import tempfile\ntempfile.NamedTemporaryFile()",
    "a link": "import os\nos.symlink('/', 'x')",
    "a file moved out": "import os\nopen(os.environ['MORPHOGEN_CACHE'] + '/x', 'w').close()\n"
    "os.rename(os.environ['MORPHOGEN_CACHE'] + '/x', 'x')",
    "a file removed": "import os\nos.remove(os.environ['HOME'] + '/x')",
    "the way out": "import os\nopen(os.environ['MORPHOGEN_CACHE'] + '/../home/x', 'w')",
    "a data base": "import sqlite3\nsqlite3.connect('x')",
}  # fmt: skip


def test_planted_breaches_are_found_and_what_is_inside_is_not(tmp_path: Path) -> None:
    allowed = "import os\nopen(os.environ['MORPHOGEN_CACHE'] + '/y', 'w').write('x')\nopen(os.devnull, 'w').close()"
    reading = "import os\nopen('/etc/hosts').read()\nos.listdir('/')"
    found, _ = outside(tmp_path, {"inside": allowed, "reading": reading, **PLANTED})
    heard = {k: [d for d in v if d.startswith(("sends", "starts", "writes"))] for k, v in found.items()}
    assert heard.pop("inside") == heard.pop("reading") == []
    assert {k for k, v in heard.items() if not v} == set()


def test_the_kernel_stops_compiled_code_too(tmp_path: Path) -> None:
    """safetensors writes from Rust, of which no audit hook hears."""
    code = (
        "import os, torch\nfrom safetensors.torch import save_file\n"
        "save_file({{'x': torch.ones(1)}}, os.environ[{!r}] + '/x')"
    )
    found, kernel = outside(tmp_path, {"inside": code.format("MORPHOGEN_CACHE"), "outside": code.format("HOME")})
    if not kernel:
        pytest.skip("this kernel has no Landlock, so compiled code is not watched")
    assert found["inside"] == []
    assert len(found["outside"]) == 1
    assert "ermission" in found["outside"][0]


# ---- what SECURITY.md says -----------------------------------------------------------------------------------------


def unheld(page: str, root: Path) -> list[str]:
    """The tests that a page names and that are not there."""
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", page)
    assert named
    return [
        f"{f}::{t}" for f, t in named if not (root / f).is_file() or f"def {t}(" not in (root / f).read_text("utf-8")
    ]


def test_every_claim_of_security_names_a_test_that_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert unheld(page, ROOT) == []
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row for row in rows if "::test_" not in row] == []


def test_a_claim_without_its_test_is_found() -> None:
    here = f"tests/system/{Path(__file__).name}"
    page = f"{here}::test_a_claim_without_its_test_is_found {here}::test_of_nothing tests/none.py::test_a"
    assert unheld(page, ROOT) == [f"{here}::test_of_nothing", "tests/none.py::test_a"]
