"""Weights in pieces: each of R ranks holds a R-th of the rows of every parameter, its gradient and its moments.

PyTorch's FSDP2 (`fully_shard`) gathers a block's weights when its forward or backward pass begins and lets go of them
after it; gradients are summed over ranks and scattered. Optimisers, averages and checkpoints see plain tensors: this
rank's rows, in the memory that FSDP reads. Elementwise optimisers do on rows what they do on the whole.

Whole on every rank stay: what `Model.whole` names (parts that a loss differentiates itself), scalars, and what is not
trained. (Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data parallel", arXiv:2304.11277.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Piece
from ..core import Model, State, everyone
from .ranks import Joined

DOORS = ("sample", "act", "log_prob", "elbo", "encode", "decode", "denoise")  # that use weights, beside `forward`


class Sharded(Joined):
    """Ranks that hold the model's weights in pieces. Takes the model apart, in place."""

    sharded = True

    def __init__(self, joined: Joined, model: Model, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
        from torch.distributed.tensor import DTensor

        super().__init__(joined.rank, joined.count, joined.local, joined._store)
        mesh = init_device_mesh(device.type, (self.count,))
        inside = tuple(part + "." for part in model.whole)
        kept = {
            p
            for n, p in model.named_parameters(remove_duplicate=False)
            if not p.requires_grad or p.ndim == 0 or f"{n}.".startswith(inside)
        }
        for p in kept:
            p.data = p.data.to(device)
        for name, module in model.named_modules():
            if getattr(module, "recomputable", False) and not f"{name}.".startswith(inside):
                fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=kept)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # sums …
                module.set_force_sum_reduction_for_comms(True)  # … by the one operation that gloo has for float32 too
        for door in DOORS:
            if callable(getattr(model, door, None)):
                register_fsdp_forward_method(model, door)
        named: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
        self._named: dict[str, Any] = {n: p for n, p in named.items() if isinstance(p, DTensor)}
        self._own: dict[nn.Parameter, nn.Parameter] = {
            p: nn.Parameter(p.detach().to_local()) for p in dict.fromkeys(self._named.values())
        }
        self._held = {own: p for p, own in self._own.items()}
        everyone.through = self

    # ---- one step

    def own(self, p: nn.Parameter) -> nn.Parameter:
        return self._own.get(p, p)

    def gradients(self, params: Sequence[nn.Parameter]) -> None:
        whole = []
        for p in params:
            held: Any = self._held.get(p)
            if held is None:
                whole.append(p)
            else:
                p.grad, held.grad = None if held.grad is None else held.grad.to_local(), None
        super().gradients(whole)

    def norms(self, norms: Sequence[Tensor], params: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        pieces = [i for i, p in enumerate(params) if p in self._held]
        if not pieces:
            return norms
        squares = self._reduce(torch.stack([norms[i].double().square() for i in pieces]))
        whole = dict(zip(pieces, squares.sqrt().unbind(), strict=True))
        return [whole[i].to(n.dtype) if i in whole else n for i, n in enumerate(norms)]

    def settle(self, model: nn.Module) -> None:
        model.reshard()  # type: ignore[operator]

    # ---- checkpoints

    def _rows(self, name: str) -> Tensor:
        rows: Tensor = self._named[name].detach().to_local()
        return rows

    def _cut(self, name: str, whole: Tensor) -> Tensor:
        """This rank's rows of a whole tensor."""
        begin = min(self.rank * -(-len(whole) // self.count), len(whole))
        return whole[begin : begin + len(self._rows(name))]

    def piecewise(self, parts: Mapping[str, State]) -> dict[str, State]:
        from torch.distributed.tensor import DTensor

        def piece(name: str, t: Any) -> Any:
            if name not in self._named or not isinstance(t, Tensor):
                return t
            rows = self._rows(name)
            if isinstance(t, DTensor):
                return Piece(rows)
            return Piece(t) if t.shape == rows.shape else t  # a moment or a mean of it, or its count of steps

        return {part: _by_name(part, state, piece) for part, state in parts.items()}

    def mine(self, parts: Mapping[str, State]) -> dict[str, State]:
        from torch.distributed.tensor import distribute_tensor

        def cut(name: str, t: Any) -> Any:
            if name not in self._named or not isinstance(t, Tensor) or t.shape != self._named[name].shape:
                return t
            return self._cut(name, t)

        made = {part: _by_name(part, state, cut) for part, state in parts.items() if part != "model"}
        made["model"] = {
            n: distribute_tensor(t.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
            if (p := self._named.get(n)) is not None and t.shape == p.shape
            else t
            for n, t in parts["model"].items()
        }
        return made

    def full(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: torch.cat(self._gathered(t)) if n in self._named else t for n, t in named.items()}


def _by_name(part: str, state: State, change: Any) -> State:
    """The state with `change(parameter's name, tensor)` for each tensor that belongs to a parameter."""
    if part == "model" or part.startswith("average"):
        return {n: change(n, t) for n, t in state.items()}
    if part == "optim":
        return {
            i: o | {"state": {n: {k: change(n, t) for k, t in s.items()} for n, s in o["state"].items()}}
            for i, o in state.items()
        }
    return state
