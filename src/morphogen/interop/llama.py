"""Llama (and Mistral, which is Llama with a window) as transformers keeps it.

    theirs                                            ours
    model.embed_tokens; model.norm; lm_head           embed; norm; last
    layers.I.input_layernorm, .post_attention_…       blocks.I.norm1, .norm2
    layers.I.self_attn.{q,k,v}_proj; .o_proj          blocks.I.attention.qkv, the three one below the other; .out
    layers.I.mlp.{gate,up}_proj; .down_proj           blocks.I.mlp.inner, the two one below the other; .outer

Touvron et al. 2023, "LLaMA", arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783; Jiang et al. 2023, "Mistral
7B", arXiv:2310.06825.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..nets.causal import CausalTransformer
from ..nets.positions import Rotary
from ..nets.transformer import Design
from .names import DEEPEST, WIDEST, Told, activation_of, lacking, whole

KIND, WINDOWED = "llama", "mistral"
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu tanh", "relu": "relu"}
_NORMS = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
_PARTS = {  # what of theirs stands one below the other in each of ours
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "mlp.inner": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.outer": ("mlp.down_proj",),
}


def net_of(config: Mapping[str, Any], where: str = "config.json") -> CausalTransformer:
    """The net of a configuration, its weights not yet those of a checkpoint. where: the file, to be named.

    Raises UserError for what this net cannot be, and for a value that is none.
    """
    told = Told(config, where)
    bias = told.flag("attention_bias", False)
    if bias != told.flag("mlp_bias", False):
        raise UserError("This Llama has biases in one half of its blocks only, which no net here has.")
    codes = told.whole("vocab_size")
    design = Design(
        norm="rms",
        eps=told.number("rms_norm_eps", 1e-6),
        activation=activation_of(told.word("hidden_act", "silu"), ACTIVATIONS),
        gated=True,
        bias=bias,
        kv_heads=told.whole("num_key_value_heads", None, most=WIDEST),
        head=told.whole("head_dim", None, most=WIDEST),
        window=told.whole("sliding_window", None) if config.get("model_type") == WINDOWED else None,
    )
    return CausalTransformer(
        codes,
        (told.whole("max_position_embeddings", 2048),),
        width=told.whole("hidden_size", most=WIDEST),
        depth=told.whole("num_hidden_layers", most=DEEPEST),
        heads=told.whole("num_attention_heads", most=WIDEST),
        hidden=told.whole("intermediate_size", most=8 * WIDEST),
        positions=_rotary(told),
        design=design,
        tied=told.flag("tie_word_embeddings", False),
        begin=told.symbol("bos_token_id", codes),
    )


def _rotary(config: Told) -> Rotary:
    told = config.part("rope_parameters")
    told = told if told.page else config.part("rope_scaling")
    period = told.number("rope_theta", 0.0) or config.number("rope_theta", 10_000.0)
    kind = told.word("rope_type", told.word("type", "default"))
    if kind == "default":
        return Rotary(period)
    if kind == "linear":
        return Rotary(period, factor=told.number("factor"))
    if kind == "llama3":
        return Rotary(
            period,
            factor=told.number("factor"),
            original=told.whole("original_max_position_embeddings"),
            low=told.number("low_freq_factor"),
            high=told.number("high_freq_factor"),
        )
    raise UserError(f"This Llama stretches its rotary positions by {kind!r}: known are default, linear and llama3.")


def ours(state: Mapping[str, Tensor], net: CausalTransformer) -> dict[str, Tensor]:
    """A checkpoint's weights under our names."""
    given = {k.removeprefix("model."): v for k, v in state.items()}
    found = {"embed.weight": given["embed_tokens.weight"], "norm.weight": given["norm.weight"]}
    kinds = ("weight", "bias") if net.design.bias else ("weight",)
    for i in range(len(net.blocks)):
        for name, norm in _NORMS.items():
            found[f"blocks.{i}.{norm}.weight"] = given[f"layers.{i}.{name}.weight"]
        for part, names in _PARTS.items():
            for kind in kinds:
                found[f"blocks.{i}.{part}.{kind}"] = torch.cat([given[f"layers.{i}.{n}.{kind}"] for n in names])
    if net.last.weight is not net.embed.weight:
        found["last.weight"] = given["lm_head.weight"]
        if net.last.bias is not None:
            found["last.bias"] = torch.zeros(net.codes)
    if net.start is not None:
        found["start"] = torch.zeros(net.width)  # nothing begins a sequence of theirs
    return found


def theirs(net: CausalTransformer) -> dict[str, Tensor]:
    """A net's weights under their names. Raises UserError for a net that is no Llama."""
    lacking(not isinstance(net.scheme, Rotary), "rotary positions")
    lacking(net.classes is not None or bool(net.source), "no classes and no context")
    d = net.design
    lacking(d.norm != "rms" or d.after or not d.gated or d.qk_norm, "Llama's blocks: RMS norms before, a gate")
    lacking(net.last.bias is not None and bool(net.last.bias.any()), "a last layer without a bias")
    own = whole(net)
    found = {"model.embed_tokens.weight": own["embed.weight"], "model.norm.weight": own["norm.weight"]}
    kv, q = net.head * (d.kv_heads or net.heads), net.head * net.heads
    hidden = own["blocks.0.mlp.outer.weight"].shape[1]
    sizes = {"attention.qkv": (q, kv, kv), "mlp.inner": (hidden, hidden)}
    for i in range(len(net.blocks)):
        for name, norm in _NORMS.items():
            found[f"model.layers.{i}.{name}.weight"] = own[f"blocks.{i}.{norm}.weight"]
        for part, names in _PARTS.items():
            for kind in ("weight", "bias") if d.bias else ("weight",):
                value = own[f"blocks.{i}.{part}.{kind}"]
                pieces = value.split(sizes.get(part, (len(value),)))
                for n, piece in zip(names, pieces, strict=True):
                    found[f"model.layers.{i}.{n}.{kind}"] = piece.contiguous()
    if net.last.weight is not net.embed.weight:
        found["lm_head.weight"] = own["last.weight"]
    return found


def config_of(net: CausalTransformer, end: int | None) -> dict[str, Any]:
    """The configuration of a net."""
    d, rotary = net.design, net.scheme
    assert isinstance(rotary, Rotary)
    assert net.length is not None
    named = {v: k for k, v in ACTIVATIONS.items()}
    lacking(d.activation not in named, f"an activation that they have, not {d.activation!r}")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.period}
    if rotary.original is not None:
        rope |= {"rope_type": "llama3", "factor": rotary.factor, "low_freq_factor": rotary.low}
        rope |= {"high_freq_factor": rotary.high, "original_max_position_embeddings": rotary.original}
    elif rotary.factor != 1:
        rope |= {"rope_type": "linear", "factor": rotary.factor}
    config = {
        "architectures": ["LlamaForCausalLM" if d.window is None else "MistralForCausalLM"],
        "model_type": KIND if d.window is None else WINDOWED,
        "vocab_size": net.codes,
        "max_position_embeddings": net.length,
        "hidden_size": net.width,
        "intermediate_size": net.get_parameter("blocks.0.mlp.outer.weight").shape[1],
        "num_hidden_layers": len(net.blocks),
        "num_attention_heads": net.heads,
        "num_key_value_heads": d.kv_heads or net.heads,
        "head_dim": net.head,
        "hidden_act": named[d.activation],
        "rms_norm_eps": d.eps,
        "rope_theta": rotary.period,
        "rope_parameters": rope,
        "attention_bias": d.bias,
        "mlp_bias": d.bias,
        "tie_word_embeddings": net.last.weight is net.embed.weight,
        "bos_token_id": net.begin,
        "eos_token_id": end,
    }
    return config if d.window is None else config | {"sliding_window": d.window}
