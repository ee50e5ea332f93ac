"""Run-time shape checks for the whole package, one torch thread a worker, and where the real data is."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("morphogen", "tests.checker")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, from MORPHOGEN_DATA; the test is skipped where there is none."""
    folder = os.environ.get("MORPHOGEN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MORPHOGEN_DATA names no folder of data sets")
    return Path(folder)
