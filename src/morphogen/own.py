"""What of a checkpoint is each rank's own: its source, buffers in which it differs, and what `heard` has of its part.

Rank 0's stands where that of a lone process stands; rank r's is the part `rank-r`. A run that goes on with as many
ranks has each its own again. With another number a source that says the same on every rank (a place in recorded data)
is exact, what was heard is cut anew, and what else ranks remember can only be handed on: the user is told so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint import digest, of_rank, pack, pieces
from .core import CannotRestore, Loss, Source, State

if TYPE_CHECKING:
    from .train import Training


def source_state(source: Source) -> State:
    """The source's state, or the sentence that says why there is none."""
    try:
        return {"state": source.state()}
    except CannotRestore as reason:
        return {"cannot": str(reason)}


def reasons(state: Any) -> list[str]:
    """Why what stands in a state will not be exact after a resume, in sentences: it is none where all of it will."""
    if isinstance(state, Mapping):
        if state.keys() == {"cannot"}:
            return [str(state["cannot"])]
        state = list(state.values())
    return [r for value in state for r in reasons(value)] if isinstance(state, list | tuple) else []


def own(training: Training, parts: Mapping[str, State]) -> State:
    """The part of a rank that is not the first: with its pieces of `parts`. A collective: all ranks call it."""
    buffers = _buffers(training)
    told = training.ranks.tell({n: digest({n: b}) for n, b in buffers.items()})
    first, mine = told[0], told[training.rank]
    return {
        "source": source_state(training.source),
        "seen": {k: v.seen for k, v in training.heard.items()},
        "buffers": {n: b for n, b in buffers.items() if mine[n] != first[n]},
        "pieces": {name: pieces(state) for name, state in parts.items()},
    }


def _buffers(training: Training) -> dict[str, Tensor]:
    saved = training.model.state_dict()
    return {n: b for n, b in training.model.named_buffers(remove_duplicate=False) if n in saved}


def restore_own(training: Training, parts: Mapping[str, Any]) -> None:
    """Give this rank what is its own of a checkpoint, and all what was heard."""
    loop, rank, count = parts["loop"], training.rank, training.ranks.count
    before = loop.get("ranks", 1)
    first = {"source": parts["source"], "seen": {k: v[2] for k, v in loop["heard"].items()}, "buffers": {}}
    owns = [first, *(parts[of_rank(r)] for r in range(1, before))]
    mine = owns[rank % before]
    lost = [] if before == count else _differing(owns)
    if lost:
        training.voice.say(
            f"Not exact after this resume: it was saved by {before} processes that each remember another"
            f" {' and '.join(lost)}, and is taken up by {count}."
        )
    for reason in reasons(mine["source"]):
        training.voice.say(f"Not exact after this resume: {reason}")
    if "state" in mine["source"]:
        training.source.restore(_placed(mine["source"]["state"], training.device))
    buffers = _buffers(training)
    for name, there in mine["buffers"].items():
        buffers[name].copy_(there)
    training.heard = {
        k: Loss(*(_placed(part, training.device) for part in (v, logs, seen)))
        for k, (v, logs, _) in loop["heard"].items()
        for seen in [mine["seen"][k] if before == count else _cut([o["seen"][k] for o in owns], rank, count)]
    }


def _placed(value: Any, device: torch.device) -> Any:
    """The same with its tensors on the device, where an allocator puts them and not where they lie in a file: products
    and sums of numbers that begin elsewhere may have other bits.
    """
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, Mapping):
        return {k: _placed(v, device) for k, v in value.items()}
    return [_placed(v, device) for v in value] if isinstance(value, list) else value


def _differing(owns: Sequence[State]) -> list[str]:
    """What the ranks do not agree in."""
    said = {_written(o["source"]) for o in owns}
    names = ["source"] if len(said) > 1 else []
    return names + sorted({n for o in owns for n in o["buffers"]})


def _written(state: State) -> str:
    tensors: dict[str, Tensor] = {}
    return json.dumps(pack(state, tensors)) + digest(tensors)


def _cut(seen: Sequence[Mapping[str, Tensor]], rank: int, count: int) -> dict[str, Tensor]:
    """Rank's piece of what all ranks have seen, in order."""
    return {k: torch.cat([s[k] for s in seen]).tensor_split(count)[rank] for k in seen[0]}
