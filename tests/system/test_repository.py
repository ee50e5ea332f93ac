"""The rules of the house that a machine can hold: who may import whom, what no file of the package may say, and what
the project promises of itself. Each rule is also shown planted breaches, which it must find.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
PACKAGE = "morphogen"

# ---- who may import whom: core <- nets <- families <- train, cli <- rings ------------------------------------------

GROUND = {"errors", "disk", "spec", "core", "checks", "laws"}
MIDDLE = {"nets"}
TOOLS = {"data", "metrics"}  # serve every family, know none: ground and nets only
FAMILIES = {
    "supervised", "flows", "diffusion", "latent", "adversarial", "autoregressive",
    "language", "rl", "align", "multimodal", "interop",
}  # fmt: skip
ENGINE = {
    "testing",
    "parallel",
    "watch",
}  # and every file at the root that is named nowhere here: train, checkpoint, hooks, ...
SURFACE = {"cli", "recipes", "__init__", "__main__"}
RINGS = {"export", "serve", "studio", "safety"}
LAYERS = (GROUND, MIDDLE, TOOLS | FAMILIES, ENGINE, SURFACE, RINGS)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
APART = {LEVEL["data"], LEVEL["serve"]}  # levels whose members may not import one another
SHARED = {  # pure functions of one family that the others may use
    "diffusion.solve", "rl.returns", "rl.losses", "adversarial.losses", "autoregressive.decode",
}  # fmt: skip


def sources(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """(dotted module name below the package, syntax tree) of every file of the package in `root`/morphogen."""
    folder = root / PACKAGE
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        yield name, ast.parse(file.read_text(encoding="utf-8"), str(file))


def is_package(root: Path, module: str) -> bool:
    return module == "__init__" or (root / PACKAGE / Path(*module.split("."))).is_dir()


def imports(root: Path, module: str, tree: ast.Module) -> Iterator[str]:
    """Full dotted names of all that a module imports anywhere, 'torch.nn' and 'morphogen.core.Model' alike."""
    own = [PACKAGE] if module == "__init__" else [PACKAGE, *module.split(".")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                up = node.level - is_package(root, module)
                base = own[: len(own) - up] + base
            yield from (".".join([*base, alias.name]) for alias in node.names)


def level(root: Path, top: str) -> int | None:
    """The level of a file or folder at the root of the package."""
    is_file = (root / PACKAGE / f"{top}.py").is_file()
    return LEVEL.get(top, LEVEL["testing"] if is_file and not top.startswith("_") else None)


def import_breaches(root: Path) -> list[str]:
    """One sentence for each import that goes against the rule."""
    found = []
    for module, tree in sources(root):
        top = module.partition(".")[0]
        mine = level(root, top)
        if mine is None:
            found.append(f"{module} has no place in the import rule: name its folder in {Path(__file__).name}.")
            continue
        for name in imports(root, module, tree):
            package, *path = name.split(".")
            if package != PACKAGE or path == ["__version__"]:
                continue
            used = path[0] if path and level(root, path[0]) is not None else "__init__"
            theirs = level(root, used)
            below = theirs < mine or (theirs == mine and mine not in APART)
            shared = top in FAMILIES and ".".join(path[:2]) in SHARED
            if used != top and not below and not shared:
                found.append(f"{module} imports {name}, which stands above it or beside it.")
    return found


def test_imports_follow_the_rule() -> None:
    assert import_breaches(SRC) == []


# ---- what no file of the package may say ---------------------------------------------------------------------------

UNPICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {  # dotted calls that unpickle, or run what a file says
    "torch.load", "torch.save", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "eval", "exec", "__import__", "builtins.eval", "builtins.exec", "os.system",
}  # fmt: skip


def dotted(node: ast.expr) -> str:
    """'a.b.c' of a name or an attribute chain, else ''."""
    if isinstance(node, ast.Name):
        return node.id
    base = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{base}.{node.attr}" if base and isinstance(node, ast.Attribute) else ""


def aliases(tree: ast.Module) -> dict[str, str]:
    """What each imported name of a file stands for: `import torch as th` gives {'th': 'torch'}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def unsafe(root: Path) -> list[str]:
    """One sentence for everything that could run code out of a file."""
    found = []
    for module, tree in sources(root):
        known = aliases(tree)
        found += [f"{module} imports {n}." for n in imports(root, module, tree) if n.partition(".")[0] in UNPICKLES]
        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                first, _, rest = dotted(node).partition(".")
                name = ".".join(filter(None, (known.get(first, first), rest)))
                if name in CALLS:
                    found.append(f"{module}:{node.lineno} uses {name}.")
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
                refused = isinstance(node.value, ast.Constant) and node.value.value is False
                found += [] if refused else [f"{module}:{node.value.lineno} sets {node.arg}."]
    return found


def distributed(root: Path) -> list[str]:
    """Files that touch torch.distributed."""
    found = []
    for module, tree in sources(root):
        known = aliases(tree)
        used = {name for name in imports(root, module, tree) if f"{name}.".startswith("torch.distributed.")}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                first, _, rest = dotted(node).partition(".")
                if f"{known.get(first, first)}.{rest}.".startswith("torch.distributed."):
                    used.add(rest)
        if used:
            found.append(module)
    return found


def test_nothing_is_unpickled_or_evaluated() -> None:
    assert unsafe(SRC) == []


def test_only_parallel_touches_torch_distributed() -> None:
    assert {module.partition(".")[0] for module in distributed(SRC)} <= {"parallel"}


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert [m for m, _ in sources(SRC) if drawers & set(m.split("."))] == []


def public(body: list[ast.stmt], inside: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The functions of a file that others may call, and the methods of its classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body, f"{inside}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield inside + node.name, node


def test_public_functions_name_their_arguments() -> None:
    """No **kwargs across a public boundary: a misspelt argument must be an error where it is written."""
    found = [
        f"{module}.{name}"
        for module, tree in sources(SRC)
        for name, function in public(tree.body)
        if function.args.kwarg and function.name != "cond"  # Space.cond: the words are the space's own
    ]
    assert found == []


BREACHES = {
    "family imports family": ("diffusion/chain.py", "from ..flows import glow", import_breaches),
    "family imports family by its full name": ("rl/ppo.py", "import morphogen.language.tokens", import_breaches),
    "core imports a net": ("core.py", "from .nets.mlp import MLP", import_breaches),
    "net imports a family": ("nets/unet.py", "def f():\n    from ..diffusion.path import VP", import_breaches),
    "metric imports a family": (
        "metrics/frechet.py",
        "from ..supervised.classifier import Classifier",
        import_breaches,
    ),
    "family imports the trainer": ("rl/__init__.py", "from ..train import Trainer", import_breaches),
    "trainer imports a recipe": ("train.py", "from .recipes.digits import digits_diffusion", import_breaches),
    "library imports a ring": ("cli.py", "from morphogen.serve import app", import_breaches),
    "library imports its front door": ("data/digits.py", "from .. import Data", import_breaches),
    "a module without a place": ("stuff/__init__.py", "", import_breaches),
    "pickle": ("a.py", "import pickle", unsafe),
    "pickle, inside": ("a.py", "def f():\n    from cloudpickle import loads", unsafe),
    "torch.load": ("a.py", "import torch\ntorch.load('x')", unsafe),
    "torch.load by another name": ("a.py", "from torch import load as read\nread('x')", unsafe),
    "torch.load through an alias": ("a.py", "import torch as th\nf = th.load", unsafe),
    "eval": ("a.py", "eval('1')", unsafe),
    "exec": ("a.py", "run = exec", unsafe),
    "yaml.load": ("a.py", "import yaml\nyaml.load(f)", unsafe),
    "numpy pickles": ("a.py", "import numpy as np\nnp.load('x', allow_pickle=True)", unsafe),
    "numpy pickles by a variable": ("a.py", "import numpy as np\nnp.load('x', allow_pickle=flag)", unsafe),
    "torch.distributed": ("a.py", "import torch.distributed as dist", distributed),
    "torch.distributed, from": ("a.py", "from torch import distributed", distributed),
    "torch.distributed, as an attribute": ("a.py", "import torch\ntorch.distributed.barrier()", distributed),
}
ALLOWED = {
    "family imports a shared formula": ("align/denoising.py", "from ..diffusion.solve import ddim", import_breaches),
    "everything below": ("train.py", "from . import __version__, core\nfrom .nets import mlp", import_breaches),
    "ring imports the front door": ("serve/app.py", "import morphogen as mg\nmg.load", import_breaches),
    "model.eval()": ("a.py", "model.eval()\nre.compile('x')\ntorch.compile(net)\nmodel.load('x')", unsafe),
    "allow_pickle=False": ("a.py", "np.load('x', allow_pickle=False)", unsafe),
    "torch alone": ("a.py", "import torch\nfrom torch import nn", distributed),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_breaches_are_found(breach: str, tmp_path: Path) -> None:
    name, text, rule = BREACHES[breach]
    file = tmp_path / PACKAGE / name
    file.parent.mkdir(parents=True)
    file.write_text(text + "\n", encoding="utf-8")
    assert len(rule(tmp_path)) == 1


@pytest.mark.parametrize("case", ALLOWED)
def test_what_is_allowed_passes(case: str, tmp_path: Path) -> None:
    name, text, rule = ALLOWED[case]
    file = tmp_path / PACKAGE / name
    file.parent.mkdir(parents=True)
    file.write_text(text + "\n", encoding="utf-8")
    assert rule(tmp_path) == []


# ---- what an import costs ------------------------------------------------------------------------------------------


def fresh(code: str) -> str:
    """What `code` prints in an interpreter of its own."""
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_quick_and_leaves_torch_alone() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import morphogen; t = time.perf_counter() - t;"
        "print(t, *(m for m in ('torch', 'numpy', 'PIL', 'tyro') if m in sys.modules))"
    )
    runs = [fresh(code).split() for _ in range(5)]
    assert runs[0][1:] == []
    assert min(float(r[0]) for r in runs) < 0.3  # seconds; the best, since other programs share the machine


def test_every_public_name_resolves() -> None:
    assert fresh("import morphogen as mg; print(*(n for n in dir(mg) if not hasattr(mg, n)))") == ""


def test_recipes_import_no_torch() -> None:
    files = sorted((SRC / PACKAGE / "recipes").glob("*.py"))
    names = [f"{PACKAGE}.recipes" + f".{p.stem}" * (p.stem != "__init__") for p in files]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print('torch' in sys.modules)"
    assert fresh(code) == "False"


def test_help_is_quick_and_leaves_torch_alone() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); sys.argv = ['morphogen', '--help']\n"
        "from morphogen.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(); print(time.perf_counter() - t, 'torch' in sys.modules)"
    )
    runs = [fresh(code).splitlines()[-1].split() for _ in range(5)]
    assert runs[0][1] == "False"
    assert min(float(r[0]) for r in runs) < 0.5


# ---- what the project says of itself -------------------------------------------------------------------------------


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_constraints_pin_every_dependency_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    table = project()
    groups = [*table["dependency-groups"].values(), *table["project"]["optional-dependencies"].values()]
    wanted = [*table["project"]["dependencies"], *table["build-system"]["requires"], *(w for g in groups for w in g)]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", w)[0]).lower() for w in wanted}
    assert names <= pinned
    assert pins["torch"] == "2.13.0"


def test_the_changelog_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", text, re.MULTILINE)[1] == project()["project"]["version"]


def test_every_cited_paper_stands_in_the_list() -> None:
    number = re.compile(r"arXiv[:\s]\s*(\d{4}\.\d{5})", re.IGNORECASE)
    listed = set(number.findall((ROOT / "docs" / "papers.md").read_text(encoding="utf-8")))
    cited = {n: f.name for f in SRC.rglob("*.py") for n in number.findall(f.read_text(encoding="utf-8"))}
    assert {n: name for n, name in cited.items() if n not in listed} == {}


def test_make_help_explains_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split()
    explained = re.findall(r"^([a-z-]+):[^\n]*## .+$", text, re.MULTILINE)
    assert sorted(targets) == sorted(explained)
    assert {"demo", "test", "slow", "check", "bench", "evidence", "docs", "clean", "help"} <= set(targets)
