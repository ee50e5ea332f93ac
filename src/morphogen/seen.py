"""What a run was trained on, from under what augments, pairs or encodes it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .errors import UserError

if TYPE_CHECKING:
    from .core import Items, Source


class Seen(NamedTuple):
    """Items of the training data's law. recorded: they are the very items that the model was trained on."""

    items: Items
    recorded: bool


def seen_items(source: Source, test: Items, named: str = "this run") -> Seen:
    """What a model learns from where its batches come from `source`; of a density, other draws than `test`.

    Raises UserError, which calls the run as `named`, for sources of neither recorded items nor draws of a density.
    """
    from .data.augment import Augmented
    from .data.densities import Drawn, Fresh
    from .data.paired import Unpaired
    from .data.source import Shuffled
    from .diffusion.coupling import OptimalTransport

    while isinstance(source, Augmented | OptimalTransport | Unpaired):
        source = source.target if isinstance(source, Unpaired) else source.source
    if isinstance(source, Fresh):
        other = test.seed + 1 if isinstance(test, Drawn) else 1
        return Seen(Drawn(source.density, len(test), seed=other), recorded=False)
    if not isinstance(source, Shuffled):
        raise UserError(
            f"The data of {named} are a {type(source).__name__}, neither recorded items nor draws of a"
            " density: its samples cannot be held against them yet; --n 0 measures the likelihood alone."
        )
    return Seen(plain(source.items), recorded=True)


def plain(items: Items) -> Items:
    """The items themselves, where `items` are encoded ones."""
    from .data.encoded import Encoded

    return items.items if isinstance(items, Encoded) else items
