"""`morphogen doctor`: is everything here that the library needs, and does it work; text to paste into an issue."""

from __future__ import annotations

import getpass
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..data import table
from ..data.roots import cache
from ..errors import UserError
from ..units import storage
from . import recipe as recipes
from .context import Context, data_root
from .receipts import cpu
from .train import temporary

if TYPE_CHECKING:
    from ..experiment import Experiment

_NAME = "morphogen"
_ROOM = 1 << 30  # bytes: less free disk than this is a warning
_FILES = 256  # open files: fewer allowed than this is a warning

Facts = dict[str, Any]


def doctor(context: Context, *, folder: Path = Path("runs"), data_root: Path | None = None) -> int:
    """Look at this machine and installation, and try everything once; text fit to be pasted into an issue.

    Exit code 0 where all is well, else 1 and what to do. Names of users and of their folders are left out.

    folder: where the runs are. data_root: the folder that holds the data sets (default: $MORPHOGEN_DATA).
    """
    to_do: list[str] = []
    with _root(data_root):
        found: dict[str, Facts] = {
            "versions": _versions(),
            "packages": _packages(to_do),
            "machine": _machine(to_do),
            "disk": _disk({"runs": folder, "cache": cache()}, to_do),
            "data": _data(),
        }
        if (devices := _devices(to_do)) is not None:
            found |= {"devices": devices, "self-test": {d: self_test(d, to_do) for d in devices}}
    told = private({**found, "well": not to_do, "to_do": to_do})
    context.tell.answer("doctor", told, _text(told))
    return 0 if told["well"] else 1


_root = data_root


def _text(told: Mapping[str, Any]) -> str:
    lines = []
    for room, facts in told.items():
        if isinstance(facts, dict):
            lines += [room, *(f"  {name:<16} {value}" for name, value in facts.items()), ""]
    if told["well"]:
        return "\n".join([*lines, "All is well."])
    return "\n".join([*lines, "To do:", *(f"  - {line}" for line in told["to_do"])])


def private(value: Any) -> Any:
    """The value with the user's home folder as "~", and the user's name in any other path as USER."""
    if isinstance(value, dict):
        return {private(k): private(v) for k, v in value.items()}
    if isinstance(value, list):
        return [private(v) for v in value]
    if not isinstance(value, str):
        return value
    try:
        names = {getpass.getuser(), Path.home().name} - {""}
    except (OSError, KeyError, RuntimeError):  # a process without a name or home, as in some containers
        return value
    home = str(Path.home())
    text = re.sub(rf"{re.escape(home)}(?=[/\\\s'\":,;]|$)", "~", value) if len(home) > 1 else value
    return re.sub(rf"(?<=[/\\])({'|'.join(map(re.escape, names))})(?=[/\\\s'\":,;]|$)", "USER", text)


# ---- what is here --------------------------------------------------------------------------------------------------


def _versions() -> Facts:
    return {
        _NAME: __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()} on {platform.machine()}",
    }


def _packages(to_do: list[str]) -> Facts:
    """Each package that is needed, and each of an extra: version, size, and whether it imports."""
    try:
        wishes = importlib.metadata.requires(_NAME) or []
    except importlib.metadata.PackageNotFoundError:
        to_do.append(f"{_NAME} runs without being installed, so what it needs is not known: pip install it.")
        return {}
    modules: dict[str, list[str]] = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in owners:
            modules.setdefault(_normal(owner), []).append(module)
    found: Facts = {}
    for wish in wishes:
        name = re.match(r"[\w.-]+", wish)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", wish)
        if name is None or (";" in wish and not extra):  # of another system
            continue
        package, label = name[0], f" (extra {extra[1]})" if extra else ""
        how = f"pip install '{_NAME}[{extra[1]}]'" if extra else f"pip install --upgrade {_NAME}"
        try:
            held = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = f"not installed{label}"
            if not extra:
                to_do.append(f"{package} is missing: {how}.")
            continue
        size = sum(f.locate().stat().st_size for f in held.files or () if f.locate().is_file())  # type: ignore[attr-defined]
        module = next((m for m in sorted(modules.get(_normal(package), [])) if not m.startswith("_")), package)
        state = "imports"
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a broken package raises
            state = f"does not import: {recipes.said(error)}"
            to_do.append(f"{package} is installed but {state}: reinstall it, {how}.")
        found[package] = f"{held.version}, {storage(size)}, {state}{label}"
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _machine(to_do: list[str]) -> Facts:
    found: Facts = {"cpu": cpu(), "cores": os.cpu_count()}
    if "OMP_NUM_THREADS" in os.environ:
        found["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found["memory"] = storage(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        found["open files"] = "no limit" if most == resource.RLIM_INFINITY else most
        if 0 <= most < _FILES:
            to_do.append(f"Only {most} files may be open at once: allow more, ulimit -n 4096.")
    except ModuleNotFoundError:  # Windows
        pass
    if Path("/dev/shm").is_dir():
        usage = shutil.disk_usage("/dev/shm")
        found["shared memory"] = f"{storage(usage.free)} free of {storage(usage.total)}"
    return found


def _disk(folders: Mapping[str, Path], to_do: list[str]) -> Facts:
    found = {}
    for name, folder in folders.items():
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        found[name] = f"{storage(free)} free for {folder}"
        if not os.access(there, os.W_OK) or not there.is_dir():
            found[name] += ", cannot be written"
            to_do.append(f"The folder {str(folder)!r} of the {name} cannot be written: choose another one.")
        if free < _ROOM:
            to_do.append(f"Only {storage(free)} are free for {str(folder)!r}: free some space.")
    return found


def _data() -> Facts:
    found: Facts = {}
    for name in table.names():
        try:
            folder = table.folder_of(name)
            found[name] = "comes with the package" if folder is None else f"in {folder}"
        except UserError:
            found[name] = "not found (`morphogen data show` says what is looked for)"
    return found


# ---- does it work --------------------------------------------------------------------------------------------------


def _devices(to_do: list[str]) -> Facts | None:
    """Each device of torch's; None where torch does not import (which stands among the packages)."""
    try:
        import torch
    except Exception:
        return None
    found: Facts = {"cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
    for i in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(i)
            found[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, {storage(free)} free of {storage(total)}"
        except RuntimeError as error:
            found[f"cuda:{i}"] = recipes.said(error)
            to_do.append(f"The device cuda:{i} does not answer ({recipes.said(error)}): look at nvidia-smi.")
    if torch.backends.mps.is_available():
        found["mps"] = "shares the machine's memory"
    return found


def self_test(device: str, to_do: list[str]) -> str:
    """Train two steps on the device, resume, save, load and sample; all must agree to the last bit."""
    try:
        faults = list(_faults(device))
    except Exception as error:  # the very thing that is looked for
        faults = [f"{recipes.said(error)} ({recipes.place(error)})"]
    if not faults:
        return "trained, resumed, saved, loaded and sampled, equal to the last bit"
    to_do.append(f"The self-test on {device} fails ({'; '.join(faults)}): open an issue with this text.")
    return "; ".join(faults)


def _faults(device: str) -> Iterator[str]:
    import torch

    from ..experiment import draw, load
    from ..hooks import Voice

    with temporary() as folder:
        straight, broken = _tiny(), _tiny()
        run = straight.train(Path(folder) / "straight", device=device, voice=Voice())
        broken.train(Path(folder) / "broken", device=device, voice=Voice(), until=1)
        resumed = _tiny().train(Path(folder) / "broken", device=device, voice=Voice())
        again = load(Path(folder) / "straight", device=device)
        there = run.model.state_dict()
        trained = straight.model.state_dict()
        for name, other in {"loaded": trained, "resumed": resumed.model.state_dict()}.items():
            if not all(torch.equal(there[k], other[k].to(there[k].device)) for k in there):
                yield f"{name} weights are not those that were trained"
        x, y = (draw(r.model, 4, seed=1, chunk=4) for r in (run, again))
        if not torch.equal(x, y):
            yield "the same samples drawn twice differ"
        if not x.isfinite().all():
            yield "samples are not finite"


def _tiny() -> Experiment:
    """A flow on points of the plane, of two steps. Its weights are a function of nothing else."""
    import torch

    from ..data.densities import Fresh, eight_gaussians
    from ..diffusion import rectified_flow
    from ..experiment import Data, Experiment
    from ..nets.mlp import MLP
    from ..train import Trainer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = rectified_flow(MLP(2, 2, 8, 1, scalars=("t",)), (2,), drop=0.0)
    return Experiment(model, Data(Fresh(eight_gaussians(), 16)), Trainer(2, save_every=1, log_every=1))
