"""`morphogen interpolate`: what lies between two things, as a strip of pictures and a film."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError, nearest, unknown
from . import recipe as recipes
from .codec import Cond, codec_run, conditions, held_out, picture, pictures_space, save, taken
from .context import Context, data_root
from .data import picture_path

if TYPE_CHECKING:
    from torch import Tensor

    from ..experiment import Run
    from ..latent.vectors import Vectors

_root = data_root


def interpolate(
    context: Context,
    run: Path,
    *,
    ends: tuple[str, ...] = ("0", "1"),
    way: Literal["linear", "spherical"] | None = None,
    steps: int = 9,
    label: tuple[str, ...] = (),
    space: Literal["z", "w", "w+"] | None = None,
    extractor: Path | None = None,
    film: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Walk in the latent space from one thing to another, and on to further ones, and draw what lies on the way.

    run: the folder of the run, of a codec or a GAN. ends: two or more of these, in order: a number, for a held-out
    item; the path of a picture; or the word sample, for one that the run draws. way: linear, or spherical, which keeps
    the norm of Gaussian latents (default: spherical where the run can sample and has no code book, else linear).
    steps: pictures from each end to the next, both ends among them. label: the class of each end, in turn, for a codec
    that is told classes (default: those of the items). space: of a GAN, which items and pictures are inverted in, a
    second or so each: z, or of styles w or w+ (default: z). extractor: the run of a classifier, whose features are
    compared beside the pixels in inverting. film: FILE.gif, or FILE.mp4, for a film of the way, there and back.
    seed: of the samples. out: the picture to write, a row for each two ends, or FILE.npy for the numbers (default:
    interpolated.png in the run). checkpoint: newest, best or a step. ema: which averaged weights, by decay or length,
    or live (default: the run's first average). device: cpu, cuda, …. data_root: the folder that holds the data sets.
    with_: files that define classes of yours which the run uses.
    """
    if len(ends) < 2:
        raise UserError("--ends needs two or more: held-out items by number, pictures by path, or sample.")
    if steps < 2:
        raise UserError(f"--steps {steps} has no two ends: take 2 or more.")
    path = out or run / "interpolated.png"
    if path.suffix != ".npy":
        picture_path(path, ", or in .npy for the numbers")
    if film is not None:
        from ..data.film import film_path

        film_path(film)
    from ..adversarial.invert import Inverse
    from ..core import Samples, can, each
    from ..latent.interpolate import WAYS, between
    from ..latent.vectors import Vectors

    with _root(data_root):
        modules = recipes.load_files(with_)
        loaded = codec_run(context, run, checkpoint, ema, device, modules, space=space, extractor=extractor)
        flat = Vectors(loaded.model)
        z, cond = _ends(context, loaded, flat, ends, label, seed)
        normal = loaded.model.space == "z" if isinstance(loaded.model, Inverse) else can(loaded.model, Samples)
        name = way or ("spherical" if normal and not flat.of_codes else "linear")
        before = None if cond is None else each(cond, lambda c: c[:-1])
        after = None if cond is None else each(cond, lambda c: c[1:])
        made = between(flat, z[:-1], z[1:], steps, way=WAYS[name], cond_a=before, cond_b=after)
    files = []
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        import numpy as np

        np.save(path, made.cpu().numpy())
        files.append(path)
    if path.suffix != ".npy" or film:
        shown = pictures_space(
            loaded, "only pictures can be drawn: write the numbers with --out FILE.npy, without --film"
        )
        if path.suffix != ".npy":
            files.append(save(shown.show(made.flatten(0, 1), steps), path))
        if film:
            from ..data.film import film as shot

            film.parent.mkdir(parents=True, exist_ok=True)
            shot([shown.show(frame[None]) for leg in made for frame in leg], film)
            files.append(film)
    text = f"From {' to '.join(ends)}, {name}, {steps} steps each (step {loaded.step}): " + " and ".join(
        map(str, files)
    )
    fields = {"ends": list(ends), "way": name, "steps": steps, "seed": seed, "step": loaded.step, "ema": loaded.average}
    context.tell.answer("interpolated", {**fields, "files": [str(f) for f in files]}, text)


def _ends(
    context: Context, run: Run, flat: Vectors, ends: tuple[str, ...], label: tuple[str, ...], seed: int
) -> tuple[Tensor, Cond | None]:
    """The latents (n, d) between which the way leads, and their conditions where all are known."""
    import torch

    from ..adversarial.invert import Inverse
    from ..core import Noise, Samples, can, each
    from ..experiment import draw

    if label and len(label) not in (1, len(ends)):
        raise UserError(f"--label names {len(label)} classes for {len(ends)} ends: give one for all, or one for each.")
    told = conditions(run, len(ends), label)
    drawn = [i for i, end in enumerate(ends) if end == "sample"]
    inverts = isinstance(run.model, Inverse)
    if drawn and not (inverts or can(run.model, Samples)):
        raise UserError(
            f"A {type(run.model).__name__} cannot sample: give held-out items by number, or pictures, as --ends."
        )
    x: dict[int, Any] = {}
    conds: dict[int, Any] = {}
    if drawn and not inverts:
        rows = torch.tensor(drawn)
        wishes = None if told is None else each(told, lambda c: c[rows])
        x |= dict(zip(drawn, draw(run.model, len(drawn), wishes, seed=seed).cpu(), strict=True))
    for i, end in enumerate(ends):
        if end == "sample":
            continue
        if end.lstrip("-").isdecimal():
            items = held_out(run)
            if not 0 <= int(end) < len(items):
                raise UserError(f"There is no held-out item {end}: they are numbered 0 to {len(items) - 1}.")
            found = taken(items, torch.tensor([int(end)]))
            x[i], conds[i] = found.x[0], found.cond
        else:
            if nearest(end, ["sample"]) and not Path(end).exists():
                raise unknown("end", end, ["sample"], "(or give a held-out item's number, or a picture's path)")
            space = pictures_space(run, "a path names a picture: give held-out items by number")
            x[i] = picture(space, Path(end), context.tell.note)
    known = {i: c for i, c in conds.items() if c}
    if told is None and known:  # the others are of no class
        some = next(iter(known.values()))
        told = {k: torch.cat([known.get(i, some)[k] for i in range(len(ends))]) for k in some}
        if len(known) < len(ends):
            told["null"] = torch.tensor([i not in known for i in range(len(ends))])
    dtype = next((p.dtype for p in run.model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    z: dict[int, Tensor] = {}
    if drawn and isinstance(run.model, Inverse):  # its latents are known: nothing to be found
        noise = Noise.seeded(seed, len(ends), device=flat.device)
        cond = None if told is None else each(told, lambda c: c.to(flat.device))
        with torch.no_grad():
            found_z = flat.flattened(run.model.draw(len(ends), cond, noise=noise)).cpu()
        z |= {i: found_z[i] for i in drawn}
    if x:
        rows = torch.tensor(sorted(x))
        mine = None if told is None else each(told, lambda c: c[rows])
        with torch.no_grad():
            z |= dict(zip(sorted(x), flat.encode(torch.stack([x[i].to(dtype) for i in sorted(x)]), mine), strict=True))
    return torch.stack([z[i] for i in range(len(ends))]), told
