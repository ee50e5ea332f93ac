"""The one harness of the scoreboard: ours and peers on the same work, interleaved in one run.

    python benchmarks/harness.py NAME [--record]     python benchmarks/harness.py --list     ... --smoke

A workload is a file in workloads/ (ours beside peers) or peers/ (peers that wait for ours) that makes a `Registry`
named REG. Each side is a builder `build() -> Work`. Every side lives in a worker process of its own (imports, thread
pool, compile state, peak memory); workers are set up one after another and then sleep on their pipes. Before anything
is timed, the `check` of each side (numbers that it computes from weights and data given to all) is compared with the
first side's: a side that computes something else is not timed, and the run fails. Then rounds: in each, every side
runs one slice, in the order A B C and in the next round C B A, so that a drift of the machine cancels. A ratio is
the median over rounds of the ratios within a round: ours' seconds over the peer's for the same work, below 1 is faster.

A peer that is not installed is a skipped row with the reason. Peers are looked for in their own environment
(PEERS_ENV, made by `make bench-env`), then in the one that runs this file; all sides must have the same torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

for _name, _value in {
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "MUJOCO_GL": "disable",
}.items():
    os.environ.setdefault(_name, _value)

# glibc gives freed memory back to the system; on a virtual machine getting it again is dear, and that would time the
# host. Workers therefore keep it, all alike. BENCH_MALLOC=default leaves glibc alone.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "67108864",
}

HERE = Path(__file__).resolve().parent
MARK = "@@side@@"  # a worker's lines to the controller
THREADS = int(os.environ["OMP_NUM_THREADS"])
PEERS_ENV = Path(os.environ.get("PEERS_ENV") or Path.home() / ".cache" / "morphogen-peers").expanduser()

Check = Mapping[str, Sequence[float]]  # names to numbers that all sides must agree on


@dataclass
class Metric:
    """fn() does the work; it may return the number of units done, else `units` is used.

    kind "rate": units per second; "time": seconds of a call; "value": what fn returns.
    flops: floating-point operations of a call, where known. once: one call a slice, however short.
    """

    fn: Callable[[], Any]
    unit: str
    units: float = 1.0
    kind: str = "rate"
    flops: float = 0.0
    warmup: int = 1
    once: bool = False
    last: float = 1.0  # seconds of a call in the last slice


@dataclass
class Work:
    """What a side has built.

    check: called once before timing; see `Check`. rtol: of it, instead of the registry's. main: runs in the worker's
    main thread while slices are asked for from another one, for a library whose loop cannot be entered and left (see
    `Gate`).
    """

    metrics: dict[str, Metric]
    config: dict[str, Any] = field(default_factory=dict)
    versions: tuple[str, ...] = ()
    check: Callable[[], Check] | None = None
    rtol: float | None = None
    main: Callable[[], Any] | None = None


@dataclass
class Side:
    """One competitor: its builder, the group it competes in, and the modules that it needs."""

    name: str
    build: Callable[[], Work]
    group: str = ""
    needs: tuple[str, ...] = ()
    smoke: bool = False
    kept: bool = True


class Registry:
    """The sides of a workload.

    rounds, slice (seconds), budget (seconds of rounds per group): how long. rtol: of the checks.
    pairs: (ours, peer, bound or None): the ratios that matter; a ratio above its bound fails the run.
    memory: the same of the workers' peak memory, all that a process has (interpreter, weights, optimiser, steps).
    needs: the modules that sides need, by the beginning of their names; those of the longest fitting one count.
    """

    def __init__(
        self,
        workload: str,
        *,
        rounds: int = 5,
        slice: float = 2.0,
        budget: float = 240.0,
        rtol: float = 1e-4,
        pairs: Sequence[tuple[str, str, float | None]] = (),
        memory: Sequence[tuple[str, str, float | None]] = (),
        needs: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.workload, self.rounds, self.slice, self.budget, self.rtol = workload, rounds, slice, budget, rtol
        self.pairs, self.memory, self.needs = tuple(pairs), tuple(memory), dict(needs or {})
        self.sides: dict[str, Side] = {}

    def add(
        self, name: str, build: Callable[[], Work], group: str = "", *, smoke: bool = False, kept: bool = True
    ) -> None:
        """A side of a group; only those of a group are compared. smoke: whether `--smoke` runs it. kept: whether its
        worker keeps freed memory; False leaves glibc as its users have it.
        """
        fitting = max((k for k in self.needs if name.startswith(k)), key=len, default=None)
        self.sides[name] = Side(name, build, group, () if fitting is None else self.needs[fitting], smoke, kept)


class Gate:
    """Lets somebody else's loop run a number of steps and then stand still.

    The loop runs in the main thread (`Work.main`) and calls `step()` once a step, before it; `run(n)`, called from the
    thread that measures, returns when n steps are done, that is when the loop asks for the one after them.
    """

    def __init__(self) -> None:
        self._left, self._go, self._done = 0, threading.Event(), threading.Event()

    def step(self) -> None:
        if self._left == 0:
            self._done.set()
            self._go.wait()
            self._go.clear()
        self._left -= 1

    def run(self, n: int) -> None:
        self._done.wait()
        self._done.clear()
        self._left = n
        self._go.set()
        self._done.wait()


# ---- helpers of workloads ------------------------------------------------------------------------------------------


def shared() -> Path:
    """A folder that all sides of a run see, for weights that one side writes and the others copy.

    Sides are built in the order in which they were added.
    """
    return Path(os.environ["BENCH_SHARED"])


def smoking() -> bool:
    """Whether this is a smoke run: builders then choose the smallest sizes."""
    return os.environ.get("BENCH_SMOKE") == "1"


def count_flops(fn: Callable[[], Any]) -> float:
    """Floating-point operations of one call, by torch's own counter (matrix products and convolutions)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        fn()
    return float(counter.get_total_flops())


def nparams(model: Any) -> int:
    """Number of parameters of a torch module."""
    return sum(p.numel() for p in model.parameters())


def checkout(name: str) -> str:
    """Path of a checkout of a public repository, from --checkout NAME=PATH."""
    path = os.environ.get("PEER_" + name.upper().replace("-", "_"))
    if not path or not os.path.isdir(path):
        raise Absent(f"needs --checkout {name}=PATH")
    return path


def import_file(path: str | Path, name: str) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def torchvision_dir() -> None:
    """Put the side folder with torchvision, and with what needs it, on sys.path.

    Its compiled part is made for another torch and does not load; its Python part imports once the two operators
    that it registers a fake for have a schema.
    """
    from torch import library

    folder = str(PEERS_ENV / "tv")
    if not os.path.isdir(folder):
        raise Absent("needs the torchvision folder of `make bench-env`")
    if folder not in sys.path:
        sys.path.append(folder)
        schemas = library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            schemas.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_dir.schemas = schemas  # type: ignore[attr-defined]  # dropping it would undo the definitions


def version(distribution: str) -> str:
    """Version of an installed distribution, or "?"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        for d in importlib.metadata.distributions(path=[str(PEERS_ENV / "tv")]):
            if d.metadata["Name"].lower().replace("_", "-") == distribution.lower().replace("_", "-"):
                return d.version
    return "?"


def git_version(path: str) -> str:
    """Commit of a checkout, or "?"."""
    done = subprocess.run(["git", "-C", path, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "?"


class Absent(Exception):
    """Raised by a builder whose peer is not there: the row is skipped with this reason."""


# ---- worker --------------------------------------------------------------------------------------------------------


_out = sys.stdout  # a worker's pipe to the controller


def _say(**said: Any) -> None:
    _out.write(MARK + json.dumps(said) + "\n")
    _out.flush()


def _machine_seconds() -> tuple[float, float, float]:
    """CPU seconds stolen from, and spent on, the whole machine, and spent by this process."""
    try:
        with open("/proc/stat") as f:
            v = [int(x) for x in f.readline().split()[1:]]
    except OSError:
        v = [0] * 8
    hz = os.sysconf("SC_CLK_TCK")
    used = resource.getrusage(resource.RUSAGE_SELF)
    return v[7] / hz, (v[0] + v[1] + v[2]) / hz, used.ru_utime + used.ru_stime


def _ask_for_cpu(level: int) -> None:
    """Ask the kernel for the CPU for the length of a slice, and no longer (BENCH_BOOST=0: never).

    A worker is its own session, so under autogroup scheduling this one number is its priority against other programs.
    Without the right to set it nothing changes; a line's `others` says how many cores other programs had.
    """
    if os.environ.get("BENCH_BOOST", "1") == "1":
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(level))


def _slice(m: Metric, seconds: float) -> dict[str, Any]:
    """Call m.fn for `seconds`; the value of the slice and the circumstances."""
    if m.last < 0.25 and not m.once:
        m.fn()  # wake caches and threads, untimed
    units = busy = 0.0
    calls, best = 0, math.inf
    before, began = _machine_seconds(), time.perf_counter()
    while True:
        t = time.perf_counter()
        said = m.fn()
        dt = time.perf_counter() - t
        u = float(said) if isinstance(said, int | float) and not isinstance(said, bool) else m.units
        units, busy, calls, best = units + u, busy + dt, calls + 1, min(best, dt / max(u, 1e-9))
        if m.once or busy >= seconds:
            break
    after, wall = _machine_seconds(), time.perf_counter() - began
    m.last = busy / calls
    cpu = after[2] - before[2]
    value = {"rate": units / busy, "time": busy / calls, "value": units / calls}[m.kind]
    top = {"rate": 1 / best, "time": best, "value": value}[m.kind]
    return {
        "value": value,
        "best": top,
        "calls": calls,
        "steal": (after[0] - before[0]) / wall,
        "others": max(0.0, after[1] - before[1] - cpu) / wall,
        "cores": cpu / wall,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _serve(work: Work, began: float) -> None:
    """Warm up, say so, and run the slices that are asked for on stdin."""
    try:
        built = time.perf_counter()
        warm = {}
        for name, m in work.metrics.items():
            t = time.perf_counter()
            for _ in range(1 if smoking() else m.warmup):
                m.fn()
            warm[name] = round(time.perf_counter() - t, 3)
            m.last = warm[name] / max(1, m.warmup)
    except BaseException as error:
        traceback.print_exc()
        _say(error=f"{type(error).__name__}: {error}"[:600])
        return
    _ask_for_cpu(0)
    _say(
        build_s=round(built - began, 2),
        warm_s=warm,
        config=work.config | {"malloc": "retained" if _KEEP_MEMORY.keys() <= os.environ.keys() else "default"},
        versions={d: version(d) for d in work.versions},
        metrics={k: [m.unit, m.kind, m.flops, m.units] for k, m in work.metrics.items()},
    )
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("quit"):
            break
        try:
            _ask_for_cpu(-20)
            _say(**_slice(work.metrics[request["metric"]], request["slice"]))
        except BaseException as error:
            traceback.print_exc()
            _say(error=f"{type(error).__name__}: {error}"[:600])
        finally:
            _ask_for_cpu(0)


def worker(side: Side) -> None:
    """The life of a worker process."""
    global _out
    _out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints goes to the log
    _ask_for_cpu(-10)
    began = time.perf_counter()
    try:
        if not os.environ.get("BENCH_NO_TORCH"):
            import torch

            torch.set_num_threads(THREADS)
            torch.manual_seed(0)
        work = side.build()
        if work.check is not None:
            _say(check={k: [float(x) for x in v] for k, v in work.check().items()}, rtol=work.rtol)
    except Absent as reason:
        _say(absent=str(reason))
        return
    except BaseException as error:
        traceback.print_exc()
        _say(error=f"{type(error).__name__}: {error}"[:600])
        return
    if work.main is None:
        _serve(work, began)
        return

    def serve_and_leave() -> None:
        _serve(work, began)
        sys.stderr.flush()
        os._exit(0)  # the main thread stands at the gate

    threading.Thread(target=serve_and_leave, daemon=True).start()
    work.main()


# ---- controller ----------------------------------------------------------------------------------------------------


@cache
def _spec_of(python: str, modules: tuple[str, ...]) -> tuple[str, ...]:
    """The version of torch and those of `modules` that `python` lacks."""
    code = (
        "import importlib.util as u, importlib.metadata as m, json, sys\n"
        "try: torch = m.version('torch')\nexcept m.PackageNotFoundError: torch = ''\n"
        f"print(json.dumps([torch, *(n for n in {list(modules)!r} if not u.find_spec(n))]))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return tuple(json.loads(done.stdout)) if done.returncode == 0 else ("", *modules)


def interpreter(side: Side) -> tuple[str, str]:
    """(the Python that runs a side, "") or ("", why none does)."""
    here = _spec_of(sys.executable, ())[0]
    why = f"no environment of peers in {PEERS_ENV}: make bench-env"
    pythons = [sys.executable] if not side.needs else [str(PEERS_ENV / "bin" / "python"), sys.executable]
    for python in pythons:
        if not os.path.exists(python):
            continue
        torch, *missing = _spec_of(python, side.needs)
        if not missing and torch == here:
            return python, ""
        if missing and python != sys.executable:
            why = f"{', '.join(missing)} not installed there: make bench-env"
        elif not missing:
            why = f"torch {torch or 'is absent'} there and {here} here: make bench-env"
    return "", why


class Worker:
    """A worker process as the controller sees it."""

    def __init__(self, workload: str, side: Side, python: str, log: Any, env: Mapping[str, str]) -> None:
        command = [python, "-W", "ignore", str(HERE / "harness.py"), workload, "--worker", side.name]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=dict(env),
            start_new_session=True,
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                said: dict[str, Any] = json.loads(line[len(MARK) :])
                return said
        return {"error": f"the worker ended with {self.process.wait()}"}

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            return {"error": str(error)}
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write('{"quit": 1}\n')
            self.process.stdin.close()
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):  # helpers that it left behind in its own session
            os.killpg(self.process.pid, signal.SIGTERM)


def machine() -> dict[str, Any]:
    """The machine, as far as it matters for speed."""
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found[1] if found else cpu
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": cores,
        "threads": THREADS,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": _spec_of(sys.executable, ())[0],
    }


def disagreement(first: Check, other: Check, rtol: float) -> str:
    """What differs between two checks, or ""."""
    if not first or set(first) != set(other):
        return f"one checks {sorted(first)}, the other {sorted(other)}"
    for name in first:
        a, b = list(first[name]), list(other[name])
        if len(a) != len(b) or not a:
            return f"{name} has {len(a)} numbers on one side and {len(b)} on the other"
        scale = max(max(map(abs, a)), 1e-12)
        worst = max(
            abs(x - y) if math.isfinite(x) and math.isfinite(y) else math.inf for x, y in zip(a, b, strict=True)
        )
        if worst > rtol * scale:
            return f"{name} differs by {worst:.3g}, of {scale:.3g}"
    return ""


def run_group(reg: Registry, sides: list[Side], a: argparse.Namespace, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """One group of a workload: set up, check, rounds; a row per (side, metric), or one that says why not."""
    rows: list[dict[str, Any]] = []
    workers: dict[str, Worker] = {}
    info: dict[str, dict[str, Any]] = {}
    reference: tuple[str, Check] | None = None
    group = sides[0].group

    def drop(name: str, **why: str) -> None:
        rows.append({"workload": reg.workload, "group": group, "side": name} | why)
        print(f"# {name}: " + "; ".join(f"{k}: {v}" for k, v in why.items()), file=sys.stderr, flush=True)

    with open(a.log, "a") as log:
        for side in sides:
            python, why = interpreter(side)
            if why:
                drop(side.name, skipped=why)
                continue
            log.write(f"\n===== {reg.workload} {side.name}\n")
            log.flush()
            own = env if side.kept else {k: v for k, v in env.items() if k not in _KEEP_MEMORY}
            w = Worker(reg.workload, side, python, log, own)
            said = w.read()
            check = said.get("check")
            if check is not None:
                if reference is None:
                    reference = side.name, check
                elif fault := disagreement(reference[1], check, said["rtol"] or reg.rtol):
                    drop(side.name, error=f"computes something else than {reference[0]}: {fault}")
                    w.close()
                    continue
                said = w.read()
            if "error" in said or "absent" in said:
                drop(side.name, **({"error": said["error"]} if "error" in said else {"skipped": said["absent"]}))
                w.close()
                continue
            workers[side.name], info[side.name] = w, said | {"checked": check is not None}
        jobs = [(n, k) for n in workers for k in info[n]["metrics"]]
        results: dict[tuple[str, str], list[dict[str, Any]]] = {j: [] for j in jobs}
        end = time.monotonic() + a.budget
        try:
            for r in range(a.rounds):
                for n, k in jobs if r % 2 == 0 else reversed(jobs):
                    results[n, k].append(workers[n].ask(metric=k, slice=a.slice))
                if time.monotonic() > end and r >= 2:
                    break
        finally:
            for w in workers.values():
                w.close()
    for n, k in jobs:
        good = [r for r in results[n, k] if "value" in r]
        if not good:
            drop(n, metric=k, error=results[n, k][0].get("error", "no sample"))
            continue
        unit, kind, flops, units = info[n]["metrics"][k]
        values = [r["value"] for r in good]
        median = statistics.median(values)
        row = {
            "workload": reg.workload,
            "group": group,
            "side": n,
            "metric": k,
            "value": median,
            "unit": unit,
            "kind": kind,
            "min": min(values),
            "max": max(values),
            "n": len(values),
            "samples": [r.get("value") for r in results[n, k]],
            "best_call": (max if kind == "rate" else min)(r["best"] for r in good),
            "checked": info[n]["checked"],
            "cores": round(statistics.median(r["cores"] for r in good), 2),
            "others": round(statistics.median(r["others"] for r in good), 2),
            "steal": round(statistics.median(r["steal"] for r in good), 3),
            "rss_mb": round(max(r["rss_mb"] for r in good)),
            "build_s": info[n]["build_s"],
            "warm_s": info[n]["warm_s"][k],
            "config": info[n]["config"],
            "versions": info[n]["versions"],
        }
        if flops:
            per_second = median if kind == "rate" else units / median
            row["gflops"] = per_second * flops / units / 1e9
        rows.append(row)
    return rows


def pair(rows: list[dict[str, Any]], ours: str, peer: str, bound: float | None) -> Iterator[dict[str, Any]]:
    """The ratio of two sides' seconds for the same work, for each metric of both, with its spread over rounds."""
    done = {(r["side"], r["metric"]): r for r in rows if "value" in r}
    for side, metric in done:
        if side != ours or (peer, metric) not in done:
            continue
        mine, theirs = done[ours, metric], done[peer, metric]
        if mine["kind"] == "value":
            continue
        both = [(x, y) for x, y in zip(mine["samples"], theirs["samples"], strict=False) if x and y]
        ratios = [y / x if mine["kind"] == "rate" else x / y for x, y in both]
        yield {
            "ours": ours,
            "peer": peer,
            "metric": metric,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "bound": bound,
            "checked": mine["checked"] and theirs["checked"],
        }


def lighter(rows: list[dict[str, Any]], ours: str, peer: str, bound: float | None) -> Iterator[dict[str, Any]]:
    """The ratio of two sides' peak memory."""
    done = {r["side"]: r for r in rows if "value" in r}
    if ours in done and peer in done:
        ratio = done[ours]["rss_mb"] / done[peer]["rss_mb"]
        same = done[ours]["checked"] and done[peer]["checked"]
        yield {"ours": ours, "peer": peer, "metric": "memory", "ratio": ratio, "ratios": [ratio], "bound": bound} | {
            "checked": same
        }


def table(rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> str:
    """Rows and pairs as Markdown."""
    out = []
    done = [r for r in rows if "value" in r]
    for group, metric in dict.fromkeys((r["group"], r["metric"]) for r in done):
        rank = [r for r in done if (r["group"], r["metric"]) == (group, metric)]
        rank.sort(key=lambda r: r["value"] * (-1 if r["kind"] == "rate" else 1))
        title = " ".join(filter(None, (rank[0]["workload"], group, metric)))
        out.append(f"\n**{title}, {rank[0]['unit']}**\n")
        out.append("| side | median | min – max | n | GFLOP/s | peak MB | others' cores |")
        out.append("|---|---|---|---|---|---|---|")
        for r in rank:
            spread = f"{number(r['min'])} – {number(r['max'])}"
            flops = number(r["gflops"]) if "gflops" in r else ""
            line: tuple[Any, ...] = (r["side"], number(r["value"]), spread, r["n"], flops, r["rss_mb"], r["others"])
            out.append("| " + " | ".join(map(str, line)) + " |")
    if pairs:
        out.append("\n| ours / peer | metric | time ratio | min – max | bound | same result |")
        out.append("|---|---|---|---|---|---|")
        for p in pairs:
            spread = f"{min(p['ratios']):.3f} – {max(p['ratios']):.3f}"
            same = "checked" if p["checked"] else "not checked"
            cells = (f"{p['ours']} / {p['peer']}", p["metric"], f"{p['ratio']:.3f}", spread, p["bound"] or "", same)
            out.append("| " + " | ".join(map(str, cells)) + " |")
    out += [f"\n{r['side']}: {'skipped' if 'skipped' in r else 'FAILED'}: {r.get('skipped') or r.get('error')}"
            for r in rows if "value" not in r]  # fmt: skip
    return "\n".join(out)


def number(v: float) -> str:
    """A number with about three digits."""
    a = abs(v)
    return f"{v:,.0f}" if a >= 1000 else f"{v:.1f}" if a >= 100 else f"{v:.2f}" if a >= 10 else f"{v:.3g}"


def workloads() -> dict[str, Path]:
    """Every workload by name; those with ours beside peers come first."""
    files = [*sorted((HERE / "workloads").glob("*.py")), *sorted((HERE / "peers").glob("*.py"))]
    return {f.stem: f for f in files if "\nREG = Registry(" in f.read_text(encoding="utf-8")}


def registry(name: str) -> Registry:
    """The registry of a workload. Exits where there is none of that name."""
    known = workloads()
    if name not in known:
        sys.exit(f"There is no benchmark {name!r}: choose one of {', '.join(known)}.")
    for folder in (HERE, HERE / "workloads", HERE / "peers"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    reg: Registry = import_file(known[name], f"workload_{name}").REG
    return reg


def run(name: str, a: argparse.Namespace) -> bool:
    """Run a workload; prints its table, and last a line of JSON; whether all went well."""
    reg = registry(name)
    a.rounds, a.slice, a.budget = a.rounds or reg.rounds, a.slice or reg.slice, a.budget or reg.budget
    chosen = [
        s for s in reg.sides.values() if re.search(a.sides, s.name) and not (a.skip and re.search(a.skip, s.name))
    ]
    if a.smoke:
        chosen = [s for s in chosen if s.smoke and interpreter(s)[0]]
    env = {} if os.environ.get("BENCH_MALLOC") == "default" else dict(_KEEP_MEMORY)
    path = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        env |= os.environ | {"BENCH_SHARED": folder, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        for group in dict.fromkeys(s.group for s in chosen):
            rows += run_group(reg, [s for s in chosen if s.group == group], a, env)
    pairs = [p for ours, peer, bound in reg.pairs for p in pair(rows, ours, peer, bound)]
    pairs += [p for ours, peer, bound in reg.memory for p in lighter(rows, ours, peer, bound)]
    print(table(rows, pairs) + "\n", flush=True)
    short = {
        "workload": name,
        "values": {f"{r['side']}:{r['metric']}": r["value"] for r in rows if "value" in r},
        "ratios": {f"{p['ours']}:{p['peer']}:{p['metric']}": p["ratio"] for p in pairs},
    }
    print(json.dumps(short), flush=True)
    if a.record:
        file = HERE / "results" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        date = time.strftime("%Y-%m-%d", time.gmtime())
        whole = short | {"date": date, "machine": machine(), "pairs": pairs, "rows": rows}
        file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        print(f"recorded in {file.relative_to(HERE.parent)}")
    failed = [f"{r['side']}: {r['error']}" for r in rows if "error" in r]
    slow = [p for p in pairs if p["bound"] and p["ratio"] > p["bound"]]
    if not a.smoke:  # a moment's run times nothing worth judging
        failed += [f"{p['ours']}: ratio {p['ratio']:.3f} above {p['bound']}" for p in slow]
    for line in failed:
        print(f"{name}: {line}", file=sys.stderr)
    return not failed


def main() -> None:
    ap = argparse.ArgumentParser(description="Ours and peers on the same work, interleaved in one run.")
    ap.add_argument("workload", nargs="?")
    ap.add_argument("--list", action="store_true", help="every workload and its sides")
    ap.add_argument("--smoke", action="store_true", help="every workload of ours, for a moment, at the smallest size")
    ap.add_argument("--sides", default=".", help="regular expression on the sides' names")
    ap.add_argument("--skip", default="", help="regular expression of sides to leave out")
    ap.add_argument("--rounds", type=int)
    ap.add_argument("--slice", type=float, help="seconds of one slice")
    ap.add_argument("--budget", type=float, help="seconds of rounds of one group")
    ap.add_argument("--checkout", action="append", default=[], metavar="NAME=PATH", help="where a public repository is")
    ap.add_argument("--record", action="store_true", help="write benchmarks/results/WORKLOAD.json")
    ap.add_argument(
        "--log", default=os.path.join(tempfile.gettempdir(), "morphogen-bench.log"), help="what workers print"
    )
    ap.add_argument("--worker", help=argparse.SUPPRESS)
    a = ap.parse_args()
    for pair_ in a.checkout:
        name, _, path = pair_.partition("=")
        os.environ["PEER_" + name.upper().replace("-", "_")] = os.path.abspath(path)
    if a.worker:
        worker(registry(a.workload).sides[a.worker])
    elif a.list or not (a.workload or a.smoke):
        for name in workloads():
            sides = list(registry(name).sides)
            print(f"{name:18} {', '.join(sides[:8])}" + f", and {len(sides) - 8} more" * (len(sides) > 8))
    elif a.smoke:
        os.environ["BENCH_SMOKE"] = "1"
        a.rounds, a.slice, a.budget = 2, 0.02, 20.0
        began, good = time.monotonic(), True
        with_ours = [n for n in workloads() if any(s.smoke for s in registry(n).sides.values())]
        for name in [a.workload] if a.workload else with_ours:
            good = run(name, a) and good
        print(json.dumps({"seconds": round(time.monotonic() - began, 1)}))
        sys.exit(not good)
    else:
        sys.exit(not run(a.workload, a))


if __name__ == "__main__":
    sys.modules["harness"] = sys.modules["__main__"]  # workloads import this very module
    main()
