"""Folders of transformers: config.json, model.safetensors (or several with an index) and the tokenizer's files.

    pretrained = read("./gpt2")          pretrained.net is a CausalTransformer, pretrained.end the symbol that ends a
    text write(net, "./mine", end=50256)      and transformers' AutoModelForCausalLM loads it

Nothing is unpickled: a checkpoint in pytorch_model.bin must be saved as safetensors by who made it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import disk
from ..errors import UserError, unknown
from ..nets.causal import CausalTransformer
from ..nets.positions import Rotary
from . import gpt2, llama

KINDS: Mapping[str, ModuleType] = {gpt2.KIND: gpt2, llama.KIND: llama, llama.WINDOWED: llama}
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer.model",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


class Pretrained(NamedTuple):
    """A net that others have trained, its configuration, what ends a text, and the tokenizer's file, if any."""

    net: CausalTransformer
    config: Mapping[str, Any]
    ends: tuple[int, ...]
    tokenizer: Path | None

    @property
    def end(self) -> int | None:
        """The first symbol that ends a text."""
        return self.ends[0] if self.ends else None

    @property
    def begins(self) -> bool:
        """Whether a prompt comes after what begins a sequence, as Llama's do; GPT-2's stand at the first place."""
        return self.net.begin is not None and self.config["model_type"] != gpt2.KIND


def read(folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Pretrained:
    """The net of a folder, in evaluation mode. dtype: of the weights, whatever the file's.

    Raises UserError for a folder that is none of theirs, of an architecture that is not known, or whose weights are not
    those of its configuration.
    """
    folder = Path(folder)
    config = _config(folder)
    kind = KINDS[config["model_type"]]
    with torch.device("meta"):
        net: CausalTransformer = kind.net_of(config)
    _fill(net, _checked(kind.ours, _weights(folder), net, folder), dtype, device, folder)
    end = config.get("eos_token_id")
    ends = () if end is None else tuple(end) if isinstance(end, list) else (int(end),)
    tokenizer = folder / TOKENIZER[0]
    return Pretrained(net.eval(), config, ends, tokenizer if tokenizer.is_file() else None)


def of_state(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> CausalTransformer:
    """The net of a configuration and weights that are at hand. Raises UserError as `read` does."""
    kind = KINDS[_known(config, "The configuration")["model_type"]]
    with torch.device("meta"):
        net: CausalTransformer = kind.net_of(config)
    _fill(net, _checked(kind.ours, state, net, Path("state")), torch.float32, "cpu", Path("state"))
    return net.eval()


def write(
    net: CausalTransformer, folder: str | Path, *, end: int | None = None, tokenizer: str | Path | None = None
) -> Path:
    """Write a net as theirs, Llama's if its positions are rotary, else GPT-2's. The folder.

    end: the symbol that ends a text. tokenizer: a folder, or its tokenizer.json, whose tokenizer files come along.
    A vector that begins sequences is no symbol, so it is not written: build the net with `begin`.
    Raises UserError for a net that is neither's.
    """
    if not isinstance(net, CausalTransformer):
        raise UserError(f"A {type(net).__name__} is no CausalTransformer, so neither GPT-2 nor Llama can hold it.")
    from safetensors.torch import save

    if net.start is not None and bool(net.start.any()):
        raise UserError(
            "This net begins sequences with a learned vector, and theirs with a symbol: build it with begin=."
        )
    kind = llama if isinstance(net.scheme, Rotary) else gpt2
    state = {k: v.cpu().contiguous() for k, v in kind.theirs(net).items()}
    config = kind.config_of(net, end) | {"dtype": str(net.embed.weight.dtype).removeprefix("torch.")}
    folder = Path(folder)
    disk.make(folder)
    disk.write(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    if tokenizer is not None:
        source = Path(tokenizer)
        source = source if source.is_dir() else source.parent
        for name in TOKENIZER:
            if (source / name).is_file() and source.resolve() != folder.resolve():
                disk.copy(source / name, folder / name)
    disk.write(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return folder


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{str(folder)!r} holds no config.json: name a folder that transformers has saved a model in.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no JSON ({error}): fetch the file again.") from None
    return _known(config, repr(str(path)))


def _known(config: Any, where: str) -> dict[str, Any]:
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{where} names no model_type: it is none of a model.")
    if config["model_type"] not in KINDS:
        raise unknown("architecture that can be read:", config["model_type"], KINDS)
    if config.get("quantization_config"):
        raise UserError(f"{where} says that the weights are quantised: read a checkpoint in full or half precision.")
    return dict(config)


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    if index.is_file():
        files = [
            folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    state: dict[str, Tensor] = {}
    for file in files:
        if file.parent.resolve() != folder.resolve() or not file.is_file():
            old = (folder / "pytorch_model.bin").is_file()
            raise UserError(
                f"{str(file)!r} is missing"
                + (": pytorch_model.bin is a pickle and is not read; save the model as safetensors." if old else ".")
            )
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"{str(file)!r} is no whole file of safetensors ({error}): fetch it again.") from None
    return state


def _checked(ours: Any, state: Mapping[str, Tensor], net: CausalTransformer, where: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = ours(state, net)
    except KeyError as error:
        raise UserError(f"The weights in {str(where)!r} lack {error}, which config.json speaks of.") from None
    return found


def _fill(net: CausalTransformer, weights: Mapping[str, Tensor], dtype: torch.dtype, device: Any, where: Path) -> None:
    """Put the weights into a net without any, tied where it is."""
    for name, p in list(net.named_parameters()):
        value = weights.get(name)
        if value is None or value.shape != p.shape:
            said = "is missing" if value is None else f"is {tuple(value.shape)}, not {tuple(p.shape)}"
            raise UserError(f"The weights in {str(where)!r} are not those of their configuration: {name} {said}.")
        parent, _, last = name.rpartition(".")
        owner = net.get_submodule(parent)
        setattr(owner, last, nn.Parameter(value.to(device=device, dtype=dtype).contiguous()))
    if net.last.weight.is_meta:
        net.last.weight = net.embed.weight
