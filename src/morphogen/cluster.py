"""A run on a Ray cluster: the only file that imports ray. How it is used is told in docs/cluster.md.

    driver ──order──> an actor for each rank ──starts──> a process with RANK, WORLD_SIZE, … (`parallel.join`)
    driver <──lines, exit status── actor <──stdout, stderr── process

An actor is on its node what torchrun is on a machine: it holds one process, hands on what that says, and takes it along
when it ends itself. Ray places the actors and tells when one is lost; then that one is replaced, all start again, and
the run goes on from its newest checkpoint, for to train into a run folder is to continue what it holds.

Between driver and actors go numbers and strings, never an object of ours. Ray packs these with pickle, as it does
everything, so who may speak to a cluster can run code on it: one that asks for no token is refused.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from . import __version__
from .errors import UserError

HERE = "ray"  # --on ray: a cluster of this machine alone, for as long as the command takes
ROOM, GRACE, VAIN = 60.0, 20.0, 3  # seconds for places, seconds for the others to end, losses without a step between
_TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
Heard = list[tuple[bool, str]]  # (whether on stderr, the line)


class Order(NamedTuple):
    """What each rank does: run `python COMMAND` in `cwd` where there is such a folder, with `text` as its input.

    The process must end when its input does. run: its run folder, absolute. gpu: whether each needs one; None: if any.
    """

    command: Sequence[str]
    text: str
    cwd: str
    run: Path
    gpu: bool | None = None


# ---- on a node -----------------------------------------------------------------------------------------------------


class Worker:
    """The actor of one rank: a place on a node, and the process in it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def about(self) -> dict[str, Any]:
        """The node's address, a free port of it, and what has to agree with the driver."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        mode = os.environ.get("RAY_AUTH_MODE", "")
        return {"node": ray.util.get_node_ip_address(), "port": port, "version": __version__, "auth": mode.lower()}

    def leave(self, run: str, name: str) -> int:
        """Leave an empty file in the run folder, for the others to find; the newest step there, -1 if there is none."""
        Path(run).mkdir(parents=True, exist_ok=True)
        Path(run, name).touch()
        steps = Path(run, "checkpoints")
        return max((int(p.name) for p in steps.iterdir() if p.name.isdigit()), default=-1) if steps.is_dir() else -1

    def sees(self, run: str, name: str) -> bool:
        """Whether the file that another worker has left is there."""
        return Path(run, name).exists()

    def clear(self, run: str, name: str) -> None:
        """Remove it, and the run folder where it was the only thing in it."""
        Path(run, name).unlink()
        with contextlib.suppress(OSError):
            Path(run).rmdir()

    def start(self, order: tuple[list[str], str, str], environment: dict[str, str]) -> None:
        """Start the process, in place of one that is there. order: command, input and working folder."""
        command, text, cwd = order
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._heard: queue.Queue[tuple[bool, str] | None] = queue.Queue()
        self._open = 2  # of the process's two streams
        self._child = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd if os.path.isdir(cwd) else None,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for loud, stream in enumerate((self._child.stdout, self._child.stderr)):
            threading.Thread(target=_listen, args=(self._heard, bool(loud), stream), daemon=True).start()
        assert self._child.stdin is not None
        self._child.stdin.write(text + "\n")
        self._child.stdin.flush()  # and left open: it ends with this actor, whatever becomes of that

    def hear(self, seconds: float) -> tuple[Heard, int | None]:
        """What the process has said since, waited for so long; and its exit status once it has ended."""
        lines: Heard = []
        with contextlib.suppress(queue.Empty):
            said = self._heard.get(timeout=seconds)
            while True:
                if said is None:
                    self._open -= 1
                else:
                    lines.append(said)
                said = self._heard.get_nowait()
        assert self._child is not None
        return lines, self._child.wait() if not self._open else None

    def stop(self) -> None:
        """Ask the process to save and end."""
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)


def _listen(heard: queue.Queue[tuple[bool, str] | None], loud: bool, stream: Iterable[str]) -> None:
    for line in stream:
        heard.put((loud, line.rstrip("\n")))
    heard.put(None)


# ---- from the driver -----------------------------------------------------------------------------------------------


def address(on: str) -> str | None:
    """Where `--on` says: Ray's own form, ray://HOST:PORT, or None for a cluster of this machine. Raises UserError."""
    if on == HERE:
        return None
    if not re.fullmatch(r"ray://[^/\s:]+:\d{1,5}", on):
        raise UserError(
            f"--on {on!r} is no cluster: give ray://HOST:PORT (of its Ray client server, which listens on 10001), or"
            f" {HERE} for one of this machine alone."
        )
    return on


def train(
    on: str, workers: int, order: Order, hear: Callable[[int, bool, str], None], say: Callable[[str], None]
) -> int:
    """Carry out an order as `workers` ranks on the cluster `on`; the exit status.

    A rank that is lost (its process killed, its node gone) is replaced, and all go on from the newest checkpoint.
    hear: is given what ranks say (rank, whether on stderr, line). say: told of losses.
    SIGINT and SIGTERM are handed on to all ranks, which save and end. Raises UserError.
    """
    where = address(on)
    if workers < 1:
        raise UserError(f"--devices {workers} is too few: give 1 or more, the number of workers.")
    with _connected(where) as ray, _Signals() as asked, _placed(ray, workers, order.gpu) as (ranks, place):
        reached, vain = -1, 0
        while True:
            ends: dict[int, int | None]
            try:
                step = _started(ray, ranks, order, where)
                reached, vain = max(step, reached), vain if step == reached else 0
                ends = _followed(ray, ranks, hear, asked)
            except _Gone as gone:  # before it could be started
                ends = {gone.rank: None}
            lost = [r for r, end in sorted(ends.items()) if end is None or end < 0]
            if not lost or asked.signum:
                return next((end for _, end in sorted(ends.items()) if end), 128 + asked.signum if lost else 0)
            how = f"Worker {lost[0]} of {workers} was lost ({_how(ends[lost[0]])})"
            vain += 1
            if vain >= VAIN:
                raise UserError(
                    f"{how} for the {vain}rd time since the checkpoint of step {max(reached, 0)}: look at its node's"
                    " memory and log; the same command goes on."
                )
            say(f"{how}: replacing it.")
            for r in lost:
                if ends[r] is None:
                    ranks[r] = place(r)


def _how(end: int | None) -> str:
    return "its node or its actor is gone" if end is None else f"killed by {signal.Signals(-end).name}"


@contextlib.contextmanager
def _connected(where: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster with token authentication."""
    _authenticate(where)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no word to anybody
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster of our own: as if trained without it
    try:
        import ray
    except ImportError:
        raise UserError("--on trains by Ray, which is not installed: pip install 'morphogen[cluster]'.") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if where is None:
            ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, **quiet)
        else:
            ray.init(address=where, **quiet)
        yield ray
    except ray.exceptions.AuthenticationError:
        raise UserError(f"The cluster {where} refuses this token: set RAY_AUTH_TOKEN to its own.") from None
    except (ConnectionError, ray.exceptions.RaySystemError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(
            f"The cluster {where or 'of this machine'} does not answer ({what}): see that it runs, that the port is its"
            " Ray client server's and the token its own; the same command continues a training."
        ) from error
    finally:
        ray.shutdown()


def _authenticate(where: str | None) -> None:
    """Turn token authentication on, with a new token for a cluster of our own. Raises UserError where it is off."""
    if (mode := os.environ.get("RAY_AUTH_MODE", "token")).lower() != "token":
        raise UserError(
            f"RAY_AUTH_MODE is {mode!r}, and a Ray without token runs whatever it is sent: set it to token."
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    if any(os.environ.get(name) for name in _TOKEN):
        return
    if where is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this command alone: nothing is written
    elif not (Path.home() / ".ray" / "auth_token").is_file():
        raise UserError(
            f"The cluster {where} wants its token: set RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head,"
            " or put that into ~/.ray/auth_token."
        )


@contextlib.contextmanager
def _placed(ray: Any, workers: int, gpu: bool | None) -> Iterator[tuple[list[Any], Callable[[int], Any]]]:
    """An actor for each rank, with a CPU of its own and, where wanted, a GPU; and how to place one anew."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    there = ray.cluster_resources()
    needs = {"CPU": 1.0} | ({"GPU": 1.0} if gpu or (gpu is None and there.get("GPU")) else {})
    for kind in needs:
        if there.get(kind, 0) < workers:
            raise UserError(
                f"The cluster has {there.get(kind, 0):.0f} {kind}s, and {workers} workers need one each: give fewer"
                " (--devices)" + (", or --device cpu." if kind == "GPU" else ".")
            )
    group = placement_group([needs] * workers, strategy="PACK")
    ranks: list[Any] = []

    def place(rank: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        made = ray.remote(Worker).options(
            num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), scheduling_strategy=strategy
        )
        return made.remote()

    try:
        if not group.wait(timeout_seconds=ROOM):
            raise UserError(f"The cluster has no room for {workers} workers now: give fewer (--devices), or wait.")
        ranks += map(place, range(workers))
        yield ranks, place
    finally:
        for actor in ranks:
            ray.kill(actor)
        remove_placement_group(group)


class _Gone(Exception):
    """The actor of a rank is gone."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank


def _answers(ray: Any, asked: Sequence[Any]) -> list[Any]:
    """What ranks 0, 1, … answer. Raises `_Gone`, and UserError where one has no place to answer from."""
    answers, until = [], time.monotonic() + ROOM
    for rank, answer in enumerate(asked):
        try:
            answers.append(ray.get(answer, timeout=max(0.0, until - time.monotonic())))
        except ray.exceptions.RayActorError:
            raise _Gone(rank) from None
        except ray.exceptions.GetTimeoutError:
            raise UserError(
                f"The cluster has no room for worker {rank}, or it does not answer for {ROOM:.0f} s: give fewer"
                " (--devices), or wait; the same command goes on."
            ) from None
    return answers


def _started(ray: Any, ranks: Sequence[Any], order: Order, where: str | None) -> int:
    """Start the order on every rank, once all fit together; the newest step of its run. Raises `_Gone`."""
    about = _answers(ray, [actor.about.remote() for actor in ranks])
    for node in about:
        if node["auth"] != "token":
            raise UserError(
                f"The cluster {where} asks for no token, so whoever reaches it can run code on it: start its nodes with"
                " RAY_AUTH_MODE=token."
            )
        if node["version"] != __version__:
            raise UserError(
                f"The node {node['node']} has morphogen {node['version']}, this machine {__version__}: install the same"
                " on all."
            )
    from .parallel.ranks import LAUNCHED

    run, name = str(order.run), f".seen-{secrets.token_hex(8)}"
    try:
        (step,) = _answers(ray, [ranks[0].leave.remote(run, name)])
        seen = _answers(ray, [actor.sees.remote(run, name) for actor in ranks])
        _answers(ray, [ranks[0].clear.remote(run, name)])
    except ray.exceptions.RayTaskError as error:
        raise UserError(
            f"The node {about[0]['node']} cannot write {run!r} ({error.cause}): name another --run."
        ) from None
    for node, found in zip(about, seen, strict=True):
        if not found:
            raise UserError(
                f"The node {node['node']} does not see the run folder {run!r} that {about[0]['node']} writes: name one"
                " on a disk that all nodes share (--run FOLDER)."
            )
    shared = {"WORLD_SIZE": str(len(ranks)), "MASTER_ADDR": about[0]["node"], "MASTER_PORT": str(about[0]["port"])}
    shared[LAUNCHED] = "1"  # as under torchrun: who is left says nothing of a death, we do
    given = list(order.command), order.text, order.cwd
    starting = [
        actor.start.remote(given, shared | {"RANK": str(rank), "LOCAL_RANK": "0"})  # its only GPU is its first
        for rank, actor in enumerate(ranks)
    ]
    _answers(ray, starting)
    return int(step)


def _followed(
    ray: Any, ranks: Sequence[Any], hear: Callable[[int, bool, str], None], asked: _Signals
) -> dict[int, int | None]:
    """Listen to all ranks until they have ended: the exit status of each, None of one that is lost.

    It ends as soon as one is lost, and GRACE seconds after one has failed; those that have not ended are left out.
    """
    ends: dict[int, int | None] = {}
    pending = {actor.hear.remote(1.0): rank for rank, actor in enumerate(ranks)}
    told, until = 0, float("inf")
    while pending and time.monotonic() < until:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
        for answer in ready:
            rank = pending.pop(answer)
            try:
                lines, end = ray.get(answer)
            except ray.exceptions.RayActorError:
                ends[rank] = None
                continue
            for loud, line in lines:
                hear(rank, loud, line)
            if end is None:
                pending[ranks[rank].hear.remote(1.0)] = rank
            else:
                ends[rank] = end
        if asked.signum and not told:
            told = asked.signum
            for actor in ranks:
                actor.stop.remote()
        if any(end is None or end < 0 for end in ends.values()) and not told:
            break
        if any(ends.values()):
            until = min(until, time.monotonic() + GRACE)
    return ends


class _Signals:
    """Hears SIGINT and SIGTERM for the time of a block; the second is Ctrl-C as ever."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: Mapping[int, Any] = {}

    def _hear(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum:
            raise KeyboardInterrupt
        self.signum = signum

    def __enter__(self) -> _Signals:
        with contextlib.suppress(ValueError):  # not the main thread: the caller's signals are the caller's
            self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
