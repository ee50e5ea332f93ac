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
from .names import Told

KINDS: Mapping[str, ModuleType] = {gpt2.KIND: gpt2, llama.KIND: llama, llama.WINDOWED: llama}
GENERATION = "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer.model",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def read(folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Pretrained:
    """The net of a folder, in evaluation mode. dtype: of the weights, whatever the file's.

    Raises UserError for a folder that is none of theirs, of an architecture that is not known, or whose weights are not
    those of its configuration.
    """
    folder = Path(folder)
    config, where = _config(folder), repr(str(folder / "config.json"))
    kind = KINDS[config["model_type"]]
    try:
        with torch.device("meta"):
            net: CausalTransformer = kind.net_of(config, where)
    except UserError as error:
        if where in str(error):
            raise
        raise UserError(f"{where} describes no net that can be made: {error}") from None
    except (RuntimeError, OverflowError) as error:  # of sizes that no tensor has
        raise UserError(f"{where} describes no net that can be made: {str(error)[:80]}.") from None
    _fill(net, _checked(kind.ours, _weights(folder), net, folder), dtype, device, folder)
    tokenizer = folder / TOKENIZER[0]
    ends = _ends(config, where, net.codes)
    file = folder / GENERATION
    if file.is_file():  # which transformers goes by
        ends = _ends(_json(file), repr(str(file)), net.codes) or ends
    return Pretrained(net.eval(), config, ends, tokenizer if tokenizer.is_file() else None)


def _ends(config: Any, where: str, codes: int) -> tuple[int, ...]:
    """The symbols that end a text, those of them that the alphabet has."""
    if not isinstance(config, Mapping):
        raise UserError(f"{where} is no configuration: fetch the file again.")
    said = config.get("eos_token_id")
    every = said if isinstance(said, list) else [said]
    found = [Told({"eos_token_id": e}, where).symbol("eos_token_id", codes) for e in every]
    return tuple(dict.fromkeys(e for e in found if e is not None))


def write(
    net: CausalTransformer, folder: str | Path, *, end: int | None = None, tokenizer: str | Path | None = None
) -> Path:
    """Write a net as theirs, Llama's if its positions are rotary, else GPT-2's. The folder.

    end: the symbol that ends a text. tokenizer: a folder, or its tokenizer.json, whose tokenizer files come along.
    A vector that begins sequences is no symbol, so it is not written: build the net with `begin`. Weights that were
    there, in one file or in several, and a generation_config.json, which would speak of another net, go.
    Raises UserError for a net that is neither's.
    """
    if not isinstance(net, CausalTransformer):
        raise UserError(f"A {type(net).__name__} is no CausalTransformer, so neither GPT-2 nor Llama can hold it.")
    from safetensors.torch import save

    if end is not None and not 0 <= end < net.codes:
        raise UserError(f"The end {end} is no symbol of this net, which has 0 to {net.codes - 1}.")
    source = None if tokenizer is None else Path(tokenizer)
    if source is not None and source.name in TOKENIZER:
        source = source.parent
    files = [] if source is None else [source / name for name in TOKENIZER if (source / name).is_file()]
    if source is not None and not files:
        raise UserError(f"{str(source)!r} holds no tokenizer: name the folder of a tokenizer.json.")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(f"{str(folder)!r} is a file: name another folder to write the net into.")
    if any(p.is_meta for p in net.parameters()):
        raise UserError("This net has no weights yet (it is on the meta device), so there is nothing to write.")
    if net.start is not None and bool(net.start.any()):
        raise UserError(
            "This net begins sequences with a learned vector, and theirs with a symbol: build it with begin=."
        )
    kind = llama if isinstance(net.scheme, Rotary) else gpt2
    state = {k: v.cpu().contiguous() for k, v in kind.theirs(net).items()}
    config = kind.config_of(net, end) | {"dtype": str(net.embed.weight.dtype).removeprefix("torch.")}
    folder = Path(folder)
    disk.make(folder)
    disk.write(folder / SINGLE, save(state, metadata={"format": "pt"}))
    for file in files:
        if file.parent.resolve() != folder.resolve():
            disk.copy(file, folder / file.name)
    disk.write(folder / "config.json", json.dumps(config, indent=2) + "\n")
    (folder / GENERATION).unlink(missing_ok=True)
    for old in [*folder.glob("model-*-of-*.safetensors"), folder / INDEX]:  # nobody reads them where SINGLE is
        old.unlink(missing_ok=True)
    return folder


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{str(folder)!r} holds no config.json: name a folder that transformers has saved a model in.")
    config, where = _json(path), repr(str(path))
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{where} names no model_type: it is none of a model.")
    if config["model_type"] not in KINDS:
        raise unknown("architecture that can be read:", config["model_type"], KINDS)
    if config.get("quantization_config"):
        raise UserError(f"{where} says that the weights are quantised: read a checkpoint in full or half precision.")
    return dict(config)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is no JSON ({str(error)[:80]}): fetch the file again.") from None


def _files(folder: Path) -> list[Path]:
    """The files of the weights: where there is one with all, that is it, as for transformers."""
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return [folder / SINGLE]
    page = _json(index)
    names = page.get("weight_map") if isinstance(page, Mapping) else None
    if not isinstance(names, Mapping) or not names or not all(isinstance(n, str) and n for n in names.values()):
        raise UserError(f"{str(index)!r} has no 'weight_map' from weights to files: fetch the file again.")
    if away := sorted(n for n in names.values() if Path(n).name != n or "\0" in n):
        raise UserError(f"{str(index)!r} has {away[0]!r} in 'weight_map', which is no file beside it: fetch it again.")
    return [folder / name for name in sorted(set(names.values()))]


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for file in _files(folder):
        if not file.is_file():
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
    except (RuntimeError, IndexError) as error:  # of shapes that do not go together
        raise UserError(f"The weights in {str(where)!r} are not those of their configuration ({error}).") from None
    return found


def _fill(net: CausalTransformer, weights: Mapping[str, Tensor], dtype: torch.dtype, device: Any, where: Path) -> None:
    """Put the weights into a net without any, tied where it is."""
    for name, p in list(net.named_parameters()):
        value = weights.get(name)
        if value is None or value.shape != p.shape:
            said = "is missing" if value is None else f"is {tuple(value.shape)}, not {tuple(p.shape)}"
            raise UserError(f"The weights in {str(where)!r} are not those of their configuration: {name} {said}.")
        if value.dtype not in PRECISIONS:
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"In the weights in {str(where)!r} {name} is {kind}: read a checkpoint in full or half precision."
            )
        own = value.to(device=device, dtype=dtype).contiguous()
        if not bool(own.isfinite().all()):
            raise UserError(f"In the weights in {str(where)!r} {name} holds NaN or Inf: fetch them again.")
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, nn.Parameter(own))
    if net.last.weight.is_meta:
        net.last.weight = net.embed.weight
