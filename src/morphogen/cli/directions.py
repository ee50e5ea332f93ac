"""`morphogen directions`: what in the latent space goes with an attribute, and what becomes of items along it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UserError, unknown
from ..seen import seen_items
from . import recipe as recipes
from .codec import Chosen, Page, codec_run, held_out, pictures_space, save, some
from .context import Context, data_root
from .data import picture_path
from .judge import checked_judge
from .sample import load_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..core import Items
    from ..data.space import Pictures
    from ..experiment import Run
    from ..metrics.measure import Measure

_root = data_root


class _Attribute(NamedTuple):
    """What a direction is learned from. value: (N,) of the items `rows` (N,). unit: of the walk's steps. measured: how
    it is read from pictures, where it can be. within: whether it is taken within the classes.
    """

    name: str
    value: Tensor
    rows: Tensor
    unit: float = 1.0
    measured: Callable[[Tensor], Tensor] | None = None
    within: bool = False


def directions(
    context: Context,
    run: Path,
    *,
    of: tuple[str, ...] = ("thickness", "slant"),
    against: str | None = None,
    n: int = 5000,
    walked: int = 500,
    steps: int = 9,
    reach: float = 2.0,
    show: int = 8,
    judge: Path | None = None,
    film: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Find the direction of the latent space along which an attribute changes, walk along it, and measure what comes.

    A measured attribute's direction is the slope of the latents on it, within classes where there are any; that of a
    class, the difference of its mean from that of the others. Written: a sheet, a row for each item and a column for
    each step, and directions.safetensors, the directions by name.

    run: the folder of the run, of a codec of pictures. of: attributes: thickness, slant, brightness, a number that the
    data bring as a condition, or a class by name or number.
    against: the class from whose mean that of a class is taken (default: all others). n: how many training items the
    directions are learned from, -1 for all. walked: how many held-out items are moved along them and measured.
    steps: of a walk. reach: how far it goes either way, in standard deviations of the attribute (of a class: in
    differences of means). show: how many of the items to draw. judge: the run of a classifier, to say whether items
    keep their class. film: FILE.gif or FILE.mp4 of the walk. seed: which items. out: the picture to write (default:
    directions.png in the run).
    checkpoint: newest, best or a step. ema: which averaged weights, by decay or length, or live (default: the run's
    first average). device: cpu, cuda, …. data_root: the folder that holds the data sets. with_: files that define
    classes of yours which the run uses.
    """
    path = out or run / "directions.png"
    picture_path(path)
    if film is not None:
        from ..data.film import film_path

        film_path(film)
    if steps < 2 or not reach > 0 or show < 1 or walked < 2:
        raise UserError(
            f"A walk of --steps {steps}, --reach {reach:g}, --show {show}, --walked {walked} shows nothing: take steps"
            " and walked of 2 or more, show of 1 or more, and a reach above 0."
        )
    for i, name in enumerate(of):
        if name in of[:i]:
            raise UserError(f"--of names {name!r} twice: name it once.")
    import torch
    from safetensors.torch import save_file

    from ..core import each
    from ..data.space import grid
    from ..latent.directions import direction, walk
    from ..latent.vectors import Vectors

    with _root(data_root):
        modules = recipes.load_files(with_)
        loaded = codec_run(context, run, checkpoint, ema, device, modules)
        space = pictures_space(loaded, "directions are drawn as pictures: learn them in Python, by morphogen.latent")
        reader = None if judge is None else checked_judge(loaded, load_run(context, judge, "newest", device, modules))
        learned, tried = some(_train(loaded), n, seed), some(held_out(loaded), walked, seed)
    attributes = [_attribute(space, learned, name, against) for name in of]
    if reader is not None and _labels(tried) is None:
        raise UserError(f"The data of {str(run)!r} have no classes for a judge to read: leave --judge out.")
    page, flat = Page(context, loaded, seed), Vectors(loaded.model)
    found: dict[str, Tensor] = {}
    rows: list[Tensor] = []  # of the items that are drawn, (show, T, C, H, W) for each attribute
    with torch.no_grad(), context.tell.progress("attribute", len(of)) as told:
        z, start = flat.encode(learned.x, learned.cond), flat.encode(tried.x, tried.cond)
        for i, attribute in enumerate(attributes):
            given = _labels(learned) if attribute.within else None
            keep = attribute.rows
            along = direction(z[keep], attribute.value[keep], None if given is None else given[keep])
            amounts = torch.linspace(-reach, reach, steps, dtype=torch.float64) * attribute.unit
            cond = None if tried.cond is None else each(tried.cond, lambda c: c.repeat_interleave(steps, 0))
            made = flat.decode(walk(start, along, amounts).flatten(0, 1), cond)
            made = made.reshape(len(start), steps, *made.shape[1:])
            page.measures |= _measured(attribute, made, amounts, _labels(tried), reader)
            found[attribute.name] = along
            rows.append(made[:show])
            told(i + 1)
    blocks = [space.show(r.flatten(0, 1), steps) for r in rows]
    captions = [f"{a.name}, {-reach * a.unit:+.3g} to {reach * a.unit:+.3g}" for a in attributes]
    files = [save(grid(blocks, 1, captions), path)]
    if film is not None:
        from ..data.film import film as shot

        film.parent.mkdir(parents=True, exist_ok=True)
        shot([space.show(torch.cat([r[:, t] for r in rows]), len(rows[0])) for t in range(steps)], film)
        files.append(film)
    files.append(run / "directions.safetensors")
    save_file({k: v.contiguous() for k, v in found.items()}, files[-1])
    about = {"of": list(of), "reach": reach, "steps": steps, "learned_from": len(learned.x)}
    fields = page.write("directions", files, about)
    text = page.told() if page.measures else f"{run}, step {loaded.step}: directions of {', '.join(of)}"
    context.tell.answer("directions", fields, "\n".join([text, "", *(f"  {f}" for f in files)]))


def _train(run: Run) -> Items:
    """The recorded items that the run was trained on; the held-out ones where its source is another."""
    try:
        found = seen_items(run.data.train, held_out(run))
    except UserError:
        return held_out(run)
    return found.items


def _labels(chosen: Chosen) -> Tensor | None:
    label: Tensor | None = (chosen.cond or {}).get("label")
    return label if label is not None and label.ndim == 1 and not label.is_floating_point() else None


def _attribute(space: Pictures, items: Chosen, name: str, against: str | None) -> _Attribute:
    """An attribute by its name. UserError naming the nearest."""
    import torch

    from ..data.space import number
    from ..latent.directions import spread
    from ..metrics.strokes import MEASURES

    label, every = _labels(items), torch.ones(len(items.x), dtype=torch.bool)
    told: Tensor | None = (items.cond or {}).get(name) if name != "label" else None
    if name in MEASURES or (told is not None and told.ndim == 1):
        if against is not None:
            raise UserError(f"--against names a class, and {name!r} is a number: leave it out.")
        read = MEASURES.get(name)
        value = read(items.x) if read is not None else torch.as_tensor(told).double()
        return _Attribute(name, value, every, spread(value, label), read, label is not None)
    if label is None or not (name in space.classes or name.isdecimal()):
        raise unknown("attribute", name, [*MEASURES, *(space.classes if label is not None else ())])
    has = label == number(name, space.classes)
    other = ~has if against is None else label == number(against, space.classes)
    if bool((other & has).any()):
        raise UserError(f"--against {against!r} is the class itself: name another, or none for all others.")
    return _Attribute(name, has.double(), has | other)


def _measured(
    attribute: _Attribute, made: Tensor, amounts: Tensor, label: Tensor | None, judge: Run | None
) -> dict[str, Measure]:
    """What became of the attribute and of the classes in pictures (B, T, C, H, W), a column for each amount."""
    from ..metrics.judge import read
    from ..metrics.likelihood import mean_of
    from ..metrics.measure import share
    from ..metrics.rank import spearman

    name, (items, steps) = attribute.name, made.shape[:2]
    found: dict[str, Measure] = {}
    if attribute.measured is not None:
        value = attribute.measured(made.flatten(0, 1)).reshape(items, steps)
        order = spearman(value, amounts.expand_as(value))
        told = mean_of(order, "Spearman's correlation of step and measure, mean over items")
        found[f"{name}: order"] = told._replace(low=max(told.low, -1.0), high=min(told.high, 1.0))
        found[f"{name}: change"] = mean_of(value[:, -1] - value[:, 0], "of the measure from the first step to the last")
    if judge is not None and label is not None:
        seen = read(judge.model.cpu(), made.flatten(0, 1).cpu()).label.reshape(items, steps)  # type: ignore[arg-type]
        kept = seen == label[:, None]
        found[f"{name}: class"] = mean_of(kept.double().mean(1), "share of pictures read as the item's class")
        whole = share(int(kept.all(1).sum()), items, "items read as their class at every step, Wilson interval")
        found[f"{name}: class throughout"] = whole
    return found
