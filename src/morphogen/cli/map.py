"""`morphogen map`: the latent space as a picture of two dimensions, coloured by class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from . import recipe as recipes
from .codec import codec_run, held_out, save, some
from .context import Context, data_root
from .data import picture_path
from .sample import load_run

if TYPE_CHECKING:
    from torch import Tensor

    from ..experiment import Run

_root = data_root


def map_(
    context: Context,
    run: Path,
    *,
    way: Literal["pca", "tsne"] = "pca",
    n: int = 2000,
    seed: int = 0,
    out: Path | None = None,
    checkpoint: str = "newest",
    ema: str | None = None,
    device: str | None = None,
    data_root: Path | None = None,
    with_: tuple[Path, ...] = (),
) -> None:
    """Draw where held-out items lie in the latent space, a point each, coloured by class; of word vectors, the words.

    run: the folder of the run, of a codec or of word vectors. way: pca, the two directions that show most of the
    variance, or tsne, which keeps neighbours together and whose distances say nothing (it needs scikit-learn: pip
    install morphogen[map]). n: how many held-out items, or of the commonest words, -1 for all. seed: which items, and
    of tsne. out: the picture to write, or FILE.npy for the coordinates (default: map.png in the run).
    checkpoint: newest, best or a step. ema: which averaged weights, by decay or length, or live (default: the run's
    first average). device: cpu, cuda, …. data_root: the folder that holds the data sets. with_: files that define
    classes of yours which the run uses.
    """
    path = out or run / "map.png"
    if path.suffix != ".npy":
        picture_path(path, ", or in .npy for the numbers")
    import torch

    from ..experiment import read_spec
    from ..latent.vectors import Vectors

    if of_words(read_spec(run)):
        words = load_run(context, run, checkpoint, device, recipes.load_files(with_), ema)
        _words(context, words, way, n, seed, path)
        return
    with _root(data_root):
        loaded = codec_run(context, run, checkpoint, ema, device, recipes.load_files(with_))
        chosen = some(held_out(loaded), n, seed)
    with torch.no_grad():
        z = Vectors(loaded.model).encode(chosen.x, chosen.cond).cpu()
    points, said = _plane(z, seed) if way == "pca" else _neighbours(z, seed)
    label = (chosen.cond or {}).get("label")
    names = list(getattr(loaded.space, "classes", ())) if label is not None and label.ndim == 1 else []
    if path.suffix == ".npy":
        import numpy as np

        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, points)
    else:
        from ..data.chart import scatter

        save(scatter(points, label.tolist() if label is not None and label.ndim == 1 else None, names), path)
    text = f"{len(z)} held-out items in {z.shape[1]} dimensions (step {loaded.step}), {said}: {path}"
    fields = {"way": way, "n": len(z), "dimensions": z.shape[1], "how": said, "seed": seed, "step": loaded.step}
    context.tell.answer("mapped", {**fields, "ema": loaded.average, "files": [str(path)]}, text)


def of_words(page: Mapping[str, Any]) -> bool:
    """Whether a run, by its spec.json, is of word vectors."""
    return str(page["experiment"]["args"]["model"].get("class", "")).startswith("morphogen.language.")


def _words(context: Context, run: Run, way: str, n: int, seed: int, path: Path) -> None:
    """The map of word vectors, of the commonest words."""
    vectors, tokens = getattr(run.model, "inner", None), getattr(run.space, "tokens", None)
    if vectors is None or tokens is None:
        raise UserError(f"A {type(run.model).__name__} has no vectors of words to map: give a run of word-vectors.")
    if n < 2 and n != -1:
        raise UserError(f"A map of {n} words shows nothing: take --n 300, or -1 for all.")
    z = vectors.detach().cpu()
    own = z.abs().sum(1).nonzero()[: None if n == -1 else n, 0]  # without what stands for words that have no vector
    z = z[own]
    points, said = _plane(z, seed) if way == "pca" else _neighbours(z, seed)
    if path.suffix == ".npy":
        import numpy as np

        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, points)
    else:
        from ..data.chart import named

        save(named(points, [tokens.decode([i]) for i in own.tolist()]), path)
    text = f"{len(z)} words in {z.shape[1]} dimensions (step {run.step}), {said}: {path}"
    fields = {"way": way, "n": len(z), "dimensions": z.shape[1], "how": said, "seed": seed, "step": run.step}
    context.tell.answer("mapped", {**fields, "ema": run.average, "files": [str(path)]}, text)


def _plane(z: Tensor, seed: int) -> tuple[Any, str]:
    """Coordinates (N, 2) along the first two principal components, and their share of the variance."""
    import torch

    from ..latent.pca import principal, share

    if len(z) < 2:
        raise UserError("A map of one item shows nothing: take --n 2 or more.")
    components = principal(z, min(2, z.shape[1], len(z) - 1))
    at = components.encode(z.double())
    kept = float(share(components).sum()) if float(components.variance.sum()) + components.rest > 0 else 1.0
    return torch.nn.functional.pad(at, (0, 2 - at.shape[1])).numpy(), f"{kept:.1%} of the variance in the picture"


def _neighbours(z: Tensor, seed: int) -> tuple[Any, str]:
    """Coordinates (N, 2) of t-SNE (van der Maaten & Hinton 2008), by scikit-learn."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError(
            "--way tsne needs scikit-learn: `pip install morphogen[map]`, or take --way pca, which needs nothing."
        ) from None
    if len(z) < 4:
        raise UserError(f"t-SNE of {len(z)} items has no neighbourhoods: take --n 4 or more.")
    perplexity = min(30.0, (len(z) - 1) / 3)
    made = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(z.double().numpy())
    return made, f"by t-SNE, perplexity {perplexity:g}, whose distances say nothing"
