"""What the readers and writers of checkpoints share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import UserError, unknown


def activation_of(name: str, known: Mapping[str, str]) -> str:
    """Our name of an activation of theirs. Raises UserError naming the nearest."""
    if name not in known:
        raise unknown("activation in this configuration that a net here has:", name, known)
    return known[name]


def lacking(lacks: bool, what: str) -> None:
    """Raise UserError for a net that cannot be written as theirs."""
    if lacks:
        raise UserError(f"This net cannot be written as theirs, which needs {what}.")


def whole(net: nn.Module) -> dict[str, Tensor]:
    """A net's weights, each once, where they lie."""
    return {name: p.detach() for name, p in net.named_parameters()}
