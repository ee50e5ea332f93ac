"""The command line: every verb on a run so small that it trains in a moment, every known mistake, every exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest
import torch

from morphogen.cli import VERBS, main
from morphogen.cli.flags import REQUIRED, Flag, flags_of, restored
from morphogen.cli.line import convert, finish, scan
from morphogen.core import Noise, keys
from morphogen.errors import UserError

SRC = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(autouse=True)
def _elsewhere(elsewhere: None) -> None:
    """Every command here starts in an empty folder."""


def run(typed: str) -> int:
    return main(shlex.split(typed))


# ---- flags ---------------------------------------------------------------------------------------------------------


def dials(
    steps: int = 10,
    lr: float = 1e-3,
    kind: Literal["a", "b"] = "a",
    sizes: tuple[int, ...] = (1,),
    span: tuple[float, float] = (0.0, 1.0),
    flip: bool = False,
    where: Path | None = None,
    count: int | None = 3,
    tensor: torch.Tensor | None = None,
    choice: torch.Tensor | str | None = None,
) -> None:
    """Turn dials.

    More of it: with a colon.

    steps, count: whole numbers. lr: a number, e.g. 0.1. kind: which.
    sizes: several
        over two lines.
    where: a path

    Raises nothing.
    """


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("", {}),
        ("--steps 5", {"steps": 5}),
        ("--steps=1_000", {"steps": 1000}),
        ("--steps 1e4", {"steps": 10000}),
        ("--steps -3", {"steps": -3}),
        ("--lr -1e-3", {"lr": -0.001}),
        ("--kind b --flip", {"kind": "b", "flip": True}),
        ("--no-flip", {"flip": False}),
        ("--flip=true", {"flip": True}),
        ("--sizes 1 -2 3 --lr 2", {"sizes": (1, -2, 3), "lr": 2.0}),
        ("--span 0.1 0.9", {"span": (0.1, 0.9)}),
        ("--where a/b", {"where": Path("a/b")}),
        ("--where none", {"where": None}),
        ("--count none", {"count": None}),
        ("--choice heun", {"choice": "heun"}),
    ],
)
def test_flags_are_what_the_signature_says(typed: str, expected: dict[str, object]) -> None:
    flags = flags_of(dials)
    found = scan(shlex.split(typed), flags, "cmd")
    assert found.values == expected
    assert not found.rest
    assert {k: type(v) for k, v in found.values.items()} == {k: type(v) for k, v in expected.items()}
    # the same by the way of a recipe's flags, which a first scan does not know
    assert finish(scan(shlex.split(typed), [], "cmd").rest, flags, "dials", "cmd") == expected


def test_a_docstring_explains_its_arguments() -> None:
    texts = {f.name: f.text for f in flags_of(dials)}
    assert texts["steps"] == texts["count"] == "whole numbers"
    assert texts["lr"] == "a number, e.g. 0.1"
    assert texts["sizes"] == "several over two lines"
    assert texts["where"] == "a path"
    assert "tensor" not in texts
    assert texts["span"] == ""


def test_names_that_are_explained_together_may_stand_on_two_lines() -> None:
    def broken(first: int = 1, second: int = 2, third: int = 3, last: int = 4) -> None:
        """Counts.

        first: one; with first and second it is two. second,
        third: what comes after. last:
        the end. It may be long.
        """

    texts = {f.name: f.text for f in flags_of(broken)}
    assert texts["first"] == "one; with first and second it is two"
    assert texts["second"] == texts["third"] == "what comes after"
    assert texts["last"] == "the end. It may be long"


def test_every_flag_of_every_verb_is_explained() -> None:
    verbs = [one for verb in VERBS.values() for one in (verb.values() if isinstance(verb, dict) else [verb])]
    for verb in verbs:
        flags = flags_of(verb.do, skip=("context",))
        heads = re.compile(rf"(?:^|[.;:)] |, )(?:{'|'.join(f.name for f in flags)}): ")
        assert {f.name: f.text for f in flags if not f.text or heads.search(f.text)} == {}, verb.do.__name__


def test_values_survive_json() -> None:
    by_name = {f.name: f for f in flags_of(dials)}
    for name, value in {"sizes": (1, 2), "span": (0.5, 1.0), "kind": "b", "where": Path("x")}.items():
        held = json.loads(json.dumps(value if not isinstance(value, Path) else str(value)))
        assert restored(by_name[name], held) == value


def test_positions_may_stand_among_known_flags() -> None:
    def verb(run: Path, *, n: int = 3, label: tuple[str, ...] = (), fast: bool = False) -> None: ...

    flags = flags_of(verb, positional=True)
    for typed in ("r --n 4 --fast", "--n 4 r --fast", "--fast --n 4 r", "--fast r --n=4"):
        assert scan(typed.split(), flags, "cmd").values == {"run": Path("r"), "n": 4, "fast": True}
    assert scan(["r", "--other", "1", "2", "--n", "4"], flags, "cmd").rest == [("--other", ["1", "2"])]
    with pytest.raises(UserError, match="RUN is missing"):
        scan(["--label", "3", "r"], flags, "cmd")


def test_a_fixed_number_of_values_is_held() -> None:
    with pytest.raises(UserError, match="takes 2 values, but was given 3"):
        convert(Flag("span", tuple[float, float], REQUIRED, ""), ["1", "2", "3"])


# ---- verbs ---------------------------------------------------------------------------------------------------------


def test_a_run_is_made_and_says_what_to_type_next(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"train {world['own']}:blurs --seed 3 --steps 6") == 0
    out, _ = capsys.readouterr()
    path = Path("runs/blurs-3")
    for name in ("spec.json", "log.jsonl", "result.json", "report.html", "recipe.py", "samples/00000006.png"):
        assert (path / name).is_file(), name
        if name.split("/")[0] in ("report.html", "samples"):
            assert str(path / name) in out
    assert (path / "recipe.py").read_bytes() == Path(world["own"]).read_bytes()
    result = json.loads((path / "result.json").read_text())
    assert result["state"] == "finished"
    assert result["step"] == 6
    assert result["parameters"] == 641
    assert {"cpu", "cores", "threads", "torch", "python"} <= set(result["machine"])
    assert result["command"].startswith("morphogen train")
    assert result["best"]["metric"] == "loss"
    commands = [line.strip() for line in out.partition("Next:\n")[2].splitlines()]
    assert len(commands) == 2
    assert run(commands[0].removeprefix("morphogen ")) == 0  # what it says can be typed
    assert Path("samples.png").is_file()
    out, _ = capsys.readouterr()
    assert "samples of 5" in out


def test_weights_are_a_function_of_spec_and_seed(world: dict[str, str]) -> None:
    from morphogen.checkpoint import Checkpoints

    torch.manual_seed(1)
    run(f"train {world['own']}:blurs --run a --steps 4")
    torch.manual_seed(2)
    run(f"train {world['own']}:blurs --run b --steps 4")
    run(f"train {world['own']}:blurs --run c --steps 4 --seed 1")
    first = {r: Checkpoints(Path(r)).load(0)["model"]["mean"] for r in "abc"}
    assert torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], first["c"])


def test_a_run_is_continued_and_started_like_another(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"train {world['own']}:blurs --run one --steps 6 --widths 7 8 --note x") == 0
    assert run(f"train {world['own']}:blurs --run one --steps 6 --widths 7 8 --note x") == 0
    assert "one is finished: all it has to do was done at step 6" in capsys.readouterr().err
    assert run(f"train {world['own']}:blurs --run two --like one --note y --seed 1") == 0
    page = json.loads(Path("two/spec.json").read_text())
    kept = page["recipe"]["arguments"]
    assert (kept["steps"], kept["widths"], kept["note"], page["seed"]) == (6, [7, 8], "y", 1)
    assert run("train digits-classifier --run three --epochs 1 --width 4 --seed 9") == 0
    assert run("train --run three") == 0  # the run itself says what it is
    assert run("train --like three --run four --width 5") == 0
    assert json.loads(Path("four/spec.json").read_text())["recipe"]["arguments"]["width"] == 5


def test_samples_depend_on_seed_and_place_alone(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    sample = f"sample {world['run']} --with {world['own']}"
    assert run(f"{sample} --n 5 --label 3 8 --seed 1 --out five.npy") == 0
    assert run(f"{sample} --n 9 --class 3 8 --seed 1 --out deep/nine.npy") == 0
    five, nine = np.load("five.npy"), np.load("deep/nine.npy")
    assert five.shape == (5, 1, 8, 8)
    assert (five == nine[:5]).all()
    assert run(f"{sample} --n 3 --out folder --checkpoint 4 --guidance 2 --kind sharp") == 0
    assert sorted(p.name for p in Path("folder").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert run(f"{sample} --n 6 --columns 3 --checkpoint best --label none --out grid.png") == 0
    from PIL import Image

    width, height = Image.open("grid.png").size
    assert width > height
    out, _ = capsys.readouterr()
    assert "guidance 2.0, kind sharp" in out
    assert "of no class" in out


def test_a_generator_is_measured(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    typed = f"evaluate {world['run']} --with {world['own']} --n 60 --judge {world['reader']} --guidance 1.25"
    assert run(f"{typed} --likelihood 50") == 0
    page = json.loads(Path(world["run"], "evaluation.json").read_text())
    assert page["options"] == {"guidance": 1.25}
    assert page["n"] == 60
    assert {"judge", "agreement", "useful", "memorised", "frechet", "floor", "log_prob", "bits/dim"} == set(
        page["measures"]
    )
    for measure in page["measures"].values():
        assert measure["low"] <= measure["value"] <= measure["high"]
        assert measure["n"] > 0
        assert measure["how"]
    assert page["judge"]["run"] == world["reader"]
    out, _ = capsys.readouterr()
    assert "agreement" in out
    assert "evaluation.json" in out
    assert "agreement" in Path(world["run"], "report.html").read_text()


def test_the_likelihood_is_that_of_the_formula(world: dict[str, str]) -> None:
    import math

    from morphogen.cli.recipe import load_file
    from morphogen.data import Digits
    from morphogen.experiment import load

    typed = f"evaluate {world['run']} --with {world['own']} --n 20 --judge {world['reader']}"
    assert run(typed) == 0
    page = json.loads(Path(world["run"], "evaluation.json").read_text())
    assert "log_prob" not in page["measures"]  # which takes minutes for some models: only when asked
    assert run(f"{typed} --likelihood -1") == 0
    page = json.loads(Path(world["run"], "evaluation.json").read_text())
    model = load(world["run"], modules=[load_file(Path(world["own"]))]).model
    batch = Digits("test").take(torch.arange(360))
    width = model.log_width.exp().item()
    law = torch.distributions.Normal(model.mean[batch["cond"]["label"]].double(), width)
    u = Noise(keys(torch.arange(360), 0, 1)).uniform(1, 8, 8) - 0.5  # spread over the cells
    nats = law.log_prob((batch["x"] + u / 8).double()).flatten(1).sum(1).mean().item()
    assert page["measures"]["log_prob"]["value"] == pytest.approx(nats, rel=1e-5)
    bits = -(nats / 64 + math.log(2 / 16)) / math.log(2)  # 17 levels on [-1, 1]: cells of side 1/8
    assert page["measures"]["bits/dim"]["value"] == pytest.approx(bits, rel=1e-5)


def test_a_classifier_is_measured(world: dict[str, str]) -> None:
    assert run(f"evaluate {world['reader']}") == 0
    page = json.loads(Path(world["reader"], "evaluation.json").read_text())
    assert set(page["measures"]) == {"accuracy", "precision", "recall", "f1"}
    assert page["measures"]["accuracy"]["n"] == 360
    assert page["heldout"]["accuracy"] == pytest.approx(page["measures"]["accuracy"]["value"], abs=1e-6)


def test_check_tries_everything_and_leaves_nothing(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"train {world['own']}:blurs --check --steps 1000000") == 0
    out, _ = capsys.readouterr()
    for what in ("train", "save", "resume", "sample", "draw", "report", "evaluate"):
        assert f"ok  {what}" in out
    assert f"Everything works: morphogen train {world['own']}:blurs --steps 1000000" in out
    assert not Path("runs").exists()


def test_samples_that_are_no_numbers_are_not_drawn(
    world: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(3, 1, 8, 8)
    x[1, 0, 2, 2] = float("nan")
    monkeypatch.setattr("morphogen.experiment.draw", lambda *args, **kw: x)
    assert run(f"sample {world['run']} --with {world['own']} --n 3 --out bad.png") == 2
    assert "1 of the 3 samples are not finite" in capsys.readouterr().err
    assert not Path("bad.png").exists()


def test_numbers_are_offered_where_there_is_no_space(world: dict[str, str]) -> None:
    from morphogen import load
    from morphogen.cli.recipe import load_file
    from morphogen.cli.train import next_commands

    run = load(world["run"], modules=[load_file(Path(world["own"]))])
    assert "--out samples.png" in next_commands(run, [])[0]
    run.space = None
    assert "--out samples.npy" in next_commands(run, [])[0]


def test_runs_are_listed_and_shown(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"runs list {world['tmp']}") == 0
    out, _ = capsys.readouterr()
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "8/8" in lines["blurs-0"]
    assert "finished" in lines["blurs-0"]
    assert "damaged" in lines["damaged"]
    assert "no checkpoint" in lines["empty"]
    assert run(f"runs show {world['run']}") == 0
    out, _ = capsys.readouterr()
    assert "tiny.py:blurs" in out
    assert "finished, step 8 of 8" in out
    assert run(f"runs report {world['run']}") == 0
    Path("runs").mkdir()
    assert run("runs") == 0
    assert "No runs" in capsys.readouterr().out


def test_a_record_is_verified(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    record = Path("record")
    record.mkdir()
    for name in ("spec.json", "log.jsonl", "result.json"):
        shutil.copyfile(Path(world["run"]) / name, record / name)
    verify = f"runs verify record --with {world['own']} --steps 6"
    assert run(verify) == 0
    assert "equal the recorded ones bit for bit" in capsys.readouterr().out
    result = json.loads((record / "result.json").read_text())
    other = result | {"machine": result["machine"] | {"torch": "1.0"}}
    (record / "result.json").write_text(json.dumps(other))
    assert run(verify) == 0
    assert "to 1e-3 (recorded with another torch)" in capsys.readouterr().out
    lines = [json.loads(line) for line in (record / "log.jsonl").read_text().splitlines()]

    def nudged(by: float) -> str:
        return "".join(
            json.dumps(ln | ({"loss": ln["loss"] * (1 + by)} if "loss" in ln else {})) + "\n" for ln in lines
        )

    (record / "log.jsonl").write_text(nudged(1e-6))
    assert run(verify) == 0  # another machine: within 1e-3
    (record / "result.json").write_text(json.dumps(result))
    assert run(verify) == 1  # the same machine: to the last bit
    assert "loss of step 2" in capsys.readouterr().out
    (record / "result.json").unlink()
    (record / "log.jsonl").write_text(nudged(5e-3))
    assert run(verify) == 1
    assert sorted(p.name for p in record.iterdir()) == ["log.jsonl", "spec.json"]  # verifying writes nothing


def test_a_record_of_other_weights_is_found_out(world: dict[str, str]) -> None:
    record = Path("record")
    shutil.copytree(world["run"], record)
    page = json.loads((record / "spec.json").read_text())
    (record / "spec.json").write_text(json.dumps(page | {"seed": 1}))
    assert run(f"runs verify record --with {world['own']} --steps 6") == 1


def test_data_are_listed_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data") == 0
    assert "cifar10" in capsys.readouterr().out
    assert run("data show digits --out sheet.png --columns 4") == 0
    assert Path("sheet.png").is_file()
    assert "sheet.png" in capsys.readouterr().out


def test_machines_are_told_in_json(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for typed, last in (
        (f"train {world['own']}:blurs --run j --steps 4 --json", "trained"),
        (f"train {world['own']}:blurs --check --json", "checked"),
        (f"sample j --with {world['own']} --n 2 --json", "sampled"),
        (f"evaluate j --with {world['own']} --n 20 --judge {world['reader']} --json", "evaluated"),
        (f"runs verify j --with {world['own']} --steps 4 --json", "verified"),
        ("runs show j --json", "run"),
        ("data list --json", "data"),
        ("data show digits --json", "data"),
        ("--version --json", "version"),
    ):
        assert run(typed) == 0
        out, err = capsys.readouterr()
        events = [json.loads(line) for line in out.splitlines()]
        assert events[-1]["event"] == last, typed
        assert err == "", typed
    assert run("train nothing --json") == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["exit"] == 2
    assert json.loads(out)["text"] == err.strip()


def test_bad_numbers_have_a_code_of_their_own(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"train {world['own']}:blurs --run bad --poison 6") == 3
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("Step 6, phase 'loss'")
    assert "last checkpoint: step 4" in err[-1]


def test_an_error_of_ours_is_one_sentence_too(
    world: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from morphogen.cli import runs

    def fails(path: Path) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(runs, "look", fails)
    assert run(f"runs list {world['tmp']}") == 1
    err = capsys.readouterr().err
    assert "Unexpected RuntimeError: two lines" in err
    assert "--debug" in err
    assert "Traceback" not in err
    assert run(f"runs list {world['tmp']} --debug") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device", "runs/x"), "disk is full"),
        (PermissionError(13, "Permission denied", "runs/x"), "may not be read or written"),
        (MemoryError(), "Memory ran out"),
    ],
)
def test_what_the_machine_lacks_is_said(
    error: Exception,
    says: str,
    world: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from morphogen.cli import runs

    def fails(path: Path) -> None:
        raise error

    monkeypatch.setattr(runs, "look", fails)
    assert run(f"runs list {world['tmp']}") == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        *("--help", "help", "", "train --help", "sample -h", "evaluate --help", "data --help", "data show --help"),
        *("runs --help", "runs verify --help", "train digits-classifier --help"),
    ],
)
def test_help_explains(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(typed) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: morphogen")
    assert max(map(len, out.splitlines())) <= 120
    if typed == "--help":
        assert "digits-classifier" in out
        assert "130, 143" in out
    if "digits-classifier" in typed:
        assert "--epochs INT" in out
        assert "passes over the data (default: " in out
        assert "--device" in out


def test_help_of_a_run_shows_its_models_options(world: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"sample {world['run']} --with {world['own']} --help") == 0
    out = capsys.readouterr().out
    assert "--guidance FLOAT" in out
    assert "--kind soft|sharp" in out
    assert "soft or sharp edges (default: soft)" in out


# ---- as a process --------------------------------------------------------------------------------------------------


def process(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=env, timeout=120, check=False, **kwargs
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "typed", ["--help", "train --help", "train digits-classifier --help", "data list", "--version"]
)
def test_help_needs_no_torch(typed: str) -> None:
    code = (
        "import sys; from morphogen.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = process("-c", code, *typed.split())
    assert done.returncode == 0, done.stderr


def test_help_is_there_at_once() -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert process("-m", "morphogen", "train", "digits-classifier", "--help").returncode == 0
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5


def test_a_closed_pipe_is_no_error() -> None:
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    assert reader.stdin is not None
    done = subprocess.run(
        [sys.executable, "-m", "morphogen", "--help"], stdout=reader.stdin, stderr=subprocess.PIPE, env=env, check=False
    )
    reader.stdin.close()
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_continues(
    signum: signal.Signals, code: int, world: dict[str, str], tmp_path: Path
) -> None:
    words = ["train", f"{world['own']}:blurs", "--run", "r", "--steps", "40", "--slow", "0.02", "--no-pictures"]
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    training = subprocess.Popen(
        [sys.executable, "-m", "morphogen", *words], stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path
    )
    log = tmp_path / "r" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    training.send_signal(signum)
    _, err = training.communicate(timeout=60)
    assert training.returncode == code, err
    assert "Traceback" not in err
    assert "the same command continues it: morphogen train" in err
    stopped = json.loads((tmp_path / "r" / "result.json").read_text())
    assert stopped["state"] == "unfinished"
    assert main(words) == 0  # the fixture has put us into tmp_path
    assert json.loads((tmp_path / "r" / "result.json").read_text())["step"] == 40
    whole = tmp_path / "whole"
    assert main([*words[:3], str(whole), *words[4:]]) == 0
    from morphogen.checkpoint import Checkpoints, digest

    ends = [Checkpoints(p).load(40)["model"] for p in (tmp_path / "r", whole)]
    assert digest(ends[0]) == digest(ends[1])
