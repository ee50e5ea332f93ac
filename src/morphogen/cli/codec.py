"""What the verbs of the latent space share: a run that has one, items and pictures for it, a page of results."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..errors import UserError
from .context import Context
from .sample import load_run

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Items, Model
    from ..data.space import Pictures
    from ..experiment import Run
    from ..metrics.measure import Measure

Cond = Mapping[str, Any]


class Chosen(NamedTuple):
    """Items with their places in the data: x (n, ...), conditions or None, place (n,)."""

    x: Tensor
    cond: Cond | None
    place: Tensor


def codec_run(
    context: Context,
    run: Path,
    checkpoint: str,
    ema: str | None,
    device: str | None,
    modules: Sequence[ModuleType],
    *,
    space: str | None = None,
    extractor: Path | None = None,
) -> Run:
    """A run whose model is a codec: a diffusion by its probability flow, a GAN by inversion.

    space: of a GAN's latents (default: z). extractor: the run of a classifier whose features are compared in inverting.
    UserError in one sentence where the model is no codec, or these are said of one that needs no inversion.
    """
    from ..adversarial.invert import Decodes, Inverse
    from ..core import Codec, can
    from ..diffusion import Diffusion
    from ..diffusion.inversion import ProbabilityFlow

    loaded = load_run(context, run, checkpoint, device, modules, ema)
    if isinstance(loaded.model, Diffusion):
        loaded.model = cast("Model", ProbabilityFlow(loaded.model, loaded.model.shape))
    if can(loaded.model, Decodes) and not can(loaded.model, Codec):
        seen = None if extractor is None else _distance(context, extractor, loaded, modules)
        loaded.model = cast("Model", Inverse(loaded.model, space or "z", distance=seen).to(loaded.device))
    elif space or extractor:
        flag = "--space" if space else "--extractor"
        raise UserError(
            f"{flag} is for inverting a GAN, and a {type(loaded.model).__name__} encodes by itself: leave it out."
        )
    if not can(loaded.model, Codec):
        raise UserError(
            f"The run {str(run)!r} is a {type(loaded.model).__name__}, which has no latent space: {context.command}"
            " needs an autoencoder, a VAE or another codec (`morphogen train --help` lists recipes)."
        )
    return loaded


def _distance(context: Context, extractor: Path, run: Run, modules: Sequence[ModuleType]) -> Any:
    """What the classifier of a run sees in two pictures. UserError where it reads none of this run's."""
    from ..latent.perceptual import Perceptual
    from .judge import checked_judge

    reader = checked_judge(run, load_run(context, extractor, "newest", None, modules))
    return Perceptual(reader.model)


def held_out(run: Run) -> Items:
    """The run's test items. UserError where there are none."""
    if run.data.test is None or not len(run.data.test):
        raise UserError(f"The run {str(run.path)!r} has no held-out data: give its recipe Data(train, test=…).")
    return run.data.test


def some(items: Items, n: int, seed: int) -> Chosen:
    """n of the items after a shuffle under `seed`; all, in order, where n is -1 or not below their number."""
    import torch

    if n < -1 or n == 0:
        raise UserError(f"--n {n} takes no items: take 1 or more, or -1 for all.")
    index = torch.arange(len(items))
    if 0 < n < len(items):
        index = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:n]
    return taken(items, index)


def taken(items: Items, index: Tensor) -> Chosen:
    """The items of that index, in the default precision where they are floats."""
    batch = items.take(index)
    return Chosen(batch["x"], batch.get("cond") or None, index)


def pictures_space(run: Run, why: str) -> Pictures:
    """The run's space of pictures. UserError where its data are something else."""
    from ..data.space import Pictures

    if not isinstance(run.space, Pictures):
        raise UserError(f"The data of {str(run.path)!r} are no pictures, and {why}.")
    return run.space


def picture(space: Pictures, path: Path, note: Any = lambda text: None) -> Tensor:
    """x (C, H, W) of a picture file of the user's, cut to the run's size. UserError for what cannot be one."""
    import torch

    from ..data.decode import Bad, decode, measure

    if not path.is_file():
        raise UserError(f"There is no picture {str(path)!r}: check the path.")
    channels, height, width = space.shape
    data = path.read_bytes()
    try:
        if measure(data) != (height, width):
            note(f"{path} is cut to {height}x{width}, the size of this run's pictures.")
        pixels = decode(data, (channels, height, width))
    except Bad as bad:
        raise UserError(f"{str(path)!r} cannot be used, for {bad}: give a PNG, JPEG or WebP picture.") from None
    return torch.from_numpy(pixels.copy()).to(torch.get_default_dtype()) / 127.5 - 1


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """The pictures that are named, and those in folders that are. UserError where a folder has none."""
    from ..data.decode import SUFFIXES

    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
        if not inside:
            raise UserError(f"There is no PNG, JPEG or WebP picture in {str(path)!r}: name the folder of yours.")
        found += inside
    return found


def stems(files: Sequence[Path]) -> list[str]:
    """Names for what is made of each. UserError where two are alike."""
    names = [f.stem for f in files]
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise UserError(f"Two of the pictures are called {twice!r}: rename one, or give them one at a time.")
    return names


def read_pictures(space: Pictures, files: Sequence[Path], note: Any) -> Tensor:
    """x (B, C, H, W) of files of the user's, each as `picture` has it."""
    import torch

    return torch.stack([picture(space, file, note) for file in files])


def conditions(run: Run, n: int, label: Sequence[str]) -> Cond | None:
    """Conditions of n things from the words of --label; None where there are none."""
    if not label:
        return None
    if run.space is None:
        raise UserError(f"The run {str(run.path)!r} has no space, so no classes by name: leave --label out.")
    return run.space.cond(n, label=list(label))


class Page:
    """A page of results that grows, with the receipt that the other verbs give; written as JSON into the run."""

    def __init__(self, context: Context, run: Run, seed: int) -> None:
        self.context, self.run, self._began = context, run, time.perf_counter()
        self.measures: dict[str, Measure] = {}
        self.page: dict[str, Any] = {"run": str(run.path), "step": run.step, "ema": run.average, "seed": seed}

    def write(self, name: str, files: Sequence[Path], more: Mapping[str, Any]) -> dict[str, Any]:
        """Write NAME.json beside the run's other results, `more` in it, and return what it holds."""
        from .. import __version__
        from .receipts import command, machine, now, write_json

        device = str(self.run.device)
        page = self.page | dict(more)
        if self.measures:
            page["measures"] = {k: m._asdict() for k, m in self.measures.items()}
        page |= {
            "files": [str(f) for f in files],
            "seconds": round(time.perf_counter() - self._began, 3),
            "machine": machine(device),
            "command": command(self.context.typed),
            "morphogen": __version__,
            "at": now(),
        }
        write_json(self.run.path / f"{name}.json", page)
        return page

    def told(self) -> str:
        """The measures as a table, below what was measured."""
        from .tell import measured

        head = f"{self.run.path}, step {self.run.step}"
        return f"{head}:\n\n{measured({k: m._asdict() for k, m in self.measures.items()})}"


def ready(path: Path) -> None:
    """Make the folder that is to be written, or that of a file: before the work, which would be lost otherwise."""
    (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)


def save(picture: Any, path: Path) -> Path:
    """Save a picture, its folder made where it is missing; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
