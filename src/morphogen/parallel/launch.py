"""Starting several processes of one command on this machine: torchrun, spoken to from within."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

from .ranks import LAUNCHED


def launch(count: int, words: Sequence[str]) -> int:
    """Start `python WORDS` `count` times under torchrun on this machine, and wait; the exit code.

    A signal is handed on to all of them. Raises Died where one was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ[LAUNCHED] = "1"
    with tempfile.TemporaryDirectory(prefix="morphogen-") as logs:
        config = LaunchConfig(
            1,
            1,
            count,
            DefaultLogsSpecs(logs),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            run_id="morphogen",
        )
        try:
            elastic_launch(config, sys.executable)(*words)
        except SignalException as heard:
            return 128 + int(heard.sigval)
        except ChildFailedError as failed:
            ends = {rank: end.exitcode for rank, end in failed.failures.items()}
            killed = {rank: -code for rank, code in ends.items() if code < 0}
            if spoken := [code for code in ends.values() if code > 0]:  # then the launcher ended the rest by SIGTERM
                killed = {rank: by for rank, by in killed.items() if by != signal.SIGTERM}
            for rank, by in killed.items():
                raise Died(f"Process {rank} of {count} was killed by {signal.Signals(by).name}") from None
            return max(spoken)
    return 0


class Died(Exception):
    """A process was killed; says which, and by which signal."""
