"""`morphogen anomaly`: which held-out items are unlike what a run was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import UserError
from ..seen import seen_items
from . import recipe as recipes
from .codec import Chosen, Page, held_out, save, some
from .context import Context, data_root
from .data import picture_path
from .sample import load_run

if TYPE_CHECKING:
    from torch import Tensor

    from ..experiment import Run
    from ..latent.pca import Components
    from ..metrics.measure import Measure

_root = data_root
_HOW = {
    "error": "mean squared error of the reconstruction",
    "elbo": "lower bound of the negative log-likelihood, nats",
    "log_prob": "negative log-likelihood, nats",
}


class _Scored(NamedTuple):
    """The scores (N,) of a run's held-out items, by what, and which of them are strange: (N,), or None."""

    items: Chosen
    score: Tensor
    by: str
    strange: Tensor | None
    rivals: dict[str, tuple[int, Tensor]]  # of principal components: how many, and their scores


def anomaly(
    context: Context,
    run: Path,
    *,
    by: Literal["error", "elbo", "log_prob"] | None = None,
    normal: tuple[str, ...] = (),
    also: tuple[Path, ...] = (),
    pca: bool = False,
    n: int = -1,
    show: int = 20,
    seed: int = 0,
    out: Path | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Score how unlike its training data each held-out item is, show the strangest, and draw the ROC curve.

    Where it is known which classes are normal, the area under the curve says how well the score tells the others from
    them: 1 is perfect, one half is chance.

    run: the folder of the run, of a codec or of a model with a likelihood. by: the score: error, of the reconstruction;
    elbo or log_prob, of the likelihood (default: the first that the model can). normal: the classes that are normal, by
    name or number (default: those that it was trained on, where it saw some alone).
    also: runs of other normal classes over the same held-out items: the mean area of all. pca: measure principal
    components of the same training items beside it: as many as the run's latents have numbers, and as many as keep nine
    tenths of the variance.
    n: how many held-out items, -1 for all. show: how many of the strangest to draw. seed: which items.
    out: the picture of the strangest to write (default: anomaly.png in the run, and roc.png beside it).
    checkpoint: newest, best or a step. ema: which averaged weights, by decay or length, or live (default: the run's
    first average). device: cpu, cuda, …. data_root: the folder that holds the data sets. with_: files that define
    classes of yours which the run uses.
    """
    path = out or run / "anomaly.png"
    picture_path(path)
    if show < 1:
        raise UserError(f"--show {show} draws nothing: take 1 or more.")
    if also and normal:
        raise UserError("--normal is of one run, and --also has several, whose own classes are taken: leave it out.")
    with _root(data_root):
        modules = recipes.load_files(with_)
        runs = [load_run(context, folder, checkpoint, device, modules, ema) for folder in (run, *also)]
        scored = [_scored(context, r, by, normal, n, seed, pca) for r in runs]
    loaded, first = runs[0], scored[0]
    page, how = Page(context, loaded, seed), _HOW[first.by]
    strangest = first.score.argsort(descending=True)[:show]
    files = _drawn(loaded, first, strangest, path)
    if also and any(s.strange is None for s in scored):
        raise UserError("Not all of these runs know which classes are normal: give each alone, with --normal.")
    if first.strange is not None:
        page.measures |= _areas(scored)
        roc = path.with_name("roc.png" if path.name != "roc.png" else "roc-curve.png")
        files.append(save(_chart(first), roc))
    index = first.items.place[strangest].tolist()
    areas = [_values(s) for s in scored if s.strange is not None]
    about = {"by": first.by, "n": len(first.score), "runs": [str(r.path) for r in runs], "areas": areas}
    fields = page.write("anomaly", files, about | {"strangest": index})
    text = page.told() if page.measures else f"{run}, step {loaded.step}: {len(first.score)} held-out items by {how}"
    lines = [text, "", f"  strangest held-out items: {', '.join(map(str, index[:10]))}", *(f"  {f}" for f in files)]
    context.tell.answer("anomaly", fields, "\n".join(lines))


def _areas(scored: Sequence[_Scored]) -> dict[str, Measure]:
    """The areas under the curves, of one run or the mean of several, and of the components beside them."""
    from ..metrics.rank import apart, area, mean_area

    mean = f"mean of {len(scored)} areas" if len(scored) > 1 else "area"
    ours = [area(s.score, s.strange) for s in scored if s.strange is not None]
    said = f"{mean} under the ROC curve, {_HOW[scored[0].by]}, DeLong's interval"
    found = {f"AUROC, {scored[0].by}": mean_area(ours, said)}
    for name in scored[0].rivals:
        theirs = [area(s.rivals[name][1], s.strange) for s in scored if s.strange is not None]
        few, many = (f(s.rivals[name][0] for s in scored) for f in (min, max))
        counts = str(few) if few == many else f"{few} to {many}"
        found[f"AUROC, {name}"] = mean_area(theirs, f"{mean} under the ROC curve, error of {counts} components")
        pairs = [apart(a, b) for a, b in zip(ours, theirs, strict=True)]
        found[f"… above {name}"] = mean_area(pairs, f"{mean} more than that, DeLong's interval", low=-1.0)
    return found


def _values(scored: _Scored) -> dict[str, float]:
    """The areas of one run, by name."""
    return {name: round(m.value, 6) for name, m in _areas([scored]).items()}


def _chart(scored: _Scored) -> Any:
    """The ROC curve of a run, and that of the components."""
    from ..data.chart import curves
    from ..metrics.rank import roc

    assert scored.strange is not None
    lines = {}
    rivals = {f"{name}, {rank}": score for name, (rank, score) in scored.rivals.items()}
    for name, score in {scored.by: scored.score, **rivals}.items():
        curve = roc(score, scored.strange)
        lines[name] = (curve.false.tolist(), curve.true.tolist())
    return curves(lines, "share of normal items taken for strange", "share of strange items found")


def _scored(context: Context, run: Run, by: str | None, normal: Sequence[str], n: int, seed: int, pca: bool) -> _Scored:
    """A run's held-out items with their scores."""
    from ..latent.anomaly import served, strangeness

    has = served(run.model)
    if not has:
        raise UserError(
            f"The run {str(run.path)!r} is a {type(run.model).__name__}, which is neither a codec nor has a likelihood:"
            " morphogen anomaly needs an autoencoder, a VAE or a density."
        )
    if by is not None and by not in has:
        raise UserError(f"A {type(run.model).__name__} gives no score by {by}: take --by {' or '.join(has)}.")
    items = some(held_out(run), n, seed)
    device = run.device
    with context.tell.progress("item", len(items.x)) as told:
        x, cond = items.x.to(device), items.cond
        cond = None if cond is None else {k: c.to(device) for k, c in cond.items()}
        score = strangeness(run.model, x, cond, by=by or has[0], progress=told).cpu()
    strange = _strange(run, items, normal)
    rivals = {
        name: (len(c.axes), strangeness(c, items.x, by="error"))
        for name, c in (_components(run, items, seed) if pca else {}).items()
    }
    return _Scored(items, score, by or has[0], strange, rivals)


def _strange(run: Run, items: Chosen, normal: Sequence[str]) -> Tensor | None:
    """Which items are of no normal class; None where nobody says what is normal."""
    import torch

    from ..data.only import Only
    from ..data.space import number

    label = (items.cond or {}).get("label")
    if normal:
        classes = getattr(run.space, "classes", ())
        if label is None or not classes:
            raise UserError(f"The data of {str(run.path)!r} have no classes, so none is normal: leave --normal out.")
        kept = [number(name, classes) for name in normal]
    else:
        source = _trained_on(run)
        if label is None or not isinstance(source, Only):
            return None
        kept = list(source.classes)
    return ~torch.isin(label, torch.tensor(kept, dtype=label.dtype))


def _trained_on(run: Run) -> Any:
    try:
        return seen_items(run.data.train, held_out(run)).items
    except UserError:
        return None


def _components(run: Run, items: Chosen, seed: int) -> dict[str, Components]:
    """Principal components of the training items: as many as a latent has numbers, and by their variance."""
    import torch

    from ..core import Codec, can
    from ..latent.pca import explaining, principal
    from ..latent.vectors import Vectors

    source = _trained_on(run)
    if source is None:
        raise UserError(f"The data of {str(run.path)!r} are no recorded items to fit components to: leave --pca out.")
    x = some(source, 10_000, seed).x
    found = {"PCA of 90 %": explaining(x)}
    if can(run.model, Codec):
        with torch.no_grad():
            size = Vectors(run.model).encode(items.x[:1], None if items.cond is None else _first(items.cond)).shape[1]
        if size < min(len(x) - 1, x[0].numel()):
            found = {"PCA of the code's size": principal(x, size)} | found
    return found


def _first(cond: Any) -> Any:
    from ..core import each

    return each(cond, lambda c: c[:1])


def _drawn(run: Run, scored: _Scored, rows: Tensor, path: Path) -> list[Path]:
    """The sheet of the strangest items, with their scores; nothing where they are no pictures."""
    from ..data.space import Pictures

    if not isinstance(run.space, Pictures):
        return []
    captions = [f"{float(scored.score[i]):.3g}" for i in rows]
    return [save(run.space.show(scored.items.x[rows], min(10, len(rows)), captions), path)]
