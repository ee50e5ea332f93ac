"""Where training runs, and how its nets are prepared for it: device, recomputation, compilation."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import torch
from torch import nn

from .data.roots import cache
from .errors import UserError


def keep_compiled() -> None:
    """Let torch keep what it compiles in our cache folder, unless the user has named another.

    Else it makes a folder in the shared temporary one as soon as there is an optimiser, compiled or not. Where the
    cache cannot be written it is left to do so.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError):
            folder = cache() / "compiled"
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else the machine's accelerator, else the CPU. UserError where it is not there."""
    keep_compiled()
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if found is None else torch.device(found.type)
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":  # which torch knows, but whose tensors hold nothing
            raise RuntimeError(chosen)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        here = ["cpu"] + ([str(torch.accelerator.current_accelerator())] if torch.accelerator.is_available() else [])
        raise UserError(f"Device {str(device)!r} is not on this machine: use {' or '.join(here)}.") from error
    return chosen


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights lie; the CPU where it has none."""
    anchor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if anchor is None else anchor.device


def recompute(module: nn.Module) -> None:
    """Let a module's activations be recomputed in the backward pass instead of kept (Chen et al. 2016)."""
    from torch.utils.checkpoint import checkpoint

    forward = module.forward
    module.forward = lambda *args, **kw: checkpoint(forward, *args, use_reentrant=False, **kw)


PRECISIONS = ("highest", "high", "medium")  # torch's names


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Single-precision products at least so precise within, and as before after it; "highest" changes nothing."""
    before = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(before)


_compiles: bool | None = None


def compiler_works() -> bool:
    """Whether torch.compile has a toolchain to work with; tried once."""
    global _compiles
    if _compiles is None:
        try:
            torch.compile(lambda x: x * 2 + 1)(torch.ones(4))
            _compiles = True
        except Exception:  # whatever a broken toolchain raises
            _compiles = False
    return _compiles
