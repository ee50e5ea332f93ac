"""What a shell offers at Tab: by the completer itself, and by the shells that are here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from morphogen.cli import _COMMON, VERBS, main
from morphogen.cli.completion import candidates
from morphogen.cli.flags import flags_of
from morphogen.cli.recipe import find
from morphogen.data import table
from morphogen.recipes import names

SRC = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(autouse=True)
def _folder(elsewhere: None, tmp_path: Path) -> None:
    """Runs a-0 and a-1 in runs/, a record docs/b, and a file."""
    for run in ("runs/a-0", "runs/a-1", "docs/b"):
        (tmp_path / run / "checkpoints" / "00000040").mkdir(parents=True)
        (tmp_path / run / "spec.json").write_text("{}")
    (tmp_path / "mine.py").write_text("def cats(): ...\n")


def offered(typed: str) -> list[str]:
    """Candidates for the last word; a line that ends in a blank asks for the next one."""
    words = shlex.split(typed) + ([""] if typed.endswith(" ") or not typed else [])
    return [word for word, _ in candidates(words, VERBS, _COMMON)]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("", list(VERBS)),
        ("ev", ["evaluate"]),
        ("--v", ["--version"]),
        ("nonsense ", []),
        ("runs ", list(VERBS["runs"])),  # type: ignore[arg-type]
        ("runs nonsense ", []),
        ("data s", ["show"]),
        ("data show ", table.names()),
        ("data show mn", ["mnist"]),
        ("train ", names()),
        ("train digits-d", ["digits-diffusion", "digits-dit"]),
        ("plan digits-d", ["digits-diffusion", "digits-dit"]),
        ("scale digits-diffusion --pres", ["--preset"]),
        ("train mine.p", []),  # the shell itself completes files
        ("train digits-diffusion --preset ", ["rectified_flow", "edm", "ddpm"]),
        ("train digits-diffusion --preset=ed", ["--preset=edm"]),
        ("train digits-diffusion --preset = ed", ["edm"]),  # as bash takes it apart
        ("train digits-diffusion --preset =", ["rectified_flow", "edm", "ddpm"]),
        ("train digits-diffusion --preset edm --pre", []),  # it was given
        ("train --preset ", names()),  # whose flag it is is not known yet
        ("train digits-diffusion --wid", ["--width"]),
        ("train digits_diffusion --wid", ["--width"]),
        ("train digits-diffusion --steps ", []),
        ("train mine.py:cats --se", ["--seed"]),
        ("train --device c", ["cpu", "cuda"]),
        ("train --like ", ["runs/a-0", "runs/a-1", "docs/", "runs/"]),
        ("sample ", ["runs/a-0", "runs/a-1", "docs/", "runs/"]),
        ("sample ru", ["runs/"]),
        ("sample runs/", ["runs/a-0", "runs/a-1"]),
        ("sample ./docs/", ["./docs/b"]),
        ("sample runs/a-0 --ch", ["--checkpoint"]),
        ("sample runs/a-0 --checkpoint ", ["newest", "best", "40"]),
        ("sample --n 3 runs/a-1", ["runs/a-1"]),
        ("sample runs/a-0 --label 3 4 --see", ["--seed"]),
        ("evaluate runs/a-0 --judge runs/", ["runs/a-0", "runs/a-1"]),
        ("evaluate runs/a-0 runs/", ["runs/a-0", "runs/a-1"]),
        ("evaluate runs/a-0 runs/a-1 --gr", ["--greedy"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("doctor --f", ["--folder"]),
    ],
)
def test_what_may_stand_there_is_offered(typed: str, expected: list[str]) -> None:
    assert offered(typed) == expected


def test_every_flag_of_every_verb_is_offered() -> None:
    """All that the parser takes, and no more."""
    leaves = {k: v for k, v in VERBS.items() if not isinstance(v, dict)}
    leaves |= {f"{g} {k}": v for g, group in VERBS.items() if isinstance(group, dict) for k, v in group.items()}
    common = [spelled for spelled, _ in _COMMON]
    for line, verb in leaves.items():
        own = [f.spelled for f in flags_of(verb.do, skip=("context",), positional=True) if not f.positional]
        assert offered(f"{line} --") == own + common
    for recipe in names():
        flags = find(recipe).flags
        switched = [f"--no-{f.spelled[2:]}" if f.switch and f.default is True else f.spelled for f in flags]
        assert set(switched) <= set(offered(f"train {recipe} --")), recipe


def test_a_file_of_the_users_is_not_run_for_a_tab(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("open('ran', 'w')\ndef cats(): ...\n")
    offered("train mine.py:cats --")
    assert not (tmp_path / "ran").exists()


def test_it_is_quick_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from morphogen.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    times = []
    for _ in range(5):
        began = time.perf_counter()
        asked = [sys.executable, "-c", code, "--complete", "train", "digits-diffusion", "--preset", ""]
        done = subprocess.run(asked, env=env, capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["rectified_flow", "edm", "ddpm"]
    print(f"\ntab_ms={1000 * min(times):.0f}")
    assert min(times) < 0.4


# ---- the shells themselves -----------------------------------------------------------------------------------------

_BASH = """
eval "$(morphogen completion bash)"
ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _morphogen; printf '%s\\n' "${{COMPREPLY[@]}}"; }}
complete -p morphogen >/dev/null && ask {words}
"""
_ZSH = """
autoload -Uz compinit && compinit -u -d ./zcompdump
eval "$(morphogen completion zsh)"
_describe() {{ print -l -- ${{(P)2}}; }}
_files() {{ print FILES; }}
words=({words}); CURRENT=$#words; _morphogen
"""
_FISH = """
morphogen completion fish | source
complete -C {line}
"""


def _shell(name: str, script: str, tmp_path: Path) -> list[str]:
    there = shutil.which(name)
    if there is None:
        pytest.skip(f"{name} is not installed here")
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "morphogen"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m morphogen "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(SRC), "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    plain = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    done = subprocess.run(
        [there, *plain, "-c", script], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


_ASKED = [
    (["morphogen", "ev"], ["evaluate"]),
    (["morphogen", "train", "digits-d"], ["digits-diffusion", "digits-dit"]),
    (["morphogen", "train", "digits-diffusion", "--preset", ""], ["rectified_flow", "edm", "ddpm"]),
    (["morphogen", "sample", "runs/a"], ["runs/a-0", "runs/a-1"]),
]


@pytest.mark.parametrize(("words", "expected"), _ASKED)
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    assert _shell("bash", _BASH.format(words=shlex.join(words)), tmp_path) == expected


@pytest.mark.parametrize(("words", "expected"), _ASKED)
def test_zsh_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    told = _shell("zsh", _ZSH.format(words=shlex.join(words)), tmp_path)
    assert [line.partition(":")[0] for line in told] == expected


@pytest.mark.parametrize(("words", "expected"), _ASKED)
def test_fish_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    told = _shell("fish", _FISH.format(line=shlex.quote(" ".join(words))), tmp_path)
    assert sorted(line.partition("\t")[0] for line in told) == sorted(expected)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_whole(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "--complete" in out
    assert "morphogen" in out.splitlines()[-1]
