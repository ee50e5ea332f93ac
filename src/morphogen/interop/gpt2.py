"""GPT-2 as transformers keeps it: its configuration and its names for the weights of a `CausalTransformer`.

    theirs                                    ours
    transformer.wte, .wpe                     embed, positions
    h.I.ln_1, .ln_2; ln_f                     blocks.I.norm1, .norm2; norm
    h.I.attn.c_attn, .c_proj                  blocks.I.attention.qkv, .out        their matrices are (inputs, outputs)
    h.I.mlp.c_fc, .c_proj                     blocks.I.mlp.inner, .outer
    lm_head                                   last, which is embed

Radford et al. 2019, "Language models are unsupervised multitask learners".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, unknown
from ..nets.causal import CausalTransformer
from ..nets.transformer import Design
from .names import DEEPEST, WIDEST, Told, activation_of, lacking, whole

KIND = "gpt2"
ACTIVATIONS = {
    "gelu_new": "gelu tanh",
    "gelu_pytorch_tanh": "gelu tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
_PARTS = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "mlp.inner",
    "mlp.c_proj": "mlp.outer",
}


def net_of(config: Mapping[str, Any], where: str = "config.json") -> CausalTransformer:
    """The net of a configuration, its weights not yet those of a checkpoint. where: the file, to be named.

    Raises UserError for what this net cannot be, and for a value that is none.
    """
    told = Told(config, where)
    if not told.flag("scale_attn_weights", True) or told.flag("scale_attn_by_inverse_layer_idx", False):
        raise UserError("This GPT-2 scales its scores in its own way, which no net here does.")
    if told.flag("add_cross_attention", False):
        raise UserError("This GPT-2 looks across to an encoder, which cannot be read yet.")
    width, codes = told.whole("n_embd", most=WIDEST), told.whole("vocab_size")
    design = Design(
        eps=told.number("layer_norm_epsilon", 1e-5),
        activation=activation_of(told.word("activation_function", "gelu_new"), ACTIVATIONS),
        dropout=told.number("resid_pdrop", 0.0),
    )
    return CausalTransformer(
        codes,
        (told.whole("n_positions"),),
        width=width,
        depth=told.whole("n_layer", most=DEEPEST),
        heads=told.whole("n_head", most=WIDEST),
        hidden=told.whole("n_inner", None, most=8 * WIDEST) or 4 * width,
        design=design,
        tied=told.flag("tie_word_embeddings", True),
        begin=told.symbol("bos_token_id", codes),
    )


def ours(state: Mapping[str, Tensor], net: CausalTransformer) -> dict[str, Tensor]:
    """A checkpoint's weights under our names."""
    given = {k.removeprefix("transformer."): v for k, v in state.items()}
    found: dict[str, Tensor] = {"embed.weight": given["wte.weight"], "positions": given["wpe.weight"]}
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = given[f"ln_f.{kind}"]
        for i in range(len(net.blocks)):
            for theirs, name in _PARTS.items():
                value = given[f"h.{i}.{theirs}.{kind}"]
                found[f"blocks.{i}.{name}.{kind}"] = value.mT if ".c_" in theirs and kind == "weight" else value
    if net.last.weight is not net.embed.weight:
        found["last.weight"] = given["lm_head.weight"]
        found["last.bias"] = torch.zeros(net.codes)
    if net.start is not None:
        found["start"] = torch.zeros(net.width)  # nothing begins a sequence of theirs
    return found


def theirs(net: CausalTransformer) -> dict[str, Tensor]:
    """A net's weights under their names. Raises UserError for a net that is no GPT-2."""
    lacking(net.positions is None, "learned positions")
    lacking(net.classes is not None or bool(net.source), "no classes and no context")
    d = net.design
    lacking(
        d.norm != "layer" or d.after or d.gated or not d.bias, "GPT-2's blocks: layer norms before, biases, no gate"
    )
    odd = d.qk_norm or d.window or (d.kv_heads or net.heads) != net.heads or net.head * net.heads != net.width
    lacking(bool(odd), "plain heads: no norms, no window, none shared")
    lacking(net.last.bias is not None and bool(net.last.bias.any()), "a last layer without a bias")
    own = whole(net)
    found = {"transformer.wte.weight": own["embed.weight"], "transformer.wpe.weight": own["positions"]}
    for kind in ("weight", "bias"):
        found[f"transformer.ln_f.{kind}"] = own[f"norm.{kind}"]
        for i in range(len(net.blocks)):
            for name, part in _PARTS.items():
                value = own[f"blocks.{i}.{part}.{kind}"]
                turned = ".c_" in name and kind == "weight"
                found[f"transformer.h.{i}.{name}.{kind}"] = value.T.contiguous() if turned else value
    if net.last.weight is not net.embed.weight:
        found["lm_head.weight"] = own["last.weight"]
    return found


def config_of(net: CausalTransformer, end: int | None) -> dict[str, Any]:
    """The configuration of a net. Raises UserError for an activation that they have not."""
    named = {v: k for k, v in reversed(ACTIVATIONS.items())}
    if net.design.activation not in named:
        raise unknown("activation of a GPT-2", net.design.activation, named)
    assert net.length is not None
    hidden = net.get_parameter("blocks.0.mlp.outer.weight").shape[1]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": KIND,
        "vocab_size": net.codes,
        "n_positions": net.length,
        "n_ctx": net.length,
        "n_embd": net.width,
        "n_layer": len(net.blocks),
        "n_head": net.heads,
        "n_inner": None if hidden == 4 * net.width else hidden,
        "activation_function": named[net.design.activation],
        "layer_norm_epsilon": net.design.eps,
        "resid_pdrop": net.design.dropout,
        "embd_pdrop": net.design.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": net.last.weight is net.embed.weight,
        "bos_token_id": net.begin,
        "eos_token_id": end,
    }
